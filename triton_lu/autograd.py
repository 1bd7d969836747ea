"""Derivatives of the factorization and of its derivatives, to every order.

With A = P L U, B = L and U packed, and for fixed (B, P), three maps are closed under differentiation:

    vjp:       G ↦ P X,   X = L⁻ᴴ Φ U⁻ᴴ,   Φ = tril(Lᴴ G, -1) + triu(G Uᴴ)
    jvp:       E ↦ L tril(M, -1) + triu(M) U,   M = L⁻¹ (Pᵀ E) U⁻¹
    curvature: (G, V) ↦ ∂/∂B of Re⟨V, vjp(G)⟩ = Re⟨jvp(V), G⟩

`vjp` and `jvp` are operators, linear in their argument and each other's adjoints: the derivative of either with respect
to its argument is itself, and pulling back through it is the other. Their derivatives with respect to B, `curvature`
backwards and the two tangents forwards, are written below in differentiable operations, so that every further order
exists too. P comes from discrete pivots and does not vary.
"""

from functools import reduce
from operator import add
from typing import Any

import torch
from torch import Tensor

from triton_lu import ops
from triton_lu.dispatch import DerivativeRule, autograd_key, primal, tangent_mode
from triton_lu.triangular import columns, enlarge, product, rows, solve, solve_adjoint


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
        _, LU, pivots, G = inputs
        ctx.save_for_backward(LU, pivots, G, output)
        ctx.save_for_forward(LU, pivots, G, output)

    @staticmethod
    def backward(ctx: Any, V: Tensor) -> tuple[Any, ...]:
        LU, pivots, G, Y = ctx.saved_tensors
        _, needs_LU, _, needs_G = ctx.needs_input_grad
        if not needs_LU:
            return None, None, None, ops.jvp(LU, pivots, V)
        order = row_order(LU, pivots)
        M, MU = quotients(LU, V.gather(-2, order))
        LU_grad = curvature(LU, G, Y.gather(-2, order), M, MU)
        return None, LU_grad, None, tangent(LU, M) if needs_G else None

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dG: Tensor | None) -> Tensor:
        LU, pivots, G, Y = ctx.saved_tensors
        LU, G, Y = primal(LU), primal(G), primal(Y)
        with tangent_mode():
            along_LU = None if dLU is None else vjp_tangent(LU, pivots, G, Y, dLU)
            along_G = None if dG is None else ops.vjp(LU, pivots, dG)
            return _total(along_LU, along_G)


class JvpRule(DerivativeRule):
    """(LU, pivots, E) -> jvp(E)."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, LU, pivots, E = inputs
        ctx.save_for_backward(LU, pivots, E)
        ctx.save_for_forward(LU, pivots, E)

    @staticmethod
    def backward(ctx: Any, H: Tensor) -> tuple[Any, ...]:
        LU, pivots, E = ctx.saved_tensors
        E_grad = ops.vjp(LU, pivots, H)
        if not ctx.needs_input_grad[1]:
            return None, None, None, E_grad
        order = row_order(LU, pivots)
        M, MU = quotients(LU, E.gather(-2, order))
        return None, curvature(LU, H, E_grad.gather(-2, order), M, MU), None, E_grad

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dE: Tensor | None) -> Tensor:
        LU, pivots, E = ctx.saved_tensors
        LU, E = primal(LU), primal(E)
        with tangent_mode():
            along_LU = None if dLU is None else jvp_tangent(LU, pivots, E, dLU)
            along_E = None if dE is None else ops.jvp(LU, pivots, dE)
            return _total(along_LU, along_E)


def _total(*terms: Tensor | None) -> Tensor:
    return reduce(add, (term for term in terms if term is not None))


for _op, _rule in ((ops.factor, FactorRule), (ops.vjp, VjpRule), (ops.jvp, JvpRule)):
    ops._library.impl(_op._schema.name.partition("::")[2], autograd_key(_op, _rule), "Autograd")


# Derivatives of the two maps with respect to B. L and U are completed to squares where A is not (`triangular.py`);
# only the m×n corner of each result counts, and the parts below are those of the factors that reach it.


def row_order(LU: Tensor, pivots: Tensor) -> Tensor:
    """Y.gather(-2, order) is Pᵀ Y for a Y of LU's shape."""
    return ops.permutation(pivots, LU.shape[-2])[..., None].expand(LU.shape)


def quotients(LU: Tensor, E: Tensor) -> tuple[Tensor, Tensor]:
    """M = L⁻¹ E U⁻¹ and M U."""
    MU = solve(LU, E, unit=True)
    return solve(LU.mT, MU.mT, unit=False).mT, MU


def tangent(LU: Tensor, M: Tensor) -> Tensor:
    """L tril(M, -1) + triu(M) U."""
    return product(LU, M.tril(-1), unit=True) + product(LU.mT, M.triu().mT, unit=False).mT


def curvature(LU: Tensor, G: Tensor, X: Tensor, M: Tensor, MU: Tensor) -> Tensor:
    """The gradient with respect to B of Re⟨V, vjp(G)⟩ = Re⟨jvp(V), G⟩, with X = Pᵀ vjp(G) and M = L⁻¹ (Pᵀ V) U⁻¹.

    tril(G tril(M, -1)ᴴ - X (M U)ᴴ, -1) + triu(triu(M)ᴴ G - (L M)ᴴ X); all are [..., m, n].
    """
    m, n = G.shape[-2:]
    k = min(m, n)
    LM = product(LU, columns(M, 0, k), unit=True)
    dL = G @ rows(M, 0, k).tril(-1).mH - X @ rows(MU, 0, k).mH
    dU = columns(M, 0, k).triu().mH @ G - LM.mH @ X
    return enlarge(dL.tril(-1), m, n) + enlarge(dU.triu(), m, n)


def vjp_tangent(LU: Tensor, pivots: Tensor, G: Tensor, Y: Tensor, dLU: Tensor) -> Tensor:
    """The tangent along dB of Y = vjp(G): P X', from differentiating Lᴴ X Uᴴ = Φ.

    X' = L⁻ᴴ (Φ' U⁻ᴴ - dLᴴ X) - X dUᴴ U⁻ᴴ,  Φ' = tril(dLᴴ G, -1) + triu(G dUᴴ).
    """
    m, n = G.shape[-2:]
    k = min(m, n)
    dL, dU = columns(dLU, 0, k).tril(-1), rows(dLU, 0, k).triu()
    order = row_order(LU, pivots)
    X = Y.gather(-2, order)
    Phi = enlarge((dL.mH @ G).tril(-1), m, n) + enlarge((G @ dU.mH).triu(), m, n)
    Phi_U = solve_adjoint(LU.mT, Phi.mT, unit=False).mT
    XdU_U = solve_adjoint(LU.mT, enlarge(X @ dU.mH, m, n).mT, unit=False).mT
    dX = solve_adjoint(LU, Phi_U - enlarge(dL.mH @ X, m, n), unit=True) - XdU_U
    return torch.zeros_like(dX).scatter(-2, order, dX)


def jvp_tangent(LU: Tensor, pivots: Tensor, E: Tensor, dLU: Tensor) -> Tensor:
    """The tangent of jvp(E) along dB.

    dL tril(M, -1) + L tril(M', -1) + triu(M') U + triu(M) dU,  M' = -L⁻¹ dL M - M dU U⁻¹,  M = L⁻¹ (Pᵀ E) U⁻¹.
    """
    k = min(E.shape[-2:])
    dL, dU = columns(dLU, 0, k).tril(-1), rows(dLU, 0, k).triu()
    M, _ = quotients(LU, E.gather(-2, row_order(LU, pivots)))
    dM = -solve(LU, dL @ rows(M, 0, k), unit=True) - solve(LU.mT, (columns(M, 0, k) @ dU).mT, unit=False).mT
    return dL @ rows(M, 0, k).tril(-1) + tangent(LU, dM) + columns(M, 0, k).triu() @ dU
