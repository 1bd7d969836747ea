"""The backward of LU and its forward mode for matrices of 33 to 128 rows or columns: one program for each.

    vjp:    out = P X,                              X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H
    jvp:    out = L tril(M, -1) + triu(M) U,        M = L^-1 (P^T E) U^-1

Arguments and completion are those of `warp`. Grid: one axis, one matrix per program.

For every diagonal block J, 16 or 32 wide, with R the rows and columns after it and S = X[R, R], vjp goes from the last
to the first:

    X21 = (G21 - S U12^H) U11^-H                    X12^T = (G12^T - S^T conj(L21)) conj(L11^-1)
    X11 = vjp(G11 - tril(X12 U12^H, -1) - triu(L21^H X21))

and jvp, with 0 the rows and columns before J and dA = P^T E, from the first to the last:

    dB11 = jvp(dA11 - dL10 U01 - L10 dU01)
    dL21 = (dA21 - dL20 U01 - L20 dU01 - L21 dU11) U11^-1

and likewise dU12^T with dL11^T and L11^-T. In the transposed matrices L^T takes the place of U and X12^T that of X21,
so one function serves both. It takes some rows at a time, and sums over the blocks of S, or of 0.

LU and G or E are read once from memory, and again from the caches; S and dB from `out`, where the parts of the result
are put as they are found. Until a diagonal block is found, its place holds L11^-1 and U11^-1, packed: the substitutions
of a loop of their own need no registers later on. A matrix gets the same bits in any batch.

What takes time is waiting for memory, so there must be many programs on a multiprocessor: one warp each, few rows at a
time, and nothing kept in registers that can be read again, or computed, as addresses are by `disable_licm`. In float64
above n = 64 the L2 cache is the limit: blocks of 32 read S half as often, and have work for two warps.
"""

import triton
import triton.language as tl

from . import blocks, field, launch, layout, permutation


@triton.jit
def _rows(order, first, ROWS: tl.constexpr):
    """Entries of a permutation [1, N], from `first` on."""
    index = tl.minimum(first + tl.arange(0, ROWS), order.shape[1] - 1)
    return tl.gather(order, index[None, :], 1)


@triton.jit
def _opaque(index, x):
    """The index of a loop, in a form that keeps the compiler from stepping a pointer for every access along with it.

    The kernel of jvp spills 160 bytes less in float32, and 216 in float64.
    """
    return tl.multiple_of(index | (x.shape[0] >> 31), 16)


@triton.jit
def _store_inverses(out, LU, order, BLOCK: tl.constexpr):
    """L^-1 and U^-1 of every diagonal block, packed, to the place of that block in `out`."""
    for first in tl.range(0, tl.minimum(LU.shape[0], LU.shape[1]), 16, disable_licm=True):
        J = _opaque(first, LU)
        L_inverse, U_inverse = blocks.inverse(blocks.load(LU, J, J, 16, 16, DIAGONAL=1.0))
        blocks.store(
            out, blocks.merge(L_inverse, U_inverse), J, J, order=None if order is None else _rows(order, J, 16)
        )
    tl.debug_barrier()
    if BLOCK == 32:
        _join_inverses(out, LU, order)


@triton.jit
def _join_inverses(out, LU, order):
    """Completes the inverses of blocks of 16 to those of blocks of 32: for U they lack -U11^-1 U12 U22^-1."""
    for first in tl.range(0, tl.minimum(LU.shape[0], LU.shape[1]), 32, disable_licm=True):
        J = _opaque(first, LU)
        top = None if order is None else _rows(order, J, 16)
        bottom = None if order is None else _rows(order, J + 16, 16)
        inverse11 = blocks.load(out, J, J, 16, 16, DIAGONAL=1.0, order=top)
        inverse22 = blocks.load(out, J + 16, J + 16, 16, 16, DIAGONAL=1.0, order=bottom)
        upper = field.dot(blocks.load(LU, J, J + 16, 16, 16), blocks.upper(inverse22))
        upper = field.dot(blocks.upper(inverse11), upper)
        blocks.store(out, field.negate(upper), J, J + 16, order=top)
        lower = field.dot(blocks.load(LU, J + 16, J, 16, 16), blocks.unit_lower(inverse11))
        lower = field.dot(blocks.unit_lower(inverse22), lower)
        blocks.store(out, field.negate(lower), J + 16, J, order=bottom)
    tl.debug_barrier()


@triton.jit
def _load_inverse(out, J, order, BLOCK: tl.constexpr, TRANSPOSED: tl.constexpr):
    """U^-1 of a diagonal block, or L^-T."""
    packed = blocks.load(out, J, J, BLOCK, BLOCK, DIAGONAL=1.0, order=None if order is None else _rows(order, J, BLOCK))
    if TRANSPOSED:
        return layout.transpose(blocks.unit_lower(packed))
    else:
        return blocks.upper(packed)


@triton.jit
def _vjp_side(out, LU, G, order, G11, J, BLOCK: tl.constexpr, ROWS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Finds X21; returns G11 - triu(L21^H X21), G11 - tril(X12 U12^H, -1) of transposed matrices."""
    m = LU.shape[1] if TRANSPOSED else LU.shape[0]
    n = LU.shape[0] if TRANSPOSED else LU.shape[1]
    R = J + BLOCK
    for first_row in tl.range(R, m, ROWS, disable_licm=True):
        i = _opaque(first_row, LU)
        # X21 = (G21 - S U12^H) U11^-H
        G21 = blocks.load(G, i, J, ROWS, BLOCK, TRANSPOSED)
        total = field.constant_like(G21, 0.0)
        rows = _rows(order, J, BLOCK) if TRANSPOSED else _rows(order, i, ROWS)
        for first_col in tl.range(R, n, 16, disable_licm=True):
            c = _opaque(first_col, LU)
            S_rows = _rows(order, c, 16) if TRANSPOSED else rows
            S = blocks.load(out, i, c, ROWS, 16, TRANSPOSED, order=S_rows)
            U12 = blocks.load(LU, J, c, BLOCK, 16, TRANSPOSED)
            total = field.add(total, field.dot(S, blocks.adjoint(U12)))
        U_inverse = _load_inverse(out, J, order, BLOCK, TRANSPOSED)
        X21 = field.dot(field.subtract(G21, total), blocks.adjoint(U_inverse))
        blocks.store(out, X21, i, J, TRANSPOSED, rows)

        # G11 - triu(L21^H X21), or G11 - tril(X12 U12^H, -1)
        L21 = blocks.load(LU, i, J, ROWS, BLOCK, TRANSPOSED)
        product = field.dot(blocks.adjoint(L21), X21)
        if TRANSPOSED:
            G11 = field.subtract(G11, blocks.strictly_lower(layout.transpose(product)))
        else:
            G11 = field.subtract(G11, blocks.upper(product))
    return G11


@triton.jit
def _vjp(out, LU, G, order, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    _store_inverses(out, LU, order, BLOCK)
    steps = tl.cdiv(tl.minimum(LU.shape[0], LU.shape[1]), BLOCK)
    for step in tl.range(steps, disable_licm=True):
        J = _opaque((steps - 1 - step) * BLOCK, LU)
        G11 = blocks.load(G, J, J, BLOCK, BLOCK)
        # X21, X12, and G11 - tril(X12 U12^H, -1) - triu(L21^H X21)
        G11 = _vjp_side(out, LU, G, order, G11, J, BLOCK, ROWS, False)
        G11 = _vjp_side(out, LU, G, order, G11, J, BLOCK, ROWS, True)
        # X11 = vjp(that)
        B11 = blocks.load(LU, J, J, BLOCK, BLOCK, DIAGONAL=1.0)
        U_inverse = _load_inverse(out, J, order, BLOCK, False)
        L_inverse = layout.transpose(_load_inverse(out, J, order, BLOCK, True))
        X11 = blocks.vjp(B11, L_inverse, U_inverse, G11)
        tl.debug_barrier()
        blocks.store(out, X11, J, J, order=_rows(order, J, BLOCK))
        tl.debug_barrier()


@triton.jit
def _remainder(out, LU, E, order, i, J, BLOCK: tl.constexpr, ROWS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """dA - dL20 U01 - L20 dU01, at (i, J)."""
    rows = _rows(order, J, BLOCK) if TRANSPOSED else _rows(order, i, ROWS)
    dA = blocks.load(E, i, J, ROWS, BLOCK, TRANSPOSED, order=rows)
    total = field.constant_like(dA, 0.0)
    for first in tl.range(0, J, 16, disable_licm=True):
        c = _opaque(first, LU)
        dL = blocks.load(out, i, c, ROWS, 16, TRANSPOSED)
        U = blocks.load(LU, c, J, 16, BLOCK, TRANSPOSED)
        total = field.add(total, field.dot(dL, U))
        L = blocks.load(LU, i, c, ROWS, 16, TRANSPOSED)
        dU = blocks.load(out, c, J, 16, BLOCK, TRANSPOSED)
        total = field.add(total, field.dot(L, dU))
    return field.subtract(dA, total)


@triton.jit
def _jvp_side(out, LU, E, order, dB11, J, BLOCK: tl.constexpr, ROWS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """Finds dL21, or dU12^T of transposed matrices."""
    m = LU.shape[1] if TRANSPOSED else LU.shape[0]
    for first in tl.range(J + BLOCK, m, ROWS, disable_licm=True):
        i = _opaque(first, LU)
        # dL21 = (dA21 - dL20 U01 - L20 dU01 - L21 dU11) U11^-1
        dA21 = _remainder(out, LU, E, order, i, J, BLOCK, ROWS, TRANSPOSED)
        dU11 = layout.transpose(blocks.strictly_lower(dB11)) if TRANSPOSED else blocks.upper(dB11)
        dA21 = field.subtract(dA21, field.dot(blocks.load(LU, i, J, ROWS, BLOCK, TRANSPOSED), dU11))
        U_inverse = _load_inverse(out, J, None, BLOCK, TRANSPOSED)
        blocks.store(out, field.dot(dA21, U_inverse), i, J, TRANSPOSED)


@triton.jit
def _jvp(out, LU, E, order, BLOCK: tl.constexpr, ROWS: tl.constexpr):
    _store_inverses(out, LU, None, BLOCK)
    for first in tl.range(0, tl.minimum(LU.shape[0], LU.shape[1]), BLOCK, disable_licm=True):
        J = _opaque(first, LU)
        # dB11 = jvp(dA11 - dL10 U01 - L10 dU01)
        dA11 = _remainder(out, LU, E, order, J, J, BLOCK, BLOCK, False)
        B11 = blocks.load(LU, J, J, BLOCK, BLOCK, DIAGONAL=1.0)
        U_inverse = _load_inverse(out, J, None, BLOCK, False)
        L_inverse = layout.transpose(_load_inverse(out, J, None, BLOCK, True))
        dB11 = blocks.jvp(B11, L_inverse, U_inverse, dA11)
        # dL21, dU12
        _jvp_side(out, LU, E, order, dB11, J, BLOCK, ROWS, False)
        _jvp_side(out, LU, E, order, dB11, J, BLOCK, ROWS, True)
        tl.debug_barrier()
        blocks.store(out, dB11, J, J)
        tl.debug_barrier()


MAPS = {"vjp": _vjp, "jvp": _jvp}


@triton.jit
def tile_kernel(
    out,
    LU,
    pivots,
    X,
    shape,
    MAP: tl.constexpr,
    N: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    batch, exists = layout.batch_of_one(tl.program_id(0), shape)
    MAP(
        layout.Matrix(*out, shape, batch, exists, True),
        layout.Matrix(*LU, shape, batch, exists, True),
        layout.Matrix(*X, shape, batch, exists, True),
        permutation.order(layout.Matrix(*pivots, shape, batch, exists, True), N),
        BLOCK,
        ROWS,
    )


def evaluate(name, out, LU, pivots, X, *, block, rows, registers, num_warps):
    """`warp.evaluate` of "vjp" or "jvp" for m or n from 33 to 128. Options:

    block: the width of the diagonal blocks, 16 or 32.
    rows: how many are taken at a time, 16 or 32.
    registers: that a thread may have, at most.
    num_warps
    """
    if out.numel() == 0:
        return
    args = launch.arguments(out.shape, out, LU, pivots, X)
    constants = {"MAP": MAPS[name], "N": launch.power_of_two(max(out.shape[-2:])), "BLOCK": block, "ROWS": rows}
    options = {"num_warps": num_warps, "num_stages": 1, "maxnreg": registers}
    launch.run(tile_kernel, out.shape[:-2].numel(), args, constants, **options)
