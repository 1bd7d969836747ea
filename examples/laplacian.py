"""The Laplacian of log |det| of many Slater matrices, as the kinetic energy in quantum Monte Carlo.

Forward over reverse mode, one direction at a time under vmap. PyTorch's own slogdet is right in this nesting; with
forward mode inside it is not, and this package's is.
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
    print(main()[1])
