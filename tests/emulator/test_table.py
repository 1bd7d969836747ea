"""The table of kernel costs: both kinds of columns, what stays without the emulator, and its file."""

import sys

import pandas as pd
import pytest
import torch
from triton_lu_kernels import sweep

from benchmarks import kernels
from triton_lu.bench.problems import size
from triton_lu.command import exit_code


def test_static_and_dynamic_columns():
    problem = ("vjp", size("4"), torch.float32)
    row = kernels.static(*problem, "sm_90") | kernels.dynamic(*problem, "H100")
    assert (row["launches"], row["spilled_bytes"]) == (1, 0)
    assert 16 <= row["registers"] <= 64
    assert 1 < row["code_kib"] <= 16
    assert row["batch"] == 2**20
    assert row["fewest_bytes"] == (3 * 16 + 4) * 4
    assert row["requested_over_fewest"] == row["unique_over_fewest"] == row["sectors_over_fewest"] == 1
    assert row["coalescing"] == 1
    assert row["fewest_flops"] == round(4 / 3 * 4**3)
    assert 1 <= row["estimate_over_copy"] <= row["target_ratio"] == 1.2
    assert row["fetch_share"] <= 0.1
    assert not row["rough"]


def test_useful_flops_and_capped_coalescing():
    """A kernel whose products are three in TF32, and whose lanes share what they read."""
    row = kernels.dynamic("vjp", size("100x40"), torch.float32, "A100")
    assert row["useful_over_fewest_flops"] < row["flops"] / row["fewest_flops"]
    assert row["coalescing"] <= 1
    assert row["fewest_bytes"] == (3 * 100 * 40 + 40) * 4
    assert row["target_ratio"] is None


def test_sampled_sweep_has_its_permutation(monkeypatch):
    """Whatever its memory held: programs that find permutations for later launches may not be in the sample."""
    workspace = sweep.workspace

    def full_of_ones(out, **options):
        order, *others = workspace(out, **options)
        return order.fill_(1), *others

    problem = ("vjp", size("192"), torch.float32, "H100")
    counts = ["requested_over_fewest", "unique_over_fewest", "sectors_over_fewest", "coalescing"]
    row = kernels.dynamic(*problem)
    assert row["coverage"] > 1.2  # of unrolled loops
    assert row["rough"]
    monkeypatch.setattr(sweep, "workspace", full_of_ones)
    again = kernels.dynamic(*problem)
    assert [row[count] for count in counts] == [again[count] for count in counts]
    assert again["estimate_us"] == pytest.approx(row["estimate_us"], rel=0.01)  # the place in memory plays a part


def test_static_columns_need_no_emulator(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "ptxrun", None)
    problem = ("jvp", size("4"), torch.float64)
    assert kernels.dynamic(*problem, "A100") == {}
    row = kernels.static(*problem, "sm_80")
    assert row["launches"] == 1
    assert row["registers"] > 16
    kernels.show(pd.DataFrame([{"kernel": "jvp", "m": 4, "n": 4, "dtype": "float64", **row}]))
    assert "counts and estimates are missing" in capsys.readouterr().out


def test_gpu_that_the_emulator_does_not_model():
    problem = ("vjp", size("4"), torch.float32)
    assert kernels.static(*problem, "sm_100")["registers"] > 16
    assert kernels.dynamic(*problem, "B200") == {}


def test_rows_go_to_a_new_file_and_say_what_they_are_made_with(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(sys, "argv", ["kernels", "vjp", "--sizes", "4"])
    monkeypatch.setattr(kernels, "static", lambda *_: {"registers": 40})
    monkeypatch.setattr(kernels, "dynamic", lambda *_: {})
    monkeypatch.chdir(tmp_path)
    assert exit_code(kernels.main) == 0
    table = pd.read_csv("kernels.csv")
    assert len(table) == 4 * 3  # dtypes, GPUs
    assert tuple(table.loc[0, ["gpu", "target", "registers"]]) == ("H100", "sm_90", 40)
    assert table.triton.all()
    assert table.commit.all()
    assert exit_code(kernels.main) == 2
    assert "kernels.csv exists" in capsys.readouterr().err


@pytest.mark.parametrize(("n", "ratio"), [("4", 1.2), ("16", 1.4), ("17", 2.4), ("9x33", 2.56), ("200", None)])
def test_targets(n, ratio):
    assert kernels.target_ratio("vjp", size(n), torch.float32) == ratio


def test_targets_of_forward_mode():
    assert kernels.target_ratio("jvp", size("32"), torch.float32) == 1.8


def test_targets_of_the_factorization():
    assert kernels.target_ratio("factor", size("32"), torch.float32) == 1.5
    assert kernels.target_ratio("factor", size("129"), torch.float32) is None
