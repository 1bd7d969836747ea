"""Measures providers side by side: what they compute is checked first, then they are timed in turn.

Times are medians and percentiles of rounds in which every provider has its turn: on a CPU by the wall clock, over as
many calls as fit in 5 ms; on a GPU between events, with an L2 cache flushed before each call, or each replay of a CUDA
graph. The memory is the most that is held at once beside the arguments, in multiples of the problem's matrices.
"""

import csv
from argparse import Namespace
from collections.abc import Iterator, Sequence
from functools import cache, partial
from importlib import import_module
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from triton_lu import reference
from triton_lu.bench import calibrate, machine
from triton_lu.bench.problems import SQUARE, Problem, grid
from triton_lu.bench.providers import PROVIDERS
from triton_lu.bench.timing import Clock, Clockmaker, Timing, event_clock, interleaved, peak_bytes, settled, wall_clock
from triton_lu.command import InputError, chosen_device, dtype_name, new_file

Row = dict[str, Any]

SECONDS = 2.0  # for each problem: the quick grid has 174
EVENTS, GRAPHS = "events, L2 flushed", "CUDA graph, L2 flushed"

COLUMNS = (
    *("problem", "batch", "m", "n", "dtype", "provider", "status", "error", "timer", "rounds", "ms", "ms_20", "ms_80"),
    *("speedup", "memory", "gb_per_s", "tflop_per_s", "of_copy", "of_matmul", "copy_gb_per_s", "matmul_tflop_per_s"),
    *("device", "threads", "torch", "triton", "cuda", "triton_lu", "commit", "date"),
)


def run(args: Namespace) -> int:
    """What the options ask for; 1 if results of this package were wrong, else 0."""
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    _require_used(args)
    if args.plot:
        for file in _import_plot().draw(args.plot):
            console.print(f"wrote {file}")
        return 0
    device = chosen_device(args.device)
    if args.graph and device.type == "cpu":
        raise InputError("--graph times CUDA graphs: it needs --device cuda")
    clockmaker: Clockmaker = partial(event_clock, graph=args.graph) if device.type == "cuda" else wall_clock
    if device.type == "cuda":
        torch.cuda.set_stream(torch.cuda.Stream(device))  # on which a graph can be captured
    facts, seconds = machine.facts(device), SECONDS if args.seconds is None else args.seconds
    console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
    if args.calibrate:
        calibrate.run(device, clockmaker, seconds, console)
        return 0
    providers = args.providers or ("triton_lu", "torch")
    for name in providers:
        if not PROVIDERS[name].is_installed:
            raise InputError(f"{name} is not installed")
    dtypes = [getattr(torch, name) for name in args.dtypes or ()]
    problems = grid(args.problems or (), args.sizes or (), dtypes, full=args.full)
    if not problems:
        raise InputError(f"no problem has these names and sizes: {', '.join(SQUARE)} are of square matrices")
    output = new_file(args)
    facts["timer"] = "wall clock" if device.type == "cpu" else GRAPHS if args.graph else EVENTS
    console.print(f"{len(problems)} problems, mostly of a second, to {output}")
    return _write(output, facts, _measure_all(problems, providers, device, clockmaker, seconds, console), console)


def _require_used(args: Namespace) -> None:
    """No option that the task has no use for."""
    unused = ["problems", "dtypes", "providers", "output", "force"]
    if args.plot:
        unused += ["device", "seconds", "graph"]
    for option in unused if args.plot or args.calibrate else ():
        if getattr(args, option) is not None:
            raise InputError(f"--{'plot' if args.plot else 'calibrate'} has no use for --{option}")


def _import_plot() -> ModuleType:
    try:
        return import_module("triton_lu.bench.plot")
    except ModuleNotFoundError as error:
        raise InputError(f'{error.name} is not installed: pip install "triton_lu[bench]"') from error


def _measure_all(
    problems: Sequence[Problem],
    names: Sequence[str],
    device: torch.device,
    clockmaker: Clockmaker,
    seconds: float,
    console: Console,
) -> Iterator[Row]:
    """The rows of all problems, each shown as it comes."""
    ceilings = cache(partial(machine.ceilings, device, clockmaker=clockmaker))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, auto_refresh=False) as progress:  # no thread while we measure
        task = progress.add_task("", total=len(problems))
        for problem in problems:
            progress.update(task, description=str(problem), refresh=True)
            rows = measure(problem, names, device, clockmaker, seconds)
            console.print(f"{problem}:", "; ".join(map(_summary, rows)))
            for row in rows:
                yield {**row, **(rates(problem, row["ms"], ceilings(problem.dtype)) if "ms" in row else {})}
            progress.update(task, advance=1, refresh=True)


def _write(path: Path, facts: Row, rows: Iterator[Row], console: Console) -> int:
    """Writes the file row by row, from the first on; 1 if results of this package were wrong, else 0."""
    wrong = False
    first = next(rows)  # before the file is opened, and an old one lost
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        try:
            for row in chain((first,), rows):
                writer.writerow({name: _rounded(value) for name, value in {**facts, **row}.items()})
                file.flush()
                wrong |= row["provider"] == "triton_lu" and row["status"].startswith("failed")
        except KeyboardInterrupt:
            console.print(f"interrupted: {path} holds what was measured")
            raise
    return int(wrong)


def measure(
    problem: Problem, names: Sequence[str], device: torch.device, clockmaker: Clockmaker, seconds: float
) -> list[Row]:
    """A row for each provider. Those that fail, or whose results are wrong, are not timed."""
    batch, m, n = problem.size
    about = {"problem": problem.name, "batch": batch, "m": m, "n": n, "dtype": dtype_name(problem.dtype)}
    rows: dict[str, Row] = {name: {**about, "provider": name, "status": "ok"} for name in names}
    needed, free = 16 * problem.in_double_precision.nbytes, machine.free_bytes(device)
    if free is not None and needed > free:
        return [
            {**row, "status": f"skipped: {needed / 1e9:.1f} GB needed, {free / 1e9:.1f} free"} for row in rows.values()
        ]
    try:
        expected = PROVIDERS["torch"].prepare(problem.in_double_precision, device)()
    except torch.OutOfMemoryError:
        return [{**row, "status": "skipped: out of memory"} for row in rows.values()]
    clocks: dict[str, Clock] = {}
    several_libraries = len({PROVIDERS[name].is_torch for name in names}) > 1
    for name, row in rows.items():
        provider = PROVIDERS[name]
        try:
            function = provider.prepare(problem, device)
            row["error"] = check(problem, function(), expected)
            if provider.is_torch:
                row["memory"] = peak_bytes(function, device) / problem.nbytes
                clocks[name] = clockmaker(function)
            else:
                row["timer"] = "wall clock"
                clocks[name] = wall_clock(function)
            if several_libraries:
                clocks[name] = settled(clocks[name], function)
        except Exception as error:  # whatever it is, the other providers are to be measured
            row["status"] = f"failed: {' '.join(str(error).split())[:200] or type(error).__name__}"
    del expected
    timings = interleaved(clocks, rounds=25, limit_seconds=seconds)
    for name, timing in timings.items():
        rows[name] |= _times(timing, timings.get("torch"))
    return list(rows.values())


def check(problem: Problem, results: Sequence[Any], expected: Sequence[torch.Tensor]) -> float:
    """The largest relative error; ArithmeticError if rounding does not explain it."""
    tensors = [x if isinstance(x, torch.Tensor) else torch.from_dlpack(x) for x in results]
    pairs = zip(tensors, expected, strict=True)
    error = max(reference.relative_error(x.detach(), exact.detach()) for x, exact in pairs)
    allowed = reference.tolerance(problem.dtype, max(problem.size.m, problem.size.n))
    if not error <= allowed:  # NaN fails too
        raise ArithmeticError(f"relative error {error:.1e}, more than {allowed:.1e}")
    return error


def _times(timing: Timing, torchs: Timing | None) -> Row:
    row: Row = {
        "rounds": len(timing.seconds),
        "ms": 1e3 * timing.median,
        "ms_20": 1e3 * timing.percentile(20),
        "ms_80": 1e3 * timing.percentile(80),
    }
    return row if torchs is None else {**row, "speedup": torchs.ratio(timing)}


def rates(problem: Problem, ms: float, ceilings: dict[str, float]) -> Row:
    """Speeds at the fewest bytes and operations, and as fractions of what the device was seen to do."""
    gb, tflop = 1e-6 * problem.fewest_bytes / ms, 1e-9 * problem.flops / ms
    return {
        "gb_per_s": gb,
        "tflop_per_s": tflop,
        "of_copy": gb / ceilings["copy_gb_per_s"],
        "of_matmul": tflop / ceilings["matmul_tflop_per_s"],
        **ceilings,
    }


def _rounded(value: Any) -> Any:
    return f"{value:.4g}" if isinstance(value, float) else value


def _summary(row: Row) -> str:
    if "ms" not in row:
        return f"{row['provider']} {row['status']}"
    return f"{row['provider']} {row['ms']:.4g} ms" + (f" ({row['speedup']:.2f}×)" if "speedup" in row else "")
