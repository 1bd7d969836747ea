"""What is measured: a derivative of LU for a batch of matrices of one size and dtype."""

from dataclasses import dataclass

import torch

DERIVATIVES = ("backward", "jvp", "double backward")


@dataclass(frozen=True)
class Problem:
    derivative: str
    batch: int
    m: int
    n: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.m, self.n) if self.batch == 1 else (self.batch, self.m, self.n)

    def matrices(self, seed: int) -> torch.Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.shape, dtype=self.dtype, generator=generator)


SINGLE = [(1, n, n) for n in (4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048)]
BATCHED = [
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
]
RECTANGULAR = [(1, 1024, 256), (1, 256, 1024), (256, 32, 16), (256, 16, 32)]
DTYPES = (torch.float32, torch.float64)


def grid(derivative: str) -> list[Problem]:
    """The problems of one table. Derivatives of higher order leave out the largest, which take seconds each."""
    limit = 2048 if derivative == "backward" else 1024
    sizes = [size for size in SINGLE + BATCHED + RECTANGULAR if max(size) == 10_000 or max(size) <= limit]
    dtypes = (*DTYPES, torch.complex64) if derivative == "backward" else DTYPES
    return [Problem(derivative, *size, dtype) for dtype in dtypes for size in sizes]
