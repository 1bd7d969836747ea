"""The operators in ATen operations, for CPUs, whose small matrices go to NumPy, and for GPUs where there is no kernel,
whose large matrices go to `products`.

Notation: A = P L U with A of m×n, k = min(m, n); B is L and U packed; J is a block of the diagonal, R the rows or
columns after it. `vjp` and `jvp` are sweeps over the diagonal blocks that work in place on one copy of their argument
and spend 4/3 n³ flops, twice those of the factorization, or 2 n³ where `vjp` would lose digits; nearly all of them are
matrix products. `curvature` and `mixed`, the maps of higher derivatives, are two products of triangles each.
docs/mathematics.md derives them.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from triton_lu import determinant, elimination, numpy_backend, plan, products, row_order, systems
from triton_lu.parts import add_product_, blocks_of, columns, part, rows
from triton_lu.precision import full_precision
from triton_lu.results import empty_column_major, empty_factors, empty_row_major


def factor(A: Tensor, pivot: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A -> (LU, pivots, infos)."""
    with full_precision(A):
        if not (pivot or A.is_cuda):
            return _factor_without_exchanges(A)
        if plan.one_by_one(A.shape, A.device.type):
            return _factor_one_by_one(A)
        return tuple(torch.linalg.lu_factor_ex(A, pivot=pivot))


def _factor_without_exchanges(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """On a CPU, where PyTorch has none."""
    m, n = A.shape[-2:]
    LU, pivots, infos = empty_factors(A)
    if LU.numel():
        elimination.eliminate_(LU.copy_(A).view(-1, m, n))
    k = pivots.shape[-1]
    step = torch.arange(1, k + 1, dtype=torch.int32)
    pivots.copy_(step.expand_as(pivots))
    if k == 0:
        return LU, pivots, infos.zero_()
    zero_pivots = torch.where(LU.diagonal(dim1=-2, dim2=-1) == 0, step, k + 1)
    return LU, pivots, zero_pivots.amin(-1).remainder_(k + 1)


def _factor_one_by_one(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    LU, pivots, infos = empty_factors(A)
    results = (LU.flatten(0, -3), pivots.flatten(0, -2), infos.flatten())
    for matrix, *result in zip(A.flatten(0, -3), *results, strict=True):
        torch.linalg.lu_factor_ex(matrix, out=result)
    return LU, pivots, infos


permutation = row_order.permutation
lu_solve, lu_solve_vjp = systems.lu_solve, systems.lu_solve_vjp


def _factored(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """LU, pivots and infos, on a GPU by the operator, which may be a kernel."""
    return torch.ops.triton_lu.factor(A) if A.is_cuda else factor(A, True)


def _in_one_call(A: Tensor) -> bool:
    """Whether PyTorch's own function factorizes A as it shall be."""
    return not A.is_cuda and not plan.one_by_one(A.shape, A.device.type)


def _not_transposed(A: Tensor) -> Tensor:
    """A, or a copy of it where PyTorch would factorize Aᵀ."""
    return empty_column_major(A).copy_(A) if A.is_contiguous() and not A.is_complex() else A


def slogdet(A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """A -> (sign, log|det A|, LU, pivots)."""
    if _in_one_call(A):
        sign, logabsdet, LU, pivots = torch._linalg_slogdet(_not_transposed(A))
        return sign, logabsdet, LU, pivots
    LU, pivots, _ = _factored(A)
    return *determinant.signed_log(LU, pivots), LU, pivots


def det(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A -> (det A, LU, pivots)."""
    LU, pivots, _ = _factored(A)
    return determinant.determinant(LU, pivots), LU, pivots


def inv_ex(A: Tensor) -> tuple[Tensor, Tensor]:
    """A -> (A⁻¹, infos)."""
    if _in_one_call(A):
        X, infos = torch.linalg.inv_ex(A)
        return X, infos
    LU, pivots, infos = _factored(A)
    return torch.ops.triton_lu.inverse(A, LU, pivots), infos


def solve_ex(A: Tensor, B: Tensor, left: bool) -> tuple[Tensor, ...]:
    """(A, B) -> (X, LU, pivots, infos)."""
    LU, pivots, infos = _factored(A)
    solution = torch.ops.triton_lu.solve if A.is_cuda else solve
    return solution(A, LU, pivots, B, left, False), LU, pivots, infos


def product(A: Tensor, B: Tensor) -> Tensor:
    """(A, B) -> A B."""
    with full_precision(A):
        return torch.matmul(A, B)


# In what follows the derivatives are with respect to A, and the values are found from its factors


def adjugate(A: Tensor, LU: Tensor, pivots: Tensor, adjoint: bool) -> Tensor:
    """(A, LU, pivots) -> adj(A), or its conjugate transpose."""
    return determinant.adjugate(LU, pivots, adjoint)


def inverse(A: Tensor, LU: Tensor, pivots: Tensor, adjoint: bool) -> Tensor:
    """(A, LU, pivots) -> A⁻¹, or A⁻ᴴ."""
    return systems.inverse(LU, pivots, adjoint)


def solve(A: Tensor, LU: Tensor, pivots: Tensor, B: Tensor, left: bool, adjoint: bool) -> Tensor:
    """(A, LU, pivots, B) -> X with A X = B or the like."""
    return lu_solve(LU, pivots, B, left, adjoint)


def _small_form(name: str, X: Tensor) -> str | None:
    m, n = X.shape[-2:]
    return plan.in_numpy(name, X.shape[:-2].numel(), m, n, X.dtype, X.device.type)


def _block_of_products(X: Tensor) -> int | None:
    m, n = X.shape[-2:]
    return plan.block_of_products(m, n, X.device.type)


def _sweep_(X: Tensor, LU: Tensor, blocked_: Callable[[Tensor, Tensor, plan.Widths], None]) -> None:
    """Runs a sweep on X in place, in the blocks of its plan."""
    m, n = X.shape[-2:]
    batch = X.shape[:-2].numel()
    shape = (m, n) if batch == 1 else (batch, m, n)
    with full_precision(X):
        blocked_(X.view(shape), LU.reshape(shape), plan.widths(batch, m, n, X.dtype, X.device.type))


def vjp(LU: Tensor, pivots: Tensor, G: Tensor) -> Tensor:
    """G -> P X, X = L⁻ᴴ (tril(Lᴴ G, -1) + triu(G Uᴴ)) U⁻ᴴ."""
    if G.numel() == 0:
        return empty_row_major(G)
    if block := _block_of_products(G):
        with full_precision(G):
            return products.vjp(LU, pivots, G, block)
    form = _small_form("vjp", G)
    if form == "block":
        return numpy_backend.vjp(LU, pivots, G)
    X = empty_row_major(G)
    if form == "columns":
        numpy_backend.by_columns(numpy_backend.vjp_columns, G, LU, X)
    else:
        _sweep_(X.copy_(G), LU, _vjp_sweep_)
    m, n = X.shape[-2:]
    if n <= plan.PANEL:
        return row_order.permuted(X, pivots, inverse=True)
    origin = row_order.of_batch(pivots, m, inverse=True)
    flat = X.view(-1, n)
    workspace = flat.new_empty(len(flat), plan.PANEL)
    for panel in flat.split(plan.PANEL, dim=-1):  # in place: a second copy would be half of the memory of a backward
        permuted = workspace[:, : panel.shape[-1]]
        panel.copy_(torch.index_select(panel, 0, origin, out=permuted))
    return X


def jvp(LU: Tensor, pivots: Tensor, E: Tensor) -> Tensor:
    """E -> L tril(M, -1) + triu(M) U, M = L⁻¹ (Pᵀ E) U⁻¹: the tangent of B along E."""
    if E.numel() == 0:
        return empty_column_major(E)
    if block := _block_of_products(E):
        with full_precision(E):
            return products.jvp(LU, pivots, E, block)
    form = _small_form("jvp", E)
    if form == "block":
        return numpy_backend.jvp(LU, pivots, E)
    W = row_order.permuted(E, pivots)
    if form == "columns":
        return numpy_backend.by_columns(numpy_backend.jvp_columns, W, LU, empty_column_major(E))
    _sweep_(W, LU, _jvp_sweep_)
    return empty_column_major(E).copy_(W)  # a sweep by columns would take up to 1.6 times as long


def curvature(D: Tensor, pivots: Tensor, Y: Tensor) -> Tensor:
    """(D, Y) -> -tril(X dUᴴ, -1) - triu(dLᴴ X), X = Pᵀ Y, where dL = tril(D, -1) and dU = triu(D)."""
    if Y.numel() == 0:
        return empty_row_major(Y)
    if block := _block_of_products(Y):
        with full_precision(Y):
            return products.curvature(D, pivots, Y, block)
    form = _small_form("curvature", Y)
    if form == "block":
        return numpy_backend.curvature(D, pivots, Y)
    X = row_order.permuted(Y, pivots)
    if form == "columns":
        return numpy_backend.by_columns(numpy_backend.curvature_columns, X, D, empty_row_major(Y))
    m, n = Y.shape[-2:]
    k, batch = min(m, n), Y.shape[:-2].numel()
    X = X.view((m, n) if batch == 1 else (batch, m, n))
    dUH = D.reshape(X.shape).mT.conj_physical().neg()
    dLH = dUH.triu(1)
    dUH.tril_()
    K = torch.empty_like(X)
    with full_precision(Y):
        for J in blocks_of(0, k, plan.triangle_panel(k)):  # the sums begin at the diagonal
            below, right, width = slice(J.start, m), slice(J.start, n), J.stop - J.start
            S = part(X, below, right)
            upper = _product(part(dLH, J, below), S, None).triu_()
            lower = _product(S, part(dUH, right, J), None).tril_(-1)
            rows(lower, 0, width).add_(columns(upper, 0, width))
            part(K, below, J).copy_(lower)
            if J.stop < n:
                part(K, J, slice(J.stop, n)).copy_(columns(upper, width, n - J.start))
    return K.view(Y.shape)


def mixed(D: Tensor, pivots: Tensor, dB: Tensor) -> Tensor:
    """(D, δB) -> -P (dL δU + δL dU), where dL = tril(D, -1) and dU = triu(D), and likewise δL and δU."""
    if dB.numel() == 0:
        return empty_row_major(dB)
    if block := _block_of_products(dB):
        with full_precision(dB):
            return products.mixed(D, pivots, dB, block)
    m, n = dB.shape[-2:]
    k = min(m, n)
    (dL, dU), (other_dL, other_dU) = (
        (columns(X, 0, k).tril(-1), rows(X, 0, k).triu()) for X in (D.reshape(-1, m, n), dB.reshape(-1, m, n))
    )
    with full_precision(D):
        change = torch.bmm(dL.neg_(), other_dU).baddbmm_(other_dL, dU, alpha=-1)
    return row_order.permuted(change.view(dB.shape), pivots, inverse=True)


def _workspace(W: Tensor, width: int) -> Tensor:
    """Memory for a block row, or a block column, of W.

    Fresh memory for every temporary would cost about as much as the products (page faults).
    """
    *batch, m, n = W.shape
    return W.new_empty(math.prod(batch) * min(width, m, n) * max(m, n))


def _place(workspace: Tensor, shape: Sequence[int], *, by_rows: bool = True) -> Tensor:
    """A matrix or a batch of them in the workspace, row-major or column-major."""
    m, n = shape[-2:]
    return workspace.as_strided(shape, ((m * n, n, 1) if by_rows else (m * n, 1, m))[-len(shape) :])


def _adjoint_copy(X: Tensor, workspace: Tensor) -> Tensor:
    """Xᴴ in the workspace."""
    return torch.conj_physical(X.mT, out=_place(workspace, X.mT.shape))


def _adjoint(X: Tensor, workspace: Tensor) -> Tensor:
    """Xᴴ, of complex numbers a copy: see `products._adjoint`."""
    return _adjoint_copy(X, workspace) if X.is_complex() else X.mT


def _product(A: Tensor, B: Tensor, workspace: Tensor | None) -> Tensor:
    """A B, in the workspace if there is one. `matmul`, a composite, would look for an autograd graph here."""
    out = None if workspace is None else _place(workspace, (*A.shape[:-1], B.shape[-1]))
    return torch.mm(A, B, out=out) if A.ndim == 2 else torch.bmm(A, B, out=out)


def _solve(
    T: Tensor,
    X: Tensor,
    workspace: Tensor | None,
    *,
    left: bool,
    upper: bool,
    unit: bool = False,
    in_place: bool = True,
) -> Tensor:
    """T⁻¹ X or X T⁻¹: in the workspace if there is one, or in place where X is laid out as the solve wants it."""
    width, right_hand_sides = T.shape[-1], X.shape[-1 if left else -2]
    if plan.by_inverse(X.dtype, right_hand_sides, width, X.device.type, left=left, batched=X.ndim > 2):
        inverse = torch.eye(width, dtype=T.dtype, device=T.device).expand_as(T).contiguous()
        from_left = plan.solve_by_rows(T.dtype, width, left=True)
        solve_triangular(T, inverse, upper=upper, left=from_left, unitriangular=unit, out=inverse)
        return _product(inverse, X, workspace) if left else _product(X, inverse, workspace)
    by_rows = plan.solve_by_rows(X.dtype, right_hand_sides, left=left)
    if not (in_place and (X if by_rows else X.mT).is_contiguous()):
        X = _place(X.new_empty(X.numel()) if workspace is None else workspace, X.shape, by_rows=by_rows).copy_(X)
    return solve_triangular(T, X, upper=upper, left=left, unitriangular=unit, out=X)


def _vjp_sweep_(W: Tensor, B: Tensor, widths: plan.Widths) -> None:
    """W -> X = L⁻ᴴ (tril(Lᴴ W, -1) + triu(W Uᴴ)) U⁻ᴴ in place.

    With the strictly lower N = tril(Lᴴ W - triu(W) Uᴴ, -1) U⁻ᴴ that is L⁻ᴴ (N + triu(W)): 2 n³ flops, and the rounding
    errors of the formula in which the solve with U comes first. The sweep does so in one span J of the diagonal after
    the other, from the last. In the rows R after J, where X[R, R] is known by then, the solve with Uᴴ gives X itself,

        X[R, J] = (W[R, J] - X[R, R] U[J, R]ᴴ) U[J, J]⁻ᴴ.

    The narrower the spans, the closer to 4/3 n³, and the larger the errors: those of solves with L pass through those
    with U.
    """
    m, n = W.shape[-2:]
    k = min(m, n)
    if widths.block >= k:
        return _vjp_block_(W, B)
    in_place = widths.span > widths.block and (m == k or W.ndim == 2)
    widest = widths.block if in_place else widths.span
    workspace, workspace_2 = _workspace(W, widest), _workspace(W, widest)
    for J in reversed(blocks_of(0, k, widths.span)):
        R = slice(J.stop, m)
        blocks = blocks_of(J.start, J.stop, widths.block)

        # Below the diagonal of J, W becomes Lᴴ W. L's unit diagonal leaves W, so for each block row I
        #     W[I, :I] += tril(triu(L[I:, I]ᴴ, 1) W[I:, :I], -1)
        for I in blocks:
            downward, up_to_I, width = slice(I.start, m), slice(J.start, I.stop), I.stop - I.start
            LH = _adjoint_copy(part(B, downward, I), workspace)
            columns(LH, 0, width).triu_(1)
            product = _product(LH, part(W, downward, up_to_I), workspace_2)
            product[..., I.start - J.start :].tril_(-1)
            part(W, I, up_to_I).add_(product)

        # Below the diagonal of J, W becomes N, and in the rows R it becomes X. For each block column I, the last first,
        #     N[I:, I] = tril(W[I:, I] - W[I:, I+1:] U[I, I+1:]ᴴ - triu(W[I, I]) U[I, I]ᴴ, -1) U[I, I]⁻ᴴ
        for I in reversed(blocks):
            downward, after, width = slice(I.start, m), slice(I.stop, n), I.stop - I.start
            column, W11 = part(W, downward, I), part(W, I, I)
            N = _place(workspace_2, column.shape).copy_(column)
            W11.triu_()
            if I.stop < n:
                add_product_(N, part(W, downward, after), _adjoint(part(B, I, after), workspace), alpha=-1)
            U11H = part(B, I, I).mT.conj_physical()  # with Lᴴ above the diagonal, which adds nothing below it
            N11 = rows(N, 0, width)
            add_product_(N11, W11, U11H, alpha=-1)
            N11.tril_(-1)
            N = _solve(U11H, N, workspace, left=False, upper=False)
            rows(N, 0, width).add_(W11)
            column.copy_(N)

        # X[J, J:] = L[J, J]⁻ᴴ (W[J, J:] - L[R, J]ᴴ X[R, J:])
        right, L11 = slice(J.start, n), part(B, J, J)
        row = part(W, J, right)
        if in_place:
            if J.stop < m:
                add_product_(row, part(B, R, J).mT.conj_physical(), part(W, R, right), alpha=-1)
            row.conj_physical_()  # not L, whose conjugate would be a second matrix of memory
            solve_triangular(L11.mT, row, upper=True, unitriangular=True, out=row)
            row.conj_physical_()
        else:
            X = _place(workspace_2, row.shape).copy_(row)
            if J.stop < m:
                add_product_(X, _adjoint(part(B, R, J), workspace), part(W, R, right), alpha=-1)
            row.copy_(_solve(L11.mT.conj_physical(), X, workspace, left=True, upper=True, unit=True))


def _vjp_block_(W: Tensor, B: Tensor) -> None:
    """`_vjp_sweep_` in one block."""
    m, n = W.shape[-2:]
    k = min(m, n)
    BH = B.mT.conj_physical()
    BH1, BH11 = rows(BH, 0, k), part(BH, slice(0, k), slice(0, k))
    top, left = rows(W, 0, k), columns(W, 0, k)
    workspace = _workspace(W, k)
    # N = tril(W + triu(Lᴴ, 1) W - triu(W) Uᴴ, -1) U⁻ᴴ
    N = _place(workspace, left.shape, by_rows=plan.solve_by_rows(W.dtype, m, left=False)).copy_(left)
    add_product_(rows(N, 0, k), BH1.triu(1), left)
    W.triu_()
    add_product_(rows(N, 0, k), top, columns(BH, 0, k), alpha=-1)
    left += _solve(BH11, N.tril_(-1), None, left=False, upper=False)
    # X = L⁻ᴴ (N + triu(W)), whose rows from k on are done
    if m > k:
        add_product_(top, columns(BH1, k, m), rows(W, k, m), alpha=-1)
    top.copy_(_solve(BH11, top, workspace, left=True, upper=True, unit=True))


def _jvp_sweep_(W: Tensor, B: Tensor, widths: plan.Widths) -> None:
    """W -> L tril(M, -1) + triu(M) U, M = L⁻¹ W U⁻¹ in place: the factorization's tangent dB, left-looking.

    dB is final in the rows and columns 0 before the block J, of index 1; R, of index 2, are those after it.
    """
    m, n = W.shape[-2:]
    k = min(m, n)
    if widths.block >= k:
        return _jvp_block_(W, B)
    workspace, workspace_2 = _workspace(W, widths.block), _workspace(W, widths.block)
    for J in blocks_of(0, k, widths.block):
        before, R = slice(0, J.start), slice(J.stop, None)

        def subtract_before_(X: Tensor, I: slice, J: slice, before: slice = before) -> None:
            """X -= dL[I, 0] U[0, J] + L[I, 0] dU[0, J]"""
            if before.stop:
                add_product_(X, W[..., I, before], B[..., before, J], alpha=-1)
                add_product_(X, B[..., I, before], W[..., before, J], alpha=-1)

        # dB11 = jvp(W11 - dL10 U01 - L10 dU01)
        B11 = B[..., J, J]
        dB11 = W[..., J, J].clone(memory_format=torch.contiguous_format)
        subtract_before_(dB11, J, J)
        _jvp_block_(dB11, B11)
        W[..., J, J] = dB11
        if J.stop < max(m, n):
            W12, W21, B12, B21 = W[..., J, R], W[..., R, J], B[..., J, R], B[..., R, J]
            # dU12 = L11⁻¹ (W12 - dL11 U12 - dL10 U02 - L10 dU02)
            X12 = _place(workspace, W12.shape).copy_(W12)
            add_product_(X12, dB11.tril(-1), B12, alpha=-1)
            subtract_before_(X12, J, R)
            W12.copy_(_solve(B11, X12, workspace_2, left=True, upper=False, unit=True))
            # dL21 = (W21 - L21 dU11 - dL20 U01 - L20 dU01) U11⁻¹
            X21 = _place(workspace, W21.shape).copy_(W21)
            add_product_(X21, B21, dB11.triu(), alpha=-1)
            subtract_before_(X21, R, J)
            W21.copy_(_solve(B11, X21, workspace_2, left=False, upper=True))


def _jvp_block_(W: Tensor, B: Tensor) -> None:
    """`_jvp_sweep_` in one block: dL = L T and dU = triu(Z - T U) with Z = L⁻¹ W and T = tril(M, -1)."""
    m, n = W.shape[-2:]
    k = min(m, n)
    B1, B11 = rows(B, 0, k), part(B, slice(0, k), slice(0, k))
    top, left = rows(W, 0, k), columns(W, 0, k)
    workspace = _workspace(W, k)
    # Z, in the rows from k on what is left of W there
    top.copy_(_solve(B11, top, workspace, left=True, upper=False, unit=True))
    if m > k:
        add_product_(rows(W, k, m), rows(B, k, m), top, alpha=-1)
    # T = tril(Z U⁻¹, -1)
    T = _solve(B11, left, workspace, left=False, upper=True, in_place=False).tril_(-1)
    # dU = triu(Z - T U), dL = T + tril(L, -1) T
    add_product_(top, rows(T, 0, k), B1, alpha=-1)
    W.triu_()
    left += T
    add_product_(left, columns(B, 0, k).tril(-1), rows(T, 0, k))
