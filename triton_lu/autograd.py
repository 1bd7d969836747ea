"""Derivatives of the factorization and of its derivatives, to every order.

With A = P L U, B = L and U packed, two maps are linear in their argument and each other's adjoints:

    vjp: G ↦ Y = P X,   X = L⁻ᴴ (tril(Lᴴ G, -1) + triu(G Uᴴ)) U⁻ᴴ
    jvp: E ↦ D,         D = dL and dU packed, the first-order change of B with E: Pᵀ E = dL U + L dU

P comes from discrete pivots and does not vary. So the derivative of either with respect to its argument is itself, and
pulling back through it is the other. With respect to B, along δB = δL and δU packed, for a fixed E

    0 = δ(dL U + L dU) = (δdL U + L δdU) + (dL δU + δL dU),   that is   δD = jvp(mixed(D, δB)),
    mixed(D, δB) = -P (dL δU + δL dU).

Re⟨D, G⟩ = Re⟨E, Y⟩ changes by Re⟨δD, G⟩ = Re⟨mixed(D, δB), Y⟩: its gradient with respect to B is

    curvature(D, Y) = -tril(X dUᴴ, -1) - triu(dLᴴ X),   X = Pᵀ Y,

and since `mixed` is symmetric, δY = vjp(curvature(δB, Y)). These two, linear in both of their arguments, are each
other's derivatives. So the four maps are closed under differentiation, and there are derivatives of every order.

A solution X = lu_solve(LU, pivots, B) is linear in B, with itself for derivatives. Its gradients with respect to LU and
B are one operator, `lu_solve_vjp`, that differentiates as the triangular solves and products that it consists of.
"""

from collections.abc import Callable
from functools import reduce
from operator import add
from typing import Any

from torch import Tensor

from triton_lu import aten_backend, ops
from triton_lu.autograd_key import DerivativeRule, autograd_key, composite_key, primal, tangent_mode, without_autocast


class FactorRule(DerivativeRule):
    """A -> (LU, pivots, infos): d LU = jvp(dA)."""

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
            return None, ops.vjp(LU, pivots, G), None

    @staticmethod
    def jvp(ctx: Any, _: None, dA: Tensor, *__: None) -> tuple[Any, ...]:
        LU, pivots = ctx.saved_tensors
        with tangent_mode():
            return ops.jvp(primal(LU), pivots, dA), None, None


class VjpRule(DerivativeRule):
    """(LU, pivots, G) -> Y = vjp(G)."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, LU, pivots, _ = inputs
        ctx.save_for_backward(LU, pivots, output)
        ctx.save_for_forward(LU, pivots, output)

    @staticmethod
    def backward(ctx: Any, V: Tensor) -> tuple[Any, ...]:
        LU, pivots, Y = ctx.saved_tensors
        with without_autocast(V):
            D = ops.jvp(LU, pivots, V)
            return None, ops.curvature(D, pivots, Y) if ctx.needs_input_grad[1] else None, None, D

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dG: Tensor | None) -> Tensor:
        LU, pivots, Y = ctx.saved_tensors
        with tangent_mode():
            change = None if dLU is None else ops.curvature(dLU, pivots, primal(Y))
            return ops.vjp(primal(LU), pivots, _total(change, dG))


class JvpRule(DerivativeRule):
    """(LU, pivots, E) -> D = jvp(E)."""

    setup_context = staticmethod(VjpRule.setup_context)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Any, ...]:
        LU, pivots, D = ctx.saved_tensors
        with without_autocast(G):
            Y = ops.vjp(LU, pivots, G)
            return None, ops.curvature(D, pivots, Y) if ctx.needs_input_grad[1] else None, None, Y

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dE: Tensor | None) -> Tensor:
        LU, pivots, D = ctx.saved_tensors
        with tangent_mode():
            change = None if dLU is None else ops.mixed(primal(D), pivots, dLU)
            return ops.jvp(primal(LU), pivots, _total(change, dE))


def _total(*terms: Tensor | None) -> Tensor:
    return reduce(add, (term for term in terms if term is not None))


class CurvatureRule(DerivativeRule):
    """(D, pivots, Y) -> curvature(D, Y)."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])
        ctx.save_for_forward(*inputs[1:])

    @staticmethod
    def backward(ctx: Any, V: Tensor) -> tuple[Any, ...]:
        D, pivots, Y = ctx.saved_tensors
        _, needs_D, _, needs_Y = ctx.needs_input_grad
        with without_autocast(V):
            D_grad = ops.curvature(V, pivots, Y) if needs_D else None
            return None, D_grad, None, ops.mixed(D, pivots, V) if needs_Y else None

    @staticmethod
    def jvp(ctx: Any, _: None, dD: Tensor | None, __: None, dY: Tensor | None) -> Tensor:
        D, pivots, Y = ctx.saved_tensors
        with tangent_mode():
            along_D = None if dD is None else ops.curvature(dD, pivots, primal(Y))
            return _total(along_D, None if dY is None else ops.curvature(primal(D), pivots, dY))


class MixedRule(DerivativeRule):
    """(D, pivots, dB) -> mixed(D, dB)."""

    setup_context = staticmethod(CurvatureRule.setup_context)

    @staticmethod
    def backward(ctx: Any, V: Tensor) -> tuple[Any, ...]:
        D, pivots, dB = ctx.saved_tensors
        _, needs_D, _, needs_dB = ctx.needs_input_grad
        with without_autocast(V):
            D_grad = ops.curvature(dB, pivots, V) if needs_D else None
            return None, D_grad, None, ops.curvature(D, pivots, V) if needs_dB else None

    @staticmethod
    def jvp(ctx: Any, _: None, dD: Tensor | None, __: None, ddB: Tensor | None) -> Tensor:
        D, pivots, dB = ctx.saved_tensors
        with tangent_mode():
            along_D = None if dD is None else ops.mixed(dD, pivots, primal(dB))
            return _total(along_D, None if ddB is None else ops.mixed(primal(D), pivots, ddB))


class LuSolveRule(DerivativeRule):
    """(LU, pivots, B) -> X: d X = lu_solve(dB) + lu_solve_jvp(dLU)."""

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
                LU_grad, B_grad = ops.lu_solve_vjp(LU, pivots, B.expand_as(X), X, G, left, adjoint)
            else:
                LU_grad, B_grad = None, ops.lu_solve(LU, pivots, G, left, not adjoint)
            return None, LU_grad, None, B_grad.sum_to_size(ctx.shape), None, None

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dB: Tensor | None, *___: None) -> Tensor:
        LU, pivots, B, X = ctx.saved_tensors
        with tangent_mode():
            LU, X = primal(LU), primal(X)
            along_B = None if dB is None else ops.lu_solve(LU, pivots, dB, *ctx.equation)
            if dLU is None:
                return _total(along_B)
            along_LU = aten_backend.lu_solve_jvp(LU, pivots, primal(B).expand_as(X), X, dLU, *ctx.equation)
            return _total(along_B, along_LU)


_kernels: dict[Any, Callable[..., Any]] = {}
for _op, _rule in {
    ops.lu_solve: LuSolveRule,
    ops.factor: FactorRule,
    ops.vjp: VjpRule,
    ops.jvp: JvpRule,
    ops.curvature: CurvatureRule,
    ops.mixed: MixedRule,
}.items():
    _kernels[_op] = autograd_key(_op, _rule)
    ops._library.impl(_op._schema.name.partition("::")[2], _kernels[_op], "Autograd")
ops._library.impl("lu_solve_vjp", composite_key(ops.lu_solve_vjp, aten_backend.lu_solve_vjp), "Autograd")

# What the dispatcher finds under the Autograd key, for callers that stand there already
factor, lu_solve = _kernels[ops.factor], _kernels[ops.lu_solve]
