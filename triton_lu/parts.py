"""Parts of matrices, and of batches of them, and products into parts."""

import torch
from torch import Tensor


def rows(Y: Tensor, start: int, stop: int) -> Tensor:
    """Y[..., start:stop, :]; Y itself, without the cost of a view, where that is all of it."""
    return Y if stop - start == Y.shape[-2] else Y.narrow(-2, start, stop - start)


def columns(Y: Tensor, start: int, stop: int) -> Tensor:
    """Y[..., start:stop], likewise."""
    return Y if stop - start == Y.shape[-1] else Y.narrow(-1, start, stop - start)


def part(X: Tensor, I: slice, J: slice) -> Tensor:
    """X[..., I, J], likewise."""
    return columns(rows(X, I.start, I.stop), J.start, J.stop)


def blocks_of(start: int, stop: int, width: int) -> list[slice]:
    """The diagonal from start to stop in blocks of that width."""
    return [slice(i, min(i + width, stop)) for i in range(start, stop, width)]


def add_product_(C: Tensor, A: Tensor, B: Tensor, *, alpha: int = 1) -> None:
    """C += alpha A B. On a CPU ATen would multiply matrix by matrix where a batch C is not contiguous."""
    if C.ndim == 2:
        C.addmm_(A, B, alpha=alpha)
    elif C.is_cuda or C.is_contiguous():
        C.baddbmm_(A, B, alpha=alpha)
    elif C.mT.is_contiguous():
        C.mT.baddbmm_(B.mT, A.mT, alpha=alpha)
    else:
        C.add_(torch.bmm(A, B), alpha=alpha)


def multiply(A: Tensor, B: Tensor, out: Tensor) -> None:
    """out = A B. `matmul`, a composite, would look for an autograd graph."""
    if out.ndim == 2:
        torch.mm(A, B, out=out)
    else:
        torch.bmm(A, B, out=out)
