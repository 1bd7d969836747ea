"""The operators `torch.ops.triton_lu.*`: one class each, with schema, shapes of the results and derivative.

Layouts: LU is column-major as LAPACK leaves it, and so is its tangent, which forward AD would copy otherwise; a
solution is laid out as PyTorch's; all other matrices are row-major.

With A = P L U, B = L and U packed, and P constant, four maps are closed under differentiation (derived in
docs/mathematics.md):

    vjp: G ↦ Y = P X,   X = L⁻ᴴ (tril(Lᴴ G, -1) + triu(G Uᴴ)) U⁻ᴴ
    jvp: E ↦ D,         D = dL and dU packed, the first-order change of B with E: Pᵀ E = dL U + L dU
    mixed(D, δB)      = -P (dL δU + δL dU)
    curvature(D, Y)   = -tril(X dUᴴ, -1) - triu(dLᴴ X),   X = Pᵀ Y

`vjp` and `jvp` are linear in their argument and each other's adjoints; with B changing by δB,

    δ jvp(E) = jvp(mixed(D, δB)),   δ vjp(G) = vjp(curvature(δB, Y)),

and the gradient of Re⟨D, G⟩ = Re⟨E, Y⟩ with respect to B is curvature(D, Y). `mixed` and `curvature` are linear in both
of their arguments, and each other's derivatives.

A solution X = lu_solve(LU, pivots, B) is linear in its right-hand sides B, with itself for derivatives. Its gradients
with respect to LU and B are one operator, `lu_solve_vjp`, which is differentiated as the triangular solves and products
that it consists of.

What torch.linalg computes by one factorization goes by another rule: LU and pivots are constants, known for the sake of
time, and derivatives are with respect to A itself,

    d log det A = tr(A⁻¹ dA),   d det A = tr(adj(A) dA),   d A⁻¹ = -A⁻¹ dA A⁻¹,   d X = solve(dB - dA X),

where the inverse, the adjugate and the solution are operators on A, with LU and pivots beside it. `solve_ex` and
`inv_ex` factorize too.
"""

from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from triton_lu import plan, systems
from triton_lu.autograd_key import primal, tangent_mode, without_autocast
from triton_lu.precision import product
from triton_lu.registration import Operator, on_triton, register
from triton_lu.results import empty_column_major, empty_factors, empty_row_major, empty_solution


class Factor(Operator):
    """A -> (LU, pivots, infos): d LU = jvp(dA)."""

    schema = "factor(Tensor A, bool pivot=True) -> (Tensor LU, Tensor pivots, Tensor infos)"
    matrix = 0

    @staticmethod
    def shapes(A: Tensor, pivot: bool = True) -> tuple[Tensor, Tensor, Tensor]:
        return empty_factors(A)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        LU, pivots, infos = output
        ctx.mark_non_differentiable(pivots, infos)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(LU, pivots)
        ctx.save_for_forward(LU, pivots)

    @staticmethod
    def backward(ctx: Any, G: Tensor | None, *_: None) -> tuple[Any, ...]:
        if G is None:
            return None, None, None
        LU, pivots = ctx.saved_tensors
        with without_autocast(G):
            return None, vjp(LU, pivots, G), None

    @staticmethod
    def jvp(ctx: Any, _: None, dA: Tensor, *__: None) -> tuple[Any, ...]:
        LU, pivots = ctx.saved_tensors
        with tangent_mode():
            return jvp(primal(LU), pivots, dA), None, None


class Vjp(Operator):
    """(LU, pivots, G) -> Y = vjp(G)."""

    schema = "vjp(Tensor LU, Tensor pivots, Tensor G) -> Tensor"
    kernel_or_error = True

    @staticmethod
    def shapes(LU: Tensor, pivots: Tensor, G: Tensor) -> Tensor:
        return empty_row_major(G)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, LU, pivots, _ = inputs
        ctx.save_for_backward(LU, pivots, output)
        ctx.save_for_forward(LU, pivots, output)

    @staticmethod
    def backward(ctx: Any, V: Tensor) -> tuple[Any, ...]:
        LU, pivots, Y = ctx.saved_tensors
        with without_autocast(V):
            D = jvp(LU, pivots, V)
            return None, curvature(D, pivots, Y) if ctx.needs_input_grad[1] else None, None, D

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dG: Tensor | None) -> Tensor:
        LU, pivots, Y = ctx.saved_tensors
        with tangent_mode():
            change = None if dLU is None else curvature(dLU, pivots, primal(Y))
            return vjp(primal(LU), pivots, _total(change, dG))


class Jvp(Operator):
    """(LU, pivots, E) -> D = jvp(E)."""

    schema = "jvp(Tensor LU, Tensor pivots, Tensor E) -> Tensor"
    kernel_or_error = True

    @staticmethod
    def shapes(LU: Tensor, pivots: Tensor, E: Tensor) -> Tensor:
        return empty_column_major(E)

    setup_context = staticmethod(Vjp.setup_context)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Any, ...]:
        LU, pivots, D = ctx.saved_tensors
        with without_autocast(G):
            Y = vjp(LU, pivots, G)
            return None, curvature(D, pivots, Y) if ctx.needs_input_grad[1] else None, None, Y

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dE: Tensor | None) -> Tensor:
        LU, pivots, D = ctx.saved_tensors
        with tangent_mode():
            change = None if dLU is None else mixed(primal(D), pivots, dLU)
            return jvp(primal(LU), pivots, _total(change, dE))


def _total(*terms: Tensor | None) -> Tensor:
    return reduce(add, (term for term in terms if term is not None))


class Curvature(Operator):
    """(D, pivots, Y) -> curvature(D, Y)."""

    schema = "curvature(Tensor D, Tensor pivots, Tensor Y) -> Tensor"

    @staticmethod
    def shapes(D: Tensor, pivots: Tensor, Y: Tensor) -> Tensor:
        return empty_row_major(Y)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, V: Tensor) -> tuple[Any, ...]:
        D, pivots, Y = ctx.saved_tensors
        _, needs_D, _, needs_Y = ctx.needs_input_grad
        with without_autocast(V):
            D_grad = curvature(V, pivots, Y) if needs_D else None
            return None, D_grad, None, mixed(D, pivots, V) if needs_Y else None

    @staticmethod
    def jvp(ctx: Any, _: None, dD: Tensor | None, __: None, dY: Tensor | None) -> Tensor:
        D, pivots, Y = ctx.saved_tensors
        with tangent_mode():
            along_D = None if dD is None else curvature(dD, pivots, primal(Y))
            return _total(along_D, None if dY is None else curvature(primal(D), pivots, dY))


class Mixed(Operator):
    """(D, pivots, dB) -> mixed(D, dB)."""

    schema = "mixed(Tensor D, Tensor pivots, Tensor dB) -> Tensor"

    @staticmethod
    def shapes(D: Tensor, pivots: Tensor, dB: Tensor) -> Tensor:
        return empty_row_major(dB)

    setup_context = staticmethod(Curvature.setup_context)

    @staticmethod
    def backward(ctx: Any, V: Tensor) -> tuple[Any, ...]:
        D, pivots, dB = ctx.saved_tensors
        _, needs_D, _, needs_dB = ctx.needs_input_grad
        with without_autocast(V):
            D_grad = curvature(dB, pivots, V) if needs_D else None
            return None, D_grad, None, curvature(D, pivots, V) if needs_dB else None

    @staticmethod
    def jvp(ctx: Any, _: None, dD: Tensor | None, __: None, ddB: Tensor | None) -> Tensor:
        D, pivots, dB = ctx.saved_tensors
        with tangent_mode():
            along_D = None if dD is None else mixed(dD, pivots, primal(dB))
            return _total(along_D, None if ddB is None else mixed(primal(D), pivots, ddB))


class LuSolve(Operator):
    """(LU, pivots, B) -> X with A X = B or the like: d X = lu_solve(dB) + lu_solve_jvp(dLU)."""

    schema = "lu_solve(Tensor LU, Tensor pivots, Tensor B, bool left, bool adjoint) -> Tensor"
    matrix = 2

    @staticmethod
    def shapes(LU: Tensor, pivots: Tensor, B: Tensor, left: bool, adjoint: bool) -> Tensor:
        batch = torch.broadcast_shapes(LU.shape[:-2], B.shape[:-2])
        return empty_solution(B.expand(*batch, *B.shape[-2:]), left)

    @classmethod
    def batching(cls, op: torch._ops.OpOverload, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        """Only what has the dimension gets it in front: LU and B are broadcast, without a copy of LU."""
        return _solved_batch(op, info, in_dims, args, all_batched=False), 0

    @staticmethod
    def kept(*args: Any) -> tuple[Any, ...]:
        """With a B of their own: PyTorch needs none in its derivative, so right-hand sides may share a buffer."""
        LU, pivots, B, *equation = args
        return LU, pivots, B.clone() if LU.requires_grad else B, *equation

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, LU, pivots, B, *ctx.equation = inputs
        ctx.shape = B.shape
        saved = (LU, pivots, B, output) if LU.requires_grad else (LU, pivots)
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(LU, pivots, B, output)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Any, ...]:
        LU, pivots, *solution = ctx.saved_tensors
        left, adjoint = ctx.equation
        with without_autocast(G):
            if ctx.needs_input_grad[1]:
                B, X = solution
                LU_grad, B_grad = lu_solve_vjp(LU, pivots, B.expand_as(X), X, G, left, adjoint)
            else:
                LU_grad, B_grad = None, lu_solve(LU, pivots, G, left, not adjoint)
            return None, LU_grad, None, B_grad.sum_to_size(ctx.shape), None, None

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dB: Tensor | None, *___: None) -> Tensor:
        LU, pivots, B, X = ctx.saved_tensors
        with tangent_mode():
            LU, X = primal(LU), primal(X)
            along_B = None if dB is None else lu_solve(LU, pivots, dB, *ctx.equation)
            if dLU is None:
                return _total(along_B)
            along_LU = systems.lu_solve_jvp(LU, pivots, primal(B).expand_as(X), X, dLU, *ctx.equation)
            return _total(along_B, along_LU)


class LuSolveVjp(Operator):
    """(LU, pivots, B, X, G) -> the gradients of Re⟨G, X⟩, X = lu_solve(LU, pivots, B), with respect to LU and B."""

    schema = (
        "lu_solve_vjp(Tensor LU, Tensor pivots, Tensor B, Tensor X, Tensor G, bool left, bool adjoint)"
        " -> (Tensor, Tensor)"
    )
    is_composite = True
    matrix = 0

    @staticmethod
    def shapes(
        LU: Tensor, pivots: Tensor, B: Tensor, X: Tensor, G: Tensor, left: bool, adjoint: bool
    ) -> tuple[Tensor, Tensor]:
        return empty_row_major(LU), empty_solution(X, left)

    @classmethod
    def batching(cls, op: torch._ops.OpOverload, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        return _solved_batch(op, info, in_dims, args, all_batched=True), (0, 0)


class Slogdet(Operator):
    """A -> (sign, log|det A|, LU, pivots), LU and pivots without a derivative."""

    schema = "slogdet(Tensor A) -> (Tensor sign, Tensor logabsdet, Tensor LU, Tensor pivots)"
    matrix = 0

    @staticmethod
    def shapes(A: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        LU, pivots, _ = empty_factors(A)
        batch = A.shape[:-2]
        return A.new_empty(batch), A.new_empty(batch, dtype=A.dtype.to_real()), LU, pivots

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        sign, _, LU, pivots = output
        ctx.mark_non_differentiable(LU, pivots)
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(inputs[1], LU, pivots, sign)
        ctx.save_for_forward(inputs[1], LU, pivots, sign)

    @staticmethod
    def backward(ctx: Any, of_sign: Tensor | None, of_log: Tensor | None, *_: None) -> tuple[Any, ...]:
        A, LU, pivots, sign = ctx.saved_tensors
        G = of_log
        if A.is_complex() and of_sign is not None:  # d sign = i Im(tr(A⁻¹ dA)) sign
            phase = (of_sign.conj() * sign).imag
            G = torch.complex(torch.zeros_like(phase) if G is None else G, -phase)
        if G is None:
            return None, None
        with without_autocast(G):
            return None, _each(G) * _adjoint(inverse, A, LU, pivots)

    @staticmethod
    def jvp(ctx: Any, _: None, dA: Tensor) -> tuple[Any, ...]:
        A, LU, pivots, sign = ctx.saved_tensors
        with tangent_mode():
            change = _trace(inverse(primal(A), LU, pivots), dA)
            sign = primal(sign)
            if not A.is_complex():
                return torch.zeros_like(sign), change, None, None
            phase = torch.complex(torch.zeros_like(change.imag), change.imag)
            return phase * sign, change.real, None, None


class Det(Operator):
    """A -> (det A, LU, pivots), LU and pivots without a derivative."""

    schema = "det(Tensor A) -> (Tensor result, Tensor LU, Tensor pivots)"
    matrix = 0

    @staticmethod
    def shapes(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        LU, pivots, _ = empty_factors(A)
        return A.new_empty(A.shape[:-2]), LU, pivots

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, LU, pivots = output
        ctx.mark_non_differentiable(LU, pivots)
        ctx.save_for_backward(inputs[1], LU, pivots)
        ctx.save_for_forward(inputs[1], LU, pivots)

    @staticmethod
    def backward(ctx: Any, G: Tensor, *_: None) -> tuple[Any, ...]:
        with without_autocast(G):
            return None, _each(G) * _adjoint(adjugate, *ctx.saved_tensors)

    @staticmethod
    def jvp(ctx: Any, _: None, dA: Tensor) -> tuple[Any, ...]:
        A, LU, pivots = ctx.saved_tensors
        with tangent_mode():
            return _trace(adjugate(primal(A), LU, pivots), dA), None, None


class Adjugate(Operator):
    """(A, LU, pivots) -> C = adj(A), of singular matrices too, or adj(A)ᴴ; its derivative, with X = A⁻¹, only of
    regular ones:

    d C = tr(X dA) C - X dA C, and NaN where A is singular.
    """

    schema = "adjugate(Tensor A, Tensor LU, Tensor pivots, bool adjoint=False) -> Tensor"
    matrix = 0

    @staticmethod
    def shapes(A: Tensor, LU: Tensor, pivots: Tensor, adjoint: bool = False) -> Tensor:
        return empty_column_major(A)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, *tensors, ctx.adjoint = inputs
        ctx.save_for_backward(*tensors, output)
        ctx.save_for_forward(*tensors, output)

    @staticmethod
    def _inverse(A: Tensor, LU: Tensor, pivots: Tensor) -> Tensor:
        """A⁻¹, full of NaN where A is singular: there some entries are infinite, or NaN."""
        X = inverse(A, LU, pivots)
        return X + (0 * X).sum((-2, -1), keepdim=True)

    @classmethod
    def backward(cls, ctx: Any, G: Tensor) -> tuple[Any, ...]:
        A, LU, pivots, C = ctx.saved_tensors
        if ctx.adjoint:
            C, G = C.mH, G.mH
        with without_autocast(G):
            XH = cls._inverse(A, LU, pivots).mH
            return None, _each(_trace(C.mH, G)) * XH - product(XH, G, C.mH), None, None, None

    @classmethod
    def jvp(cls, ctx: Any, _: None, dA: Tensor, *__: None) -> Tensor:
        A, LU, pivots, C = ctx.saved_tensors
        with tangent_mode():
            X, C = cls._inverse(primal(A), LU, pivots), primal(C)
            if ctx.adjoint:
                C = C.mH
            dC = _each(_trace(X, dA)) * C - product(X, dA, C)
            return dC.mH if ctx.adjoint else dC


class Inverse(Operator):
    """(A, LU, pivots) -> X = A⁻¹, or A⁻ᴴ: d X = -X dA X, or -X dAᴴ X."""

    schema = "inverse(Tensor A, Tensor LU, Tensor pivots, bool adjoint=False) -> Tensor"
    matrix = 0

    @staticmethod
    def shapes(A: Tensor, LU: Tensor, pivots: Tensor, adjoint: bool = False) -> Tensor:
        return empty_column_major(A)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save_inverse(ctx, output, adjoint=inputs[-1])

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Any, ...]:
        return None, _inverse_gradient(ctx, G), None, None, None

    @staticmethod
    def jvp(ctx: Any, _: None, dA: Tensor, *__: None) -> Tensor:
        return _inverse_tangent(ctx, dA)


class InvEx(Operator):
    """A -> (A⁻¹, infos), as `inverse` with a factorization."""

    schema = "inv_ex(Tensor A) -> (Tensor inverse, Tensor infos)"
    matrix = 0

    @staticmethod
    def shapes(A: Tensor) -> tuple[Tensor, Tensor]:
        return empty_column_major(A), A.new_empty(A.shape[:-2], dtype=torch.int32)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        X, infos = output
        ctx.mark_non_differentiable(infos)
        ctx.set_materialize_grads(False)
        _save_inverse(ctx, X, adjoint=False)

    @staticmethod
    def backward(ctx: Any, G: Tensor | None, _: None) -> tuple[Any, ...]:
        return None, None if G is None else _inverse_gradient(ctx, G)

    @staticmethod
    def jvp(ctx: Any, _: None, dA: Tensor) -> tuple[Any, ...]:
        return _inverse_tangent(ctx, dA), None


def _save_inverse(ctx: Any, X: Tensor, *, adjoint: bool) -> None:
    ctx.adjoint = adjoint
    ctx.save_for_backward(X)
    ctx.save_for_forward(X)


def _inverse_gradient(ctx: Any, G: Tensor) -> Tensor:
    (X,) = ctx.saved_tensors
    with without_autocast(G):
        return _change_of_inverse(X, G.mH) if ctx.adjoint else _change_of_inverse(X.mH, G)


def _inverse_tangent(ctx: Any, dA: Tensor) -> Tensor:
    (X,) = ctx.saved_tensors
    with tangent_mode():
        return _change_of_inverse(primal(X), dA.mH if ctx.adjoint else dA)


def _each(x: Tensor) -> Tensor:
    """Numbers [...] as factors of matrices [..., n, n]."""
    return x[..., None, None] if x.ndim else x


def _adjoint(function: Any, A: Tensor, LU: Tensor, pivots: Tensor) -> Tensor:
    """A⁻ᴴ or adj(A)ᴴ, without the copy that would make A⁻¹ of it where it is found first."""
    if plan.inverse_by_adjoint(A.shape[-1], A.device.type):
        return function(A, LU, pivots, True)
    return function(A, LU, pivots).mH


def _change_of_inverse(X: Tensor, dA: Tensor) -> Tensor:
    """-X dA X."""
    return product(X, dA, X).neg()


def _trace(X: Tensor, Y: Tensor) -> Tensor:
    """tr(X Y)."""
    return (X.mT * Y).sum((-2, -1))


class Solve(Operator):
    """(A, LU, pivots, B) -> X with A X = B or the like, as `lu_solve`: d X = solve(dB - dA X)."""

    schema = "solve(Tensor A, Tensor LU, Tensor pivots, Tensor B, bool left, bool adjoint) -> Tensor"
    matrix = 3
    batching = LuSolve.batching

    @staticmethod
    def shapes(A: Tensor, LU: Tensor, pivots: Tensor, B: Tensor, left: bool, adjoint: bool) -> Tensor:
        return LuSolve.shapes(LU, pivots, B, left, adjoint)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, A, LU, pivots, B, *ctx.equation = inputs
        _save_solution(ctx, A, LU, pivots, B, output)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Any, ...]:
        A_grad, B_grad = _solution_gradients(ctx, G, needs_A=ctx.needs_input_grad[1], needs_B=ctx.needs_input_grad[4])
        return None, A_grad, None, None, B_grad, None, None

    @staticmethod
    def jvp(ctx: Any, _: None, dA: Tensor | None, __: None, ___: None, dB: Tensor | None, *____: None) -> Tensor:
        return _solution_tangent(ctx, dA, dB)


class SolveEx(Operator):
    """(A, B) -> (X, LU, pivots, infos), X as `solve` with a factorization; LU and pivots have no derivative."""

    schema = "solve_ex(Tensor A, Tensor B, bool left) -> (Tensor result, Tensor LU, Tensor pivots, Tensor infos)"
    matrix = 1

    @staticmethod
    def shapes(A: Tensor, B: Tensor, left: bool) -> tuple[Tensor, ...]:
        LU, pivots, infos = empty_factors(A)
        return LuSolve.shapes(LU, pivots, B, left, False), LU, pivots, infos

    @classmethod
    def batching(cls, op: torch._ops.OpOverload, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        """As two operators, so that A is factored once, whether there are many of it or of B."""
        (of_A, of_B, *_), (A, B, left) = in_dims, args
        LU, pivots, infos = factor(A.detach() if of_A is None else A.detach().movedim(of_A, 0))
        first = None if of_A is None else 0
        X, _ = LuSolve.batching(solve, info, (of_A, first, first, of_B), A, LU, pivots, B, left, False)
        return (X, LU, pivots, infos), (0, first, first, first)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _, A, B, left = inputs
        ctx.equation = left, False
        X, LU, pivots, infos = output
        ctx.mark_non_differentiable(LU, pivots, infos)
        ctx.set_materialize_grads(False)
        _save_solution(ctx, A, LU, pivots, B, X)

    @staticmethod
    def backward(ctx: Any, G: Tensor | None, *_: None) -> tuple[Any, ...]:
        if G is None:
            return None, None, None, None
        A_grad, B_grad = _solution_gradients(ctx, G, needs_A=ctx.needs_input_grad[1], needs_B=ctx.needs_input_grad[2])
        return None, A_grad, B_grad, None

    @staticmethod
    def jvp(ctx: Any, _: None, dA: Tensor | None, dB: Tensor | None, *__: None) -> tuple[Any, ...]:
        return _solution_tangent(ctx, dA, dB), None, None, None


def _save_solution(ctx: Any, A: Tensor, LU: Tensor, pivots: Tensor, B: Tensor, X: Tensor) -> None:
    ctx.shape = B.shape
    ctx.save_for_backward(*((A, LU, pivots, X) if A.requires_grad else (A, LU, pivots)))
    ctx.save_for_forward(A, LU, pivots, X)


def _solution_gradients(ctx: Any, G: Tensor, *, needs_A: bool, needs_B: bool) -> tuple[Tensor | None, Tensor | None]:
    A, LU, pivots, *solution = ctx.saved_tensors
    left, adjoint = ctx.equation
    with without_autocast(G):
        W = solve(A, LU, pivots, G, left, not adjoint)
        A_grad = None
        if needs_A:
            (X,) = solution
            A_grad = systems.solve_gradient(LU, pivots, X, W, left, adjoint)
        return A_grad, W.sum_to_size(ctx.shape) if needs_B else None


def _solution_tangent(ctx: Any, dA: Tensor | None, dB: Tensor | None) -> Tensor:
    A, LU, pivots, X = ctx.saved_tensors
    left, adjoint = ctx.equation
    with tangent_mode():
        change = None
        if dA is not None:
            X, dA = primal(X), dA.mH if adjoint else dA
            dA = dA.expand(*X.shape[:-2], *dA.shape[-2:])
            change = (product(dA, X) if left else product(X, dA)).neg()
        elif dB is not None:
            dB = dB.expand_as(X)
        return solve(primal(A), LU, pivots, _total(change, dB), left, adjoint)


def _solved_batch(
    op: torch._ops.OpOverload, info: Any, in_dims: tuple[int | None, ...], args: tuple[Any, ...], *, all_batched: bool
) -> Any:
    """The operator on tensors with vmap's dimension in front, all or those that have it; LU and pivots go together."""
    *tensors, left, adjoint = args
    batched = [dim is not None for dim in in_dims[: len(tensors)]]
    ranks = [x.ndim - is_batched - 2 for x, is_batched in zip(tensors, batched, strict=True)]
    pivots = next(i for i, x in enumerate(tensors) if x.dtype == torch.int32)  # what is before them is the matrix
    ranks[pivots] += 1
    of_matrix = slice(pivots + 1)
    batched[of_matrix] = [any(batched[of_matrix])] * (pivots + 1)

    def to_front(x: Tensor, dim: int | None, is_batched: bool, rank: int) -> Tensor:
        if all_batched or is_batched:
            x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
            x = x[(slice(None), *[None] * (max(ranks) - rank))]
        return x

    return op(*map(to_front, tensors, in_dims, batched, ranks), left, adjoint)


class Product(Operator):
    """(A, B) -> A B in full precision, of matrices with the same batch; to be called as `precision.product`."""

    schema = "product(Tensor A, Tensor B) -> Tensor"

    @staticmethod
    def shapes(A: Tensor, B: Tensor) -> Tensor:
        return A.new_empty((*A.shape[:-1], B.shape[-1]))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Any, ...]:
        A, B = ctx.saved_tensors
        _, needs_A, needs_B = ctx.needs_input_grad
        with without_autocast(G):
            return None, product(G, B.mH) if needs_A else None, product(A.mH, G) if needs_B else None

    @staticmethod
    def jvp(ctx: Any, _: None, dA: Tensor | None, dB: Tensor | None) -> Tensor:
        A, B = ctx.saved_tensors
        with tangent_mode():
            along_A = None if dA is None else product(dA, primal(B))
            return _total(along_A, None if dB is None else product(primal(A), dB))


class Permutation(Operator):
    """(pivots, m) -> the order of the rows: A[permutation] = L U."""

    schema = "permutation(Tensor pivots, SymInt m) -> Tensor"
    core_ndim = 1
    matrix = 0
    autocast = False

    @staticmethod
    def shapes(pivots: Tensor, m: int) -> Tensor:
        return pivots.new_empty((*pivots.shape[:-1], m), dtype=torch.int64)

    @classmethod
    def by_kernel(cls, pivots: Tensor, *, on_cuda: bool) -> bool:
        return on_triton(pivots, on_cuda=on_cuda)

    @classmethod
    def run(cls, *args: Any, on_cuda: bool) -> Tensor:
        pivots, m = args
        if pivots.numel() and not on_cuda:  # a look at them on a GPU would synchronize it
            first, last = map(int, pivots.aminmax())
            if first < 1 or last > m:
                raise RuntimeError(f"`permutation` expects pivots from 1 to m = {m}; got pivots from {first} to {last}")
        return super().run(pivots, m, on_cuda=on_cuda)


class Check(Operator):
    """(infos, name) -> nothing, or LinAlgError if one of the infos is not zero."""

    schema = "check(Tensor infos, str name) -> ()"
    tags = (torch.Tag.cudagraph_unsafe,)  # it waits for the infos
    only_raises = True
    core_ndim = 0
    autocast = False

    @staticmethod
    def shapes(infos: Tensor, name: str) -> None:
        return None

    @classmethod
    def run(cls, *args: Any, on_cuda: bool) -> None:
        infos, name = args
        if infos.any() if infos.ndim else infos.item():  # in a tenth of the time
            flat = infos.flatten()
            element = int(flat.nonzero()[0])
            pivot = int(flat[element])
            where = "" if infos.ndim == 0 else f"batch element {_position(element, infos.shape)}: "
            raise torch.linalg.LinAlgError(
                f"`{name}`: {where}U[{pivot}, {pivot}] (counting from 1) is exactly zero: the matrix is singular. "
                "Functions that return infos do not raise"
            )


def _position(element: int, batch: torch.Size) -> int | tuple[int, ...]:
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(element), batch))
    return index if len(index) > 1 else index[0]


factor, vjp, jvp, curvature, mixed, lu_solve, lu_solve_vjp, permutation, check = register(
    Factor, Vjp, Jvp, Curvature, Mixed, LuSolve, LuSolveVjp, Permutation, Check
)
slogdet, det, adjugate, inverse, inv_ex, solve, solve_ex, _ = register(
    Slogdet, Det, Adjugate, Inverse, InvEx, Solve, SolveEx, Product
)
