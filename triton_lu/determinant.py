"""Determinants and adjugates from A = P L U, in ATen operations."""

import numpy as np
import torch
from torch import Tensor
from torch.linalg import solve_triangular

from triton_lu.solve import inverse

LARGE = 2.0**120  # a number of every dtype, as is its reciprocal
MANTISSAS = 64  # whose product, at least 2⁻⁶⁴ and at most 2³², no dtype rounds to zero or infinity


def signed_log(LU: Tensor, pivots: Tensor) -> tuple[Tensor, Tensor]:
    """(sign, log|det|) of P L U."""
    diagonal = LU.diagonal(dim1=-2, dim2=-1)
    return diagonal.sgn().prod(-1) * _parity(pivots), diagonal.abs().log_().sum(-1)


def determinant(LU: Tensor, pivots: Tensor) -> Tensor:
    """det(P L U), which neither over- nor underflows unless the result does."""
    in_double = _product_in_double(LU, pivots)
    if in_double is not None:
        product, is_safe = in_double
        if is_safe.all():
            return product.to(LU.dtype)
    result = _scaled(*_product(LU.diagonal(dim1=-2, dim2=-1))) * _parity(pivots)
    return result if in_double is None else torch.where(is_safe, product.to(LU.dtype), result)


def adjugate(LU: Tensor, pivots: Tensor, adjoint: bool) -> Tensor:
    """adj(P L U), or its conjugate transpose, column-major.

    It is det(A) A⁻¹, or the limit of that where U has zeros on its diagonal.
    """
    X = inverse(LU, pivots, adjoint)
    if LU.shape[-1] == 1:
        return X.fill_(1)
    in_double = _product_in_double(LU, pivots)
    if in_double is not None:
        product, is_safe = in_double
        size = product.abs()
        is_safe &= (size > 1 / LARGE) & (size < LARGE)
        in_dtype = product.to(LU.dtype)
        if is_safe.all():
            return X.mul_((in_dtype.conj() if adjoint else in_dtype)[..., None, None])
    diagonal = LU.diagonal(dim1=-2, dim2=-1)
    is_zero = diagonal == 0
    mantissa, exponent = _product(diagonal)
    factor, powers = mantissa * _parity(pivots), [*_powers_of_two(exponent, LU.dtype)]
    if in_double is not None:  # a matrix has the same bits whatever the others are
        factor = torch.where(is_safe, in_dtype, factor)
        powers = [torch.where(is_safe, 1, power) for power in powers]
    for number in (factor.conj_physical() if adjoint else factor, *powers):
        X.mul_(number[..., None, None])
    if LU.numel() == 0 or not (LU.is_cuda or is_zero.any()):
        return X
    singular = _adjugate_of_singular(LU, pivots, is_zero)
    if adjoint:
        singular = singular.mT.conj_physical()
    return torch.where(is_zero.any(-1)[..., None, None], singular, X, out=X)


def _adjugate_of_singular(LU: Tensor, pivots: Tensor, is_zero: Tensor) -> Tensor:
    """adj(U) L⁻¹ det(P) Pᵀ, where U has zeros on its diagonal, the first at i and the last at j.

    The adjugate of U is c v wᵀ: U v = 0 with v_i = 1 and no entries below, wᵀ U = 0 with w_j = 1 and none before. Its
    entry at (i, j) is c = det(U + e_j e_iᵀ), zero where the rank is less than n - 1.
    """
    n = LU.shape[-1]
    number = torch.arange(n, device=LU.device)
    row, column = number[:, None], number
    first = is_zero.int().argmax(-1)[..., None, None]
    last = n - 1 - is_zero.flip(-1).int().argmax(-1)[..., None, None]
    U, identity = LU.triu(), torch.eye(n, dtype=LU.dtype, device=LU.device)
    v = solve_triangular(torch.where(row < first, U, identity), (row == first).to(LU.dtype), upper=True)
    w = solve_triangular(torch.where(column > last, U, identity), (column == last).to(LU.dtype), upper=True, left=False)
    w = solve_triangular(LU, w, upper=False, left=False, unitriangular=True)
    order = torch.ops.triton_lu.permutation(pivots, n).unsqueeze(-2)
    w = torch.empty_like(w).scatter_(-1, order, w)
    bordered = torch.where((row == last) & (column == first), 1, U)
    factors, exchanges, _ = torch.ops.triton_lu.factor(bordered)
    mantissa, exponent = _product(factors.diagonal(dim1=-2, dim2=-1))
    factor = mantissa * _parity(exchanges) * _parity(pivots)
    return _scaled(v * w * factor[..., None, None], exponent[..., None, None])


def _parity(pivots: Tensor) -> Tensor:
    """det P."""
    steps = torch.arange(1, pivots.shape[-1] + 1, dtype=pivots.dtype, device=pivots.device)
    return 1 - 2 * ((pivots != steps).sum(-1) & 1)


def _product_in_double(LU: Tensor, pivots: Tensor) -> tuple[Tensor, Tensor] | None:
    """det(P L U) on a CPU as the product of U's diagonal; and where no product of some of it can over- or underflow."""
    if LU.is_cuda or LU.numel() == 0:  # a look at them on a GPU would synchronize it
        return None
    n = LU.shape[-1]
    diagonal = LU.numpy().diagonal(axis1=-2, axis2=-1).reshape(-1, n).T  # [n, batch]: sums are over rows
    diagonal = diagonal.astype(np.result_type(diagonal, np.float64), order="C")
    _, exponents = np.frexp(np.abs(diagonal))
    is_safe = np.abs(exponents).sum(0) <= 1000 - n
    exchanges = (np.arange(1, n + 1)[:, None] != pivots.numpy().reshape(-1, n).T).sum(0)
    with np.errstate(all="ignore"):
        product = diagonal.prod(0) * (1 - 2 * (exchanges & 1))
    batch = LU.shape[:-2]
    return torch.from_numpy(product.reshape(batch)), torch.from_numpy(is_safe.reshape(batch))


def _product(x: Tensor) -> tuple[Tensor, Tensor]:
    """The product over the last dimension as a number of moderate size and a power of two."""
    x = x.contiguous()
    exponents = torch.zeros(x.shape[:-1], dtype=torch.int32, device=x.device)
    while True:
        parts = torch.view_as_real(x.resolve_conj()) if x.is_complex() else x.unsqueeze(-1)
        exponent = parts.abs().amax(-1).frexp().exponent
        x = _scaled(x, -exponent)
        exponents = exponents + exponent.sum(-1, dtype=torch.int32)
        if x.shape[-1] <= MANTISSAS:
            return x.prod(-1), exponents
        x = torch.nn.functional.pad(x, (0, -x.shape[-1] % MANTISSAS), value=1).unflatten(-1, (-1, MANTISSAS)).prod(-1)


def _scaled(x: Tensor, exponent: Tensor) -> Tensor:
    """x 2^exponent."""
    first, second = _powers_of_two(exponent, x.dtype)
    return x * first * second


def _powers_of_two(exponent: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """2^exponent in two factors: the power alone may overflow."""
    real = dtype.to_real()
    most = 1023 if real == torch.float64 else 127
    half = (exponent // 2).clamp(-most, most)
    rest = (exponent - half).clamp(-most, most)
    return half.to(real).exp2(), rest.to(real).exp2()
