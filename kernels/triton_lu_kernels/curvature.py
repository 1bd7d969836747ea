"""The product of second derivatives, of matrices above 128 x 128: with dL = tril(D, -1), dU = triu(D) and X = P^T Y,

    out = -tril(X dU^H, -1) - triu(dL^H X)

out, D and Y are [*batch, m, n] with any strides, `order` [*batch, m] integers, contiguous: row i of X is row order[i]
of Y. Only `out` is written. Grid: one axis, one program per block of a matrix.

A block below the diagonal, in the rows i and columns j, is a sum over c from j on; one above it is the transpose of
such a sum for X^T and D^T, from i on; one on the diagonal consists of both. Every entry is the sum of its own terms in
the same order in any batch.
"""

import triton
import triton.language as tl

from . import blocks, field, launch, layout, permutation


@triton.jit
def _sum(D, Y, order, i, j, BLOCK: tl.constexpr, TERMS: tl.constexpr, TRANSPOSED: tl.constexpr):
    """The block (i, j) of X dU^H, or, if TRANSPOSED, of X^T conj(dL)."""
    total = field.zeros((BLOCK, BLOCK), Y.pointer.dtype.element_ty, Y.COMPONENTS)
    row = j + tl.arange(0, BLOCK)[:, None]
    if TRANSPOSED:
        end = Y.shape[0]
        row += 1  # dL is strictly lower
    else:
        end = Y.shape[1]
        rows = permutation.load_order(order, i, BLOCK).to(tl.int32)
    for c in tl.range(j, end, TERMS, disable_licm=True):
        if TRANSPOSED:
            rows = permutation.load_order(order, c, TERMS).to(tl.int32)
        X = blocks.load(Y, i, c, BLOCK, TERMS, TRANSPOSED, order=rows)
        T = blocks.load(D, j, c, BLOCK, TERMS, TRANSPOSED)
        col = c + tl.arange(0, TERMS)[None, :]
        T = field.where(col >= row, T, field.constant_like(T, 0.0))
        total = field.add(total, field.dot(X, blocks.adjoint(T)))
    return total


@triton.jit
def _store_block(out, D, Y, order, i, j, BLOCK: tl.constexpr, TERMS: tl.constexpr):
    if i > j:
        K = _sum(D, Y, order, i, j, BLOCK, TERMS, False)
    else:
        K = layout.transpose(_sum(D, Y, order, j, i, BLOCK, TERMS, True))
        if i == j:
            K = blocks.merge(_sum(D, Y, order, i, j, BLOCK, TERMS, False), K)
    blocks.store(out, field.negate(K), i, j)


@triton.jit
def curvature_kernel(
    out,
    D,
    order,
    Y,
    shape,
    BLOCK: tl.constexpr,
    TERMS: tl.constexpr,
    RAGGED: tl.constexpr,
):
    blocks_right = tl.cdiv(shape[1], BLOCK)
    programs = tl.cdiv(shape[0], BLOCK) * blocks_right
    batch, exists = layout.batch_of_one(tl.program_id(0) // programs, shape)
    _store_block(
        layout.Matrix(*out, shape, batch, exists, RAGGED),
        layout.Matrix(*D, shape, batch, exists, RAGGED),
        layout.Matrix(*Y, shape, batch, exists, RAGGED),
        layout.Matrix(*order, shape, batch, exists, RAGGED),
        tl.program_id(0) % programs // blocks_right * BLOCK,
        tl.program_id(0) % blocks_right * BLOCK,
        BLOCK,
        TERMS,
    )


def curvature(out, D, order, Y, *, block, terms, num_warps):
    """Writes -tril(X dU^H, -1) - triu(dL^H X) to `out`. Nothing is launched for an empty `out`. Options:

    block: the width of the blocks, a power of two from 16 on.
    terms: how many terms of a sum are loaded at once, a power of two from 16 to `block`.
    num_warps
    """
    if out.numel() == 0:
        return
    m, n = out.shape[-2:]
    args = launch.arguments(out.shape, out, D, order, Y)
    constants = {"BLOCK": block, "TERMS": terms, "RAGGED": m % block != 0 or n % block != 0}
    programs = out.shape[:-2].numel() * launch.ceil_div(m, block) * launch.ceil_div(n, block)
    launch.run(curvature_kernel, programs, args, constants, num_warps=num_warps, num_stages=1)
