"""The backward of LU and its forward mode for matrices of 17 to 32 rows or columns: four blocks of 16 x 16.

    vjp:    out = P X,                              X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H
    jvp:    out = L tril(M, -1) + triu(M) U,        M = L^-1 (P^T E) U^-1

Arguments, completion and memory effects are those of `warp`; here N = 32. By shuffles alone, whose number grows like
N^2, these sizes would take twice the time of the memory traffic.

Grid: one axis, one matrix per program. The blocked factorization

    dB11 = jvp(dA11)    dU12 = L11^-1 (dA12 - dL11 U12)    dL21 = (dA21 - L21 dU11) U11^-1
    dB22 = jvp(dA22 - dL21 U12 - L21 dU12)

is followed for jvp, with dA = P^T E, and step by step transposed and backwards for vjp. The diagonal block that comes
last is read twice: kept in registers, it would make others spill.

What follows the inverses stands in a branch that is always taken. Passes of the compiler walk, for every dot and every
access, through all connected operations of its region: in two regions they take half the time.
"""

import torch
import triton
import triton.language as tl

from . import blocks, field, launch, layout, permutation


@triton.jit
def _halves(pivots_ptr, strides, shape, batch):
    """Where the rows of the upper half of X, and those of the lower half, lie in P X."""
    destination = permutation.destinations(pivots_ptr, strides, shape, batch, batch[0] >= 0, 32)
    return tl.split(tl.permute(tl.reshape(destination, (1, 2, 16)), (0, 2, 1)))


@triton.jit
def _vjp(out, LU, pivots, G):
    B11 = blocks.load(LU, 0, 0, DIAGONAL=1.0)
    B22 = blocks.load(LU, 16, 16, DIAGONAL=1.0)
    L11_inverse, L22_inverse, U11_inverse, U22_inverse = blocks.inverses(B11, B22)
    top, bottom = _halves(*pivots, *LU[2:4])
    if LU[2][0] > 0:  # always: see above
        G22 = blocks.load(G, 16, 16)
        X22 = blocks.vjp(B22, L22_inverse, U22_inverse, G22)
        blocks.store(out, X22, 16, 16, destination=bottom)

        U12 = blocks.load(LU, 0, 16)
        W21 = blocks.load(G, 16, 0)
        W21 = field.subtract(W21, field.dot(X22, blocks.adjoint(U12)))
        X21 = field.dot(W21, blocks.adjoint(U11_inverse))
        blocks.store(out, X21, 16, 0, destination=bottom)

        L21 = blocks.load(LU, 16, 0)
        W12 = blocks.load(G, 0, 16)
        W12 = field.subtract(W12, field.dot(blocks.adjoint(L21), X22))
        X12 = field.dot(blocks.adjoint(L11_inverse), W12)
        blocks.store(out, X12, 0, 16, destination=top)

        W11 = blocks.load(G, 0, 0)
        lower = field.dot(X12, blocks.adjoint(U12))
        W11 = field.subtract(W11, blocks.merge(lower, field.dot(blocks.adjoint(L21), X21)))
        B11 = blocks.load(LU, 0, 0, DIAGONAL=1.0)
        X11 = blocks.vjp(B11, L11_inverse, U11_inverse, W11)
        blocks.store(out, X11, 0, 0, destination=top)


@triton.jit
def vjp_halves_kernel(
    out_ptr,
    LU_ptr,
    pivots_ptr,
    G_ptr,
    out_strides,
    LU_strides,
    pivots_strides,
    G_strides,
    shape,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch = layout.batch_index(tl.program_id(0).to(tl.int64) + tl.arange(0, 1), shape)
    _vjp(
        (out_ptr, out_strides, shape, batch, COMPONENTS, OUT_BY_COLUMN, RAGGED),
        (LU_ptr, LU_strides, shape, batch, COMPONENTS, LU_BY_COLUMN, RAGGED),
        (pivots_ptr, pivots_strides),
        (G_ptr, G_strides, shape, batch, COMPONENTS, IN_BY_COLUMN, RAGGED),
    )


@triton.jit
def _jvp(out, LU, pivots, E):
    B11 = blocks.load(LU, 0, 0, DIAGONAL=1.0)
    B22 = blocks.load(LU, 16, 16, DIAGONAL=1.0)
    L11_inverse, L22_inverse, U11_inverse, U22_inverse = blocks.inverses(B11, B22)
    top, bottom = _halves(*pivots, *LU[2:4])
    if LU[2][0] > 0:  # always: see above
        A11 = blocks.load(E, 0, 0, source=top)
        X11 = blocks.jvp(B11, L11_inverse, U11_inverse, A11)
        blocks.store(out, X11, 0, 0)

        U12 = blocks.load(LU, 0, 16)
        A12 = blocks.load(E, 0, 16, source=top)
        A12 = field.subtract(A12, field.dot(blocks.strictly_lower(X11), U12))
        X12 = field.dot(L11_inverse, A12)
        blocks.store(out, X12, 0, 16)

        L21 = blocks.load(LU, 16, 0)
        A21 = blocks.load(E, 16, 0, source=bottom)
        A21 = field.subtract(A21, field.dot(L21, blocks.upper(X11)))
        X21 = field.dot(A21, U11_inverse)
        blocks.store(out, X21, 16, 0)

        A22 = blocks.load(E, 16, 16, source=bottom)
        A22 = field.subtract(A22, field.dot(X21, U12))
        A22 = field.subtract(A22, field.dot(L21, X12))
        B22 = blocks.load(LU, 16, 16, DIAGONAL=1.0)
        X22 = blocks.jvp(B22, L22_inverse, U22_inverse, A22)
        blocks.store(out, X22, 16, 16)


@triton.jit
def jvp_halves_kernel(
    out_ptr,
    LU_ptr,
    pivots_ptr,
    E_ptr,
    out_strides,
    LU_strides,
    pivots_strides,
    E_strides,
    shape,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch = layout.batch_index(tl.program_id(0).to(tl.int64) + tl.arange(0, 1), shape)
    _jvp(
        (out_ptr, out_strides, shape, batch, COMPONENTS, OUT_BY_COLUMN, RAGGED),
        (LU_ptr, LU_strides, shape, batch, COMPONENTS, LU_BY_COLUMN, RAGGED),
        (pivots_ptr, pivots_strides),
        (E_ptr, E_strides, shape, batch, COMPONENTS, IN_BY_COLUMN, RAGGED),
    )


def vjp(out, LU, pivots, G, *, num_warps):
    """`warp.vjp` for m or n from 17 to 32."""
    _launch(vjp_halves_kernel, out, LU, pivots, G, num_warps)


def jvp(out, LU, pivots, E, *, num_warps):
    """`warp.jvp` for m or n from 17 to 32."""
    _launch(jvp_halves_kernel, out, LU, pivots, E, num_warps)


def _launch(kernel, out, LU, pivots, x, num_warps):
    if out.numel() == 0:
        return
    args, constants = launch.arguments(out, LU, pivots, x, 32)
    options = {"num_warps": num_warps}
    if out.dtype == torch.float32:
        # With 168 registers twelve one-warp programs fit on a multiprocessor instead of eight; at most 18 are spilled.
        options["maxnreg"] = 168
    launch.run(kernel, out.shape[:-2].numel(), args, constants, **options)
