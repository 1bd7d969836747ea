"""The derivatives of LU for matrices of at most 16 rows and columns: one row (or column) per lane.

    vjp:        out = P X,                                X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H
    jvp:        out = L tril(M, -1) + triu(M) U,          M = L^-1 (P^T E) U^-1
    curvature:  out = -tril(X dU^H, -1) - triu(dL^H X),   X = P^T Y

    LU      [*batch, m, n]  L strictly below the diagonal, U on and above it
    D       [*batch, m, n]  dL and dU likewise
    pivots  [*batch, k]     int32, 1-based; k = min(m, n)
    G, E, Y [*batch, m, n]  the upstream gradient; the change of the matrix; a gradient of it
    out     [*batch, m, n]

Real and complex, any strides, but offsets inside a matrix must be below 2^31, counted in reals. Every matrix is
completed with an identity to N x N, N the next power of two: L is then m x m and U is n x n, and the m x n corner of
the result is the answer.

Grid: one axis, `MATRICES` matrices per program. The formulas are evaluated as they stand, by shuffles: products and
solves with U on columns, those with L on rows. Between these lanes and registers change places (`layout.turn`), twice.

Every argument is read once, each row of E and Y straight from its place under P; out is written once, each row of P X
straight to its place; nothing else is touched. No sum crosses matrices: a matrix gets the same bits in any batch.
"""

import triton
import triton.language as tl

from . import field, launch, layout, permutation, substitution


@triton.jit
def _vjp(out, LU, pivots, G, N: tl.constexpr):
    B = layout.load_tile(LU, N, N, 1.0)
    G = layout.load_tile(G, N, N)
    order = permutation.order(pivots, N)

    # tril(L^H G, -1) + triu(G U^H). Products and solves are with L^T and U^T, of the conjugated B.
    factors = layout.unstack(field.conjugate(B))
    cols = layout.unstack(G)
    cols = substitution.merge_columns(cols, substitution.product(factors, cols, UPPER=True, TRANSPOSED=False))
    rows = layout.turn(cols)
    rows = substitution.merge_rows(substitution.product(factors, rows, UPPER=False, TRANSPOSED=True), rows)

    # X = L^-H (..) U^-H. The solves broadcast the same scalars as the products did. Of the negated columns these are
    # different values: the compiler cannot merge the broadcasts, which would keep N^2 of them in registers in between.
    negated = substitution.negate(factors)
    rows = substitution.solve(negated, rows, UPPER=False, TRANSPOSED=True)
    cols = substitution.solve(negated, layout.turn(rows), UPPER=True, TRANSPOSED=False)

    layout.store_tile(out, layout.stack(cols), order=order)  # P X


@triton.jit
def _jvp(out, LU, pivots, E, N: tl.constexpr):
    order = permutation.order(pivots, N)
    dA = layout.load_tile(E, N, N, order=order)  # P^T E
    B = layout.load_tile(LU, N, N, 1.0)

    # M = L^-1 dA U^-1; `negated` for the same reason as in `_vjp`
    factors = layout.unstack(B)
    negated = substitution.negate(factors)
    cols = substitution.solve(negated, layout.unstack(dA), UPPER=True, TRANSPOSED=True)
    rows = substitution.solve(negated, layout.turn(cols), UPPER=False, TRANSPOSED=False)

    # L tril(M, -1) + triu(M) U
    zero = substitution.zero_like(rows)
    lower = substitution.merge_rows(rows, zero)
    rows = substitution.merge_rows(substitution.product(factors, lower, UPPER=False, TRANSPOSED=False), rows)
    cols = layout.turn(rows)
    upper = substitution.merge_columns(zero, cols)
    cols = substitution.merge_columns(cols, substitution.product(factors, upper, UPPER=True, TRANSPOSED=True))

    layout.store_tile(out, layout.stack(cols))


@triton.jit
def _curvature(out, D, pivots, Y, N: tl.constexpr):
    order = permutation.order(pivots, N)
    X = layout.load_tile(Y, N, N, order=order)  # P^T Y
    D = layout.load_tile(D, N, N)

    # -tril(X dU^H, -1) - triu(dL^H X)
    factors = layout.unstack(field.conjugate(D))
    cols = layout.unstack(X)
    rows = substitution.product(factors, layout.turn(cols), UPPER=False, TRANSPOSED=True, UNIT=False)
    cols = substitution.product(factors, cols, UPPER=True, TRANSPOSED=False)
    K = field.negate(layout.stack(substitution.merge_columns(cols, layout.turn(rows))))

    layout.store_tile(out, K)


MAPS = {"vjp": _vjp, "jvp": _jvp, "curvature": _curvature}


@triton.jit
def warp_kernel(
    out,
    LU,
    pivots,
    X,
    shape,
    batch_size,
    MAP: tl.constexpr,
    N: tl.constexpr,
    MATRICES: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch, exists = layout.batch_of_program(tl.program_id(0), shape, batch_size, MATRICES)
    MAP(
        layout.Matrix(*out, shape, batch, exists, RAGGED),
        layout.Matrix(*LU, shape, batch, exists, RAGGED),
        layout.Matrix(*pivots, shape, batch, exists, RAGGED),
        layout.Matrix(*X, shape, batch, exists, RAGGED),
        N,
    )


def evaluate(name, out, LU, pivots, X, *, matrices, num_warps):
    """Writes a map to `out`: "vjp" of G = X, "jvp" of E = X, or "curvature" of D = LU and Y = X.

    `out`, `LU` and `X` are [*batch, m, n] of one dtype (float32, float64, complex64, complex128), m and n at most 16;
    `pivots` is [*batch, min(m, n)] int32. Any strides, expanded inputs too; `out` overlaps nothing. `matrices`, a power
    of two, is the number of them that each program of `num_warps` warps takes. Nothing is validated, and nothing
    launched for an empty `out`.
    """
    if out.numel() == 0:
        return
    batch_size, (m, n) = out.shape[:-2].numel(), out.shape[-2:]
    N = launch.power_of_two(max(m, n))
    args = (*launch.arguments(out.shape, out, LU, pivots, X), batch_size)
    constants = {"MAP": MAPS[name], "N": N, "MATRICES": matrices, "RAGGED": (m, n) != (N, N)}
    launch.run(warp_kernel, launch.ceil_div(batch_size, matrices), args, constants, num_warps=num_warps)
