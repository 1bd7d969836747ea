"""The backward of LU and its forward mode for matrices of more than 128 rows or columns: many programs per matrix.

    vjp:    out = P X,                              X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H
    jvp:    out = L tril(M, -1) + triu(M) U,        M = L^-1 (P^T E) U^-1

Arguments, completion and memory effects are those of `warp`, with workspaces besides: `order` [batch, m] takes the row
of P X at which each row of X arrives; `inverses` [batch, rows, BLOCK] the inverse of every diagonal block of L, each
followed by the transposed inverse of the same block of U; `sums` [batch, rows, BLOCK] a block for every tile.

J is a diagonal block of width BLOCK, R the rows or columns after it, S = W[R, R]; all products with the inverses are
products of blocks of the sweep. The blocked factorization reversed, from the last J to the first, is vjp,

    X21 = (G21 - S U12^H) U11^-H       X12 = L11^-H (G12 - L21^H S)
    X11 = vjp(G11 - tril(X12 U12^H, -1) - triu(L21^H X21))

and its tangent, left-looking, from the first J to the last, is jvp: with A = P^T E, and 0 for what comes before J,

    dB11 = jvp(A11 - dL10 U01 - L10 dU01)
    dL21 = (A21 - dL20 U01 - L20 dU01 - L21 dU11) U11^-1       dU12 = L11^-1 (A12 - dL10 U02 - L10 dU02 - dL11 U12)

Grids: one axis. `prepare_kernel` has one program for every diagonal block and one for every 128 rows of a matrix; then
for each J `tiles_kernel` one for every tile of BLOCK rows of X21 or columns of X12, and `diagonal_kernel` one for X11.
Tiles of X12 are computed by the code of X21, on transposed matrices. The products that X11 needs are summed by tile:
`tiles_kernel` leaves each tile's part in `sums`, where jvp adds up those for all later diagonal blocks. What one launch
has written, rows of X in their places in P X, the next reads. Every sum has one order, and none crosses matrices.

With `disable_licm` addresses are computed where they are used: moved out of the loops, they spill.
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
    for c in tl.range(0, i, 16, disable_licm=True):
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
    sums_ptr,
    sums_strides,
    pivots_ptr,
    pivots_strides,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    inversions = tl.cdiv(tl.minimum(shape[0], shape[1]), BLOCK)
    programs = inversions + tl.cdiv(shape[0], ROWS)
    batch = (tl.program_id(0) // programs).to(tl.int64) + tl.arange(0, 1)
    task = tl.program_id(0) % programs
    if task >= inversions:
        row = (task - inversions) * ROWS
        rows = row + tl.arange(0, ROWS)[None, :]
        destination = permutation.destinations_of(pivots_ptr, pivots_strides, shape, batch, rows, row + ROWS)
        tl.store(order_ptr + batch[:, None] * order_strides[0] + rows, destination, rows < shape[0])
    else:
        J = task * BLOCK
        LU = (LU_ptr, LU_strides, shape, batch)
        inverses = (inverses_ptr, inverses_strides, shape, batch)
        for i in tl.range(0, BLOCK, 16, disable_licm=True):
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
def _sum_row(shape, i, BLOCK: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The row of `sums` at which the block of the tile at i begins."""
    return i + (shape[0] + BLOCK - 1) // BLOCK * BLOCK if TRANSPOSED else i


@triton.jit
def _vjp_tile(
    out,
    LU,
    G,
    order,
    inverses,
    sums,
    i,
    J,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows i.. of X21, and their part of L21^H X21; on transposed matrices, of X12^T and of (X12 U12^H)^T."""
    end = out[2][0] if TRANSPOSED else out[2][1]
    places = _places(order, J if TRANSPOSED else i, BLOCK)
    D = field.zeros((BLOCK, BLOCK), G[0].dtype.element_ty, COMPONENTS)
    for c in tl.range(J + BLOCK, end, TERMS, disable_licm=True):
        source = _places(order, c, TERMS) if TRANSPOSED else places
        S = _load(out, i, c, BLOCK, TERMS, COMPONENTS, OUT_BY_COLUMN, RAGGED, TRANSPOSED, source)
        U12 = _load(LU, J, c, BLOCK, TERMS, COMPONENTS, LU_BY_COLUMN, RAGGED, TRANSPOSED)
        D = field.add(D, field.dot(S, blocks.adjoint(U12), PRECISION))
    W = field.subtract(_load(G, i, J, BLOCK, BLOCK, COMPONENTS, IN_BY_COLUMN, RAGGED, TRANSPOSED), D)
    inverse = _inverse(inverses, J, BLOCK, COMPONENTS, TRANSPOSED)
    X = field.dot(W, field.conjugate(inverse), PRECISION)
    _store(out, places, X, i, J, OUT_BY_COLUMN, RAGGED, TRANSPOSED)
    L21 = _load(LU, i, J, BLOCK, BLOCK, COMPONENTS, LU_BY_COLUMN, RAGGED, TRANSPOSED)
    part = field.dot(blocks.adjoint(L21), X, PRECISION)
    _store(sums, None, part, _sum_row(out[2], i, BLOCK, TRANSPOSED), 0, False, False, False)


@triton.jit
def _jvp_tile(
    out,
    LU,
    E,
    order,
    inverses,
    sums,
    i,
    J,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Rows i.. of dL21, and their part of the sum for the block of the diagonal in their rows; or the same on
    transposed matrices."""
    D = field.zeros((BLOCK, BLOCK), E[0].dtype.element_ty, COMPONENTS)
    for c in tl.range(0, J, TERMS, disable_licm=True):
        dL = _load(out, i, c, BLOCK, TERMS, COMPONENTS, OUT_BY_COLUMN, RAGGED, TRANSPOSED)
        U = _load(LU, c, J, TERMS, BLOCK, COMPONENTS, LU_BY_COLUMN, RAGGED, TRANSPOSED)
        D = field.add(D, field.dot(dL, U, PRECISION))
        L = _load(LU, i, c, BLOCK, TERMS, COMPONENTS, LU_BY_COLUMN, RAGGED, TRANSPOSED)
        dU = _load(out, c, J, TERMS, BLOCK, COMPONENTS, OUT_BY_COLUMN, RAGGED, TRANSPOSED)
        D = field.add(D, field.dot(L, dU, PRECISION))
    dB11 = _load(out, J, J, BLOCK, BLOCK, COMPONENTS, OUT_BY_COLUMN, RAGGED, False)
    dU11 = layout.transpose(blocks.strictly_lower(dB11)) if TRANSPOSED else blocks.upper(dB11)
    L21 = _load(LU, i, J, BLOCK, BLOCK, COMPONENTS, LU_BY_COLUMN, RAGGED, TRANSPOSED)
    D = field.add(D, field.dot(L21, dU11, PRECISION))
    places = _places(order, J if TRANSPOSED else i, BLOCK)
    W = _load(E, i, J, BLOCK, BLOCK, COMPONENTS, IN_BY_COLUMN, RAGGED, TRANSPOSED, places)
    inverse = _inverse(inverses, J, BLOCK, COMPONENTS, TRANSPOSED)
    X = field.dot(field.subtract(W, D), layout.transpose(inverse), PRECISION)
    _store(out, None, X, i, J, OUT_BY_COLUMN, RAGGED, TRANSPOSED)
    U12 = _load(LU, J, i, BLOCK, BLOCK, COMPONENTS, LU_BY_COLUMN, RAGGED, TRANSPOSED)
    total = field.dot(X, U12, PRECISION)
    row = _sum_row(out[2], i, BLOCK, TRANSPOSED)
    if J > 0:
        total = field.add(total, _load(sums, row, 0, BLOCK, BLOCK, COMPONENTS, False, False, False))
    _store(sums, None, total, row, 0, False, False, False)


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
    sums_ptr,
    sums_strides,
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
    R = J + BLOCK
    below = tl.cdiv(tl.maximum(shape[0] - R, 0), BLOCK)
    tiles = below + tl.cdiv(tl.maximum(shape[1] - R, 0), BLOCK)
    batch = (tl.program_id(0) // tiles).to(tl.int64) + tl.arange(0, 1)
    tile = tl.program_id(0) % tiles
    out = (out_ptr, out_strides, shape, batch)
    LU = (LU_ptr, LU_strides, shape, batch)
    X = (X_ptr, X_strides, shape, batch)
    order = (order_ptr, order_strides, shape, batch)
    inverses = (inverses_ptr, inverses_strides, shape, batch)
    sums = (sums_ptr, sums_strides, shape, batch)
    if tile < below:
        i = R + tile * BLOCK
        if FORWARD:
            _jvp_tile(
                out,
                LU,
                X,
                order,
                inverses,
                sums,
                i,
                J,
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
            _vjp_tile(
                out,
                LU,
                X,
                order,
                inverses,
                sums,
                i,
                J,
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
        i = R + (tile - below) * BLOCK
        if FORWARD:
            _jvp_tile(
                out,
                LU,
                X,
                order,
                inverses,
                sums,
                i,
                J,
                BLOCK,
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
                order,
                inverses,
                sums,
                i,
                J,
                BLOCK,
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
def _sum(sums, first, end, BLOCK: tl.constexpr, COMPONENTS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The sum of the blocks of `sums` for the tiles from `first` to `end`."""
    D = field.zeros((BLOCK, BLOCK), sums[0].dtype.element_ty, COMPONENTS)
    for i in tl.range(first, end, BLOCK, disable_licm=True):
        row = _sum_row(sums[2], i, BLOCK, TRANSPOSED)
        D = field.add(D, _load(sums, row, 0, BLOCK, BLOCK, COMPONENTS, False, False, False))
    return layout.transpose(D) if TRANSPOSED else D


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
    sums_ptr,
    sums_strides,
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
    sums = (sums_ptr, sums_strides, shape, batch)
    places = _places(order, J, BLOCK)
    if FORWARD:
        W = _load(X, J, J, BLOCK, BLOCK, COMPONENTS, IN_BY_COLUMN, RAGGED, False, places)
        end = tl.minimum(J, 1)  # nothing has been summed for the first block
        W = field.subtract(W, _sum(sums, J, J + end, BLOCK, COMPONENTS, False))
        W = field.subtract(W, _sum(sums, J, J + end, BLOCK, COMPONENTS, True))
    else:
        W = _load(X, J, J, BLOCK, BLOCK, COMPONENTS, IN_BY_COLUMN, RAGGED, False)
        lower = _sum(sums, J + BLOCK, shape[1], BLOCK, COMPONENTS, True)
        upper = _sum(sums, J + BLOCK, shape[0], BLOCK, COMPONENTS, False)
        W = field.subtract(W, blocks.merge(lower, upper))
    B = blocks.load(*LU, J, J, COMPONENTS, LU_BY_COLUMN, RAGGED, 1.0, ROWS=BLOCK, COLS=BLOCK)
    L_inverse = _inverse(inverses, J, BLOCK, COMPONENTS, True)
    U_inverse = layout.transpose(_inverse(inverses, J, BLOCK, COMPONENTS, False))
    if FORWARD:
        _store(out, None, blocks.jvp(B, L_inverse, U_inverse, W, PRECISION), J, J, OUT_BY_COLUMN, RAGGED, False)
    else:
        _store(out, places, blocks.vjp(B, L_inverse, U_inverse, W, PRECISION), J, J, OUT_BY_COLUMN, RAGGED, False)


def workspace(out, *, block):
    """Uninitialized `order`, `inverses` and `sums` for a result like `out`, with diagonal blocks of that width."""
    batch_size, m, n = out.shape
    blocks_below, blocks_right = triton.cdiv(m, block), triton.cdiv(n, block)
    order = torch.empty(batch_size, m, dtype=torch.int32, device=out.device)
    inverses = out.new_empty(batch_size, 2 * block * min(blocks_below, blocks_right), block)
    sums = out.new_empty(batch_size, block * (blocks_below + blocks_right), block)
    return order, inverses, sums


def vjp(out, LU, pivots, G, order, inverses, sums, *, block, terms, num_warps):
    """Writes the backward of LU to `out`: `warp.vjp` for any m and n.

    `order`, `inverses` and `sums` are those of `workspace` and hold nothing of use afterwards. `block` is the width of
    the diagonal blocks and of the tiles, `terms`, at most as many, that of the pieces in which sums load their factors:
    powers of two from 16 on.
    """
    _launch(False, out, LU, pivots, G, order, inverses, sums, block, terms, num_warps)


def jvp(out, LU, pivots, E, order, inverses, sums, *, block, terms, num_warps):
    """Writes the forward mode of LU to `out`: `warp.jvp` for any m and n. Arguments as those of `vjp`, E for G."""
    _launch(True, out, LU, pivots, E, order, inverses, sums, block, terms, num_warps)


def _launch(forward, out, LU, pivots, x, order, inverses, sums, block, terms, num_warps):
    if out.numel() == 0:
        return
    batch_size, m, n = out.shape
    k = min(m, n)
    args, constants = launch.arguments(out, LU, order, x, block)
    constants["BLOCK"] = block
    constants["RAGGED"] = m % block != 0 or n % block != 0
    constants["PRECISION"] = "tf32x3" if out.dtype in (torch.float32, torch.complex64) else "ieee"
    for blocks_of_rows in (inverses, sums):
        real = torch.view_as_real(blocks_of_rows) if out.is_complex() else blocks_of_rows
        args += (real, blocks_of_rows.stride())

    common = {name: constants[name] for name in ("BLOCK", "COMPONENTS", "LU_BY_COLUMN", "RAGGED", "PRECISION")}
    programs = triton.cdiv(k, block) + triton.cdiv(m, 128)
    prepare_kernel[(batch_size * programs,)](*args, pivots, pivots.stride(), ROWS=128, **common, num_warps=1)

    constants |= {"FORWARD": forward, "TERMS": terms, "num_warps": num_warps, "num_stages": 1}
    starts = range(0, k, block)
    for J in starts if forward else reversed(starts):
        tiles = sum(triton.cdiv(max(size - J - block, 0), block) for size in (m, n))
        if forward:
            diagonal_kernel[(batch_size,)](*args, J, **constants)
        if tiles:
            tiles_kernel[(batch_size * tiles,)](*args, J, **constants)
        if not forward:
            diagonal_kernel[(batch_size,)](*args, J, **constants)
