"""What `torch.linalg` computes by an LU factorization, with the signatures and results of their namesakes there.

With `out` the results are written into these tensors, which must have their dtypes and devices, and have no derivative.
Where shapes differ the tensors are resized, with a warning unless they were empty.
"""

import warnings
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad

from triton_lu import ops
from triton_lu.api import by_columns, factorization, lu_unpack, solution
from triton_lu.autograd_key import below_autograd, without_autocast
from triton_lu.return_types import (
    linalg_inv_ex,
    linalg_lu,
    linalg_lu_factor,
    linalg_lu_factor_ex,
    linalg_slogdet,
    linalg_solve_ex,
)
from triton_lu.validation import (
    computed,
    overridable,
    require_bool,
    require_right_hand_sides,
    require_square,
    require_tensor,
    type_name,
)


@overridable
def lu_factor(A: Tensor, *, pivot: bool = True, out: Sequence[Tensor] | None = None) -> linalg_lu_factor:
    """(LU, pivots): as `torch.linalg.lu_factor`; see `triton_lu.lu` for shapes, layout and derivatives.

    Raises `torch.linalg.LinAlgError` when a pivot is exactly zero.

    Example:
        >>> A, B = torch.tensor([[1.0, 2.0], [4.0, 6.0]]), torch.tensor([[5.0], [16.0]])
        >>> triton_lu.linalg.lu_solve(*triton_lu.linalg.lu_factor(A), B)
        tensor([[1.],
                [2.]])
    """
    LU, pivots, infos = factorization("linalg.lu_factor", A, pivot)
    ops.check(infos, "linalg.lu_factor")
    return linalg_lu_factor(_written("linalg.lu_factor", (LU, pivots), out))


@overridable
def lu_factor_ex(
    A: Tensor, *, pivot: bool = True, check_errors: bool = False, out: Sequence[Tensor] | None = None
) -> linalg_lu_factor_ex:
    """(LU, pivots, info): as `torch.linalg.lu_factor_ex`; see `triton_lu.lu` for shapes, layout and derivatives.

    Raises `torch.linalg.LinAlgError` for a zero pivot only with check_errors, and synchronizes the device only then.

    Example:
        >>> triton_lu.linalg.lu_factor_ex(torch.zeros(2, 2)).info
        tensor(1, dtype=torch.int32)
    """
    require_bool("linalg.lu_factor_ex", "check_errors", check_errors)
    LU, pivots, infos = factorization("linalg.lu_factor_ex", A, pivot)
    if check_errors:
        ops.check(infos, "linalg.lu_factor_ex")
    return linalg_lu_factor_ex(_written("linalg.lu_factor_ex", (LU, pivots, infos), out))


@overridable
def lu(A: Tensor, *, pivot: bool = True, out: Sequence[Tensor] | None = None) -> linalg_lu:
    """(P, L, U) with A = P L U: as `torch.linalg.lu`.

    P [..., m, m] (empty without pivot), L [..., m, k] and U [..., k, n] with k = min(m, n). L and U are differentiable
    with respect to A, to every order. A singular A raises nothing, as in torch.linalg.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [4.0, 6.0]])
        >>> P, L, U = triton_lu.linalg.lu(A)
        >>> torch.equal(P @ L @ U, A)
        True
    """
    LU, pivots, _ = factorization("linalg.lu", A, pivot)
    P, L, U = lu_unpack(LU, pivots, unpack_pivots=pivot)
    return linalg_lu(_written("linalg.lu", (P, L, U), out))


@overridable
def lu_solve(
    LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False, out: Tensor | None = None
) -> Tensor:
    """X with A X = B, from the packed factorization A = P L U: as `torch.linalg.lu_solve`.

    Args:
        LU: [..., n, n], as `lu_factor` returns it, float32, float64, complex64 or complex128; float16 and bfloat16 are
            converted to float32.
        pivots: [..., n] int32, with the batch of LU.
        B: [..., n, k], or with left=False [..., k, n], of the dtype of LU; the batches of LU and B broadcast.
        left: with False solve X A = B.
        adjoint: with True solve Aᴴ X = B or X Aᴴ = B.

    Returns:
        [..., n, k], or with left=False [..., k, n]. Where U has a zero on its diagonal, inf and NaN; no error.

    Differentiable with respect to LU and B, in reverse and forward mode, to every order: X = U⁻¹ L⁻¹ Pᵀ B, two
    triangular solves around a permutation of rows, never a dense P nor a second factorization.

    Raises:
        TypeError: an argument is no tensor, or no bool. NotImplementedError: any other dtype. RuntimeError: LU and B
        differ in dtype, pivots are not int32 or, on a CPU, not between 1 and n, LU is not square, or the shapes do not
        fit each other.

    Example:
        >>> A, B = torch.tensor([[1.0, 2.0], [4.0, 6.0]]), torch.tensor([[5.0], [16.0]])
        >>> LU, pivots = triton_lu.linalg.lu_factor(A)
        >>> triton_lu.linalg.lu_solve(LU, pivots, B)
        tensor([[1.],
                [2.]])
    """
    name = "linalg.lu_solve"
    require_bool(name, "left", left)
    require_bool(name, "adjoint", adjoint)
    for argument, x in (("LU", LU), ("pivots", pivots), ("B", B)):
        require_tensor(name, argument, x)
    LU, B = computed(name, "LU", LU), computed(name, "B", B)
    _require_system(name, LU, pivots, B, left)
    with without_autocast(LU):
        X = ops.lu_solve(LU, pivots, B, left, adjoint)
    return _written(name, (X,), None if out is None else (out,))[0]


@overridable
def slogdet(A: Tensor, *, out: Sequence[Tensor] | None = None) -> linalg_slogdet:
    """(sign, logabsdet) with det A = sign exp(logabsdet): as `torch.linalg.slogdet`.

    Args:
        A: [..., n, n], float32, float64, complex64 or complex128; float16 and bfloat16 are converted to float32.

    Returns:
        sign: [...] of A's dtype, -1, 0 or 1, of a complex matrix a number of modulus 1 or 0.
        logabsdet: [...] real; -inf, with the sign 0, where A is singular.

    Differentiable with respect to A, in reverse and forward mode, to every order; the gradient of logabsdet is A⁻ᴴ. Of
    a singular matrix it holds inf and NaN, those of the others in a batch are not touched by it.

    Raises:
        TypeError: A is no tensor. RuntimeError: A is not square. NotImplementedError: any other dtype; A is not dense.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [4.0, 6.0]], requires_grad=True)
        >>> sign, logabsdet = triton_lu.linalg.slogdet(A)
        >>> logabsdet.backward()
        >>> A.grad  # the inverse of Aᵀ
        tensor([[-3.0000,  2.0000],
                [ 1.0000, -0.5000]])
    """
    name = "linalg.slogdet"
    A = require_square(name, A)
    with without_autocast(A):
        sign, logabsdet, _, _ = ops.slogdet(by_columns(A))
    return linalg_slogdet(_written(name, (sign, logabsdet), out))


@overridable
def det(A: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The determinant: as `torch.linalg.det`, of A as for `slogdet`.

    Returns [...] of A's dtype. It over- or underflows only if the result does, not if the product of some pivots would.

    Differentiable with respect to A, in reverse and forward mode. The gradient, the conjugate transpose of the
    adjugate, exists for every A: where the rank is n - 1 it has rank 1, where it is less it is zero. Derivatives of
    higher orders are those of det(A) A⁻¹, and NaN where A is singular (U has a zero on its diagonal).

    Raises: as `slogdet`.

    Example:
        >>> A = torch.tensor([[1.0, 2.0], [2.0, 4.0]], requires_grad=True)
        >>> triton_lu.linalg.det(A).backward()
        >>> A.grad
        tensor([[ 4., -2.],
                [-2.,  1.]])
    """
    A = require_square("linalg.det", A)
    with without_autocast(A):
        value, _, _ = ops.det(by_columns(A))
    return _written("linalg.det", (value,), None if out is None else (out,))[0]


@overridable
def logdet(A: Tensor) -> Tensor:
    """The logarithm of the determinant: as `torch.logdet`, of A as for `slogdet`.

    Returns [...] of A's dtype: -inf where A is singular, NaN where the determinant of a real A is negative, of a
    complex one the principal value. Differentiable as `slogdet`. Raises: as `slogdet`.

    Example:
        >>> triton_lu.linalg.logdet(torch.tensor([[1.0, 0.0], [4.0, 6.0]]))
        tensor(1.7918)
    """
    name = "linalg.logdet"
    A = require_square(name, A)
    with without_autocast(A):
        sign, logabsdet, _, _ = ops.slogdet(by_columns(A))
    if A.is_complex():
        return sign.log() + logabsdet
    return torch.where(sign == -1, torch.nan, logabsdet)


@overridable
def solve(A: Tensor, B: Tensor, *, left: bool = True, out: Tensor | None = None) -> Tensor:
    """X with A X = B: as `torch.linalg.solve`.

    Args:
        A: [..., n, n], float32, float64, complex64 or complex128; float16 and bfloat16 are converted to float32.
        B: [..., n, k], or with left=False [..., k, n], of the dtype of A; the batches of A and B broadcast. With
            left=True also vectors: [n], or [..., n] with the batch of A.
        left: with False solve X A = B.

    Returns:
        [..., n, k], [..., k, n] or [..., n].

    Differentiable with respect to A and B, in reverse and forward mode, to every order, at one solve with Aᴴ and one
    outer product for a gradient.

    Raises:
        torch.linalg.LinAlgError: A is singular. TypeError: an argument is no tensor, left no bool.
        NotImplementedError: any other dtype. RuntimeError: A is not square, A and B differ in dtype, or the shapes do
        not fit each other.

    Example:
        >>> A, B = torch.tensor([[1.0, 2.0], [4.0, 6.0]]), torch.tensor([5.0, 16.0])
        >>> triton_lu.linalg.solve(A, B)
        tensor([1., 2.])
    """
    X, _, _, infos = solution("linalg.solve", A, B, left)
    ops.check(infos, "linalg.solve")
    return _written("linalg.solve", (X,), None if out is None else (out,))[0]


@overridable
def solve_ex(
    A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False, out: Sequence[Tensor] | None = None
) -> linalg_solve_ex:
    """(result, info): as `torch.linalg.solve_ex`; see `solve` for arguments and derivatives.

    `info` is 0, or counts the first zero pivot, in int32 with the batch of A. Raises `torch.linalg.LinAlgError` for one
    only with check_errors, and synchronizes the device only then.

    Example:
        >>> triton_lu.linalg.solve_ex(torch.zeros(2, 2), torch.ones(2)).info
        tensor(1, dtype=torch.int32)
    """
    name = "linalg.solve_ex"
    require_bool(name, "check_errors", check_errors)
    X, _, _, infos = solution(name, A, B, left)
    if check_errors:
        ops.check(infos, name)
    return linalg_solve_ex(_written(name, (X, infos), out))


@overridable
def inv(A: Tensor, *, out: Tensor | None = None) -> Tensor:
    """The inverse: as `torch.linalg.inv`, of A as for `slogdet`.

    Differentiable with respect to A, in reverse and forward mode, to every order, at two products each.

    Raises:
        torch.linalg.LinAlgError: A is singular. Others as `slogdet`.

    Example:
        >>> triton_lu.linalg.inv(torch.tensor([[1.0, 2.0], [4.0, 6.0]]))
        tensor([[-3.0000,  1.0000],
                [ 2.0000, -0.5000]])
    """
    name = "linalg.inv"
    A = require_square(name, A)
    with without_autocast(A):
        X, infos = ops.inv_ex(A)
    ops.check(infos, name)
    return _written(name, (X,), None if out is None else (out,))[0]


@overridable
def inv_ex(A: Tensor, *, check_errors: bool = False, out: Sequence[Tensor] | None = None) -> linalg_inv_ex:
    """(inverse, info): as `torch.linalg.inv_ex`; see `inv` for its argument and derivatives.

    `info` is 0, or counts the first zero pivot, in int32. Raises `torch.linalg.LinAlgError` for one only with
    check_errors, and synchronizes the device only then.

    Example:
        >>> triton_lu.linalg.inv_ex(torch.zeros(2, 2)).info
        tensor(1, dtype=torch.int32)
    """
    name = "linalg.inv_ex"
    require_bool(name, "check_errors", check_errors)
    A = require_square(name, A)
    with without_autocast(A):
        X, infos = ops.inv_ex(A)
    if check_errors:
        ops.check(infos, name)
    return linalg_inv_ex(_written(name, (X, infos), out))


def _written(name: str, results: tuple[Tensor, ...], out: Sequence[Tensor] | None) -> tuple[Tensor, ...]:
    """The results, in `out` if that is given."""
    if out is None:
        return results
    if not isinstance(out, (tuple, list)):
        raise TypeError(f"`{name}` expects out to be a tuple of {len(results)} tensors; got {type_name(out)}")
    if len(out) != len(results):
        raise TypeError(f"`{name}` expects out to be {len(results)} tensors; got {len(out)}")
    for result, target in zip(results, out, strict=True):
        require_tensor(name, "out", target)
        if torch.is_grad_enabled() and (result.requires_grad or target.requires_grad):
            raise RuntimeError(f"`{name}` has no derivative with out, but an argument requires grad")
        if result.dtype != torch.int32 and forward_ad.unpack_dual(result).tangent is not None:
            raise NotImplementedError(f"`{name}` has no derivative with out, but an argument has a tangent")
        if target.dtype != result.dtype:
            raise RuntimeError(f"`{name}` expects a tensor of {result.dtype} in out; got {target.dtype}")
        if target.device != result.device:
            raise RuntimeError(f"`{name}` expects a tensor on {result.device} in out; got one on {target.device}")
    for result, target in zip(results, out, strict=True):
        if target.shape != result.shape:
            _resize_(target, result)
        target.copy_(result)
    return tuple(out)


def _resize_(target: Tensor, result: Tensor) -> None:
    """The target with the shape and strides of the result, and PyTorch's warning if it was not empty."""
    if target.numel():
        warnings.warn(
            f"An output with one or more elements was resized since it had shape {list(target.shape)}, which does not "
            f"match the required output shape {list(result.shape)}. Resize it to zero elements first",
            stacklevel=5,
        )
    with below_autograd():  # where a tensor that requires grad can be resized
        target.resize_(result.shape).as_strided_(result.shape, result.stride())


def _require_system(name: str, LU: Tensor, pivots: Tensor, B: Tensor, left: bool) -> None:
    if LU.ndim < 2:
        raise RuntimeError(f"`{name}` expects LU of 2 or more dimensions; got shape {tuple(LU.shape)}")
    if LU.shape[-2] != LU.shape[-1]:
        raise RuntimeError(f"`{name}` expects LU of shape [..., n, n]; got {tuple(LU.shape)}")
    if pivots.dtype != torch.int32 or pivots.shape != LU.shape[:-1]:
        raise RuntimeError(
            f"`{name}` expects pivots of dtype torch.int32 and shape {tuple(LU.shape[:-1])}; "
            f"got {pivots.dtype} and {tuple(pivots.shape)}"
        )
    if pivots.device != LU.device:
        raise RuntimeError(f"`{name}` expects LU and pivots on the same device; got {LU.device} and {pivots.device}")
    require_right_hand_sides(name, "LU", LU, B, left)
