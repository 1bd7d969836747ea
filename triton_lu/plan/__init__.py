"""Which algorithm serves which problem: thresholds of a CPU in `cpu.py`, those of a GPU in `gpu.py`.

Plans are pure functions of shape, dtype and device (its kind, "cpu" or "cuda", or its multiprocessors), and of the
device's calibration: within a process the same problem always runs the same way on the same device.
"""

import torch

from triton_lu.plan import cpu, gpu
from triton_lu.plan.cpu import (
    CACHED,
    PANEL,
    UNPIVOTED_PANEL,
    Widths,
    default_block,
    determinant_in_python,
    elimination,
    solve_by_rows,
    triangle_panel,
)
from triton_lu.plan.gpu import (
    MULTIPROCESSORS,
    ORDER,
    PRODUCTS_FROM,
    SUBSTITUTION,
    Curvature,
    Factor,
    FactorBlocks,
    Inverse,
    Kernel,
    LuSolve,
    Order,
    Sweep,
    Tile,
    Warp,
    kernel,
    kernel_pays,
)

__all__ = [
    "CACHED",
    "MULTIPROCESSORS",
    "ORDER",
    "PANEL",
    "PRODUCTS_FROM",
    "SUBSTITUTION",
    "UNPIVOTED_PANEL",
    "Curvature",
    "Factor",
    "FactorBlocks",
    "Inverse",
    "Kernel",
    "LuSolve",
    "Order",
    "Sweep",
    "Tile",
    "Warp",
    "Widths",
    "block_of_products",
    "by_inverse",
    "default_block",
    "determinant_in_python",
    "elimination",
    "in_numpy",
    "inverse_by_adjoint",
    "kernel",
    "kernel_pays",
    "one_by_one",
    "permutation",
    "solve_by_rows",
    "triangle_panel",
    "widths",
]


def in_numpy(name: str, batch: int, m: int, n: int, dtype: torch.dtype, device: str) -> str | None:
    """How NumPy runs that operator: "block" or "columns", or None where it does not."""
    return cpu.in_numpy(name, batch, m, n, dtype) if device == "cpu" else None


def widths(batch: int, m: int, n: int, dtype: torch.dtype, device: str) -> Widths:
    """The sweep in ATen operations for `batch` matrices of m×n."""
    return gpu.widths(min(m, n)) if device == "cuda" else cpu.widths(batch, m, n, dtype)


def by_inverse(
    dtype: torch.dtype, right_hand_sides: int, width: int, device: str, *, left: bool, batched: bool
) -> bool:
    """Whether a triangular solve in ATen is a product with the inverse of the triangle, `width` wide."""
    return device == "cpu" and cpu.by_inverse(dtype, right_hand_sides, width, left=left, batched=batched)


def block_of_products(m: int, n: int, device: str) -> int | None:
    """The width of the blocks of large matrices whose solves are products, or None where they are not."""
    return gpu.block_of_products(m, n) if device == "cuda" else None


def inverse_by_adjoint(n: int, device: str) -> bool:
    """Whether A⁻¹ is found as the adjoint of A⁻ᴴ."""
    return device == "cpu" and n > cpu.DIRECT_INVERSE


def one_by_one(shape: torch.Size, device: str) -> bool:
    """Whether the matrices of a batch are factored in calls of their own."""
    return device == "cpu" and cpu.one_by_one(shape)


def permutation(batch: int, m: int, k: int, device: str) -> str:
    """How permutations are found: "by table", "by matrix", "by step", or "links", the form without a chain of steps."""
    return cpu.permutation(batch, m, k) if device == "cpu" else "links"
