"""Times and memory beside PyTorch: `python -m benchmarks.run [backward] [jvp] ["double backward"]`.

Every problem is checked before it is timed, the providers run interleaved in one process, and medians are compared.
Writes benchmarks/results/<derivative>.csv, with the hardware, the versions and the commit in every row.
"""

import argparse
import csv
import platform
import subprocess
from pathlib import Path

import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table

import triton_lu
from benchmarks.problems import DERIVATIVES, Problem, grid
from benchmarks.providers import PROVIDERS, derivative, forward
from triton_lu.measure import interleaved_medians, peak_bytes

RESULTS = Path(__file__).parent / "results"


def machine() -> dict[str, str]:
    processors = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    return {
        "processor": processors[0].partition(": ")[2] if processors else platform.machine(),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "triton_lu": f"{triton_lu.__version__} {commit}",
    }


def check(problem: Problem, results: dict[str, tuple[torch.Tensor, ...]]) -> None:
    """All providers agree to what their precision leaves of a Gaussian matrix's gradient."""
    eps = torch.finfo(problem.dtype).eps
    order = 2 if problem.derivative == "double backward" else 1
    for ours, theirs in zip(results["triton_lu"], results["torch"], strict=True):
        difference = torch.linalg.matrix_norm(ours - theirs) / torch.linalg.matrix_norm(theirs)
        error = difference.median().item()  # a batch of thousands holds a few that are close to singular
        if not error <= 1e3 * max(problem.m, problem.n) * eps * 100 ** (order - 1):
            raise ArithmeticError(f"{problem}: providers differ by {error:.1e}")


def measure(problem: Problem, seconds: float) -> dict[str, object]:
    functions = {name: derivative(problem, factor) for name, factor in PROVIDERS.items()}
    check(problem, {name: function() for name, function in functions.items()})
    timings = interleaved_medians({**functions, "forward": forward(problem)}, rounds=25, limit_seconds=seconds)
    matrices = problem.batch * problem.m * problem.n * problem.dtype.itemsize
    memory = {name: peak_bytes(function) / matrices for name, function in functions.items()}
    return {
        "derivative": problem.derivative,
        "batch": problem.batch,
        "m": problem.m,
        "n": problem.n,
        "dtype": str(problem.dtype).removeprefix("torch."),
        "triton_lu_ms": round(timings["triton_lu"].median * 1e3, 4),
        "torch_ms": round(timings["torch"].median * 1e3, 4),
        "forward_ms": round(timings["forward"].median * 1e3, 4),
        "speedup": round(timings["torch"].ratio(timings["triton_lu"]), 3),
        "over_forward": round(timings["triton_lu"].ratio(timings["forward"]), 3),
        "triton_lu_memory": round(memory["triton_lu"], 3),
        "torch_memory": round(memory["torch"], 3),
    }


def show(name: str, rows: list[dict[str, object]]) -> None:
    table = Table(title=f"{name}: times in ms, memory in matrices")
    for column in rows[0]:
        if column != "derivative":
            table.add_column(column, justify="right")
    for row in rows:
        table.add_row(*(f"{value:.4g}" if isinstance(value, float) else str(value) for value in list(row.values())[1:]))
    Console().print(table)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("derivatives", nargs="*", metavar="derivative", help=f"of {', '.join(DERIVATIVES)}; all")
    parser.add_argument("--seconds", type=float, default=3.0, help="for each problem, about (default: 3)")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder for the CSV files")
    arguments = parser.parse_args()
    if unknown := set(arguments.derivatives) - set(DERIVATIVES):
        parser.error(f"unknown derivative {', '.join(sorted(unknown))}: choose from {', '.join(DERIVATIVES)}")
    about = machine()
    for name in arguments.derivatives or DERIVATIVES:
        rows = [measure(problem, arguments.seconds) for problem in track(grid(name), description=name)]
        show(name, rows)
        arguments.output.mkdir(parents=True, exist_ok=True)
        with (arguments.output / f"{name.replace(' ', '_')}.csv").open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=[*rows[0], *about])
            writer.writeheader()
            writer.writerows({**row, **about} for row in rows)


if __name__ == "__main__":
    main()
