"""The public functions: what they accept, what they return, every error they raise.

Reference for the formulas of the derivatives: `triton_lu/autograd.py`, and for the packed format LAPACK's getrf.
"""

import torch
from torch import Tensor

from triton_lu import (
    autograd,  # noqa: F401  registers the derivatives
    ops,
)
from triton_lu.autograd_key import without_autocast

HALF = (torch.float16, torch.bfloat16)
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


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
    """
    return torch.lu_unpack(LU, pivots, unpack_data=unpack_data, unpack_pivots=unpack_pivots)


def permutation(pivots: Tensor, m: int) -> Tensor:
    """The order of the rows that `pivots` stand for, as an index vector: A[permutation(pivots, m)] = L U.

    Args:
        pivots: [..., k] int32, counting from 1, as `lu` returns them.
        m: number of rows of A, at least k.

    Returns:
        [..., m] int64: row i of Pᵀ A is row permutation[i] of A. Not differentiable.

    All exchanges are resolved in parallel, in O(log k) steps (pointer doubling), not one after the other.

    Raises:
        TypeError: pivots are no tensor. RuntimeError: pivots are not int32, have no dimension, k > m, or, on a CPU, are
        not between 1 and m.
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
    if not isinstance(pivot, bool):
        raise TypeError(f"`{name}` expects pivot to be a bool; got {type(pivot).__name__}")
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
        raise TypeError(f"`{name}` expects {argument} to be a torch.Tensor; got {type(x).__name__}")
    if x.layout != torch.strided:
        raise NotImplementedError(f"`{name}` expects {argument} to be dense (torch.strided); got {x.layout}")
    if type(x).__name__ == "DTensor":  # by name: a process without distributed tensors shall not import them
        from triton_lu import sharding  # noqa: F401  registers the sharding rules
