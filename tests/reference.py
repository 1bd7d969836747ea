"""The maps of a differentiable LU, written plainly: what every implementation is compared with.

Always in float64 or complex128, with L and U dense and completed to square, and a dense P:

    vjp                 G      ->  P X,  X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H
    jvp                 E      ->  L tril(M, -1) + triu(M) U,  M = L^-1 (P^T E) U^-1
    second_derivative   G, V   ->  the gradient of Re <V, vjp(G)> with respect to the packed LU
    curvature           D, Y   ->  the same of D = jvp(V) and Y = vjp(G)
    mixed               D, dB  ->  the E whose jvp is the change of D with the packed LU along dB

All but pivots are [..., m, n]; pivots are [..., min(m, n)], 1-based.
"""

import torch

TOLERANCE_IN_EPS = 30.0
"""Accepted relative error of a map at size n, in units of n eps. About 1 is usual, and the order of the two solves
moves it by up to 4 either way, depending on the matrix."""


def tolerance(dtype, n):
    """The accepted `relative_error` of a map of n x n matrices computed in `dtype`."""
    return TOLERANCE_IN_EPS * max(n, 2) * torch.finfo(dtype).eps


def relative_error(x, reference):
    """The Frobenius norm of x - reference over that of the reference, the largest of the batch; NaN where x is."""
    if reference.numel() == 0:
        return 0.0
    difference = torch.linalg.matrix_norm(x.to(reference.dtype) - reference)
    return (difference / torch.linalg.matrix_norm(reference).clamp_min(1e-300)).max().item()


def assert_agrees(out, name, LU, pivots, X):
    """Whether `out` is that map of X, computed in X's dtype on any device."""
    expected = globals()[name](LU.cpu(), pivots.cpu(), X.cpu())
    assert relative_error(out.cpu(), expected) <= tolerance(X.dtype, max(X.shape[-2:]))


def same_bits(x, y):
    """Equality in which NaN equals NaN."""
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())


def double(x):
    """x in float64 or complex128."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def completed(x, diagonal):
    """x in double precision, completed to square by zeros and `diagonal` on the diagonal."""
    m, n = x.shape[-2:]
    square = torch.zeros(*x.shape[:-2], max(m, n), max(m, n), dtype=double(x).dtype)
    square.diagonal(dim1=-2, dim2=-1).fill_(diagonal)
    square[..., :m, :n] = double(x)
    return square


def factors(LU):
    """L, unit lower, and U, upper, both square."""
    B = completed(LU, 1)
    return B.tril(-1) + torch.eye(B.shape[-1], dtype=B.dtype), B.triu()


def row_order(pivots, m):
    """The order [..., m] of rows for which A[order] = L U, by exchanging rows one pivot after the other."""
    order = torch.arange(m).repeat(*pivots.shape[:-1], 1)
    for i in range(pivots.shape[-1]):
        p = pivots[..., i : i + 1].long() - 1
        here, there = order[..., i : i + 1].clone(), order.gather(-1, p)
        order.scatter_(-1, p, here)
        order[..., i : i + 1] = there
    return order


def permutation_matrix(pivots, m, dtype):
    """P [..., m, m] with A = P L U."""
    return torch.eye(m, dtype=dtype)[row_order(pivots, m)].mT


def left_solve(L, W):
    """L^-1 W"""
    return torch.linalg.solve_triangular(L, W, upper=False, unitriangular=True)


def right_solve(W, U):
    """W U^-1"""
    return torch.linalg.solve_triangular(U, W, upper=True, left=False)


def unpermuted_vjp(L, U, G):
    """X = L^-H (tril(L^H G, -1) + triu(G U^H)) U^-H of square matrices."""
    phi = (L.mH @ G).tril(-1) + (G @ U.mH).triu()
    left = torch.linalg.solve_triangular(L.mH, phi, upper=True, unitriangular=True)
    return torch.linalg.solve_triangular(U.mH, left, upper=False, left=False)


def vjp(LU, pivots, G):
    """P X: the gradient with respect to A of Re <G, LU(A)>."""
    m, n = LU.shape[-2:]
    L, U = factors(LU)
    X = unpermuted_vjp(L, U, completed(G, 0))[..., :m, :n]
    return permutation_matrix(pivots, m, X.dtype) @ X


def jvp(LU, pivots, E):
    """The change of the packed LU when A changes by E."""
    m, n = LU.shape[-2:]
    L, U = factors(LU)
    P = permutation_matrix(pivots, m, L.dtype)
    M = right_solve(left_solve(L, completed(P.mT @ double(E), 0)), U)
    return (L @ M.tril(-1) + M.triu() @ U)[..., :m, :n]


def second_derivative(LU, pivots, G, V):
    """The gradient of Re <V, vjp(G)> = Re <jvp(V), G> with respect to the packed LU."""
    m, n = LU.shape[-2:]
    L, U = factors(LU)
    P = permutation_matrix(pivots, m, L.dtype)
    X = completed(unpermuted_vjp(L, U, completed(G, 0))[..., :m, :n], 0)
    M = right_solve(left_solve(L, completed(P.mT @ double(V), 0)), U)
    G = completed(G, 0)
    lower = G @ M.tril(-1).mH - X @ (M @ U).mH
    upper = M.triu().mH @ G - (L @ M).mH @ X
    return (lower.tril(-1) + upper.triu())[..., :m, :n]


def curvature(D, pivots, Y):
    """-tril(X dU^H, -1) - triu(dL^H X), with dL = tril(D, -1), dU = triu(D) and X = P^T Y."""
    m, n = D.shape[-2:]
    D, Y = completed(D, 0), double(Y)
    X = completed(permutation_matrix(pivots, m, Y.dtype).mT @ Y, 0)
    return -((X @ D.triu().mH).tril(-1) + (D.tril(-1).mH @ X).triu())[..., :m, :n]


def mixed(D, pivots, dB):
    """-P (dL dU' + dL' dU), with D and dB = dL' + dU' of two steps."""
    m, n = D.shape[-2:]
    D, dB = completed(D, 0), completed(dB, 0)
    change = (D.tril(-1) @ dB.triu() + dB.tril(-1) @ D.triu())[..., :m, :n]
    return -permutation_matrix(pivots, m, D.dtype) @ change
