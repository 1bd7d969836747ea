"""Solutions of systems whose matrices, of at most 32 rows, are factored: one row per lane.

    X = U^-1 L^-1 P^T B     with A = P L U, or
    X = P L^-H U^-H B       with A^H

    LU      [*batch, n, n]  L strictly below the diagonal, U on and above it
    pivots  [*batch, n]     int32, 1-based
    B, X    [*batch, n, k]

Real and complex, any strides, but offsets inside a matrix must be below 2^31, counted in reals. LU is completed with an
identity to N x N, N the next power of two.

Grid: one axis; a program takes `MATRICES` matrices and COLS columns of their right-hand sides. LU is a tuple of
columns, of A^H those of LU^H, whose lower triangle is U^H and whose upper one L^H. So a step brings one unknown of
every right-hand side to all lanes, and takes its multiple of a column off the rows that are left.

A right-hand side gets the same bits in any batch, with any others.
"""

import triton
import triton.language as tl

from . import field, launch, layout, permutation, substitution


@triton.jit
def _substitute(negated, inverse_diagonal, vectors, UPPER: tl.constexpr, UNIT: tl.constexpr):
    """T^-1 applied to columns; T is the upper triangle of the matrix with these negated columns, or the lower one.

    `inverse_diagonal` is that of T, if its diagonal is not UNIT.
    """
    N: tl.constexpr = len(negated)
    FIRST: tl.constexpr = N - 1 if UPPER else 0
    END: tl.constexpr = -1 if UPPER else N
    STEP: tl.constexpr = -1 if UPPER else 1
    row = tl.arange(0, N)[None, :]
    for j in tl.static_range(FIRST, END, STEP):
        remains = row < j if UPPER else row > j
        updated = ()
        for c in tl.static_range(len(vectors)):
            solved = vectors[c] if UNIT else field.multiply(inverse_diagonal, vectors[c])
            unknown = field.broadcast(solved, j)
            rest = field.multiply_add(negated[j], unknown, vectors[c])
            done = vectors[c] if UNIT else field.where(row == j, unknown, vectors[c])
            updated += (field.where(remains, rest, done),)
        vectors = updated
    return vectors


@triton.jit
def _solve(
    X,
    LU,
    pivots,
    B,
    col,
    N: tl.constexpr,
    COLS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    CONJUGATED: tl.constexpr,
):
    order = permutation.order(pivots, N)
    T = layout.load_tile(LU, N, N, 1.0)
    negated = layout.unstack(field.negate(field.conjugate(T) if CONJUGATED else T))
    inverse_diagonal = field.negate(field.reciprocal(substitution.diagonal(negated)))
    B = layout.load_tile(B, N, COLS, col=col, order=None if TRANSPOSED else order)
    vectors = _substitute(negated, inverse_diagonal, layout.unstack(B), UPPER=False, UNIT=not TRANSPOSED)
    vectors = _substitute(negated, inverse_diagonal, vectors, UPPER=True, UNIT=TRANSPOSED)
    layout.store_tile(X, layout.stack(vectors), col=col, order=order if TRANSPOSED else None)


@triton.jit
def lu_solve_kernel(
    X,
    LU,
    pivots,
    B,
    shape,
    batch_size,
    N: tl.constexpr,
    COLS: tl.constexpr,
    MATRICES: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    CONJUGATED: tl.constexpr,
    RAGGED: tl.constexpr,
):
    parts = tl.cdiv(shape[1], COLS)
    batch, exists = layout.batch_of_program(tl.program_id(0) // parts, shape, batch_size, MATRICES)
    square = shape[:1] + shape[:1] + shape[2:]
    _solve(
        layout.Matrix(*X, shape, batch, exists, RAGGED),
        layout.Matrix(*LU, square, batch, exists, RAGGED),
        layout.Matrix(*pivots, square, batch, exists, RAGGED),
        layout.Matrix(*B, shape, batch, exists, RAGGED),
        tl.program_id(0) % parts * COLS,
        N,
        COLS,
        TRANSPOSED,
        CONJUGATED,
    )


def lu_solve(X, LU, pivots, B, *, left, adjoint, matrices, cols, num_warps):
    """Writes to `X` the solution of A X = B, or of X A = B if not `left`, with A^H in the place of A if `adjoint`.

    `LU` is [*batch, n, n], n at most 32, `B` and `X` are [*batch, n, k], or [*batch, k, n] if not `left`, all of one
    dtype (float32, float64, complex64, complex128); `pivots` is [*batch, n] int32. Any strides, expanded inputs too;
    `X` overlaps nothing. Each program of `num_warps` warps takes that many `matrices` and that many `cols` of their
    right-hand sides, both powers of two. Nothing is validated, and nothing launched for an empty `X`.
    """
    if X.numel() == 0:
        return
    transposed = left == adjoint
    if transposed:
        LU = LU.mT
    if not left:  # A^T X^T = B^T
        X, B = X.mT, B.mT
    batch_size, (n, k) = X.shape[:-2].numel(), X.shape[-2:]
    N = launch.power_of_two(n)
    args = (*launch.arguments(X.shape, X, LU, pivots, B), batch_size)
    constants = {
        "N": N,
        "COLS": cols,
        "MATRICES": matrices,
        "TRANSPOSED": transposed,
        "CONJUGATED": adjoint and LU.is_complex(),
        "RAGGED": n != N or k % cols != 0,
    }
    programs = launch.ceil_div(batch_size, matrices) * launch.ceil_div(k, cols)
    launch.run(lu_solve_kernel, programs, args, constants, num_warps=num_warps)
