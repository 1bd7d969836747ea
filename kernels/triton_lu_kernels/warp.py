"""The backward of LU for matrices of at most 32 rows and columns: one row (or column) per lane of a warp.

    out = P X,    X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H

    LU      [batch, m, n]   L strictly below the diagonal, U on and above it
    pivots  [batch, k]      int32, 1-based; k = min(m, n)
    G       [batch, m, n]   the upstream gradient
    out     [batch, m, n]

Real and complex, any strides. Every matrix is completed with an identity to N x N, N the next power of two: L is then
m x m and U is n x n, and the m x n corner of X is the answer.

Grid: one axis. `vjp_kernel` (N <= 16) takes `MATRICES` matrices per program and evaluates the formula as it stands, by
shuffles. `vjp_halves_kernel` (N = 32) takes one and splits it into four blocks of 16 x 16: with shuffles alone, whose
number grows like N^2, these would take twice the time of the memory traffic.

LU, pivots and G are read once, out is written once, each row straight to its place under P; nothing else is touched. No
sum crosses matrices, so a matrix gets the same bits in any batch.
"""

import torch
import triton
import triton.language as tl

from . import field, layout, permutation, substitution


@triton.jit
def vjp_kernel(
    out_ptr,
    LU_ptr,
    pivots_ptr,
    G_ptr,
    out_strides,
    LU_strides,
    pivots_strides,
    G_strides,
    shape,
    batch_size,
    N: tl.constexpr,
    MATRICES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    G_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64) * MATRICES + tl.arange(0, MATRICES)
    batch_mask = batch < batch_size
    B = layout.load_tile(LU_ptr, LU_strides, shape, batch, batch_mask, N, COMPONENTS, LU_BY_COLUMN, RAGGED, 1.0)
    G = layout.load_tile(G_ptr, G_strides, shape, batch, batch_mask, N, COMPONENTS, G_BY_COLUMN, RAGGED, 0.0)
    destination = permutation.destinations(pivots_ptr, pivots_strides, shape, batch, batch_mask, N)

    # Both products and both solves are with L^H or U^H. Of the conjugated B they are with L^T or U^T.
    factors = layout.unstack(field.conjugate(B))
    lower = layout.turn(substitution.transposed_lower_product(factors, layout.unstack(layout.transpose(G))))
    phi = substitution.merge(lower, substitution.upper_product(factors, layout.unstack(G)))

    # The solves broadcast the same scalars as the products did. Of the negated columns these are different values: the
    # compiler cannot merge the broadcasts, which would keep N^2 of them in registers from there to here.
    negated = substitution.negate_columns(factors)
    solved = layout.turn(substitution.upper_solve(negated, field.reciprocal(substitution.diagonal(factors)), phi))
    X = layout.transpose(layout.stack(substitution.transposed_lower_solve(negated, solved)))

    layout.store_tile(out_ptr, out_strides, shape, batch, batch_mask, destination, X, OUT_BY_COLUMN, RAGGED)


@triton.jit
def load_block(
    x_ptr,
    strides,
    shape,
    batch,
    ROW: tl.constexpr,
    COL: tl.constexpr,
    COMPONENTS: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    DIAGONAL: tl.constexpr,
):
    """The 16 x 16 block at (ROW, COL) of one matrix."""
    everywhere = batch >= 0
    tile = layout.load_tile(
        x_ptr, strides, shape, batch, everywhere, 16, COMPONENTS, BY_COLUMN, RAGGED, DIAGONAL, ROW, COL
    )
    return layout.reshape(tile, (16, 16))


@triton.jit
def store_block(
    x_ptr,
    strides,
    shape,
    batch,
    destination,
    block,
    ROW: tl.constexpr,
    COL: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """Writes the block of X at (ROW, COL), each row to where it belongs under P."""
    everywhere = batch >= 0
    tile = layout.reshape(block, (1, 16, 16))
    layout.store_tile(x_ptr, strides, shape, batch, everywhere, destination, tile, BY_COLUMN, RAGGED, ROW, COL)


@triton.jit
def merge_blocks(lower, upper):
    """The block that is `lower` strictly below the diagonal and `upper` on and above it."""
    index = tl.arange(0, 16)
    return field.where(index[:, None] > index[None, :], lower, upper)


@triton.jit
def diagonal_vjp(B_H, L_inverse, U_inverse, W, PRECISION: tl.constexpr):
    """L^-H (tril(L^H W, -1) + triu(W U^H)) U^-H of one block, given B^H, L^-H and U^-H."""
    index = tl.arange(0, 16)
    zero = field.constant_like(B_H, 0.0)
    identity = field.where(index[:, None] == index[None, :], field.constant_like(B_H, 1.0), zero)
    L_H = field.where(index[:, None] < index[None, :], B_H, identity)
    U_H = field.where(index[:, None] >= index[None, :], B_H, zero)
    phi = merge_blocks(field.dot(L_H, W, PRECISION), field.dot(W, U_H, PRECISION))
    return field.dot(field.dot(L_inverse, phi, PRECISION), U_inverse, PRECISION)


@triton.jit
def inverses(B11_H, B22_H):
    """L^-H and U^-H of both diagonal blocks, by substitution on the identity: one row of one block per lane."""
    negated = substitution.negate_columns(layout.unstack(layout.transpose(layout.pair(B11_H, B22_H))))
    identity = substitution.identity_columns(negated)
    inverse_diagonal = field.negate(field.reciprocal(substitution.diagonal(negated)))
    lower = layout.transpose(layout.stack(substitution.transposed_lower_solve(negated, identity)))
    upper = layout.stack(substitution.upper_solve(negated, inverse_diagonal, identity))
    return layout.unpair(lower) + layout.unpair(upper)


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
    G_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    B11 = load_block(LU_ptr, LU_strides, shape, batch, 0, 0, COMPONENTS, LU_BY_COLUMN, RAGGED, 1.0)
    B22 = load_block(LU_ptr, LU_strides, shape, batch, 16, 16, COMPONENTS, LU_BY_COLUMN, RAGGED, 1.0)
    B11_H = field.conjugate(layout.transpose(B11))
    B22_H = field.conjugate(layout.transpose(B22))
    L11_inverse, L22_inverse, U11_inverse, U22_inverse = inverses(B11_H, B22_H)
    destination = permutation.destinations(pivots_ptr, pivots_strides, shape, batch, batch >= 0, 32)
    upper_rows, lower_rows = tl.split(tl.permute(tl.reshape(destination, (1, 2, 16)), (0, 2, 1)))

    G22 = load_block(G_ptr, G_strides, shape, batch, 16, 16, COMPONENTS, G_BY_COLUMN, RAGGED, 0.0)
    X22 = diagonal_vjp(B22_H, L22_inverse, U22_inverse, G22, PRECISION)
    store_block(out_ptr, out_strides, shape, batch, lower_rows, X22, 16, 16, OUT_BY_COLUMN, RAGGED)

    U12 = load_block(LU_ptr, LU_strides, shape, batch, 0, 16, COMPONENTS, LU_BY_COLUMN, RAGGED, 0.0)
    U12_H = field.conjugate(layout.transpose(U12))
    W21 = load_block(G_ptr, G_strides, shape, batch, 16, 0, COMPONENTS, G_BY_COLUMN, RAGGED, 0.0)
    W21 = field.subtract(W21, field.dot(X22, U12_H, PRECISION))
    X21 = field.dot(W21, U11_inverse, PRECISION)
    store_block(out_ptr, out_strides, shape, batch, lower_rows, X21, 16, 0, OUT_BY_COLUMN, RAGGED)

    L21 = load_block(LU_ptr, LU_strides, shape, batch, 16, 0, COMPONENTS, LU_BY_COLUMN, RAGGED, 0.0)
    L21_H = field.conjugate(layout.transpose(L21))
    W12 = load_block(G_ptr, G_strides, shape, batch, 0, 16, COMPONENTS, G_BY_COLUMN, RAGGED, 0.0)
    W12 = field.subtract(W12, field.dot(L21_H, X22, PRECISION))
    X12 = field.dot(L11_inverse, W12, PRECISION)
    store_block(out_ptr, out_strides, shape, batch, upper_rows, X12, 0, 16, OUT_BY_COLUMN, RAGGED)

    W11 = load_block(G_ptr, G_strides, shape, batch, 0, 0, COMPONENTS, G_BY_COLUMN, RAGGED, 0.0)
    correction = merge_blocks(field.dot(X12, U12_H, PRECISION), field.dot(L21_H, X21, PRECISION))
    X11 = diagonal_vjp(B11_H, L11_inverse, U11_inverse, field.subtract(W11, correction), PRECISION)
    store_block(out_ptr, out_strides, shape, batch, upper_rows, X11, 0, 0, OUT_BY_COLUMN, RAGGED)


def vjp(out, LU, pivots, G, *, matrices, num_warps):
    """Writes the backward of LU to `out`: P X with X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H.

    `out`, `LU` and `G` are [batch, m, n] of one dtype (float32, float64, complex64, complex128), m and n at most 32;
    `pivots` is [batch, min(m, n)] int32. Any strides, expanded inputs too; `out` overlaps nothing. `matrices`, a power
    of two, is the number of them that each program of `num_warps` warps takes; a program takes a single one if m or n
    is above 16. Nothing is validated here, and nothing launched for an empty `out`.
    """
    if out.numel() == 0:
        return
    batch_size, m, n = out.shape
    N = max(2, triton.next_power_of_2(max(m, n)))
    out_reals, LU_reals, G_reals = (torch.view_as_real(x) if x.is_complex() else x for x in (out, LU, G))
    args = (out_reals, LU_reals, pivots, G_reals, out.stride(), LU.stride(), pivots.stride(), G.stride(), (m, n))
    constants = {
        "COMPONENTS": 2 if out.is_complex() else 1,
        "OUT_BY_COLUMN": out.stride(1) < out.stride(2),
        "LU_BY_COLUMN": LU.stride(1) < LU.stride(2),
        "G_BY_COLUMN": G.stride(1) < G.stride(2),
        "RAGGED": (m, n) != (N, N),
    }
    if N <= 16:
        grid = (triton.cdiv(batch_size, matrices),)
        vjp_kernel[grid](*args, batch_size, N=N, MATRICES=matrices, **constants, num_warps=num_warps)
    elif out.dtype == torch.float32:
        # With 168 registers twelve one-warp programs fit on a multiprocessor instead of eight, and none is spilled.
        options = {"PRECISION": "tf32x3", "num_warps": num_warps, "maxnreg": 168}
        vjp_halves_kernel[(batch_size,)](*args, **constants, **options)
    else:
        options = {"PRECISION": "tf32x3" if out.dtype == torch.complex64 else "ieee", "num_warps": num_warps}
        vjp_halves_kernel[(batch_size,)](*args, **constants, **options)
