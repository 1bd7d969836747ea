"""Plans of a GPU: which kernel serves which problem, in which configuration, and what is left to ATen.

What was measured, and what limits the kernels, is in docs/performance.md; what they cost in benchmarks/results.
"""

import math
from dataclasses import dataclass, replace

import torch

from triton_lu import calibration
from triton_lu.plan.cpu import Widths

# Rows or columns from which on a map is products: its kernels are estimated to take longer, even beside a host that
# needs 15 µs for an operation of ATen.
PRODUCTS_FROM = {"vjp": 768, "jvp": 768}
CURVATURE_BY_PRODUCTS_FROM = {  # complex blocks spill registers, or are so narrow that the kernel loads too much
    torch.float32: 4096,
    torch.float64: 768,
    torch.complex64: 129,
    torch.complex128: 129,
}
# The same for a few real and a few complex matrices, of which the launches of a sweep leave most of the GPU idle.
FEW_BY_PRODUCTS_FROM = {"vjp": (512, 129), "jvp": (512, 384)}
SUBSTITUTION = 64  # columns of a triangle that is inverted by substitution: 20 µs, two operations less than halves
MULTIPROCESSORS = 132  # of an H100, which the estimates are for


def widths(k: int) -> Widths:
    """The sweep in ATen operations for k = min(m, n) of small matrices: one block, for every operation costs time."""
    return Widths(max(2, k), k)


def block_of_products(m: int, n: int) -> int | None:
    """The width of the blocks of a matrix from 129×129 on: 256, or less where that is enough.

    Half or twice as much is estimated to take 2 to 20 percent longer, and with 512 the error of `jvp` at 2048×2048 in
    single precision is up to 5.6 times PyTorch's instead of 2.5.
    """
    if max(m, n) <= 128:
        return None
    return min(256, max(SUBSTITUTION, 1 << (min(m, n) - 1).bit_length()))


@dataclass(frozen=True)
class Warp:
    """A kernel for matrices up to 16×16: one row per lane, some matrices per program."""

    matrices: int
    num_warps: int


@dataclass(frozen=True)
class Inverse:
    """The kernel of inverses from factors, up to 32×32. registers: of a thread, at most."""

    matrices: int
    num_warps: int
    registers: int = 255


@dataclass(frozen=True)
class LuSolve:
    """The kernel of solutions, up to 32×32. cols: right-hand sides of a program."""

    matrices: int
    cols: int
    num_warps: int


@dataclass(frozen=True)
class Order:
    """The kernel that finds the order of the rows. rows: per program."""

    rows: int
    num_warps: int


ORDER = Order(rows=32, num_warps=1)  # a row per lane


@dataclass(frozen=True)
class Factor:
    """A kernel of the factorization: a matrix in registers, column by column, its rows over the lanes of a warp.

    panel: columns whose steps share a loop; 1: the steps are unrolled.
    """

    matrices: int
    panel: int
    num_warps: int


@dataclass(frozen=True)
class FactorBlocks:
    """Kernels of the factorization in blocks of columns: see `factor_blocks.factor`, whose options these are."""

    block: int
    cols: int
    rows: int
    num_warps: int
    span: int | None = None
    panel: int = 16
    registers: int = 255


@dataclass(frozen=True)
class Tile:
    """A kernel for matrices up to 128×128.

    programs: for each matrix; of `curvature` only more than one.
    registers: of a thread, at most. With 128 instead of 168 sixteen warps fit on a multiprocessor instead of twelve.
    """

    num_warps: int
    programs: int = 1
    registers: int = 128


@dataclass(frozen=True)
class Sweep:
    """Kernels for larger matrices: many programs per matrix, two launches per diagonal block.

    block: the width of the diagonal blocks and of the tiles.
    terms: how many terms of a sum are loaded at once.
    pieces: of how many sums the sum for a tile consists.
    rows: of how many each program that prepares the sweep finds the place under P.
    split: whether pieces have programs of their own; the bits are the same, and the workspace has a block for each.
    """

    block: int
    terms: int
    num_warps: int
    pieces: int = 4
    rows: int = 32
    split: bool = False


@dataclass(frozen=True)
class Curvature:
    """The kernel of `curvature` beyond 128×128: a block of a matrix per program.

    terms: how many terms of a sum are loaded at once.
    """

    block: int
    terms: int
    num_warps: int


_SWEEP = {  # blocks as wide as the registers hold: with half the width there are twice as many launches
    torch.float32: Sweep(block=64, terms=32, num_warps=4),
    torch.float64: Sweep(block=64, terms=32, num_warps=8),
    torch.complex64: Sweep(block=32, terms=32, num_warps=2),
    torch.complex128: Sweep(block=32, terms=16, num_warps=4),
}


Kernel = Factor | FactorBlocks | Inverse | LuSolve | Warp | Tile | Sweep | Curvature


def kernel(
    name: str, m: int, n: int, dtype: torch.dtype, batch: int = 1, multiprocessors: int = MULTIPROCESSORS
) -> Kernel | None:
    """The Triton kernel of that operator for `batch` matrices of m×n, or None where there is none."""
    largest = max(m, n)
    if name == "factor":
        small = _factor(largest, dtype) if largest <= 32 else None
        return small or _factor_blocks(largest, dtype, batch, multiprocessors)
    if name == "slogdet":
        return _factor(largest, dtype)
    if name in ("lu_solve", "solve", "solve_ex"):  # of m×m, with n right-hand sides
        return _lu_solve(m, n, dtype) if largest <= 32 else None
    if name in ("inverse", "inv_ex"):
        return _inverse(largest, dtype)
    if name not in ("vjp", "jvp", "curvature"):
        return None
    if largest > 128:  # one program would take too long for a matrix, and there would be too few of them
        if name == "curvature":
            return _curvature(largest, dtype)
        return _sweep(batch, m, n, dtype, multiprocessors) if largest < PRODUCTS_FROM[name] else None
    if largest > 16:  # where shuffles alone would take twice the time of the memory traffic
        return _tile(name, largest, dtype, batch, multiprocessors)
    if largest > 8:  # more warps than one cost registers, and programs per multiprocessor with them
        return Warp(matrices=8, num_warps=4) if dtype == torch.float32 else Warp(matrices=2, num_warps=1)
    if largest > 4:
        return Warp(matrices=4, num_warps=1) if dtype == torch.complex128 else Warp(matrices=16, num_warps=4)
    return Warp(matrices=32 if largest > 2 else 64, num_warps=4)


def _tile(name: str, largest: int, dtype: torch.dtype, batch: int, multiprocessors: int) -> Tile:
    """The kernel of the maps for `batch` matrices of at most `largest` rows and columns, from 17 on.

    Of many matrices more warps share what the first one reads, where three matrices per warp do not fit the L1 cache;
    those of `curvature`, which wait for nothing, do so from 16 KiB on. Few have as many warps as find room at once and
    find work: 8 for 128×128 take half of the time of 2. What the batch decides changes no bits.
    """
    size = 1 << (largest - 1).bit_length()
    if name == "curvature":
        kibibytes = largest**2 * dtype.itemsize / 1024
        num_warps = 1 if kibibytes <= 16 else 2 if kibibytes <= 64 else 4
        most = 4  # more take longer than more programs
    else:
        num_warps = 1 if largest <= 64 else 2
        most = 8
    room = max(1, 16 * multiprocessors // batch)  # for warps of 128 registers
    room = 1 << (room.bit_length() - 1)
    if size > 32:
        num_warps = max(num_warps, min(most, room, size // 16))
    programs = max(1, min(room // num_warps, size // 16)) if name == "curvature" else 1
    return Tile(num_warps, programs)


def _curvature(largest: int, dtype: torch.dtype) -> Curvature | None:
    """The kernel of `curvature` beyond 128×128."""
    if largest >= CURVATURE_BY_PRODUCTS_FROM[dtype]:
        return None
    return Curvature(block=64, terms=32, num_warps=4 if dtype == torch.float32 else 8)


def _sweep(batch: int, m: int, n: int, dtype: torch.dtype, multiprocessors: int) -> Sweep:
    """The sweep for `batch` matrices of m×n: where there are too few tiles sums are split, and more warps shorten what
    all programs wait for. Neither changes bits."""
    chosen = _SWEEP[dtype]
    return replace(chosen, split=True, num_warps=8) if _few(batch, m, n, dtype, multiprocessors) else chosen


def _few(batch: int, m: int, n: int, dtype: torch.dtype, multiprocessors: int) -> bool:
    """Whether the tiles of a sweep of `batch` matrices of m×n leave multiprocessors idle."""
    block = _SWEEP[dtype].block
    return batch * (math.ceil(m / block) + math.ceil(n / block)) <= multiprocessors


def _factor(largest: int, dtype: torch.dtype) -> Factor | None:
    """The kernel of the factorization of matrices of at most `largest` rows and columns, above 32 for `slogdet` alone.

    Unrolled steps are the fastest up to 32×32, but of complex matrices above 16×16 they compile for minutes: these, and
    what is larger, go in panels, as wide as compile in less than 10 s without spills.
    """
    if largest > 32:
        return Factor(matrices=1, panel=8, num_warps=1) if largest <= 64 and dtype == torch.float32 else None
    if largest > 16 and dtype.is_complex:
        return Factor(matrices=1, panel=2 if dtype == torch.complex64 else 4, num_warps=1)
    size = max(2, 1 << (largest - 1).bit_length())
    return Factor(matrices=128 // size, panel=1, num_warps=4)  # a row per lane


def _inverse(largest: int, dtype: torch.dtype) -> Inverse | None:
    """The kernel of inverses of matrices of at most `largest` rows.

    Programs of one warp are best where registers limit how many there are at once.
    """
    if largest > 16:
        registers = 128 if dtype == torch.float32 else 255  # 16 programs on a multiprocessor, which take no longer
        return Inverse(matrices=1, num_warps=1, registers=registers) if largest <= 32 else None
    size = max(2, 1 << (largest - 1).bit_length())
    if size == 16 and not dtype.is_complex:
        return Inverse(matrices=2, num_warps=1)
    return Inverse(matrices=128 // size, num_warps=4)  # a column per lane


def _lu_solve(n: int, right_hand_sides: int, dtype: torch.dtype) -> LuSolve | None:
    """The kernel of solutions with matrices of n rows, at most 32.

    From 17 rows on up to 64 bytes of right-hand sides in a row. With those it is estimated to take 0.9 to 1.24 times as
    long as a copy of what ATen must move (LU, and the right-hand sides four times), with twice as many up to 2.2 times.
    """
    if n > 16 and right_hand_sides * dtype.itemsize > 64:
        return None
    size = max(2, 1 << (n - 1).bit_length())
    cols = min(1 << max(right_hand_sides - 1, 0).bit_length(), 32 * 4 // dtype.itemsize)  # in registers, with LU
    return LuSolve(matrices=32 // size, cols=cols, num_warps=1)


def _factor_blocks(largest: int, dtype: torch.dtype, batch: int, multiprocessors: int) -> FactorBlocks | None:
    """The kernels of the factorization of `batch` matrices of more rows or columns than those of `_factor`.

    What the batch decides changes no bits. Many matrices share a multiprocessor: one warp, whose steps need no barrier,
    few registers, and two panels for each pass over a matrix. Four warps halve the time of a few. Larger blocks have
    fewer launches, but complex ones of 64 columns spill.
    """
    words = dtype.itemsize // 4
    if largest > (512 if dtype == torch.complex128 else 1024):  # complex128 beyond takes more registers than there are
        return None
    if largest > 128:
        if dtype.is_complex:
            num_warps = 16 if largest > 512 else 8
            return FactorBlocks(block=32, cols=32, rows=64 if words == 2 else 32, num_warps=num_warps, span=256)
        # Where there are programs for it, three on a multiprocessor beat two; float64 panels of 1024 rows do not fit.
        three = batch > multiprocessors // 3 and largest * words <= 1024
        return FactorBlocks(block=64, cols=64, rows=64, num_warps=8, span=256, registers=168 if three else 255)
    if batch > 4 * multiprocessors:
        num_warps = 1 if words == 1 else 2
        registers = {torch.complex64: 168, torch.complex128: 255}.get(dtype, 128)
        return FactorBlocks(block=32, cols=32 * num_warps // words, rows=16, num_warps=num_warps, registers=registers)
    num_warps = 1 if largest <= 64 and words == 1 else 4
    return FactorBlocks(block=16, cols=max(32 * num_warps // words, 16), rows=32, num_warps=num_warps)


def kernel_pays(name: str, m: int, n: int, dtype: torch.dtype, device: torch.device, batch: int = 2) -> bool:
    """Whether a kernel, where there is one, runs on that GPU: up to the size that a calibration gives, else always.

    But one matrix alone is factored in blocks of columns by a single program at a time: without a calibration that is
    cuSOLVER's, which has not been measured beside it. And a few large matrices are products.
    """
    largest = max(m, n)
    limits = FEW_BY_PRODUCTS_FROM.get(name, (math.inf, math.inf))
    if largest >= limits[dtype.is_complex] and _few(batch, m, n, dtype, MULTIPROCESSORS):
        return False
    single = name == "factor" and batch == 1
    default = 0 if single and _factor(largest, dtype) is None else largest
    return largest <= calibration.value(device, calibration.kernel(name, dtype, single=single), default)
