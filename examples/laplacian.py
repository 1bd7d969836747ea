"""The Laplacian of log |det| of many Slater matrices, as the kinetic energy in quantum Monte Carlo.

Forward over reverse mode, under vmap along directions and walkers. PyTorch's own slogdet is right in this nesting for
one walker, and wrong, without an error, for several on a CPU (2.14).
"""

import torch
from torch import Tensor
from torch.func import grad, jvp, vmap

import triton_lu


def log_determinant(x: Tensor) -> Tensor:
    """log |det| of the orbitals exp(-|x_i - c_j|²) of electrons at x [n, 3]."""
    n = len(x)
    centers = torch.linspace(-1, 1, 3 * n, dtype=x.dtype).view(n, 3)
    orbitals = (x[:, None] - centers).square().sum(-1).neg().exp()
    return triton_lu.linalg.slogdet(orbitals).logabsdet


def laplacian(x: Tensor) -> Tensor:
    directions = torch.eye(x.numel(), dtype=x.dtype).view(-1, *x.shape)
    second = vmap(lambda v: (jvp(grad(log_determinant), (x,), (v,))[1] * v).sum())
    return second(directions).sum()


def main(walkers: int = 200, electrons: int = 6) -> tuple[Tensor, Tensor]:
    """The positions of all walkers and the Laplacian of each."""
    torch.manual_seed(0)
    x = torch.randn(walkers, electrons, 3, dtype=torch.float64)
    return x, vmap(laplacian)(x)


if __name__ == "__main__":
    x, result = main()
    print(f"{len(result)} Laplacians, from {result.min():.3e} to {result.max():.3e}")
    hessian = torch.func.hessian(log_determinant)(x[0]).view(x[0].numel(), -1)
    print(f"the first: {result[0]:.10f}, the trace of its Hessian: {hessian.trace():.10f}")
