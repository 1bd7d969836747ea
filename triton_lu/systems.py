"""Solutions of systems whose matrix is factored, and their derivatives, in ATen operations."""

import math
from collections.abc import Sequence
from functools import cached_property

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from triton_lu import plan
from triton_lu.precision import full_precision, product
from triton_lu.results import empty_column_major, empty_solution


def lu_solve(LU: Tensor, pivots: Tensor, B: Tensor, left: bool, adjoint: bool) -> Tensor:
    """X with A X = B, or X A = B where not left, or Aᴴ in the place of A, laid out as PyTorch does it."""
    batch = LU.shape[:-2]
    if batch == B.shape[:-2] and (left or not B.is_complex()):  # that would be a lazy conjugate
        return _lu_solve(LU, pivots, B, left=left, adjoint=adjoint)
    batch = torch.broadcast_shapes(batch, B.shape[:-2])
    B = B.expand(*batch, *B.shape[-2:])
    X = empty_solution(B, left).copy_(B)
    columns = X if left else X.conj_physical_().mT  # Aᴴ Xᴴ = Bᴴ
    system = _System(LU, pivots, columns.shape)
    folded = system.fold(columns)
    _lu_solve(system.LU, system.pivots, folded, adjoint=adjoint is left, out=folded)
    if folded.data_ptr() != X.data_ptr():
        columns.copy_(system.unfold(folded))
    return X if left else X.conj_physical_()


def _lu_solve(
    LU: Tensor, pivots: Tensor, B: Tensor, left: bool = True, adjoint: bool = False, out: Tensor | None = None
) -> Tensor:
    """PyTorch's, which takes the stride of the last batch dimension for that of all matrices, also where there is one
    matrix along it, and any stride (2.14): here of batches that are contiguous."""
    if LU.ndim > 3:
        columns = LU.mT
        LU, pivots = (x.reshape(-1).view(x.shape) for x in (columns, pivots))
        LU = LU.mT
    return torch.linalg.lu_solve(LU, pivots, B, left=left, adjoint=adjoint, out=out)


def solve_gradient(LU: Tensor, pivots: Tensor, X: Tensor, W: Tensor, left: bool, adjoint: bool) -> Tensor:
    """The gradient with respect to A of the solution X, where W is that with respect to the right-hand sides.

    It is -W Xᴴ, summed over the batch along which A does not vary.
    """
    if not left:
        return solve_gradient(LU, pivots, _mH(X), _mH(W), True, not adjoint)
    if adjoint:
        X, W = W, X
    system = _System(LU, pivots, X.shape)
    A_grad = product(system.fold(W).neg(), _mH(system.fold(X)))
    return A_grad.view(LU.shape) if system.moved else A_grad  # a view takes 3 µs


def inverse(LU: Tensor, pivots: Tensor, adjoint: bool) -> Tensor:
    """A⁻¹, or A⁻ᴴ, column-major."""
    identity = torch.eye(LU.shape[-1], dtype=LU.dtype, device=LU.device)
    X = identity.mT if LU.ndim == 2 else empty_column_major(LU).copy_(identity)
    by_adjoint = not adjoint and plan.inverse_by_adjoint(LU.shape[-1], LU.device.type)
    _lu_solve(LU, pivots, X, adjoint=adjoint or by_adjoint, out=X)
    return empty_column_major(X).copy_(X.mT).conj_physical_() if by_adjoint else X


def lu_solve_vjp(
    LU: Tensor, pivots: Tensor, B: Tensor, X: Tensor, G: Tensor, left: bool, adjoint: bool
) -> tuple[Tensor, Tensor]:
    """The gradients of Re⟨G, X⟩, X = lu_solve(LU, pivots, B), with respect to LU and B. B has the shape of X.

    A⁻¹ is U⁻¹ L⁻¹ Pᵀ and A⁻ᴴ is P L⁻ᴴ U⁻ᴴ. The gradient of B is A⁻ᴴ G, or with adjoint A⁻¹ G: of B and G one is solved
    for with A, the other with Aᴴ. From the results after one factor and after both,

        Y = L⁻¹ Pᵀ (B or G),  X = U⁻¹ Y,  V = U⁻ᴴ (G or B),  W = L⁻ᴴ V,

    the gradient of LU is -tril(W Yᴴ, -1) - triu(V Xᴴ). (The product U X would have fewer digits than Y.)
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

    Batch dimensions along which LU does not vary are treated as columns of the right-hand sides, so that LU is not
    copied: `fold` makes them columns, `unfold` dimensions again.
    """

    def __init__(self, LU: Tensor, pivots: Tensor, shape: Sequence[int]) -> None:
        *batch, n, self.k = shape
        self.LU, self.pivots = LU, pivots
        before = len(batch) - (LU.ndim - 2)
        columns = [i for i, size in enumerate(batch) if i < before or LU.shape[i - before] != size]
        self.moved: list[int] = []
        if columns:
            own = [i for i in range(len(batch)) if i not in columns]
            self.moved = [*own, *columns]
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
    """Xᴴ column-major, without a lazy conjugation, which compiled code loses; vmap has no rule for `conj_physical`."""
    return X.conj().clone(memory_format=torch.contiguous_format).mT if X.is_complex() else X.mT
