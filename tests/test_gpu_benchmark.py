"""The benchmark for a GPU that is at hand for minutes: rows that stay, time that is kept, failures that are rows.

By processes that die, clocks that are turned, and a whole dry run.
"""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import torch
from rich.console import Console

from benchmarks import host
from benchmarks.gpu import __main__ as gpu
from benchmarks.gpu import counters, dry, stages, summary
from benchmarks.gpu.processes import RowError, Worker
from benchmarks.gpu.stages import ALL, Stage, Task
from benchmarks.gpu.table import Table
from triton_lu import calibration, plan
from triton_lu.bench import run

ROOT = Path(__file__).parents[1]
FACTS = {"device": "a GPU", "torch": "2", "triton": "3", "cuda": "13", "sources": "abc", "date": "today"}


# Tables


def table(file, **facts):
    return Table(file, ("name", "status", "us"), ("name",), {**FACTS, **facts})


def test_a_row_is_on_disk_when_it_is_there(tmp_path):
    rows = table(tmp_path / "t.csv")
    for name in ("a", "b,c"):
        rows.add({"name": name, "status": "ok", "us": 1.23456})
        assert (tmp_path / "t.csv").read_text().endswith(",ok,1.235,a GPU,2,3,13,abc,today\n")
    assert pandas.read_csv(tmp_path / "t.csv").name.tolist() == ["a", "b,c"]


def test_a_later_table_has_the_rows_of_the_same_code_and_versions(tmp_path):
    file = tmp_path / "t.csv"
    table(file).add({"name": "a", "status": "ok"})
    table(file, sources="changed").add({"name": "b", "status": "ok"})
    with file.open("a") as torn:
        torn.write("c,ok,1.")  # of a killed run
    for facts, has in (({"date": "tomorrow"}, "a"), ({"sources": "changed"}, "b"), ({"triton": "4"}, "")):
        later = table(file, **facts)
        assert [name for name in "abc" if later.has({"name": name})] == list(has)
    assert pandas.read_csv(file).name.tolist() == ["a", "b"]  # others are kept


# Processes


class Hand:
    """What the functions below find in their process."""

    def __init__(self, broken=""):
        if broken:
            raise ValueError(broken)
        self.healthy = True

    def is_healthy(self):
        return self.healthy


def process(hand):
    return os.getpid()


def fail(hand):
    raise ValueError("no such\nthing")


def die(hand):
    os._exit(3)


def hang(hand):
    time.sleep(600)


def spoil(hand):
    hand.healthy = False
    return os.getpid()


def test_a_process_that_dies_hangs_or_is_spoiled_is_replaced():
    worker = Worker(Hand)
    try:
        first = worker.run(process, seconds=60)
        assert worker.run(process, seconds=60) == first != os.getpid()
        with pytest.raises(RowError, match=r"^no such thing$"):
            worker.run(fail, seconds=60)
        assert worker.run(process, seconds=60) == first
        with pytest.raises(RowError, match="the process ended with exit code 3"):
            worker.run(die, seconds=60)
        second = worker.run(spoil, seconds=60)
        third = worker.run(process, seconds=60)
        assert len({first, second, third}) == 3
        with pytest.raises(TimeoutError):
            worker.run(hang, seconds=0.1)
        assert worker.run(process, seconds=60) != third
    finally:
        worker.stop()


def test_without_a_process_that_can_measure_the_run_ends():
    with pytest.raises(RuntimeError, match="no process can measure: the GPU is lost"):
        Worker(Hand, "the GPU is lost").run(process, seconds=60)


# The run


class Clocked:
    """In place of the clock, the process that measures and those that compile."""

    def __init__(self, monkeypatch, folder):
        self.now, self.folder, self.done = 0.0, folder, []
        monkeypatch.setattr(gpu, "monotonic", lambda: self.now)
        monkeypatch.setattr(gpu, "sleep", self.sleep)

    def sleep(self, seconds):
        self.now += seconds

    def run(self, function, *arguments, seconds):
        return function(self, *arguments, seconds)

    def stop(self):
        self.done.append("stopped")

    def add(self, cases):
        pass

    def has(self, cases):
        return all(self.now >= ready for ready in cases)

    def measuring(self, end):
        tables = {"t": table(self.folder / "t.csv")}
        return gpu.Run(tables, self, self, 0.0, end, Console(quiet=True))


def takes(clocked, name, needed, seconds):
    clocked.now += min(needed, seconds)
    if needed > seconds:
        raise TimeoutError("no answer")
    clocked.done.append(name)
    return [{"us": needed}]


def task(name, needed, estimate=1.0, **options):
    return Task({"name": name}, takes, (name, needed), seconds=estimate, **options)


@pytest.fixture
def clocked(monkeypatch, tmp_path):
    return Clocked(monkeypatch, tmp_path)


def test_stages_keep_to_their_shares_and_then_take_what_is_left(clocked):
    long = Stage("long", "t", 0.5, lambda _: [task(f"long {i}", 1.0) for i in range(20)])
    short = Stage("short", "t", 0.5, lambda _: [task(f"short {i}", 1.0) for i in range(2)])
    measuring = clocked.measuring(end=12.0)
    measuring.all([long, short])
    assert clocked.done == [
        *(f"long {i}" for i in range(6)),
        "short 0",
        "short 1",
        *(f"long {i}" for i in range(6, 10)),
    ]
    assert measuring.did_not_fit() == "10 of long"
    assert clocked.now == 12.0


def test_rows_that_take_longer_than_estimated_do_not_make_the_run_longer(clocked):
    slow = Stage("slow", "t", 1.0, lambda _: [task(f"slow {i}", 3.0) for i in range(9)])
    measuring = clocked.measuring(end=10.0)
    measuring.all([slow])
    assert clocked.done == ["slow 0", "slow 1", "slow 2"]
    assert clocked.now == 10.0  # a fourth one is cut off
    assert not measuring.tables["t"].has({"name": "slow 3"})


def test_a_run_does_not_repeat_rows(clocked):
    stage = Stage("stage", "t", 1.0, lambda _: [task(f"row {i}", 1.0) for i in range(8)])
    clocked.measuring(end=3.0).all([stage])
    assert clocked.done == ["row 0", "row 1", "row 2"]
    clocked.now = 0.0
    clocked.measuring(end=100.0).all([stage])
    assert clocked.done == [f"row {i}" for i in range(8)]
    assert pandas.read_csv(clocked.folder / "t.csv").name.tolist() == clocked.done


def test_what_is_compiled_is_measured_first_and_nothing_is_waited_for_endlessly(clocked):
    tasks = [task("never", 1.0, cases=[1e9]), task("later", 1.0, cases=[5.0]), task("ready", 1.0)]
    clocked.measuring(end=1000.0).all([Stage("stage", "t", 1.0, lambda _: tasks)])
    assert clocked.done == ["ready", "later", "never"]
    assert clocked.now < 40


def crash(clocked, seconds):
    clocked.now += 1.0
    raise RowError("the process ended with exit code -11")


def counted(seconds):
    raise ChildProcessError("ERR_NVGPUCTRPERM")


def test_failures_are_statuses_and_the_others_are_measured(clocked):
    stuck = task("stuck", gpu.ROW_SECONDS + 1.0)
    crashing = Task({"name": "crashing"}, crash, ())
    forbidden = Task({"name": "forbidden"}, counted, (), alone=True)
    measuring = clocked.measuring(end=1000.0)
    measuring.all([Stage("stage", "t", 1.0, lambda _: [stuck, crashing, forbidden, task("good", 1.0)])])
    assert {row["name"]: row["status"] for row in measuring.tables["t"].rows} == {
        "stuck": "failed: no answer",
        "crashing": "failed: the process ended with exit code -11",
        "forbidden": "failed: ERR_NVGPUCTRPERM",
        "good": "ok",
    }
    assert clocked.done == ["stopped", "good"]  # ncu and pytest have the GPU for themselves


def lost(clocked, seconds):
    raise RuntimeError("no process can measure")


def test_a_lost_gpu_ends_the_run_early(clocked):
    tasks = [task("good", 1.0), Task({"name": "lost"}, lost, ()), task("late", 1.0)]
    clocked.measuring(end=100.0).all([Stage("stage", "t", 1.0, lambda _: tasks)])
    assert clocked.done == ["good"]


# What is measured


@pytest.fixture(scope="module")
def planned(tmp_path_factory):
    return {stage.name: stage for stage in stages.stages(ALL, tmp_path_factory.mktemp("results"), "ncu")}


def test_the_shares_are_of_the_whole(planned):
    assert sum(stage.share for stage in planned.values()) == pytest.approx(1)
    assert {stage.table for stage in planned.values()} == set(stages.COLUMNS)


def test_steps_are_float32_first_and_timed_in_both_ways(planned):
    about = pandas.DataFrame([task.about for task in planned["steps"].tasks({})])
    assert about["dtype"].drop_duplicates().tolist() == ["float32", "float64", "complex64"]
    assert about["timer"].drop_duplicates().tolist() == [run.EVENTS, run.GRAPHS]
    sizes = about[["batch", "n"]].drop_duplicates().itertuples(index=False, name=None)
    batches = [(65536, 4), (65536, 8), (16384, 16), (4096, 32), (1024, 64), (256, 128), (64, 256), (16, 512), (4, 1024)]
    assert list(sizes) == [*batches, *((1, n) for n in (64, 128, 256, 512, 1024, 2048, 4096, 8192))]
    assert len(about) == len(about.drop_duplicates()) == 3 * 2 * 17 * 5


def test_checks_are_of_every_regime_and_dtype(planned):
    checked = {(type(case[3]), case[2]) for task in planned["checks"].tasks({}) for case in task.cases}
    regimes = (plan.Factor, plan.Warp, plan.Tile, plan.Sweep)
    assert {(regime, dtype) for regime in regimes for dtype in stages.DTYPES} <= checked


def test_every_call_of_the_host_is_one():
    arguments = host.Arguments(stages.Size(1, 3, 3), "cpu")
    for call in host.CALLS.values():
        call(arguments)()


def test_choices_are_the_closest_first_and_of_those_the_slowest(planned, tmp_path):
    measured = Table(tmp_path / "kernels.csv", stages.COLUMNS["kernels"], stages.KEYS["kernels"], FACTS)
    found = {"vjp": 4.0, "jvp": 9.0}
    for kernel in planned["kernels"].tasks({}):
        above = found.get(kernel.about["kernel"], 1.0)
        measured.add({**kernel.about, "status": "ok", "us": above, "copy_us": 1.0})
    tasks = planned["choices"].tasks({"kernels": measured})
    assert not any(measured.has(task.about) for task in tasks)
    distances = []
    for other in tasks:
        name, (batch, m, n), dtype, chosen = other.cases[0]
        distances.append(stages.distance(plan.kernel(name, m, n, dtype, batch), chosen))
    assert distances == sorted(distances)
    assert distances[0][0] == 1
    nearest = [task.about["kernel"] for task, far in zip(tasks, distances, strict=True) if far == (1, 1.0)]
    assert nearest == sorted(nearest, key=lambda kernel: -found.get(kernel, 1.0))
    assert set(nearest) == {"factor", "vjp", "jvp", "curvature"}


def test_distance_is_members_and_powers_of_two():
    near, far = plan.Warp(8, 4), plan.Warp(2, 1)
    assert stages.distance(near, plan.Warp(16, 4)) == (1, 1.0)
    assert stages.distance(near, far) == (2, 4.0)


# Counters


def test_metrics_are_those_that_the_gpu_has():
    (option, names) = counters.metrics(dry.LISTED)
    assert option == "--metrics"
    assert names.split(",") == [
        "gcc__cache_requests_type_instruction.sum",
        "gpu__time_duration.sum",
        "sm__icc_requests.sum",
        "sm__icc_requests_lookup_miss.sum",
        "smsp__average_warps_issue_stalled_no_instruction_per_issue_active.ratio",
    ]
    assert counters.metrics("==ERROR== unknown option") == []


def test_counters_are_read_from_what_ncu_prints():
    (row,) = counters.parsed(dry.COUNTED)
    assert row["gpu__time_duration.sum"] == 81376
    assert row["smsp__average_warps_issue_stalled_no_instruction_per_issue_active.ratio"] == 4.5
    assert len(row) == 5
    assert counters.parsed("==PROF== nothing") == []


def test_what_ncu_complains_of_is_told(tmp_path):
    ncu = tmp_path / "ncu"
    ncu.write_text("#!/bin/sh\necho '==ERROR== ERR_NVGPUCTRPERM - no permission to access the counters'\nexit 1\n")
    ncu.chmod(0o755)
    with pytest.raises(ChildProcessError, match="ERR_NVGPUCTRPERM"):
        counters.count(str(ncu), True, 60)


# Tests as a stage


def test_tests_have_a_status_and_those_that_passed_are_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setattr(stages, "ROOT", tmp_path)
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_it.py").write_text(
        "import pytest, pathlib\n"
        "@pytest.mark.parametrize('x', ['(1, 2)', '3'])\n"
        "def test_good(x): pass\n"
        "def test_bad(): assert pathlib.Path('mended').exists()\n"
    )
    tested = tmp_path / "tests.txt"
    (row,) = stages.run_tests(["tests"], tested, "abc", 60)
    assert row["status"].startswith("failed: 1 failed, 2 passed in")
    (tmp_path / "mended").touch()
    assert stages.run_tests(["tests"], tested, "abc", 60) == [{"status": "ok"}]
    assert "1 passed, 2 deselected in" in tested.read_text()
    assert stages.run_tests(["tests"], tested, "abc", 60) == [{"status": "ok"}]  # none is left
    assert stages.run_tests(["tests"], tested, "changed", 60) == [{"status": "ok"}]
    assert "3 passed in" in tested.read_text()
    with pytest.raises(TimeoutError):
        stages.run_tests(["tests"], tested, "again", 0.01)


# What to look at


def test_the_lines_at_the_end(tmp_path):
    tables = {name: Table(tmp_path / name, stages.COLUMNS[name], stages.KEYS[name], FACTS) for name in stages.COLUMNS}
    size = {"batch": 1, "m": 8, "n": 8, "dtype": "float32"}
    tables["checks"].add({"check": "kernel", "kernel": "jvp", **size, "status": "failed: relative error 1"})
    for timer, speedup in ((run.EVENTS, 0.5), (run.GRAPHS, 2.0)):
        step = {"problem": "backward", **size, "timer": timer, "provider": "triton_lu", "status": "ok"}
        tables["steps"].add({**step, "ms": 1 / speedup, "speedup": speedup})
    kernel = {"kernel": "vjp", **size, "status": "ok", "copy_us": 10.0}
    for chosen, planned, us in (("A", True, 30.0), ("B", False, 20.0), ("C", False, 15.0), ("D", False, 29.0)):
        tables["kernels"].add({**kernel, "plan": chosen, "planned": planned, "us": us})
    tables["kernels"].add({**kernel, "plan": "E", "planned": False, "status": "failed: out of registers"})
    tables["host"].add({"call": "vjp", **size, "status": "ok", "host_us": 25.0})
    tables["calibration"].add({"name": "kernel vjp float32", "status": "ok", "largest": 64})
    seen = dict(summary.lines(tables))
    assert seen["wrong or failed checks"].startswith("1: kernel jvp 1 8 8 float32 failed: relative error 1")
    assert seen["failed, other than those"] == "none (of 4)"
    assert seen["slower than PyTorch"] == "1: backward 1×8×8 float32 2.0× (of 1)"
    assert seen["also as CUDA graphs"] == "none (of 1)"
    assert seen["longest beside their graphs"] == "1: backward 1×8×8 float32 4.0×"
    assert seen["kernels furthest above a copy"] == "1: vjp 1×8×8 float32 3.0×"
    assert seen["host, longest calls"] == "1: vjp 1×8×8 25 µs"
    assert seen["choices faster than the plan by 5 %"] == "1: vjp 1×8×8 float32 C 2.00×"
    assert seen["kernels that lose to ATen"] == "1: kernel vjp float32 above 64"
    assert summary.failed(tables) == 1


# As a whole


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["gpu"])
    with pytest.raises(SystemExit):
        gpu.main()
    assert "there is no CUDA device" in capsys.readouterr().err


def test_a_killed_dry_run_keeps_its_rows_and_goes_on(tmp_path):
    """From a checkout that is not installed: no path names the kernels."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "TRITON_INTERPRET")}
    command = [sys.executable, "-W", "ignore", "-m", "benchmarks.gpu", "--dry-run", "--output", str(tmp_path)]
    options = {"cwd": ROOT, "env": environment | {"OMP_NUM_THREADS": "1"}, "text": True, "start_new_session": True}
    with subprocess.Popen(command, stdout=subprocess.PIPE, **options) as killed:
        next(line for line in killed.stdout if line.startswith("steps: backward"))
        os.killpg(killed.pid, signal.SIGKILL)
    kept = pandas.read_csv(tmp_path / "steps.csv")
    assert kept.problem.tolist()[:4] == ["forward", "forward", "backward", "backward"]
    done = subprocess.run(command, capture_output=True, timeout=600, **options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "rows that did not fit: none" in done.stdout
    tables = {name: pandas.read_csv(tmp_path / f"{name}.csv") for name in stages.COLUMNS}
    assert all(set(rows.status) == {"ok"} for rows in tables.values())
    pandas.testing.assert_frame_equal(tables["steps"][: len(kept)], kept)
    assert not tables["steps"].duplicated(["problem", "provider", "timer"]).any()
    assert tables["steps"].groupby("timer").size().tolist() == [10, 10]
    assert set(json.loads((tmp_path / "calibration.json").read_text())) == set(tables["calibration"].name)
    assert "passed" in (tmp_path / "tests.txt").read_text()
    assert len(list(tmp_path.iterdir())) == 8
    assert tuple(tables["calibration"].name.str.split().str[1]) == (*calibration.KERNELS, "factor")
