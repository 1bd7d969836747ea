"""Derivatives of the factorization and of its derivatives, to every order.

With A = P L U, B = L and U packed, two maps are linear in their argument and each other's adjoints:

    vjp: G ↦ P X,   X = L⁻ᴴ (tril(Lᴴ G, -1) + triu(G Uᴴ)) U⁻ᴴ
    jvp: E ↦ D,     D = dL and dU packed, the first-order change of B with E: Pᵀ E = dL U + L dU

P comes from discrete pivots and does not vary. So the derivative of either operator with respect to its argument is
itself, and pulling back through it is the other. With respect to B, along δB = δL and δU packed, for a fixed E

    0 = δ(dL U + L dU) = (δdL U + L δdU) + (dL δU + δL dU),   so that   δD = -jvp(P (dL δU + δL dU)).

Re⟨D, G⟩ = Re⟨E, vjp(G)⟩ changes by Re⟨δD, G⟩ = -Re⟨dL δU + δL dU, X⟩: its gradient with respect to B is

    curvature(X, D) = -tril(X dUᴴ, -1) - triu(dLᴴ X),

and because that is symmetric in D and δB, δX is vjp(curvature(X, δB)). These products and the two maps are
differentiable again, and so every further order exists.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from triton_lu import ops, plan
from triton_lu.aten import columns, row_index, rows
from triton_lu.dispatch import DerivativeRule, autograd_key, primal, tangent_mode, without_autocast
from triton_lu.precision import full_precision


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
    """(LU, pivots, G) -> Y = vjp(G) = P X."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, LU, pivots, _ = inputs
        ctx.save_for_backward(LU, pivots, output)
        ctx.save_for_forward(LU, pivots, output)

    @staticmethod
    def backward(ctx: Any, V: Tensor) -> tuple[Any, ...]:
        LU, pivots, Y = ctx.saved_tensors
        with without_autocast(V), full_precision(V):
            D = ops.jvp(LU, pivots, V)
            LU_grad = curvature(permute_rows(Y, row_order(pivots, LU)), D) if ctx.needs_input_grad[1] else None
            return None, LU_grad, None, D

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dG: Tensor | None) -> Tensor:
        LU, pivots, Y = ctx.saved_tensors
        LU, Y = primal(LU), primal(Y)
        with tangent_mode(), full_precision(Y):
            if dLU is None:
                return ops.vjp(LU, pivots, dG)
            change = curvature(permute_rows(Y, row_order(pivots, LU)), dLU)
            return ops.vjp(LU, pivots, change if dG is None else change + dG)


class JvpRule(DerivativeRule):
    """(LU, pivots, E) -> D = jvp(E)."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, LU, pivots, _ = inputs
        ctx.save_for_backward(LU, pivots, output)
        ctx.save_for_forward(LU, pivots, output)

    @staticmethod
    def backward(ctx: Any, G: Tensor) -> tuple[Any, ...]:
        LU, pivots, D = ctx.saved_tensors
        with without_autocast(G), full_precision(G):
            Y = ops.vjp(LU, pivots, G)
            LU_grad = curvature(permute_rows(Y, row_order(pivots, LU)), D) if ctx.needs_input_grad[1] else None
            return None, LU_grad, None, Y

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dE: Tensor | None) -> Tensor:
        LU, pivots, D = ctx.saved_tensors
        LU, D = primal(LU), primal(D)
        with tangent_mode(), full_precision(D):
            if dLU is None:
                return ops.jvp(LU, pivots, dE)
            change = permute_rows(second_change(D, dLU), row_order(pivots, LU).argsort())
            return ops.jvp(LU, pivots, -change if dE is None else dE - change)


for _op, _rule in ((ops.factor, FactorRule), (ops.vjp, VjpRule), (ops.jvp, JvpRule)):
    ops._library.impl(_op._schema.name.partition("::")[2], autograd_key(_op, _rule), "Autograd")


def row_order(pivots: Tensor, LU: Tensor) -> Tensor:
    """Where the rows of Pᵀ Y are found among those of the whole batch Y."""
    return row_index(ops.permutation(pivots, LU.shape[-2]))


def permute_rows(Y: Tensor, order: Tensor) -> Tensor:
    """The rows of the whole batch Y in that order: Pᵀ Y."""
    return Y.reshape(Y.shape[:-1].numel(), Y.shape[-1]).index_select(0, order).view(Y.shape)


def factors(B: Tensor) -> tuple[Tensor, Tensor]:
    """The strictly lower part of B and its upper part, in the shapes of L and U."""
    k = min(B.shape[-2:])
    return columns(B, 0, k).tril(-1), rows(B, 0, k).triu()


def curvature(X: Tensor, D: Tensor) -> Tensor:
    """-tril(X dUᴴ, -1) - triu(dLᴴ X), of the shape of X."""
    m, n = X.shape[-2:]
    dL, dU = factors(D)
    L_grad = lower_product(X, dU.mH).tril_(-1)
    U_grad = lower_product(X.mH, dL).tril_().mH
    return enlarge(L_grad, m, n).add_(enlarge(U_grad, m, n)).neg_()


def lower_product(A: Tensor, T: Tensor) -> Tensor:
    """A T on and below the diagonal, where T has zeros above it; what stands above the diagonal of the result is not."""
    k = T.shape[-1]
    width = plan.triangle_panel(k, T.device.type)
    if width == k:
        return A @ T
    panels = (pad(A[..., j:, j:] @ T[..., j:, j : j + width], (0, 0, j, 0)) for j in range(0, k, width))
    return torch.cat([*panels], -1)


def second_change(D: Tensor, dB: Tensor) -> Tensor:
    """dL δU + δL dU."""
    (dL, dU), (other_dL, other_dU) = factors(D), factors(dB)
    return dL @ other_dU + other_dL @ dU


def enlarge(Y: Tensor, m: int, n: int) -> Tensor:
    """Y with zero rows and columns added up to [..., m, n]."""
    return Y if Y.shape[-2:] == (m, n) else pad(Y, (0, n - Y.shape[-1], 0, m - Y.shape[-2]))
