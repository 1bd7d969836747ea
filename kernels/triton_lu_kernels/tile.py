"""The derivatives of LU for matrices of 17 to 128 rows or columns.

    vjp:        out = P X,                                X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H
    jvp:        out = L tril(M, -1) + triu(M) U,          M = L^-1 (P^T E) U^-1
    curvature:  out = -tril(X dU^H, -1) - triu(dL^H X),   X = P^T Y

Arguments and completion are those of `warp`. Grid: one axis, one program per matrix, or PROGRAMS of `curvature`.

For every diagonal block J, 16 wide, with R the rows and columns after it and S = X[R, R], vjp goes from the last to the
first:

    X21 = (G21 - S U12^H) U11^-H                    X12^T = (G12^T - S^T conj(L21)) conj(L11^-1)
    X11 = vjp(G11 - tril(X12 U12^H, -1) - triu(L21^H X21))

and jvp, with 0 the rows and columns before J and dA = P^T E, from the first to the last:

    M11 = L11^-1 (dA11 - dL10 U01 - L10 dU01) U11^-1
    dB11 = L11 tril(M11, -1) + triu(M11) U11
    dL21 = (dA21 - dL20 U01 - L20 dU01) U11^-1 - L21 triu(M11)

and likewise dU12^T with the transposed matrices. `curvature` has the same products as vjp, of X from J on instead of S
and of D instead of LU, and no order. Each of the W warps of a program finds 16 rows of X21 or dL21, and as many of
X12^T or dU12^T, at a time, by products of tiles (`fragments`) that it loads where it needs them; what belongs to a
diagonal block all of them do, from sums over all warps that are added one after the other.

Arguments are read once from memory, and again from the caches; S and dB from `out`, where the parts of the result
are put as they are found. Until a diagonal block is found, its place holds L11^-1 and U11^-1, packed, in vjp their
conjugates. A matrix gets the same bits in any batch, place and layout, from any number of warps and programs.

What takes time is waiting for memory, and for instructions if they do not fit the cache, so there must be many programs
on a multiprocessor, and little code: loops over blocks stay loops, and `disable_licm` computes addresses where they are
used.
"""

import torch
import triton
import triton.language as tl

from . import field, fragments, launch, layout, permutation, substitution


@triton.jit
def _places(order, index, x):
    """Where those rows of P^T X lie in X."""
    return tl.load(order + index, index < x.rows, other=0)


@triton.jit
def _store_inverses(out, LU, order, W: tl.constexpr, CONJUGATE: tl.constexpr):
    """L^-1 and U^-1 of every diagonal block, packed, to the place of that block in `out`; each warp inverts its own."""
    C: tl.constexpr = LU.COMPONENTS
    index = tl.arange(0, 16)
    low = index[:, None] > index[None, :]
    for J in tl.range(0, tl.minimum(LU.rows, LU.cols), 16 * W, num_stages=1, disable_licm=True):
        first = J + tl.arange(0, W) * 16
        row = first[:, None] + index[None, :]
        mask = (row < LU.rows)[:, :, None] & (row < LU.cols)[:, None, :]
        offset = row[:, :, None] * LU.row_stride + row[:, None, :] * LU.col_stride
        B = ()
        for k in tl.static_range(C):
            B += (tl.load(LU.pointer + offset + k, mask, other=0.0),)
        if CONJUGATE:
            B = field.conjugate(B)
        one = field.constant_like(B, 1.0)
        zero = field.constant_like(B, 0.0)
        identity = field.where(index[:, None] == index[None, :], one, zero)
        B = field.where(mask, B, identity)
        lower = fragments.transpose(field.where(low, B, identity))
        upper = field.where(low, zero, B)
        both = ()
        for k in tl.static_range(C):
            both += (tl.reshape(tl.permute(tl.join(lower[k], upper[k]), (3, 0, 1, 2)), (2 * W, 16, 16)),)
        negated = substitution.negate(layout.unstack(both))
        identity = substitution.identity_like(negated)
        solved = layout.stack(substitution.solve(negated, identity, UPPER=True, TRANSPOSED=False))
        place = row if order is None else _places(order, row, LU)
        offset = place[:, :, None] * out.row_stride + row[:, None, :] * out.col_stride
        for k in tl.static_range(C):
            L_inverse, U_inverse = tl.split(tl.permute(tl.reshape(solved[k], (2, W, 16, 16)), (1, 2, 3, 0)))
            tl.store(out.pointer + offset + k, tl.where(low, L_inverse, tl.permute(U_inverse, (0, 2, 1))), mask)


@triton.jit
def _opaque(index, x):
    """The index of a loop of jvp, in a form that keeps the compiler from stepping a pointer for every access along with
    it: in float32 its stack is 24 bytes instead of 344. In double precision it takes longer."""
    if x.pointer.dtype.element_ty == tl.float64:
        return tl.multiple_of(index, 16)
    else:
        return tl.multiple_of(index | (x.rows >> 31), 16)


@triton.jit
def _end_of_terms(x, i):
    """Where the sums end for 16 rows and 16 columns from i on, of which one or the other may not exist."""
    return tl.maximum(tl.where(i < x.rows, x.cols, 0), tl.where(i < x.cols, x.rows, 0))


@triton.jit
def _add_products(W21, W12, X, B, order, I, J, first, end):
    """W21 + X U^H and W12 + X^T conj(L) at (I, J), the terms from `first` to `end`, after the diagonal block, of the
    triangles L and U of B and the rows `order` of X."""
    V: tl.constexpr = B.V
    places = _places(order, fragments.rows(I, V), B)
    next_places = _places(order, fragments.columns(J * 0 + first, V), B)
    for c in tl.range(first, end, 16, num_stages=1, disable_licm=True):
        K = J * 0 + c
        X21 = fragments.load(X, I, K, places=places)
        U = field.conjugate(fragments.load(B, J, K))
        X12 = fragments.load(X, I, K, True, next_places)
        Lt = field.conjugate(fragments.load(B, J, K, True))
        W21 = fragments.dot(X21, U, W21)
        next_places = _places(order, fragments.columns(K + 16, V), B)  # early: the next load waits for it
        W12 = fragments.dot(X12, Lt, W12)
    return W21, W12


@triton.jit
def _vjp(out, LU, G, order, W: tl.constexpr, PROGRAMS: tl.constexpr):
    V: tl.constexpr = LU.V
    _store_inverses(out, LU, order, W, True)
    tl.debug_barrier()
    warp = tl.arange(0, W)
    index = fragments.row_index(V)
    low = (index[:, None] > index[None, :])[None, :, :]
    zero = field.zeros((W, 16, 16), out.pointer.dtype.element_ty, out.COMPONENTS)
    steps = tl.cdiv(tl.minimum(LU.rows, LU.cols), 16)
    for step in tl.range(0, steps, num_stages=1, disable_licm=True):
        first = tl.multiple_of((steps - 1 - step) * 16, 16)
        J = first + warp * 0
        end = tl.minimum(LU.rows, LU.cols) - first if LU.RAGGED else None
        row_places = _places(order, fragments.rows(J, V), LU)
        col_places = _places(order, fragments.columns(J, V), LU)
        F = field.zeros((1, 16, 16), out.pointer.dtype.element_ty, out.COMPONENTS)
        for i in tl.range(first + 16, tl.maximum(LU.rows, LU.cols), 16 * W, num_stages=1, disable_licm=True):
            I = i + warp * 16
            # S U12^H - G21 and (L21^H S)^T - G12^T
            W21 = field.negate(fragments.load(G, I, J, RESULT=True))
            W12 = field.negate(fragments.load(G, I, J, True, RESULT=True))
            W21, W12 = _add_products(W21, W12, out, LU, order, I, J, first + 16, _end_of_terms(LU, i))
            # X21^T and X12
            U_inverse = fragments.triangle(fragments.load(out, J, J, places=row_places), V, True, end=end)
            L_inverse = fragments.triangle(fragments.load(out, J, J, True, col_places), V, True, 1.0)
            X21 = fragments.dot(field.negate(U_inverse), fragments.factor(W21), zero)
            X12 = fragments.dot(field.negate(L_inverse), fragments.factor(W12), zero)
            fragments.store(out, X21, J, I, True, _places(order, fragments.columns(I, V), LU))
            fragments.store(out, X12, J, I, places=row_places)
            # tril(X12 U12^H, -1) + triu(L21^H X21)
            U = field.conjugate(fragments.load(LU, J, I))
            Lt = field.conjugate(fragments.load(LU, J, I, True))
            below = fragments.dot(fragments.factor(X12), U, zero)
            above = fragments.dot(Lt, fragments.factor(X21), zero)
            F = fragments.add_all(F, field.where(low, below, above))
        # X11 = vjp(G11 - F)
        V11 = field.subtract(fragments.load(G, J, J, RESULT=True), fragments.broadcast(F, W))
        U = fragments.triangle(field.conjugate(fragments.load(LU, J, J)), V, True, end=end)
        Lt = fragments.triangle(field.conjugate(fragments.load(LU, J, J, True)), V, True, 1.0)
        below = fragments.dot(Lt, fragments.factor(fragments.transpose(V11)), zero)
        Phi = field.where(low, below, fragments.dot(fragments.factor(V11), U, zero))
        U_inverse = fragments.triangle(fragments.load(out, J, J, places=row_places), V, True, end=end)
        L_inverse = fragments.triangle(fragments.load(out, J, J, True, col_places), V, True, 1.0)
        X11 = fragments.dot(U_inverse, fragments.factor(Phi), zero)
        X11 = fragments.dot(L_inverse, fragments.factor(X11), zero)
        tl.debug_barrier()
        fragments.store(out, X11, J, J, places=row_places, there=warp == 0)
        tl.debug_barrier()


@triton.jit
def _jvp(out, LU, E, order, W: tl.constexpr, PROGRAMS: tl.constexpr):
    V: tl.constexpr = LU.V
    _store_inverses(out, LU, None, W, False)
    tl.debug_barrier()
    warp = tl.arange(0, W)
    index = fragments.row_index(V)
    low = (index[:, None] > index[None, :])[None, :, :]
    zero = field.zeros((W, 16, 16), out.pointer.dtype.element_ty, out.COMPONENTS)
    for first in tl.range(0, tl.minimum(LU.rows, LU.cols), 16, num_stages=1, disable_licm=True):
        first = _opaque(first, LU)
        J = first + warp * 0
        end = tl.minimum(LU.rows, LU.cols) - first if LU.RAGGED else None
        col_places = _places(order, fragments.columns(J, V), LU)
        # (dL10 U01 + L10 dU01)^T
        W11 = field.zeros((1, 16, 16), out.pointer.dtype.element_ty, out.COMPONENTS)
        for c in tl.range(0, first, 16 * W, num_stages=1, disable_licm=True):
            K = _opaque(c, LU) + warp * 16
            there = K < J if W > 1 else None
            U = fragments.load(LU, J, K, True, there=there)
            terms = fragments.dot(U, fragments.load(out, J, K, there=there), zero)
            dU = fragments.load(out, J, K, True, there=there)
            W11 = fragments.add_all(W11, fragments.dot(dU, fragments.load(LU, J, K, there=there), terms))
        W11 = fragments.broadcast(W11, W)
        W11 = field.subtract(W11, fragments.load(E, J, J, True, col_places, RESULT=True))
        # -M11 and its transpose
        U_inverse = fragments.triangle(fragments.load(out, J, J, True), V, False, end=end)
        L_inverse = fragments.triangle(fragments.load(out, J, J), V, False, 1.0)
        product = fragments.factor(fragments.dot(L_inverse, fragments.factor(W11), zero))
        M = fragments.factor(fragments.dot(product, U_inverse, zero))
        Mt = fragments.factor(fragments.dot(U_inverse, product, zero))
        for i in tl.range(first + 16, tl.maximum(LU.rows, LU.cols), 16 * W, num_stages=1, disable_licm=True):
            I = _opaque(i, LU) + warp * 16
            # dL20 U01 + L20 dU01 - dA21, and of the transposed matrices
            places = _places(order, fragments.rows(I, V), LU)
            W21 = field.negate(fragments.load(E, I, J, places=places, RESULT=True))
            W12 = field.negate(fragments.load(E, I, J, True, col_places, RESULT=True))
            for c in tl.range(0, first, 16, num_stages=1, disable_licm=True):
                K = _opaque(c, LU) + warp * 0
                W21 = fragments.dot(fragments.load(out, I, K), fragments.load(LU, J, K, True), W21)
                W21 = fragments.dot(fragments.load(LU, I, K), fragments.load(out, J, K, True), W21)
                W12 = fragments.dot(fragments.load(out, I, K, True), fragments.load(LU, J, K), W12)
                W12 = fragments.dot(fragments.load(LU, I, K, True), fragments.load(out, J, K), W12)
            # dL21 and dU12^T. (W first: else Triton 3.6 gets complex128 wrong on sm_80)
            U_inverse = fragments.triangle(fragments.load(out, J, J, True), V, False, end=end)
            dL = fragments.dot(fragments.factor(W21), field.negate(U_inverse), zero)
            dL = fragments.dot(fragments.load(LU, I, J), fragments.triangle(Mt, V, False), dL)
            fragments.store(out, dL, I, J)
            L_inverse = fragments.triangle(fragments.load(out, J, J), V, False, 1.0)
            dU = fragments.dot(fragments.factor(W12), field.negate(L_inverse), zero)
            dU = fragments.dot(fragments.load(LU, I, J, True), fragments.triangle(M, V, False, 0.0), dU)
            fragments.store(out, dU, I, J, True)
        # dB11
        L = fragments.triangle(fragments.load(LU, J, J), V, False, 1.0)
        dL = fragments.dot(field.negate(L), fragments.triangle(Mt, V, True, 0.0), zero)
        U = fragments.triangle(fragments.load(LU, J, J, True), V, False, end=end)
        dU = fragments.dot(fragments.triangle(M, V, True), field.negate(U), zero)
        tl.debug_barrier()
        fragments.store(out, field.where(low, dL, dU), J, J, there=warp == 0)
        tl.debug_barrier()


@triton.jit
def _curvature(out, D, Y, order, W: tl.constexpr, PROGRAMS: tl.constexpr):
    V: tl.constexpr = D.V
    warp = tl.arange(0, W)
    index = fragments.row_index(V)
    low = (index[:, None] > index[None, :])[None, :, :]
    zero = field.zeros((W, 16, 16), out.pointer.dtype.element_ty, out.COMPONENTS)
    start = tl.program_id(0) % PROGRAMS * 16
    for first in tl.range(start, tl.minimum(D.rows, D.cols), 16 * PROGRAMS, num_stages=1, disable_licm=True):
        first = tl.multiple_of(first, 16)
        J = first + warp * 0
        for i in tl.range(first, tl.maximum(D.rows, D.cols), 16 * W, num_stages=1, disable_licm=True):
            I = i + warp * 16
            U = fragments.triangle(field.conjugate(fragments.load(D, J, J)), V, True)
            Lt = fragments.triangle(field.conjugate(fragments.load(D, J, J, True)), V, True, 0.0)
            W21 = fragments.dot(fragments.load(Y, I, J, places=_places(order, fragments.rows(I, V), D)), U, zero)
            W12 = fragments.load(Y, I, J, True, _places(order, fragments.columns(J, V), D))
            W12 = fragments.dot(W12, Lt, zero)
            W21, W12 = _add_products(W21, W12, Y, D, order, I, J, first + 16, _end_of_terms(D, i))
            fragments.store(out, field.negate(W12), I, J, True)
            if i == first:  # the block on the diagonal is one triangle of each
                W21 = field.where(low | (I > J)[:, None, None], W21, fragments.transpose(W12))
                tl.debug_barrier()
            fragments.store(out, field.negate(W21), I, J)


MAPS = {"vjp": _vjp, "jvp": _jvp, "curvature": _curvature}


@triton.jit
def _operand(x, shape, batch, V: tl.constexpr, NEAR: tl.constexpr):
    """Pointer and strides, in reals, of a matrix. Where neighbours are aligned, the compiler is to see it; elsewhere
    not even that there are neighbours, which it would bring to one lane."""
    C: tl.constexpr = x[2]
    D: tl.constexpr = 1 if NEAR == 2 else V  # what divides strides
    pointer = x[0]
    for dim in tl.static_range(len(batch)):
        pointer += batch[dim] * (x[1][0][dim] // D * D * C)
    if NEAR == 0:
        return pointer, C, x[1][2] // D * D * C
    elif NEAR == 1:
        return pointer, x[1][1] // D * D * C, C
    else:
        hidden = shape[0] >> 31  # zero
        return pointer, (x[1][1] | hidden) * C, (x[1][2] | hidden) * C


@triton.jit
def _vector(x, batch):
    """Pointer to a vector of a batch."""
    pointer = x[0]
    for dim in tl.static_range(len(batch)):
        pointer += batch[dim] * x[1][0][dim]
    return pointer


@triton.jit
def tile_kernel(
    out,
    LU,
    X,
    order,
    pivots,
    shape,
    MAP: tl.constexpr,
    N: tl.constexpr,
    W: tl.constexpr,
    PROGRAMS: tl.constexpr,
    V: tl.constexpr,
    NEAR_OUT: tl.constexpr,
    NEAR_LU: tl.constexpr,
    NEAR_X: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch = layout.batch_index((tl.program_id(0) // PROGRAMS).to(tl.int64), shape)
    order = _vector(order, batch) + tl.program_id(0) % PROGRAMS * shape[0]
    permutation.store_order_of_one(order, _vector(pivots, batch), pivots[1][1], shape, N)
    tl.debug_barrier()
    MAP(
        fragments.Matrix(*_operand(out, shape, batch, V, NEAR_OUT), shape[0], shape[1], out[2], V, NEAR_OUT, RAGGED),
        fragments.Matrix(*_operand(LU, shape, batch, V, NEAR_LU), shape[0], shape[1], LU[2], V, NEAR_LU, RAGGED),
        fragments.Matrix(*_operand(X, shape, batch, V, NEAR_X), shape[0], shape[1], X[2], V, NEAR_X, RAGGED),
        order,
        W,
        PROGRAMS,
    )


def _near(x):
    """`fragments.Matrix.NEAR` of a tensor."""
    V = 16 // x.itemsize
    *batch, row_stride, col_stride = x.stride()
    for near, step, size, far in ((0, row_stride, x.shape[-2], col_stride), (1, col_stride, x.shape[-1], row_stride)):
        aligned = x.data_ptr() % 16 == 0 and all(number % V == 0 for number in (size, far, *batch))
        if V > 1 and step == 1 and aligned:
            return near
    return 2


def workspace(out, programs=1):
    """Uninitialized `order` for a result like `out`, one for each program."""
    return torch.empty(*out.shape[:-2], programs, out.shape[-2], dtype=torch.int32, device=out.device)


def evaluate(name, out, LU, pivots, X, order, *, num_warps, programs=1, registers=128):
    """`warp.evaluate` for m or n from 17 to 128. `order` is that of `workspace`. Options:

    num_warps: at most 8.
    programs: for each matrix, of "curvature" only more than one.
    registers: that a thread may have, at most.
    """
    if out.numel() == 0:
        return
    m, n = out.shape[-2:]
    args = launch.arguments(out.shape, out, LU, X, order, pivots)
    constants = {"MAP": MAPS[name], "N": launch.power_of_two(m), "W": num_warps, "PROGRAMS": programs}
    constants |= {"V": 16 // out.itemsize, "NEAR_OUT": _near(out), "NEAR_LU": _near(LU), "NEAR_X": _near(X)}
    constants |= {"RAGGED": m != n or n % 16 != 0}
    options = {"num_warps": num_warps, "num_stages": 1, "maxnreg": registers}
    launch.run(tile_kernel, out.shape[:-2].numel() * programs, args, constants, **options)
