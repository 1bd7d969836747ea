"""Products and solves with the completed triangular factors of a packed LU.

A packed lower factor T is a [..., p, q] matrix of which the lower trapezoid of its first k = min(p, q) columns counts.
It stands for the p×p lower triangular T̂ whose missing columns are those of the identity, so that rectangular matrices
need no formulas of their own. L is the packed lower factor LU with a unit diagonal; U acts from the right as
Y Û⁻¹ = (Ûᵀ⁻¹ Yᵀ)ᵀ, where Uᵀ is the packed lower factor LUᵀ. All functions are differentiable in all arguments.
"""

import torch
from torch import Tensor
from torch.linalg import solve_triangular
from torch.nn.functional import pad

from triton_lu import plan


def rows(Y: Tensor, start: int, stop: int) -> Tensor:
    """Y[..., start:stop, :]."""
    return Y if stop - start == Y.shape[-2] else Y.narrow(-2, start, stop - start)


def columns(Y: Tensor, start: int, stop: int) -> Tensor:
    """Y[..., start:stop]."""
    return Y if stop - start == Y.shape[-1] else Y.narrow(-1, start, stop - start)


def _solve_square(T: Tensor, Y: Tensor, *, upper: bool, unit: bool) -> Tensor:
    width, right_hand_sides = Y.shape[-2:]
    if plan.by_inverse(Y.dtype, right_hand_sides, width, Y.device.type, left=True, batched=Y.ndim > 2):
        identity = torch.eye(width, dtype=T.dtype, device=T.device).expand_as(T)
        return solve_triangular(T, identity, upper=upper, unitriangular=unit) @ Y
    if plan.solve_by_rows(Y.dtype, right_hand_sides, left=True):
        return solve_triangular(T.mT, Y.mT, upper=not upper, left=False, unitriangular=unit).mT
    return solve_triangular(T, Y, upper=upper, unitriangular=unit)


def solve(T: Tensor, Y: Tensor, *, unit: bool) -> Tensor:
    """T̂⁻¹ Y."""
    p, k = T.shape[-2], min(T.shape[-2:])
    T = columns(T, 0, k)
    top = _solve_square(rows(T, 0, k), rows(Y, 0, k), upper=False, unit=unit)
    return top if p == k else torch.cat([top, rows(Y, k, p) - rows(T, k, p) @ top], -2)


def solve_adjoint(T: Tensor, Y: Tensor, *, unit: bool) -> Tensor:
    """T̂⁻ᴴ Y."""
    p, k = T.shape[-2], min(T.shape[-2:])
    T = columns(T, 0, k)
    top = rows(Y, 0, k) if p == k else rows(Y, 0, k) - rows(T, k, p).mH @ rows(Y, k, p)
    top = _solve_square(rows(T, 0, k).mH, top, upper=True, unit=unit)
    return top if p == k else torch.cat([top, rows(Y, k, p)], -2)


def add_product(C: Tensor, A: Tensor, B: Tensor, *, sign: int = 1) -> Tensor:
    """sign C + A B of batches of matrices [batch, ., .], in one pass."""
    return torch.baddbmm(C, A, B, beta=sign)


def enlarge(Y: Tensor, m: int, n: int) -> Tensor:
    """Y with zero rows and columns added up to [..., m, n]."""
    return Y if Y.shape[-2:] == (m, n) else pad(Y, (0, n - Y.shape[-1], 0, m - Y.shape[-2]))
