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


def _split(T: Tensor) -> tuple[int, Tensor, Tensor]:
    k = min(T.shape[-2:])
    return k, T[..., :k, :k], T[..., k:, :k]


def _stack(top: Tensor, bottom: Tensor) -> Tensor:
    return torch.cat([top, bottom], -2) if bottom.shape[-2] else top


def solve(T: Tensor, Y: Tensor, *, unit: bool) -> Tensor:
    """T̂⁻¹ Y."""
    k, T1, T2 = _split(T)
    top = solve_triangular(T1, Y[..., :k, :], upper=False, unitriangular=unit)
    return _stack(top, Y[..., k:, :] - T2 @ top)


def solve_adjoint(T: Tensor, Y: Tensor, *, unit: bool) -> Tensor:
    """T̂⁻ᴴ Y."""
    k, T1, T2 = _split(T)
    bottom = Y[..., k:, :]
    top = solve_triangular(T1.mH, Y[..., :k, :] - T2.mH @ bottom, upper=True, unitriangular=unit)
    return _stack(top, bottom)


def enlarge(Y: Tensor, m: int, n: int) -> Tensor:
    """Y with zero rows and columns added up to [..., m, n]."""
    return pad(Y, (0, n - Y.shape[-1], 0, m - Y.shape[-2]))
