"""The maps of a differentiable LU in ATen operations: what runs on a CPU, and the oracle of the kernels.

Notation: A = P L U with A of m×n, k = min(m, n); B is L and U packed; J is a block of the diagonal, R the rows or
columns after it. `vjp` and `jvp` are sweeps over the diagonal blocks that work in place on one copy of their argument
and spend 4/3 n³ flops, twice those of the factorization; nearly all of them are matrix products.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.linalg import solve_triangular

from triton_lu import plan


def factor(A: Tensor, pivot: bool) -> tuple[Tensor, Tensor, Tensor]:
    """A -> (LU, pivots, infos)."""
    if pivot:
        return tuple(torch.linalg.lu_factor_ex(A))
    LU = empty_column_major(A).copy_(A)
    if LU.numel():
        eliminate_(LU)
    k = min(A.shape[-2:])
    step = torch.arange(1, k + 1, dtype=torch.int32, device=A.device)
    pivots = step.expand(*A.shape[:-2], k).contiguous()
    zero_pivots = torch.where(LU.diagonal(dim1=-2, dim2=-1) == 0, step, k + 1)
    infos = zero_pivots.amin(-1).remainder_(k + 1) if k else pivots.new_zeros(A.shape[:-2])
    return LU, pivots, infos


def empty_column_major(A: Tensor) -> Tensor:
    """An uninitialized tensor like A with the layout of LAPACK; no view, which autograd would treat as one."""
    order = (*range(A.ndim - 2), A.ndim - 1, A.ndim - 2)
    return torch.empty_permuted(A.shape, order, dtype=A.dtype, device=A.device)


def eliminate_(A: Tensor) -> None:
    """Gaussian elimination without pivoting, in place, recursive in the columns: [A₁ A₂] -> L\\U.

    Like LAPACK it does not divide by a pivot that is exactly zero and goes on.
    """
    m, n = A.shape[-2:]
    if m == 1:
        return
    if n == 1:
        pivot = A[..., :1, :]
        A[..., 1:, :] /= torch.where(pivot == 0, 1, pivot)
        return
    h = min(m, n) // 2
    eliminate_(A[..., :h])
    A[..., :h, h:] = solve_triangular(A[..., :h, :h], A[..., :h, h:], upper=False, unitriangular=True)
    A[..., h:, h:] -= A[..., h:, :h] @ A[..., :h, h:]
    eliminate_(A[..., h:, h:])


def permutation(pivots: Tensor, m: int) -> Tensor:
    """Row i of Pᵀ A is row permutation[i] of A. Parallel: O(log k) passes over all steps at once.

    Step i of the factorization exchanges the rows at positions i and pivots[i] - 1 >= i. A position is touched by the
    earlier steps that chose it, then by its own step: `earlier` links each step to the one that chose the same row
    before it, `latest` each position to the last step that chose it. The row found at position i by step i follows the
    links to their root, resolved for all i by pointer doubling.
    """
    k = pivots.shape[-1]
    chosen = pivots.long() - 1
    step = torch.arange(m, device=pivots.device)
    steps = step[:k].expand_as(chosen)
    in_order, order = chosen.sort(dim=-1, stable=True)
    link = torch.where(in_order[..., 1:] == in_order[..., :-1], order[..., :-1], -1)
    earlier = torch.full_like(chosen, -1).scatter_(-1, order[..., 1:], link)
    latest = chosen.new_full((*chosen.shape[:-1], m), -1).scatter_reduce_(-1, chosen, steps, "amax")
    latest[..., :k] = torch.where(chosen == steps, earlier, latest[..., :k])
    found = torch.where(latest < 0, step, latest)
    for _ in range((k - 1).bit_length()):
        found = found.gather(-1, found)
    final = torch.where(earlier < 0, chosen, found.gather(-1, earlier.clamp_(min=0)))
    return torch.cat([final, found[..., k:]], -1)


def vjp(LU: Tensor, pivots: Tensor, G: Tensor) -> Tensor:
    """G -> P X, X = L⁻ᴴ (tril(Lᴴ G, -1) + triu(G Uᴴ)) U⁻ᴴ."""
    m, n = G.shape[-2:]
    W = G.clone(memory_format=torch.contiguous_format)
    if W.numel() == 0:
        return W
    flat_W, flat_LU = _matrices(W), _matrices(LU)
    chosen = plan.sweep(G.numel() // (m * n), m, n)
    _vjp_sweep_(flat_W, flat_LU, chosen.blocks, chosen.invert)
    rows = permutation(pivots, m)
    # in place, a panel of columns at a time: a second copy of W would be half of the memory of a backward
    origin = _row_index(torch.empty_like(rows).scatter_(-1, rows, torch.arange(m, device=G.device).expand_as(rows)))
    for panel in W.view(-1, n).split(max(64, n // 8), dim=-1):
        panel.copy_(panel.index_select(0, origin))
    return W


def jvp(LU: Tensor, pivots: Tensor, E: Tensor) -> Tensor:
    """E -> L tril(M, -1) + triu(M) U, M = L⁻¹ (Pᵀ E) U⁻¹: the tangent of B along E."""
    m, n = E.shape[-2:]
    W = torch.empty_like(E, memory_format=torch.contiguous_format)
    if W.numel() == 0:
        return W
    torch.index_select(E.reshape(-1, n), 0, _row_index(permutation(pivots, m)), out=W.view(-1, n))
    chosen = plan.sweep(E.numel() // (m * n), m, n)
    _jvp_sweep_(_matrices(W), _matrices(LU), chosen.blocks, chosen.invert)
    return W


def _matrices(X: Tensor) -> Tensor:
    """X as one matrix or one batch of matrices."""
    return X.reshape(X.shape[-2:]) if X.shape[:-2].numel() == 1 else X.reshape(-1, *X.shape[-2:])


def _row_index(rows: Tensor) -> Tensor:
    """Row numbers within each matrix -> row numbers within the whole batch."""
    rows = rows.reshape(-1, rows.shape[-1])
    first = torch.arange(0, rows.numel(), rows.shape[-1], device=rows.device)
    return (rows + first[:, None]).view(-1)


def _diagonal_blocks(k: int, width: int) -> Iterator[tuple[slice, slice]]:
    """(J, R) along the diagonal, first to last."""
    for start in range(0, k, width):
        stop = min(start + width, k)
        yield slice(start, stop), slice(stop, None)


def _vjp_sweep_(W: Tensor, B: Tensor, blocks: tuple[int, ...], invert: bool) -> None:
    """W -> L⁻ᴴ (tril(Lᴴ W, -1) + triu(W Uᴴ)) U⁻ᴴ in place: a blocked factorization run backwards.

    S = W[R, R] is final when block J is reached, and only read from then on.
    """
    m, n = W.shape[-2:]
    for J, R in reversed(list(_diagonal_blocks(min(m, n), blocks[0]))):
        W11, B11H = W[..., J, J], B[..., J, J].mH
        if J.stop < max(m, n):
            S, L21H, U12H = W[..., R, R], B[..., R, J].mH, B[..., J, R].mH
            W12 = W[..., J, R] - L21H @ S
            W21 = W[..., R, J] - S @ U12H
            if invert:
                identity = torch.eye(J.stop - J.start, dtype=W.dtype, device=W.device).expand_as(W11)
                W12 = solve_triangular(B11H, identity, upper=True, unitriangular=True) @ W12
                W21 = W21 @ solve_triangular(B11H, identity, upper=False)
            else:
                W12 = solve_triangular(B11H, W12, upper=True, unitriangular=True)
                W21 = solve_triangular(B11H, W21, upper=False, left=False)
            W[..., J, R] = W12
            W[..., R, J] = W21
            W11 -= (W12 @ U12H).tril_(-1)
            W11 -= (L21H @ W21).triu_()
        if len(blocks) > 1:
            _vjp_sweep_(W11, B[..., J, J], blocks[1:], invert)
        else:
            L11H = B11H.triu(1)
            Phi = (L11H @ W11).add_(W11).tril_(-1).add_((W11 @ B11H.tril()).triu_())
            X = solve_triangular(B11H, Phi, upper=False, left=False)
            W11.copy_(solve_triangular(B11H, X, upper=True, unitriangular=True))


def _jvp_sweep_(W: Tensor, B: Tensor, blocks: tuple[int, ...], invert: bool) -> None:
    """W -> L tril(M, -1) + triu(M) U, M = L⁻¹ W U⁻¹ in place: the factorization's tangent, left-looking.

    With the rows and columns before J final, the tangent of A = L U gives that of block row and column J.
    """
    m, n = W.shape[-2:]
    for J, R in _diagonal_blocks(min(m, n), blocks[0]):
        before, below = slice(0, J.start), slice(J.start, None)
        W11, B11 = W[..., J, J], B[..., J, J]
        if J.start:
            W[..., below, J] -= W[..., below, before] @ B[..., before, J] + B[..., below, before] @ W[..., before, J]
            W[..., J, R] -= W[..., J, before] @ B[..., before, R] + B[..., J, before] @ W[..., before, R]
        if len(blocks) > 1:
            _jvp_sweep_(W11, B11, blocks[1:], invert)
        else:
            M = solve_triangular(B11, W11, upper=False, unitriangular=True)
            M = solve_triangular(B11, M, upper=True, left=False)
            lower, upper = M.tril(-1), M.triu()
            W11.copy_(lower.add_(B11.tril(-1) @ lower).add_(upper @ B11.triu()))
        if J.stop < max(m, n):
            W12 = W[..., J, R] - W11.tril(-1) @ B[..., J, R]
            W21 = W[..., R, J] - B[..., R, J] @ W11.triu()
            if invert:
                identity = torch.eye(J.stop - J.start, dtype=W.dtype, device=W.device).expand_as(W11)
                W[..., J, R] = solve_triangular(B11, identity, upper=False, unitriangular=True) @ W12
                W[..., R, J] = W21 @ solve_triangular(B11, identity, upper=True)
            else:
                W[..., J, R] = solve_triangular(B11, W12, upper=False, unitriangular=True)
                W[..., R, J] = solve_triangular(B11, W21, upper=True, left=False)
