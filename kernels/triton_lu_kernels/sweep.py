"""The backward of LU and its forward mode for matrices of more than 128 rows or columns: many programs per matrix.

    vjp:    out = P X,                              X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H
    jvp:    out = L tril(M, -1) + triu(M) U,        M = L^-1 (P^T E) U^-1

Arguments, completion and memory effects are those of `warp`, with workspaces besides: `order` [*batch, m] takes the row
of P X at which each row of X arrives; `inverses` [*batch, rows, BLOCK] the inverse of every diagonal block of L, each
followed by the transposed inverse of the same block of U; `sums` [*batch, rows, BLOCK] one block or more for every
tile.

J is a diagonal block of width BLOCK, R the rows or columns after it, S = W[R, R]; all products with the inverses are
products of blocks of the sweep. The blocked factorization reversed, from the last J to the first, is vjp,

    X21 = (G21 - S U12^H) U11^-H       X12 = L11^-H (G12 - L21^H S)
    X11 = vjp(G11 - tril(X12 U12^H, -1) - triu(L21^H X21))

and its tangent, left-looking, from the first J to the last, is jvp: with A = P^T E, and 0 for what comes before J,

    dB11 = jvp(A11 - dL10 U01 - L10 dU01)
    dL21 = (A21 - dL20 U01 - L20 dU01 - L21 dU11) U11^-1       dU12 = L11^-1 (A12 - dL10 U02 - L10 dU02 - dL11 U12)

Grids: one axis. `prepare_kernel` has one program for every 16 columns of the inverses and one for every 32 rows of a
matrix. Then `step_kernel` is launched twice for each J: with one program for every tile of BLOCK rows of X21 or columns
of X12, and with one for X11. Tiles of X12 are computed by the code of X21, on transposed matrices. The products that
X11 needs are summed by tile: each tile's part is left in `sums`, where jvp adds up those for all later diagonal blocks.
What one launch has written, rows of X in their places in P X, the next reads.

The sum for a tile, of S U12^H or dL20 U01 + L20 dU01, is that of at most PIECES sums of equal length; in vjp the terms
that have waited for the last diagonal block are one more. If SPLIT, the launch for X11 has programs for all these
pieces of all the tiles that come next, so that one large matrix has work for all multiprocessors; if not, a tile's own
program sums them. Both add the same numbers in the same order, and no sum crosses matrices: a matrix gets the same bits
in any batch.

With `disable_licm` addresses are computed where they are used: moved out of the loops, they spill. So would factors of
64 x 64 that are loaded before the product that needs them.
"""

import torch
import triton
import triton.language as tl

from . import blocks, field, launch, layout, permutation


@triton.jit
def _inverse(inverses, J, BLOCK: tl.constexpr, TRANSPOSED: tl.constexpr):
    """U11^-T, or L11^-1 if TRANSPOSED: the transposed inverse of the upper triangle of B11, or of B11^T."""
    return blocks.load(inverses, 2 * J if TRANSPOSED else 2 * J + BLOCK, 0, BLOCK, BLOCK)


@triton.jit
def _invert_block(inverses, LU, inverse, J, i, j, BLOCK: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The 16 x 16 block (i, j) of `_inverse`, by substitution: `inverse` is the diagonal block in its rows."""
    first = 2 * J if TRANSPOSED else 2 * J + BLOCK
    row = tl.arange(0, 16)[:, None] + i
    col = tl.arange(0, 16)[None, :] + j
    unit = tl.where(row == col, 1.0, 0.0).to(inverse[0].dtype)
    Y = (unit,)
    if len(inverse) == 2:
        Y += (tl.zeros_like(unit),)
    for c in tl.range(j, i, 16, disable_licm=True):
        T = blocks.load(LU, J + i, J + c, TRANSPOSED=not TRANSPOSED)
        Y = field.subtract(Y, field.dot(T, blocks.load(inverses, first + c, j)))
    blocks.store(inverses, field.dot(inverse, Y), first + i, j)


@triton.jit
def _invert(inverses, LU, J, j, BLOCK: tl.constexpr):
    """Sixteen columns from j on of both inverses of one diagonal block."""
    zero = field.zeros((16, 16), inverses[0].dtype.element_ty, inverses[4])
    for i in tl.range(0, j, 16):
        blocks.store(inverses, zero, 2 * J + i, j)
        blocks.store(inverses, zero, 2 * J + BLOCK + i, j)
    for i in tl.range(j, BLOCK, 16, disable_licm=True):
        L_inverse, U_inverse = blocks.inverse(blocks.load(LU, J + i, J + i, DIAGONAL=1.0))
        _invert_block(inverses, LU, L_inverse, J, i, j, BLOCK, True)
        _invert_block(inverses, LU, layout.transpose(U_inverse), J, i, j, BLOCK, False)
        tl.debug_barrier()


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
):
    inversions = tl.cdiv(tl.minimum(shape[0], shape[1]), BLOCK) * (BLOCK // 16)
    programs = inversions + tl.cdiv(shape[0], ROWS)
    batch = layout.batch_index((tl.program_id(0) // programs).to(tl.int64) + tl.arange(0, 1), shape)
    task = tl.program_id(0) % programs
    if task >= inversions:
        first = (task - inversions) * ROWS
        permutation.store_destinations(order_ptr, order_strides, pivots_ptr, pivots_strides, shape, batch, first, ROWS)
    else:
        _invert(
            (inverses_ptr, inverses_strides, shape, batch, COMPONENTS, False, False),
            (LU_ptr, LU_strides, shape, batch, COMPONENTS, LU_BY_COLUMN, RAGGED),
            task * 16 // BLOCK * BLOCK,
            task * 16 % BLOCK,
            BLOCK,
        )


@triton.jit
def _tiles(size, J, BLOCK: tl.constexpr):
    """How many tiles follow the diagonal block J, of the rows or columns of which there are `size`."""
    return tl.cdiv(tl.maximum(size - J - BLOCK, 0), BLOCK)


@triton.jit
def _sum_row(shape, i, BLOCK: tl.constexpr, TRANSPOSED: tl.constexpr, number=0):
    """The row of `sums` at which the block of that number begins, of those for the tile at i."""
    rows = tl.cdiv(shape[0], BLOCK) * BLOCK
    if TRANSPOSED:
        i += rows
    return i + number * (rows + tl.cdiv(shape[1], BLOCK) * BLOCK)


@triton.jit
def _part(sums, i, BLOCK: tl.constexpr, TRANSPOSED: tl.constexpr):
    """What the tile at i has left in `sums`."""
    return blocks.load(sums, _sum_row(sums[2], i, BLOCK, TRANSPOSED), 0, BLOCK, BLOCK)


@triton.jit
def _pieces(
    shape,
    J,
    FORWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    PIECES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """The first term of the pieces of the sum for a tile, the end of the last one, and the length of the others."""
    if FORWARD:
        first = 0
        end = J
    else:
        first = J + 2 * BLOCK
        end = shape[0] if TRANSPOSED else shape[1]
    return first, end, tl.maximum(tl.cdiv(tl.cdiv(end - first, TERMS), PIECES), 1) * TERMS


@triton.jit
def _terms(
    out,
    LU,
    order,
    i,
    J,
    first,
    end,
    FORWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """The terms from `first` to `end` of S U12^H, or of dL20 U01 + L20 dU01, in the rows i..; or the same on transposed
    matrices."""
    total = field.zeros((BLOCK, BLOCK), out[0].dtype.element_ty, out[4])
    if not FORWARD:
        places = permutation.places(order, i, BLOCK)
    for c in tl.range(first, end, TERMS, disable_licm=True):
        if FORWARD:
            dL = blocks.load(out, i, c, BLOCK, TERMS, TRANSPOSED)
            U = blocks.load(LU, c, J, TERMS, BLOCK, TRANSPOSED)
            total = field.add(total, field.dot(dL, U))
            L = blocks.load(LU, i, c, BLOCK, TERMS, TRANSPOSED)
            dU = blocks.load(out, c, J, TERMS, BLOCK, TRANSPOSED)
            total = field.add(total, field.dot(L, dU))
        else:
            source = permutation.places(order, c, TERMS) if TRANSPOSED else places
            S = blocks.load(out, i, c, BLOCK, TERMS, TRANSPOSED, source=source)
            U12 = blocks.load(LU, J, c, BLOCK, TERMS, TRANSPOSED)
            total = field.add(total, field.dot(S, blocks.adjoint(U12)))
    return total


@triton.jit
def _piece(
    out,
    LU,
    order,
    sums,
    i,
    J,
    number,
    FORWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    PIECES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Leaves one piece of the sum for the tile at (i, J) in `sums`."""
    first, end, length = _pieces(out[2], J, FORWARD, BLOCK, TERMS, PIECES, TRANSPOSED)
    first += number * length
    end = tl.minimum(first + length, end)
    piece = _terms(out, LU, order, i, J, first, end, FORWARD, BLOCK, TERMS, TRANSPOSED)
    blocks.store(sums, piece, _sum_row(out[2], i, BLOCK, TRANSPOSED, 1 + number), 0)


@triton.jit
def _tile(
    out,
    LU,
    X,
    order,
    inverses,
    sums,
    i,
    J,
    FORWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    PIECES: tl.constexpr,
    SPLIT: tl.constexpr,
    TRANSPOSED: tl.constexpr,
):
    """Rows i.. of X21, and their part of L21^H X21; or of dL21, and of the sum for the diagonal block in these rows. On
    transposed matrices X12^T, (X12 U12^H)^T and dU12^T."""
    shape = out[2]
    first, end, length = _pieces(shape, J, FORWARD, BLOCK, TERMS, PIECES, TRANSPOSED)
    if FORWARD:
        dB11 = blocks.load(out, J, J, BLOCK, BLOCK)
        dU11 = layout.transpose(blocks.strictly_lower(dB11)) if TRANSPOSED else blocks.upper(dB11)
        total = field.dot(blocks.load(LU, i, J, BLOCK, BLOCK, TRANSPOSED), dU11)
    else:
        known = tl.minimum(first, end)
        total = _terms(out, LU, order, i, J, J + BLOCK, known, FORWARD, BLOCK, TERMS, TRANSPOSED)
    for number in tl.range(
        0, tl.cdiv(end - first, length), disable_licm=True, loop_unroll_factor=PIECES if SPLIT else 1
    ):
        if SPLIT:
            piece = blocks.load(sums, _sum_row(shape, i, BLOCK, TRANSPOSED, 1 + number), 0, BLOCK, BLOCK)
        else:
            start = first + number * length
            stop = tl.minimum(start + length, end)
            piece = _terms(out, LU, order, i, J, start, stop, FORWARD, BLOCK, TERMS, TRANSPOSED)
        total = field.add(total, piece)

    places = permutation.places(order, J if TRANSPOSED else i, BLOCK)
    W = field.subtract(blocks.load(X, i, J, BLOCK, BLOCK, TRANSPOSED, source=places if FORWARD else None), total)
    inverse = _inverse(inverses, J, BLOCK, TRANSPOSED)
    row = _sum_row(shape, i, BLOCK, TRANSPOSED)
    if FORWARD:
        W = field.dot(W, layout.transpose(inverse))
        blocks.store(out, W, i, J, TRANSPOSED)
        if i < tl.minimum(shape[0], shape[1]):  # there is a diagonal block in these rows
            part = field.dot(W, blocks.load(LU, J, i, BLOCK, BLOCK, TRANSPOSED))
            if J > 0:
                part = field.add(part, _part(sums, i, BLOCK, TRANSPOSED))
            blocks.store(sums, part, row, 0)
    else:
        W = field.dot(W, field.conjugate(inverse))
        blocks.store(out, W, i, J, TRANSPOSED, destination=places)
        part = field.dot(blocks.adjoint(blocks.load(LU, i, J, BLOCK, BLOCK, TRANSPOSED)), W)
        blocks.store(sums, part, row, 0)


@triton.jit
def _sum(sums, first, end, BLOCK: tl.constexpr, SPLIT: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The sum of the parts of the tiles from `first` to `end`: four at a time, where registers are not what limits."""
    total = field.zeros((BLOCK, BLOCK), sums[0].dtype.element_ty, sums[4])
    for i in tl.range(first, end, BLOCK, disable_licm=True, loop_unroll_factor=4 if SPLIT else 1):
        total = field.add(total, _part(sums, i, BLOCK, TRANSPOSED))
    return layout.transpose(total) if TRANSPOSED else total


@triton.jit
def _diagonal_block(
    out, LU, X, order, inverses, sums, J, FORWARD: tl.constexpr, BLOCK: tl.constexpr, SPLIT: tl.constexpr
):
    """X11 or dB11."""
    m, n = out[2][:2]
    places = permutation.places(order, J, BLOCK)
    W = blocks.load(X, J, J, BLOCK, BLOCK, source=places if FORWARD else None)
    if FORWARD:
        if J > 0:
            W = field.subtract(W, _part(sums, J, BLOCK, False))
            W = field.subtract(W, layout.transpose(_part(sums, J, BLOCK, True)))
    else:
        lower = _sum(sums, J + BLOCK, n, BLOCK, SPLIT, True)
        upper = _sum(sums, J + BLOCK, m, BLOCK, SPLIT, False)
        W = field.subtract(W, blocks.merge(lower, upper))
    if FORWARD:
        M = field.dot(_inverse(inverses, J, BLOCK, True), W)
        M = field.dot(M, layout.transpose(_inverse(inverses, J, BLOCK, False)))
        B = blocks.load(LU, J, J, BLOCK, BLOCK, DIAGONAL=1.0)
        blocks.store(out, blocks.recompose(B, M), J, J)
    else:
        phi = blocks.phi(blocks.load(LU, J, J, BLOCK, BLOCK, DIAGONAL=1.0), W)
        X = field.dot(blocks.adjoint(_inverse(inverses, J, BLOCK, True)), phi)
        X = field.dot(X, field.conjugate(_inverse(inverses, J, BLOCK, False)))
        blocks.store(out, X, J, J, destination=places)


@triton.jit
def _tile_or_piece(
    out,
    LU,
    X,
    order,
    inverses,
    sums,
    tile,
    piece,
    J,
    FORWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    PIECES: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """The tile of that number, first those of X21 and then those of X12, or a piece of its sum unless that is None."""
    below = _tiles(out[2][0], J, BLOCK)
    i = J + BLOCK + tile * BLOCK
    if tile < below:
        if piece is None:
            _tile(out, LU, X, order, inverses, sums, i, J, FORWARD, BLOCK, TERMS, PIECES, SPLIT, False)
        else:
            _piece(out, LU, order, sums, i, J, piece, FORWARD, BLOCK, TERMS, PIECES, False)
    else:
        i -= below * BLOCK
        if piece is None:
            _tile(out, LU, X, order, inverses, sums, i, J, FORWARD, BLOCK, TERMS, PIECES, SPLIT, True)
        else:
            _piece(out, LU, order, sums, i, J, piece, FORWARD, BLOCK, TERMS, PIECES, True)


@triton.jit
def _task(
    out,
    LU,
    X,
    order,
    inverses,
    sums,
    task,
    J,
    TILES: tl.constexpr,
    FORWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    PIECES: tl.constexpr,
    SPLIT: tl.constexpr,
):
    """A tile if TILES; else the diagonal block for number 0, and a piece for any other."""
    if TILES:
        _tile_or_piece(out, LU, X, order, inverses, sums, task, None, J, FORWARD, BLOCK, TERMS, PIECES, SPLIT)
    elif not SPLIT or task == 0:
        _diagonal_block(out, LU, X, order, inverses, sums, J, FORWARD, BLOCK, SPLIT)
    else:
        tile = (task - 1) // PIECES
        piece = (task - 1) % PIECES
        following = J if FORWARD else J - BLOCK
        _tile_or_piece(out, LU, X, order, inverses, sums, tile, piece, following, FORWARD, BLOCK, TERMS, PIECES, SPLIT)


@triton.jit(do_not_specialize=["tasks"])
def step_kernel(
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
    tasks,
    TILES: tl.constexpr,
    FORWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    PIECES: tl.constexpr,
    SPLIT: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch = layout.batch_index((tl.program_id(0) // tasks).to(tl.int64) + tl.arange(0, 1), shape)
    _task(
        (out_ptr, out_strides, shape, batch, COMPONENTS, OUT_BY_COLUMN, RAGGED),
        (LU_ptr, LU_strides, shape, batch, COMPONENTS, LU_BY_COLUMN, RAGGED),
        (X_ptr, X_strides, shape, batch, COMPONENTS, IN_BY_COLUMN, RAGGED),
        (order_ptr, order_strides, shape, batch),
        (inverses_ptr, inverses_strides, shape, batch, COMPONENTS, False, False),
        (sums_ptr, sums_strides, shape, batch, COMPONENTS, False, False),
        tl.program_id(0) % tasks,
        J,
        TILES,
        FORWARD,
        BLOCK,
        TERMS,
        PIECES,
        SPLIT,
    )


def workspace(out, *, block, pieces, split):
    """Uninitialized `order`, `inverses` and `sums` for a result like `out` and these options of `vjp` or `jvp`."""
    *batch, m, n = out.shape
    blocks_below, blocks_right = launch.ceil_div(m, block), launch.ceil_div(n, block)
    order = torch.empty(*batch, m, dtype=torch.int32, device=out.device)
    inverses = out.new_empty(*batch, 2 * block * min(blocks_below, blocks_right), block)
    numbers = 1 + pieces if split else 1
    sums = out.new_empty(*batch, numbers * block * (blocks_below + blocks_right), block)
    return order, inverses, sums


def vjp(out, LU, pivots, G, order, inverses, sums, **options):
    """Writes the backward of LU to `out`: `warp.vjp` for any m and n.

    `order`, `inverses` and `sums` are those of `workspace` and hold nothing of use afterwards. Options:

    block: the width of the diagonal blocks and of the tiles, a power of two from 16 on.
    terms: how many terms of a sum are loaded at once, a power of two from 16 to `block`.
    pieces: of how many sums the sum for a tile consists.
    split: whether these have programs of their own; the result is the same.
    num_warps
    """
    _launch(False, out, LU, pivots, G, order, inverses, sums, **options)


def jvp(out, LU, pivots, E, order, inverses, sums, **options):
    """Writes the forward mode of LU to `out`: `warp.jvp` for any m and n. Arguments as those of `vjp`, E for G."""
    _launch(True, out, LU, pivots, E, order, inverses, sums, **options)


def _launch(forward, out, LU, pivots, x, order, inverses, sums, *, block, terms, pieces, split, num_warps):
    if out.numel() == 0:
        return
    batch_size, (m, n) = out.shape[:-2].numel(), out.shape[-2:]
    k = min(m, n)
    args, constants = launch.arguments(out, LU, order, x, block, inverses, sums, pivots)
    constants["BLOCK"] = block
    constants["RAGGED"] = m % block != 0 or n % block != 0

    common = {name: constants[name] for name in ("BLOCK", "COMPONENTS", "LU_BY_COLUMN", "RAGGED")}
    programs = batch_size * (launch.ceil_div(k, block) * (block // 16) + launch.ceil_div(m, 32))
    launch.run(prepare_kernel, programs, args, {"ROWS": 32, **common}, num_warps=1)

    def tiles_after(J):
        return sum(launch.ceil_div(max(size - J - block, 0), block) for size in (m, n))

    constants |= {"FORWARD": forward, "TERMS": terms, "PIECES": pieces, "SPLIT": split}
    options = {"num_warps": num_warps, "num_stages": 1}
    launch_diagonal = launch.launcher(step_kernel, {"TILES": False, **constants}, options)
    launch_tiles = launch.launcher(step_kernel, {"TILES": True, **constants}, options)
    args = args[:-2]  # without the pivots, which `order` replaces
    for J in range(0, k, block) if forward else reversed(range(0, k, block)):
        following = J if forward else J - block
        tasks = 1 + tiles_after(following) * pieces if split and following >= 0 else 1
        launches = [(launch_diagonal, tasks), (launch_tiles, tiles_after(J))]
        for launch_step, tasks in launches if forward else reversed(launches):
            if tasks > 0:
                launch_step(batch_size * tasks, *args, J, tasks)
