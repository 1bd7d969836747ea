"""The kernels of vjp and jvp for more than 128 rows and columns as compiled, with the plans' constants: memory, races,
launches and traffic. The matrices are smaller than planned: the emulator takes its time."""

from dataclasses import asdict

import ptxrun
import pytest
import torch
from triton_lu_kernels import sweep

from tests.support.assertions import assert_agrees
from tests.support.matrices import problem
from triton_lu import plan

MAPS = ["vjp", "jvp"]


def run(name, LU, pivots, X, split=True, **options):
    """The result, in an output and with workspaces that held NaN before, and the reports of the launches."""
    chosen = plan.kernel(name, 256, 256, X.dtype, batch=1 if split else plan.MULTIPROCESSORS)
    assert chosen.split == split
    out = torch.empty(X.shape, dtype=X.dtype)
    order, inverses, sums = sweep.workspace(out, block=chosen.block, pieces=chosen.pieces, split=split)
    for x in (out, inverses, sums):
        x.fill_(torch.nan)
    with ptxrun.device(**options) as reports:
        sweep.evaluate(name, out, LU, pivots, X, order.fill_(-1), inverses, sums, **asdict(chosen))
    return out, reports


@pytest.mark.parametrize(
    ("name", "shape", "dtype", "target", "schedule"),
    [
        ("vjp", (70, 200), torch.float32, "sm_90", "lockstep"),
        ("jvp", (135, 140), torch.float32, "sm_90", "warps"),
        ("vjp", (135, 140), torch.float32, "sm_80", "warps-reversed"),
        ("jvp", (200, 70), torch.float32, "sm_80", "lockstep"),
        ("vjp", (20, 66), torch.float64, "sm_90", "warps"),
        ("jvp", (66, 20), torch.complex64, "sm_80", "lockstep"),  # in the other combinations compilation takes long
    ],
    ids=str,
)
def test_correct_and_free_of_races(name, shape, dtype, target, schedule):
    args = problem(1, *shape, dtype)
    out, reports = run(name, *args, target=target, schedule=schedule, explicit_barriers=True)
    for report in reports:
        assert not report.errors
        assert not report.warnings
    assert_agrees(out, name, *args)


@pytest.mark.parametrize(("name", "target"), [("vjp", "sm_90"), ("jvp", "sm_80")])
def test_same_bits_with_split_sums(name, target):
    args = problem(2, 135, 140, torch.float32)
    together, reports = run(name, *args, split=False, target=target, explicit_barriers=True)
    assert not any(report.errors or report.warnings for report in reports)
    alone, _ = run(name, *(x[:1] for x in args), split=True, target=target, check=False)
    assert torch.equal(together[:1], alone)


@pytest.mark.parametrize("name", MAPS)
def test_traffic(name):
    """Full tiles: what is read and written is fetched in whole sectors, and next to nothing is spilled."""
    _, reports = run(name, *problem(1, 128, 128, torch.float32), target="sm_90", check=False)
    for report in reports:
        assert max(report.static["spill_stores"], report.static["spill_loads"]) <= 64
    for report in reports[1:]:
        load, store = report.global_memory["load"], report.global_memory["store"]
        assert min(load["efficiency"], store["efficiency"]) >= 0.7
