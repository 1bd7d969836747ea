"""The backward of LU and its forward mode for matrices of 17 to 32 rows or columns: two by two blocks of 16 x 16.

    vjp:    out = P X,                              X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H
    jvp:    out = L tril(M, -1) + triu(M) U,        M = L^-1 (P^T E) U^-1

Arguments, completion and memory effects are those of `warp`; here N = 32. Grid: one axis, one matrix per program.

The blocked factorization

    dB11 = jvp(dA11)    dU12 = L11^-1 (dA12 - dL11 U12)    dL21 = (dA21 - L21 dU11) U11^-1
    dB22 = jvp(dA22 - dL21 U12 - L21 dU12)

is followed for jvp, with dA = P^T E, and step by step transposed and backwards for vjp. The diagonal block that comes
last is read twice: kept in registers, it would drive others out of them.

What follows the inverses stands in a branch that is always taken, for the sake of compile time: passes of the compiler
walk, for every dot and every access, through all connected operations of its region, and two regions take half as long.
"""

import triton
import triton.language as tl

from . import blocks, field, launch, layout, permutation


@triton.jit
def _vjp(out, LU, pivots, G):
    B11 = blocks.load(LU, 0, 0, DIAGONAL=1.0)
    B22 = blocks.load(LU, 16, 16, DIAGONAL=1.0)
    L11_inverse, L22_inverse, U11_inverse, U22_inverse = blocks.inverses(B11, B22)
    top, bottom = permutation.order_in_halves(pivots)
    if LU.shape[0] > 0:  # true: a branch for the sake of compile time
        # X22 = vjp(G22)
        G22 = blocks.load(G, 16, 16)
        X22 = blocks.vjp(B22, L22_inverse, U22_inverse, G22)
        blocks.store(out, X22, 16, 16, order=bottom)

        # X21 = (G21 - X22 U12^H) U11^-H
        U12 = blocks.load(LU, 0, 16)
        G21 = blocks.load(G, 16, 0)
        G21 = field.subtract(G21, field.dot(X22, blocks.adjoint(U12)))
        X21 = field.dot(G21, blocks.adjoint(U11_inverse))
        blocks.store(out, X21, 16, 0, order=bottom)

        # X12 = L11^-H (G12 - L21^H X22)
        L21 = blocks.load(LU, 16, 0)
        G12 = blocks.load(G, 0, 16)
        G12 = field.subtract(G12, field.dot(blocks.adjoint(L21), X22))
        X12 = field.dot(blocks.adjoint(L11_inverse), G12)
        blocks.store(out, X12, 0, 16, order=top)

        # X11 = vjp(G11 - tril(X12 U12^H, -1) - triu(L21^H X21))
        G11 = blocks.load(G, 0, 0)
        lower = field.dot(X12, blocks.adjoint(U12))
        G11 = field.subtract(G11, blocks.merge(lower, field.dot(blocks.adjoint(L21), X21)))
        B11 = blocks.load(LU, 0, 0, DIAGONAL=1.0)
        X11 = blocks.vjp(B11, L11_inverse, U11_inverse, G11)
        blocks.store(out, X11, 0, 0, order=top)


@triton.jit
def _jvp(out, LU, pivots, E):
    B11 = blocks.load(LU, 0, 0, DIAGONAL=1.0)
    B22 = blocks.load(LU, 16, 16, DIAGONAL=1.0)
    L11_inverse, L22_inverse, U11_inverse, U22_inverse = blocks.inverses(B11, B22)
    top, bottom = permutation.order_in_halves(pivots)
    if LU.shape[0] > 0:  # true: a branch for the sake of compile time
        # dB11 = jvp(dA11)
        dA11 = blocks.load(E, 0, 0, order=top)
        dB11 = blocks.jvp(B11, L11_inverse, U11_inverse, dA11)
        blocks.store(out, dB11, 0, 0)

        # dU12 = L11^-1 (dA12 - dL11 U12)
        U12 = blocks.load(LU, 0, 16)
        dA12 = blocks.load(E, 0, 16, order=top)
        dA12 = field.subtract(dA12, field.dot(blocks.strictly_lower(dB11), U12))
        dU12 = field.dot(L11_inverse, dA12)
        blocks.store(out, dU12, 0, 16)

        # dL21 = (dA21 - L21 dU11) U11^-1
        L21 = blocks.load(LU, 16, 0)
        dA21 = blocks.load(E, 16, 0, order=bottom)
        dA21 = field.subtract(dA21, field.dot(L21, blocks.upper(dB11)))
        dL21 = field.dot(dA21, U11_inverse)
        blocks.store(out, dL21, 16, 0)

        # dB22 = jvp(dA22 - dL21 U12 - L21 dU12)
        dA22 = blocks.load(E, 16, 16, order=bottom)
        dA22 = field.subtract(dA22, field.dot(dL21, U12))
        dA22 = field.subtract(dA22, field.dot(L21, dU12))
        B22 = blocks.load(LU, 16, 16, DIAGONAL=1.0)
        dB22 = blocks.jvp(B22, L22_inverse, U22_inverse, dA22)
        blocks.store(out, dB22, 16, 16)


MAPS = {"vjp": _vjp, "jvp": _jvp}


@triton.jit
def two_by_two_kernel(out, LU, pivots, X, shape, MAP: tl.constexpr, RAGGED: tl.constexpr):
    batch, exists = layout.batch_of_one(tl.program_id(0), shape)
    MAP(
        layout.Matrix(*out, shape, batch, exists, RAGGED),
        layout.Matrix(*LU, shape, batch, exists, RAGGED),
        layout.Matrix(*pivots, shape, batch, exists, RAGGED),
        layout.Matrix(*X, shape, batch, exists, RAGGED),
    )


def evaluate(name, out, LU, pivots, X, *, registers, num_warps):
    """`warp.evaluate` of "vjp" or "jvp" for m or n from 17 to 32.

    A thread may have that many `registers`, at most.
    """
    if out.numel() == 0:
        return
    args = launch.arguments(out.shape, out, LU, pivots, X)
    constants = {"MAP": MAPS[name], "RAGGED": out.shape[-2:] != (32, 32)}
    launch.run(two_by_two_kernel, out.shape[:-2].numel(), args, constants, num_warps=num_warps, maxnreg=registers)
