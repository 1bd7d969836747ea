"""What is measured, row by row, in the process that has the GPU."""

import hashlib
from collections.abc import Callable
from contextlib import nullcontext
from functools import cache, partial
from pathlib import Path
from statistics import median
from unittest.mock import patch

import torch
import triton_lu_kernels

import triton_lu
from benchmarks import times
from benchmarks.gpu.table import Row
from benchmarks.host import CALLS, Arguments, seconds
from benchmarks.kernels import fewest_bytes
from benchmarks.times import Case
from triton_lu import calibration
from triton_lu.bench import calibrate, machine, run
from triton_lu.bench.problems import Problem, Size
from triton_lu.bench.timing import Clock, Clockmaker, event_clock

SOME = 64  # matrices, in checks


class Lab:
    """The device and its clocks; in a dry run the CPU, on which Triton's interpreter runs the kernels.

    Plans are the defaults here: calibrations are made of what is measured.
    """

    def __init__(self, dry: bool):
        patch.object(calibration, "value", lambda device, name, default: default).start()
        self.device = torch.device("cpu" if dry else "cuda")
        self.clockmakers: dict[str, Clockmaker] = dict.fromkeys((run.EVENTS, run.GRAPHS), clock_that_stands)
        self.host_calls, self.host_rounds = 10, 15  # a queue holds the launches of far more calls
        if dry:
            self.host_calls, self.host_rounds = 1, 1
            self._choice = triton_lu.backend("triton")
            self._choice.__enter__()
            patch.multiple(calibrate, BATCH=16, SIZES=()).start()
        else:
            torch.cuda.set_stream(torch.cuda.Stream())  # on which a graph can be captured
            self.clockmakers = {run.EVENTS: event_clock, run.GRAPHS: partial(event_clock, graph=True)}
        self.ceilings = cache(partial(machine.ceilings, self.device, clockmaker=self.clockmakers[run.EVENTS]))

    def wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def is_healthy(self) -> bool:
        """Whether random numbers are drawn: not after an illegal access, nor after some captures that failed."""
        try:
            return bool(torch.rand(2, device=self.device).sum() >= 0)
        except RuntimeError:
            return False


def clock_that_stands(function: Callable[[], object]) -> Clock:
    """For dry runs: one call, and a millisecond."""
    function()
    return lambda: 1e-3


def facts(lab: Lab) -> tuple[dict[str, str], str]:
    """Of all rows; and what kernels are compiled for."""
    major, minor = torch.cuda.get_device_capability() if lab.device.type == "cuda" else (9, 0)
    return {**machine.facts(lab.device), "sources": sources()}, f"sm_{major}{minor}"


def sources() -> str:
    """What the code of the packages is known by, also where its commit is not."""
    digest = hashlib.sha256()
    for package in (triton_lu, triton_lu_kernels):
        for file in sorted(Path(package.__path__[0]).rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()[:12]


def check(lab: Lab, case: Case) -> list[Row]:
    name, (batch, m, n), dtype, chosen = case
    case = (name, Size(min(batch, SOME), m, n), dtype, chosen)
    return [{"error": times.check(case, times.arguments(case, lab.device.type))}]


def step(lab: Lab, problem: Problem, timer: str) -> list[Row]:
    rows = run.measure(problem, ("triton_lu", "torch"), lab.device, lab.clockmakers[timer], seconds=0.2)
    return [
        {**row, **(run.rates(problem, row["ms"], lab.ceilings(problem.dtype)) if "ms" in row else {})} for row in rows
    ]


def kernel(lab: Lab, case: Case) -> list[Row]:
    name, shape, dtype, _ = case
    gb_per_s = lab.ceilings(torch.float32)["copy_gb_per_s"]
    measured = times.measure(case, lab.device.type, lab.clockmakers[run.EVENTS], lab.clockmakers[run.GRAPHS])
    return [{"copy_us": shape.batch * fewest_bytes(name, shape, dtype) / gb_per_s * 1e-3, **measured}]


def host(lab: Lab, call: str, shape: Size) -> list[Row]:
    """How long a call takes until it returns, while the queue of the GPU has room."""
    function = CALLS[call](Arguments(shape, lab.device.type))
    seconds(function, 2)  # which prepare the others
    found = []
    for _ in range(lab.host_rounds):
        lab.wait()
        found.append(1e6 * seconds(function, lab.host_calls))
    return [{"host_us": median(found), "host_us_least": min(found)}]


def crossover(lab: Lab, name: str, single: bool, dtype: torch.dtype) -> list[Row]:
    clockmaker = lab.clockmakers[run.EVENTS]
    return [{"largest": calibrate.crossover(name, dtype, lab.device, clockmaker, seconds=0.1, single=single)}]


def launches(lab: Lab, cases: list[Case]) -> None:
    """One launch of each case, between calls that tell a profiler so."""
    profiled = torch.cuda.profiler.profile if lab.device.type == "cuda" else nullcontext
    for case in cases:
        given = times.arguments(case, lab.device.type)
        with times.operator(case) as op:
            op(*given)
            lab.wait()
            with profiled():
                op(*given)
                lab.wait()
