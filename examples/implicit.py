"""An implicit layer: x with A x + tanh(x) = b, by a fixed-point iteration that factors A once and solves many times.

The gradient follows from the equation at its solution, not from the iteration: only one step of Newton's method at the
end, which changes x no more, is differentiated.
"""

import torch
from torch import Tensor

import triton_lu


def solve(A: Tensor, b: Tensor, iterations: int = 60) -> Tensor:
    """x [..., n, k] with A x + tanh(x) = b, for A whose inverse is small."""
    LU, pivots = triton_lu.linalg.lu_factor(A)
    with torch.no_grad():
        x = triton_lu.linalg.lu_solve(LU, pivots, b)
        for _ in range(iterations):
            x = triton_lu.linalg.lu_solve(LU, pivots, b - x.tanh())
    # dx = (A + diag(1 - tanh(x)²))⁻¹ (db - dA x)
    residual = b - A @ x - x.tanh()
    J = A.detach()[..., None, :, :] + torch.diag_embed(1 - x.tanh().square().mT)
    step = triton_lu.linalg.solve(J, residual.mT[..., None])
    return x + step[..., 0].mT


def main(n: int = 16, k: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """A, b and x, connected by autograd."""
    torch.manual_seed(0)
    A = (3 * torch.eye(n, dtype=torch.float64) + 0.2 * torch.randn(n, n, dtype=torch.float64)).requires_grad_()
    b = torch.randn(n, k, dtype=torch.float64, requires_grad=True)
    return A, b, solve(A, b)


if __name__ == "__main__":
    A, b, x = main()
    x.square().sum().backward()
    print(f"residual {float((A @ x + x.tanh() - b).abs().amax().detach()):.1e}, gradient {float(A.grad.norm()):.3f}")
