"""`lu`, `lu_unpack` and `permutation`, and what functions in `linalg.py` and `_install.py` share.

The derivatives are derived in docs/mathematics.md; the packed format is that of LAPACK's getrf.
"""

from typing import Literal, overload

import torch
from torch import Tensor

from triton_lu import ops
from triton_lu.autograd_key import without_autocast
from triton_lu.validation import (
    computed,
    overridable,
    require_bool,
    require_right_hand_sides,
    require_square,
    require_tensor,
)


@overload
def lu(A: Tensor, pivot: bool = True, get_infos: Literal[False] = False) -> tuple[Tensor, Tensor]: ...
@overload
def lu(A: Tensor, pivot: bool = True, *, get_infos: Literal[True]) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def lu(A: Tensor, pivot: bool, get_infos: Literal[True]) -> tuple[Tensor, Tensor, Tensor]: ...
@overload
def lu(A: Tensor, pivot: bool = True, get_infos: bool = False) -> tuple[Tensor, ...]: ...
@overridable
def lu(A: Tensor, pivot: bool = True, get_infos: bool = False) -> tuple[Tensor, ...]:
    """Packed LU factorization A = P L U with partial pivoting, differentiable to every order.

    Args:
        A: [..., m, n], float32, float64, complex64 or complex128, any strides, any sizes including zero; float16 and
            bfloat16 are converted to float32 first. Autocast does not reach the factorization and its derivatives.
        pivot: with False A = L U without exchanges, also on CPU; exists only if no leading minor is zero.
        get_infos: also return `infos`, and never raise or synchronize the device for a singular matrix.

    Returns:
        LU: [..., m, n] of A's dtype (float32 for float16 and bfloat16), column-major: U on and above the diagonal,
            below it L without its diagonal of ones.
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
    LU, pivots, infos = factorization("lu", A, pivot)
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

    As `lu_unpack` it takes any exchanges: a row may also be exchanged with one before it.

    Raises:
        TypeError: pivots are no tensor. RuntimeError: pivots are not int32, have no dimension, k > m, or, on a CPU, are
        not between 1 and m.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [4.0, 6.0]])
        >>> LU, pivots = triton_lu.lu(A)
        >>> triton_lu.permutation(pivots, 2)
        tensor([1, 0])
    """
    require_tensor("permutation", "pivots", pivots)
    if pivots.dtype != torch.int32:
        raise RuntimeError(f"`permutation` expects pivots of dtype torch.int32; got {pivots.dtype}")
    if pivots.ndim < 1 or pivots.shape[-1] > m:
        raise RuntimeError(
            f"`permutation` expects pivots of shape [..., k] with k <= m = {m}; got shape {tuple(pivots.shape)}"
        )
    return ops.permutation(pivots, m)


def factorization(name: str, A: Tensor, pivot: bool) -> tuple[Tensor, Tensor, Tensor]:
    """LU, pivots and infos; errors are those of the public function of that name."""
    require_tensor(name, "A", A)
    require_bool(name, "pivot", pivot)
    if A.ndim < 2:
        raise RuntimeError(
            f"`{name}` expects a matrix or a batch of matrices [..., m, n], of 2 or more dimensions; "
            f"got shape {tuple(A.shape)}"
        )
    with without_autocast(A):
        return ops.factor(computed(name, "a matrix", A), pivot)


def by_columns(A: Tensor) -> Tensor:
    """Aᵀ in the place of A, which has the same determinant, where LAPACK, which takes columns, would copy A.

    Of complex matrices A, as PyTorch does: a view of a lazy conjugate loses the layout of vmapped tangents (2.14).
    """
    return A.mT if A.is_cpu and A.is_contiguous() and not A.is_complex() else A


def solution(name: str, A: Tensor, B: Tensor, left: bool) -> tuple[Tensor, ...]:
    """The solution, LU, pivots and infos; errors are those of the public function of that name."""
    require_bool(name, "left", left)
    A = require_square(name, A)
    require_tensor(name, "B", B)
    B = computed(name, "B", B)
    is_vector = left and (B.ndim == 1 or B.shape == A.shape[:-1])
    columns = B.unsqueeze(-1) if is_vector else B
    require_right_hand_sides(name, "A", A, columns, left)
    with without_autocast(A):
        X, LU, pivots, infos = ops.solve_ex(A, columns, left)
    return X.squeeze(-1) if is_vector else X, LU, pivots, infos
