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


def rows(Y: Tensor, start: int, stop: int) -> Tensor:
    """Y[..., start:stop, :], by an operation that every kind of vmap knows, also when it takes all rows."""
    return Y.narrow(-2, start, stop - start)


def columns(Y: Tensor, start: int, stop: int) -> Tensor:
    """Y[..., start:stop]."""
    return Y.narrow(-1, start, stop - start)


def _split(T: Tensor) -> tuple[int, int, Tensor, Tensor]:
    p, k = T.shape[-2], min(T.shape[-2:])
    T = columns(T, 0, k)
    return k, p, rows(T, 0, k), rows(T, k, p)


def _stack(top: Tensor, bottom: Tensor) -> Tensor:
    return torch.cat([top, bottom], -2) if bottom.shape[-2] else top


def solve(T: Tensor, Y: Tensor, *, unit: bool) -> Tensor:
    """T̂⁻¹ Y."""
    k, p, T1, T2 = _split(T)
    top = solve_triangular(T1, rows(Y, 0, k), upper=False, unitriangular=unit)
    return _stack(top, rows(Y, k, p) - T2 @ top)


def solve_adjoint(T: Tensor, Y: Tensor, *, unit: bool) -> Tensor:
    """T̂⁻ᴴ Y."""
    k, p, T1, T2 = _split(T)
    bottom = rows(Y, k, p)
    top = solve_triangular(T1.mH, rows(Y, 0, k) - T2.mH @ bottom, upper=True, unitriangular=unit)
    return _stack(top, bottom)


def enlarge(Y: Tensor, m: int, n: int) -> Tensor:
    """Y with zero rows and columns added up to [..., m, n]."""
    return pad(Y, (0, n - Y.shape[-1], 0, m - Y.shape[-2]))
