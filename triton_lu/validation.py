"""Checks of arguments, and the protocol `__torch_function__`, for the public functions."""

from collections.abc import Callable, Collection
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from triton_lu.autograd_key import is_torch_function_enabled

HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
FAMILY = ("lu", "slogdet", "det", "solve", "inv")
"""What `override` and `install` take over."""

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
    if x.layout != torch.strided or x.is_nested:
        got = "a nested tensor" if x.is_nested else x.layout
        raise NotImplementedError(f"`{name}` expects {argument} to be dense (torch.strided); got {got}")
    if type(x).__name__ == "DTensor":  # by name: a process without distributed tensors shall not import them
        from triton_lu import sharding  # noqa: F401  registers the sharding rules


def require_square(name: str, A: Tensor) -> Tensor:
    """A, square, in the dtype of the computation."""
    require_tensor(name, "A", A)
    if A.ndim < 2 or A.shape[-2] != A.shape[-1]:
        raise RuntimeError(f"`{name}` expects A of shape [..., n, n]; got {tuple(A.shape)}")
    return computed(name, "a matrix", A)


def require_right_hand_sides(name: str, argument: str, A: Tensor, B: Tensor, left: bool) -> None:
    """That B fits the matrices A, an argument of that name."""
    if B.ndim < 2:
        raise RuntimeError(f"`{name}` expects B of 2 or more dimensions; got shape {tuple(B.shape)}")
    if B.dtype != A.dtype:
        raise RuntimeError(f"`{name}` expects {argument} and B of the same dtype; got {A.dtype} and {B.dtype}")
    if B.device != A.device:
        raise RuntimeError(f"`{name}` expects {argument} and B on the same device; got {A.device} and {B.device}")
    n = A.shape[-1]
    if B.shape[-2 if left else -1] != n:
        expected = f"[..., {n}, k]" if left else f"[..., k, {n}]"
        raise RuntimeError(f"`{name}` expects B of shape {expected}; got {tuple(B.shape)}")
    batches = tuple(A.shape[:-2]), tuple(B.shape[:-2])
    pairs = zip(*map(reversed, batches), strict=False)
    if batches[0] != batches[1] and any(i != j and 1 not in (i, j) for i, j in pairs):
        raise RuntimeError(
            f"`{name}` expects batches of {argument} and B that broadcast; got {batches[0]} and {batches[1]}"
        )


def require_family(name: str, only: Collection[str]) -> None:
    if isinstance(only, str) or not set(only) <= set(FAMILY):
        raise ValueError(f"`{name}` expects only to be a collection of {', '.join(map(repr, FAMILY))}; got {only!r}")


def require_bool(name: str, argument: str, x: object) -> None:
    if not isinstance(x, bool):
        raise TypeError(f"`{name}` expects {argument} to be a bool; got {type_name(x)}")


def type_name(x: object) -> str:
    """The name of x's class, with its module unless it is built in: numpy.bool is no bool."""
    cls = type(x)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
