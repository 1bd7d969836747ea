"""Products and substitutions with triangular matrices that are tuples of columns, one row per lane of a warp.

`factors` and `negated` are the columns of B = packed (L, U), and of -B: each a field element [matrices, rows]. A loop
over registers meets one entry of B at a time, which a shuffle brings to all lanes; L's unit diagonal is implied.
The other operand is columns (one row per lane) for a product with U^T from the right, rows (one column per lane) for
one with L^T from the left.

The sums of the solves run from the oldest solution to the newest: the last term alone waits for the step before.
"""

import triton
import triton.language as tl

from . import field


@triton.jit
def transposed_lower_product(factors, rows):
    """L^T W for the N rows of W [matrices, cols]: row i becomes w_i + sum over k > i of l_ki w_k."""
    N: tl.constexpr = len(rows)
    product = ()
    for i in tl.static_range(N):
        total = rows[i]
        for k in tl.static_range(i + 1, N):
            total = field.multiply_add(field.broadcast(factors[i], k), rows[k], total)
        product += (total,)
    return product


@triton.jit
def upper_product(factors, cols):
    """W U^T for the N columns of W [matrices, rows]: column j becomes the sum over k >= j of u_jk w_k."""
    N: tl.constexpr = len(cols)
    product = ()
    for j in tl.static_range(N):
        total = field.multiply(field.broadcast(factors[j], j), cols[j])
        for k in tl.static_range(j + 1, N):
            total = field.multiply_add(field.broadcast(factors[k], j), cols[k], total)
        product += (total,)
    return product


@triton.jit
def upper_solve(negated, inverse_diagonal, cols):
    """W U^-T, column by column from the last; `negated` holds the columns of -U."""
    N: tl.constexpr = len(cols)
    solved = ()
    for j in tl.static_range(N - 1, -1, -1):
        total = cols[j]
        for k in tl.static_range(N - 1, j, -1):
            total = field.multiply_add(field.broadcast(negated[k], j), solved[k - j - 1], total)
        newest = (field.multiply(field.broadcast(inverse_diagonal, j), total),)
        solved = newest + solved
    return solved


@triton.jit
def transposed_lower_solve(negated, rows):
    """L^-T W, row by row from the last; `negated` holds the columns of -L."""
    N: tl.constexpr = len(rows)
    solved = ()
    for i in tl.static_range(N - 1, -1, -1):
        total = rows[i]
        for k in tl.static_range(N - 1, i, -1):
            total = field.multiply_add(field.broadcast(negated[i], k), solved[k - i - 1], total)
        newest = (total,)
        solved = newest + solved
    return solved


@triton.jit
def merge(lower, upper):
    """Columns that are `lower`'s strictly below the diagonal and `upper`'s on and above it."""
    N: tl.constexpr = len(upper)
    row = tl.arange(0, N)[None, :]
    merged = ()
    for j in tl.static_range(N):
        merged += (field.where(row <= j, upper[j], lower[j]),)
    return merged


@triton.jit
def diagonal(cols):
    """Entry i of every matrix's diagonal in lane i, from its columns."""
    N: tl.constexpr = len(cols)
    row = tl.arange(0, N)[None, :]
    entries = cols[0]
    for j in tl.static_range(1, N):
        entries = field.where(row == j, cols[j], entries)
    return entries


@triton.jit
def negate_columns(cols):
    """-W, column by column."""
    negated = ()
    for j in tl.static_range(len(cols)):
        negated += (field.negate(cols[j]),)
    return negated


@triton.jit
def identity_columns(like):
    """The columns (or rows) of the identity, in the shape of those given."""
    N: tl.constexpr = len(like)
    lane = tl.arange(0, N)[None, :]
    columns = ()
    for j in tl.static_range(N):
        columns += (field.where(lane == j, field.constant_like(like[j], 1.0), field.constant_like(like[j], 0.0)),)
    return columns
