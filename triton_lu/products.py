"""The maps of large matrices on a GPU, as a short sequence of large products.

Triangular solves are what is slow there, and operations cost microseconds before they start. So the blocks of the
diagonals of L and U are inverted all at once, and every solve is a product with these inverses. The forms are those of
`aten_backend`, with 2 n³ operations, but results of products go from one of two buffers into the other instead of
through a workspace and back. Products of triangles are made block row by block row, without the blocks that are zero.

J is a block of the diagonal; a product that is meant for a triangle also fills the rest of the block on the diagonal,
which is masked or not read.
"""

import math

import torch
from torch import Tensor

from triton_lu import plan, row_order
from triton_lu.parts import add_product_, blocks_of, columns, multiply, part, rows
from triton_lu.results import empty_column_major, empty_row_major


def vjp(LU: Tensor, pivots: Tensor, G: Tensor, block: int) -> Tensor:
    """G -> P X, X = L⁻ᴴ (N + triu(G)) with the strictly lower N = tril(Lᴴ G - triu(G) Uᴴ, -1) U⁻ᴴ."""
    shape = G.shape
    m, n = shape[-2:]
    k = min(m, n)
    blocks = blocks_of(0, k, block)
    B, G = _matrices(LU), _matrices(G)
    inverses_L, inverses_UH = _inverses(B, block)
    inverses_LH = _conjugated_(inverses_L).mT
    S, K = empty_row_major(G), empty_row_major(G)

    # K = Lᴴ G below the diagonal
    LH = rows(S.view(B.mT.shape), 0, k)
    torch.triu(rows(B.mT, 0, k), 1, out=LH)
    _conjugated_(LH).diagonal(dim1=-2, dim2=-1).fill_(1)
    for J in blocks:
        down, up_to_J = slice(J.start, m), slice(0, J.stop)
        multiply(part(LH, J, down), part(G, down, up_to_J), out=part(K, J, up_to_J))
    if m > k:
        rows(K, k, m).copy_(rows(G, k, m))

    # S = N + triu(G): in columns from J on triu(G) gives K its other term, and N the one that solves with U
    torch.triu(G, out=S)
    for i, J in reversed(list(enumerate(blocks))):
        down, right, width = slice(J.start, m), slice(J.start, n), J.stop - J.start
        K_J = part(K, down, J)
        add_product_(K_J, part(S, down, right), _adjoint(part(B, J, right)), alpha=-1)
        rows(K_J, 0, width).tril_(-1)
        add_product_(part(S, down, J), K_J, _corner(inverses_UH, i, width))

    # X = L⁻ᴴ S, where K was
    X = K
    if m > k:
        rows(X, k, m).copy_(rows(S, k, m))
    for i, J in reversed(list(enumerate(blocks))):
        S_J = rows(S, J.start, J.stop)
        if J.stop < m:
            add_product_(S_J, _adjoint(part(B, slice(J.stop, m), J)), rows(X, J.stop, m), alpha=-1)
        multiply(_corner(inverses_LH, i, J.stop - J.start), S_J, out=rows(X, J.start, J.stop))
    S.view(-1, n).index_copy_(0, row_order.of_batch(pivots, m), X.view(-1, n))
    return S.view(shape)


def jvp(LU: Tensor, pivots: Tensor, E: Tensor, block: int) -> Tensor:
    """E -> dL + dU with dL = L T and dU = triu(Z - T U), where Z = L⁻¹ (Pᵀ E) and T = tril(Z U⁻¹, -1)."""
    m, n = E.shape[-2:]
    k = min(m, n)
    blocks = blocks_of(0, k, block)
    B = _matrices(LU)
    inverses_L, inverses_UH = _inverses(B, block)
    inverses_U = _conjugated_(inverses_UH).mT
    W = _matrices(row_order.permuted(E, pivots))
    Z = empty_column_major(W)

    # Z, in the rows from k on what is left of Pᵀ E there
    for i, J in enumerate(blocks):
        W_J = rows(W, J.start, J.stop)
        if J.start:
            add_product_(W_J, part(B, J, slice(0, J.start)), rows(Z, 0, J.start), alpha=-1)
        multiply(_corner(inverses_L, i, J.stop - J.start), W_J, out=rows(Z, J.start, J.stop))
    if m > k:
        rest = rows(W, k, m)
        add_product_(rest, rows(B, k, m), rows(Z, 0, k), alpha=-1)
        rows(Z, k, m).copy_(rest)

    del inverses_L  # for its memory

    # T, where Pᵀ E was
    T = columns(W.copy_(Z), 0, k)
    for i, J in enumerate(blocks):
        down, before = slice(J.start, m), slice(0, J.start)
        T_J = part(T, down, J)
        if J.start:
            add_product_(T_J, part(T, down, before), part(B, before, J), alpha=-1)
        T_J.copy_(torch.matmul(T_J, _corner(inverses_U, i, J.stop - J.start)))
    T.tril_(-1)

    # dU, then dL
    for J in blocks:
        up_to_J, right = slice(0, J.stop), slice(J.start, n)
        add_product_(part(Z, J, right), part(T, J, up_to_J), part(B, up_to_J, right), alpha=-1)
    dL = columns(Z.triu_(), 0, k).add_(T)
    for J in blocks_of(0, m, block):
        up_to_J = slice(0, min(J.stop, k))
        add_product_(part(dL, J, up_to_J), part(B, J, up_to_J).tril(J.start - 1), part(T, up_to_J, up_to_J))
    return Z.view(E.shape)


def curvature(D: Tensor, pivots: Tensor, Y: Tensor, block: int) -> Tensor:
    """(D, Y) -> -tril(X dUᴴ, -1) - triu(dLᴴ X), X = Pᵀ Y."""
    m, n = Y.shape[-2:]
    blocks = blocks_of(0, min(m, n), block)
    D, X = _matrices(D), _matrices(row_order.permuted(Y, pivots)).neg_()
    K = empty_row_major(X)
    for J in blocks:
        down, right = slice(J.start, m), slice(J.start, n)
        multiply(_conjugated_(part(D, down, J).tril(-1)).mT, part(X, down, right), out=part(K, J, right))
    K.triu_()
    for J in blocks:
        down, right = slice(J.start, m), slice(J.start, n)
        lower = torch.matmul(part(X, down, right), _conjugated_(part(D, J, right).triu()).mT)
        part(K, down, J).add_(lower.tril_(-1))
    return K.view(Y.shape)


def mixed(D: Tensor, pivots: Tensor, dB: Tensor, block: int) -> Tensor:
    """(D, δB) -> -P (dL δU + δL dU), both in one product for every block."""
    m, n = dB.shape[-2:]
    pair = _matrices(D), _matrices(dB)
    change = torch.zeros_like(pair[0], memory_format=torch.contiguous_format)
    for J in blocks_of(0, min(m, n), block):
        down, right = slice(J.start, m), slice(J.start, n)
        lower = torch.cat([part(X, down, J).tril(-1) for X in pair], -1)
        upper = torch.cat([part(X, J, right).triu() for X in reversed(pair)], -2)
        add_product_(part(change, down, right), lower, upper, alpha=-1)
    out = empty_row_major(dB)
    out.view(-1, n).index_copy_(0, row_order.of_batch(pivots, m), change.view(-1, n))
    return out


def _inverses(B: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The inverses of the blocks on the diagonals of L and of Uᴴ: lower triangles [*batch, blocks, block, block].

    The last block is completed by the identity. Blocks of `plan.SUBSTITUTION` are inverted by substitution, and joined
    pair by pair: the inverse of a lower triangle with the blocks a, b and c has a⁻¹, -c⁻¹ b a⁻¹ and c⁻¹. In double
    precision: joined in single precision, they would bring the error of `jvp` to six times PyTorch's.
    """
    dtype = torch.complex128 if B.is_complex() else torch.float64
    *batch, m, n = B.shape
    k = min(m, n)
    whole, rest = divmod(k, block)
    # With one more row for every block, smaller blocks along all diagonals are at equal distances.
    shape = (2, *batch, math.ceil(k / block), block + 1, block)
    T = (B.new_zeros if rest else B.new_empty)(shape, dtype=dtype)
    inverses = B.new_zeros(shape, dtype=dtype)
    *to_next, down, right = B.stride()
    for first, count, width in ((0, whole, block), (whole, 1, rest)):
        if count and width:
            step = block * (down + right)
            blocks = B.as_strided(
                (*batch, count, width, width),
                (*to_next, step, down, right),
                B.storage_offset() + first * step,
            )
            place = T.narrow(-3, first, count)[..., :width, :width]
            place[0].copy_(blocks)
            place[1].copy_(blocks.mT)
    _conjugated_(T[1])
    diagonals = T[..., :block, :].diagonal(dim1=-2, dim2=-1)
    diagonals[0].fill_(1)
    if rest:
        diagonals[1, ..., -1, rest:].fill_(1)

    def along(X: Tensor, width: int) -> Tensor:
        count = X[..., 0, 0].numel() * (block // width)
        return X.as_strided((count, width, width), (width * (block + 1), block, 1))

    width = min(plan.SUBSTITUTION, block)
    identity = torch.eye(width, dtype=dtype, device=B.device)
    smallest = along(T, width)
    along(inverses, width).copy_(
        torch.linalg.solve_triangular(smallest, identity.expand_as(smallest).contiguous(), upper=False)
    )
    while width < block:
        b, joined = along(T, 2 * width)[:, width:, :width], along(inverses, 2 * width)
        a_inverse, c_inverse = joined[:, :width, :width], joined[:, width:, width:]
        joined[:, width:, :width].baddbmm_(torch.bmm(c_inverse, b), a_inverse, alpha=-1)
        width *= 2
    inverses_L, inverses_UH = (X.to(B.dtype) for X in rows(inverses, 0, block))
    return inverses_L, inverses_UH


def _corner(inverses: Tensor, i: int, width: int) -> Tensor:
    """The inverse of block i, which is that wide."""
    inverse = inverses.select(-3, i)
    return part(inverse, slice(0, width), slice(0, width))


def _matrices(X: Tensor) -> Tensor:
    """One matrix or a batch of them with one dimension; a copy where every product would make one."""
    X = X.reshape(X.shape[-2:] if X.shape[:-2].numel() == 1 else (-1, *X.shape[-2:]))
    return X if 1 in X.stride()[-2:] else X.contiguous()


def _conjugated_(X: Tensor) -> Tensor:
    return X.conj_physical_() if X.is_complex() else X


def _adjoint(X: Tensor) -> Tensor:
    """Xᴴ without a lazy conjugation, which PyTorch loses inside an operator at the first call of a compiled graph."""
    return X.mT.conj_physical() if X.is_complex() else X.mT
