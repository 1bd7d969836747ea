"""Blocks: the pieces of matrices that are too large for one row per lane, and what is done with one.

A block is a field element of tensors [rows, cols], powers of two from 16 on. Products are dots, and solves are products
with inverses of 16 x 16, which are found by substitution: one row per lane. Block by block that costs no accuracy.

The square block B on the diagonal holds L strictly below its own diagonal, U on and above it.
"""

import triton
import triton.language as tl

from . import field, layout, substitution


@triton.jit
def load(
    x,
    row,
    col,
    ROWS: tl.constexpr = 16,
    COLS: tl.constexpr = 16,
    TRANSPOSED: tl.constexpr = False,
    DIAGONAL: tl.constexpr = 0.0,
    order=None,
):
    """The block at (row, col) of x, a `layout.Matrix`, or of its transpose, completed as by `layout.load_tile`. Row i
    of the matrix is its row order[i] if `order` [1, rows] is given."""
    if TRANSPOSED:
        return layout.transpose(load(x, col, row, COLS, ROWS, False, DIAGONAL, order))
    else:
        return layout.reshape(layout.load_tile(x, ROWS, COLS, DIAGONAL, row, col, order), (ROWS, COLS))


@triton.jit
def store(x, block, row, col, TRANSPOSED: tl.constexpr = False, order=None):
    """`load` the other way, row i of the matrix to its row order[i]."""
    if TRANSPOSED:
        store(x, layout.transpose(block), col, row, False, order)
    else:
        tile = layout.reshape(block, (1, block[0].shape[0], block[0].shape[1]))
        layout.store_tile(x, tile, row, col, order)


@triton.jit
def inverses(first, second):
    """L^-1 of two blocks of 16 x 16, then U^-1 of both: substitution on the identity, one row of one block per lane."""
    negated = substitution.negate(layout.unstack(layout.pair(first, second)))
    identity = substitution.identity_like(negated)
    lower = layout.stack(substitution.solve(negated, identity, UPPER=False, TRANSPOSED=True))
    upper = layout.stack(substitution.solve(negated, identity, UPPER=True, TRANSPOSED=False))
    return layout.unpair(lower) + layout.unpair(layout.transpose(upper))


@triton.jit
def inverse(B):
    """L^-1 and U^-1 of one block B of 16 x 16: as `inverses`, of the two upper triangles L^T and U."""
    pair = layout.pair(layout.transpose(unit_lower(B)), upper(B))
    negated = substitution.negate(layout.unstack(pair))
    identity = substitution.identity_like(negated)
    solved = layout.stack(substitution.solve(negated, identity, UPPER=True, TRANSPOSED=False))
    L_inverse, U_inverse_transposed = layout.unpair(solved)
    return L_inverse, layout.transpose(U_inverse_transposed)


@triton.jit
def merge(lower, upper):
    """The block that is `lower` strictly below the diagonal, `upper` on and above it."""
    index = tl.arange(0, lower[0].shape[0])
    return field.where(index[:, None] > index[None, :], lower, upper)


@triton.jit
def unit_lower(B):
    """L of a block of B."""
    index = tl.arange(0, B[0].shape[0])
    one = field.constant_like(B, 1.0)
    zero = field.constant_like(B, 0.0)
    return merge(B, field.where(index[:, None] == index[None, :], one, zero))


@triton.jit
def upper(B):
    """U of a block of B."""
    return merge(field.constant_like(B, 0.0), B)


@triton.jit
def strictly_lower(B):
    """L - I of a block of B."""
    return merge(B, field.constant_like(B, 0.0))


@triton.jit
def adjoint(block):
    """The conjugate transpose."""
    return field.conjugate(layout.transpose(block))


@triton.jit
def phi(B, G):
    """tril(L^H G, -1) + triu(G U^H) of one block."""
    return merge(field.dot(adjoint(unit_lower(B)), G), field.dot(G, adjoint(upper(B))))


@triton.jit
def recompose(B, M):
    """L tril(M, -1) + triu(M) U of one block."""
    return merge(field.dot(unit_lower(B), strictly_lower(M)), field.dot(upper(M), upper(B)))
