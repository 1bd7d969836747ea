"""Gaussian elimination without exchanges of rows on a CPU, where LAPACK has no routine for it.

LAPACK exchanges nothing where it finds the largest entry of a column on the diagonal. So panels of
`plan.UNPIVOTED_PANEL` columns go to it in double precision, their rows scaled by falling powers of two, which is exact:
D A = (D L D⁻¹) (D U), and entries of L up to 2¹⁶ to the power of their distance from the diagonal become at most 1.
Panels that have larger ones, a pivot of zero, or numbers that would leave the range of double precision when scaled are
eliminated column by column in NumPy, which takes up to ten times as long.
"""

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.linalg import solve_triangular

from triton_lu import plan

ROW_SCALE = 2.0**-16  # the scale of a row over that of the row above: 2⁻⁵¹² at the end of a panel
SMALLEST = {np.dtype(np.float64): 2.0**-160, np.dtype(np.float32): 2.0**-126}
"""Least pivot in a scaled panel. In double precision all entries, too, lie between this and its reciprocal: scaled
products of two are normal numbers then."""


def eliminate_(A: Tensor) -> None:
    """[batch, m, n], each matrix column-major -> L\\U, in place.

    Like LAPACK it does not divide by a pivot that is exactly zero, and goes on.
    """
    form, at_once = plan.elimination(*A.shape)
    with np.errstate(all="ignore"):
        for i in range(0, len(A), at_once):
            if form == "columns":
                X = A[i : i + at_once].permute(1, 2, 0).numpy()
                X[:] = _columns_(X.copy())
            else:
                _eliminate_(A[i : i + at_once] if at_once > 1 else A[i])


def _eliminate_(A: Tensor) -> None:
    """Recursive in the columns: [A₁ A₂] -> L\\U."""
    m, n = A.shape[-2:]
    k = min(m, n)
    h = min(k, max(plan.UNPIVOTED_PANEL, k // 2 // plan.UNPIVOTED_PANEL * plan.UNPIVOTED_PANEL))
    (_eliminate_panel_ if h <= plan.UNPIVOTED_PANEL else _eliminate_)(A[..., :h])
    if h == n:
        return
    A12 = A[..., :h, h:]
    solve_triangular(A[..., :h, :h], A12, upper=False, unitriangular=True, out=A12)
    if h < m:
        A21, A22 = A[..., h:, :h], A[..., h:, h:]
        if A.ndim == 2:
            A22.addmm_(A21, A12, alpha=-1)
        else:
            A22.sub_(torch.bmm(A21, A12))
        _eliminate_(A22)


def _eliminate_panel_(A: Tensor) -> None:
    """[..., m, k] with k <= m and k <= `plan.UNPIVOTED_PANEL`, in one call."""
    k = A.shape[-1]
    X = A.mT.numpy()
    reals = X.view(X.real.dtype)
    by = _scales(k, A.is_complex())
    square, below = (..., slice(0, len(by.square))), (..., slice(len(by.square), None))
    scaled = np.empty(reals.shape)
    np.multiply(reals[square], by.square, out=scaled[square])
    np.multiply(reals[below], by.below, out=scaled[below])
    LU, pivots, _ = torch.linalg.lu_factor_ex(torch.from_numpy(scaled.view(np.result_type(X, np.float64))).mT)
    pivot_sizes = np.abs(LU.diagonal(dim1=-2, dim2=-1).numpy()) / by.d
    kept = (pivots.numpy() == np.arange(1, k + 1)).all(-1) & (pivot_sizes >= SMALLEST[reals.dtype]).all(-1)
    if reals.dtype == np.float64:
        kept &= _within_range(reals)
    others = None if kept.all() else _columns_(X[~kept].transpose(2, 1, 0).copy())
    factors = LU.mT.numpy().view(np.float64)
    np.multiply(factors[square], by.unscale_square, out=reals[square], casting="same_kind")
    np.multiply(factors[below], by.unscale_below, out=reals[below], casting="same_kind")
    if others is not None:
        X[~kept] = others.transpose(2, 1, 0)


def _within_range(reals: np.ndarray) -> np.ndarray:
    """Whether all numbers of a matrix [..., k, m] are zero or can be scaled."""
    size = np.abs(reals)
    size[size == 0] = 1
    smallest = SMALLEST[reals.dtype]
    return (size.min((-2, -1)) >= smallest) & (size.max((-2, -1)) <= 1 / smallest)


class _Scales(NamedTuple):
    """What a panel of k columns and its factors are multiplied with, [column, row]; complex numbers by their parts."""

    d: np.ndarray  # the diagonal of D, [k]
    square: np.ndarray  # the first k rows by it
    below: float  # the other rows, of which all have the same scale
    unscale_square: np.ndarray  # entry by entry, for D⁻¹ (D L D⁻¹) D and D⁻¹ (D U)
    unscale_below: np.ndarray


@lru_cache(maxsize=128)
def _scales(k: int, is_complex: bool) -> _Scales:
    d = ROW_SCALE ** np.arange(k + 1.0)
    below, d = d[k], d[:k]
    parts = 2 if is_complex else 1
    unscale = np.where(np.tri(k, dtype=bool), 1, d[:, None]) / d
    return _Scales(d, d.repeat(parts), below, unscale.repeat(parts, axis=-1), d[:, None] / below)


def _columns_(W: np.ndarray) -> np.ndarray:
    """[m, n, batch], column by column: every operation is one pass over contiguous batches."""
    for j in range(min(W.shape[:2])):
        pivot, l21 = W[j, j], W[j + 1 :, j]
        l21 /= np.where(pivot == 0, 1, pivot)
        W[j + 1 :, j + 1 :] -= l21[:, None] * W[j, j + 1 :]
    return W
