"""Plans of a CPU: what NumPy, LAPACK and ATen's products do, in which order and in blocks of which width.

The measurements behind these numbers are in benchmarks/results, the account of them in docs/performance.md.
"""

import math
from dataclasses import dataclass

import torch

from triton_lu import calibration

CACHED = 131072  # numbers that fit an L2 cache of 1 MiB or more, together with as many intermediate ones
PANEL = 128  # columns whose rows are permuted at once: the temporary memory of a backward besides its result


def in_numpy(name: str, batch: int, m: int, n: int, dtype: torch.dtype) -> str | None:
    """How NumPy runs that operator for small matrices: "block" or "columns"; None: it is ATen's."""
    largest = max(m, n)
    if batch == 1:
        # Larger products have threads, of another library than ATen's: the two would wait for each other.
        return "block" if largest <= (32 if dtype.is_complex else 64) else None
    entries = 32 if name == "curvature" else 64  # which does less per entry, and gains less by going column by column
    # Every pass over the batch is a call of NumPy: few matrices take less time in a block.
    return "columns" if largest <= 8 and m * n <= entries and batch >= 2 * largest**2 else None


@dataclass(frozen=True)
class Widths:
    """A sweep over the diagonal in ATen operations.

    block: the width of the diagonal blocks.
    span: in a backward, columns after which there is a solve with L: a block or all; see `aten_backend._vjp_sweep_`.
    """

    block: int
    span: int


def widths(batch: int, m: int, n: int, dtype: torch.dtype) -> Widths:
    """The sweep for `batch` matrices of m×n.

    Spans of one block take 4/3 n³ operations instead of 2 n³, and have larger rounding errors.
    """
    k = min(m, n)
    block = default_block(batch, k)
    if block < k:
        block = max(block, calibration.value(torch.device("cpu"), calibration.block(dtype, batch, k), block))
    smallest = 0 if batch == 1 else 128 if dtype.is_complex else 256  # up to there errors are within 2.6 of PyTorch's
    if k <= smallest or (dtype in (torch.float64, torch.complex128) and k > 512):  # where there are digits to spare
        return Widths(block, block)
    return Widths(block, k)


def default_block(batch: int, k: int) -> int:
    """The width of the blocks for k = min(m, n), where nothing has been calibrated."""
    if batch == 1:  # to 320 two blocks; 96, not 128: rows of a block do not fall into the same cache lines
        return max(2, k) if k <= 128 else 16 * math.ceil(k / 32) if k <= 320 else 96
    # LAPACK is called for every matrix by itself: narrow blocks leave more to the products, which take the whole batch.
    return 16 if 32 <= k <= 64 else 32 if k <= 256 else 96


def solve_by_rows(dtype: torch.dtype, right_hand_sides: int, *, left: bool) -> bool:
    """Whether a triangular solve in ATen takes its right-hand sides row by row, else column by column.

    For LAPACK, which knows columns only, that decides whether the triangle stands left or right of the unknown. On the
    right it is up to three times faster in float32, but up to seven times slower for numbers of right-hand sides that
    are no multiple of its vectors; up to 1.4 times faster with complex numbers. On the left it is up to four times
    faster in float64 (oneMKL).
    """
    if dtype == torch.float32:
        from_the_right = right_hand_sides % 16 == 0 or not 16 < right_hand_sides < 500
    else:
        from_the_right = dtype.is_complex
    return left == from_the_right


def by_inverse(dtype: torch.dtype, right_hand_sides: int, width: int, *, left: bool, batched: bool) -> bool:
    """Whether a triangular solve in ATen is a product with the inverse of the triangle, `width` wide."""
    if right_hand_sides < 2 * width:  # the inverse costs as much as it saves
        return False
    if width < 32:  # MKL's solves begin to use threads at 32 right-hand sides, in batches to their harm
        return batched
    # In complex64 the error rises from 1.1 to 1.6 times PyTorch's, in double precision nothing is gained.
    return not left and (dtype == torch.float32 or (batched and dtype == torch.complex64))


def triangle_panel(k: int) -> int:
    """The columns that are multiplied at once in a product of which only the lower triangle, k wide, counts."""
    width = 128  # the narrower, the closer to a third of the operations; 96 is no faster
    return k if k <= 2 * width else width


def one_by_one(shape: torch.Size) -> bool:
    """Whether LAPACK factors the matrices of a batch in calls of their own.

    After `torch.set_num_threads` the batched call returns wrong pivots and factors, with no error, for matrices that
    MKL factors in parallel: seen in every dtype from 152×152, 256×100 and 64×256 on, not at 128×128 with 8 threads
    (torch 2.13 and 2.14, oneMKL 2024.2). The limits are half of that.
    """
    m, n = shape[-2:]
    return len(shape) > 2 and max(m, n) > 128 and m * n >= 8192


def determinant_in_python(shape: torch.Size, dtype: torch.dtype) -> bool:
    """Whether determinants are found in Python, which for one matrix of 64×64 takes as long as NumPy."""
    return not dtype.is_complex and shape[-1] <= 32 and shape[:-2].numel() == 1


DIRECT_INVERSE = 64  # the largest n with A⁻¹ from A X = I: Aᴴ X = I takes LAPACK 0.7 of the time at 128, half at 512
UNPIVOTED_PANEL = 32  # columns that LAPACK eliminates without exchanges at once: the exponents of double allow no more


def elimination(batch: int, m: int, n: int) -> tuple[str, int]:
    """How matrices are eliminated without exchanges, by "columns" or by "panels", and how many at a time.

    By columns 4000 of 8×8 take 0.7 of the time of panels, 32 of 4×4 the same. Larger matrices than 128×128 go one by
    one: that takes no longer, and LAPACK's batches are not to be trusted, as `one_by_one` says.
    """
    k = min(m, n)
    form = "columns" if k <= 8 and batch >= 2 * k**2 else "panels"
    return form, 1 if max(m, n) > 128 and form == "panels" else max(1, CACHED // (m * n))


def permutation(batch: int, m: int, k: int) -> str:
    """How permutations of m rows are found from their k exchanges: "by table", "by matrix", "by step" or "links"."""
    if batch * k == 0:
        return "links"
    if batch > 1 and batch * k > 48 and m ** (k + 1) <= 16384:  # entries of a table of all permutations
        return "by table"
    return "by matrix" if batch <= 24 else "by step"  # in Python, or step by step for all of them, whatever k
