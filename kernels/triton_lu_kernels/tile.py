"""The backward of LU and its forward mode for matrices of 33 to 128 rows or columns."""

import os

import torch
import triton
import triton.language as tl

from . import blocks, field, launch, layout, permutation


@triton.jit
def _rows(permutation, first, N: tl.constexpr, ROWS: tl.constexpr):
    """Entries first.. of a permutation."""
    index = tl.minimum(first + tl.arange(0, ROWS), N - 1)
    return tl.gather(permutation, index[None, :], 1)


@triton.jit
def _opaque(index, shape):
    """The index itself."""
    return tl.multiple_of(index | (shape[0] >> 31), 16)


@triton.jit
def _load(x_ptr, strides, shape, batch, row, col, ROWS: tl.constexpr, COLS: tl.constexpr, COMPONENTS: tl.constexpr, BY_COLUMN: tl.constexpr, TRANSPOSED: tl.constexpr, source=None):
    """The block at (row, col) of a matrix or of its transpose."""
    if TRANSPOSED:
        return layout.transpose(blocks.load(x_ptr, strides, shape, batch, col, row, COMPONENTS, BY_COLUMN, True, 0.0, COLS, ROWS, source))
    else:
        return blocks.load(x_ptr, strides, shape, batch, row, col, COMPONENTS, BY_COLUMN, True, 0.0, ROWS, COLS, source)


@triton.jit
def _vjp_side(out_ptr, LU_ptr, G_ptr, out_strides, LU_strides, G_strides, shape, batch, destination, inverse, J, ROWS: tl.constexpr, OUT_BY_COLUMN: tl.constexpr, LU_BY_COLUMN: tl.constexpr, IN_BY_COLUMN: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr):
    COMPONENTS: tl.constexpr = len(inverse)
    N: tl.constexpr = destination.shape[1]
    dtype: tl.constexpr = out_ptr.dtype.element_ty
    size = tl.maximum(shape[0], shape[1])
    R = J + 16
    D11 = field.zeros((16, 16), dtype, COMPONENTS)
    for i in range(R, size, ROWS):
        i = _opaque(i, shape)
        W = _load(G_ptr, G_strides, shape, batch, i, J, ROWS, 16, COMPONENTS, IN_BY_COLUMN, TRANSPOSED)
        if TRANSPOSED:
            rows = _rows(destination, J, N, 16)
        else:
            rows = _rows(destination, i, N, ROWS)
        D = field.zeros((ROWS, 16), dtype, COMPONENTS)
        for c in range(R, size, 16):
            c = _opaque(c, shape)
            if TRANSPOSED:
                source = _rows(destination, c, N, 16)
            else:
                source = rows
            S = _load(out_ptr, out_strides, shape, batch, i, c, ROWS, 16, COMPONENTS, OUT_BY_COLUMN, TRANSPOSED, source)
            T = _load(LU_ptr, LU_strides, shape, batch, J, c, 16, 16, COMPONENTS, LU_BY_COLUMN, TRANSPOSED)
            D = field.add(D, field.dot(S, blocks.adjoint(T), PRECISION))
        X = field.dot(field.subtract(W, D), blocks.adjoint(inverse), PRECISION)
        if TRANSPOSED:
            blocks.store(out_ptr, out_strides, shape, batch, rows, layout.transpose(X), J, i, OUT_BY_COLUMN, True)
        else:
            blocks.store(out_ptr, out_strides, shape, batch, rows, X, i, J, OUT_BY_COLUMN, True)
        T = _load(LU_ptr, LU_strides, shape, batch, i, J, ROWS, 16, COMPONENTS, LU_BY_COLUMN, TRANSPOSED)
        D11 = field.add(D11, field.dot(blocks.adjoint(T), X, PRECISION))
    return D11


@triton.jit
def vjp_tile_kernel(
    out_ptr,
    LU_ptr,
    pivots_ptr,
    G_ptr,
    out_strides,
    LU_strides,
    pivots_strides,
    G_strides,
    shape,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    destination = permutation.destinations(pivots_ptr, pivots_strides, shape, batch, batch >= 0, N)
    steps = tl.cdiv(tl.minimum(shape[0], shape[1]), 16)
    for step in range(steps):
        J = _opaque((steps - 1 - step) * 16, shape)
        B11 = blocks.load(LU_ptr, LU_strides, shape, batch, J, J, COMPONENTS, LU_BY_COLUMN, True, 1.0)
        L_inverse, U_inverse = blocks.inverse(B11)
        upper = _vjp_side(out_ptr, LU_ptr, G_ptr, out_strides, LU_strides, G_strides, shape, batch, destination, U_inverse, J, ROWS, OUT_BY_COLUMN, LU_BY_COLUMN, IN_BY_COLUMN, False, PRECISION)
        lower = _vjp_side(out_ptr, LU_ptr, G_ptr, out_strides, LU_strides, G_strides, shape, batch, destination, layout.transpose(L_inverse), J, ROWS, OUT_BY_COLUMN, LU_BY_COLUMN, IN_BY_COLUMN, True, PRECISION)
        W11 = blocks.load(G_ptr, G_strides, shape, batch, J, J, COMPONENTS, IN_BY_COLUMN, True)
        W11 = field.subtract(W11, blocks.merge(layout.transpose(lower), upper))
        B11 = blocks.load(LU_ptr, LU_strides, shape, batch, J, J, COMPONENTS, LU_BY_COLUMN, True, 1.0)
        X11 = blocks.vjp(B11, L_inverse, U_inverse, W11, PRECISION)
        blocks.store(out_ptr, out_strides, shape, batch, _rows(destination, J, N, 16), X11, J, J, OUT_BY_COLUMN, True)
        tl.debug_barrier()


@triton.jit
def _jvp_remainder(out_ptr, LU_ptr, E_ptr, out_strides, LU_strides, E_strides, shape, batch, source, i, J, COMPONENTS: tl.constexpr, ROWS: tl.constexpr, OUT_BY_COLUMN: tl.constexpr, LU_BY_COLUMN: tl.constexpr, IN_BY_COLUMN: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr):
    N: tl.constexpr = source.shape[1]
    if TRANSPOSED:
        rows = _rows(source, J, N, 16)
    else:
        rows = _rows(source, i, N, ROWS)
    W = _load(E_ptr, E_strides, shape, batch, i, J, ROWS, 16, COMPONENTS, IN_BY_COLUMN, TRANSPOSED, rows)
    D = field.zeros((ROWS, 16), W[0].dtype, COMPONENTS)
    for c in range(0, J, 16):
        c = _opaque(c, shape)
        dL = _load(out_ptr, out_strides, shape, batch, i, c, ROWS, 16, COMPONENTS, OUT_BY_COLUMN, TRANSPOSED)
        U = _load(LU_ptr, LU_strides, shape, batch, c, J, 16, 16, COMPONENTS, LU_BY_COLUMN, TRANSPOSED)
        D = field.add(D, field.dot(dL, U, PRECISION))
        L = _load(LU_ptr, LU_strides, shape, batch, i, c, ROWS, 16, COMPONENTS, LU_BY_COLUMN, TRANSPOSED)
        dU = _load(out_ptr, out_strides, shape, batch, c, J, 16, 16, COMPONENTS, OUT_BY_COLUMN, TRANSPOSED)
        D = field.add(D, field.dot(L, dU, PRECISION))
    return field.subtract(W, D)


@triton.jit
def _jvp_side(out_ptr, LU_ptr, E_ptr, out_strides, LU_strides, E_strides, shape, batch, source, dU11, U_inverse, J, ROWS: tl.constexpr, OUT_BY_COLUMN: tl.constexpr, LU_BY_COLUMN: tl.constexpr, IN_BY_COLUMN: tl.constexpr, TRANSPOSED: tl.constexpr, PRECISION: tl.constexpr):
    COMPONENTS: tl.constexpr = len(U_inverse)
    for i in range(J + 16, shape[1] if TRANSPOSED else shape[0], ROWS):
        i = _opaque(i, shape)
        W = _jvp_remainder(out_ptr, LU_ptr, E_ptr, out_strides, LU_strides, E_strides, shape, batch, source, i, J, COMPONENTS, ROWS, OUT_BY_COLUMN, LU_BY_COLUMN, IN_BY_COLUMN, TRANSPOSED, PRECISION)
        L21 = _load(LU_ptr, LU_strides, shape, batch, i, J, ROWS, 16, COMPONENTS, LU_BY_COLUMN, TRANSPOSED)
        X = field.dot(field.subtract(W, field.dot(L21, dU11, PRECISION)), U_inverse, PRECISION)
        if TRANSPOSED:
            blocks.store(out_ptr, out_strides, shape, batch, None, layout.transpose(X), J, i, OUT_BY_COLUMN, True)
        else:
            blocks.store(out_ptr, out_strides, shape, batch, None, X, i, J, OUT_BY_COLUMN, True)


@triton.jit
def jvp_tile_kernel(
    out_ptr,
    LU_ptr,
    pivots_ptr,
    E_ptr,
    out_strides,
    LU_strides,
    pivots_strides,
    E_strides,
    shape,
    N: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    PRECISION: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    source = permutation.destinations(pivots_ptr, pivots_strides, shape, batch, batch >= 0, N)
    for J in range(0, tl.minimum(shape[0], shape[1]), 16):
        J = _opaque(J, shape)
        B11 = blocks.load(LU_ptr, LU_strides, shape, batch, J, J, COMPONENTS, LU_BY_COLUMN, True, 1.0)
        L_inverse, U_inverse = blocks.inverse(B11)
        W11 = _jvp_remainder(out_ptr, LU_ptr, E_ptr, out_strides, LU_strides, E_strides, shape, batch, source, J, J, COMPONENTS, 16, OUT_BY_COLUMN, LU_BY_COLUMN, IN_BY_COLUMN, False, PRECISION)
        B11 = blocks.load(LU_ptr, LU_strides, shape, batch, J, J, COMPONENTS, LU_BY_COLUMN, True, 1.0)
        X11 = blocks.jvp(B11, L_inverse, U_inverse, W11, PRECISION)
        blocks.store(out_ptr, out_strides, shape, batch, None, X11, J, J, OUT_BY_COLUMN, True)
        _jvp_side(out_ptr, LU_ptr, E_ptr, out_strides, LU_strides, E_strides, shape, batch, source, blocks.upper(X11), U_inverse, J, ROWS, OUT_BY_COLUMN, LU_BY_COLUMN, IN_BY_COLUMN, False, PRECISION)
        _jvp_side(out_ptr, LU_ptr, E_ptr, out_strides, LU_strides, E_strides, shape, batch, source, layout.transpose(blocks.strictly_lower(X11)), layout.transpose(L_inverse), J, ROWS, OUT_BY_COLUMN, LU_BY_COLUMN, IN_BY_COLUMN, True, PRECISION)
        tl.debug_barrier()


def vjp(out, LU, pivots, G, *, block, num_warps):
    """`warp.vjp` for m or n from 33 to 128."""
    _launch(vjp_tile_kernel, out, LU, pivots, G, block, num_warps)


def jvp(out, LU, pivots, E, *, block, num_warps):
    """`warp.jvp` for m or n from 33 to 128."""
    _launch(jvp_tile_kernel, out, LU, pivots, E, block, num_warps)


def _launch(kernel, out, LU, pivots, x, block, num_warps):
    if out.numel() == 0:
        return
    N = triton.next_power_of_2(max(out.shape[1:]))
    args, constants = launch.arguments(out, LU, pivots, x, N)
    constants.pop("RAGGED")
    precision = "tf32x3" if out.dtype in (torch.float32, torch.complex64) else "ieee"
    opt = {"maxnreg": int(os.environ["R"])} if os.environ.get("R") else {}
    kernel[out.shape[:1]](
        *args, N=N, ROWS=block, **constants, PRECISION=precision, num_warps=num_warps, num_stages=1, **opt
    )
