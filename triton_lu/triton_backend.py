"""The operators on Triton kernels: turns their arguments into launches as planned."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from triton_lu_kernels import curvature as curvature_kernel
from triton_lu_kernels import factor as factor_kernel
from triton_lu_kernels import factor_blocks, sweep, tile, warp
from triton_lu_kernels import inverse as inverse_kernel
from triton_lu_kernels import lu_solve as lu_solve_kernel
from triton_lu_kernels import permutation as permutation_kernel

from triton_lu import aten_backend, plan
from triton_lu.results import empty_column_major, empty_factors, empty_row_major, empty_solution


def factor(A: Tensor, pivot: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A -> (LU, pivots, infos)."""
    chosen = _planned("factor", A)
    LU, pivots, infos = empty_factors(A)
    A = _within_32_bits(A)
    with _launching(A):
        if isinstance(chosen, plan.FactorBlocks):
            workspace = factor_blocks.workspace(A, **vars(chosen))
            factor_blocks.factor(LU, pivots, infos, A, *workspace, pivot=pivot, **vars(chosen))
        else:
            factor_kernel.factor(LU, pivots, infos, A, pivot=pivot, **vars(chosen))
    return LU, pivots, infos


def slogdet(A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A -> (sign, logabsdet, LU, pivots)."""
    chosen = _planned("slogdet", A)
    LU, pivots, _ = empty_factors(A)
    sign = A.new_empty(A.shape[:-2])
    logabsdet = A.new_empty(A.shape[:-2], dtype=A.dtype.to_real())
    A = _within_32_bits(A)
    with _launching(A):
        factor_kernel.slogdet(sign, logabsdet, LU, pivots, A, **vars(chosen))
    return sign, logabsdet, LU, pivots


def vjp(LU: Tensor, pivots: Tensor, G: Tensor) -> Tensor:
    """G -> P X, X = L⁻ᴴ (tril(Lᴴ G, -1) + triu(G Uᴴ)) U⁻ᴴ."""
    return _map("vjp", empty_row_major(G), LU, pivots, G)


def jvp(LU: Tensor, pivots: Tensor, E: Tensor) -> Tensor:
    """E -> L tril(M, -1) + triu(M) U, M = L⁻¹ (Pᵀ E) U⁻¹."""
    return _map("jvp", empty_column_major(E), LU, pivots, E)


def curvature(D: Tensor, pivots: Tensor, Y: Tensor) -> Tensor:
    """(D, Y) -> -tril(X dUᴴ, -1) - triu(dLᴴ X), X = Pᵀ Y, where dL = tril(D, -1) and dU = triu(D)."""
    return _map("curvature", empty_row_major(Y), D, pivots, Y)


def inv_ex(A: Tensor) -> tuple[Tensor, Tensor]:
    """A -> (A⁻¹, infos)."""
    LU, pivots, infos = factor(A, True)
    return inverse(A, LU, pivots, False), infos


def inverse(A: Tensor, LU: Tensor, pivots: Tensor, adjoint: bool) -> Tensor:
    """A⁻¹, or A⁻ᴴ, from the factors of A, whose values are not read."""
    chosen = _planned("inverse", LU)
    X = empty_column_major(LU)
    LU = _within_32_bits(LU)
    with _launching(LU):
        inverse_kernel.inverse_transpose(X.mT, LU, pivots, **vars(chosen))
    return empty_column_major(X).copy_(X.mH) if adjoint else X


def lu_solve(LU: Tensor, pivots: Tensor, B: Tensor, left: bool, adjoint: bool) -> Tensor:
    """X with A X = B, or X A = B where not left, or Aᴴ in the place of A. The kernel broadcasts no batches."""
    if LU.shape[:-2] != B.shape[:-2]:
        return aten_backend.lu_solve(LU, pivots, B, left, adjoint)
    X = empty_solution(B, left)
    chosen = _planned("lu_solve", B if left else B.mT)
    LU, B = _within_32_bits(LU), _within_32_bits(B)
    with _launching(B):
        lu_solve_kernel.lu_solve(X, LU, pivots, B, left=left, adjoint=adjoint, **vars(chosen))
    return X


def solve(A: Tensor, LU: Tensor, pivots: Tensor, B: Tensor, left: bool, adjoint: bool) -> Tensor:
    """`lu_solve` by the factors of A, whose values are not read."""
    return lu_solve(LU, pivots, B, left, adjoint)


def solve_ex(A: Tensor, B: Tensor, left: bool) -> tuple[Tensor, ...]:
    """(A, B) -> (X, LU, pivots, infos)."""
    LU, pivots, infos = factor(A, True)
    return solve(A, LU, pivots, B, left, False), LU, pivots, infos


def permutation(pivots: Tensor, m: int) -> Tensor:
    """pivots -> the order of the rows."""
    order = pivots.new_empty((*pivots.shape[:-1], m), dtype=torch.int64)
    with _launching(pivots):
        permutation_kernel.permutation(order, pivots, **vars(plan.ORDER))
    return order


def _map(name: str, out: Tensor, LU: Tensor, pivots: Tensor, X: Tensor) -> Tensor:
    chosen = _planned(name, X)
    LU, X = _within_32_bits(LU), _within_32_bits(X)
    with _launching(X):
        if isinstance(chosen, plan.Curvature):
            curvature_kernel.curvature(out, LU, permutation(pivots, X.shape[-2]), X, **vars(chosen))
        elif isinstance(chosen, plan.Sweep):
            workspace = sweep.workspace(out, block=chosen.block, pieces=chosen.pieces, split=chosen.split)
            sweep.evaluate(name, out, LU, pivots, X, *workspace, **vars(chosen))
        elif isinstance(chosen, plan.Tile):
            order = tile.workspace(out, chosen.programs)
            tile.evaluate(name, out, LU, pivots, X, order, **vars(chosen))
        else:
            warp.evaluate(name, out, LU, pivots, X, **vars(chosen))
    return out


def _within_32_bits(X: Tensor) -> Tensor:
    """X, or a copy if the kernels could not count in 31 bits what they count so: reals inside a matrix and, of complex
    numbers, those between matrices."""
    (m, n), strides = X.shape[-2:], X.stride()
    farthest = (m - 1) * strides[-2] + (n - 1) * strides[-1]
    if X.is_complex():
        farthest = 2 * max(farthest, *strides)
    return X.contiguous() if farthest >= 2**31 else X


@contextmanager
def _launching(X: Tensor) -> Iterator[None]:
    """On the device of X, if it has one."""
    try:
        with torch.cuda.device_of(X):
            yield
    except RuntimeError as error:
        if "0 active drivers" not in str(error):
            raise
        raise RuntimeError(
            "Triton kernels take tensors without a GPU only in Triton's interpreter: "
            "set the environment variable TRITON_INTERPRET=1 before Triton is imported"
        ) from error


@cache
def multiprocessors(device: torch.device) -> int:
    """Of that GPU; where kernels are emulated on a CPU, those of the one that plans are for by default."""
    on_gpu = device.type == "cuda"
    return torch.cuda.get_device_properties(device).multi_processor_count if on_gpu else plan.MULTIPROCESSORS


def _planned(name: str, X: Tensor) -> plan.Kernel:
    m, n = X.shape[-2:]
    chosen = plan.kernel(name, m, n, X.dtype, X.shape[:-2].numel(), multiprocessors(X.device))
    if chosen is None:
        raise NotImplementedError(
            f"`{name}` has no Triton kernel for {m}×{n} matrices of {X.dtype}; "
            "use `triton_lu.backend('auto')` or 'aten'"
        )
    return chosen
