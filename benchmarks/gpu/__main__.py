"""`python -m benchmarks.gpu`: see the package."""

import os
import sys
from argparse import RawDescriptionHelpFormatter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from tempfile import TemporaryDirectory
from time import monotonic, sleep

import torch
from rich.console import Console

import benchmarks.gpu
from benchmarks.gpu import counters, dry, lab, summary
from benchmarks.gpu.processes import Compiler, RowError, Worker
from benchmarks.gpu.stages import ALL, COLUMNS, DRY, KEYS, ROOT, Extent, Stage, Task, stages
from benchmarks.gpu.table import Row, Table
from triton_lu import calibration
from triton_lu.command import Parser, duration

RESULTS = Path(__file__).parents[1] / "results"
PACKAGED = ROOT / "triton_lu" / "calibrations"
ROW_SECONDS = 120  # after which a row is given up: more than a compilation and the slowest calls take
WAIT_SECONDS = 30  # for compilers, after which the process that measures compiles itself


class Run:
    """Measures the rows that are missing in the tables, in the time from `start` to `end`."""

    def __init__(
        self,
        tables: Mapping[str, Table],
        worker: Worker,
        compiler: Compiler,
        start: float,
        end: float,
        console: Console,
    ):
        self.tables, self.worker, self.compiler, self.console = tables, worker, compiler, console
        self.start, self.end = start, end
        self.left_out: dict[str, int] = {}

    def all(self, stages: Sequence[Stage]) -> None:
        """Every stage in its share of the time; then in what is left."""
        for stage in stages:
            if not stage.waits:
                self.compile(stage)
        deadlines = [self.start + x * (self.end - self.start) for x in accumulate(stage.share for stage in stages)]
        try:
            for stage, deadline in zip(stages, deadlines, strict=True):
                self.measure(stage, deadline)
            for stage in stages:
                self.measure(stage, self.end)
        except RuntimeError as error:  # of a worker that cannot start any more
            self.console.print(f"ended early: {error}")

    def did_not_fit(self) -> str:
        """How many, of which stages."""
        return ", ".join(f"{number} of {name}" for name, number in self.left_out.items() if number) or "none"

    def missing(self, stage: Stage) -> list[Task]:
        return [task for task in stage.tasks(self.tables) if not self.tables[stage.table].has(task.about)]

    def compile(self, stage: Stage) -> None:
        for task in self.missing(stage):
            self.compiler.add(task.cases)

    def measure(self, stage: Stage, deadline: float) -> None:
        """Those rows that are done before the deadline, as far as one can tell before."""
        if monotonic() < deadline:
            self.compile(stage)
        pending = self.missing(stage)
        self.left_out[stage.name] = 0
        estimated = spent = 0.0
        while pending:
            task = self._next(pending, deadline)
            pending.remove(task)
            pace = max(1.0, spent / estimated) if estimated else 1.0
            start = monotonic()
            rows = self._rows(task, deadline) if start + pace * task.seconds <= deadline else None
            if rows is None:
                self.left_out[stage.name] += 1
                continue
            self.tables[stage.table].add(*({**task.about, "status": "ok", **row} for row in rows))
            for row in rows:
                shown = {**task.about, **row}.values()
                self.console.print(
                    f"{stage.name}:", ", ".join(f"{x:.4g}" if isinstance(x, float) else str(x) for x in shown)
                )
            estimated, spent = estimated + task.seconds, spent + monotonic() - start

    def _next(self, pending: list[Task], deadline: float) -> Task:
        """The first whose kernels have been compiled; after a while the first."""
        give_up = min(deadline, monotonic() + WAIT_SECONDS)
        while monotonic() < give_up:
            for task in pending:
                if self.compiler.has(task.cases):
                    return task
            sleep(0.02)
        return pending[0]

    def _rows(self, task: Task, deadline: float) -> list[Row] | None:
        """What it gives, a status if it failed; None if the time was up."""
        left = (deadline if task.alone else self.end) - monotonic()
        try:
            if task.alone:
                self.worker.stop()
                return task.function(*task.arguments, left)
            return self.worker.run(task.function, *task.arguments, seconds=min(ROW_SECONDS, left))
        except TimeoutError as error:
            return None if task.alone or left < ROW_SECONDS else [{"status": f"failed: {error}"}]
        except (RowError, OSError) as error:
            return [{"status": f"failed: {error}"}]


def main() -> int:
    parser = Parser(prog="python -m benchmarks.gpu", description=benchmarks.gpu.__doc__)
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("--minutes", type=duration, default=13.0, help="that it may take (default: 13)")
    parser.add_argument("--output", type=Path, help="folder (default: benchmarks/results/GPU)")
    parser.add_argument("--dry-run", action="store_true", help="every stage, on the CPU, of next to nothing")
    options = parser.parse_args()
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    os.environ["TRITON_INTERPRET"] = "0"
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    with TemporaryDirectory() as folder:
        if options.dry_run:
            os.environ["XDG_CACHE_HOME"] = folder  # whose calibration nobody reads
            return run(DRY, options.minutes, options.output or Path(folder), dry.ncu(Path(folder)), console)
        return run(ALL, options.minutes, options.output, counters.find(), console)


def run(extent: Extent, minutes: float, folder: Path | None, ncu: str | None, console: Console) -> int:
    """1 if something failed, else 0."""
    start = monotonic()
    is_dry = extent is DRY
    worker = Worker(lab.Lab, is_dry, environment={"TRITON_INTERPRET": "1"} if is_dry else {})
    compiler = None
    try:
        facts, target = worker.run(lab.facts, seconds=60)
        console.print(", ".join(f"{name} {value}" for name, value in facts.items()))
        packaged = PACKAGED / f"{calibration.slug(facts['device'])}.json"
        folder = folder or RESULTS / packaged.stem
        tables = {name: Table(folder / f"{name}.csv", COLUMNS[name], KEYS[name], facts) for name in COLUMNS}
        compiler = Compiler(target, *((1, 2) if is_dry else (os.cpu_count() or 1,)))
        measuring = Run(tables, worker, compiler, start, start + 60 * minutes, console)
        measuring.all(stages(extent, folder, ncu))
    except KeyboardInterrupt:
        console.print("interrupted: what was measured is kept")
        return 130
    finally:
        worker.stop()
        if compiler:
            compiler.stop()
    values = {row["name"]: int(row["largest"]) for row in tables["calibration"].rows if row["largest"]}
    if values:
        calibration.write(torch.device(extent.device), values)
        for file in (folder / "calibration.json", *([] if is_dry else [packaged])):
            calibration.write_shipped(file, values)
    console.print(f"\n{folder}, {(monotonic() - start) / 60:.1f} minutes. What to look at:")
    for what, seen in (*summary.lines(tables), ("rows that did not fit", measuring.did_not_fit())):
        console.print(f"  {what}: {seen}")
    if ncu is None:
        console.print("  counters: skipped, there is no ncu")
    return 1 if summary.failed(tables) else 0


if __name__ == "__main__":
    sys.exit(main())
