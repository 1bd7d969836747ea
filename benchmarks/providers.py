"""Who is measured: functions A -> LU, and the derivative of each that a problem asks for."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad, grad

import triton_lu
from benchmarks.problems import Problem

PROVIDERS: dict[str, Callable[[Tensor], Tensor]] = {
    "triton_lu": lambda A: triton_lu.lu(A, get_infos=True)[0],
    "torch": lambda A: torch.linalg.lu_factor_ex(A).LU,
}


def forward(problem: Problem) -> Callable[[], Tensor]:
    """PyTorch's factorization alone: the unit in which a gradient's price is quoted."""
    A = problem.matrices(0)
    return lambda: torch.linalg.lu_factor_ex(A).LU


def derivative(problem: Problem, factor: Callable[[Tensor], Tensor]) -> Callable[[], tuple[Tensor, ...]]:
    """A function that evaluates the derivative once; all that can be done before is done."""
    A = problem.matrices(0).requires_grad_()
    G, V = problem.matrices(1), problem.matrices(2)
    if problem.derivative == "jvp":
        A = A.detach()

        def tangent() -> tuple[Tensor, ...]:  # the factorization included: PyTorch computes both at once
            with forward_ad.dual_level():
                return (forward_ad.unpack_dual(factor(forward_ad.make_dual(A, G))).tangent,)

        return tangent
    LU = factor(A)
    if problem.derivative == "backward":
        return lambda: grad(LU, A, G, retain_graph=True)
    G.requires_grad_()
    (gradient,) = grad(LU, A, G, create_graph=True)
    return lambda: grad(gradient, (A, G), V, retain_graph=True)
