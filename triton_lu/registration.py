"""`Operator`, the class that describes an operator, and `register`, which tells PyTorch all that follows from it."""

from collections.abc import Callable, Hashable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from triton_lu import aten_backend, hardware, plan
from triton_lu._backend import current
from triton_lu.autograd_key import DerivativeRule, autograd_key, composite_key

OPERATORS: dict[torch._ops.OpOverload, "type[Operator]"] = {}
"""All that are registered."""

_library = torch.library.Library("triton_lu", "DEF")


def on_triton(X: Tensor, *, on_cuda: bool) -> bool:
    """Whether the backend in force means Triton for tensors where X is, if there is a kernel."""
    choice = current()
    if choice == "triton":
        hardware.require_kernels(X.device)
        return True
    return choice == "auto" and on_cuda and hardware.obstacle(X.device) is None


class Operator(DerivativeRule):
    """An operator `torch.ops.triton_lu.NAME`: to compilers one opaque node, whatever number of kernels it launches.

    A subclass has a `schema`; `shapes`, which returns uninitialized results with their dtypes and strides, for tracing
    without data; and, where it is differentiable, `setup_context`, `backward` and `jvp` as in `DerivativeRule`. It runs
    the functions of its name in `aten_backend` and `triton_backend`.
    """

    schema: ClassVar[str]
    shapes: ClassVar[Callable[..., Any]]
    tags: ClassVar[tuple[torch.Tag, ...]] = ()
    core_ndim: ClassVar[int] = 2
    """Dimensions of the first argument after the batch. All arguments and results have this batch."""
    autocast: ClassVar[bool] = True
    """Whether autocast gives it single precision."""
    matrix: ClassVar[int] = -1
    """The argument whose shape and dtype decide which implementation runs."""
    kernel_or_error: ClassVar[bool] = False
    """Whether `backend("triton")` is refused where there is no kernel, rather than served by ATen."""
    only_raises: ClassVar[bool] = False
    """Whether an exception is all it does: TorchScript and torch.fx must keep it."""
    is_composite: ClassVar[bool] = False
    """Whether it is differentiated as the operations that its ATen implementation consists of."""
    name: ClassVar[str]
    defaults: ClassVar[tuple[Any, ...]]
    autograd: ClassVar[Callable[..., Any]]
    """Its kernel under the Autograd key, for callers that the dispatcher has already brought there."""

    @classmethod
    def by_kernel(cls, X: Tensor, *, on_cuda: bool) -> bool:
        """Whether the backend in force means a Triton kernel for this matrix."""
        m, n = X.shape[-2:]
        if not on_triton(X, on_cuda=on_cuda):
            return False
        if plan.kernel(cls.name, m, n, X.dtype) is None:
            return current() == "triton" and cls.kernel_or_error
        return current() == "triton" or plan.kernel_pays(cls.name, m, n, X.dtype, X.device, X.shape[:-2].numel())

    @classmethod
    def run(cls, *args: Any, on_cuda: bool) -> Any:
        """What the operator does for tensors on a CPU or, with `on_cuda`, a GPU."""
        args += cls.defaults[len(args) :]  # the dispatcher strips trailing defaults
        choice = current()
        if on_cuda or choice == "triton":
            key = _key(cls.name, choice, args)
            if (prepared := prepared_calls.get(key)) is not None:
                return prepared(*args)
            if cls.by_kernel(args[cls.matrix], on_cuda=on_cuda):
                return _run_and_prepare(key, cls.name, args)
        return getattr(aten_backend, cls.name)(*args)

    @classmethod
    def batching(cls, op: torch._ops.OpOverload, info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        """The rule for torch.func.vmap: its dimension becomes the first of the batch, in every argument."""

        def to_front(x: Any, dim: int | None) -> Any:
            if not isinstance(x, Tensor):
                return x
            return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)

        in_dims += (None,) * (len(args) - len(in_dims))
        return op(*map(to_front, args, in_dims)), 0


prepared_calls: dict[Hashable, Callable[..., Any] | None] = {}
"""Calls of operators on kernels, by all that decides what they allocate and launch: as `launch.prepare` returns them,
None of those made once so far."""

MOST_PREPARED = 4096  # of them, at some kilobytes each


def _key(name: str, choice: str, args: tuple[Any, ...]) -> Hashable:
    key: list[Hashable] = [name, choice]
    for x in args:
        if isinstance(x, Tensor):
            key += x.shape, x.stride(), x.dtype, x.get_device(), x.data_ptr() % 16
        else:
            key.append(x)
    return tuple(key)


def _run_and_prepare(key: Hashable, name: str, args: tuple[Any, ...]) -> Any:
    """The second time: to prepare takes longer than a call, and shapes may come once."""
    from triton_lu_kernels import launch  # imports Triton

    from triton_lu import triton_backend

    function, prepared = getattr(triton_backend, name), None
    if key in prepared_calls:
        result, prepared = launch.prepare(function, args)
    else:
        result = function(*args)
        if len(prepared_calls) >= MOST_PREPARED:
            prepared_calls.clear()
    prepared_calls[key] = prepared
    return result


def register(*operators: type[Operator]) -> list[torch._ops.OpOverload]:
    """Registers operators with PyTorch; returns them as callables, `torch.ops.triton_lu.NAME.default`."""
    return [_register(operator) for operator in operators]


def _register(operator: type[Operator]) -> torch._ops.OpOverload:
    name = operator.name = operator.schema.partition("(")[0]
    alias_analysis = "CONSERVATIVE" if operator.only_raises else ""
    _library.define(operator.schema, alias_analysis, tags=(torch.Tag.pt2_compliant_tag, *operator.tags))
    op = getattr(torch.ops.triton_lu, name).default
    operator.defaults = tuple(argument.default_value for argument in op._schema.arguments)
    implementations = {key: partial(operator.run, on_cuda=key == "CUDA") for key in ("CPU", "CUDA")}
    for key, implementation in implementations.items():
        _library.impl(name, implementation, key)
    torch.library.register_fake(op, operator.shapes, lib=_library)
    torch.library.register_vmap(op, partial(operator.batching, op), lib=_library)
    if operator.autocast:
        for device in ("cpu", "cuda"):
            torch.library.register_autocast(op, device, torch.float32, lib=_library)
    if operator.only_raises:
        torch.fx.node.has_side_effect(op)
    OPERATORS[op] = operator
    if operator.is_composite:
        _library.impl(name, composite_key(op, getattr(aten_backend, name)), "Autograd")
    elif operator.backward is not DerivativeRule.backward:
        kernel = autograd_key(op, operator, implementations)
        operator.autograd = partial(kernel, None)
        _library.impl(name, kernel, "Autograd", with_keyset=True)
    return op
