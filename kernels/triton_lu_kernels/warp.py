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

Grid: one axis, `MATRICES` matrices per program. The maps are evaluated as they stand, by shuffles: what has U in it by
columns, what has L in it by rows, with one exchange of lanes and registers on the way there and one on the way back.

Every argument is read once, each row of E and Y straight from its place under P; out is written once, each row of P X
straight to its place; nothing else is touched. No sum crosses matrices: a matrix gets the same bits in any batch.
"""

import triton
import triton.language as tl

from . import field, launch, layout, permutation, substitution, two_by_two


@triton.jit
def vjp_kernel(
    out_ptr,
    LU_ptr,
    pivots_ptr,
    G_ptr,
    out_strides,
    LU_strides,
    pivots_strides,
    G_strides,
    shape,
    batch_size,
    N: tl.constexpr,
    MATRICES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch, batch_mask = layout.batch_of_program(shape, batch_size, MATRICES)
    B = layout.load_tile(LU_ptr, LU_strides, shape, batch, batch_mask, N, N, COMPONENTS, LU_BY_COLUMN, RAGGED, 1.0)
    G = layout.load_tile(G_ptr, G_strides, shape, batch, batch_mask, N, N, COMPONENTS, IN_BY_COLUMN, RAGGED)
    destination = permutation.destinations(pivots_ptr, pivots_strides, shape, batch, batch_mask, N)

    # Products and solves are with L^H and U^H: of the conjugated B, with L^T and U^T.
    factors = layout.unstack(field.conjugate(B))
    cols = layout.unstack(G)
    cols = substitution.merge_columns(cols, substitution.product(factors, cols, UPPER=True, TRANSPOSED=False))
    rows = layout.turn(cols)
    rows = substitution.merge_rows(substitution.product(factors, rows, UPPER=False, TRANSPOSED=True), rows)

    # The solves broadcast the same scalars as the products did. Of the negated columns these are different values: the
    # compiler cannot merge the broadcasts, which would keep N^2 of them in registers from there to here.
    negated = substitution.negate(factors)
    rows = substitution.solve(negated, rows, UPPER=False, TRANSPOSED=True)
    X = layout.stack(substitution.solve(negated, layout.turn(rows), UPPER=True, TRANSPOSED=False))

    layout.store_tile(out_ptr, out_strides, shape, batch, batch_mask, destination, X, OUT_BY_COLUMN, RAGGED)


@triton.jit
def jvp_kernel(
    out_ptr,
    LU_ptr,
    pivots_ptr,
    E_ptr,
    out_strides,
    LU_strides,
    pivots_strides,
    E_strides,
    shape,
    batch_size,
    N: tl.constexpr,
    MATRICES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch, batch_mask = layout.batch_of_program(shape, batch_size, MATRICES)
    source = permutation.destinations(pivots_ptr, pivots_strides, shape, batch, batch_mask, N)
    E = layout.load_tile(
        E_ptr, E_strides, shape, batch, batch_mask, N, N, COMPONENTS, IN_BY_COLUMN, RAGGED, source=source
    )
    B = layout.load_tile(LU_ptr, LU_strides, shape, batch, batch_mask, N, N, COMPONENTS, LU_BY_COLUMN, RAGGED, 1.0)

    # The step of `vjp_kernel`, each transposed, from the last to the first; `negated` for the same reason.
    factors = layout.unstack(B)
    negated = substitution.negate(factors)
    cols = substitution.solve(negated, layout.unstack(E), UPPER=True, TRANSPOSED=True)
    rows = substitution.solve(negated, layout.turn(cols), UPPER=False, TRANSPOSED=False)

    zero = substitution.zero_like(rows)
    lower = substitution.merge_rows(rows, zero)
    rows = substitution.merge_rows(substitution.product(factors, lower, UPPER=False, TRANSPOSED=False), rows)
    cols = layout.turn(rows)
    upper = substitution.merge_columns(zero, cols)
    cols = substitution.merge_columns(cols, substitution.product(factors, upper, UPPER=True, TRANSPOSED=True))

    dB = layout.stack(cols)
    layout.store_tile(out_ptr, out_strides, shape, batch, batch_mask, None, dB, OUT_BY_COLUMN, RAGGED)


@triton.jit
def curvature_kernel(
    out_ptr,
    D_ptr,
    pivots_ptr,
    Y_ptr,
    out_strides,
    D_strides,
    pivots_strides,
    Y_strides,
    shape,
    batch_size,
    N: tl.constexpr,
    MATRICES: tl.constexpr,
    COMPONENTS: tl.constexpr,
    OUT_BY_COLUMN: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    IN_BY_COLUMN: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch, batch_mask = layout.batch_of_program(shape, batch_size, MATRICES)
    source = permutation.destinations(pivots_ptr, pivots_strides, shape, batch, batch_mask, N)
    X = layout.load_tile(
        Y_ptr, Y_strides, shape, batch, batch_mask, N, N, COMPONENTS, IN_BY_COLUMN, RAGGED, source=source
    )
    D = layout.load_tile(D_ptr, D_strides, shape, batch, batch_mask, N, N, COMPONENTS, LU_BY_COLUMN, RAGGED)

    factors = layout.unstack(field.conjugate(D))
    cols = layout.unstack(X)
    rows = substitution.product(factors, layout.turn(cols), UPPER=False, TRANSPOSED=True, UNIT=False)
    cols = substitution.product(factors, cols, UPPER=True, TRANSPOSED=False)
    K = field.negate(layout.stack(substitution.merge_columns(cols, layout.turn(rows))))
    layout.store_tile(out_ptr, out_strides, shape, batch, batch_mask, None, K, OUT_BY_COLUMN, RAGGED)


def vjp(out, LU, pivots, G, *, matrices, num_warps):
    """Writes the backward of LU to `out`: P X with X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H.

    `out`, `LU` and `G` are [*batch, m, n] of one dtype (float32, float64, complex64, complex128), m and n at most 32;
    `pivots` is [*batch, min(m, n)] int32. Any strides, expanded inputs too; `out` overlaps nothing. `matrices`, a power
    of two, is the number of them that each program of `num_warps` warps takes; a program takes a single one if m or n
    is above 16. Nothing is validated here, and nothing launched for an empty `out`.
    """
    if max(out.shape[-2:]) > 16:
        two_by_two.vjp(out, LU, pivots, G, num_warps=num_warps)
    else:
        _launch(vjp_kernel, out, LU, pivots, G, matrices, num_warps)


def jvp(out, LU, pivots, E, *, matrices, num_warps):
    """Writes the forward mode of LU to `out`: L tril(M, -1) + triu(M) U with M = L^-1 (P^T E) U^-1.

    Arguments as those of `vjp`, E for G.
    """
    if max(out.shape[-2:]) > 16:
        two_by_two.jvp(out, LU, pivots, E, num_warps=num_warps)
    else:
        _launch(jvp_kernel, out, LU, pivots, E, matrices, num_warps)


def curvature(out, D, pivots, Y, *, matrices, num_warps):
    """Writes the product of second derivatives to `out`: -tril(X dU^H, -1) - triu(dL^H X) with X = P^T Y.

    Arguments as those of `vjp`, D and Y for LU and G; m and n at most 16.
    """
    _launch(curvature_kernel, out, D, pivots, Y, matrices, num_warps)


def _launch(kernel, out, LU, pivots, x, matrices, num_warps):
    if out.numel() == 0:
        return
    batch_size, (m, n) = out.shape[:-2].numel(), out.shape[-2:]
    N = launch.power_of_two(max(m, n))
    args, constants = launch.arguments(out, LU, pivots, x, N)
    constants |= {"N": N, "MATRICES": matrices}
    programs = launch.ceil_div(batch_size, matrices)
    launch.run(kernel, programs, (*args, batch_size), constants, num_warps=num_warps)
