"""The maps of small matrices on a CPU, in NumPy, where a call takes a third of one in ATen.

Notation and order of operations are those of `aten_backend.py`: for one matrix those of `_vjp_block_` and
`_jvp_block_`, for batches those of the sweeps in blocks of one column, in which solves are divisions. Results are in
memory that PyTorch has allocated and can resize.
"""

from collections.abc import Callable
from functools import lru_cache
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.linalg import solve_triangular

from triton_lu import plan, row_order
from triton_lu.autograd_key import readable
from triton_lu.results import empty_column_major, empty_row_major

Array = np.ndarray


def _array(X: Tensor) -> Array:
    """X, one matrix, as [m, n]."""
    return readable(X).numpy(force=True).reshape(X.shape[-2:])


@lru_cache(maxsize=256)
def _triangles(m: int, n: int) -> tuple[Array, Array, Array]:
    """Masks: below the diagonal of an m×n matrix, and below it and not below it in the first min(m, n) columns.

    Column-major, like the factors that they are applied to.
    """
    below = np.asfortranarray(np.tri(m, n, -1, dtype=bool))
    return below, below[:, :m], ~below[:, :m]


def _layout(X: Tensor, right_hand_sides: int, *, left: bool) -> Literal["C", "F"]:
    """NumPy's `order` for the right-hand sides of a solve."""
    return "C" if plan.solve_by_rows(X.dtype, right_hand_sides, left=left) else "F"


def _solve_(T: Tensor, X: Array, *, left: bool, upper: bool, unit: bool = False) -> None:
    """X = T⁻¹ X or X T⁻¹."""
    result = torch.from_numpy(X)
    solve_triangular(T, result, upper=upper, left=left, unitriangular=unit, out=result)


def vjp(LU: Tensor, pivots: Tensor, G: Tensor) -> Tensor:
    """`aten_backend.vjp` of one matrix."""
    m, n = G.shape[-2:]
    k = min(m, n)
    below, strict, above = _triangles(m, n)
    W = _array(G).copy()
    top, left = W[:k], W[:, :k]
    N = left.copy(order=_layout(G, m, left=False))
    N1 = N[:k]
    BH = _array(LU).conj().T
    BH1, BH11 = BH[:k], torch.from_numpy(BH[:k, :k])
    with np.errstate(all="ignore"):
        N1 += np.where(strict.T, BH1, 0) @ left
        np.copyto(W, 0, where=below)
        N1 -= top @ BH[:, :k]
        np.copyto(N, 0, where=above)
        _solve_(BH11, N, left=False, upper=False)
        left += N
        if m > k:
            top -= BH1[:, k:] @ W[k:]
        _solve_(BH11, top, left=True, upper=True, unit=True)
    X = empty_row_major(G)
    W.take(row_order.of_one(pivots, m, inverse=True), axis=0, out=X.numpy().reshape(m, n), mode="clip")
    return X


def jvp(LU: Tensor, pivots: Tensor, E: Tensor) -> Tensor:
    """`aten_backend.jvp` of one matrix."""
    m, n = E.shape[-2:]
    k = min(m, n)
    below, strict, above = _triangles(m, n)
    W = np.asarray(_array(E).take(row_order.of_one(pivots, m), axis=0), order=_layout(E, n, left=True))
    top, left = W[:k], W[:, :k]
    B = _array(LU)
    B11 = torch.from_numpy(B[:k, :k])
    with np.errstate(all="ignore"):
        _solve_(B11, top, left=True, upper=False, unit=True)
        if m > k:
            W[k:] -= B[k:] @ top
        T = left.copy(order=_layout(E, m, left=False))
        _solve_(B11, T, left=False, upper=True)
        np.copyto(T, 0, where=above)
        T1 = T[:k]
        top -= T1 @ B[:k]
        np.copyto(W, 0, where=below)
        left += T
        left += np.where(strict, B[:, :k], 0) @ T1
    result = empty_column_major(E)
    result.numpy()[...] = W
    return result


def curvature(D: Tensor, pivots: Tensor, Y: Tensor) -> Tensor:
    """`aten_backend.curvature` of one matrix."""
    m, n = Y.shape[-2:]
    k = min(m, n)
    below, strict, _ = _triangles(m, n)
    X = _array(Y)[row_order.of_one(pivots, m)]
    DH = _array(D).conj().T
    result = empty_row_major(Y)
    K = result.numpy().reshape(m, n)
    with np.errstate(all="ignore"):
        np.negative(np.where(strict.T, DH[:k], 0) @ X, out=K[:k])
        np.copyto(K[:, :k], -(X @ np.where(below.T[:, :k], 0, DH[:, :k])), where=strict)
    return result


def by_columns(columns: Callable[[Array, Array], Array], X: Tensor, factors: Tensor, result: Tensor) -> Tensor:
    """Runs one of the functions below on a batch, on as many matrices at a time as a cache holds."""
    shape = (-1, *X.shape[-2:])
    given, B, out = (readable(x).numpy(force=True).reshape(shape) for x in (X, factors, result))
    at_once = plan.CACHED // given[0].size
    for i in range(0, len(given), at_once):
        some = slice(i, i + at_once)
        with np.errstate(all="ignore"):
            out[some] = columns(*(x[some].transpose(1, 2, 0).copy() for x in (given, B))).transpose(2, 0, 1)
    return result


# W and B are [m, n, batch], so that every operation is one pass over contiguous batches


def vjp_columns(W: Array, B: Array) -> Array:
    """`aten_backend._vjp_sweep_`."""
    B = B.conj()
    for j in reversed(range(min(W.shape[:2]))):
        R = slice(j + 1, None)
        S, l21, u12 = W[R, R], B[R, j], B[j, R]
        W[j, R] -= (l21[:, None] * S).sum(0)
        W[R, j] -= (S * u12).sum(1)
        W[R, j] /= B[j, j]
        W[j, j] -= (l21 * W[R, j]).sum(0)
    return W


def jvp_columns(W: Array, B: Array) -> Array:
    """`aten_backend._jvp_sweep_`."""
    for j in range(min(W.shape[:2])):
        R = slice(j + 1, None)
        W[R, j] -= B[R, j] * W[j, j]
        W[R, j] /= B[j, j]
        W[R, R] -= W[R, j, None] * B[j, R]
        W[R, R] -= B[R, j, None] * W[j, R]
    return W


def curvature_columns(X: Array, D: Array) -> Array:
    """`aten_backend.curvature` of the rows of Pᵀ Y."""
    D = D.conj()
    K = np.empty_like(X)
    for j in range(min(X.shape[:2])):
        K[j, j:] = -(D[j + 1 :, j, None] * X[j + 1 :, j:]).sum(0)
        K[j + 1 :, j] = -(X[j + 1 :, j:] * D[j, j:]).sum(1)
    return K
