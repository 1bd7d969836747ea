"""The maps of a differentiable LU in ATen operations: what runs on a CPU, and the oracle of the kernels.

Notation: A = P L U with A of m×n, k = min(m, n); B is L and U packed; J is a block of the diagonal, R the rows or
columns after it. `vjp` and `jvp` are sweeps over the diagonal blocks that work in place on one copy of their argument
and spend 4/3 n³ flops, twice those of the factorization, or 2 n³ where `vjp` would lose digits; nearly all of them are
matrix products. `curvature` and `mixed`, the maps of higher derivatives, consist of two products of triangles each.
"""

import math
from collections.abc import Callable, Sequence
from functools import cached_property, lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.linalg import solve_triangular

from triton_lu import numpy_backend, plan
from triton_lu.autograd_key import readable
from triton_lu.precision import full_precision
from triton_lu.results import empty_column_major, empty_factors, empty_row_major, empty_solution


def factor(A: Tensor, pivot: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A -> (LU, pivots, infos)."""
    with full_precision(A):
        if not pivot:
            return _factor_in_place(A)
        return _factor_one_by_one(A) if plan.one_by_one(A.shape, A.device.type) else tuple(torch.linalg.lu_factor_ex(A))


def _factor_in_place(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Without exchanges."""
    LU, pivots, infos = empty_factors(A)
    LU.copy_(A)
    if LU.numel():
        eliminate_(LU)
    k = pivots.shape[-1]
    step = torch.arange(1, k + 1, dtype=torch.int32, device=A.device)
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


def eliminate_(A: Tensor) -> None:
    """Gaussian elimination without pivoting, in place, recursive in the columns: [A₁ A₂] -> L\\U.

    Like LAPACK it does not divide by a pivot that is exactly zero and goes on.
    """
    m, n = A.shape[-2:]
    if m == 1:
        return
    if n == 1:
        pivot = A[..., :1, :]
        A[..., 1:, :] /= torch.where(pivot == 0, 1, pivot)
        return
    h = min(m, n) // 2
    eliminate_(A[..., :h])
    A[..., :h, h:] = solve_triangular(A[..., :h, :h], A[..., :h, h:], upper=False, unitriangular=True)
    A[..., h:, h:] -= A[..., h:, :h] @ A[..., :h, h:]
    eliminate_(A[..., h:, h:])


def permutation(pivots: Tensor, m: int) -> Tensor:
    """Row i of Pᵀ A is row permutation[i] of A."""
    return _exchange(pivots, m, inverse=False, stride=0).view(*pivots.shape[:-1], m)


def _permutation_of_batch(pivots: Tensor, m: int, *, inverse: bool = False) -> Tensor:
    """The same with the rows of the whole batch numbered through, as one vector. The inverse: row i of P X is row
    permutation[i] of X."""
    if pivots.is_cuda:  # where the operator is one kernel
        order = torch.ops.triton_lu.permutation(pivots, m)
        return _number(order.view(pivots.shape[:-1].numel(), m), inverse=inverse, stride=m)
    return _exchange(pivots, m, inverse=inverse, stride=m)


def _number(order: Tensor, *, inverse: bool, stride: int) -> Tensor:
    """The rows of the batch in that order or its inverse, numbered from i stride in matrix i."""
    batch, m = order.shape
    numbers = torch.arange(m, device=order.device) + stride * torch.arange(batch, device=order.device)[:, None]
    moved = torch.empty_like(order).scatter_(-1, order, numbers) if inverse else numbers.gather(-1, order)
    return moved.view(-1)


def _exchange(pivots: Tensor, m: int, *, inverse: bool, stride: int) -> Tensor:
    """The rows, numbered from i stride in matrix i, after the exchanges of the factorization or the same in reverse."""
    k = pivots.shape[-1]
    batch = pivots.shape[:-1].numel()
    form = plan.permutation(batch, m, k, pivots.device.type)
    pivots = pivots.reshape(batch, k)
    if form == "links":
        return _number(_follow_links(pivots, m), inverse=inverse, stride=stride)
    steps = range(k)[::-1] if inverse else range(k)
    if form == "by matrix":
        return _exchange_by_matrix(pivots, m, steps, stride)
    orders = _exchange_by_table if form == "by table" else _exchange_by_step
    order = orders(readable(pivots).numpy(), m, steps) + stride * np.arange(batch)[:, None]
    return torch.from_numpy(order.reshape(-1))


def _exchange_by_matrix(pivots: Tensor, m: int, steps: Sequence[int], stride: int) -> Tensor:
    """By their definition, one exchange after the other in Python."""
    numbers: list[int] = []
    for matrix, chosen in enumerate(pivots.tolist()):
        numbers += numpy_backend.exchange_([*range(matrix * stride, matrix * stride + m)], chosen, steps)
    return torch.from_numpy(np.array(numbers, dtype=np.int64))  # torch.tensor takes four times as long


def _exchange_by_step(pivots: np.ndarray, m: int, steps: Sequence[int]) -> np.ndarray:
    """The orders [batch, m] of many matrices, with the i-th exchange of all of them at once."""
    matrix = np.arange(len(pivots))
    order = np.arange(m)[:, None] + np.zeros_like(matrix)
    flat = order.reshape(-1)  # NumPy gathers from one dimension faster than from two
    chosen = len(matrix) * (pivots.T.astype(np.int64) - 1) + matrix
    for i in steps:
        found = flat[chosen[i]]
        flat[chosen[i]] = order[i]
        order[i] = found
    return order.T


def _exchange_by_table(pivots: np.ndarray, m: int, steps: Sequence[int]) -> np.ndarray:
    """The same, looked up by the pivots as digits of a number."""
    powers, orders = _all_orders(m, steps)
    return orders.take((pivots - 1) @ powers, axis=0)


@lru_cache(maxsize=32)
def _all_orders(m: int, steps: range) -> tuple[np.ndarray, np.ndarray]:
    """The places of digits from 0 to m - 1, and the order of the rows after the exchanges that each number names."""
    powers = m ** np.arange(len(steps))
    pivots = np.arange(m ** len(steps))[:, None] // powers % m + 1
    return powers, _exchange_by_step(pivots, m, steps)


def _follow_links(pivots: Tensor, m: int) -> Tensor:
    """The permutation with all exchanges at once: O(log k) passes, no chain of k dependent steps.

    Step i of the factorization exchanges the rows at positions i and pivots[i] - 1 >= i. A position is touched by the
    earlier steps that chose it, then by its own step: `earlier` links each step to the one that chose the same row
    before it, `latest` each position to the last step that chose it. The row found at position i by step i follows the
    links to their root, resolved for all i by pointer doubling.
    """
    k = pivots.shape[-1]
    chosen = pivots.long() - 1
    step = torch.arange(m, device=pivots.device)
    steps = step[:k].expand_as(chosen)
    in_order, order = chosen.sort(dim=-1, stable=True)
    link = torch.where(in_order[..., 1:] == in_order[..., :-1], order[..., :-1], -1)
    earlier = torch.full_like(chosen, -1).scatter_(-1, order[..., 1:], link)
    latest = chosen.new_full((*chosen.shape[:-1], m), -1).scatter_reduce_(-1, chosen, steps, "amax")
    latest[..., :k] = torch.where(chosen == steps, earlier, latest[..., :k])
    found = torch.where(latest < 0, step, latest)
    for _ in range((k - 1).bit_length()):
        found = found.gather(-1, found)
    final = torch.where(earlier < 0, chosen, found.gather(-1, earlier.clamp_(min=0)))
    return torch.cat([final, found[..., k:]], -1)


def _small_form(name: str, X: Tensor) -> str | None:
    m, n = X.shape[-2:]
    return plan.in_numpy(name, X.shape[:-2].numel(), m, n, X.dtype, X.device.type)


def _permuted(X: Tensor, pivots: Tensor, *, inverse: bool = False) -> Tensor:
    """Pᵀ X, or the inverse P X, contiguous."""
    m, n = X.shape[-2:]
    order = _permutation_of_batch(pivots, m, inverse=inverse)
    return torch.index_select(X.reshape(-1, n), 0, order).view(X.shape)


def _sweep_(X: Tensor, LU: Tensor, blocked_: Callable[[Tensor, Tensor, plan.Blocks], None]) -> None:
    """The sweep of X by blocks, in place."""
    m, n = X.shape[-2:]
    batch = X.shape[:-2].numel()
    shape = (m, n) if batch == 1 else (batch, m, n)
    with full_precision(X):
        blocked_(X.view(shape), LU.reshape(shape), plan.blocks(batch, m, n, X.dtype, X.device.type))


def vjp(LU: Tensor, pivots: Tensor, G: Tensor) -> Tensor:
    """G -> P X, X = L⁻ᴴ (tril(Lᴴ G, -1) + triu(G Uᴴ)) U⁻ᴴ."""
    if G.numel() == 0:
        return empty_row_major(G)
    form = _small_form("vjp", G)
    if form == "block":
        return numpy_backend.vjp(LU, pivots, G)
    X = empty_row_major(G)
    if form == "columns":
        numpy_backend.sweep(numpy_backend.vjp_columns, G, LU, X)
    else:
        _sweep_(X.copy_(G), LU, _vjp_sweep_)
    m, n = X.shape[-2:]
    if n <= plan.PANEL:
        return _permuted(X, pivots, inverse=True)
    origin = _permutation_of_batch(pivots, m, inverse=True)
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
    form = _small_form("jvp", E)
    if form == "block":
        return numpy_backend.jvp(LU, pivots, E)
    W = _permuted(E, pivots)
    if form == "columns":
        return numpy_backend.sweep(numpy_backend.jvp_columns, W, LU, empty_column_major(E))
    _sweep_(W, LU, _jvp_sweep_)
    return empty_column_major(E).copy_(W)  # a sweep by columns would take up to 1.6 times as long


def curvature(D: Tensor, pivots: Tensor, Y: Tensor) -> Tensor:
    """(D, Y) -> -tril(X dUᴴ, -1) - triu(dLᴴ X), X = Pᵀ Y, where dL = tril(D, -1) and dU = triu(D)."""
    if Y.numel() == 0:
        return empty_row_major(Y)
    form = _small_form("curvature", Y)
    if form == "block":
        return numpy_backend.curvature(D, pivots, Y)
    X = _permuted(Y, pivots)
    if form == "columns":
        return numpy_backend.sweep(numpy_backend.curvature_columns, X, D, empty_row_major(Y))
    m, n = Y.shape[-2:]
    k, batch = min(m, n), Y.shape[:-2].numel()
    X = X.view((m, n) if batch == 1 else (batch, m, n))
    dUH = D.reshape(X.shape).mT.conj_physical().neg()
    dLH = dUH.triu(1)
    dUH.tril_()
    K = torch.empty_like(X)
    with full_precision(Y):
        for J in _blocks(0, k, plan.triangle_panel(k, Y.device.type)):  # the sums begin at the diagonal
            below, right, width = slice(J.start, m), slice(J.start, n), J.stop - J.start
            S = _part(X, below, right)
            upper = _product(_part(dLH, J, below), S, None).triu_()
            lower = _product(S, _part(dUH, right, J), None).tril_(-1)
            rows(lower, 0, width).add_(columns(upper, 0, width))
            _part(K, below, J).copy_(lower)
            if J.stop < n:
                _part(K, J, slice(J.stop, n)).copy_(columns(upper, width, n - J.start))
    return K.view(Y.shape)


def mixed(D: Tensor, pivots: Tensor, dB: Tensor) -> Tensor:
    """(D, δB) -> -P (dL δU + δL dU), where dL = tril(D, -1) and dU = triu(D), and likewise δL and δU."""
    if dB.numel() == 0:
        return empty_row_major(dB)
    m, n = dB.shape[-2:]
    k = min(m, n)
    (dL, dU), (other_dL, other_dU) = (
        (columns(X, 0, k).tril(-1), rows(X, 0, k).triu()) for X in (D.reshape(-1, m, n), dB.reshape(-1, m, n))
    )
    with full_precision(D):
        change = torch.bmm(dL.neg_(), other_dU).baddbmm_(other_dL, dU, alpha=-1)
    return _permuted(change.view(dB.shape), pivots, inverse=True)


def lu_solve(LU: Tensor, pivots: Tensor, B: Tensor, left: bool, adjoint: bool) -> Tensor:
    """X with A X = B, or X A = B where not left, or Aᴴ in the place of A, laid out as PyTorch does it."""
    batch = LU.shape[:-2]
    if batch == B.shape[:-2] and (left or not B.is_complex()):  # that would be a lazy conjugate
        return torch.linalg.lu_solve(LU, pivots, B, left=left, adjoint=adjoint)
    batch = torch.broadcast_shapes(batch, B.shape[:-2])
    B = B.expand(*batch, *B.shape[-2:])
    X = empty_solution(B, left).copy_(B)
    columns = X if left else X.conj_physical_().mT  # Aᴴ Xᴴ = Bᴴ
    system = _System(LU, pivots, columns.shape)
    folded = system.fold(columns)
    torch.linalg.lu_solve(system.LU, system.pivots, folded, adjoint=adjoint is left, out=folded)
    if folded.data_ptr() != X.data_ptr():
        columns.copy_(system.unfold(folded))
    return X if left else X.conj_physical_()


def lu_solve_vjp(
    LU: Tensor, pivots: Tensor, B: Tensor, X: Tensor, G: Tensor, left: bool, adjoint: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of Re⟨G, X⟩, X = lu_solve(LU, pivots, B), with respect to LU and B. B has the shape of X.

    A⁻¹ is U⁻¹ L⁻¹ Pᵀ and A⁻ᴴ is P L⁻ᴴ U⁻ᴴ. That of B is A⁻ᴴ G, or with adjoint A⁻¹ G: one of B and G is the right-hand
    side of A, the other that of Aᴴ, and from the solutions half-way and at the end,

        Y = L⁻¹ Pᵀ (B or G),  X = U⁻¹ Y,  V = U⁻ᴴ (G or B),  W = L⁻ᴴ V,

    that of LU is -tril(W Yᴴ, -1) - triu(V Xᴴ). (The product U X would have fewer digits than Y.)
    """
    if not left:
        LU_grad, B_grad = lu_solve_vjp(LU, pivots, _mH(B), _mH(X), _mH(G), True, not adjoint)
        return LU_grad, B_grad.mH.clone(memory_format=torch.contiguous_format)
    system = _System(LU, pivots, X.shape)
    B, X, G = map(system.fold, (B, X, G))
    with full_precision(X):
        Y = system.solve_lower(system.permute(G if adjoint else B))
        V = system.solve_upper_adjoint(B if adjoint else G)
        if adjoint:
            W = system.permute(X)
            X = B_grad = system.solve_upper(Y)
        else:
            W = system.solve_lower_adjoint(V)
            B_grad = system.permute_back(W)
        LU_grad = (W @ _mH(Y)).tril(-1) + (V @ _mH(X)).triu()
    return LU_grad.view(LU.shape).neg(), system.unfold(B_grad).clone()


def lu_solve_jvp(LU: Tensor, pivots: Tensor, B: Tensor, X: Tensor, dLU: Tensor, left: bool, adjoint: bool) -> Tensor:
    """The change of X = lu_solve(LU, pivots, B) with LU along dLU = dL + dU. B has the shape of X.

    It is -U⁻¹ (L⁻¹ dL Y + dU X), Y = L⁻¹ Pᵀ B, or with adjoint -P L⁻ᴴ (U⁻ᴴ dUᴴ Z + dLᴴ Pᵀ X), Z = U⁻ᴴ B.
    """
    if not left:
        return lu_solve_jvp(LU, pivots, _mH(B), _mH(X), dLU, True, not adjoint).mH.resolve_conj()
    system = _System(LU, pivots, X.shape)
    B, X = map(system.fold, (B, X))
    dLU = dLU.reshape(system.LU.shape)
    dL, dU = dLU.tril(-1), dLU.triu()
    with full_precision(X):
        if adjoint:
            dZ = system.solve_upper_adjoint(_mH(dU) @ system.solve_upper_adjoint(B))
            change = system.permute_back(system.solve_lower_adjoint(dZ + _mH(dL) @ system.permute(X)))
        else:
            dY = system.solve_lower(dL @ system.solve_lower(system.permute(B)))
            change = system.solve_upper(dY + dU @ X)
    return system.unfold(change).neg()


class _System:
    """The factors of a system, and solves with one of them. All operations can be differentiated.

    Batch dimensions along which LU does not vary are columns of the right-hand sides: `fold` makes them such, so that
    there are no copies of LU.
    """

    def __init__(self, LU: Tensor, pivots: Tensor, shape: Sequence[int]) -> None:
        *batch, n, self.k = shape
        before = len(batch) - (LU.ndim - 2)
        columns = [i for i, size in enumerate(batch) if i < before or LU.shape[i - before] != size]
        own = [i for i in range(len(batch)) if i not in columns]
        self.LU, self.pivots = LU, pivots
        self.moved = [*own, *columns] if columns else []
        if columns:
            self.own, self.columns = ([batch[i] for i in places] for places in (own, columns))
            self.LU, self.pivots = LU.reshape(*self.own, n, n), pivots.reshape(*self.own, n)

    def fold(self, X: Tensor) -> Tensor:
        """[*batch, n, k] -> [..., n, columns], with the batch that LU has."""
        if not self.moved:
            return X
        rows = X.mT.permute(*self.moved, -2, -1)
        return rows.reshape(*self.own, math.prod(self.columns) * self.k, rows.shape[-1]).mT

    def unfold(self, X: Tensor) -> Tensor:
        """The inverse of `fold`, column-major."""
        if not self.moved:
            return X
        rows = X.mT.reshape(*self.own, *self.columns, self.k, X.shape[-2])
        rows = rows.permute(*map(self.moved.index, range(len(self.moved))), -2, -1)
        return rows.reshape(-1).view(rows.shape).mT

    def solve_lower(self, B: Tensor) -> Tensor:
        return solve_triangular(self.LU, B, upper=False, unitriangular=True)

    def solve_upper(self, B: Tensor) -> Tensor:
        return solve_triangular(self.LU, B, upper=True)

    def solve_lower_adjoint(self, B: Tensor) -> Tensor:
        return solve_triangular(self.LUH, B, upper=True, unitriangular=True)

    def solve_upper_adjoint(self, B: Tensor) -> Tensor:
        return solve_triangular(self.LUH, B, upper=False)

    @cached_property
    def LUH(self) -> Tensor:
        return _mH(self.LU)

    @cached_property
    def order(self) -> Tensor:
        return torch.ops.triton_lu.permutation(self.pivots, self.LU.shape[-1])

    def permute(self, B: Tensor) -> Tensor:
        """Pᵀ B, column-major."""
        rows = B.mT
        return rows.gather(-1, self.order.unsqueeze(-2).expand_as(rows)).mT

    def permute_back(self, W: Tensor) -> Tensor:
        """P W, column-major."""
        rows = W.mT
        return rows.scatter(-1, self.order.unsqueeze(-2).expand_as(rows), rows).mT


def _mH(X: Tensor) -> Tensor:
    """Xᴴ without a lazy conjugation, which compiled code forgets."""
    return X.conj().clone(memory_format=torch.contiguous_format).mT if X.is_complex() else X.mT


def rows(Y: Tensor, start: int, stop: int) -> Tensor:
    """Y[..., start:stop, :]; Y itself, without the cost of a view, where that is all of it."""
    return Y if stop - start == Y.shape[-2] else Y.narrow(-2, start, stop - start)


def columns(Y: Tensor, start: int, stop: int) -> Tensor:
    """Y[..., start:stop], likewise."""
    return Y if stop - start == Y.shape[-1] else Y.narrow(-1, start, stop - start)


def _part(X: Tensor, I: slice, J: slice) -> Tensor:
    """X[..., I, J], likewise."""
    return columns(rows(X, I.start, I.stop), J.start, J.stop)


def _blocks(start: int, stop: int, width: int) -> list[slice]:
    """The diagonal from start to stop in blocks of that width."""
    return [slice(i, min(i + width, stop)) for i in range(start, stop, width)]


def _workspace(W: Tensor, width: int) -> Tensor:
    """Room for a block row, or a block column, of W.

    Fresh memory for every temporary would cost about as much as the products (page faults).
    """
    *batch, m, n = W.shape
    return W.new_empty(math.prod(batch) * min(width, m, n) * max(m, n))


def _place(room: Tensor, shape: Sequence[int], *, by_rows: bool = True) -> Tensor:
    """A matrix or a batch of them in the workspace, row-major or column-major."""
    m, n = shape[-2:]
    return room.as_strided(shape, ((m * n, n, 1) if by_rows else (m * n, 1, m))[-len(shape) :])


def _adjoint(X: Tensor, room: Tensor) -> Tensor:
    """Xᴴ without a lazy conjugation, which PyTorch forgets inside an operator at the first call of a compiled graph."""
    return torch.conj_physical(X.mT, out=_place(room, X.mT.shape)) if X.is_complex() else X.mT


def _product(A: Tensor, B: Tensor, room: Tensor | None) -> Tensor:
    """A B, in the workspace if there is one. `matmul`, a composite, would look for an autograd graph here."""
    out = None if room is None else _place(room, (*A.shape[:-1], B.shape[-1]))
    return torch.mm(A, B, out=out) if A.ndim == 2 else torch.bmm(A, B, out=out)


def _add_product_(C: Tensor, A: Tensor, B: Tensor, *, alpha: int = 1) -> None:
    """C += alpha A B. ATen would multiply matrix by matrix where a batch C is not contiguous."""
    if C.ndim == 2:
        C.addmm_(A, B, alpha=alpha)
    elif C.is_contiguous():
        C.baddbmm_(A, B, alpha=alpha)
    elif C.mT.is_contiguous():
        C.mT.baddbmm_(B.mT, A.mT, alpha=alpha)
    else:
        C.add_(torch.bmm(A, B), alpha=alpha)


def _solve(
    T: Tensor, X: Tensor, room: Tensor | None, *, left: bool, upper: bool, unit: bool = False, in_place: bool = True
) -> Tensor:
    """T⁻¹ X or X T⁻¹: in the workspace if there is one, or in place where X is laid out as the solve wants it."""
    width, right_hand_sides = T.shape[-1], X.shape[-1 if left else -2]
    if plan.by_inverse(X.dtype, right_hand_sides, width, X.device.type, left=left, batched=X.ndim > 2):
        inverse = torch.eye(width, dtype=T.dtype, device=T.device).expand_as(T).contiguous()
        from_left = plan.solve_by_rows(T.dtype, width, left=True)
        solve_triangular(T, inverse, upper=upper, left=from_left, unitriangular=unit, out=inverse)
        return _product(inverse, X, room) if left else _product(X, inverse, room)
    by_rows = plan.solve_by_rows(X.dtype, right_hand_sides, left=left)
    if not (in_place and (X if by_rows else X.mT).is_contiguous()):
        X = _place(X.new_empty(X.numel()) if room is None else room, X.shape, by_rows=by_rows).copy_(X)
    return solve_triangular(T, X, upper=upper, left=left, unitriangular=unit, out=X)


def _vjp_sweep_(W: Tensor, B: Tensor, sweep: plan.Blocks) -> None:
    """W -> X = L⁻ᴴ (tril(Lᴴ W, -1) + triu(W Uᴴ)) U⁻ᴴ in place.

    With the strictly lower N = tril(Lᴴ W - triu(W) Uᴴ, -1) U⁻ᴴ that is L⁻ᴴ (N + triu(W)): 2 n³ flops, and the rounding
    errors of the formula solved with U first. The sweep does so for one span J of the diagonal after the other, the
    last first, when X is known in the rows R after J: there Uᴴ is solved with for X itself,

        X[R, J] = (W[R, J] - X[R, R] U[J, R]ᴴ) U[J, J]⁻ᴴ.

    The narrower the spans, the closer to 4/3 n³, and the larger the errors: those of L's solve pass through U's.
    """
    m, n = W.shape[-2:]
    k = min(m, n)
    if sweep.block >= k:
        return _vjp_block_(W, B)
    in_place = sweep.span > sweep.block and (m == k or W.ndim == 2)
    widest = sweep.block if in_place else sweep.span
    room = _workspace(W, widest), _workspace(W, widest)
    for J in reversed(_blocks(0, k, sweep.span)):
        R = slice(J.stop, m)
        blocks = _blocks(J.start, J.stop, sweep.block)
        for I in blocks:  # W is below the diagonal what Lᴴ W is there
            left, here = slice(J.start, I.stop), slice(I.start, m)
            row, panel = _part(W, I, left), _part(B, here, I).mT
            LH = torch.conj_physical(panel, out=_place(room[0], panel.shape))
            columns(LH, 0, I.stop - I.start).triu_(1)
            lower = _product(LH, _part(W, here, left), room[1])
            lower[..., I.start - J.start :].tril_(-1)
            row += lower
        for I in reversed(blocks):  # W is below the diagonal N, and X in the rows R
            here, after, width = slice(I.start, m), slice(I.stop, n), I.stop - I.start
            column = _part(W, here, I)
            N = _place(room[1], column.shape).copy_(column)
            W11 = _part(W, I, I).triu_()
            if I.stop < n:
                _add_product_(N, _part(W, here, after), _adjoint(_part(B, I, after), room[0]), alpha=-1)
            U11H = _part(B, I, I).mT.conj_physical()  # with Lᴴ above the diagonal, which adds nothing below it
            _add_product_(rows(N, 0, width), W11, U11H, alpha=-1)
            rows(N, 0, width).tril_(-1)
            N = _solve(U11H, N, room[0], left=False, upper=False)
            rows(N, 0, width).add_(W11)
            column.copy_(N)
        right, L11 = slice(J.start, n), _part(B, J, J)
        row = _part(W, J, right)
        if in_place:
            if J.stop < m:
                _add_product_(row, _part(B, R, J).mT.conj_physical(), _part(W, R, right), alpha=-1)
            row.conj_physical_()  # not L, whose conjugate would be a second matrix of memory
            solve_triangular(L11.mT, row, upper=True, unitriangular=True, out=row)
            row.conj_physical_()
        else:
            X = _place(room[1], row.shape).copy_(row)
            if J.stop < m:
                _add_product_(X, _adjoint(_part(B, R, J), room[0]), _part(W, R, right), alpha=-1)
            row.copy_(_solve(L11.mT.conj_physical(), X, room[0], left=True, upper=True, unit=True))


def _vjp_block_(W: Tensor, B: Tensor) -> None:
    """`_vjp_sweep_` in one block."""
    m, n = W.shape[-2:]
    k = min(m, n)
    BH = B.mT.conj_physical()
    BH1, BH11 = rows(BH, 0, k), _part(BH, slice(0, k), slice(0, k))
    top, left = rows(W, 0, k), columns(W, 0, k)
    room = _workspace(W, k)
    N = _place(room, left.shape, by_rows=plan.solve_by_rows(W.dtype, m, left=False)).copy_(left)
    _add_product_(rows(N, 0, k), BH1.triu(1), left)
    W.triu_()
    _add_product_(rows(N, 0, k), top, columns(BH, 0, k), alpha=-1)
    left += _solve(BH11, N.tril_(-1), None, left=False, upper=False)
    if m > k:
        _add_product_(top, columns(BH1, k, m), rows(W, k, m), alpha=-1)
    top.copy_(_solve(BH11, top, room, left=True, upper=True, unit=True))


def _jvp_sweep_(W: Tensor, B: Tensor, sweep: plan.Blocks) -> None:
    """W -> L tril(M, -1) + triu(M) U, M = L⁻¹ W U⁻¹ in place: the factorization's tangent, left-looking.

    With dL and dU final in the rows and columns 0 before J, dU₁₂ = L₁₁⁻¹ (W₁₂ - dL₁₁ U₁₂ - dL₁₀ U₀₂ - L₁₀ dU₀₂).
    """
    m, n = W.shape[-2:]
    k = min(m, n)
    if sweep.block >= k:
        return _jvp_block_(W, B)
    room = _workspace(W, sweep.block), _workspace(W, sweep.block)
    for J in _blocks(0, k, sweep.block):
        before, R = slice(0, J.start), slice(J.stop, None)

        def subtract_before_(X: Tensor, I: slice, J: slice, before: slice = before) -> None:
            if before.stop:
                _add_product_(X, W[..., I, before], B[..., before, J], alpha=-1)
                _add_product_(X, B[..., I, before], W[..., before, J], alpha=-1)

        B11 = B[..., J, J]
        dB11 = W[..., J, J].clone(memory_format=torch.contiguous_format)
        subtract_before_(dB11, J, J)
        _jvp_block_(dB11, B11)
        W[..., J, J] = dB11
        if J.stop < max(m, n):
            W12, W21, B12, B21 = W[..., J, R], W[..., R, J], B[..., J, R], B[..., R, J]
            X12 = _place(room[0], W12.shape).copy_(W12)
            _add_product_(X12, dB11.tril(-1), B12, alpha=-1)
            subtract_before_(X12, J, R)
            W12.copy_(_solve(B11, X12, room[1], left=True, upper=False, unit=True))
            X21 = _place(room[0], W21.shape).copy_(W21)
            _add_product_(X21, B21, dB11.triu(), alpha=-1)
            subtract_before_(X21, R, J)
            W21.copy_(_solve(B11, X21, room[1], left=False, upper=True))


def _jvp_block_(W: Tensor, B: Tensor) -> None:
    """`_jvp_sweep_` in one block: dL = L T and dU = triu(Z - T U) with Z = L⁻¹ W and T = tril(M, -1)."""
    m, n = W.shape[-2:]
    k = min(m, n)
    B1, B11 = rows(B, 0, k), _part(B, slice(0, k), slice(0, k))
    top, left = rows(W, 0, k), columns(W, 0, k)
    room = _workspace(W, k)
    top.copy_(_solve(B11, top, room, left=True, upper=False, unit=True))
    if m > k:
        _add_product_(rows(W, k, m), rows(B, k, m), top, alpha=-1)
    T = _solve(B11, left, room, left=False, upper=True, in_place=False).tril_(-1)
    _add_product_(top, rows(T, 0, k), B1, alpha=-1)
    W.triu_()
    left += T
    _add_product_(left, columns(B, 0, k).tril(-1), rows(T, 0, k))
