"""The table of kernel costs: both kinds of columns, and what stays without the emulator."""

import pandas as pd
import pytest
import torch

from benchmarks import kernels


def test_static_and_dynamic_columns():
    row = kernels.static("vjp", 4, torch.float32, "sm_90") | kernels.dynamic("vjp", 4, torch.float32, "sm_90")
    assert (row["launches"], row["spilled_bytes"]) == (1, 0)
    assert 16 <= row["registers"] <= 64 < row["code_instructions"]
    assert row["fewest_bytes"] == (3 * 16 + 4) * 4
    assert row["bytes"] == row["fewest_bytes"]
    assert row["coalescing"] == 1
    assert 1 <= row["H100_estimate_over_dram"] <= row["H100_target"] == 1.1


def test_static_columns_need_no_emulator(monkeypatch, capsys):
    monkeypatch.setattr(kernels, "ptxrun", None)
    assert kernels.dynamic("vjp", 4, torch.float32, "sm_80") == {}
    row = kernels.static("jvp", 4, torch.float64, "sm_80")
    assert row["launches"] == 1
    assert row["registers"] > 16
    kernels.show(pd.DataFrame([{"kernel": "jvp", "n": 4, "dtype": "float64", **row}]))
    assert "counts and estimates are missing" in capsys.readouterr().out


@pytest.mark.parametrize(("n", "ratio"), [(4, 1.1), (16, 1.1), (17, 1.2), (33, 1.8), (200, None)])
def test_targets(n, ratio):
    assert kernels.target_ratio(n, torch.float32) == ratio
