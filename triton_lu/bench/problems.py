"""What is measured: the factorization, or a derivative of it, for a batch of matrices of one size and dtype."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from triton_lu.command import dtype_name


class Cost(NamedTuple):
    """The least that a problem costs; what is of lower order is left out.

    operations: in multiples of the 2/3 n³ of a factorization; the maps vjp and jvp are 2 each.
    matrices: that must be read or written: the arguments and the results, without pivots and vectors.
    """

    operations: int
    matrices: int


PROBLEMS = {
    "forward": Cost(1, 2),
    "backward": Cost(2, 3),
    "forward+backward": Cost(3, 4),
    "jvp": Cost(3, 4),  # with the factorization, because PyTorch computes both at once
    "double backward": Cost(6, 5),  # three maps
    "logdet": Cost(3, 2),  # log |det A| and its gradient, an inverse from the factors
    "solve": Cost(1, 2),  # A⁻¹ b, one vector per matrix, and its gradient
    "inv": Cost(9, 4),  # A⁻¹ and its gradient, two products
}
SQUARE = ("logdet", "solve", "inv")


class Size(NamedTuple):
    """`batch` matrices of m×n."""

    batch: int
    m: int
    n: int

    def __str__(self) -> str:
        return "×".join(map(str, self[self.batch == 1 :]))


def size(text: str) -> Size:
    """Reads N, MxN or BATCHxMxN."""
    numbers = [int(word) for word in text.replace("×", "x").split("x")]
    if not 1 <= len(numbers) <= 3 or min(numbers) < 1:
        raise ValueError(text)
    return Size(1, numbers[0], numbers[0]) if len(numbers) == 1 else Size(*[1, *numbers][-3:])


@dataclass(frozen=True)
class Problem:
    """`device` is where random numbers are drawn, different ones on each: a CPU takes seconds for a large matrix."""

    name: str
    size: Size
    dtype: torch.dtype
    device: str = "cpu"

    def __str__(self) -> str:
        return f"{self.name} {self.size} {dtype_name(self.dtype)}"

    @property
    def shape(self) -> tuple[int, ...]:
        return self.size[self.size.batch == 1 :]

    @property
    def in_double_precision(self) -> "Problem":
        return replace(self, dtype=torch.complex128 if self.dtype.is_complex else torch.float64)

    @property
    def nbytes(self) -> int:
        """Of the matrices."""
        return self.size.batch * self.size.m * self.size.n * self.dtype.itemsize

    @property
    def fewest_bytes(self) -> int:
        return PROBLEMS[self.name].matrices * self.nbytes

    @property
    def flops(self) -> float:
        """In real arithmetic: a complex operation counts as four."""
        batch, m, n = self.size
        k = min(m, n)
        factorization = 2 * batch * (m * n * k - (m + n) * k**2 / 2 + k**3 / 3)
        return PROBLEMS[self.name].operations * factorization * (4 if self.dtype.is_complex else 1)

    def gaussian(self, seed: int, *shape: int) -> Tensor:
        generator = torch.Generator(self.device).manual_seed(seed)
        double = self.in_double_precision.dtype  # the same numbers, rounded, for every precision
        drawn = torch.randn(shape or self.shape, dtype=double, generator=generator, device=self.device)
        return drawn.to(self.dtype)

    def matrices(self) -> Tensor:
        """Gaussian matrices plus a multiple of a permutation: every library chooses the same pivots in them."""
        A = self.gaussian(0)
        A.diagonal(dim1=-2, dim2=-1).add_(10 + 2 * max(self.size.m, self.size.n) ** 0.5)
        rows = torch.randperm(self.size.m, generator=torch.Generator().manual_seed(0))
        return A[..., rows, :]


def _sizes(*sizes: tuple[int, int, int]) -> list[Size]:
    return [Size(*size) for size in sizes]


SINGLE = [Size(1, n, n) for n in (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)]
BATCHED = _sizes(
    (10_000, 4, 4),
    (10_000, 8, 8),
    (1000, 4, 4),
    (100, 4, 4),
    (1024, 16, 16),
    (256, 32, 32),
    (64, 64, 64),
    (64, 128, 128),
    (16, 256, 256),
    (4, 512, 512),
)
RECTANGULAR = _sizes((1, 1024, 256), (1, 256, 1024), (256, 32, 16), (256, 16, 32))
QUICK = SINGLE + BATCHED + RECTANGULAR

LARGEST = [Size(1, n, n) for n in (4096, 8192)]
FOOTPRINT = _sizes(  # batches of a few megabytes each
    (65_536, 4, 4),
    (65_536, 8, 8),
    (16_384, 16, 16),
    (4096, 32, 32),
    (1024, 64, 64),
    (256, 128, 128),
    (64, 256, 256),
    (16, 512, 512),
    (4, 1024, 1024),
)
LARGE_RECTANGULAR = _sizes((1, 4096, 1024), (1, 1024, 4096), (4096, 32, 16), (4096, 16, 32), (64, 256, 64))
FULL = QUICK + LARGEST + FOOTPRINT + LARGE_RECTANGULAR

DTYPES = (torch.float32, torch.float64, torch.complex64)


def grid(
    names: Sequence[str] = (), sizes: Sequence[Size] = (), dtypes: Sequence[torch.dtype] = (), *, full: bool = False
) -> list[Problem]:
    """The problems asked for. Without `full` and `sizes` those of the quick grid, of which none takes seconds."""
    quick = not (full or sizes)
    return [
        Problem(name, size, dtype)
        for name in names or PROBLEMS
        for dtype in dtypes or (DTYPES[:1] if quick else DTYPES)
        for size in sizes or (FULL if full else QUICK)
        if (size.m == size.n or name not in SQUARE)
        and not (quick and name not in ("forward", "backward") and max(size.m, size.n) > 1024)
    ]
