"""What the tests of factorization kernels have in common."""

import torch

from tests.support.layouts import by_column
from tests.support.matrices import ZOO
from triton_lu import reference

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
FINITE = [name for name in ZOO if name not in ("containing_nan", "containing_inf")]
RESIDUAL_IN_EPS = 10.0
"""Accepted |P^T A - L U| at size n, entry by entry, in units of n eps |L| |U|."""


def batch_of(kinds, m, n, dtype):
    """One matrix of each kind."""
    return torch.stack([ZOO[kind].make(m, n, dtype, seed) for seed, kind in enumerate(kinds)])


def outputs(A, layout=by_column):
    """LU full of NaN, pivots and infos full of -7."""
    batch, m, n = A.shape
    LU = layout(torch.full_like(A, torch.nan))
    return LU, torch.full((batch, min(m, n)), -7, dtype=torch.int32), torch.full((batch,), -7, dtype=torch.int32)


def residual(A, LU, pivots):
    """The largest |P^T A - L U| over n eps |L| |U|. Where that bound is denormal, its spacing counts as the bound."""
    m, n = A.shape[-2:]
    L, U = reference.factors(LU)
    L, U = L[..., :m, : min(m, n)], U[..., : min(m, n), :n]
    permuted = reference.permutation_matrix(pivots, m, L.dtype).mT @ reference.double(A)
    limits = torch.finfo(A.dtype)
    bound = max(m, n) * limits.eps * (L.abs() @ U.abs()).clamp_min(limits.smallest_normal)
    return ((permuted - L @ U).abs() / bound).max().item()


def assert_factors(A, LU, pivots, infos):
    """A small residual, multipliers of at most 1 (complex: sqrt 2) in modulus, valid pivots, true infos."""
    assert residual(A, LU, pivots) <= RESIDUAL_IN_EPS
    assert LU.tril(-1).abs().max() <= (1.5 if A.is_complex() else 1)
    assert_valid(pivots, A.shape[1])
    end = pivots.shape[1] + 1
    zeros = LU.diagonal(dim1=-2, dim2=-1) == 0
    assert torch.equal(infos.long(), torch.where(zeros, torch.arange(1, end), end).amin(-1) % end)


def assert_valid(pivots, m):
    """Every pivot names a row from its own on."""
    assert (pivots >= torch.arange(1, pivots.shape[1] + 1)).all()
    assert (pivots <= m).all()


def assert_same(results, others):
    """Equal bit by bit, NaN like NaN."""
    for x, y in zip(results, others, strict=True):
        assert torch.equal(x.isnan(), y.isnan())
        assert torch.equal(x.nan_to_num(), y.nan_to_num())


def assert_agrees(A, results):
    """LAPACK's pivots and infos, and its factors up to rounding."""
    LU, pivots, infos = torch.linalg.lu_factor_ex(A)
    assert torch.equal(results[1], pivots)
    assert torch.equal(results[2], infos)
    assert_factors(A, *results)
    torch.testing.assert_close(results[0], LU, rtol=1e3 * torch.finfo(A.dtype).eps, atol=1e3 * torch.finfo(A.dtype).eps)
