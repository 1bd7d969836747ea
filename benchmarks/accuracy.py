"""Errors of gradients beside PyTorch's: `python -m benchmarks.accuracy`.

For every class of regular matrices of `tests/matrices.py`: the relative error, in the Frobenius norm, of the backward of
LU, both providers from the same LU in the same precision. Single precision is judged by the formula in double precision,
double precision by the formula in NumPy's extended precision, where that has 64 bits or more. The worst of a batch
counts. Writes benchmarks/results/accuracy.csv.
"""

import csv
from collections.abc import Iterator

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks.providers import PROVIDERS
from benchmarks.run import RESULTS, machine
from tests.matrices import REGULAR, ZOO
from triton_lu.cli import accuracy, dtype_name

SINGLE, DOUBLE = (torch.float32, torch.complex64), (torch.float64, torch.complex128)
SIZES = {1: (4, 16, 64, 150, 256, 512, 1024), 8: (4, 16, 64, 150, 256), 600: (4, 8)}
"""n by the size of the batch: both decide by which plan the sweep runs."""
LARGEST_IN_EXTENDED_PRECISION = 256
EXCESS = 3.0
"""The ratio to PyTorch's error from which on a class is reported."""


def problems() -> Iterator[tuple[str, int, int, torch.dtype]]:
    """(class, batch, n, dtype)."""
    for dtype in SINGLE + DOUBLE:
        for batch, sizes in SIZES.items():
            for n in sizes:
                if dtype in SINGLE or (n <= LARGEST_IN_EXTENDED_PRECISION and batch == 1):
                    yield from ((name, batch, n, dtype) for name in REGULAR)


def measure(name: str, batch: int, n: int, dtype: torch.dtype) -> dict[str, object] | None:
    """A row of the table; None if the gradient overflows."""
    A = torch.stack([ZOO[name].make(n, n, dtype, seed) for seed in range(batch)])
    A = (A if batch > 1 else A[0]).requires_grad_()
    G = torch.randn(A.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    LU, pivots, _ = torch.linalg.lu_factor_ex(A.detach())
    exact = accuracy.reference_gradient(LU, pivots, G) if dtype in SINGLE else extended_gradient(LU, pivots, G)
    errors = {}
    for provider, factor in PROVIDERS.items():
        (gradient,) = torch.autograd.grad(factor(A), A, G)
        if not (gradient.isfinite().all() and torch.isfinite(torch.as_tensor(exact.astype(complex) if isinstance(exact, np.ndarray) else exact)).all()):
            return None
        errors[provider] = relative_error(gradient, exact)
    ours, theirs = errors["triton_lu"], errors["torch"]
    return {
        "matrices": name,
        "batch": batch,
        "n": n,
        "dtype": dtype_name(dtype),
        "triton_lu_error": f"{ours:.2e}",
        "torch_error": f"{theirs:.2e}",
        "ratio": round(ours / theirs, 2) if theirs else (1.0 if ours == 0 else float("inf")),
    }
