"""A normalizing flow: dense layers whose log |det| is one call, and whose inverse is another.

Two layers learn the covariance of Gaussian samples by maximum likelihood; the samples that they generate have it.
"""

import torch
from torch import Tensor, nn

import triton_lu


class Dense(nn.Module):
    """x -> W x + b, with log |det W|."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.W = nn.Parameter(torch.eye(size) + 0.1 * torch.randn(size, size))
        self.b = nn.Parameter(torch.zeros(size))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x @ self.W.mT + self.b, triton_lu.linalg.slogdet(self.W).logabsdet

    def inverse(self, z: Tensor) -> Tensor:
        return triton_lu.linalg.solve(self.W, (z - self.b).mT).mT


def main(size: int = 8, steps: int = 300) -> tuple[Tensor, Tensor]:
    """The covariances of the samples given and of those generated."""
    torch.manual_seed(0)
    samples = torch.randn(2000, size) @ (torch.eye(size) + 0.3 * torch.randn(size, size))
    layers = nn.ModuleList([Dense(size), Dense(size)])
    optimizer = torch.optim.Adam(layers.parameters(), lr=0.02)
    for _ in range(steps):
        z, log_likelihood = samples, torch.zeros(())
        for layer in layers:
            z, logabsdet = layer(z)
            log_likelihood = log_likelihood + logabsdet
        loss = z.square().sum(-1).mean() / 2 - log_likelihood
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        x = torch.randn(20_000, size)
        for layer in reversed(layers):
            x = layer.inverse(x)
    return samples.mT.cov(), x.mT.cov()


if __name__ == "__main__":
    print(*main(), sep="\n")
