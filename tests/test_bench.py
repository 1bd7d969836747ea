"""The benchmark: what is checked before it is timed, what is written, drawn and kept for later plans."""

import csv
import json
import os
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from contextlib import contextmanager
from functools import partial
from itertools import cycle, pairwise
from pathlib import Path

import pandas
import pytest
import torch
from matplotlib.figure import Figure
from torch._subclasses.fake_tensor import FakeTensorMode

import triton_lu
from triton_lu import aten_backend, calibration, hardware, ops, plan
from triton_lu.__main__ import main
from triton_lu._backend import current
from triton_lu.bench import calibrate, machine, plot, run, timing
from triton_lu.bench.problems import DTYPES, FOOTPRINT, PROBLEMS, QUICK, Problem, Size, grid, size
from triton_lu.bench.providers import PROVIDERS, Provider

CPU = torch.device("cpu")
real_path = calibration.path  # conftest.py has another for all tests
CEILINGS = {"copy_gb_per_s": 10.0, "matmul_tflop_per_s": 0.1}


def constant_clocks(*milliseconds):
    """A clockmaker whose clocks, in the order they are made, show these times whatever they are given."""
    times = cycle(milliseconds)

    def clockmaker(function):
        ms = next(times)
        return lambda: ms / 1e3

    return clockmaker


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """bench(*options) -> (exit code, the rows of its file)."""
    monkeypatch.setattr(run, "wall_clock", constant_clocks(1.0, 4.0))
    monkeypatch.setattr(machine, "ceilings", lambda *device_and_dtype, clockmaker: CEILINGS)
    file = tmp_path / "table.csv"

    def command(*options):
        code = main(["bench", "--output", str(file), "--force", *options])
        with file.open(newline="") as lines:
            return code, list(csv.DictReader(lines))

    return command


BACKWARD = ("--problems", "backward", "--dtypes", "float32", "--sizes")


# The table


def test_a_row_holds_times_rates_and_what_they_were_measured_on(bench, capsys):
    code, rows = bench(*BACKWARD, "8x6x6")
    assert code == 0
    assert [row["provider"] for row in rows] == ["triton_lu", "torch"]
    assert list(rows[0]) == list(run.COLUMNS)
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert [float(row["ms"]) for row in rows] == [1.0, 4.0]
    assert [float(row["speedup"]) for row in rows] == [4.0, 1.0]
    ours = {
        name: float(rows[0][name]) for name in ("ms_20", "ms_80", "gb_per_s", "tflop_per_s", "of_copy", "of_matmul")
    }
    assert ours["ms_20"] == ours["ms_80"] == 1.0
    assert ours["gb_per_s"] == pytest.approx(3 * 8 * 6 * 6 * 4 / 1e-3 / 1e9, rel=1e-3)
    assert ours["tflop_per_s"] == pytest.approx(8 * 4 / 3 * 6**3 / 1e-3 / 1e12, rel=1e-3)
    assert ours["of_copy"] == pytest.approx(ours["gb_per_s"] / 10, rel=1e-2)
    assert ours["of_matmul"] == pytest.approx(ours["tflop_per_s"] / 0.1, rel=1e-2)
    assert float(rows[1]["memory"]) == 7.0
    assert all(float(row["error"]) < 1e-5 for row in rows)
    assert (rows[0]["device"], rows[0]["threads"], rows[0]["torch"]) == (
        calibration.device_name(CPU),
        str(torch.get_num_threads()),
        torch.__version__,
    )
    assert "backward 8×6×6 float32: triton_lu 1 ms (4.00×); torch 4 ms (1.00×)" in capsys.readouterr().out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_every_problem_is_computed_right_and_timed(name, dtype):
    rows = run.measure(Problem(name, Size(3, 5, 5), dtype), ["triton_lu", "torch"], CPU, timing.wall_clock, 0)
    assert [row["status"] for row in rows] == ["ok", "ok"]
    assert all(row["rounds"] == 3 and 0 < row["ms_20"] <= row["ms"] <= row["ms_80"] for row in rows)


@pytest.mark.parametrize("name", ["forward", "backward", "jvp", "double backward"])
def test_rectangular_problems(name):
    for shape in (Size(1, 7, 4), Size(2, 4, 7)):
        rows = run.measure(Problem(name, shape, torch.float64), ["triton_lu"], CPU, constant_clocks(1.0), 0)
        assert [row["status"] for row in rows] == ["ok"]


def test_torch_compile(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    problem = Problem("backward", Size(1, 6, 6), torch.float32)
    assert run.measure(problem, ["torch.compile"], CPU, timing.wall_clock, 0)[0]["status"] == "ok"


@pytest.mark.parametrize("names", [["torch"], ["torch", "jax"]])
def test_beside_another_library_a_turn_begins_with_a_pause_and_a_call_that_does_not_count(names, monkeypatch):
    events, prepare_torch = [], PROVIDERS["torch"].prepare

    def prepare(problem, device):
        function = prepare_torch(problem, device)
        return lambda: events.append("call") or function()

    def clockmaker(function):
        return lambda: events.append("clock") or 1.0

    for name in names:
        monkeypatch.setitem(PROVIDERS, name, Provider(prepare, is_torch=name == "torch"))
    monkeypatch.setattr(run, "wall_clock", clockmaker)
    monkeypatch.setattr(timing, "sleep", lambda seconds: events.append("pause"))
    run.measure(Problem("forward", Size(2, 3, 3), torch.float32), names, CPU, clockmaker, 0)
    rounds = 3 * len(names)
    turn = ["pause", "call", "clock"] if len(names) > 1 else ["clock"]
    assert events[-rounds * len(turn) :] == rounds * turn


@pytest.mark.skipif(not PROVIDERS["jax"].is_installed, reason="JAX is not installed")
@pytest.mark.parametrize("name", PROBLEMS)
def test_jax(name):
    rows = run.measure(Problem(name, Size(2, 5, 5), torch.complex64), ["jax"], CPU, constant_clocks(), 0)
    assert [row["status"] for row in rows] == ["ok"]


def test_a_provider_that_fails_gets_no_time(bench, monkeypatch):
    def wrong(problem, device):
        result = torch.linalg.lu_factor_ex(problem.matrices()).LU
        return lambda: (1.01 * result,)

    def broken(problem, device):
        raise RuntimeError("no such\nthing")

    monkeypatch.setitem(PROVIDERS, "triton_lu", Provider(wrong))
    monkeypatch.setitem(PROVIDERS, "jax", Provider(broken))
    options = (
        "--problems",
        "forward",
        "--dtypes",
        "float64",
        "--sizes",
        "9",
        "--providers",
        "triton_lu",
        "jax",
        "torch",
    )
    code, (ours, jax, torchs) = bench(*options)
    assert code == 1
    assert ours["status"].startswith("failed: relative error 1.0e-02, more than")
    assert jax["status"] == "failed: no such thing"
    assert (ours["ms"], ours["speedup"], ours["tflop_per_s"], jax["ms"]) == ("", "", "", "")
    assert (torchs["status"], torchs["ms"]) == ("ok", "1")


def test_nan_is_no_result():
    problem = Problem("forward", Size(1, 3, 3), torch.float64)
    exact = torch.eye(3, dtype=torch.float64)
    with pytest.raises(ArithmeticError, match="relative error nan"):
        run.check(problem, [exact * torch.nan], [exact])


def test_what_does_not_fit_into_memory_is_skipped(bench, monkeypatch, capsys):
    small = 16 * 4 * 4 * 8
    monkeypatch.setattr(machine, "free_bytes", lambda device: small)
    code, rows = bench(*BACKWARD, "4", "500")
    assert code == 0
    assert [row["status"] for row in rows] == ["ok", "ok", *["skipped: 0.0 GB needed, 0.0 free"] * 2]
    assert [row["ms"] for row in rows[2:]] == ["", ""]
    assert "backward 500×500 float32: triton_lu skipped" in capsys.readouterr().out


def test_free_memory_is_known_here():
    assert machine.free_bytes(CPU) > 2**20


def test_an_interrupted_run_keeps_its_rows(tmp_path, monkeypatch, capsys):
    def interrupted(problem, device):
        if problem.size.n == 5:
            raise KeyboardInterrupt
        return PROVIDERS["torch"].prepare(problem, device)

    monkeypatch.setitem(PROVIDERS, "triton_lu", Provider(interrupted))
    monkeypatch.setattr(machine, "ceilings", lambda *device_and_dtype, clockmaker: CEILINGS)
    file = tmp_path / "table.csv"
    assert main(["bench", *BACKWARD, "3", "4", "5", "6", "--seconds", "0", "--output", str(file)]) == 130
    assert pandas.read_csv(file).n.tolist() == [3, 3, 4, 4]
    assert f"interrupted: {file} holds what was measured\n" in capsys.readouterr().out


def test_a_file_that_exists_is_kept_until_there_is_a_row_in_its_place(tmp_path, monkeypatch, capsys):
    def interrupted(problem, device):
        raise KeyboardInterrupt

    file = tmp_path / "table.csv"
    file.write_text("of another run")
    command = ["bench", *BACKWARD, "3", "--seconds", "0", "--providers", "torch", "--output", str(file)]
    assert main(command) == 2
    expected = f"triton_lu: error: {file} exists: name another file with --output, or overwrite it with --force\n"
    assert capsys.readouterr().err == expected
    monkeypatch.setattr(machine, "ceilings", lambda *device_and_dtype, clockmaker: CEILINGS)
    with monkeypatch.context() as patch:
        patch.setitem(PROVIDERS, "torch", Provider(interrupted))
        assert main([*command, "--force"]) == 130
    assert file.read_text() == "of another run"
    assert main([*command, "--force"]) == 0
    assert pandas.read_csv(file).n.tolist() == [3]


def test_ceilings_are_speeds():
    seen = machine.ceilings(CPU, torch.float32, constant_clocks(100.0, 10.0))
    assert seen == {
        "copy_gb_per_s": pytest.approx(2 * 2**27 / 0.1 / 1e9),
        "matmul_tflop_per_s": pytest.approx(0.2147, rel=1e-3),
    }


class Gpu:
    """Stands for `torch.cuda`: what is enqueued takes its milliseconds of a clock; graphs take what they hold."""

    def __init__(self, monkeypatch):
        self.ms, self.captured, self.log = 0.0, None, []
        empty = torch.empty
        monkeypatch.setattr(torch, "empty", lambda *shape, device, **options: empty(0, **options))
        monkeypatch.setattr(torch.Tensor, "zero_", lambda x: self.enqueue("flush", 0.1))
        for name in ("Event", "CUDAGraph", "graph"):
            monkeypatch.setattr(torch.cuda, name, partial(getattr(self, name), self))
        monkeypatch.setattr(torch.cuda, "synchronize", lambda: self.log.append("wait"))
        monkeypatch.setattr(torch.cuda, "current_stream", lambda: "side stream")

    def enqueue(self, name, ms):
        if self.captured is not None:
            self.captured.ms += ms
            return
        self.log.append(name)
        self.ms += ms

    class Event:
        def __init__(self, gpu, enable_timing):
            self.gpu = gpu

        def record(self):
            self.at = self.gpu.ms

        def elapsed_time(self, end):
            return end.at - self.at

    class CUDAGraph:
        def __init__(self, gpu):
            self.gpu, self.ms = gpu, 0.0

        def replay(self):
            self.gpu.enqueue("replay", self.ms)

    @staticmethod
    @contextmanager
    def graph(gpu, graph, stream):
        assert stream == "side stream"  # that of the preparation, not one of its own
        gpu.captured = graph
        yield
        gpu.captured = None


@pytest.mark.parametrize(("ms", "calls"), [(0.8, 11), (30.0, 1)])
def test_event_clock_times_calls_after_a_flush(ms, calls, monkeypatch):
    gpu = Gpu(monkeypatch)
    clock = timing.event_clock(lambda: gpu.enqueue("call", ms))
    gpu.log.clear()
    assert clock() == pytest.approx(ms / 1e3)
    assert gpu.log == [*["flush", "call"] * calls, "wait"]


def test_event_clock_of_a_graph_times_its_replays(monkeypatch):
    gpu = Gpu(monkeypatch)
    clock = timing.event_clock(lambda: gpu.enqueue("call", 2.0), graph=True)
    gpu.log.clear()
    assert clock() == pytest.approx(2e-3)
    assert gpu.log == [*["flush", "replay"] * 4, "wait"]


def test_commit_is_that_of_the_package_and_of_nothing_around_it(tmp_path):
    def git(*arguments):
        name = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(
            ["git", "-C", tmp_path, *name, *arguments], capture_output=True, text=True, check=True
        ).stdout

    assert machine.commit(tmp_path) == "unknown"
    git("init", "-q")
    package = tmp_path / "package"
    package.mkdir()
    (package / "__init__.py").write_text("")
    git("commit", "-q", "--allow-empty", "-m", "of another project")
    assert machine.commit(package) == "unknown"
    git("add", ".")
    git("commit", "-q", "-m", "the package")
    assert machine.commit(package) == git("rev-parse", "--short", "HEAD").strip()
    (package / "__init__.py").write_text("changed")
    assert machine.commit(package).endswith("+")


# Problems


def test_flops_are_those_of_the_elimination():
    for m, n in ((300, 300), (400, 200), (200, 400)):
        counted = sum((m - j - 1) * (1 + 2 * (n - j - 1)) for j in range(min(m, n)))
        assert Problem("forward", Size(7, m, n), torch.float32).flops == pytest.approx(7 * counted, rel=0.02)
    assert Problem("backward", Size(1, 30, 30), torch.float64).flops == pytest.approx(4 / 3 * 30**3)
    assert Problem("backward", Size(1, 30, 30), torch.complex64).flops == pytest.approx(4 * 4 / 3 * 30**3)


def test_matrices_leave_no_doubt_about_their_pivots():
    for shape in (Size(2000, 4, 4), Size(1, 200, 200), Size(1, 200, 60), Size(20, 16, 32)):
        A = Problem("forward", shape, torch.float64).matrices()
        _, pivots, _ = torch.linalg.lu_factor_ex(A)
        assert (pivots == pivots.reshape(-1, pivots.shape[-1])[0]).all()
        assert (pivots != torch.arange(1, pivots.shape[-1] + 1)).any()
        noise = 1e-3 * torch.randn_like(A)
        assert torch.equal(torch.linalg.lu_factor_ex(A + noise)[1], pivots)


def test_quick_grid_is_a_part_of_the_full_one():
    quick, full = grid(), grid(full=True)
    assert set(quick) < set(full)
    sizes = {problem.size for problem in quick if problem.name == "backward"}
    assert (
        {(256, 32, 32), (64, 128, 128), (1024, 16, 16), (10_000, 4, 4), (1, 2048, 2048), (1, 1024, 256)}
        <= sizes
        == {*QUICK}
    )
    assert {(65_536, 4, 4), (16, 512, 512), (1, 8192, 8192)} < {problem.size for problem in full}
    assert {shape.batch * shape.n**2 for shape in FOOTPRINT[1:]} == {4_194_304}
    assert {problem.dtype for problem in quick} == {torch.float32}
    assert {problem.dtype for problem in full} == {torch.float32, torch.float64, torch.complex64}
    assert all(problem.size.m == problem.size.n for problem in full if problem.name in ("logdet", "solve", "inv"))


def test_sizes_are_read():
    assert [size(text) for text in ("7", "4x5", "2x4x5")] == [(1, 7, 7), (1, 4, 5), (2, 4, 5)]
    assert [str(size(text)) for text in ("7", "4x5", "2x4×5")] == ["7×7", "4×5", "2×4×5"]


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        (["--sizes", "4x"], "argument --sizes: invalid size value: '4x'"),
        (["--sizes", "0"], "argument --sizes: invalid size value: '0'"),
        (["--sizes", "1x2x3x4"], "argument --sizes: invalid size value: '1x2x3x4'"),
        (["--problems", "sideways"], "invalid choice: 'sideways'"),
        (["--full", "--calibrate"], "not allowed with argument"),
        (["--full", "--sizes", "4"], "argument --sizes: not allowed with argument --full"),
        (["--plot", "table.csv", "--sizes", "4"], "argument --sizes: not allowed with argument --plot"),
        *((["--seconds", text], f"invalid duration value: '{text}'") for text in ("-1", "nan", "inf", "soon")),
    ],
)
def test_usage(options, complaint, capsys):
    with pytest.raises(SystemExit) as exit:
        main(["bench", *options])
    assert exit.value.code == 2
    assert complaint in capsys.readouterr().err


def test_what_cannot_be_done_is_one_line(monkeypatch, capsys, tmp_path):
    def complaint(*options):
        assert main(["bench", *map(str, options)]) == 2
        return capsys.readouterr().err

    monkeypatch.setitem(PROVIDERS, "jax", Provider(PROVIDERS["jax"].prepare, "no_such_module"))
    assert complaint("--providers", "jax") == "triton_lu: error: jax is not installed\n"
    assert "no problem has these names and sizes" in complaint("--problems", "solve", "--sizes", "3x4")
    table = tmp_path / "table.csv"
    (tmp_path / "file").touch()
    for folder in ("file", "nowhere"):
        path = tmp_path / folder / "a.csv"
        assert complaint("--output", path) == f"triton_lu: error: {path}: there is no folder {path.parent}\n"
    assert complaint("--output", tmp_path) == f"triton_lu: error: {tmp_path}: is a folder\n"
    assert not (tmp_path / "nowhere").exists()
    for option in ("--problems=forward", "--dtypes=float32", "--providers=torch", "--output=a.csv", "--force"):
        for task in (["--plot", table], ["--calibrate"]):
            assert f"{task[0]} has no use for {option.split('=')[0]}\n" in complaint(*task, option)
    assert complaint("--plot", table, "--seconds", "0") == "triton_lu: error: --plot has no use for --seconds\n"
    assert "no table of measurements" in complaint("--plot", table)
    table.write_text("a,b\n1,2\n")
    assert "no table of measurements" in complaint("--plot", table)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    monkeypatch.delitem(sys.modules, "triton_lu.bench.plot")
    assert (
        complaint("--plot", table) == 'triton_lu: error: matplotlib is not installed: pip install "triton_lu[bench]"\n'
    )


# Figures


def test_figures_are_drawn_beside_the_table(bench, tmp_path, capsys):
    problems = ("--problems", "forward", "backward", "--dtypes", "float32", "complex64")
    _, rows = bench(*problems, "--sizes", "4", "8", "5x4x4", "2x3x3")
    assert len(rows) == 2 * 2 * 4 * 2
    capsys.readouterr()
    table = tmp_path / "table.csv"
    assert main(["bench", "--plot", str(table)]) == 0
    files = [tmp_path / f"table-{name}.svg" for name in ("speedup", "time", "memory")]
    assert capsys.readouterr().out == "".join(f"wrote {file}\n" for file in files)
    for file in files:
        drawing = ET.parse(file).getroot()
        assert drawing.tag == "{http://www.w3.org/2000/svg}svg"
        styles = " ".join(element.get("style", "") for element in drawing.iter())
        assert plot.COLOURS["float32"].lower() in styles
        assert "fill: #ffffff" not in styles
    before = files[0].read_bytes()
    next(plot.draw(table))
    assert files[0].read_bytes() == before


def test_a_figure_has_a_panel_for_a_problem_and_a_line_for_a_series():
    rows = pandas.DataFrame(
        {
            "problem": problem,
            "n": n,
            "m": n,
            "batch": batch,
            "dtype": dtype,
            "speedup": n,
            "provider": "triton_lu",
        }
        for problem in ("backward", "jvp")
        for n in (4, 8, 16)
        for batch in (1, 10, 1000)
        for dtype in ("float32", "float64")
    ).assign(kind=lambda rows: rows.batch.map({1: "single", 10: "smaller batch", 1000: "batch"}))
    figure = plot._figure(rows, "dtype", "speedup", "speed-up")
    panels = [axes for axes in figure.axes if axes.get_visible()]
    assert [axes.get_title() for axes in panels] == ["backward", "jvp"]
    for axes in panels:
        level, *lines = axes.lines
        assert level.get_ydata() == [1, 1]
        assert [line.get_xydata().tolist() for line in lines] == [[[4, 4], [8, 8], [16, 16]]] * 6
        assert [line.get_linestyle() for line in lines] == 2 * ["-"] + 2 * ["None"] + 2 * ["--"]
        labels = [text for text in axes.texts if text.get_text() != "10"]
        assert len(axes.texts) == len(labels) + 3
        assert {text.get_text() for text in labels} == {"float32", "float64", "float32, batch", "float64, batch"}
        assert {text.xy for text in labels} == {(16, 16)}
        heights = sorted(text.xyann[1] for text in labels)
        assert all(b - a >= 0.99 * plot.SPACING for a, b in pairwise(heights))
        assert heights[-1] <= 1.001


def test_a_figure_tells_of_all_its_rows(bench, tmp_path):
    bench("--problems", "forward", "--dtypes", "float32", "--sizes", "4", "2x4x4", "5x4x4", "2x8x8")
    table = tmp_path / "table.csv"
    rows = pandas.read_csv(table).assign(commit=["abc", "def"] * 4, torch=[f"2.{i}" for i in range(8)])
    rows.to_csv(table, index=False)
    read = plot._read(table)
    assert dict(zip(read.batch.astype(str) + "×" + read.n.astype(str), read.kind, strict=True)) == {
        "1×4": "single",
        "2×4": "smaller batch",
        "5×4": "batch",
        "2×8": "batch",
    }
    text = plot._hardware(read)
    assert "commits: abc and def" in text
    assert "torch 8 different" in text
    assert calibration.device_name(CPU) in text


def test_the_title_of_a_single_panel_is_not_cut(bench, tmp_path):
    bench(*BACKWARD, "4")
    table = tmp_path / "table.csv"
    pandas.read_csv(table).assign(device="a machine with a very long name " * 3).to_csv(table, index=False)
    figures = []
    with pytest.MonkeyPatch.context() as patch:
        save = Figure.savefig
        patch.setattr(
            Figure, "savefig", lambda figure, *args, **options: (figures.append(figure), save(figure, *args, **options))
        )
        list(plot.draw(table))
    for figure in figures:
        box = figure._suptitle.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= figure.bbox.width


def test_the_roofline_is_the_larger_of_two_times():
    rows = pandas.DataFrame(
        [
            {
                "problem": "jvp",
                "n": 4,
                "provider": "triton_lu",
                "ms": 10.0,
                "of_copy": 0.5,
                "of_matmul": 0.2,
                "kind": "single",
            }
        ]
    )
    assert plot._with_roofline(rows).set_index("provider").ms.to_dict() == {"roofline": 5.0, "triton_lu": 10.0}


# Calibration


@pytest.fixture
def file(tmp_path, monkeypatch):
    """The calibration file of this test, not yet read."""
    monkeypatch.setattr(calibration, "path", lambda: tmp_path / "cache" / "triton_lu" / "calibration.json")
    forget()
    yield calibration.path()
    forget()


def forget():
    """What has been read, as a new process would."""
    calibration._read_once.cache_clear()
    calibration._values.cache_clear()


def test_plans_read_what_was_written(file):
    width = partial(plan.widths, 10, 100, 128, torch.float32)
    assert width("cpu").block == 32
    calibration.write(CPU, {"block float32 batch 128": 64, "block float64 batch 128": 1})
    assert [path.name for path in file.parent.iterdir()] == ["calibration.json"]
    assert width("cpu").block == 64
    assert plan.widths(10, 100, 128, torch.float64, "cpu").block == 32  # never narrower than by default
    assert plan.widths(1, 128, 128, torch.float32, "cpu").block == 128
    assert plan.widths(10, 64, 64, torch.float32, "cpu").block == 16
    assert plan.in_numpy("vjp", 10_000, 8, 8, torch.float32, "cpu") == "columns"


def test_the_file_is_read_once(file):
    calibration.write(CPU, {"block float32 batch 128": 64})
    assert plan.widths(10, 128, 128, torch.float32, "cpu").block == 64
    file.unlink()
    assert plan.widths(10, 128, 128, torch.float32, "cpu").block == 64


def test_other_machines_are_kept_and_not_used(file, monkeypatch):
    calibration.write(CPU, {"block float32 batch 128": 64})
    with monkeypatch.context() as other:
        other.setattr(calibration, "device_name", lambda device: "another CPU")
        calibration.write(CPU, {"block float32 batch 128": 128})
        assert plan.widths(10, 128, 128, torch.float32, "cpu").block == 128
    forget()
    assert plan.widths(10, 128, 128, torch.float32, "cpu").block == 64
    assert len(json.loads(file.read_text())["machines"]) == 2


def test_calibrated_widths_give_the_same_derivative(file):
    A = torch.randn(3, 100, 100, dtype=torch.float64, requires_grad=True)
    G = torch.randn_like(A)

    def gradient():
        return torch.autograd.grad(triton_lu.lu(A)[0], A, G)[0]

    expected = gradient()
    calibration.write(CPU, {"block float64 batch 128": 64})
    assert plan.widths(3, 100, 100, torch.float64, "cpu").block == 64
    torch.testing.assert_close(gradient(), expected)


def test_kernels_are_used_up_to_the_size_calibrated_on_their_gpu(file, monkeypatch):
    first, second = torch.device("cuda", 0), torch.device("cuda", 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    pays = partial(plan.kernel_pays, dtype=torch.float32)
    assert pays("vjp", 32, 32, device=first)
    calibration.write(first, {"kernel vjp float32": 16})
    assert [pays("vjp", n, n, device=first) for n in (16, 17, 32)] == [True, False, False]
    assert pays("jvp", 32, 32, device=first)
    assert pays("vjp", 32, 32, device=second)
    calibration.write(second, {"kernel vjp float32": 8})
    assert [pays("vjp", 16, 16, device=device) for device in (first, second)] == [True, False]


def test_one_matrix_is_calibrated_by_itself(file, monkeypatch):
    """Larger than is factored without blocks, it is the library's unless a calibration says otherwise."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "GPU")
    pays = partial(plan.kernel_pays, "factor", dtype=torch.float32, device=gpu)
    assert [pays(256, 256, batch=batch) for batch in (1, 2)] == [False, True]
    calibration.write(gpu, {"kernel factor float32": 128, "kernel factor float32 single": 256})
    assert [pays(256, 256, batch=batch) for batch in (1, 2)] == [True, False]
    assert not pays(257, 257, batch=1)


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="fake CUDA tensors need a PyTorch built for CUDA")
def test_an_operator_asks_for_the_gpu_of_its_tensor(file, monkeypatch):
    monkeypatch.setattr(hardware, "obstacle", lambda device: None)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: f"GPU {device.index}")
    calibration.write(torch.device("cuda", 1), {"kernel vjp float32": 16})
    with FakeTensorMode():
        X = [torch.empty(32, 32, device=f"cuda:{i}") for i in range(2)]
    assert [ops.Vjp.by_kernel(x, on_cuda=True) for x in X] == [True, False]
    with triton_lu.backend("triton"):
        assert ops.Vjp.by_kernel(X[1], on_cuda=True)
    assert not ops.Vjp.by_kernel(torch.ones(8, 8), on_cuda=False)


@pytest.fixture
def on_a_gpu(file, tmp_path, monkeypatch):
    """On a machine with an NVIDIA H200; the package has no calibration of it yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda index: "NVIDIA H200")
    monkeypatch.setattr(calibration, "SHIPPED", tmp_path)


def uses_kernel(n):
    return plan.kernel_pays("curvature", n, n, torch.float32, torch.device("cuda", 0))


@pytest.mark.usefixtures("on_a_gpu")
def test_a_known_gpu_has_the_calibration_of_the_package(tmp_path):
    calibration.write_shipped(tmp_path / "nvidia-h100.json", {"kernel curvature float32": 8})
    assert uses_kernel(17)
    calibration.write_shipped(tmp_path / "nvidia-h200.json", {"kernel curvature float32": 16})
    assert [path.name for path in sorted(tmp_path.glob("*.json"))] == ["nvidia-h100.json", "nvidia-h200.json"]
    assert (uses_kernel(16), uses_kernel(17)) == (True, False)
    assert plan.widths(10, 128, 128, torch.float32, "cpu").block == 32


@pytest.mark.usefixtures("on_a_gpu")
def test_the_users_calibration_comes_before_that_of_the_package(tmp_path):
    calibration.write_shipped(tmp_path / "nvidia-h200.json", {"kernel curvature float32": 16})
    calibration.write(torch.device("cuda", 0), {"kernel vjp float32": 64})
    assert uses_kernel(17)


def test_calibrations_of_the_package_are_valid():
    folder = Path(triton_lu.__file__).parent / "calibrations"
    for file in folder.glob("*.json"):
        calibration._validated_numbers(json.loads(file.read_text()))
        assert file.stem == calibration.slug(file.stem)


def content(**changes):
    return {"triton_lu": triton_lu.__version__, "machines": {}, **changes}


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("", "Expecting value"),
        ("[" * 100_000, ""),
        ("[]", "expected an object"),
        ("{}", "expected an object"),
        (json.dumps(content(extra=1)), "expected an object"),
        (json.dumps(content(machines=[])), "expected an object"),
        (json.dumps(content(triton_lu="0.0.1")), "written by triton_lu 0.0.1"),
        (json.dumps(content(machines={"a": 1})), "expected an object for every machine"),
        (json.dumps(content(machines={"a": {"block float16 single 64": 64}})), "unknown name"),
        (json.dumps(content(machines={"a": {"kernel vjp float32 4": 64}})), "unknown name"),
        *(
            (json.dumps(content(machines={"a": {"kernel vjp float32": value}})), "expected an integer from 0")
            for value in (-1, 1 << 16, 1.5, True, "8", None)
        ),
    ],
)
def test_a_file_that_is_malformed_or_old_is_ignored_and_said_once(file, caplog, text, complaint):
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert plan.widths(10, 128, 128, torch.float32, "cpu").block == 32
    assert plan.widths(10, 64, 64, torch.float32, "cpu").block == 16
    assert plan.kernel_pays("vjp", 8, 8, torch.float32, torch.device("meta"))
    (record,) = caplog.records
    assert (record.name, record.levelname) == ("triton_lu.calibration", "WARNING")
    assert re.fullmatch(f"triton_lu ignores .*calibration.json: .*{complaint}.*--calibrate", record.getMessage())


@pytest.mark.filterwarnings("error")
def test_no_file_ends_a_backward(file, caplog):
    """A warning would, where warnings are errors."""
    file.parent.mkdir(parents=True)
    file.write_text(json.dumps(content(triton_lu="0.0.1")))
    A = torch.randn(3, 100, 100, dtype=torch.float64, requires_grad=True)
    triton_lu.lu(A)[0].sum().backward()
    assert A.grad.isfinite().all()
    assert "written by triton_lu 0.0.1" in caplog.text


def test_the_file_is_in_the_cache_directory_of_the_platform(monkeypatch, tmp_path):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/me"))
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert real_path() == tmp_path / "triton_lu" / "calibration.json"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")  # to be ignored, says the specification
    assert real_path() == Path("/home/me/.cache/triton_lu/calibration.json")
    monkeypatch.setattr(sys, "platform", "darwin")
    assert real_path() == Path("/home/me/Library/Caches/triton_lu/calibration.json")
    monkeypatch.setattr(sys, "platform", "win32")
    monkeypatch.setenv("LOCALAPPDATA", str(tmp_path / "Local"))
    assert real_path() == tmp_path / "Local" / "triton_lu" / "calibration.json"


def test_without_a_home_there_is_no_file(file, monkeypatch):
    def path():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(calibration, "path", path)
    assert plan.widths(10, 128, 128, torch.float32, "cpu").block == 32


def wider_is_faster(function):
    function()
    width = function.args[-1]
    return lambda: 1.0 / width


def test_calibration_of_the_sweep(file, monkeypatch, capsys):
    monkeypatch.setattr(run, "wall_clock", wider_is_faster)
    monkeypatch.setattr(calibrate, "SIZES", (64,))
    assert main(["bench", "--calibrate", "--device", "cpu", "--seconds", "0"]) == 0
    assert plan.widths(10, 64, 64, torch.float32, "cpu").block == 64
    assert plan.widths(10, 33, 33, torch.complex128, "cpu").block == 64
    assert plan.widths(10, 32, 32, torch.float32, "cpu").block == 16
    assert "block float32 batch 64: 64" in capsys.readouterr().out


def test_a_calibration_that_cannot_be_saved_is_one_line(file, monkeypatch, capsys):
    file.parent.parent.touch()  # a file where the directory should be
    monkeypatch.setattr(calibrate, "DTYPES", ())
    assert main(["bench", "--calibrate", "--device", "cpu"]) == 2
    assert capsys.readouterr().err.startswith("triton_lu: error: the calibration cannot be saved: ")


def test_a_gain_within_the_noise_changes_no_plan(monkeypatch):
    monkeypatch.setattr(calibrate, "SIZES", (64,))
    monkeypatch.setattr(calibrate, "DTYPES", (torch.float32,))
    assert list(calibrate.block_widths(constant_clocks(1.0, 0.99, 0.98), 0)) == [("block float32 batch 64", 16)]


def test_calibration_of_the_kernels(monkeypatch):
    monkeypatch.setattr(calibrate, "BATCH", 64)
    monkeypatch.setattr(calibrate, "DTYPES", (torch.float64,))
    monkeypatch.setattr(plan, "kernel", lambda name, m, n, dtype: plan.Warp(2, 4) if n <= 32 else None)
    faster_to_16 = constant_clocks(*(1.0, 2.0) * 3, 2.0, 1.0)  # kernel and ATen, at 4, 8, 16 and 32
    measured = dict(calibrate.kernel_sizes(CPU, faster_to_16, 0))
    names = ("factor float64", "vjp float64", "jvp float64", "curvature float64", "factor float64 single")
    assert measured == {f"kernel {name}": 16 for name in names}
    faster = dict(calibrate.kernel_sizes(CPU, constant_clocks(1.0, 2.0), 0))  # also at the largest: no limit is known
    assert set(faster.values()) == {calibration.LARGEST}
    slower = dict(calibrate.kernel_sizes(CPU, constant_clocks(2.0, 1.0), 0))
    assert set(slower.values()) == {0}


def test_kernels_and_aten_are_what_is_timed(monkeypatch):
    monkeypatch.setattr(calibrate, "BATCH", 16)
    monkeypatch.setattr(calibrate, "DTYPES", (torch.float32,))
    monkeypatch.setattr(calibrate, "SIZES", ())
    monkeypatch.setattr(plan, "kernel", lambda name, m, n, dtype: plan.Warp(2, 4) if n == 4 else None)
    choices = []

    def clockmaker(function):
        function()
        return lambda: 1.0

    monkeypatch.setattr(ops.Operator, "by_kernel", lambda *_, on_cuda: False)
    for name in calibration.KERNELS:
        function = getattr(aten_backend, name)
        monkeypatch.setattr(aten_backend, name, lambda *args, f=function: choices.append(current()) or f(*args))
    dict(calibrate.kernel_sizes(CPU, clockmaker, 0))
    assert choices == ["triton", "aten"] * 5


def test_the_command_in_a_process_of_its_own(tmp_path):
    root = Path(__file__).parents[1]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{root}:{root / 'kernels'}"}
    command = [sys.executable, "-m", "triton_lu", "bench", *BACKWARD, "6", "--seconds", "0"]
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")
    assert pandas.read_csv(tmp_path / "bench.csv").status.tolist() == ["ok", "ok"]
