"""Operators written in Python that autograd and functorch treat like native ones.

What operators need of PyTorch's private names is in this file; `tests/test_autograd_key.py` fails by name when one
moves.

A native operator has a kernel under the Autograd dispatch key: it runs the operator below autograd and attaches one
node to the result. `autograd_key` builds such a kernel from a `DerivativeRule`, so that `torch.ops.triton_lu.*` itself
is differentiable to every order under autograd, forward AD, torch.func, torch.compile and torch.export. The usual way,
`torch.autograd.Function.apply` in the public function, needs `torch.compiler.allow_in_graph` (1.6 s of imports) and
returns zeros for forward-over-forward derivatives, because PyTorch switches forward AD off inside `Function.jvp`.
"""

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import (
    get_single_level_autograd_function_allowed,
    set_single_level_autograd_function_allowed,
)
from torch.autograd import forward_ad
from torch.autograd.forward_ad import _set_fwd_grad_enabled
from torch.autograd.function import _SingleLevelFunction
from torch.fx._symbolic_trace import is_fx_symbolic_tracing  # noqa: F401

below_autograd = torch._C._AutoDispatchBelowAutograd  # a context whose operations leave no trace in autograd
is_torch_function_enabled = torch._C._is_torch_function_enabled


class DerivativeRule(_SingleLevelFunction):
    """Derivatives of one operator at one level of differentiation.

    A rule defines `setup_context(ctx, inputs, output)`, `backward(ctx, *cotangents)` and `jvp(ctx, *tangents)`
    as an `autograd.Function` does, with one difference: the first input (and so the first value that `backward`
    returns and the first tangent) belongs to `autograd_key`, which passes the operator's result through it.
    """

    _compiled_autograd_key = torch.autograd.Function._compiled_autograd_key

    @staticmethod
    def forward(result: list[Any], *args: Any) -> Any:
        return result[0]

    @staticmethod
    def kept(*args: Any) -> tuple[Any, ...]:
        """The arguments as the derivative keeps them: copies of those that callers may overwrite before it is taken."""
        return args


def _has_tangent(x: Any) -> bool:
    if not isinstance(x, Tensor) or not (x.is_floating_point() or x.is_complex()):
        return False
    return torch._VF._unpack_dual(x, level=0).tangent is not None


def is_differentiated(args: tuple[Any, ...]) -> bool:
    """Whether a rule is needed. Inside forward AD without torch.func always: a rule costs no more than the search for
    tangents.
    """
    if torch.is_grad_enabled() and torch._C._any_requires_grad(*args):
        return True
    if not torch._C._is_fwd_grad_enabled():
        return False
    if torch._C._functorch.peek_interpreter_stack() is None:
        return forward_ad._current_level >= 0
    return any(map(_has_tangent, args))


def is_observed(args: tuple[Any, ...]) -> bool:
    """Whether more than its result is asked of an operation: a derivative, or a trace."""
    in_functorch = torch._C._functorch.peek_interpreter_stack() is not None
    return in_functorch or is_traced() or is_differentiated(args)


def is_traced() -> bool:
    """Whether a mode sees operations, as those do that trace for compilers."""
    return torch._C._len_torch_dispatch_stack() > 0


def autograd_key(
    op: torch._ops.OpOverload, rule: type[DerivativeRule], implementations: Mapping[str, Callable[..., Any]]
) -> Callable[..., Any]:
    """The kernel of `op` for the Autograd dispatch key, with the derivatives of `rule`.

    Its first argument is the set of keys of the call, or None. Where no key but that of a device is left in it, the
    kernel calls the implementation for that device, where PyTorch would do so, but take 5 µs.
    """
    defaults = tuple(argument.default_value for argument in op._schema.arguments)
    nexts: dict[int, Callable[..., Any]] = {}

    def below(keyset: Any) -> Callable[..., Any]:
        if keyset is None:
            return op
        keys = keyset.raw_repr()
        if (found := nexts.get(keys)) is None:
            key = (keyset & torch._C._after_ADInplaceOrView_keyset).highestPriorityTypeId()
            found = nexts[keys] = implementations.get(key.name, op)
        return found

    def kernel(keyset: Any, *args: Any) -> Any:
        args += defaults[len(args) :]  # the dispatcher strips trailing defaults
        with below_autograd():
            result = below(keyset)(*args)
        if not is_differentiated(args):
            return result
        allowed = get_single_level_autograd_function_allowed()
        set_single_level_autograd_function_allowed(True)
        try:
            return rule.apply([result], *rule.kept(*args))  # type: ignore[attr-defined]
        finally:
            set_single_level_autograd_function_allowed(allowed)

    return kernel


def composite_key(op: torch._ops.OpOverload, function: Callable[..., Any]) -> Callable[..., Any]:
    """The kernel of `op` for the Autograd dispatch key, differentiated as the operations in `function`."""

    def kernel(*args: Any) -> Any:
        if is_differentiated(args):
            with without_autocast(args[0]):
                return function(*args)
        with below_autograd():
            return op(*args)

    return kernel


def forget_kernels(op: torch._ops.OpOverload) -> None:
    """To be called when a kernel of `op` comes or goes: tracing remembers by which key one was found."""
    op._dispatch_cache.clear()


def primal(x: Tensor) -> Tensor:
    """`x` without the tangent that it carries at the current level of forward AD, where one would be seen."""
    return torch._VF._unpack_dual(x, level=0).primal if torch._C._is_fwd_grad_enabled() else x


def readable(X: Tensor) -> Tensor:
    """X, or a copy of it where `X.numpy()`, which might write, would make a copy-on-write clone copy itself."""
    return X.clone() if torch._C._is_cow_tensor(X) else X  # type: ignore[attr-defined]


def without_autocast(X: Tensor) -> Any:
    """A context that turns autocast off for the operations on `X`, at every level of torch.func.

    An operator's autocast rule turns it off at one level only: the next restores the state that it was entered with.
    """
    device = "cuda" if X.is_cuda else "cpu"
    enabled = torch.is_autocast_enabled(device)
    return torch.autocast(device, enabled=False) if enabled else nullcontext()


def tangent_mode() -> Any:
    """A context for the body of a rule's `jvp`: outer levels of forward AD, which only torch.func has, see its
    operations. The tangents of its own level are removed by `primal`.
    """
    nested = torch._C._functorch.peek_interpreter_stack() is not None
    return _set_fwd_grad_enabled(True) if nested else nullcontext()
