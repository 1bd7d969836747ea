"""slogdet, solve and inv of `triton_lu.linalg` and their gradients on kernels."""

import pytest
import torch

import triton_lu
from triton_lu import triton_backend


def _loss(linalg, A, B):
    logabsdet, X, inverse = linalg.slogdet(A).logabsdet, linalg.solve(A, B), linalg.inv(A)
    return logabsdet.sum() + X.abs().square().sum() + inverse.abs().square().sum()


@pytest.mark.parametrize(
    ("n", "dtype"), [(1, torch.float32), (8, torch.float32), (17, torch.float32), (5, torch.complex64)], ids=str
)
def test_gradients(n, dtype, monkeypatch):
    A = torch.randn(3, n, n, dtype=dtype) + n * torch.eye(n)
    B = torch.randn(3, n, 2, dtype=dtype)
    run = []
    for name in ("factor", "slogdet", "inverse", "solve"):
        function = getattr(triton_backend, name)
        monkeypatch.setattr(triton_backend, name, lambda *args, f=function, name=name: run.append(name) or f(*args))
    with triton_lu.backend("triton"):
        gradients = torch.func.grad(lambda *args: _loss(triton_lu.linalg, *args), (0, 1))(A, B)
    expected = torch.func.grad(lambda *args: _loss(torch.linalg, *args), (0, 1))(A.cdouble(), B.cdouble())
    for gradient, double in zip(gradients, expected, strict=True):
        reference = double if dtype.is_complex else double.real
        torch.testing.assert_close(gradient, reference.to(dtype), rtol=2e-5, atol=2e-5)
    assert sorted(run) == ["factor", "factor", "inverse", "inverse", "slogdet", "solve", "solve"]


def test_broadcast_solution():
    """The kernel takes equal batches; others are solved all the same."""
    A, B = torch.randn(3, 8, 8), torch.randn(2, 1, 8, 2)
    with triton_lu.backend("triton"):
        X = triton_lu.linalg.solve(A, B)
        Y = triton_lu.linalg.solve(A, X.mT, left=False)
    torch.testing.assert_close(A @ X, B.expand(2, 3, 8, 2), rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(Y @ A, X.mT, rtol=1e-3, atol=1e-3)
