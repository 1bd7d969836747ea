"""The backward of LU and its forward mode for matrices of more than 128 rows or columns: many programs per matrix.

    vjp:    out = P X,                              X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H
    jvp:    out = L tril(M, -1) + triu(M) U,        M = L^-1 (P^T E) U^-1

Arguments, completion and memory effects are those of `warp`, with workspaces besides: `order` [*batch, m] takes that of
the rows; `inverses` [*batch, rows, BLOCK] the inverse of every diagonal block of L, each followed by the transposed
inverse of the same block of U; `sums` [*batch, rows, BLOCK] the blocks that tiles leave for later launches.

A sweep goes over the diagonal blocks. J is one of width BLOCK, R the rows or columns after it, S = X[R, R]. The blocked
factorization reversed, from the last J to the first, is vjp,

    X21 = (G21 - S U12^H) U11^-H       X12 = L11^-H (G12 - L21^H S)
    X11 = vjp(G11 - tril(X12 U12^H, -1) - triu(L21^H X21))

and its tangent, left-looking, from the first J to the last, is jvp: with dA = P^T E, and 0 for what comes before J,

    dB11 = jvp(dA11 - dL10 U01 - L10 dU01)
    dL21 = (dA21 - dL20 U01 - L20 dU01 - L21 dU11) U11^-1      dU12 = L11^-1 (dA12 - dL10 U02 - L10 dU02 - dL11 U12)

Grids: one axis. `prepare_kernel` has one program for every 16 columns of the inverses and one for every ROWS rows of a
matrix. Then `step_kernel` is launched twice for each J: with one program for every tile of BLOCK rows of X21 or columns
of X12, and with one for X11. Tiles of X12 are computed by the code of X21, on transposed matrices. The products that
X11 needs are summed by tile: each tile's part is left in `sums`, where jvp adds up those for all later diagonal blocks.
What one launch has written, row i of X in row order[i] of P X, the next reads.

The sum for a tile, of S U12^H or dL20 U01 + L20 dU01, consists of at most PIECES sums of equal length, and in vjp of
one more, of the terms that need the diagonal block found last. If SPLIT, the launch for X11 has programs for all these
pieces of all the tiles that come next, so that one large matrix has work for all multiprocessors; if not, a tile's own
program sums them. Both add the same numbers in the same order, and no sum crosses matrices: a matrix gets the same bits
in any batch. One row of vjp's S U12^H, in blocks:

    columns after J:        | J + BLOCK | J + 2 BLOCK ...                                 n |
    terms:                  |  newest   |   piece 0   |   piece 1   |  ...  | last piece     |
    summed                  |  by tile  | if SPLIT, in the launch before, else by tile too   |

and the rows of `sums`, where BELOW and RIGHT are the numbers of rows and columns, rounded up to blocks:

    | BELOW: tiles of X21 | RIGHT: of X12 | BELOW: piece 0 of X21 | RIGHT: of X12 | piece 1 ... |

With `disable_licm` addresses are computed where they are used: moved out of the loops, they spill. So would factors of
64 x 64 that are loaded before the product that needs them.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import blocks, field, launch, layout, permutation


class Sweep(NamedTuple):
    """Operands, workspaces and options of a sweep, those of `evaluate`."""

    out: Any
    LU: Any
    X: Any
    order: Any
    inverses: Any
    sums: Any
    FORWARD: tl.constexpr
    BLOCK: tl.constexpr
    TERMS: tl.constexpr
    PIECES: tl.constexpr
    SPLIT: tl.constexpr


@triton.jit
def _inverse(sweep, J, TRANSPOSED: tl.constexpr):
    """U11^-T, or L11^-1 if TRANSPOSED: the transposed inverse of the upper triangle of B11, or of B11^T."""
    return blocks.load(sweep.inverses, 2 * J if TRANSPOSED else 2 * J + sweep.BLOCK, 0, sweep.BLOCK, sweep.BLOCK)


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
    zero = field.zeros((16, 16), inverses.pointer.dtype.element_ty, inverses.COMPONENTS)
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
    LU,
    order,
    inverses,
    pivots,
    shape,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
    RAGGED: tl.constexpr,
):
    inversions = tl.cdiv(tl.minimum(shape[0], shape[1]), BLOCK) * (BLOCK // 16)
    programs = inversions + tl.cdiv(shape[0], ROWS)
    batch, exists = layout.batch_of_one(tl.program_id(0) // programs, shape)
    task = tl.program_id(0) % programs
    if task >= inversions:
        permutation.store_order(
            layout.Matrix(*order, shape, batch, exists, RAGGED),
            layout.Matrix(*pivots, shape, batch, exists, RAGGED),
            (task - inversions) * ROWS,
            ROWS,
        )
    else:
        _invert(
            layout.Matrix(*inverses, shape, batch, exists, False),
            layout.Matrix(*LU, shape, batch, exists, RAGGED),
            task * 16 // BLOCK * BLOCK,
            task * 16 % BLOCK,
            BLOCK,
        )


@triton.jit
def _sum_row(sweep, i, TRANSPOSED: tl.constexpr, number=0):
    """The row of `sums` where the tile at i has its block: number 0 for what it leaves, then one for every piece."""
    shape = sweep.out.shape
    rows = tl.cdiv(shape[0], sweep.BLOCK) * sweep.BLOCK
    if TRANSPOSED:
        i += rows
    return i + number * (rows + tl.cdiv(shape[1], sweep.BLOCK) * sweep.BLOCK)


@triton.jit
def _part(sweep, i, TRANSPOSED: tl.constexpr, number=0):
    """What the tile at i has left in `sums`, or else the piece of that number."""
    return blocks.load(sweep.sums, _sum_row(sweep, i, TRANSPOSED, number), 0, sweep.BLOCK, sweep.BLOCK)


@triton.jit
def _pieces(sweep, J, TRANSPOSED: tl.constexpr):
    """The first term of the pieces of the sum for a tile, the end of the last one, and the length of the others."""
    if sweep.FORWARD:
        first = 0
        end = J
    else:
        first = J + 2 * sweep.BLOCK
        end = sweep.out.shape[0] if TRANSPOSED else sweep.out.shape[1]
    return first, end, tl.maximum(tl.cdiv(tl.cdiv(end - first, sweep.TERMS), sweep.PIECES), 1) * sweep.TERMS


@triton.jit
def _terms(sweep, i, J, first, end, TRANSPOSED: tl.constexpr):
    """The terms from `first` to `end` of S U12^H, or of dL20 U01 + L20 dU01, in the rows i..; or the same on transposed
    matrices."""
    BLOCK: tl.constexpr = sweep.BLOCK
    TERMS: tl.constexpr = sweep.TERMS
    total = field.zeros((BLOCK, BLOCK), sweep.out.pointer.dtype.element_ty, sweep.out.COMPONENTS)
    if not sweep.FORWARD:
        rows = permutation.load_order(sweep.order, i, BLOCK)
    for c in tl.range(first, end, TERMS, disable_licm=True):
        if sweep.FORWARD:
            dL = blocks.load(sweep.out, i, c, BLOCK, TERMS, TRANSPOSED)
            U = blocks.load(sweep.LU, c, J, TERMS, BLOCK, TRANSPOSED)
            total = field.add(total, field.dot(dL, U))
            L = blocks.load(sweep.LU, i, c, BLOCK, TERMS, TRANSPOSED)
            dU = blocks.load(sweep.out, c, J, TERMS, BLOCK, TRANSPOSED)
            total = field.add(total, field.dot(L, dU))
        else:
            S_rows = permutation.load_order(sweep.order, c, TERMS) if TRANSPOSED else rows
            S = blocks.load(sweep.out, i, c, BLOCK, TERMS, TRANSPOSED, order=S_rows)
            U12 = blocks.load(sweep.LU, J, c, BLOCK, TERMS, TRANSPOSED)
            total = field.add(total, field.dot(S, blocks.adjoint(U12)))
    return total


@triton.jit
def _piece(sweep, i, J, number, TRANSPOSED: tl.constexpr):
    """Leaves one piece of the sum for the tile at (i, J) in `sums`."""
    first, end, length = _pieces(sweep, J, TRANSPOSED)
    first += number * length
    piece = _terms(sweep, i, J, first, tl.minimum(first + length, end), TRANSPOSED)
    blocks.store(sweep.sums, piece, _sum_row(sweep, i, TRANSPOSED, 1 + number), 0)


@triton.jit
def _sum(sweep, i, J, TRANSPOSED: tl.constexpr):
    """The sum for the tile at (i, J): S U12^H, or dL20 U01 + L20 dU01 + L21 dU11."""
    BLOCK: tl.constexpr = sweep.BLOCK
    first, end, length = _pieces(sweep, J, TRANSPOSED)
    if sweep.FORWARD:
        dB11 = blocks.load(sweep.out, J, J, BLOCK, BLOCK)
        dU11 = layout.transpose(blocks.strictly_lower(dB11)) if TRANSPOSED else blocks.upper(dB11)
        total = field.dot(blocks.load(sweep.LU, i, J, BLOCK, BLOCK, TRANSPOSED), dU11)
    else:
        total = _terms(sweep, i, J, J + BLOCK, tl.minimum(first, end), TRANSPOSED)
    for number in tl.range(
        0, tl.cdiv(end - first, length), disable_licm=True, loop_unroll_factor=sweep.PIECES if sweep.SPLIT else 1
    ):
        if sweep.SPLIT:
            piece = _part(sweep, i, TRANSPOSED, 1 + number)
        else:
            start = first + number * length
            piece = _terms(sweep, i, J, start, tl.minimum(start + length, end), TRANSPOSED)
        total = field.add(total, piece)
    return total


@triton.jit
def _tile(sweep, i, J, TRANSPOSED: tl.constexpr):
    """Rows i.. of X21, and their part of L21^H X21; or of dL21, and of the sum for the diagonal block in these rows. On
    transposed matrices X12^T, (X12 U12^H)^T and dU12^T."""
    BLOCK: tl.constexpr = sweep.BLOCK
    total = _sum(sweep, i, J, TRANSPOSED)
    rows = permutation.load_order(sweep.order, J if TRANSPOSED else i, BLOCK)
    X_rows = rows if sweep.FORWARD else None
    remainder = field.subtract(blocks.load(sweep.X, i, J, BLOCK, BLOCK, TRANSPOSED, order=X_rows), total)
    inverse = _inverse(sweep, J, TRANSPOSED)
    row = _sum_row(sweep, i, TRANSPOSED)
    if sweep.FORWARD:
        # dL21 = (dA21 - dL20 U01 - L20 dU01 - L21 dU11) U11^-1
        dL21 = field.dot(remainder, layout.transpose(inverse))
        blocks.store(sweep.out, dL21, i, J, TRANSPOSED)
        if i < tl.minimum(sweep.out.shape[0], sweep.out.shape[1]):  # there is a diagonal block in these rows
            part = field.dot(dL21, blocks.load(sweep.LU, J, i, BLOCK, BLOCK, TRANSPOSED))
            if J > 0:
                part = field.add(part, _part(sweep, i, TRANSPOSED))
            blocks.store(sweep.sums, part, row, 0)
    else:
        # X21 = (G21 - S U12^H) U11^-H
        X21 = field.dot(remainder, field.conjugate(inverse))
        blocks.store(sweep.out, X21, i, J, TRANSPOSED, order=rows)
        part = field.dot(blocks.adjoint(blocks.load(sweep.LU, i, J, BLOCK, BLOCK, TRANSPOSED)), X21)
        blocks.store(sweep.sums, part, row, 0)


@triton.jit
def _parts(sweep, first, end, TRANSPOSED: tl.constexpr):
    """The sum of the parts of the tiles from `first` to `end`: four at a time, where registers are not what limits."""
    total = field.zeros((sweep.BLOCK, sweep.BLOCK), sweep.sums.pointer.dtype.element_ty, sweep.sums.COMPONENTS)
    for i in tl.range(first, end, sweep.BLOCK, disable_licm=True, loop_unroll_factor=4 if sweep.SPLIT else 1):
        total = field.add(total, _part(sweep, i, TRANSPOSED))
    return layout.transpose(total) if TRANSPOSED else total


@triton.jit
def _diagonal_block(sweep, J):
    """X11 or dB11."""
    BLOCK: tl.constexpr = sweep.BLOCK
    rows = permutation.load_order(sweep.order, J, BLOCK)
    if sweep.FORWARD:
        # dB11 = jvp(dA11 - dL10 U01 - L10 dU01)
        dA11 = blocks.load(sweep.X, J, J, BLOCK, BLOCK, order=rows)
        if J > 0:
            dA11 = field.subtract(dA11, _part(sweep, J, False))
            dA11 = field.subtract(dA11, layout.transpose(_part(sweep, J, True)))
        M = field.dot(_inverse(sweep, J, True), dA11)
        M = field.dot(M, layout.transpose(_inverse(sweep, J, False)))
        B11 = blocks.load(sweep.LU, J, J, BLOCK, BLOCK, DIAGONAL=1.0)
        blocks.store(sweep.out, blocks.recompose(B11, M), J, J)
    else:
        # X11 = vjp(G11 - tril(X12 U12^H, -1) - triu(L21^H X21))
        G11 = blocks.load(sweep.X, J, J, BLOCK, BLOCK)
        lower = _parts(sweep, J + BLOCK, sweep.out.shape[1], True)
        upper = _parts(sweep, J + BLOCK, sweep.out.shape[0], False)
        G11 = field.subtract(G11, blocks.merge(lower, upper))
        phi = blocks.phi(blocks.load(sweep.LU, J, J, BLOCK, BLOCK, DIAGONAL=1.0), G11)
        X11 = field.dot(blocks.adjoint(_inverse(sweep, J, True)), phi)
        X11 = field.dot(X11, field.conjugate(_inverse(sweep, J, False)))
        blocks.store(sweep.out, X11, J, J, order=rows)


@triton.jit
def _tile_or_piece(sweep, tile, piece, J):
    """The tile of that number, first those of X21 and then those of X12, or a piece of its sum unless that is None."""
    BLOCK: tl.constexpr = sweep.BLOCK
    below = tl.cdiv(tl.maximum(sweep.out.shape[0] - J - BLOCK, 0), BLOCK)
    i = J + BLOCK + tile * BLOCK
    if tile < below:
        if piece is None:
            _tile(sweep, i, J, False)
        else:
            _piece(sweep, i, J, piece, False)
    else:
        i -= below * BLOCK
        if piece is None:
            _tile(sweep, i, J, True)
        else:
            _piece(sweep, i, J, piece, True)


@triton.jit
def _task(sweep, task, J, TILES: tl.constexpr):
    """A tile if TILES; else the diagonal block for number 0, and a piece for any other."""
    if TILES:
        _tile_or_piece(sweep, task, None, J)
    elif not sweep.SPLIT or task == 0:
        _diagonal_block(sweep, J)
    else:
        tile = (task - 1) // sweep.PIECES
        piece = (task - 1) % sweep.PIECES
        _tile_or_piece(sweep, tile, piece, J if sweep.FORWARD else J - sweep.BLOCK)


@triton.jit(do_not_specialize=["tasks"])
def step_kernel(
    out,
    LU,
    X,
    order,
    inverses,
    sums,
    shape,
    J,
    tasks,
    TILES: tl.constexpr,
    FORWARD: tl.constexpr,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    PIECES: tl.constexpr,
    SPLIT: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch, exists = layout.batch_of_one(tl.program_id(0) // tasks, shape)
    _task(
        Sweep(
            layout.Matrix(*out, shape, batch, exists, RAGGED),
            layout.Matrix(*LU, shape, batch, exists, RAGGED),
            layout.Matrix(*X, shape, batch, exists, RAGGED),
            layout.Matrix(*order, shape, batch, exists, RAGGED),
            layout.Matrix(*inverses, shape, batch, exists, False),
            layout.Matrix(*sums, shape, batch, exists, False),
            FORWARD,
            BLOCK,
            TERMS,
            PIECES,
            SPLIT,
        ),
        tl.program_id(0) % tasks,
        J,
        TILES,
    )


def workspace(out, *, block, pieces, split):
    """Uninitialized `order`, `inverses` and `sums` for a result like `out` and these options of `evaluate`."""
    *batch, m, n = out.shape
    blocks_below, blocks_right = launch.ceil_div(m, block), launch.ceil_div(n, block)
    order = torch.empty(*batch, m, dtype=torch.int32, device=out.device)
    inverses = out.new_empty(*batch, 2 * block * min(blocks_below, blocks_right), block)
    numbers = 1 + pieces if split else 1
    sums = out.new_empty(*batch, numbers * block * (blocks_below + blocks_right), block)
    return order, inverses, sums


def evaluate(name, out, LU, pivots, X, order, inverses, sums, *, block, terms, pieces, rows, split, num_warps):
    """`warp.evaluate` of "vjp" or "jvp" for any m and n.

    `order`, `inverses` and `sums` are those of `workspace` and hold nothing of use afterwards. Options:

    block: the width of the diagonal blocks and of the tiles, a power of two from 16 on.
    terms: how many terms of a sum are loaded at once, a power of two from 16 to `block`.
    pieces: of how many sums the sum for a tile consists.
    rows: of how many one program finds the order, a power of two.
    split: whether the pieces have programs of their own; the result is the same.
    num_warps
    """
    if out.numel() == 0:
        return
    batch_size, (m, n) = out.shape[:-2].numel(), out.shape[-2:]
    k = min(m, n)
    forward = name == "jvp"
    ragged = m % block != 0 or n % block != 0
    tensors = (out, LU, X, order, inverses, sums, pivots)
    out, LU, X, order, inverses, sums, pivots, shape = launch.arguments(out.shape, *tensors)

    programs = batch_size * (launch.ceil_div(k, block) * (block // 16) + launch.ceil_div(m, rows))
    constants = {"BLOCK": block, "ROWS": rows, "RAGGED": ragged}
    launch.run(prepare_kernel, programs, (LU, order, inverses, pivots, shape), constants, num_warps=1)

    def tiles_after(J):
        return sum(launch.ceil_div(max(size - J - block, 0), block) for size in (m, n))

    args = (out, LU, X, order, inverses, sums, shape)
    constants = {"FORWARD": forward, "BLOCK": block, "TERMS": terms, "PIECES": pieces, "SPLIT": split, "RAGGED": ragged}
    options = {"num_warps": num_warps, "num_stages": 1}
    launch_diagonal = launch.launcher(step_kernel, {"TILES": False, **constants}, options)
    launch_tiles = launch.launcher(step_kernel, {"TILES": True, **constants}, options)
    for J in range(0, k, block) if forward else reversed(range(0, k, block)):
        following = J if forward else J - block
        tasks = 1 + tiles_after(following) * pieces if split and following >= 0 else 1
        launches = [(launch_diagonal, tasks), (launch_tiles, tiles_after(J))]
        for launch_step, tasks in launches if forward else reversed(launches):
            if tasks > 0:
                launch_step(batch_size * tasks, *args, J, tasks)
