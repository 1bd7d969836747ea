"""Determinants and adjugates from A = P L U, in ATen operations."""

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.linalg import solve_triangular

from triton_lu import plan
from triton_lu.systems import inverse

Array = np.ndarray[Any, np.dtype[Any]]

MODERATE = 120  # a number with such an exponent, or its negative, is one of every dtype
IN_DOUBLE = 512  # mantissas whose product is normal in double precision
MANTISSAS = 64  # whose product, at least 2⁻⁶⁴ and at most 2³², no dtype rounds to zero or infinity


def signed_log(LU: Tensor, pivots: Tensor) -> tuple[Tensor, Tensor]:
    """(sign, log|det|) of P L U."""
    diagonal = LU.diagonal(dim1=-2, dim2=-1)
    return diagonal.sgn().prod(-1) * _parity(pivots), diagonal.abs().log_().sum(-1)


def determinant(LU: Tensor, pivots: Tensor) -> Tensor:
    """det(P L U), which neither over- nor underflows unless the result does."""
    if LU.is_cuda:
        return _scaled(*_product(LU.diagonal(dim1=-2, dim2=-1))) * _parity(pivots)
    return _tensor(_ldexp(*_product_in_double(LU, pivots)), LU)


def adjugate(LU: Tensor, pivots: Tensor, adjoint: bool) -> Tensor:
    """adj(P L U), or its conjugate transpose, column-major.

    It is det(A) A⁻¹, or the limit of that where U has zeros on its diagonal.
    """
    X = inverse(LU, pivots, adjoint)
    if LU.shape[-1] == 1:
        return X.fill_(1)
    factors, are_regular = _factors(LU, pivots)
    for factor in factors:
        X.mul_((factor.conj_physical() if adjoint else factor)[..., None, None])
    if are_regular or LU.numel() == 0:
        return X
    is_zero = LU.diagonal(dim1=-2, dim2=-1) == 0
    singular = _adjugate_of_singular(LU, pivots, is_zero)
    if adjoint:
        singular = singular.mT.conj_physical()
    return torch.where(is_zero.any(-1)[..., None, None], singular, X, out=X)


def _factors(LU: Tensor, pivots: Tensor) -> tuple[tuple[Tensor, ...], bool]:
    """det(P L U) as a product of numbers that neither over- nor underflow, and whether it is known that none is zero.
    On a CPU, where that can be seen, it is one number if the determinants are such.
    """
    if LU.is_cuda:
        product, exponent = _product(LU.diagonal(dim1=-2, dim2=-1))
        return (product * _parity(pivots), *_powers_of_two(exponent, LU.dtype)), False
    numbers, powers = _product_in_double(LU, pivots)
    are_regular = bool(numbers.all())
    if (np.abs(powers) < MODERATE).all():
        return (_tensor(_ldexp(numbers, powers), LU),), are_regular
    exponent = torch.from_numpy(powers.reshape(LU.shape[:-2]))
    return (_tensor(numbers, LU), *_powers_of_two(exponent, LU.dtype)), are_regular


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


def _product_in_double(LU: Tensor, pivots: Tensor) -> tuple[Array, Array]:
    """det(P L U) on a CPU, as numbers of a size of about 1, or zero, and powers of two."""
    n, batch = LU.shape[-1], LU.shape[:-2].numel()
    diagonal_of_U = LU.diagonal(dim1=-2, dim2=-1)
    if plan.determinant_in_python(LU.shape, LU.dtype):
        number, power = 1.0, 0
        for i, x, pivot in zip(
            range(1, n + 1), diagonal_of_U.flatten().tolist(), pivots.flatten().tolist(), strict=True
        ):
            number, shift = math.frexp(number * x if pivot == i else -number * x)
            power += shift
        return np.array([number]), np.array([power], np.int32)
    diagonal: Array = diagonal_of_U.numpy().reshape(batch, n).T  # [n, batch]: sums are over rows
    diagonal = diagonal.astype(np.result_type(diagonal, np.float64), order="C")
    exchanges = (np.arange(1, n + 1)[:, None] != pivots.numpy().reshape(batch, n).T).sum(0)
    numbers: Array = 1.0 - 2 * (exchanges & 1)
    powers = np.zeros(batch, np.int32)
    with np.errstate(all="ignore"):
        for i in range(0, n, IN_DOUBLE):
            mantissas, exponents = _frexp(diagonal[i : i + IN_DOUBLE])
            numbers, shifts = _frexp(numbers * mantissas.prod(0))
            powers += shifts + exponents.sum(0, dtype=np.int32)
    return numbers, powers


def _frexp(x: Array) -> tuple[Array, Array]:
    """x as mantissas and powers of two; of complex numbers the larger part is between 1/2 and 1."""
    if not np.iscomplexobj(x):
        return np.frexp(x)
    _, powers = np.frexp(np.maximum(np.abs(x.real), np.abs(x.imag)))
    return _ldexp(x, -powers), powers


def _ldexp(x: Array, powers: Array) -> Array:
    """x 2^powers."""
    with np.errstate(all="ignore"):
        if not np.iscomplexobj(x):
            return np.ldexp(x, powers)
        return np.ldexp(x.view(np.float64).reshape(*x.shape, 2), powers[..., None]).view(x.dtype)[..., 0]


def _tensor(x: Array, LU: Tensor) -> Tensor:
    return torch.from_numpy(x.reshape(LU.shape[:-2])).to(LU.dtype)


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
