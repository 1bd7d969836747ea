"""The maps of large matrices on a GPU, as a short sequence of large products.

Triangular solves are what is slow there, and operations cost microseconds before they start. So the blocks of the
diagonals of L and U are inverted all at once, and every solve is a product with these inverses. The forms are those of
`aten_backend`, with 2 n³ operations, but results of products go from one of two buffers into the other instead of
through a workspace and back. Products of triangles are made block row by block row, without the blocks that are zero.

J is a block of the diagonal; a product that is meant for a triangle also fills the rest of the block on the diagonal,
which is masked or not read. Where no solve is waited for, blocks are twice as wide: fewer operations, more zeros.
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
    for J in reversed(blocks):
        down, right = slice(J.start, m), slice(J.start, n)
        K_J = part(K, down, J)
        add_product_(K_J, part(S, down, right), _adjoint(part(B, J, right)), alpha=-1)
        rows(K_J, 0, J.stop - J.start).tril_(-1)
        add_product_(part(S, down, J), K_J, _inverse(inverses_UH, J))

    # X = L⁻ᴴ S, where K was
    X = K
    if m > k:
        rows(X, k, m).copy_(rows(S, k, m))
    for J in reversed(blocks):
        S_J = rows(S, J.start, J.stop)
        if J.stop < m:
            add_product_(S_J, _adjoint(part(B, slice(J.stop, m), J)), rows(X, J.stop, m), alpha=-1)
        multiply(_inverse(inverses_LH, J), S_J, out=rows(X, J.start, J.stop))
    S.view(-1, n).index_copy_(0, row_order.of_batch(pivots, m), X.view(-1, n))
    return S.view(shape)


def jvp(LU: Tensor, pivots: Tensor, E: Tensor, block: int) -> Tensor:
    """E -> dL + dU with dL = L T and dU = triu(Z - T U), where Z = L⁻¹ (Pᵀ E) and T = tril(Z U⁻¹, -1).

    In products with inverses of blocks, T loses the most digits, compared with substitution: its blocks are half as
    wide. The inverse of half a block is a part of the whole one's.
    """
    m, n = E.shape[-2:]
    k = min(m, n)
    B = _matrices(LU)
    inverses_L, inverses_UH = _inverses(B, block)
    inverses_U = _conjugated_(inverses_UH).mT
    W = _matrices(row_order.permuted(E, pivots))
    Z = empty_column_major(W)

    # Z, in the rows from k on what is left of Pᵀ E there
    for J in blocks_of(0, k, block):
        W_J = rows(W, J.start, J.stop)
        if J.start:
            add_product_(W_J, part(B, J, slice(0, J.start)), rows(Z, 0, J.start), alpha=-1)
        multiply(_inverse(inverses_L, J), W_J, out=rows(Z, J.start, J.stop))
    if m > k:
        rest = rows(W, k, m)
        add_product_(rest, rows(B, k, m), rows(Z, 0, k), alpha=-1)
        rows(Z, k, m).copy_(rest)

    del inverses_L  # for its memory

    # T, where Pᵀ E was
    T = columns(W, 0, k)
    for J in blocks_of(0, k, block // 2):
        down, before = slice(J.start, m), slice(0, J.start)
        Z_J = part(Z, down, J)
        if J.start:
            subtracted = torch.addmm if Z.ndim == 2 else torch.baddbmm
            Z_J = subtracted(Z_J, part(T, down, before), part(B, before, J), alpha=-1)
        multiply(Z_J, _inverse(inverses_U, J), out=part(T, down, J))
    T.tril_(-1)

    # dU, then dL
    for J in blocks_of(0, k, 2 * block):
        up_to_J, right = slice(0, J.stop), slice(J.start, n)
        add_product_(part(Z, J, right), part(T, J, up_to_J), part(B, up_to_J, right), alpha=-1)
    dL = columns(Z.triu_(), 0, k).add_(T)
    for J in blocks_of(0, m, 2 * block):
        up_to_J = slice(0, min(J.stop, k))
        add_product_(part(dL, J, up_to_J), part(B, J, up_to_J).tril(J.start - 1), part(T, up_to_J, up_to_J))
    return Z.view(E.shape)


def curvature(D: Tensor, pivots: Tensor, Y: Tensor, block: int) -> Tensor:
    """(D, Y) -> -tril(X dUᴴ, -1) - triu(dLᴴ X), X = Pᵀ Y."""
    m, n = Y.shape[-2:]
    blocks = blocks_of(0, min(m, n), 2 * block)
    D, X = _matrices(D), _matrices(row_order.permuted(Y, pivots)).neg_()
    K = empty_row_major(X)
    for J in blocks:
        down, right = slice(J.start, m), slice(J.start, n)
        multiply(_conjugated_(part(D, down, J).tril(-1)).mT, part(X, down, right), out=part(K, J, right))
    K.triu_()
    for J in blocks:
        down, right = slice(J.start, m), slice(J.start, n)
        dUH = _conjugated_(part(D, J, right).triu()).mT
        part(K, down, J).add_(torch.matmul(part(X, down, right), dUH).tril_(-1))
        del dUH  # before the next one is made
    return K.view(Y.shape)


def mixed(D: Tensor, pivots: Tensor, dB: Tensor, block: int) -> Tensor:
    """(D, δB) -> -P (dL δU + δL dU)."""
    m, n = dB.shape[-2:]
    pair = _matrices(D), _matrices(dB)
    change = torch.zeros_like(pair[0], memory_format=torch.contiguous_format)
    for J in blocks_of(0, min(m, n), 2 * block):
        down, right = slice(J.start, m), slice(J.start, n)
        for X, Y in (pair, pair[::-1]):
            lower, upper = part(X, down, J).tril(-1), part(Y, J, right).triu()
            add_product_(part(change, down, right), lower, upper, alpha=-1)
    out = empty_row_major(dB)
    out.view(-1, n).index_copy_(0, row_order.of_batch(pivots, m), change.view(-1, n))
    return out


def _inverses(B: Tensor, block: int) -> tuple[Tensor, Tensor]:
    """The inverses of the blocks on the diagonals of L and of Uᴴ: lower triangles [*batch, blocks, block, block].

    The last block is completed by the identity. Blocks of `plan.SUBSTITUTION` are inverted by substitution, and joined
    pair by pair: the inverse of a lower triangle with the blocks a, b and c has a⁻¹, -c⁻¹ b a⁻¹ and c⁻¹. Made in single
    precision they would bring the error of `jvp` to six times PyTorch's, so they are made in double precision; where
    there is nothing more precise, Newton's step X (2 - T X) makes the residual of T X that of a substitution.
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
    smallest = along(inverses, width)
    smallest.diagonal(dim1=-2, dim2=-1).fill_(1)
    smallest.copy_(torch.linalg.solve_triangular(along(T, width), smallest, upper=False))
    while width < block:
        b, joined = along(T, 2 * width)[:, width:, :width], along(inverses, 2 * width)
        a_inverse, c_inverse = joined[:, :width, :width], joined[:, width:, width:]
        joined[:, width:, :width].baddbmm_(torch.bmm(c_inverse, b), a_inverse, alpha=-1)
        width *= 2
    inverses = rows(inverses, 0, block)
    if B.dtype == dtype:
        T, X = (x.flatten(0, -3) for x in (rows(T, 0, block).tril(), inverses))
        TX = torch.bmm(T, X)
        # From a zero pivot on there is no inverse, of which the rows before know nothing.
        (torch.view_as_real(TX) if TX.is_complex() else TX).nan_to_num_(0, 0, 0)
        inverses = torch.baddbmm(X, X, TX, beta=2, alpha=-1).view(inverses.shape)
    inverses_L, inverses_UH = inverses.to(B.dtype)
    return inverses_L, inverses_UH


def _inverse(inverses: Tensor, J: slice) -> Tensor:
    """The inverse of J, a block of `_inverses` or a half of one; the last may be narrower."""
    i, start = divmod(J.start, inverses.shape[-1])
    inside = slice(start, start + J.stop - J.start)
    return part(inverses.select(-3, i), inside, inside)


def _matrices(X: Tensor) -> Tensor:
    """One matrix or a batch of them with one dimension; a copy where every product would make one."""
    X = X.reshape(X.shape[-2:] if X.shape[:-2].numel() == 1 else (-1, *X.shape[-2:]))
    return X if 1 in X.stride()[-2:] else X.contiguous()


def _conjugated_(X: Tensor) -> Tensor:
    return X.conj_physical_() if X.is_complex() else X


def _adjoint(X: Tensor) -> Tensor:
    """Xᴴ without a lazy conjugation, which PyTorch loses inside an operator at the first call of a compiled graph."""
    return X.mT.conj_physical() if X.is_complex() else X.mT
