"""What every kernel costs, without a GPU: `python -m benchmarks.kernels [vjp] [--sizes 4 100x40 16x512x512] ...`.

A row is a kernel for one size, dtype and GPU, compiled for that GPU. Static columns come from Triton's compiler.
Dynamic ones are counted by `ptxrun`, an emulator of compiled kernels, on some programs of a launch that fills the GPU;
where it cannot be imported, and for GPUs that it does not model, they stay empty. Every time is an ESTIMATE by its
model of a multiprocessor, never a measurement; docs/performance.md says how far it can be trusted.

Needs TRITON_INTERPRET unset.
"""

import argparse
import math
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
import triton
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver
from triton_lu_kernels import factor_blocks, sweep

import triton_lu
from triton_lu import plan, triton_backend
from triton_lu.bench import machine
from triton_lu.bench.problems import Problem, Size, size
from triton_lu.command import Parser, add_output, dtype_name, exit_code, new_file
from triton_lu.validation import DTYPES

try:
    import ptxrun
except ImportError:
    ptxrun = None

KERNELS = ("factor", "vjp", "jvp", "curvature")
SYSTEMS = ("slogdet", "inverse", "lu_solve")  # of square matrices; lu_solve of m×n: systems of m×m, n right-hand sides
SIZES = (*(Size(1, n, n) for n in (4, 8, 16, 32, 64, 128, 256, 512)), Size(1, 100, 40))
SOLVED_SIZES = tuple(Size(1, n, k) for n in (4, 8, 16, 32) for k in (1, 8))
GPUS = {"H100": "sm_90", "A100": "sm_80", "B200": "sm_100"}
BANDWIDTH = {"H100": 3.0e12, "A100": 1.75e12}  # of a large copy, bytes per second: measured, and the emulator's guess
ENTRIES = 2**24  # of the matrices of a launch: more than an L2 cache holds

# The estimated time over that of a copy of the fewest bytes at which a kernel counts as done (H100), by largest size.
TARGETS = {
    "maps": {
        "float32": {8: 1.2, 16: 1.4, 32: 1.5, 64: 1.6, 128: 2.0},
        "float64": {8: 1.2, 16: 1.4, 32: 1.5, 64: 1.75, 128: 2.2},
        "complex64": {8: 1.2, 16: 1.6, 64: 1.9, 128: 2.6},
        "complex128": {8: 1.2, 128: 2.5},
    },
    "factor": {
        "float32": {16: 1.3, 32: 1.5, 64: 3.4, 128: 4.2},
        "float64": {16: 1.3, 32: 1.5, 64: 3.4, 128: 4.2},
        "complex64": {16: 1.3, 32: 2.0, 64: 5.0, 128: 6.3},
        "complex128": {16: 1.3, 32: 2.5, 64: 4.2, 128: 5.2},
    },
    "systems": {dtype_name(dtype): {16: 1.3, 32: 1.8} for dtype in DTYPES},
}
BATCHES = {  # of `factor` besides, where single programs are waited for or the L2 cache is too small; microseconds
    Size(256, 128, 128): 135,
    Size(4096, 128, 128): 750,
    Size(64, 256, 256): 290,
    Size(4096, 256, 256): 6000,
    Size(16, 512, 512): 650,
    Size(64, 512, 512): 800,
    Size(4, 1024, 1024): 1700,
    Size(64, 1024, 1024): 3000,
}
LONGER = {"float32": 1, "float64": 2, "complex64": 3, "complex128": 5}  # than these may take other dtypes
DEFAULT_SIZES = {"factor": (*SIZES, *BATCHES), "lu_solve": SOLVED_SIZES}  # others have SIZES
JVP = 1.2  # forward mode may take so many times as long as reverse mode,
RAGGED = 1.6  # and a matrix that is not a square of a power of two as the next one that is


def batch_of(size: Size) -> int:
    """What was asked for, or as many matrices as fill the GPU several times: what a row is about."""
    return size.batch if size.batch > 1 else ENTRIES // (size.m * size.n)


def of_systems(name: str, size: Size) -> Size:
    """The matrices that the operator takes the size of: those of its systems, if it has right-hand sides."""
    return size._replace(n=size.m) if name == "lu_solve" else size


def problem(name: str, size: Size, dtype: torch.dtype, batch: int) -> Callable[[], object]:
    """A call of the operator on `batch` matrices that are numbers, not more: costs do not depend on their values."""
    _, m, n = of_systems(name, size)
    if name == "factor":
        A = torch.zeros(batch, m, n, dtype=dtype)  # takes no memory where no program of a sample reads
        return lambda: torch.ops.triton_lu.factor(A)
    matrix = torch.eye(m, n, dtype=dtype).expand(batch, m, n)
    by_rows, by_columns = matrix.contiguous(), matrix.mT.contiguous().mT
    k = min(m, n)
    pivots = torch.arange(1, k + 1, dtype=torch.int32).expand(batch, k).contiguous()
    if name == "slogdet":
        return lambda: torch.ops.triton_lu.slogdet(by_rows)
    if name == "inverse":
        return lambda: torch.ops.triton_lu.inverse(by_rows, by_columns, pivots)
    if name == "lu_solve":
        B = by_rows[..., : size.n].contiguous()
        return lambda: torch.ops.triton_lu.lu_solve(by_columns, pivots, B, True, False)
    return lambda: getattr(torch.ops.triton_lu, name)(by_columns, pivots, by_rows)


def fewest_bytes(name: str, size: Size, dtype: torch.dtype) -> int:
    """Of one matrix: every argument read once, every result written once."""
    _, m, n = size
    if name == "lu_solve":
        return (m * m + 2 * m * n) * dtype.itemsize + 4 * m
    matrices = 2 if name in ("factor", *SYSTEMS) else 3
    others = {"factor": 4, "slogdet": dtype.itemsize + dtype.to_real().itemsize}
    return matrices * m * n * dtype.itemsize + 4 * min(m, n) + others.get(name, 0)


def fewest_flops(name: str, size: Size, dtype: torch.dtype) -> float:
    if name == "lu_solve":
        return 2.0 * size.m**2 * size.n * (4 if dtype.is_complex else 1)
    # The inverse of both factors and their product take as many operations as a backward.
    return Problem("forward" if name in ("factor", "slogdet") else "backward", size, dtype).flops


class NoDevice:
    """Stands in for Triton's driver: enough for compiling ahead of time."""

    def __init__(self, target: str):
        self.target = GPUTarget("cuda", int(target.removeprefix("sm_")), 32)

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_current_device(self) -> int:
        return self.target.arch  # Triton keeps what it has compiled by device

    def get_current_stream(self, device: int) -> int:
        return 0


@contextmanager
def compiling(target: str) -> Iterator[list[Any]]:
    """Launches inside compile for `target` and run nothing; yields the list of what they compiled."""
    compiled: list[Any] = []
    run, active = JITFunction.run, driver._active

    def compile_only(self: JITFunction, *args: Any, warmup: bool, **options: Any) -> Any:
        compiled.append(run(self, *args, warmup=True, **options))

    JITFunction.run = compile_only
    driver.set_active(NoDevice(target))
    try:
        yield compiled
    finally:
        JITFunction.run = run
        driver._active = active


def resources(kernel: Any) -> dict[str, int]:
    """Registers, spilled bytes of a thread, shared memory, and instructions of a compiled kernel."""
    tools = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
    with TemporaryDirectory() as folder:
        cubin = Path(folder, "kernel.cubin")
        cubin.write_bytes(kernel.asm["cubin"])
        usage = subprocess.run([tools / "cuobjdump", "-res-usage", cubin], capture_output=True, text=True).stdout
        code = subprocess.run([tools / "nvdisasm", "-c", cubin], capture_output=True, text=True).stdout
    counts = dict(re.findall(r"(REG|STACK|LOCAL):(\d+)", usage))
    return {
        "registers": int(counts["REG"]),
        "spilled": int(counts["STACK"]) + int(counts["LOCAL"]),
        "shared": kernel.metadata.shared,
        "code": len(re.findall(r"^\s*/\*[0-9a-f]{4,}\*/", code, flags=re.M)),
    }


def static(name: str, size: Size, dtype: torch.dtype, target: str) -> dict[str, object]:
    with compiling(target) as kernels, triton_lu.backend("triton"):
        problem(name, size, dtype, batch_of(of_systems(name, size)))()
    each = [resources(kernel) for kernel in {kernel.hash: kernel for kernel in kernels}.values()]
    return {
        "launches": len(kernels),
        "registers": max(r["registers"] for r in each),
        "spilled_bytes": max(r["spilled"] for r in each),
        "shared_bytes": max(r["shared"] for r in each),
        "code_kib": round(max(r["code"] for r in each) * 16 / 1024, 1),  # 16 bytes each
    }


@contextmanager
def permuted() -> Iterator[None]:
    """Inside, permutations have been found already: programs that find them may not be in a sample."""

    def in_order(workspace: Callable[..., tuple[torch.Tensor, ...]]) -> Callable[..., tuple[torch.Tensor, ...]]:
        def allocate(X: torch.Tensor, **options: Any) -> tuple[torch.Tensor, ...]:
            tensors = workspace(X, **options)
            for tensor in tensors:
                if tensor.dtype == torch.int32:
                    tensor.copy_(torch.arange(tensor.shape[-1]))
            return tensors

        return allocate

    def identity(pivots: torch.Tensor, m: int) -> torch.Tensor:
        return torch.arange(m).repeat(*pivots.shape[:-1], 1)

    with (
        patch.object(sweep, "workspace", in_order(sweep.workspace)),
        patch.object(factor_blocks, "workspace", in_order(factor_blocks.workspace)),
        patch.object(triton_backend, "permutation", identity),
    ):
        yield


def dynamic(name: str, size: Size, dtype: torch.dtype, gpu: str) -> dict[str, object]:
    """Counts per matrix, and estimates for the whole batch.

    Multiples of the fewest bytes are those that lanes request, the different ones of each launch (an upper bound where
    programs of a sample would share some), and the sectors that travel. `coalescing` is requested bytes over those of
    the sectors, at most 1 for loads, for stores and for copies, since bytes that lanes share are requested by each.
    Of the three products in TF32 that make one in float32, one counts as useful. `fetch_share` is the part of the time
    that instructions are waited for, `coverage` the instructions that the model ran over those that were counted, of
    the launch where it is farthest from 1: loops that the assembler unrolled are a guess. An estimate is `rough` where
    it is below 0.9 or above 1.2.
    """
    if ptxrun is None or gpu not in BANDWIDTH:
        return {}
    large = max(size[1:]) > 128  # several launches, whose programs differ
    batch = batch_of(of_systems(name, size))
    sample = 16 if large and name != "factor" else 4  # of a factorization's few but long programs
    options = {"target": GPUS[gpu], "sample": sample, "check": False}
    with ptxrun.device(**options) as reports, triton_lu.backend("triton"), permuted():
        problem(name, size, dtype, batch)()
    fewest = fewest_bytes(name, size, dtype)
    flops_needed = fewest_flops(name, size, dtype)
    traffic = [kind for report in reports for kind in report.global_memory.values()]
    in_sectors = 32 * sum(kind["sectors"] for kind in traffic)
    unique = sum(report.unique_read + report.unique_written for report in reports)
    instructions, flops = Counter[str](), Counter[str]()
    for report in reports:
        flops.update(report.flops)
        for kind, count in report.instructions.items():
            instructions[kind.partition(".")[0]] += count
    useful = sum(count / (3 if kind == "mma.tf32" else 1) for kind, count in flops.items())
    estimates = [report.roofline(gpu) for report in reports]
    time = sum(estimate["time"] for estimate in estimates)
    coverage = max((estimate["machine"]["coverage"] for estimate in estimates), key=lambda ran: abs(math.log(ran)))
    return {
        "batch": batch,
        "warp_instructions": round(sum(report.issue_slots for report in reports) / batch, 1),
        "by_class": "; ".join(f"{kind} {count / batch:.0f}" for kind, count in instructions.items()),
        "fewest_bytes": fewest,
        "requested_over_fewest": round(sum(kind["bytes"] for kind in traffic) / (batch * fewest), 3),
        "unique_over_fewest": round(unique / (batch * fewest), 3),
        "sectors_over_fewest": round(in_sectors / (batch * fewest), 3),
        "coalescing": round(sum(min(kind["bytes"], 32 * kind["sectors"]) for kind in traffic) / in_sectors, 3),
        "fewest_flops": round(flops_needed),
        "flops": round(sum(flops.values()) / batch),
        "useful_over_fewest_flops": round(useful / (batch * flops_needed), 3),
        "estimate_us": round(time * 1e6, 2),
        "estimate_over_copy": round(time / (batch * fewest / BANDWIDTH[gpu]), 2),
        "bound": max(estimates, key=lambda estimate: estimate["time"])["bound"],
        "fetch_share": round(sum(estimate["times"]["fetch"] for estimate in estimates) / time, 2),
        "coverage": round(coverage, 2),
        "rough": not 0.9 <= coverage <= 1.2,
        "target_ratio": target_ratio(name, size, dtype) if gpu == "H100" else None,
    }


def target_ratio(name: str, size: Size, dtype: torch.dtype) -> float | None:
    if name == "factor" and size in BATCHES:
        copy = size.batch * fewest_bytes(name, size, dtype) / BANDWIDTH["H100"]
        return round(BATCHES[size] * 1e-6 * LONGER[dtype_name(dtype)] / copy, 2)
    kind = "factor" if name == "factor" else "systems" if name in SYSTEMS else "maps"
    limits = TARGETS[kind][dtype_name(dtype)]
    _, m, n = of_systems(name, size)
    full = m == n and n & (n - 1) == 0
    factor = (JVP if name == "jvp" else 1) * (1 if full else RAGGED)
    return next((round(factor * ratio, 2) for largest, ratio in limits.items() if max(m, n) <= largest), None)


def show(table: pd.DataFrame) -> None:
    """The columns that say whether a kernel is done; the file has them all."""
    columns = ["kernel", "batch", "m", "n", "dtype", "gpu", "launches", "registers", "spilled_bytes", "code_kib"]
    columns += ["requested_over_fewest", "unique_over_fewest", "sectors_over_fewest", "coalescing"]
    columns += ["useful_over_fewest_flops", "estimate_us", "estimate_over_copy", "target_ratio", "bound", "fetch_share"]
    columns += ["coverage", "rough"]
    shown = Table(title="Times are estimates, not measurements", box=box.SIMPLE_HEAD, padding=0)
    for column in columns:
        shown.add_column(column.replace("_", "\n"), justify="right", no_wrap=True)
    for row in table.reindex(columns=columns).itertuples(index=False):
        shown.add_row(*("–" if pd.isna(value) else f"{value}" for value in row))
    console = Console(width=max(Console().width, 140))
    console.print(shown)
    if ptxrun is None:
        console.print("The emulator `ptxrun` is not importable: counts and estimates are missing.")


def parser_of(
    prog: str, description: str | None, sizes: Sequence[Size] | None, names: Sequence[str] = KERNELS
) -> Parser:
    """A parser of which kernels are asked for, all of those by default; `sizes` are the default's."""

    def kernel_name(text: str) -> str:
        if text not in names:
            raise argparse.ArgumentTypeError(f"there is no kernel {text!r}; expected one of {', '.join(names)}")
        return text

    dtypes = list(map(dtype_name, DTYPES))
    parser = Parser(prog=f"python -m benchmarks.{prog}", description=description)
    parser.add_argument(
        "kernels", nargs="*", type=kernel_name, metavar="kernel", help=f"{', '.join(names)}; default: all"
    )
    parser.add_argument("--sizes", type=size, nargs="+", default=sizes, help="N or MxN")
    parser.add_argument("--dtypes", nargs="+", default=dtypes, choices=dtypes)
    return parser


def main() -> None:
    parser = parser_of("kernels", __doc__, None, KERNELS + SYSTEMS)
    parser.add_argument("--gpus", nargs="+", default=GPUS, choices=GPUS, help="what to compile for (default: all)")
    add_output(parser, "kernels.csv")
    arguments = parser.parse_args()
    output = new_file(arguments)
    asked = [
        (gpu, name, dtype, shape)
        for gpu, name, dtype in product(arguments.gpus, arguments.kernels or KERNELS + SYSTEMS, arguments.dtypes)
        for shape in arguments.sizes or DEFAULT_SIZES.get(name, SIZES)
        if shape.m == shape.n or name not in ("slogdet", "inverse")
    ]
    made_with = {"triton": triton.__version__, "commit": machine.commit(Path(triton_lu.__file__).parent)}
    rows = []
    for gpu, name, dtype_, shape in track(asked, description="kernels"):
        dtype = getattr(torch, dtype_)
        if plan.kernel(name, shape.m, shape.n, dtype) is not None:
            about = {"kernel": name, "m": shape.m, "n": shape.n, "dtype": dtype_, "gpu": gpu, "target": GPUS[gpu]}
            costs = static(name, shape, dtype, GPUS[gpu]) | dynamic(name, shape, dtype, gpu)
            rows.append(about | costs | made_with)
            pd.DataFrame(rows).to_csv(output, index=False)  # row by row: what is done stays when it is interrupted
    show(pd.DataFrame(rows))


if __name__ == "__main__":
    sys.exit(exit_code(main))
