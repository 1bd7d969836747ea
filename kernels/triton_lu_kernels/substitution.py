"""Products and substitutions with triangular matrices that are tuples of columns, one row per lane of a warp.

`factors` and `negated` are the columns of B = packed (L, U), and of -B: each a field element [matrices, rows]. A loop
over registers meets one entry of B at a time, which a shuffle brings to all lanes; L's unit diagonal is implied.

T is one of the triangles of B, or its transpose, and multiplies a tuple of vectors, entry i of the result being the sum
over k of t_ik w_k. On the rows of a matrix W (one column per lane) that is T W, on its columns (one row per lane)
W T^T.
"""

import triton
import triton.language as tl

from . import field


@triton.jit
def _entry(factors, i: tl.constexpr, k: tl.constexpr, TRANSPOSED: tl.constexpr):
    """t_ik, in all lanes."""
    if TRANSPOSED:
        return field.broadcast(factors[i], k)
    else:
        return field.broadcast(factors[k], i)


@triton.jit
def product(factors, vectors, UPPER: tl.constexpr, TRANSPOSED: tl.constexpr, UNIT: tl.constexpr = True):
    """T applied to the N vectors; T is U if UPPER, L otherwise, or the transpose of that. L's diagonal is that of a
    change of L, zero, if not UNIT."""
    N: tl.constexpr = len(vectors)
    result = ()
    for i in tl.static_range(N):
        if UPPER:
            total = field.multiply(_entry(factors, i, i, TRANSPOSED), vectors[i])
        elif UNIT:
            total = vectors[i]
        else:
            total = field.constant_like(vectors[i], 0.0)
        if UPPER != TRANSPOSED:
            for k in tl.static_range(i + 1, N):
                total = field.multiply_add(_entry(factors, i, k, TRANSPOSED), vectors[k], total)
        else:
            for k in tl.static_range(i):
                total = field.multiply_add(_entry(factors, i, k, TRANSPOSED), vectors[k], total)
        result += (total,)
    return result


@triton.jit
def solve(negated, vectors, UPPER: tl.constexpr, TRANSPOSED: tl.constexpr):
    """T^-1 applied to the N vectors; T is U if UPPER, L otherwise, or the transpose of that.

    The sums run from the oldest solution to the newest: the last term alone waits for the step before.
    """
    N: tl.constexpr = len(vectors)
    BACKWARD: tl.constexpr = UPPER != TRANSPOSED
    FIRST: tl.constexpr = N - 1 if BACKWARD else 0
    END: tl.constexpr = -1 if BACKWARD else N
    STEP: tl.constexpr = -1 if BACKWARD else 1
    if UPPER:
        inverse_diagonal = field.negate(field.reciprocal(diagonal(negated)))
    solved = ()  # in the order of the steps
    for i in tl.static_range(FIRST, END, STEP):
        total = vectors[i]
        for k in tl.static_range(FIRST, i, STEP):
            total = field.multiply_add(_entry(negated, i, k, TRANSPOSED), solved[(k - FIRST) * STEP], total)
        if UPPER:
            total = field.multiply(field.broadcast(inverse_diagonal, i), total)
        solved += (total,)
    return solved[::STEP]


@triton.jit
def diagonal(cols):
    """Entry i of every matrix's diagonal in lane i, from its columns."""
    row = tl.arange(0, len(cols))[None, :]
    entries = cols[0]
    for j in tl.static_range(1, len(cols)):
        entries = field.where(row == j, cols[j], entries)
    return entries


@triton.jit
def merge_columns(lower, upper):
    """Columns of the matrix that is `lower` strictly below the diagonal, `upper` on and above it."""
    row = tl.arange(0, len(upper))[None, :]
    merged = ()
    for j in tl.static_range(len(upper)):
        merged += (field.where(row > j, lower[j], upper[j]),)
    return merged


@triton.jit
def merge_rows(lower, upper):
    """Rows of the matrix that is `lower` strictly below the diagonal, `upper` on and above it."""
    col = tl.arange(0, len(upper))[None, :]
    merged = ()
    for i in tl.static_range(len(upper)):
        merged += (field.where(col < i, lower[i], upper[i]),)
    return merged


@triton.jit
def negate(vectors):
    """-W, vector by vector."""
    negated = ()
    for j in tl.static_range(len(vectors)):
        negated += (field.negate(vectors[j]),)
    return negated


@triton.jit
def zero_like(vectors):
    """The zero matrix in the shape of those given."""
    zeros = ()
    for j in tl.static_range(len(vectors)):
        zeros += (field.constant_like(vectors[j], 0.0),)
    return zeros


@triton.jit
def identity_like(vectors):
    """The identity in the shape of the matrices given."""
    lane = tl.arange(0, len(vectors))[None, :]
    identity = ()
    for j in tl.static_range(len(vectors)):
        zero = field.constant_like(vectors[j], 0.0)
        identity += (field.where(lane == j, field.constant_like(vectors[j], 1.0), zero),)
    return identity
