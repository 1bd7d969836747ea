"""What is measured: the stages, their share of the time, and the rows of each in the order of their value."""

import importlib.util
import math
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from itertools import product
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import counters, lab
from benchmarks.gpu.counters import ROOT, about
from benchmarks.gpu.table import Row, Table
from benchmarks.host import CALLS
from benchmarks.kernels import KERNELS
from benchmarks.times import ELEMENTS, Case, cases
from benchmarks.times import SIZES as KERNEL_SIZES
from triton_lu import calibration, plan
from triton_lu.bench import calibrate, problems, run
from triton_lu.bench.problems import FOOTPRINT, Problem, Size
from triton_lu.command import dtype_name
from triton_lu.validation import DTYPES

NO_TESTS_LEFT = 5  # pytest's exit code
STEPS = ("forward", "backward", "forward+backward", "jvp", "double backward")
KERNELS_OF = {  # of a step, what is prepared for it included
    "forward": ("factor",),
    "backward": ("factor", "vjp"),
    "forward+backward": ("factor", "vjp"),
    "jvp": ("factor", "jvp"),
    "double backward": ("factor", "vjp", "jvp", "curvature"),
}
CASE = ("kernel", "batch", "m", "n", "dtype", "plan")
COLUMNS = {
    "checks": ("check", *CASE, "status", "error"),
    "steps": run.COLUMNS[: run.COLUMNS.index("device")],
    "kernels": (*CASE, "planned", "status", "copy_us", "error", "us", "graph_us"),
    "host": ("call", "batch", "m", "n", "status", "host_us", "host_us_least"),
    "counters": ("tool", *CASE, "metric", "value", "status"),
    "calibration": ("name", "status", "largest"),
}
KEYS = {
    "checks": ("check", *CASE),
    "steps": ("problem", "batch", "m", "n", "dtype", "timer"),
    "kernels": CASE,
    "host": ("call", "batch", "m", "n"),
    "counters": ("tool",),
    "calibration": ("name",),
}


@dataclass(frozen=True)
class Task:
    """What gives one row or a few.

    about: the columns that its rows begin with, the key of the table among them.
    function, arguments: what measures, in the process that has the GPU. `alone`: here, without that process, with the
        seconds that are left as an argument more.
    cases: kernels that must have been compiled.
    seconds: an estimate.
    """

    about: Row
    function: Callable[..., list[Row]]
    arguments: tuple[Any, ...]
    cases: Sequence[Case] = ()
    seconds: float = 0.5
    alone: bool = False


@dataclass(frozen=True)
class Stage:
    """Tasks whose rows come into a table; `share` of the time; `waits`: nothing is compiled for it before its turn."""

    name: str
    table: str
    share: float
    tasks: Callable[[Mapping[str, Table]], list[Task]]
    waits: bool = False


def _square(*sizes: int) -> list[Size]:
    return [Size(1, n, n) for n in sizes]


@dataclass(frozen=True)
class Extent:
    """How much is measured; `elements` of a batch of the kernels alone, `choices` at most."""

    device: str
    checks: Sequence[Size]
    steps: Sequence[Size]
    kernels: Sequence[Size]
    host: Sequence[Size]
    step_dtypes: Sequence[torch.dtype]
    dtypes: Sequence[torch.dtype]
    elements: int
    choices: int | None
    tests: Sequence[str]


ALL = Extent(
    device="cuda",
    checks=_square(4, 8, 16, 32, 64, 128, 256),
    steps=[*FOOTPRINT, *_square(64, 128, 256, 512, 1024, 2048, 4096, 8192)],
    kernels=KERNEL_SIZES,
    host=_square(8, 64, 256),
    step_dtypes=problems.DTYPES,
    dtypes=DTYPES,
    elements=ELEMENTS,
    choices=None,
    tests=("tests/gpu", *(("-n", "8") if importlib.util.find_spec("xdist") else ())),
)
DRY = Extent(
    device="cpu",
    checks=_square(4),
    steps=[Size(3, 4, 4)],
    kernels=_square(4),
    host=_square(4),
    step_dtypes=[torch.float32],
    dtypes=[torch.float32],
    elements=32,
    choices=2,
    tests=("tests/test_benchmarks.py",),
)


def stages(extent: Extent, folder: Path, ncu: str | None) -> list[Stage]:
    """In the order of their value."""
    return [
        Stage("checks", "checks", 0.10, lambda _: list(_checks(extent))),
        Stage("steps", "steps", 0.40, lambda _: list(_steps(extent))),
        Stage("kernels", "kernels", 0.12, lambda _: list(_kernels(extent))),
        Stage("host", "host", 0.04, lambda _: list(_host(extent))),
        Stage("choices", "kernels", 0.12, lambda tables: _choices(extent, tables["kernels"]), waits=True),
        Stage("counters", "counters", 0.08, lambda _: _counters(extent, ncu)),
        Stage("tests", "checks", 0.08, lambda _: _tests(extent, folder)),
        Stage("calibration", "calibration", 0.06, lambda _: list(_calibration(extent))),
    ]


def kernels_of(step: str, size: Size, dtype: torch.dtype) -> list[Case]:
    batch, m, n = size
    planned = {name: plan.kernel(name, m, n, dtype, batch) for name in KERNELS_OF[step]}
    return [(name, size, dtype, chosen) for name, chosen in planned.items() if chosen is not None]


def _planned(extent: Extent, sizes: Sequence[Size]) -> Iterator[Case]:
    for dtype in extent.dtypes:
        yield from cases(KERNELS, sizes, [dtype], others=False, elements=extent.elements)


def _checks(extent: Extent) -> Iterator[Task]:
    for case in _planned(extent, extent.checks):
        yield Task({"check": "kernel", **about(case)}, lab.check, (case,), cases=[case], seconds=0.3)


def _steps(extent: Extent) -> Iterator[Task]:
    for dtype, timer, size, name in product(extent.step_dtypes, (run.EVENTS, run.GRAPHS), extent.steps, STEPS):
        batch, m, n = size
        problem = Problem(name, size, dtype, extent.device)
        yield Task(
            {"problem": name, "batch": batch, "m": m, "n": n, "dtype": dtype_name(dtype), "timer": timer},
            lab.step,
            (problem, timer),
            cases=kernels_of(name, size, dtype),
            seconds=0.5 + 15 * 4 * problem.flops / 2e13,  # of 15 calls in PyTorch's operations, at 20 Tflop/s
        )


def _kernels(extent: Extent) -> Iterator[Task]:
    for case in _planned(extent, extent.kernels):
        yield Task({**about(case), "planned": True}, lab.kernel, (case,), cases=[case], seconds=0.4)


def _host(extent: Extent) -> Iterator[Task]:
    for shape, call in product(extent.host, CALLS):
        batch, m, n = shape
        row = {"call": call, "batch": batch, "m": m, "n": n}
        needed = kernels_of("double backward", shape, torch.float32)
        yield Task(row, lab.host, (call, shape), cases=needed, seconds=0.2)


def _choices(extent: Extent, measured: Table) -> list[Task]:
    """The closest to the plan first, and of these the ones for kernels furthest above a copy."""
    above = {
        tuple(row[name] for name in CASE[:-1]): float(row["us"]) / float(row["copy_us"])
        for row in measured.rows
        if row["planned"] == "True" and row["us"]
    }

    def order(case: Case) -> tuple[float, ...]:
        name, (batch, m, n), dtype, chosen = case
        own = (str(value) for value in list(about(case).values())[:-1])
        return (*distance(plan.kernel(name, m, n, dtype, batch), chosen), -above.get(tuple(own), 0.0))

    everything = cases(KERNELS, extent.kernels, extent.dtypes, others=True, elements=extent.elements)
    planned = set(_planned(extent, extent.kernels))
    others = sorted((case for case in everything if case not in planned), key=order)[: extent.choices]
    return [Task({**about(case), "planned": False}, lab.kernel, (case,), cases=[case], seconds=0.4) for case in others]


def distance(planned: Any, other: Any) -> tuple[int, float]:
    """In how many members two configurations of a kernel differ, and by how many powers of two."""
    pairs = [(getattr(planned, field.name), getattr(other, field.name)) for field in fields(planned)]
    steps = [abs(math.log2(a / b)) for a, b in pairs if a != b]
    return len(steps), sum(steps)


def _counters(extent: Extent, ncu: str | None) -> list[Task]:
    profiled = counters.profiled_cases(dry=extent is DRY)
    if ncu is None:
        return []
    arguments = (ncu, extent is DRY)
    return [Task({"tool": "ncu"}, counters.count, arguments, cases=profiled, seconds=50, alone=True)]


def _tests(extent: Extent, folder: Path) -> list[Task]:
    arguments = (extent.tests, folder / "tests.txt", lab.sources())
    return [Task({"check": extent.tests[0]}, run_tests, arguments, seconds=40, alone=True)]


def run_tests(arguments: Sequence[str], file: Path, sources: str, seconds: float) -> list[Row]:
    """Every test's result comes into the file as it is there; tests that passed with these sources are not repeated."""
    before = file.read_text() if file.exists() else ""
    if not before.startswith(sources):
        before = f"{sources}\n"
        file.write_text(before)
    passed = re.findall(r"PASSED (tests/.*)|^(tests/.*) PASSED", before, flags=re.MULTILINE)
    left_out = [f"--deselect={(with_xdist or without).strip()}" for with_xdist, without in passed]
    command = [sys.executable, "-m", "pytest", "-v", *arguments, *left_out]
    with file.open("a") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, cwd=ROOT, start_new_session=True)
        try:
            process.wait(seconds)
        except subprocess.TimeoutExpired as error:
            raise TimeoutError(str(error)) from error
        finally:
            with suppress(ProcessLookupError):  # none is left
                os.killpg(process.pid, signal.SIGKILL)
    last = (file.read_text().splitlines() or [""])[-1].strip("= ")
    good = (0, NO_TESTS_LEFT) if left_out else (0,)
    return [{"status": "ok" if process.returncode in good else f"failed: {last}"}]


def _calibration(extent: Extent) -> Iterator[Task]:
    for dtype, (name, single) in product(extent.dtypes, calibrate.KERNELS):
        row = {"name": calibration.kernel(name, dtype, single=single)}
        sizes = [problem.size for problem in calibrate.problems(name, dtype, extent.device, single=single)]
        needed = [(name, size, dtype, plan.kernel(name, size.m, size.n, dtype, size.batch)) for size in sizes]
        yield Task(row, lab.crossover, (name, single, dtype), cases=needed, seconds=5)
