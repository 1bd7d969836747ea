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
from torch.nn.functional import pad

from triton_lu import ops
from triton_lu.dispatch import DerivativeRule, autograd_key, primal, tangent_mode
from triton_lu.triangular import columns, enlarge, rows, solve, solve_adjoint


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


class MapRule(DerivativeRule):
    """What `vjp` and `jvp`, linear maps (LU, pivots, X) -> Y, share."""

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _, LU, pivots, X = inputs
        ctx.save_for_backward(LU, pivots, X)
        ctx.save_for_forward(LU, pivots, X)


def _total(*terms: Tensor | None) -> Tensor:
    return reduce(add, (term for term in terms if term is not None))


class VjpRule(MapRule):
    @staticmethod
    def backward(ctx: Any, V: Tensor) -> tuple[Any, ...]:
        LU, pivots, G = ctx.saved_tensors
        _, needs_LU, _, needs_G = ctx.needs_input_grad
        return (
            None,
            curvature(LU, pivots, G, V) if needs_LU else None,
            None,
            ops.jvp(LU, pivots, V) if needs_G else None,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dG: Tensor | None) -> Tensor:
        LU, pivots, G = ctx.saved_tensors
        LU, G = primal(LU), primal(G)
        with tangent_mode():
            along_LU = None if dLU is None else vjp_tangent(LU, pivots, G, dLU)
            along_G = None if dG is None else ops.vjp(LU, pivots, dG)
            return _total(along_LU, along_G)


class JvpRule(MapRule):
    @staticmethod
    def backward(ctx: Any, H: Tensor) -> tuple[Any, ...]:
        LU, pivots, E = ctx.saved_tensors
        _, needs_LU, _, needs_E = ctx.needs_input_grad
        return (
            None,
            curvature(LU, pivots, H, E) if needs_LU else None,
            None,
            ops.vjp(LU, pivots, H) if needs_E else None,
        )

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dE: Tensor | None) -> Tensor:
        LU, pivots, E = ctx.saved_tensors
        LU, E = primal(LU), primal(E)
        with tangent_mode():
            along_LU = None if dLU is None else jvp_tangent(LU, pivots, E, dLU)
            along_E = None if dE is None else ops.jvp(LU, pivots, dE)
            return _total(along_LU, along_E)


for _op, _rule in ((ops.factor, FactorRule), (ops.vjp, VjpRule), (ops.jvp, JvpRule)):
    ops._library.impl(_op._schema.name.partition("::")[2], autograd_key(_op, _rule), "Autograd")


# Derivatives of the two maps with respect to B. L and U are completed to squares where A is not (`triangular.py`);
# only the m×n corner of each result counts, and the parts below are those of the factors that reach it.


def _permuted(pivots: Tensor, Y: Tensor) -> Tensor:
    """Pᵀ Y."""
    order = ops.permutation(pivots, Y.shape[-2])
    return Y.gather(-2, order[..., None].expand(Y.shape))


def curvature(LU: Tensor, pivots: Tensor, G: Tensor, V: Tensor) -> Tensor:
    """The gradient with respect to B of Re⟨V, vjp(G)⟩ = Re⟨jvp(V), G⟩; all are [..., m, n].

    tril(G tril(M, -1)ᴴ - X (M U)ᴴ, -1) + triu(triu(M)ᴴ G - (L M)ᴴ X),  M = L⁻¹ (Pᵀ V) U⁻¹.
    """
    m, n = G.shape[-2:]
    k = min(m, n)
    X = _permuted(pivots, ops.vjp(LU, pivots, G))
    LMU = _permuted(pivots, V)
    MU = solve(LU, LMU, unit=True)
    LM = solve(LU.mT, LMU.mT, unit=False).mT
    M = solve(LU.mT, MU.mT, unit=False).mT
    dL = G @ rows(M, 0, k).tril(-1).mH - X @ rows(MU, 0, k).mH
    dU = columns(M, 0, k).triu().mH @ G - columns(LM, 0, k).mH @ X
    return enlarge(dL.tril(-1), m, n) + enlarge(dU.triu(), m, n)


def vjp_tangent(LU: Tensor, pivots: Tensor, G: Tensor, dLU: Tensor) -> Tensor:
    """The tangent of vjp(G) along dB: P X', from differentiating Lᴴ X Uᴴ = Φ.

    X' = L⁻ᴴ (Φ' U⁻ᴴ - dLᴴ X) - X dUᴴ U⁻ᴴ,  Φ' = tril(dLᴴ G, -1) + triu(G dUᴴ).
    """
    m, n = G.shape[-2:]
    k = min(m, n)
    dL, dU = columns(dLU, 0, k).tril(-1), rows(dLU, 0, k).triu()
    X = _permuted(pivots, ops.vjp(LU, pivots, G))
    Phi = enlarge((dL.mH @ G).tril(-1), m, n) + enlarge((G @ dU.mH).triu(), m, n)
    Phi_U = solve_adjoint(LU.mT, Phi.mT, unit=False).mT
    XdU_U = solve_adjoint(LU.mT, enlarge(X @ dU.mH, m, n).mT, unit=False).mT
    dX = solve_adjoint(LU, Phi_U - enlarge(dL.mH @ X, m, n), unit=True) - XdU_U
    order = ops.permutation(pivots, m)
    return torch.zeros_like(dX).scatter(-2, order[..., None].expand(dX.shape), dX)


def jvp_tangent(LU: Tensor, pivots: Tensor, E: Tensor, dLU: Tensor) -> Tensor:
    """The tangent of jvp(E) along dB.

    dL tril(M, -1) + L tril(M', -1) + triu(M') U + triu(M) dU,  M' = -L⁻¹ dL M - M dU U⁻¹,  M = L⁻¹ (Pᵀ E) U⁻¹.
    """
    m, n = E.shape[-2:]
    k = min(m, n)
    dL, dU = columns(dLU, 0, k).tril(-1), rows(dLU, 0, k).triu()
    strict_L, U = columns(LU, 0, k).tril(-1), rows(LU, 0, k).triu()
    M = solve(LU.mT, solve(LU, _permuted(pivots, E), unit=True).mT, unit=False).mT
    dM = -solve(LU, dL @ rows(M, 0, k), unit=True) - solve(LU.mT, (columns(M, 0, k) @ dU).mT, unit=False).mT
    lower, upper = dM.tril(-1), dM.triu()
    L_lower = strict_L @ rows(lower, 0, k) + lower
    upper_U = columns(upper, 0, k) @ U + pad(columns(upper, k, n), (k, 0))
    return dL @ rows(M, 0, k).tril(-1) + L_lower + upper_U + columns(M, 0, k).triu() @ dU
