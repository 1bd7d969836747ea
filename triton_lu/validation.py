"""Checks of arguments, and the protocol `__torch_function__`, for the public functions."""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from triton_lu.autograd_key import is_torch_function_enabled

HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def overridable(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function under the protocol `__torch_function__`, as PyTorch's own: modes and classes of arguments may take a
    call over, and `torch.fx` records it as one node.
    """

    @wraps(function)
    def public(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        given = (*args, *kwargs.values())
        if is_torch_function_enabled() and has_torch_function(given):
            return handle_torch_function(public, given, *args, **kwargs)
        return function(*args, **kwargs)

    return public


def computed(name: str, what: str, X: Tensor) -> Tensor:
    """X in the dtype of the computation: float16 and bfloat16 become float32."""
    if X.dtype in HALF:
        return X.to(torch.float32)
    if X.dtype not in DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*HALF, *DTYPES))
        raise NotImplementedError(f"`{name}` expects {what} of {expected}; got {X.dtype}")
    return X


def require_tensor(name: str, argument: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"`{name}` expects {argument} to be a torch.Tensor; got {type_name(x)}")
    if x.layout != torch.strided:
        raise NotImplementedError(f"`{name}` expects {argument} to be dense (torch.strided); got {x.layout}")
    if type(x).__name__ == "DTensor":  # by name: a process without distributed tensors shall not import them
        from triton_lu import sharding  # noqa: F401  registers the sharding rules


def require_bool(name: str, argument: str, x: object) -> None:
    if not isinstance(x, bool):
        raise TypeError(f"`{name}` expects {argument} to be a bool; got {type_name(x)}")


def type_name(x: object) -> str:
    """The name of x's class, with its module unless it is built in: numpy.bool is no bool."""
    cls = type(x)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
