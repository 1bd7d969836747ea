"""The inverses of matrices of at most 32 rows from their factors, written as transposes:

    out = P L^-T U^-T,   the transpose of A^-1 = U^-1 L^-1 P^T

    LU      [*batch, n, n]  L strictly below the diagonal, U on and above it
    pivots  [*batch, n]     int32, 1-based
    out     [*batch, n, n]

Real and complex, any strides, but offsets inside a matrix must be below 2^31, counted in reals. LU is completed with an
identity to N x N, N the next power of two. Everything is read once and written once, each row of `out` straight to its
order under P; nothing else is touched. A matrix gets the same bits in any batch.

Grid: one axis, `MATRICES` matrices per program. Up to 16 x 16, a lane finds a column of A^-1 by substitution. Beyond,
there is one matrix per program, in blocks of 16 x 16: with those of A^-1 P = X, from the last to the first,

    X22 = U22^-1 L22^-1              X21 = -X22 L21 L11^-1
    X12 = -U11^-1 U12 X22            X11 = U11^-1 (L11^-1 - U12 X21)
"""

import triton
import triton.language as tl

from . import blocks, field, launch, layout, permutation, substitution


@triton.jit
def _inverse(out, LU, pivots, N: tl.constexpr):
    negated = substitution.negate(layout.unstack(layout.load_tile(LU, N, N, 1.0)))
    rows = substitution.solve(negated, substitution.identity_like(negated), UPPER=False, TRANSPOSED=False)
    rows = substitution.solve(negated, rows, UPPER=True, TRANSPOSED=False)
    layout.store_tile(out, layout.stack(rows), order=permutation.order(pivots, N))


@triton.jit
def _inverse_in_blocks(out, LU, pivots):
    L11_inverse, L22_inverse, U11_inverse, U22_inverse = blocks.inverses(
        blocks.load(LU, 0, 0, DIAGONAL=1.0), blocks.load(LU, 16, 16, DIAGONAL=1.0)
    )
    top, bottom = permutation.order_in_halves(pivots)
    if LU.shape[0] > 0:  # true: a branch for the sake of compile time
        X22 = field.dot(U22_inverse, L22_inverse)
        blocks.store(out, layout.transpose(X22), 16, 16, order=bottom)
        U12 = blocks.load(LU, 0, 16)
        X12 = field.negate(field.dot(U11_inverse, field.dot(U12, X22)))
        blocks.store(out, layout.transpose(X12), 16, 0, order=bottom)
        L21 = blocks.load(LU, 16, 0)
        X21 = field.negate(field.dot(field.dot(X22, L21), L11_inverse))
        blocks.store(out, layout.transpose(X21), 0, 16, order=top)
        X11 = field.dot(U11_inverse, field.subtract(L11_inverse, field.dot(U12, X21)))
        blocks.store(out, layout.transpose(X11), 0, 0, order=top)


@triton.jit
def inverse_kernel(out, LU, pivots, shape, batch_size, N: tl.constexpr, MATRICES: tl.constexpr, RAGGED: tl.constexpr):
    if N == 32:
        batch, exists = layout.batch_of_one(tl.program_id(0), shape)
        _inverse_in_blocks(
            layout.Matrix(*out, shape, batch, exists, RAGGED),
            layout.Matrix(*LU, shape, batch, exists, RAGGED),
            layout.Matrix(*pivots, shape, batch, exists, RAGGED),
        )
    else:
        batch, exists = layout.batch_of_program(tl.program_id(0), shape, batch_size, MATRICES)
        _inverse(
            layout.Matrix(*out, shape, batch, exists, RAGGED),
            layout.Matrix(*LU, shape, batch, exists, RAGGED),
            layout.Matrix(*pivots, shape, batch, exists, RAGGED),
            N,
        )


def inverse_transpose(out, LU, pivots, *, matrices, registers, num_warps):
    """Writes the transposes of the inverses to `out`: its transpose `out.mT` holds the inverses themselves.

    `out` and `LU` are [*batch, n, n] of one dtype (float32, float64, complex64, complex128), n at most 32; `pivots` is
    [*batch, n] int32. Any strides, expanded inputs too; `out` overlaps nothing. `matrices`, a power of two, 1 above
    n = 16, is the number of them that each program of `num_warps` warps takes; a thread may have that many `registers`,
    at most. Nothing is validated, and nothing launched for an empty `out`.
    """
    if out.numel() == 0:
        return
    batch_size, n = out.shape[:-2].numel(), out.shape[-1]
    N = launch.power_of_two(n)
    args = (*launch.arguments(out.shape, out, LU, pivots), batch_size)
    constants = {"N": N, "MATRICES": matrices, "RAGGED": n != N}
    programs = launch.ceil_div(batch_size, matrices)
    launch.run(inverse_kernel, programs, args, constants, num_warps=num_warps, maxnreg=registers)
