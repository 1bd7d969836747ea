"""The accuracy table, the kernels that are asked for, and the estimates of large matrices."""

import csv
import itertools
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

from benchmarks import accuracy, kernels, large
from triton_lu import reference, row_order
from triton_lu.bench.problems import Size
from triton_lu.command import dtype_name, exit_code


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
def test_extended_gradient_is_the_formula(dtype):
    LU, pivots, _ = torch.linalg.lu_factor_ex(torch.randn(12, 12, dtype=dtype))
    G = torch.randn(12, 12, dtype=dtype)
    exact = accuracy.extended_gradient(LU, pivots, G)
    assert exact.dtype == (np.clongdouble if dtype.is_complex else np.longdouble)
    rounded = torch.from_numpy(exact.astype(np.complex128 if dtype.is_complex else np.float64))
    assert reference.relative_error(reference.vjp(LU, pivots, G), rounded) < 1e-13


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64, torch.complex128], ids=str)
def test_measure(dtype):
    row = accuracy.measure("gaussian", 1, 24, dtype)
    for provider in ("triton_lu", "torch"):
        assert 0 < float(row[f"{provider}_error"]) < reference.tolerance(dtype, 24)
    assert row["ratio"] == pytest.approx(float(row["triton_lu_error"]) / float(row["torch_error"]), rel=0.02)
    assert accuracy.measure("wilkinson", 1, 150, torch.float32) is None


def test_the_table_goes_to_a_new_file_of_the_working_directory(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(accuracy, "problems", lambda: iter([("gaussian", 1, 4, torch.float32)]))
    monkeypatch.setattr("sys.argv", ["accuracy"])
    monkeypatch.chdir(tmp_path)
    assert exit_code(accuracy.main) == 0
    with open("accuracy.csv", newline="") as file:
        assert [row["matrices"] for row in csv.DictReader(file)] == ["gaussian"]
    before = (tmp_path / "accuracy.csv").read_bytes()
    monkeypatch.setattr(accuracy, "problems", None)  # nothing is measured before the file is made sure of
    capsys.readouterr()
    assert exit_code(accuracy.main) == 2
    assert "accuracy.csv exists: name another file with --output" in capsys.readouterr().err
    assert (tmp_path / "accuracy.csv").read_bytes() == before


def test_help_measures_nothing(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["accuracy", "--help"])
    monkeypatch.setattr(accuracy, "problems", None)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as exit:
        accuracy.main()
    assert exit.value.code == 0
    assert "--output CSV" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


def test_kernels_by_name(capsys):
    parser = kernels.parser_of("kernels", "", ())
    assert parser.parse_args(["vjp", "jvp"]).kernels == ["vjp", "jvp"]
    assert parser.parse_args([]).kernels == []
    with pytest.raises(SystemExit) as exit:
        parser.parse_args(["vpj"])
    assert exit.value.code == 2
    assert "there is no kernel 'vpj'; expected one of factor, vjp" in capsys.readouterr().err


ESTIMATES = Path(large.__file__).parent / "results" / "estimates" / "large.csv"


def test_no_plan_is_estimated_slower_than_the_sequence_of_torch():
    """By the table, which is of the plans as they are. Complex matrices up to 256×256 are at most that much slower."""
    table = pd.read_csv(ESTIMATES)
    for row in table.itertuples():
        size, dtype = Size(row.batch, row.n, row.n), getattr(torch, row.dtype)
        assert row.plan == large.plan_in_words(row.map, size, dtype)
        assert row.torch_over_plan >= (0.65 if dtype.is_complex and row.n <= 256 else 1.0), row
    rows = {*table[["map", "batch", "n", "dtype"]].itertuples(index=False, name=None)}
    asked = itertools.product(large.MAPS, large.SIZES, map(dtype_name, large.DTYPES))
    assert rows == {(name, size.batch, size.n, dtype) for name, size, dtype in asked}


def test_hosts_and_products_of_the_same_operations(monkeypatch):
    """What the host is measured in has the operations that are counted, those for the order of the rows apart."""
    operations = []

    def count(function):
        with large.Costs() as costs:
            function()
        operations.append(costs.operations)
        return 0.0

    monkeypatch.setattr(large, "host_seconds", count)
    monkeypatch.setattr(row_order, "of_batch", lambda pivots, m: torch.arange(m, device=pivots.device))
    monkeypatch.setattr(row_order, "permuted", lambda X, pivots: X.clone())
    for name in ("vjp", "jvp", "curvature", "mixed"):
        size = Size(1, 1024, 1024)
        large.products_host_seconds.__wrapped__(name, size, torch.complex64)
        counted = large.products([name], size, torch.complex64).operations
        assert counted == operations.pop()


def test_large_writes_a_new_file(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(large, "ptxrun", None)
    monkeypatch.setattr(large, "kernels_host_seconds", lambda *problem: 1e-6)
    arguments = ["large", "--maps", "vjp", "--dtypes", "float32", "--sizes", "256", "4x2048x2048"]
    monkeypatch.setattr("sys.argv", arguments)
    monkeypatch.chdir(tmp_path)
    assert exit_code(large.main) == 0
    with open("large.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["n"], row["plan"]) for row in rows] == [("256", "kernels"), ("2048", "products")]
    assert [bool(row["plan_ms"]) for row in rows] == [False, True]  # without the emulator
    assert float(rows[1]["plan_ms"]) >= float(rows[1]["products_ms"])
    capsys.readouterr()
    assert exit_code(large.main) == 2
    assert "large.csv exists: name another file with --output" in capsys.readouterr().err


def test_counts_of_the_sequences_of_torch():
    n, batch = 512, 2
    for name, flops in (("vjp", 8), ("jvp", 8), ("second derivative", 20), ("forward over forward", 30)):
        for dtype, real in ((torch.float32, 1), (torch.complex64, 4)):
            counted = large.torch_sequence(name, Size(batch, n, n), dtype).flops
            assert counted == pytest.approx(flops * real * batch * n**3, rel=0.01)


def test_costs_of_one_product():
    A = torch.ones(100, 200)
    with large.Costs() as costs:
        A @ A.mT
    assert (costs.operations, costs.flops) == (1, 2 * 100 * 100 * 200)
    assert costs.bytes == 4 * (2 * 100 * 200 + 100 * 100)
    assert costs.seconds == pytest.approx(6e-6 + costs.flops / 40e12)
