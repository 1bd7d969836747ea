"""A zoo of matrices to factorize: named, seeded, of any shape and dtype.

`ZOO[name]` is an `Entry`; `ZOO[name].make(m, n, dtype, seed)` is an m x n matrix on the CPU, the same one every time.
Matrices are drawn in double precision and rounded, so those of different dtypes agree as far as they can.

A *regular* entry has a gradient that a computation in its own dtype can be held to: the pivots are away from zero and
nothing over- or underflows. The others must pass through without harm to their neighbours in a batch.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Entry:
    make: Callable[[int, int, torch.dtype, int], torch.Tensor]
    regular: bool


ZOO: dict[str, Entry] = {}


def entry(regular):
    """Adds a function (m, n, draw) -> matrix in double precision to the zoo. `draw(m, n)` is Gaussian, seeded, real or
    complex as asked for; `draw.dtype` is the dtype that was asked for."""

    def register(function):
        def make(m, n, dtype, seed):
            return function(m, n, Draw(dtype, seed)).to(dtype)

        make.__doc__ = function.__doc__
        ZOO[function.__name__] = Entry(make, regular)
        return function

    return register


class Draw:
    """A seeded source of Gaussian matrices in double precision."""

    def __init__(self, dtype, seed):
        self.dtype = dtype
        self.wide = torch.complex128 if dtype.is_complex else torch.float64
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, m, n):
        return torch.randn(m, n, dtype=self.wide, generator=self.generator)

    def orthonormal(self, m, n):
        """Orthonormal columns, or rows if the matrix is wide."""
        Q = torch.linalg.qr(self(max(m, n), min(m, n))).Q
        return Q if m >= n else Q.mT

    def eye(self, m, n):
        return torch.eye(m, n, dtype=self.wide)


@entry(regular=True)
def gaussian(m, n, draw):
    """Independent standard normal entries."""
    return draw(m, n)


@entry(regular=True)
def graded_rows(m, n, draw):
    """Row norms fall from 1 to 1e-3."""
    return torch.logspace(0, -3, m, dtype=torch.float64)[:, None] * draw(m, n)


@entry(regular=True)
def graded_columns(m, n, draw):
    """Column norms fall from 1 to 1e-3."""
    return draw(m, n) * torch.logspace(0, -3, n, dtype=torch.float64)


@entry(regular=True)
def wilkinson(m, n, draw):
    """Wilkinson's example: without a row exchange, the last column of U grows like 2^i."""
    A = draw.eye(m, n) - torch.ones(m, n, dtype=draw.wide).tril(-1)
    A[:, -1] = 1
    return A


@entry(regular=True)
def ill_conditioned(m, n, draw):
    """Condition number 1e6 in double precision, 1e3 in single."""
    k = min(m, n)
    decades = 6 if torch.finfo(draw.dtype).bits == 64 else 3
    return (draw.orthonormal(m, k) * torch.logspace(0, -decades, k, dtype=torch.float64)) @ draw.orthonormal(k, n)


@entry(regular=True)
def diagonally_dominant(m, n, draw):
    """Needs no exchange of rows."""
    return draw(m, n) + 2 * max(m, n) * draw.eye(m, n)


@entry(regular=True)
def orthogonal(m, n, draw):
    """Orthonormal rows or columns."""
    return draw.orthonormal(m, n)


@entry(regular=True)
def triangular(m, n, draw):
    """Upper triangular already, with a diagonal of ones and threes."""
    strict = draw(m, n).triu(1) / max(m, n)
    return strict + draw.eye(m, n) * (1 + 2 * (torch.arange(n) % 2))


@entry(regular=True)
def permutation(m, n, draw):
    """A random permutation matrix, scaled row by row: every step exchanges rows, L is the identity."""
    order = torch.randperm(m, generator=draw.generator)
    return (draw.eye(m, n) * torch.arange(1, n + 1))[order]


@entry(regular=True)
def huge(m, n, draw):
    """Gaussian entries times 1e30: in single precision their squares overflow."""
    return 1e30 * draw(m, n)


@entry(regular=False)
def singular(m, n, draw):
    """Rank one less than full: the last pivot is rounding error or zero."""
    k = max(min(m, n) - 1, 0)
    return draw(m, k) @ draw(k, n)


@entry(regular=False)
def zero(m, n, draw):
    """All zeros: every pivot is zero."""
    return torch.zeros(m, n, dtype=draw.wide)


@entry(regular=False)
def constant(m, n, draw):
    """All ones: rank one."""
    return torch.ones(m, n, dtype=draw.wide)


@entry(regular=False)
def containing_nan(m, n, draw):
    """Gaussian but for one NaN."""
    A = draw(m, n)
    A[m // 2, n // 2] = torch.nan
    return A


@entry(regular=False)
def containing_inf(m, n, draw):
    """Gaussian but for one infinity."""
    A = draw(m, n)
    A[m // 2, n // 2] = torch.inf
    return A


@entry(regular=False)
def denormal(m, n, draw):
    """Gaussian entries scaled to denormal numbers: the inverse of U overflows."""
    return draw(m, n) * (4 * torch.finfo(draw.dtype).smallest_normal * torch.finfo(draw.dtype).eps)


REGULAR = tuple(name for name, kind in ZOO.items() if kind.regular)
IRREGULAR = tuple(name for name, kind in ZOO.items() if not kind.regular)


def batch_of(kinds, batch, m, n, dtype):
    """Matrices of the given kinds in turn."""
    return torch.stack([ZOO[kinds[i % len(kinds)]].make(m, n, dtype, i) for i in range(batch)])


def problem(batch, m, n, dtype, kinds=("gaussian",), device="cpu"):
    """LU and pivots of a batch of matrices, and an argument X of a map."""
    LU, pivots, _ = torch.linalg.lu_factor_ex(batch_of(kinds, batch, m, n, dtype).to(device))
    generator = torch.Generator().manual_seed(1234)
    return LU, pivots, torch.randn(batch, m, n, dtype=dtype, generator=generator).to(device)


def random_pivots(*batch, k, m):
    """As of a factorization: each at or below its row."""
    step = torch.arange(k)
    return (step + (torch.rand(*batch, k) * (m - step)).long() + 1).int()


def any_pivots(*batch, k, m):
    """Of any exchanges, also with rows before."""
    return torch.randint(1, m + 1, (*batch, k), dtype=torch.int32)
