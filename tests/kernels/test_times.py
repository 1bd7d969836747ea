"""The times of kernels: which are taken, and that wrong ones are not. By the interpreter, with a clock that stands."""

import sys

import pytest
import torch
from triton_lu_kernels import warp

from benchmarks import times
from triton_lu import plan
from triton_lu.bench.problems import size


def clockmaker(function):
    function()
    return lambda: 2e-6


def test_cases_are_the_plan_and_the_others_once_each():
    shapes = [size("4"), size("100x40"), size("200")]
    planned = list(times.cases(["vjp", "factor"], shapes, [torch.float64], others=False))
    assert [(name, *shape[1:]) for name, shape, *_ in planned] == [
        *(("vjp", 4, 4), ("vjp", 100, 40), ("vjp", 200, 200), ("vjp", 200, 200)),
        *(("factor", 4, 4), ("factor", 100, 40), ("factor", 200, 200)),
    ]
    assert [case[1].batch for case in planned][2:4] == [419, 1]
    assert all(case[3] == plan.kernel(case[0], *case[1][1:], torch.float64, case[1].batch) for case in planned)
    everything = list(times.cases(["vjp", "factor"], shapes, [torch.float64], others=True))
    assert set(planned) < set(everything)
    assert len(set(everything)) == len(everything) > 50


CASES = [("vjp", "3x4x4"), ("jvp", "2x20x3"), ("factor", "3x4x4"), ("jvp", "1x130x2"), ("curvature", "2x7x5")]


@pytest.mark.parametrize("case", CASES)
def test_measures(case):
    name, shape = case[0], size(case[1])
    chosen = plan.kernel(name, *shape[1:], torch.float32)
    row = times.measure((name, shape, torch.float32, chosen), "cpu", clockmaker, clockmaker)
    assert row["us"] == pytest.approx(2)
    assert ("graph_us" in row) == (shape.m == 130)
    assert row["error"] < 1e-5


def test_wrong_kernel_has_no_time(monkeypatch):
    right = warp.evaluate

    def wrong(name, out, *arguments, **options):
        right(name, out, *arguments, **options)
        out[-1, 0, 0] += 1

    monkeypatch.setattr(warp, "evaluate", wrong)
    with pytest.raises(ArithmeticError, match="relative error"):
        times.measure(("vjp", size("3x4x4"), torch.float32, plan.Warp(1, 1)), "cpu", clockmaker, clockmaker)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_needs_a_gpu(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["times"])
    with pytest.raises(SystemExit):
        times.main()
    assert "there is no CUDA device" in capsys.readouterr().err
