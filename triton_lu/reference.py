"""The maps of a differentiable LU by their plainest formulas: what every implementation is judged by.

In float64 or complex128, without blocks, kernels or operators: L, U and P are dense, L and U completed to square.

    vjp                 G     ->  P X,  X = L⁻ᴴ (tril(Lᴴ G, -1) + triu(G Uᴴ)) U⁻ᴴ
    jvp                 E     ->  L tril(M, -1) + triu(M) U,  M = L⁻¹ (Pᵀ E) U⁻¹
    second_derivative   G, V  ->  the gradient of Re⟨V, vjp(G)⟩ with respect to the packed LU
    curvature           D, Y  ->  the same from D = jvp(V) and Y = vjp(G)
    mixed               D, dB ->  the E whose jvp is the change of D with the packed LU along dB

All but pivots are [..., m, n]; pivots are [..., min(m, n)], counting from 1.
"""

import torch
from torch import Tensor
from torch.linalg import matrix_norm, solve_triangular

TOLERANCE_IN_EPS = 30.0
"""Accepted relative error of a map at size n, in units of n eps. About 1 is usual, and the order of the two solves
moves it by up to 4 either way, depending on the matrix."""


def tolerance(dtype: torch.dtype, n: int) -> float:
    """The accepted `relative_error` of a map of n×n matrices computed in `dtype`."""
    return TOLERANCE_IN_EPS * max(n, 2) * torch.finfo(dtype).eps


def double(x: Tensor) -> Tensor:
    """x in float64 or complex128."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def relative_error(x: Tensor, exact: Tensor) -> float:
    """‖x - exact‖ / ‖exact‖ in the Frobenius norm, the largest of the batch; NaN if any of it is."""
    if exact.numel() == 0:
        return 0.0
    x, exact = double(x), double(exact)
    largest = exact.abs().amax((-2, -1), keepdim=True)
    unit = torch.where(largest > 0, largest, 1)  # in which no square overflows or vanishes
    return float((matrix_norm((x - exact) / unit) / matrix_norm(exact / unit).clamp_min(1e-300)).max())


def residual(A: Tensor, LU: Tensor, pivots: Tensor) -> float:
    """‖Pᵀ A - L U‖ / ‖A‖, the largest of the batch."""
    m, n = A.shape[-2:]
    L, U = factors(LU)
    order = row_order(pivots, m)[..., None].expand(A.shape)
    return relative_error((L @ U)[..., :m, :n], A.gather(-2, order))


def completed(x: Tensor, diagonal: float) -> Tensor:
    """x in double precision, completed to square by zeros and `diagonal` on the diagonal."""
    m, n = x.shape[-2:]
    square = double(x).new_zeros(*x.shape[:-2], max(m, n), max(m, n))
    square.diagonal(dim1=-2, dim2=-1).fill_(diagonal)
    square[..., :m, :n] = x
    return square


def factors(LU: Tensor) -> tuple[Tensor, Tensor]:
    """L, unit lower, and U, upper, both square."""
    B = completed(LU, 1)
    return B.tril(-1) + torch.eye(B.shape[-1], dtype=B.dtype, device=B.device), B.triu()


def row_order(pivots: Tensor, m: int) -> Tensor:
    """The order [..., m] of rows for which A[order] = L U, by exchanging rows one pivot after the other."""
    order = torch.arange(m, device=pivots.device).repeat(*pivots.shape[:-1], 1)
    for i in range(pivots.shape[-1]):
        p = pivots[..., i : i + 1].long() - 1
        row, pivot_row = order[..., i : i + 1].clone(), order.gather(-1, p)
        order.scatter_(-1, p, row)
        order[..., i : i + 1] = pivot_row
    return order


def permutation_matrix(pivots: Tensor, m: int, dtype: torch.dtype) -> Tensor:
    """P [..., m, m] with A = P L U."""
    return torch.eye(m, dtype=dtype, device=pivots.device)[row_order(pivots, m)].mT


def _unpermuted_vjp(L: Tensor, U: Tensor, G: Tensor) -> Tensor:
    phi = (L.mH @ G).tril(-1) + (G @ U.mH).triu()
    left = solve_triangular(L.mH, phi, upper=True, unitriangular=True)
    return solve_triangular(U.mH, left, upper=False, left=False)


def _unpermuted_M(L: Tensor, U: Tensor, E: Tensor) -> Tensor:
    left = solve_triangular(L, E, upper=False, unitriangular=True)
    return solve_triangular(U, left, upper=True, left=False)


def vjp(LU: Tensor, pivots: Tensor, G: Tensor) -> Tensor:
    """P X: the gradient with respect to A of Re⟨G, LU(A)⟩."""
    m, n = LU.shape[-2:]
    X = _unpermuted_vjp(*factors(LU), completed(G, 0))[..., :m, :n]
    return permutation_matrix(pivots, m, X.dtype) @ X


def jvp(LU: Tensor, pivots: Tensor, E: Tensor) -> Tensor:
    """The change of the packed LU when A changes by E."""
    m, n = LU.shape[-2:]
    L, U = factors(LU)
    P = permutation_matrix(pivots, m, L.dtype)
    M = _unpermuted_M(L, U, completed(P.mT @ double(E), 0))
    return (L @ M.tril(-1) + M.triu() @ U)[..., :m, :n]


def second_derivative(LU: Tensor, pivots: Tensor, G: Tensor, V: Tensor) -> Tensor:
    """The gradient of Re⟨V, vjp(G)⟩ = Re⟨jvp(V), G⟩ with respect to the packed LU."""
    m, n = LU.shape[-2:]
    L, U = factors(LU)
    P = permutation_matrix(pivots, m, L.dtype)
    X = completed(_unpermuted_vjp(L, U, completed(G, 0))[..., :m, :n], 0)
    M = _unpermuted_M(L, U, completed(P.mT @ double(V), 0))
    G = completed(G, 0)
    lower = G @ M.tril(-1).mH - X @ (M @ U).mH
    upper = M.triu().mH @ G - (L @ M).mH @ X
    return (lower.tril(-1) + upper.triu())[..., :m, :n]


def curvature(D: Tensor, pivots: Tensor, Y: Tensor) -> Tensor:
    """-tril(X dUᴴ, -1) - triu(dLᴴ X), with dL = tril(D, -1), dU = triu(D) and X = Pᵀ Y."""
    m, n = D.shape[-2:]
    D, Y = completed(D, 0), double(Y)
    X = completed(permutation_matrix(pivots, m, Y.dtype).mT @ Y, 0)
    return -((X @ D.triu().mH).tril(-1) + (D.tril(-1).mH @ X).triu())[..., :m, :n]


def mixed(D: Tensor, pivots: Tensor, dB: Tensor) -> Tensor:
    """-P (dL δU + δL dU), with dL = tril(D, -1) and dU = triu(D), and likewise δL and δU of dB."""
    m, n = D.shape[-2:]
    D, dB = completed(D, 0), completed(dB, 0)
    change = (D.tril(-1) @ dB.triu() + dB.tril(-1) @ D.triu())[..., :m, :n]
    return -permutation_matrix(pivots, m, D.dtype) @ change
