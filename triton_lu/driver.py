"""The maps on Triton kernels: turns operator arguments into launches as planned."""

import torch
from torch import Tensor
from triton_lu_kernels import warp

from triton_lu import plan


def vjp(LU: Tensor, pivots: Tensor, G: Tensor) -> Tensor:
    """G -> P X, X = L⁻ᴴ (tril(Lᴴ G, -1) + triu(G Uᴴ)) U⁻ᴴ."""
    out = torch.empty_like(G, memory_format=torch.contiguous_format)
    m, n = G.shape[-2:]
    chosen = plan.kernel("vjp", m, n, G.dtype)
    if chosen is None:
        raise _no_kernel("vjp", G)
    with torch.cuda.device_of(G):
        warp.vjp(
            _flat(out, 2),
            _flat(LU, 2),
            _flat(pivots, 1),
            _flat(G, 2),
            matrices=chosen.matrices,
            num_warps=chosen.num_warps,
        )
    return out


def jvp(LU: Tensor, pivots: Tensor, E: Tensor) -> Tensor:
    """E -> L tril(M, -1) + triu(M) U, M = L⁻¹ (Pᵀ E) U⁻¹."""
    raise _no_kernel("jvp", E)


def _flat(X: Tensor, dims: int) -> Tensor:
    """X with one batch dimension before its last `dims`: a view, unless the batch dimensions have no common stride."""
    batch = X.shape[: X.ndim - dims]
    return X.reshape(batch.numel(), *X.shape[X.ndim - dims :])


def _no_kernel(name: str, X: Tensor) -> NotImplementedError:
    m, n = X.shape[-2:]
    return NotImplementedError(
        f"`{name}` has no Triton kernel for {m}×{n} matrices of {X.dtype}; use `triton_lu.backend('auto')` or 'aten'"
    )
