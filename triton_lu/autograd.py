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
from triton_lu.aten import row_index
from triton_lu.dispatch import DerivativeRule, autograd_key, primal, tangent_mode, without_autocast
from triton_lu.precision import full_precision
from triton_lu.triangular import add_product, columns, enlarge, rows, solve, solve_adjoint


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
        _, LU, pivots, G = inputs
        ctx.save_for_backward(LU, pivots, G, output)
        ctx.save_for_forward(LU, pivots, G, output)

    @staticmethod
    def backward(ctx: Any, V: Tensor) -> tuple[Any, ...]:
        LU, pivots, G, Y = ctx.saved_tensors
        _, needs_LU, _, needs_G = ctx.needs_input_grad
        with without_autocast(V), full_precision(V):
            if not needs_LU:
                return None, None, None, ops.jvp(LU, pivots, V)
            order = row_order(pivots, LU)
            step = Step(flat(LU), permute_rows(V, order))
            LU_grad = step.curvature(flat(G), permute_rows(Y, order)).view(LU.shape)
            return None, LU_grad, None, step.tangent().view(LU.shape) if needs_G else None

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dG: Tensor | None) -> Tensor:
        LU, pivots, G, Y = ctx.saved_tensors
        LU, G, Y = primal(LU), primal(G), primal(Y)
        with tangent_mode(), full_precision(Y):
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
        with without_autocast(H), full_precision(H):
            E_grad = ops.vjp(LU, pivots, H)
            if not ctx.needs_input_grad[1]:
                return None, None, None, E_grad
            order = row_order(pivots, LU)
            step = Step(flat(LU), permute_rows(E, order))
            return None, step.curvature(flat(H), permute_rows(E_grad, order)).view(LU.shape), None, E_grad

    @staticmethod
    def jvp(ctx: Any, _: None, dLU: Tensor | None, __: None, dE: Tensor | None) -> Tensor:
        LU, pivots, E = ctx.saved_tensors
        LU, E = primal(LU), primal(E)
        with tangent_mode(), full_precision(E):
            along_LU = None if dLU is None else jvp_tangent(LU, pivots, E, dLU)
            along_E = None if dE is None else ops.jvp(LU, pivots, dE)
            return _total(along_LU, along_E)


def _total(*terms: Tensor | None) -> Tensor:
    return reduce(add, (term for term in terms if term is not None))


for _op, _rule in ((ops.factor, FactorRule), (ops.vjp, VjpRule), (ops.jvp, JvpRule)):
    ops._library.impl(_op._schema.name.partition("::")[2], autograd_key(_op, _rule), "Autograd")


# Derivatives of the two maps with respect to B, for batches of matrices [batch, m, n]. L and U are completed to
# squares where A is not (`triangular.py`); only the m×n corner of each result counts, and `rows` and `columns` take
# the parts of the factors that reach it.


def flat(X: Tensor) -> Tensor:
    """X as [batch, m, n]."""
    return X.reshape(X.shape[:-2].numel(), *X.shape[-2:])


def row_order(pivots: Tensor, LU: Tensor) -> Tensor:
    """Where the rows of Pᵀ Y are found among those of the whole batch Y."""
    return row_index(ops.permutation(pivots, LU.shape[-2]))


def permute_rows(Y: Tensor, order: Tensor) -> Tensor:
    """Pᵀ Y as [batch, m, n]."""
    *_, m, n = Y.shape
    batch = Y.shape[:-2].numel()
    return Y.reshape(batch * m, n).index_select(0, order).view(batch, m, n)


class Step:
    """A first-order step E of Pᵀ A, from which the derivatives with respect to B follow: M = L⁻¹ E U⁻¹.

    What counts of tril(M, -1) are its first k columns, `lower`, and of triu(M) its first k rows, `upper`.
    """

    def __init__(self, LU: Tensor, E: Tensor):
        self.m, self.n = E.shape[-2:]
        self.k = k = min(self.m, self.n)
        self.L, self.U = columns(LU, 0, k).tril(-1), rows(LU, 0, k).triu()  # L without its diagonal of ones
        self.MU = solve(LU, E, unit=True)
        self.M = solve(LU.mT, self.MU.mT, unit=False).mT
        self.lower, self.upper = columns(self.M, 0, k).tril(-1), rows(self.M, 0, k).triu()

    def tangent(self) -> Tensor:
        """L tril(M, -1) + triu(M) U: the jvp of E."""
        return self.recompose(self.lower, self.upper)

    def recompose(self, lower: Tensor, upper: Tensor) -> Tensor:
        """L lower + upper U."""
        m, n, k = self.m, self.n, self.k
        dL = enlarge(add_product(lower, self.L, rows(lower, 0, k)), m, n)
        if n > k:
            dL = dL + pad(columns(upper, k, n), (k, 0))
        top = add_product(rows(dL, 0, k), columns(upper, 0, k), self.U)
        return top if m == k else torch.cat([top, rows(dL, k, m)], -2)

    def curvature(self, G: Tensor, X: Tensor) -> Tensor:
        """The gradient with respect to B of Re⟨V, vjp(G)⟩ = Re⟨jvp(V), G⟩, with X = Pᵀ vjp(G) and E = Pᵀ V.

        tril(G tril(M, -1)ᴴ - X (M U)ᴴ, -1) + triu(triu(M)ᴴ G - (L M)ᴴ X).
        """
        m, n, k = self.m, self.n, self.k
        M = columns(self.M, 0, k)
        LM = add_product(M, self.L, rows(M, 0, k))
        dL = add_product(torch.bmm(X, rows(self.MU, 0, k).mH), columns(G, 0, k), rows(self.lower, 0, k).mH, sign=-1)
        dU = add_product(torch.bmm(LM.mH, X), columns(self.upper, 0, k).mH, rows(G, 0, k), sign=-1)
        below = torch.ones(m, n, dtype=torch.bool, device=G.device).tril(-1)
        return torch.where(below, enlarge(dL, m, n), enlarge(dU, m, n))


def vjp_tangent(LU: Tensor, pivots: Tensor, G: Tensor, Y: Tensor, dLU: Tensor) -> Tensor:
    """The tangent along dB of Y = vjp(G): P X', from differentiating Lᴴ X Uᴴ = Φ.

    X' = L⁻ᴴ (Φ' U⁻ᴴ - dLᴴ X) - X dUᴴ U⁻ᴴ,  Φ' = tril(dLᴴ G, -1) + triu(G dUᴴ).
    """
    m, n = G.shape[-2:]
    k = min(m, n)
    order = row_order(pivots, LU)
    shape, LU, G, X, dLU = G.shape, flat(LU), flat(G), permute_rows(Y, order), flat(dLU)
    dL, dU = columns(dLU, 0, k).tril(-1), rows(dLU, 0, k).triu()
    Phi = enlarge((dL.mH @ G).tril(-1), m, n) + enlarge((G @ dU.mH).triu(), m, n)
    Phi_U = solve_adjoint(LU.mT, Phi.mT, unit=False).mT
    XdU_U = solve_adjoint(LU.mT, enlarge(X @ dU.mH, m, n).mT, unit=False).mT
    dX = solve_adjoint(LU, Phi_U - enlarge(dL.mH @ X, m, n), unit=True) - XdU_U
    return permute_rows(dX, order.argsort()).view(shape)


def jvp_tangent(LU: Tensor, pivots: Tensor, E: Tensor, dLU: Tensor) -> Tensor:
    """The tangent of jvp(E) along dB.

    dL tril(M, -1) + L tril(M', -1) + triu(M') U + triu(M) dU,  M' = -L⁻¹ dL M - M dU U⁻¹.
    """
    m, n = E.shape[-2:]
    k, shape = min(m, n), E.shape
    step = Step(flat(LU), permute_rows(E, row_order(pivots, LU)))
    LU, dLU = flat(LU), flat(dLU)
    dL, dU = columns(dLU, 0, k).tril(-1), rows(dLU, 0, k).triu()
    M_rows, M_columns = rows(step.M, 0, k), columns(step.M, 0, k)
    dM = -solve(LU, dL @ M_rows, unit=True) - solve(LU.mT, (M_columns @ dU).mT, unit=False).mT
    tangent = step.recompose(columns(dM, 0, k).tril(-1), rows(dM, 0, k).triu())
    explicit = enlarge(dL @ rows(step.lower, 0, k), m, n) + enlarge(columns(step.upper, 0, k) @ dU, m, n)
    return (tangent + explicit).view(shape)
