"""The accuracy table: its reference in extended precision, and its rows."""

import numpy as np
import pytest
import torch

from benchmarks import accuracy
from triton_lu import reference


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_extended_gradient_is_the_formula(dtype):
    LU, pivots, _ = torch.linalg.lu_factor_ex(torch.randn(12, 12, dtype=dtype))
    G = torch.randn(12, 12, dtype=dtype)
    exact = accuracy.extended_gradient(LU, pivots, G)
    assert exact.dtype == (np.clongdouble if dtype.is_complex else np.longdouble)
    rounded = torch.from_numpy(exact.astype(np.complex128 if dtype.is_complex else np.float64))
    assert reference.relative_error(reference.vjp(LU, pivots, G), rounded) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64, torch.complex128], ids=str)
def test_measure(dtype):
    row = accuracy.measure("gaussian", 1, 24, dtype)
    for provider in ("triton_lu", "torch"):
        assert 0 < float(row[f"{provider}_error"]) < reference.tolerance(dtype, 24)
    assert row["ratio"] == pytest.approx(float(row["triton_lu_error"]) / float(row["torch_error"]), rel=0.02)
    assert accuracy.measure("wilkinson", 1, 150, torch.float32) is None
