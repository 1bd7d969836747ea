"""What every kernel costs, without a GPU: `python -m benchmarks.kernels [vjp] [jvp] [factor] [--sizes 4 32] ...`.

Static columns come from Triton's compiler, for the target given. Dynamic ones are counted by `ptxrun`, an emulator of
compiled kernels, on some programs of a launch that fills the GPU; where it cannot be imported they stay empty, and the
table says so. Every time is an ESTIMATE by its roofline and latency model, never a measurement.

Writes benchmarks/results/kernels.csv. Needs TRITON_INTERPRET unset or 0.
"""

import argparse
import re
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pandas as pd
import torch
import triton
from rich.console import Console
from rich.progress import track
from rich.table import Table
from triton.backends.compiler import GPUTarget
from triton.runtime import JITFunction, driver

import triton_lu
from triton_lu import plan
from triton_lu.api import DTYPES
from triton_lu.cli import dtype_name

try:
    import ptxrun
except ImportError:
    ptxrun = None

RESULTS = Path(__file__).parent / "results" / "kernels.csv"
SIZES = (4, 8, 16, 32, 64, 128, 256)
BANDWIDTH = {"H100": 3.352e12, "A100": 2.039e12}  # of DRAM, bytes per second

# The estimated time over that of the fewest bytes at which a kernel counts as done (H100), by largest size and dtype.
TARGETS = {
    "float32": {16: 1.1, 32: 1.2, 128: 1.8},
    "float64": {4: 1.1, 32: 1.2, 64: 1.3, 128: 1.4},
    "complex64": {4: 1.2, 16: 1.5, 32: 2.0, 128: 2.5},
}


def problem(name: str, n: int, dtype: torch.dtype, batch: int) -> Callable[[], object]:
    """A call of the operator on `batch` matrices that are numbers, not more: costs do not depend on their values."""
    matrix = torch.eye(n, dtype=dtype).expand(batch, n, n)
    by_rows, by_columns = matrix.contiguous(), matrix.mT.contiguous().mT
    pivots = torch.arange(1, n + 1, dtype=torch.int32).expand(batch, n).contiguous()
    if name == "factor":
        return lambda: torch.ops.triton_lu.factor(by_rows)
    return lambda: getattr(torch.ops.triton_lu, name)(by_columns, pivots, by_rows)


def fewest_bytes(name: str, n: int, dtype: torch.dtype) -> int:
    """Of one matrix: every argument read once, every result written once."""
    matrices = 2 if name == "factor" else 3
    return matrices * n * n * dtype.itemsize + 4 * n + (4 if name == "factor" else 0)


def fewest_flops(name: str, n: int, dtype: torch.dtype) -> float:
    """Of one matrix: 2/3 n³ for the factorization, twice that for a derivative; four times as many if complex."""
    return (2 if name == "factor" else 4) / 3 * n**3 * (4 if dtype.is_complex else 1)


class _NoDevice:
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
    driver.set_active(_NoDevice(target))
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


def static(name: str, n: int, dtype: torch.dtype, target: str) -> dict[str, object]:
    with compiling(target) as kernels, triton_lu.backend("triton"):
        problem(name, n, dtype, 2)()
    each = [resources(kernel) for kernel in {kernel.hash: kernel for kernel in kernels}.values()]
    return {
        "launches": len(kernels),
        "registers": max(r["registers"] for r in each),
        "spilled_bytes": max(r["spilled"] for r in each),
        "shared_bytes": max(r["shared"] for r in each),
        "code_instructions": sum(r["code"] for r in each),
    }


def dynamic(name: str, n: int, dtype: torch.dtype, target: str) -> dict[str, object]:
    """Counts per matrix, and estimates for as many matrices as fill the GPU several times, or 64 if they are large."""
    if ptxrun is None:
        return {}
    batch = max(1024, 2**22 // n**2) if n <= 128 else 64
    options = {"target": target, "sample": 4, "check": False}
    options["raise_errors"] = n <= 128  # later launches read what programs of earlier ones were to write
    with ptxrun.device(**options) as reports, triton_lu.backend("triton"):
        problem(name, n, dtype, batch)()
    bytes_needed, flops_needed = fewest_bytes(name, n, dtype), fewest_flops(name, n, dtype)
    traffic = [kind for report in reports for kind in report.global_memory.values()]
    requested, sectors = sum(kind["bytes"] for kind in traffic), sum(kind["sectors"] for kind in traffic)
    instructions: dict[str, int] = {}
    for report in reports:
        for kind, count in report.instructions.items():
            kind = kind.partition(".")[0]
            instructions[kind] = instructions.get(kind, 0) + count
    columns: dict[str, object] = {
        "batch": batch,
        "warp_instructions": round(sum(report.issue_slots for report in reports) / batch, 1),
        "by_class": "; ".join(f"{kind} {count / batch:.0f}" for kind, count in instructions.items()),
        "bytes": round(requested / batch),
        "fewest_bytes": bytes_needed,
        "coalescing": round(requested / (32 * sectors), 3),
        "flops": round(sum(sum(report.flops.values()) for report in reports) / batch),
        "fewest_flops": round(flops_needed),
    }
    for gpu, bandwidth in BANDWIDTH.items():
        estimates = [report.roofline(gpu) for report in reports]
        time = sum(estimate["time"] for estimate in estimates)
        columns[f"{gpu}_estimate_us"] = round(time * 1e6, 2)
        columns[f"{gpu}_estimate_over_dram"] = round(time / (batch * bytes_needed / bandwidth), 2)
        columns[f"{gpu}_bound"] = max(estimates, key=lambda estimate: estimate["time"])["bound"]
    columns["H100_target"] = target_ratio(n, dtype)
    return columns


def target_ratio(n: int, dtype: torch.dtype) -> float | None:
    limits = TARGETS.get(dtype_name(dtype), {})
    return next((ratio for largest, ratio in limits.items() if n <= largest), None)


def show(table: pd.DataFrame) -> None:
    """The columns that say whether a kernel is done; the file has them all."""
    columns = ["kernel", "n", "dtype", "launches", "registers", "spilled_bytes", "shared_bytes", "warp_instructions"]
    columns += ["coalescing", *(f"{gpu}_{what}" for gpu in BANDWIDTH for what in ("estimate_us", "estimate_over_dram"))]
    columns += ["H100_bound", "H100_target"]
    shown = Table(title="Kernels: counts per matrix; times are estimates, not measurements")
    for column in columns:
        shown.add_column(column.replace("_", "\n"), justify="right")
    for row in table.reindex(columns=columns).itertuples(index=False):
        shown.add_row(*("–" if pd.isna(value) else f"{value}" for value in row))
    console = Console(width=max(Console().width, 140))
    console.print(shown)
    if ptxrun is None:
        console.print("The emulator `ptxrun` is not importable: counts and estimates are missing.")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.kernels", description=__doc__)
    parser.add_argument("kernels", nargs="*", metavar="kernel", help="factor, vjp, jvp; default: all")
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--dtypes", nargs="+", default=list(map(dtype_name, DTYPES)))
    parser.add_argument("--target", default="sm_90", help="what to compile for (default: sm_90)")
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    problems = [
        (name, n, dtype)
        for name in arguments.kernels or ("factor", "vjp", "jvp")
        for dtype in (getattr(torch, dtype) for dtype in arguments.dtypes)
        for n in arguments.sizes
        if plan.kernel(name, n, n, dtype) is not None
    ]
    rows = []
    for name, n, dtype in track(problems, description="kernels"):
        about = {"kernel": name, "n": n, "dtype": dtype_name(dtype), "target": arguments.target}
        costs = static(name, n, dtype, arguments.target) | dynamic(name, n, dtype, arguments.target)
        rows.append(about | costs)
        table = pd.DataFrame(rows)
        table.to_csv(arguments.output, index=False)  # row by row: what is done stays when it is interrupted
    show(table)


if __name__ == "__main__":
    main()
