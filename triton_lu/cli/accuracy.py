"""How good a factorization and its gradient are, judged in double precision by the plainest formulas."""

import torch
from torch import Tensor
from torch.linalg import matrix_norm, solve_triangular

from triton_lu import ops, permutation, plan


def double(x: Tensor) -> Tensor:
    """x in float64 or complex128."""
    return x.to(torch.complex128 if x.is_complex() else torch.float64)


def relative_error(x: Tensor, exact: Tensor) -> float:
    """‖x - exact‖ / ‖exact‖ in the Frobenius norm, the largest of the batch; NaN if any of it is."""
    x, exact = double(x), double(exact)
    largest = exact.abs().amax((-2, -1), keepdim=True)
    unit = torch.where(largest > 0, largest, 1)  # in which no square overflows or vanishes
    return float((matrix_norm((x - exact) / unit) / matrix_norm(exact / unit).clamp_min(1e-300)).max())


def residual(A: Tensor, LU: Tensor, pivots: Tensor) -> float:
    """‖Pᵀ A - L U‖ / ‖A‖, the largest of the batch."""
    m, n = A.shape[-2:]
    L, U = _factors(double(LU))
    rows = permutation(pivots, m)[..., None].expand(A.shape)
    return relative_error((L @ U)[..., :m, :n], A.gather(-2, rows))


def reference_gradient(LU: Tensor, pivots: Tensor, G: Tensor) -> Tensor:
    """P L⁻ᴴ (tril(Lᴴ G, -1) + triu(G Uᴴ)) U⁻ᴴ in double precision: dense, without blocks, kernels or operators."""
    m, n = G.shape[-2:]
    L, U = _factors(double(LU))
    square = G.new_zeros(L.shape, dtype=L.dtype)
    square[..., :m, :n] = G
    X = (L.mH @ square).tril(-1) + (square @ U.mH).triu()
    X = solve_triangular(L.mH, X, upper=True, unitriangular=True)
    X = solve_triangular(U.mH, X, upper=False, left=False)[..., :m, :n]
    P, _, _ = torch.lu_unpack(X, pivots, unpack_data=False)
    return P @ X


def _factors(LU: Tensor) -> tuple[Tensor, Tensor]:
    """L and U, completed to square by columns and rows of the identity."""
    m, n = LU.shape[-2:]
    identity = torch.eye(max(m, n), dtype=LU.dtype, device=LU.device)
    B = identity.expand(*LU.shape[:-2], -1, -1).clone()
    B[..., :m, :n] = LU
    return B.tril(-1) + identity, B.triu()


def served_by(A: Tensor) -> str:
    """The implementation and the plan by which the gradient of `lu(A)` is computed."""
    m, n = A.shape[-2:]
    kernel = plan.kernel("vjp", m, n, A.dtype)
    if kernel and ops.Vjp.by_kernel(A, on_cuda=A.is_cuda):
        return f"Triton kernel, {type(kernel).__name__.lower()}"
    batch = A.shape[:-2].numel()
    if small := plan.in_numpy("vjp", batch, m, n, A.dtype, A.device.type):
        return "NumPy, " + {"block": "one block", "columns": "column by column"}[small]
    return f"ATen sweep, blocks {min(m, n, plan.blocks(batch, m, n, A.dtype, A.device.type).block)}"
