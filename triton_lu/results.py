"""Layouts of results, the same for every implementation and for tracing."""

import torch
from torch import Tensor


def empty_column_major(A: Tensor) -> Tensor:
    """An uninitialized tensor like A with the layout of LAPACK; no view, which autograd would treat as one."""
    order = (*range(A.ndim - 2), A.ndim - 1, A.ndim - 2)
    return torch.empty_permuted(A.shape, order, dtype=A.dtype, device=A.device)


def empty_row_major(A: Tensor) -> Tensor:
    """An uninitialized tensor like A, contiguous."""
    return torch.empty_like(A, memory_format=torch.contiguous_format)


def empty_factors(A: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Uninitialized LU, pivots and infos of A."""
    *batch, m, n = A.shape
    pivots = A.new_empty((*batch, min(m, n)), dtype=torch.int32)
    return empty_column_major(A), pivots, A.new_empty(batch, dtype=torch.int32)


def empty_solution(B: Tensor, left: bool) -> Tensor:
    """An uninitialized tensor like B, column-major where it stands to the right of A, else row-major."""
    return empty_column_major(B) if left else empty_row_major(B)
