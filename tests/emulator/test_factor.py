"""The factorization kernel as compiled: memory, races, traffic and registers.

Runs in a process of its own, without Triton's interpreter and with `ptxrun` importable.
"""

import re
from dataclasses import asdict

import ptxrun
import pytest
import torch
from layouts import by_column, by_matrix, by_row
from matrices import ZOO
from triton_lu_kernels import factor

from triton_lu import plan as plans

TARGETS = ["sm_80", "sm_90"]
SCHEDULES = ["lockstep", "warps", "warps-reversed"]

ONE_WARP = {"matrices": 4, "num_warps": 1}

# (m, n), dtype, and what differs from the kernel planned for them
PLANS = [
    ((1, 1), torch.float32, {}),
    ((4, 4), torch.float32, {}),
    ((3, 4), torch.complex64, {}),
    ((8, 8), torch.float64, {}),
    ((7, 5), torch.complex128, ONE_WARP),
    ((16, 16), torch.float32, {}),
    ((16, 11), torch.float64, {}),
    ((32, 32), torch.float32, {}),
    ((32, 32), torch.complex64, {}),
    ((20, 23), torch.complex128, {}),
    ((32, 32), torch.complex128, {}),
    ((33, 40), torch.float32, {}),
    ((64, 64), torch.float32, {}),
]
FULL_PLANS = [plan for plan in PLANS if plan[0][0] == plan[0][1] > 1]


def run(A, layout=by_column, *, pivot=True, changes=None, **options):
    """LU, pivots and infos, in outputs that held NaN and -7 before, and the report of the one launch."""
    batch, m, n = A.shape
    LU = layout(torch.full_like(A, torch.nan))
    pivots = torch.full((batch, min(m, n)), -7, dtype=torch.int32)
    infos = torch.full((batch,), -7, dtype=torch.int32)
    with ptxrun.device(**options) as reports:
        factor.factor(LU, pivots, infos, A, pivot=pivot, **planned((m, n), A.dtype, changes or {}))
    (report,) = reports
    return (LU, pivots, infos), report


def planned(shape, dtype, changes):
    return asdict(plans.kernel("factor", *shape, dtype)) | changes


def assert_agrees(A, results):
    """LAPACK's pivots and infos, and its factors up to rounding."""
    LU, pivots, infos = torch.linalg.lu_factor_ex(A)
    assert torch.equal(results[1], pivots)
    assert torch.equal(results[2], infos)
    scale = LU.abs().amax((-2, -1), keepdim=True)
    assert ((results[0] - LU).abs() <= 1e3 * torch.finfo(A.dtype).eps * scale).all()


def assert_same(results, others):
    assert all(torch.equal(x, y) for x, y in zip(results, others, strict=True))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_correct_under_every_schedule(plan, target):
    shape, dtype, changes = plan
    A = torch.randn(2 * planned(*plan)["matrices"] + 1, *shape, dtype=dtype)
    results = []
    for schedule in SCHEDULES:
        options = {"target": target, "schedule": schedule, "explicit_barriers": True}
        result, report = run(A, changes=changes, **options)
        assert not report.errors
        assert not report.warnings
        assert_agrees(A, result)
        results.append(result)
    assert_same(results[0], results[1])
    assert_same(results[0], results[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_extreme_matrices(dtype):
    """Denormal and huge entries, and ties of zeros and ones: no division on a GPU makes infinity of them."""
    kinds = ["denormal", "huge", "zero", "constant", "permutation", "triangular", "wilkinson"]
    A = torch.stack([ZOO[kind].make(4, 4, dtype, seed) for seed, kind in enumerate(kinds)])
    (LU, pivots, infos), _ = run(A, changes={"matrices": 8, "num_warps": 1}, target="sm_90")
    expected = torch.linalg.lu_factor_ex(A)
    assert LU.isfinite().all()
    assert_same((pivots[1:], infos[1:]), (expected.pivots[1:], expected.info[1:]))
    assert_agrees(A[1:], (LU[1:], pivots[1:], infos[1:]))
    assert LU.tril(-1).abs().max() <= 1.5


@pytest.mark.parametrize("plan", [((4, 4), torch.float64, {}), ((5, 8), torch.float32, ONE_WARP)], ids=str)
def test_without_pivoting(plan):
    shape, dtype, changes = plan
    A = torch.randn(2 * planned(*plan)["matrices"] + 1, *shape, dtype=dtype) + 8 * torch.eye(*shape, dtype=dtype)
    options = {"changes": changes, "target": "sm_80"}
    results, _ = run(A, pivot=False, **options)
    assert_same(results, run(A, **options)[0])  # whose diagonal dominates, so that both are the same
    A[:, 0, 0] = 0
    (_, pivots, infos), _ = run(A, pivot=False, **options)
    assert (pivots == torch.arange(1, min(shape) + 1)).all()
    assert (infos == 1).all()


@pytest.mark.parametrize("layout", [by_row, by_column, by_matrix])
@pytest.mark.parametrize("plan", [((4, 4), torch.complex64, ONE_WARP), ((6, 7), torch.float64, ONE_WARP)], ids=str)
def test_layouts(plan, layout):
    shape, dtype, changes = plan
    A = torch.randn(5, *shape, dtype=dtype)
    options = {"changes": changes, "target": "sm_80"}
    expected, _ = run(A, **options)
    assert_same(run(layout(A), **options)[0], expected)
    assert_same(run(A, layout, **options)[0], expected)
    once = A[:1].expand_as(A)
    assert_same(run(once, **options)[0], [x[:1].expand_as(x) for x in expected])


@pytest.mark.parametrize("layout", [by_row, by_column])
@pytest.mark.parametrize("plan", FULL_PLANS, ids=str)
def test_traffic(plan, layout):
    """Nothing is read twice, written twice or fetched in part; A by rows and by columns are both coalesced."""
    shape, dtype, changes = plan
    A = layout(torch.randn(8 * planned(*plan)["matrices"], *shape, dtype=dtype))
    results, report = run(A, changes=changes, target="sm_90")
    written = sum(x.nbytes for x in results)
    assert report.unique_read <= 1.02 * A.nbytes
    assert report.unique_written <= 1.02 * written
    load, store = report.global_memory["load"], report.global_memory["store"]
    assert load["bytes"] + store["bytes"] <= 1.1 * (A.nbytes + written)
    assert min(load["efficiency"], store["efficiency"]) >= 0.9


@pytest.mark.parametrize("target", [*TARGETS, "sm_100"])
@pytest.mark.parametrize("plan", FULL_PLANS, ids=str)
def test_registers_suffice(plan, target):
    shape, dtype, changes = plan
    _, report = run(torch.randn(1, *shape, dtype=dtype), changes=changes, target=target)
    assert report.static["spill_stores"] == 0
    assert report.static["spill_loads"] == 0


def without_barriers(ptx):
    edited, count = re.subn(r"^\s*bar\.sync[^;]*;", "", ptx, flags=re.M)
    assert count
    return edited


def without_store_masks(ptx):
    edited, count = re.subn(r"@%p\d+\s+(st\.global)", r"\1", ptx)
    assert count
    return edited


@pytest.mark.parametrize(
    ("fault", "finding"), [(without_barriers, "race-shared"), (without_store_masks, "out-of-bounds")]
)
def test_planted_fault_is_found(fault, finding):
    """The checks above can fail: without barriers between its warps, or without its masks, the kernel is caught."""
    options = {"target": "sm_80", "edit_ptx": fault, "raise_errors": False}
    _, report = run(torch.randn(17, 8, 8), **options)
    assert any(finding in str(error) for error in report.errors)
