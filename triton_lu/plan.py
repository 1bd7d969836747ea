"""Which algorithm serves which problem: every threshold of the package is here.

Plans are pure functions of shape, dtype and kind of device, and of what `triton_lu.calibration` has of this machine:
within a process the same problem always runs the same way.
"""

import math
from dataclasses import dataclass, replace

import torch

from triton_lu import calibration

LIBRARY = 2048  # rows or columns from which on vjp and jvp are products of ATen on a GPU too; see `Sweep`
PROGRAMS = 132  # as many as an H100 has multiprocessors: where a launch has no more, sums are split
CACHED = (
    131072  # numbers of a matrix or a batch that an L2 cache of 1 MiB or more holds, with as many intermediate ones
)
PANEL = 128  # columns whose rows are permuted at once: the temporary memory of a backward besides its result


def in_numpy(name: str, batch: int, m: int, n: int, dtype: torch.dtype, device: str) -> str | None:
    """How NumPy runs that operator for small matrices on a CPU, where its calls are faster: "block" or "columns".

    A backward of one matrix takes 26 µs instead of 68 at 4×4, 42 instead of 87 at 32×32, 74 instead of 118 at 64×64.
    The products of larger ones (complex: from 33×33 on) have threads, of another library than ATen's: where both have
    as many as there are cores they wait for each other, for milliseconds.

    By columns a backward of 10,000 matrices of 4×4 takes a quarter of the time of one in a block in ATen, one of 100
    half, one of 10,000 of 8×8 two thirds; a few matrices take as long either way, and from 16×16 on longer. `curvature`
    takes half of the time at 4×4 and at 8×4, the same or up to twice as long at 8×8.
    """
    largest = max(m, n)
    if device != "cpu":
        return None
    if batch == 1:
        return "block" if largest <= (32 if dtype.is_complex else 64) else None
    entries = 32 if name == "curvature" else 64
    return "columns" if largest <= 8 and m * n <= entries and batch >= 2 * largest**2 else None


@dataclass(frozen=True)
class Blocks:
    """A sweep over the diagonal in ATen operations.

    block: columns that are done at once.
    span: columns of a backward after which it solves with L, those of a block or all; see `aten_backend._vjp_sweep_`.
    """

    block: int
    span: int


def blocks(batch: int, m: int, n: int, dtype: torch.dtype, device: str) -> Blocks:
    """The sweep for `batch` matrices of m×n.

    In batches LAPACK is called for every matrix by itself, and slows down by more threads than one: narrow blocks leave
    more to the products, which take the batch as a whole. Blocks of 96 columns rather than 128 keep the rows of a block
    from falling into the same cache lines. A single matrix up to 320×320 takes the least time, down to 0.8 of that in
    blocks of 96, in two halves.

    Error over that of the formula solved with U first, which is what PyTorch computes, for Gaussian matrices in single
    precision: 0.9 to 1.2 in one span of any width. In spans of one block, faster by 1.2 to 1.4, it is 1.8 at n = 128
    (complex64: 2.9), 2.6 at 256 (4.5), 4.5 at 1024 (6.5), 6.2 at 2048 (8.2): too much, though in double there are
    digits to spare. Between these, two spans of which the last has the part f of the columns take (2 - 2 f² (1-f)) n³
    operations: with f = 3/16, where the error is 2.5 at 2048, no less time than one; with 1/2, 0.9 of it and 4.4.

    On a GPU an operation costs 10 to 20 µs before it starts. Milliseconds of the sweep of one matrix on an H100, in
    blocks of 96, 128, 256 and 512 in one span, and (in spans of one block), beside PyTorch's backward:

        float32 1024    4.8    3.2    1.2    0.9 (0.9)    0.9
        float32 2048    9.1    6.4    2.7    2.2 (2.5)    2.7
        float64 2048    9.5    3.8    2.5    2.2 (2.1)    2.8
        float32 4096   19.1    8.0    7.0    6.8 (6.0)   14.1
        float64 4096   13.0    7.6    6.9    6.6 (6.1)   13.4
    """
    k = min(m, n)
    if device == "cuda":
        return Blocks(max(2, k) if k <= 1024 else 512, k)
    block = default_block(batch, k)
    if block < k:
        block = max(block, calibration.value(device, calibration.block(dtype, batch, k), block))
    smallest = 0 if batch == 1 else 128 if dtype.is_complex else 256
    if k <= smallest or (dtype in (torch.float64, torch.complex128) and k > 512):
        return Blocks(block, block)
    return Blocks(block, k)


def default_block(batch: int, k: int) -> int:
    """The width of the blocks for k = min(m, n), where nothing has been calibrated."""
    if batch == 1:
        return max(2, k) if k <= 128 else 16 * math.ceil(k / 32) if k <= 320 else 96
    return 16 if 32 <= k <= 64 else 32 if k <= 256 else 96


def solve_by_rows(dtype: torch.dtype, right_hand_sides: int, *, left: bool) -> bool:
    """Whether a triangular solve in ATen takes its right-hand sides row by row, else column by column.

    For LAPACK, which knows columns only, that decides whether the triangle stands left or right of the unknown. On the
    right it is up to three times faster in float32, but up to seven times slower for numbers of right-hand sides that
    do not fill its vectors; up to 1.4 times faster with complex numbers. On the left it is up to four times faster in
    float64 (oneMKL on an EPYC).
    """
    if dtype == torch.float32:
        from_the_right = right_hand_sides % 16 == 0 or not 16 < right_hand_sides < 500
    else:
        from_the_right = dtype.is_complex
    return left == from_the_right


def by_inverse(
    dtype: torch.dtype, right_hand_sides: int, width: int, device: str, *, left: bool, batched: bool
) -> bool:
    """Whether a triangular solve in ATen is a product with the inverse of the triangle, `width` wide.

    MKL's solves begin to use threads at 32 right-hand sides, whatever the width: in batches of 16×16 in float32 each
    takes 3.3 µs with 32 of them, 0.6 with 16 (oneMKL on two threads). Products of batches use threads well.
    A backward takes 2 to 8 percent less time so for single matrices (at 1024×256 14), and 5 to 30 for batches. In
    complex64 it would be 2 to 4 percent for single ones, in double precision nothing for blocks of more than 16.
    The error over PyTorch's rises for Gaussian matrices from 1.1 to 1.2, in complex64 it would be to 1.6.
    """
    if device != "cpu" or right_hand_sides < 2 * width:
        return False
    if width < 32:
        return batched
    return not left and (dtype == torch.float32 or (batched and dtype == torch.complex64))


def triangle_panel(k: int, device: str) -> int:
    """The columns that are multiplied at once in a product of which only the lower triangle, k wide, counts.

    The narrower, the closer to a third of the operations: for two products of 256×256 in float32 on two cores panels of
    128 take 1.0 of the time of one product each, of 512×512 0.7, of 1024×1024 0.65, of 2048×2048 0.5; 96 and 256 no
    less. On a GPU, where nothing of this is measured, ten times as many operations take as long as a launch.
    """
    width = 128 if device == "cpu" else 1024
    return k if k <= 2 * width else width


def one_by_one(shape: torch.Size, device: str) -> bool:
    """Whether LAPACK factors the matrices of a batch in calls of their own.

    After `torch.set_num_threads` the batched call returns wrong pivots and factors, with no error, for matrices that
    MKL factors in parallel: seen in every dtype from 152×152, 256×100 and 64×256 on, not at 128×128 with 8 threads
    (torch 2.13 and 2.14, oneMKL 2024.2). The limits are half of that.
    """
    m, n = shape[-2:]
    return device == "cpu" and len(shape) > 2 and max(m, n) > 128 and m * n >= 8192


def permutation(batch: int, m: int, k: int, device: str) -> str:
    """How `batch` permutations of m rows are found from their k exchanges: "by table", "by matrix", "by step", "links".

    On a CPU an exchange in Python takes 0.1 to 0.3 µs, a step of all matrices together at least 2 µs, and the parallel
    form, which has no chain of k dependent steps, at least 150 µs for its 27 operations. For 10,000 matrices of 4×4
    they take 20, 0.3 and 4.6 ms, for 64 of 128×128 2, 0.3 and 0.5 ms. A table of all permutations takes 13 µs instead
    of 24 for 100 of 4×4, 0.1 ms for 10,000; one of 65,536 entries is slower. On a GPU, where the links take 0.3 to
    0.6 ms for any matrix, they are the form without a kernel.
    """
    if device != "cpu" or batch * k == 0:
        return "links"
    if batch > 1 and batch * k > 48 and m ** (k + 1) <= 16384:
        return "by table"
    if batch * k <= (2048 if batch == 1 else 256):
        return "by matrix"
    return "by step" if k <= 128 else "links"


@dataclass(frozen=True)
class Warp:
    """A kernel of the warp regime: one row of a matrix per lane, some matrices per program."""

    matrices: int
    num_warps: int


@dataclass(frozen=True)
class TwoByTwo:
    """A kernel of the regime of two by two blocks: one matrix per program.

    In float32, with 168 registers per thread instead of 255, twelve programs of one warp fit on a multiprocessor
    instead of eight; at most 18 registers are spilled.
    """

    registers: int
    num_warps: int


@dataclass(frozen=True)
class Order:
    """The kernel that finds the order of rows, so many per program."""

    rows: int
    num_warps: int


ORDER = Order(rows=32, num_warps=1)


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
    """A kernel of the tile regime: one matrix per program, diagonal blocks of that width, that many rows at a time.

    With 168 registers per thread instead of 255, twelve programs of one warp fit on a multiprocessor instead of eight.
    Estimated times on an H100 over those of the memory traffic, and bytes of stack (sm_90, Triton 3.8), which the
    estimates leave out; vjp, jvp:

                          255 registers              168 registers
        float32    64     1.87   0    1.87   0       1.44  16    1.52  88
        float32   128     2.17   0    2.28   0       2.17  16    2.28 120
        float64    64     1.62   0    1.62 272       1.62   0    1.62  24
        complex64  64     2.27  32    2.07  88       1.62 440    1.62 624
        complex64 128     3.29  32    2.90  80       2.64 464    2.64 640

    Of what float32 spills nothing is stored in a loop over rows or terms. In complex64 the stacks of twelve programs
    would fill the L1 cache.

    In float64 blocks of 32 read less than blocks of 16: 1.65 instead of 2.6 at n = 128, with stacks of 144 bytes in vjp
    and 256 in jvp; at 64 they take 1.40 (A100: 1.7 instead of 1.2). In float32 and complex64 two warps with blocks of
    32 take 2.5 and 2.9 at n = 128 (vjp), and one warp, in float32, 1.65, with a stack of 648 bytes.
    """

    block: int
    rows: int
    registers: int
    num_warps: int


@dataclass(frozen=True)
class Sweep:
    """A kernel of the sweep regime: many programs per matrix, two launches per diagonal block.

    block: width of the diagonal blocks and of the tiles.
    terms: sums load their factors so many terms at a time.
    pieces: of how many sums the sum for a tile consists.
    rows: of how many each program that prepares the sweep finds the place under P.
    split: whether these have programs of their own; the bits are the same, and the workspace has a block for each.

    Estimates for 64 matrices of 256×256 on an H100, registers per thread and most bytes of stack (sm_90); the sum of
    the times of all launches, without what lies between them, and their number; and the time of the fewest bytes:

                    vjp                         jvp
        float32     197, 0       70 µs /  8     252, 0       76 µs /  8      15 µs
        float64     255, 8      108 µs /  8     255, 224    118 µs /  8      30 µs
        complex64   255, 344    208 µs / 16     255, 544    227 µs / 16      30 µs
        complex128  254, 48     311 µs / 16     254, 16     340 µs / 16      60 µs

    Latency limits the launches with few programs, shared memory and L2 the others. Blocks of half the width in float32
    and float64 spill 4 bytes at most in vjp and take 108 and 139 µs, in twice as many launches. Twice as many warps
    spill next to nothing, and repeat each other's work: 95 µs in float32, 389 in complex128. What is spilled is spilled
    once per program, in the products of whole blocks, whose factors take most registers. For sm_80, whose products keep
    both factors in registers, float32 has stacks of 936 bytes in vjp and 224 in jvp. The solves are products with
    inverses, and diagonal blocks products of whole blocks: the operations at n = 512 are 1.31 (float32), 1.27, 1.17 and
    1.14 times 4/3 n³.

    Estimates for one matrix on an H100, in µs: with split sums (without):

                    vjp 512      jvp 512      vjp 1024     jvp 1024     vjp 2048     jvp 2048
        float32     120 (174)    107 (184)    267 (567)    268 (634)    656          779
        float64     116 (175)    111 (193)

    In four pieces the sums take about as long as the diagonal block beside which they are found.

    ATen has about 20 launches per block. From LIBRARY on there are enough of them for its products to fill a GPU: a
    single matrix of 2048 is a chain of 1.3 or 1.5 million cycles in these kernels, 640 launches in ATen's, and the one
    grows with the square of its size, the other in proportion. (Of 4096, vjp would take 2.5 ms in these kernels.)
    """

    block: int
    terms: int
    num_warps: int
    pieces: int = 4
    rows: int = 32
    split: bool = False


@dataclass(frozen=True)
class Curvature:
    """The kernel of `curvature`: a block of a matrix per program; its sums load their factors so many terms at once."""

    block: int
    terms: int
    num_warps: int


_SWEEP = {
    torch.float32: Sweep(block=64, terms=32, num_warps=4),
    torch.float64: Sweep(block=64, terms=32, num_warps=8),
    torch.complex64: Sweep(block=32, terms=32, num_warps=2),
    torch.complex128: Sweep(block=32, terms=16, num_warps=4),
}


Kernel = Factor | FactorBlocks | Warp | TwoByTwo | Tile | Sweep | Curvature


def kernel(name: str, m: int, n: int, dtype: torch.dtype, batch: int = 1) -> Kernel | None:
    """The Triton kernel of that operator for matrices of m×n, or None where there is none.

    Estimated times on an H100 over those of the memory traffic (n: float32 / float64 / complex64 / complex128):
    vjp and jvp: 4, 8: 1.0 in every dtype;  16: 1.1 / 1.2 / 1.2 / 1.5;  32: 1.0 / 1.0 / 1.5 / 1.0;
    64: 1.5 / 1.6 / 2.0 / 1.7;  128: 2.3 / 1.7 / 2.6 / 2.6, of the L2 cache, as if L1 served none of what is read again;
    curvature, to 16, and factor: 4, 8, 16: 1.0 in every dtype;
    factor: 32: 1.0 / 1.4 / 1.2 / 1.7;  64: 2.2 / – / – / –.

    Measured for vjp, over a copy, on an H100 with Triton 3.6: 4: 1.1 / 1.0 / 1.0 / 1.0;  8: 1.2 / 1.1 / 1.2 / 1.0;
    16: 1.6 / 1.5 / 2.0 / –;  32: 2.2 / 1.5 / 4.6 / –;  64: 4.2 / 2.7 / 4.7 / –;  128: 6.6 / 4.3 / 7.2 / – (tiles with
    255 registers and offsets of 64 bits). With two or three warps each, schedulers issue an instruction in every second
    to fifth cycle: they wait longer than estimated, from 32×32 on by about 40 cycles (32 to 47, in most) for every 128
    bytes of code that a warp runs through. As if each came from behind the first instruction cache: programs have 50 to
    140 KiB, and warps are at different places.

    Larger factorizations are ATen's. A kernel that deals the columns to 2 or 4 warps would take an estimated 332 µs for
    4096 of 64×64 in float64, 4.1 times the traffic, and (unchecked) 1.1 ms for 4096 of 128×128 in float32, 7 times:
    half the measured time of cuBLAS and of PyTorch's own kernel at 256×256, scaled by n³. That is no proof. Beyond
    128×128 a panel has more rows than one warp's registers hold: another kernel again.
    """
    largest = max(m, n)
    if name == "factor":
        return _factor(largest, dtype) or _factor_blocks(largest, dtype, batch)
    if name == "curvature" and largest > 16:
        return _curvature(largest, dtype)
    if name == "mixed":
        return None
    if largest > 128:
        return _sweep(batch, m, n, dtype) if largest < LIBRARY else None
    if largest > 32:
        if dtype == torch.float64 and largest > 64:
            return Tile(block=32, rows=32, registers=255, num_warps=2)
        if dtype.is_complex:
            return Tile(block=16, rows=16, registers=255, num_warps=2 if dtype == torch.complex128 else 1)
        return Tile(block=16, rows=32 if dtype == torch.float32 else 16, registers=168, num_warps=1)
    if largest > 16:
        return TwoByTwo(registers=168 if dtype == torch.float32 else 255, num_warps=1)
    if largest > 8:  # more warps than one cost registers, and programs per multiprocessor with them
        return Warp(matrices=8, num_warps=4) if dtype == torch.float32 else Warp(matrices=2, num_warps=1)
    if largest > 4:
        return Warp(matrices=4, num_warps=1) if dtype == torch.complex128 else Warp(matrices=16, num_warps=4)
    return Warp(matrices=32 if largest > 2 else 64, num_warps=4)


def _curvature(largest: int, dtype: torch.dtype) -> Curvature | None:
    """The kernel of `curvature` for matrices of at most `largest` rows and columns, from 17 on.

    Estimated times on an H100 over those of the memory traffic (n: float32 / float64 / complex64 / complex128):
    32: 1.0 / 1.0 / 1.5 / 1.0;  64: 1.5 / 1.0 / 2.8 / 1.2;  128: 1.8 / 1.5 / 4.4 / 2.3;  512: 4.4 / 3.6 / – / –. Stacks
    are 96 bytes at most (sm_80, sm_90 and sm_100; Triton 3.9). In complex64 blocks of 32 have larger ones or take
    longer. Complex matrices above 128, of which kernels would load too much, are ATen's.
    """
    if dtype.is_complex:
        if largest > 128:
            return None
        if dtype == torch.complex128:
            return Curvature(block=32, terms=16, num_warps=2)
        return Curvature(block=16, terms=16, num_warps=1)
    if largest > 32:
        return (
            Curvature(block=64, terms=32, num_warps=4 if dtype == torch.float32 else 8) if largest < LIBRARY else None
        )
    return Curvature(block=32, terms=32, num_warps=1)


def _sweep(batch: int, m: int, n: int, dtype: torch.dtype) -> Sweep:
    """The kernel of the sweep regime for `batch` matrices of m×n.

    Eight matrices of 512×512 in float32 take an estimated 129 µs with split sums and 173 without, sixteen 160 and 173.
    """
    chosen = _SWEEP[dtype]
    tiles = math.ceil(m / chosen.block) + math.ceil(n / chosen.block)
    return replace(chosen, split=batch * tiles <= PROGRAMS)


def _factor(largest: int, dtype: torch.dtype) -> Factor | None:
    """The kernel of the factorization of matrices of at most `largest` rows and columns.

    At 32×32 unrolled steps are compiled in half a minute in complex64 and in minutes in complex128, panels in less than
    10 s. The kernels with panels have 255 registers per thread at most and spill none for sm_80, sm_90 and sm_100
    (Triton 3.6 and 3.9). In float64 panels of 2, 4 and 8 columns take an estimated 1.1, 1.2 and 1.3 times as long as
    unrolled steps, one warp 1.1 times. What limits those is the 6,200 instructions of PTX per matrix, a quarter of them
    pairs of words for the shuffles; ptxas leaves 3,900, no more than their memory traffic takes.

    In float32 an H100 takes an estimated 22 µs for 64 matrices of 64×64, 85 µs for 4096. cuBLAS has been measured at
    109 µs for the 64, launch included, and at 33 ms for 4096 of 256×256: scaled by n³, 0.5 ms
    (https://github.com/nikitaved/custom_lu_batched_kernel_bench).
    """
    if largest > 32:
        return Factor(matrices=1, panel=8, num_warps=1) if largest <= 64 and dtype == torch.float32 else None
    if largest > 16 and dtype.is_complex:
        return Factor(matrices=1, panel=2 if dtype == torch.complex64 else 4, num_warps=1)
    size = max(2, 1 << (largest - 1).bit_length())
    return Factor(matrices=128 // size, panel=1, num_warps=4)


def _factor_blocks(largest: int, dtype: torch.dtype, batch: int) -> FactorBlocks | None:
    """The kernels of the factorization of `batch` matrices of more rows or columns than those of `_factor`.

    What a batch decides changes no bits. One warp per matrix serves where there are many, since its steps need no
    barrier; four leave half of the time for a few.
    """
    words = dtype.itemsize // 4
    if largest > (512 if dtype == torch.complex128 else 1024):
        return None
    if largest > 128:
        if dtype.is_complex:
            return FactorBlocks(block=32, cols=32, rows=64 if words == 2 else 32, num_warps=8, span=256)
        return FactorBlocks(block=64, cols=64, rows=64, num_warps=8, span=256)
    many = batch > 4 * PROGRAMS
    num_warps = 4 if not many else 1 if words == 1 else 2
    return FactorBlocks(block=16, cols=max(num_warps * 32 // words, 16), rows=32, num_warps=num_warps)


def kernel_pays(name: str, m: int, n: int, dtype: torch.dtype) -> bool:
    """Whether a kernel, where there is one, is what a GPU is given: always, or up to the size of a calibration."""
    largest = max(m, n)
    return largest <= calibration.value("cuda", calibration.kernel(name, dtype), largest)
