"""The backward of LU and its forward mode for matrices of more than 128 rows or columns: many programs per matrix.

    vjp:    out = P X,                              X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H
    jvp:    out = L tril(M, -1) + triu(M) U,        M = L^-1 (P^T E) U^-1

Arguments, completion and memory effects are those of `warp`, with two workspaces besides: `order` [batch, m] takes the
row of P X at which each row of X arrives, and `inverses` [batch, 2 BLOCK blocks, BLOCK] the inverse of every diagonal
block of L, each followed by the transposed inverse of the same block of U.

J is a diagonal block of width BLOCK, R the rows or columns after it, S = W[R, R]; all products with the inverses are
products of blocks of the sweep. The blocked factorization reversed, from the last J to the first, is vjp,

    X21 = (G21 - S U12^H) U11^-H       X12 = L11^-H (G12 - L21^H S)
    X11 = vjp(G11 - tril(X12 U12^H, -1) - triu(L21^H X21))

and its tangent, left-looking, from the first J to the last, is jvp: with A = P^T E, and 0 for what comes before J,

    dB11 = jvp(A11 - dL10 U01 - L10 dU01)
    dL21 = (A21 - dL20 U01 - L20 dU01 - L21 dU11) U11^-1       dU12 = L11^-1 (A12 - dL10 U02 - L10 dU02 - dL11 U12)

Grids: one axis. `prepare_kernel` has one program for every BLOCK rows of a matrix; then for each J `tiles_kernel` one
for every tile of ROWS rows of X21 or columns of X12, and `diagonal_kernel` one for X11. Tiles of X12 are computed by
the code of X21, on transposed matrices. What one launch has written, rows of X in their places in P X, the next reads.
Every sum has one order, and none crosses matrices.
"""

import torch
import triton
import triton.language as tl

from . import blocks, field, launch, layout, permutation


@triton.jit
def _load(
    X,
    row,
    col,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    source=None,
):
    """The block at (row, col) of a matrix X = (pointer, strides, shape, batch), or of X^T."""
    if TRANSPOSED:
        block = _load(X, col, row, COLS, ROWS, COMPONENTS, BY_COLUMN, RAGGED, False, source)
        return layout.transpose(block)
    else:
        return blocks.load(*X, row, col, COMPONENTS, BY_COLUMN, RAGGED, ROWS=ROWS, COLS=COLS, source=source)


@triton.jit
def _store(X, destination, block, row, col, BY_COLUMN: tl.constexpr, RAGGED: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Writes the block at (row, col) of X or of X^T, row i of X to row destination[i]."""
    if TRANSPOSED:
        blocks.store(*X, destination, layout.transpose(block), col, row, BY_COLUMN, RAGGED)
    else:
        blocks.store(*X, destination, block, row, col, BY_COLUMN, RAGGED)


@triton.jit
def _places(order, row, ROWS: tl.constexpr):
    """Entries [1, ROWS] from `row` on of order = (pointer, strides, shape, batch); 0 for rows that do not exist."""
    rows = row + tl.arange(0, ROWS)[None, :]
    offsets = order[3][:, None] * order[1][0] + rows
    return tl.load(order[0] + offsets, rows < order[2][0], other=0)


@triton.jit
def _inverse(inverses, J, BLOCK: tl.constexpr, COMPONENTS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """U11^-T, or L11^-1 if TRANSPOSED: the transposed inverse of the upper triangle of B11, or of B11^T."""
    row = 2 * J
    if not TRANSPOSED:
        row += BLOCK
    return _load(inverses, row, 0, BLOCK, BLOCK, COMPONENTS, False, False, False)


@triton.jit
def _invert_rows(
    inverses,
    LU,
    inverse,
    J,
    i,
    BLOCK: tl.constexpr,
    COMPONENTS: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Sixteen rows from i on of `_inverse`, by substitution: `inverse` is their diagonal block."""
    first = 2 * J
    if not TRANSPOSED:
        first += BLOCK
    row = tl.arange(0, 16)[:, None] + i
    unit = tl.where(row == tl.arange(0, BLOCK)[None, :], 1.0, 0.0).to(inverse[0].dtype)
    Y = (unit,)
    if len(inverse) == 2:
        Y += (tl.zeros_like(unit),)
    for c in range(0, i, 16):
        T = _load(LU, J + i, J + c, 16, 16, COMPONENTS, LU_BY_COLUMN, RAGGED, not TRANSPOSED)
        solved = _load(inverses, first + c, 0, 16, BLOCK, COMPONENTS, False, False, False)
        Y = field.subtract(Y, field.dot(T, solved, PRECISION))
    _store(inverses, None, field.dot(inverse, Y, PRECISION), first + i, 0, False, False, False)


@triton.jit
def prepare_kernel(
    out_ptr,
    LU_ptr,
    order_ptr,
    X_ptr,
    out_strides,
    LU_strides,
    order_strides,
    X_strides,
    shape,
    inverses_ptr,
    inverses_strides,
    pivots_ptr,
    pivots_strides,
    BLOCK: tl.constexpr,
    COMPONENTS: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    programs = tl.cdiv(shape[0], BLOCK)
    batch = (tl.program_id(0) // programs).to(tl.int64) + tl.arange(0, 1)
    J = tl.program_id(0) % programs * BLOCK
    rows = J + tl.arange(0, BLOCK)[None, :]
    destination = permutation.destinations_of(pivots_ptr, pivots_strides, shape, batch, rows, J + BLOCK)
    tl.store(order_ptr + batch[:, None] * order_strides[0] + rows, destination, rows < shape[0])
    if tl.minimum(shape[0], shape[1]) > J:
        LU = (LU_ptr, LU_strides, shape, batch)
        inverses = (inverses_ptr, inverses_strides, shape, batch)
        for i in range(0, BLOCK, 16):
            B = blocks.load(
                LU_ptr, LU_strides, shape, batch, J + i, J + i, COMPONENTS, LU_BY_COLUMN, RAGGED, DIAGONAL=1.0
            )
            L_inverse, U_inverse = blocks.inverse(B)
            _invert_rows(inverses, LU, L_inverse, J, i, BLOCK, COMPONENTS, LU_BY_COLUMN, RAGGED, True, PRECISION)
            _invert_rows(
                inverses,
                LU,
                layout.transpose(U_inverse),
                J,
                i,
                BLOCK,
                COMPONENTS,
                LU_BY_COLUMN,
                RAGGED,
                False,
                PRECISION,
            )
            tl.debug_barrier()


@triton.jit
def _vjp_tile(
    out,
    LU,
    G,
    inverses,
    order,
    i,
    J,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    TERMS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows i.. of X21 = (G21 - S U12^H) U11^-H; on transposed matrices, of X12^T."""
    if TRANSPOSED:
        end = out[2][0]
        destination = _places(order, J, BLOCK)
    else:
        end = out[2][1]
        destination = _places(order, i, ROWS)
    D = field.zeros((ROWS, BLOCK), G[0].dtype.element_ty, COMPONENTS)
    for c in range(J + BLOCK, end, TERMS):
        source = destination
        if TRANSPOSED:
            source = _places(order, c, TERMS)
        S = _load(out, i, c, ROWS, TERMS, COMPONENTS, OUT_BY_COLUMN, RAGGED, TRANSPOSED, source)
        U12 = _load(LU, J, c, BLOCK, TERMS, COMPONENTS, LU_BY_COLUMN, RAGGED, TRANSPOSED)
        D = field.add(D, field.dot(S, blocks.adjoint(U12), PRECISION))
    W = field.subtract(_load(G, i, J, ROWS, BLOCK, COMPONENTS, IN_BY_COLUMN, RAGGED, TRANSPOSED), D)
    inverse = _inverse(inverses, J, BLOCK, COMPONENTS, TRANSPOSED)
    X = field.dot(W, field.conjugate(inverse), PRECISION)
    _store(out, destination, X, i, J, OUT_BY_COLUMN, RAGGED, TRANSPOSED)


@triton.jit
def _jvp_remainder(
    out,
    LU,
    E,
    order,
    i,
    J,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    TERMS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows i.. of A - dL20 U01 - L20 dU01 in the columns J; or the same of transposed matrices."""
    D = field.zeros((ROWS, BLOCK), E[0].dtype.element_ty, COMPONENTS)
    for c in range(0, J, TERMS):
        dL = _load(out, i, c, ROWS, TERMS, COMPONENTS, OUT_BY_COLUMN, RAGGED, TRANSPOSED)
        U = _load(LU, c, J, TERMS, BLOCK, COMPONENTS, LU_BY_COLUMN, RAGGED, TRANSPOSED)
        D = field.add(D, field.dot(dL, U, PRECISION))
        L = _load(LU, i, c, ROWS, TERMS, COMPONENTS, LU_BY_COLUMN, RAGGED, TRANSPOSED)
        dU = _load(out, c, J, TERMS, BLOCK, COMPONENTS, OUT_BY_COLUMN, RAGGED, TRANSPOSED)
        D = field.add(D, field.dot(L, dU, PRECISION))
    source = _places(order, J, BLOCK) if TRANSPOSED else _places(order, i, ROWS)
    return field.subtract(_load(E, i, J, ROWS, BLOCK, COMPONENTS, IN_BY_COLUMN, RAGGED, TRANSPOSED, source), D)


@triton.jit
def _jvp_tile(
    out,
    LU,
    E,
    inverses,
    order,
    i,
    J,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    TERMS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows i.. of dL21; on transposed matrices, of dU12^T."""
    W = _jvp_remainder(
        out,
        LU,
        E,
        order,
        i,
        J,
        BLOCK,
        ROWS,
        TERMS,
        COMPONENTS,
        OUT_BY_COLUMN,
        LU_BY_COLUMN,
        IN_BY_COLUMN,
        RAGGED,
        TRANSPOSED,
        PRECISION,
    )
    dB11 = _load(out, J, J, BLOCK, BLOCK, COMPONENTS, OUT_BY_COLUMN, RAGGED, False)
    dU11 = layout.transpose(blocks.strictly_lower(dB11)) if TRANSPOSED else blocks.upper(dB11)
    L21 = _load(LU, i, J, ROWS, BLOCK, COMPONENTS, LU_BY_COLUMN, RAGGED, TRANSPOSED)
    W = field.subtract(W, field.dot(L21, dU11, PRECISION))
    inverse = _inverse(inverses, J, BLOCK, COMPONENTS, TRANSPOSED)
    _store(out, None, field.dot(W, layout.transpose(inverse), PRECISION), i, J, OUT_BY_COLUMN, RAGGED, TRANSPOSED)


@triton.jit
def tiles_kernel(
    out_ptr,
    LU_ptr,
    order_ptr,
    X_ptr,
    out_strides,
    LU_strides,
    order_strides,
    X_strides,
    shape,
    inverses_ptr,
    inverses_strides,
    J,
    FORWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    TERMS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    R = J + BLOCK
    below = tl.cdiv(tl.maximum(shape[0] - R, 0), ROWS)
    tiles = below + tl.cdiv(tl.maximum(shape[1] - R, 0), ROWS)
    batch = (tl.program_id(0) // tiles).to(tl.int64) + tl.arange(0, 1)
    tile = tl.program_id(0) % tiles
    out = (out_ptr, out_strides, shape, batch)
    LU = (LU_ptr, LU_strides, shape, batch)
    X = (X_ptr, X_strides, shape, batch)
    order = (order_ptr, order_strides, shape, batch)
    inverses = (inverses_ptr, inverses_strides, shape, batch)
    if tile < below:
        i = R + tile * ROWS
        if FORWARD:
            _jvp_tile(
                out,
                LU,
                X,
                inverses,
                order,
                i,
                J,
                BLOCK,
                ROWS,
                TERMS,
                COMPONENTS,
                OUT_BY_COLUMN,
                LU_BY_COLUMN,
                IN_BY_COLUMN,
                RAGGED,
                False,
                PRECISION,
            )
        else:
            _vjp_tile(
                out,
                LU,
                X,
                inverses,
                order,
                i,
                J,
                BLOCK,
                ROWS,
                TERMS,
                COMPONENTS,
                OUT_BY_COLUMN,
                LU_BY_COLUMN,
                IN_BY_COLUMN,
                RAGGED,
                False,
                PRECISION,
            )
    else:
        i = R + (tile - below) * ROWS
        if FORWARD:
            _jvp_tile(
                out,
                LU,
                X,
                inverses,
                order,
                i,
                J,
                BLOCK,
                ROWS,
                TERMS,
                COMPONENTS,
                OUT_BY_COLUMN,
                LU_BY_COLUMN,
                IN_BY_COLUMN,
                RAGGED,
                True,
                PRECISION,
            )
        else:
            _vjp_tile(
                out,
                LU,
                X,
                inverses,
                order,
                i,
                J,
                BLOCK,
                ROWS,
                TERMS,
                COMPONENTS,
                OUT_BY_COLUMN,
                LU_BY_COLUMN,
                IN_BY_COLUMN,
                RAGGED,
                True,
                PRECISION,
            )


@triton.jit
def _vjp_sum(
    out,
    LU,
    order,
    J,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """L21^H X21; on transposed matrices, (X12 U12^H)^T."""
    end = out[2][0]
    if TRANSPOSED:
        end = out[2][1]
        source = _places(order, J, BLOCK)
    D = field.zeros((BLOCK, BLOCK), out[0].dtype.element_ty, COMPONENTS)
    for c in range(J + BLOCK, end, TERMS):
        if not TRANSPOSED:
            source = _places(order, c, TERMS)
        X21 = _load(out, c, J, TERMS, BLOCK, COMPONENTS, OUT_BY_COLUMN, RAGGED, TRANSPOSED, source)
        L21 = _load(LU, c, J, TERMS, BLOCK, COMPONENTS, LU_BY_COLUMN, RAGGED, TRANSPOSED)
        D = field.add(D, field.dot(blocks.adjoint(L21), X21, PRECISION))
    return D


@triton.jit
def diagonal_kernel(
    out_ptr,
    LU_ptr,
    order_ptr,
    X_ptr,
    out_strides,
    LU_strides,
    order_strides,
    X_strides,
    shape,
    inverses_ptr,
    inverses_strides,
    J,
    FORWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    batch = tl.program_id(0).to(tl.int64) + tl.arange(0, 1)
    out = (out_ptr, out_strides, shape, batch)
    LU = (LU_ptr, LU_strides, shape, batch)
    X = (X_ptr, X_strides, shape, batch)
    order = (order_ptr, order_strides, shape, batch)
    inverses = (inverses_ptr, inverses_strides, shape, batch)
    if FORWARD:
        W = _jvp_remainder(
            out,
            LU,
            X,
            order,
            J,
            J,
            BLOCK,
            BLOCK,
            TERMS,
            COMPONENTS,
            OUT_BY_COLUMN,
            LU_BY_COLUMN,
            IN_BY_COLUMN,
            RAGGED,
            False,
            PRECISION,
        )
    else:
        lower = layout.transpose(
            _vjp_sum(out, LU, order, J, BLOCK, TERMS, COMPONENTS, OUT_BY_COLUMN, LU_BY_COLUMN, RAGGED, True, PRECISION)
        )
        upper = _vjp_sum(
            out, LU, order, J, BLOCK, TERMS, COMPONENTS, OUT_BY_COLUMN, LU_BY_COLUMN, RAGGED, False, PRECISION
        )
        W = field.subtract(
            _load(X, J, J, BLOCK, BLOCK, COMPONENTS, IN_BY_COLUMN, RAGGED, False), blocks.merge(lower, upper)
        )
    B = blocks.load(
        LU_ptr, LU_strides, shape, batch, J, J, COMPONENTS, LU_BY_COLUMN, RAGGED, 1.0, ROWS=BLOCK, COLS=BLOCK
    )
    L_inverse = _inverse(inverses, J, BLOCK, COMPONENTS, True)
    U_inverse = layout.transpose(_inverse(inverses, J, BLOCK, COMPONENTS, False))
    if FORWARD:
        _store(out, None, blocks.jvp(B, L_inverse, U_inverse, W, PRECISION), J, J, OUT_BY_COLUMN, RAGGED, False)
    else:
        destination = _places(order, J, BLOCK)
        _store(out, destination, blocks.vjp(B, L_inverse, U_inverse, W, PRECISION), J, J, OUT_BY_COLUMN, RAGGED, False)


def workspace(out, *, block):
    """Uninitialized `order` and `inverses` for a result like `out`, with diagonal blocks of that width."""
    batch_size, m, n = out.shape
    order = torch.empty(batch_size, m, dtype=torch.int32, device=out.device)
    return order, out.new_empty(batch_size, 2 * block * triton.cdiv(min(m, n), block), block)


def vjp(out, LU, pivots, G, order, inverses, *, block, rows, terms, num_warps):
    """Writes the backward of LU to `out`: `warp.vjp` for any m and n.

    `order` and `inverses` are those of `workspace` and hold nothing of use afterwards. `block`, `rows` and `terms` are
    the width of the diagonal blocks, the rows of a tile, and the terms of a sum that are loaded at once: powers of two
    from 16 on, `terms` at most `block`.
    """
    _launch(False, out, LU, pivots, G, order, inverses, block, rows, terms, num_warps)


def jvp(out, LU, pivots, E, order, inverses, *, block, rows, terms, num_warps):
    """Writes the forward mode of LU to `out`: `warp.jvp` for any m and n. Arguments as those of `vjp`, E for G."""
    _launch(True, out, LU, pivots, E, order, inverses, block, rows, terms, num_warps)


def _launch(forward, out, LU, pivots, x, order, inverses, block, rows, terms, num_warps):
    if out.numel() == 0:
        return
    batch_size, m, n = out.shape
    args, constants = launch.arguments(out, LU, order, x, block)
    constants["RAGGED"] = m % max(block, rows) != 0 or n % max(block, rows) != 0
    constants["PRECISION"] = "tf32x3" if out.dtype in (torch.float32, torch.complex64) else "ieee"
    args += (torch.view_as_real(inverses) if inverses.is_complex() else inverses, inverses.stride())

    common = {name: constants[name] for name in ("COMPONENTS", "LU_BY_COLUMN", "RAGGED", "PRECISION")}
    prepare_kernel[(batch_size * triton.cdiv(m, block),)](
        *args, pivots, pivots.stride(), BLOCK=block, **common, num_warps=1
    )

    options = {"FORWARD": forward, "BLOCK": block, "TERMS": terms, "num_warps": num_warps, "num_stages": 1}
    starts = range(0, min(m, n), block)
    for J in starts if forward else reversed(starts):
        R = J + block
        tiles = triton.cdiv(max(m - R, 0), rows) + triton.cdiv(max(n - R, 0), rows)
        if forward:
            diagonal_kernel[(batch_size,)](*args, J, **constants, **options)
        if tiles:
            tiles_kernel[(batch_size * tiles,)](*args, J, ROWS=rows, **constants, **options)
        if not forward:
            diagonal_kernel[(batch_size,)](*args, J, **constants, **options)
