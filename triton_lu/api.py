"""The public functions: what they accept, what they return, every error they raise.

Reference for the formulas of the derivatives: docs/mathematics.md, and for the packed format LAPACK's getrf.
"""

from collections.abc import Callable
from functools import wraps
from typing import ParamSpec, TypeVar

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function

from triton_lu import ops
from triton_lu.autograd_key import is_torch_function_enabled, without_autocast

HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


def overridable(function: Callable[Arguments, Result]) -> Callable[Arguments, Result]:
    """The function, for `__torch_function__` to take over as any of PyTorch's: by modes, by the classes of arguments.

    So `torch.fx` records it as one call.
    """

    @wraps(function)
    def public(*args: Arguments.args, **kwargs: Arguments.kwargs) -> Result:
        given = (*args, *kwargs.values())
        if is_torch_function_enabled() and has_torch_function(given):
            return handle_torch_function(public, given, *args, **kwargs)
        return function(*args, **kwargs)

    return public


@overridable
def lu(A: Tensor, pivot: bool = True, get_infos: bool = False) -> tuple[Tensor, ...]:
    """Packed LU factorization A = P L U with partial pivoting, differentiable to every order.

    Args:
        A: [..., m, n], float32, float64, complex64 or complex128, any strides, any sizes including zero; float16 and
            bfloat16 are converted to float32 first. Autocast does not reach the factorization and its derivatives.
        pivot: with False A = L U without exchanges, also on CPU; exists only if no leading minor is zero.
        get_infos: also return `infos`, and never raise or synchronize the device for a singular matrix.

    Returns:
        LU: [..., m, n] of A's dtype (of a half, float32), column-major: U on and above the diagonal, below it L without
            its diagonal of ones.
        pivots: [..., min(m, n)] int32, counting from 1: row i was exchanged with row pivots[i], in order of i.
        infos: (with get_infos) [...] int32: 0, or the first i (counting from 1) with U[i, i] exactly zero.

    Differentiability:
        LU with respect to A, in reverse and forward mode, of every order; `pivots` and `infos` carry no gradient.
        Gradient: P L⁻ᴴ (tril(Lᴴ G, -1) + triu(G Uᴴ)) U⁻ᴴ (S. F. Walter, L. Lehmann, "Algorithmic differentiation of
        linear algebra functions with application in optimum experimental design", 2010), at fixed P. Where U has a
        zero on its diagonal the derivative does not exist and the gradient of that matrix holds inf and NaN, as in
        torch.linalg; gradients of the other matrices of the batch are not touched by it. The gradient has A's dtype.

    Raises:
        torch.linalg.LinAlgError: a pivot is exactly zero (not with get_infos); names the batch element and the pivot.
        TypeError: A is no tensor, pivot no bool. RuntimeError: A has fewer than two dimensions. NotImplementedError:
        any other dtype; A is not dense.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [4.0, 6.0]], requires_grad=True)
        >>> LU, pivots = triton_lu.lu(A)
        >>> LU.detach(), pivots
        (tensor([[4.0000, 6.0000],
                [0.2500, 0.5000]]), tensor([2, 2], dtype=torch.int32))
        >>> LU.diagonal().prod().neg().backward()  # det A: the rows were exchanged
        >>> A.grad
        tensor([[ 6., -4.],
                [-2.,  1.]])
    """
    LU, pivots, infos = _factor("lu", A, pivot)
    if get_infos:
        return LU, pivots, infos
    ops.check(infos, "lu")
    return LU, pivots


def lu_unpack(
    LU: Tensor, pivots: Tensor, unpack_data: bool = True, unpack_pivots: bool = True
) -> torch.return_types.lu_unpack:
    """(P, L, U) of a packed factorization: `torch.lu_unpack` under this package's name.

    Args:
        LU: [..., m, n], as `lu` returns it.
        pivots: [..., min(m, n)] int32.
        unpack_data: with False L and U are empty.
        unpack_pivots: with False P is empty.

    Returns:
        P: [..., m, m] of LU's dtype, L: [..., m, k], U: [..., k, n] with k = min(m, n).

    L and U are differentiable with respect to LU. `permutation` gives P as an index vector instead.

    Raises:
        RuntimeError: pivots are not int32, or do not fit LU.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [4.0, 6.0]])
        >>> P, L, U = triton_lu.lu_unpack(*triton_lu.lu(A))
        >>> torch.equal(P @ L @ U, A)
        True
    """
    return torch.lu_unpack(LU, pivots, unpack_data=unpack_data, unpack_pivots=unpack_pivots)


@overridable
def permutation(pivots: Tensor, m: int) -> Tensor:
    """The order of the rows that `pivots` stand for, as an index vector: A[permutation(pivots, m)] = L U.

    Args:
        pivots: [..., k] int32, counting from 1, as `lu` returns them.
        m: number of rows of A, at least k.

    Returns:
        [..., m] int64: row i of Pᵀ A is row permutation[i] of A. Not differentiable.

    Any exchanges are meant, as by `lu_unpack`: a row may also be exchanged with one before it.

    Raises:
        TypeError: pivots are no tensor. RuntimeError: pivots are not int32, have no dimension, k > m, or, on a CPU, are
        not between 1 and m.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [4.0, 6.0]])
        >>> LU, pivots = triton_lu.lu(A)
        >>> triton_lu.permutation(pivots, 2)
        tensor([1, 0])
    """
    _require_tensor("permutation", "pivots", pivots)
    if pivots.dtype != torch.int32:
        raise RuntimeError(f"`permutation` expects pivots of dtype torch.int32; got {pivots.dtype}")
    if pivots.ndim < 1 or pivots.shape[-1] > m:
        raise RuntimeError(
            f"`permutation` expects pivots of shape [..., k] with k <= m = {m}; got shape {tuple(pivots.shape)}"
        )
    return ops.permutation(pivots, m)


def _factor(name: str, A: Tensor, pivot: bool) -> tuple[Tensor, Tensor, Tensor]:
    _require_tensor(name, "A", A)
    _require_bool(name, "pivot", pivot)
    if A.ndim < 2:
        raise RuntimeError(
            f"`{name}` expects a matrix or a batch of matrices [..., m, n], of 2 or more dimensions; "
            f"got shape {tuple(A.shape)}"
        )
    with without_autocast(A):
        return ops.factor(_computed(name, "a matrix", A), pivot)


def _computed(name: str, what: str, X: Tensor) -> Tensor:
    """X in the dtype it is computed in: a half in float32."""
    if X.dtype in HALF:
        return X.to(torch.float32)
    if X.dtype not in DTYPES:
        expected = ", ".join(str(dtype).removeprefix("torch.") for dtype in (*HALF, *DTYPES))
        raise NotImplementedError(f"`{name}` expects {what} of {expected}; got {X.dtype}")
    return X


def _require_tensor(name: str, argument: str, x: object) -> None:
    if not isinstance(x, Tensor):
        raise TypeError(f"`{name}` expects {argument} to be a torch.Tensor; got {_type_name(x)}")
    if x.layout != torch.strided:
        raise NotImplementedError(f"`{name}` expects {argument} to be dense (torch.strided); got {x.layout}")
    if type(x).__name__ == "DTensor":  # by name: a process without distributed tensors shall not import them
        from triton_lu import sharding  # noqa: F401  registers the sharding rules


def _require_bool(name: str, argument: str, x: object) -> None:
    if not isinstance(x, bool):
        raise TypeError(f"`{name}` expects {argument} to be a bool; got {_type_name(x)}")


def _type_name(x: object) -> str:
    """Of a class that is not built in with its module: numpy.bool is no bool."""
    cls = type(x)
    return cls.__qualname__ if cls.__module__ == "builtins" else f"{cls.__module__}.{cls.__qualname__}"
