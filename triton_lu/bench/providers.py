"""Who is measured: for each provider, a function that computes what a problem asks for once.

All that can be done before is done before: matrices, compilation, and for the derivatives of a factorization alone the
factorization.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad, grad

import triton_lu
from triton_lu.bench.problems import SQUARE, Problem

Function = Callable[[], tuple[Any, ...]]  # of tensors, or JAX's arrays


def _value(name: str, linalg: ModuleType) -> Callable[[Tensor, Tensor], Tensor]:
    """(A, b) -> what is computed, or differentiated."""
    if name == "logdet":
        return lambda A, b: linalg.slogdet(A).logabsdet
    if name == "solve":
        return lambda A, b: linalg.solve(A, b)
    if name == "inv":
        return lambda A, b: linalg.inv(A)
    return lambda A, b: linalg.lu_factor_ex(A).LU


def _with_torch(
    problem: Problem,
    device: torch.device,
    linalg: ModuleType,
    compile: Callable[[Any], Any] = lambda function: function,
) -> Function:
    A, b, G, V = (x.to(device) for x in _arguments(problem))
    value = compile(_value(problem.name, linalg))
    if problem.name == "forward":
        return lambda: (value(A, b),)
    if problem.name == "jvp":

        def tangent() -> tuple[Tensor, ...]:
            with forward_ad.dual_level():
                return (forward_ad.unpack_dual(value(forward_ad.make_dual(A, G), b)).tangent,)

        return tangent
    A.requires_grad_()
    if problem.name in ("forward+backward", *SQUARE):
        return lambda: grad(value(A, b), A, G)
    LU = value(A, b)
    if problem.name == "backward":
        return lambda: grad(LU, A, G, retain_graph=True)
    G.requires_grad_()
    (gradient,) = grad(LU, A, G, create_graph=True)
    return lambda: grad(gradient, (A, G), V, retain_graph=True)


def _arguments(problem: Problem) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Matrices A, right-hand sides b, a cotangent or tangent G of the result, and one of the gradient."""
    A, b = problem.matrices(), problem.gaussian(3, *problem.shape[:-1], 1)
    if problem.name == "logdet":
        G = torch.ones(problem.shape[:-2], dtype=problem.dtype.to_real())
    elif problem.name == "solve":
        G = problem.gaussian(1, *b.shape)
    else:
        G = problem.gaussian(1)
    return A, b, G, problem.gaussian(2)


def _with_torch_compile(problem: Problem, device: torch.device) -> Function:
    torch.compiler.reset()
    # a backward may write into donated buffers, and could be called only once
    with torch._functorch.config.patch(donated_buffer=False):  # type: ignore[attr-defined]
        function = _with_torch(problem, device, torch.linalg, partial(torch.compile, fullgraph=True, dynamic=False))
        function()
    return function


def _with_jax(problem: Problem, device: torch.device) -> Function:
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")
    import jax
    import jax.numpy as jnp
    from jax.scipy.linalg import lu_factor

    jax.config.update("jax_enable_x64", True)
    place = jax.devices("gpu" if device.type == "cuda" else "cpu")[0]
    A, b, G, V = (jax.device_put(x.numpy(), place) for x in _arguments(problem))

    values: dict[str, Callable[[Any], Any]] = {
        "logdet": lambda A: jnp.linalg.slogdet(A).logabsdet,
        "solve": lambda A: jnp.linalg.solve(A, b),
        "inv": jnp.linalg.inv,
    }
    value = values.get(problem.name, lambda A: lu_factor(A)[0])

    def pull(vjp: Callable[..., Any], G: Any) -> Any:
        """The vector-Jacobian product with PyTorch's convention for complex numbers, the conjugate of JAX's."""
        return jax.tree.map(jnp.conj, vjp(jnp.conj(G)))

    def gradient(A: Any, G: Any) -> Any:
        (result,) = pull(jax.vjp(value, A)[1], G)
        return result

    functions: dict[str, Callable[[], Callable[[], Any]]] = {
        "forward": lambda: partial(jax.jit(value), A),
        "backward": lambda: partial(jax.jit(pull), jax.jit(partial(jax.vjp, value))(A)[1], G),
        "jvp": lambda: partial(jax.jit(lambda A, G: jax.jvp(value, (A,), (G,))[1]), A, G),
        "double backward": lambda: partial(jax.jit(pull), jax.jit(partial(jax.vjp, gradient))(A, G)[1], V),
    }
    run = functions.get(problem.name, lambda: partial(jax.jit(gradient), A, G))()
    return lambda: tuple(jax.tree.leaves(jax.block_until_ready(run())))


def _with_flag_gems(problem: Problem, device: torch.device) -> Function:
    from flag_gems.ops import linalg_lu_factor_ex

    if problem.name != "forward":
        raise NotImplementedError("FlagGems has no derivatives")
    A = problem.matrices().to(device)
    return lambda: (linalg_lu_factor_ex(A)[0],)


@dataclass(frozen=True)
class Provider:
    """prepare(problem, device) gives the function to measure.

    `module` is what must be installed; `is_torch` is False where work is not on PyTorch's streams and in its memory.
    """

    prepare: Callable[[Problem, torch.device], Function]
    module: str = "torch"
    is_torch: bool = True

    @property
    def is_installed(self) -> bool:
        return find_spec(self.module) is not None


PROVIDERS = {
    "triton_lu": Provider(partial(_with_torch, linalg=triton_lu.linalg)),
    "torch": Provider(partial(_with_torch, linalg=torch.linalg)),
    "torch.compile": Provider(_with_torch_compile),
    "jax": Provider(_with_jax, "jax", is_torch=False),
    "flag_gems": Provider(_with_flag_gems, "flag_gems"),
}
