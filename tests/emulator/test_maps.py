"""The kernels of vjp and jvp as compiled: memory, races, traffic and registers.

Runs in a process of its own, without Triton's interpreter and with `ptxrun` importable.
"""

import re
from dataclasses import asdict

import ptxrun
import pytest
import reference
import torch
from layouts import by_column, by_matrix, by_row
from matrices import IRREGULAR, REGULAR, ZOO
from triton_lu_kernels import tile, warp

from triton_lu.plan import kernel as kernel_plan

MAPS = ["vjp", "jvp"]
TARGETS = ["sm_80", "sm_90"]
SCHEDULES = ["lockstep", "warps", "warps-reversed"]

# (m, n), dtype, matrices per program, warps per program
PLANS = [
    ((1, 1), torch.float32, 16, 1),
    ((4, 4), torch.float32, 32, 4),
    ((5, 3), torch.complex64, 4, 1),
    ((8, 8), torch.float64, 8, 4),
    ((7, 8), torch.complex128, 8, 4),
    ((16, 16), torch.float32, 8, 4),
    ((16, 11), torch.float64, 2, 1),
    ((32, 32), torch.float32, 1, 1),
    ((20, 31), torch.float64, 1, 1),
]
# (m, n), dtype, width of the diagonal blocks, rows at a time, warps per program
TILES = [
    ((40, 40), torch.complex128, 16, 16, 2),
    ((64, 64), torch.float32, 16, 32, 1),
    ((40, 36), torch.float64, 16, 16, 1),
    ((100, 36), torch.float64, 32, 32, 2),
    ((36, 100), torch.complex64, 16, 16, 1),
    ((128, 128), torch.float32, 16, 32, 1),
    ((128, 128), torch.float64, 32, 32, 2),
]
FULL_PLANS = [plan for plan in PLANS if plan[0][0] == plan[0][1] > 1]


def problem(batch, shape, dtype, kinds=("gaussian",)):
    """LU by columns, as torch makes it, pivots, and an argument of a map by rows."""
    matrices = [ZOO[kinds[i % len(kinds)]].make(*shape, dtype, i) for i in range(batch)]
    LU, pivots, _ = torch.linalg.lu_factor_ex(torch.stack(matrices))
    generator = torch.Generator().manual_seed(1234)
    return by_column(LU), pivots, torch.randn(batch, *shape, dtype=dtype, generator=generator)


def run(name, LU, pivots, X, out=None, *, matrices=None, block=16, rows=None, num_warps, **options):
    """The result, in an output that held NaN before, and the report of the one launch."""
    out = torch.empty(X.shape, dtype=X.dtype) if out is None else out
    out.fill_(torch.nan)
    with ptxrun.device(**options) as reports:
        if rows:
            getattr(tile, name)(out, LU, pivots, X, block=block, rows=rows, num_warps=num_warps)
        else:
            getattr(warp, name)(out, LU, pivots, X, matrices=matrices, num_warps=num_warps)
    (report,) = reports
    return out, report


def assert_agrees(out, name, LU, pivots, X):
    error = reference.relative_error(out, getattr(reference, name)(LU, pivots, X))
    assert error <= reference.tolerance(X.dtype, max(X.shape[-2:]))


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("plan", PLANS, ids=str)
def test_correct_under_every_schedule(name, plan, target):
    shape, dtype, matrices, num_warps = plan
    args = problem(2 * matrices + 1, shape, dtype)
    results = []
    for schedule in SCHEDULES:
        options = {"target": target, "schedule": schedule, "explicit_barriers": True}
        out, report = run(name, *args, matrices=matrices, num_warps=num_warps, **options)
        assert not report.errors
        assert not report.warnings
        assert_agrees(out, name, *args)
        results.append(out)
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("plan", TILES, ids=str)
def test_tiles(name, plan, target):
    """Correct, under every schedule of the warps, and the same for a matrix alone as in a batch."""
    shape, dtype, block, rows, num_warps = plan
    LU, pivots, X = args = problem(2, shape, dtype)
    options = {"block": block, "rows": rows, "num_warps": num_warps, "target": target, "explicit_barriers": True}
    expected, report = run(name, *args, **options)
    assert not report.errors
    assert not report.warnings
    assert_agrees(expected, name, *args)
    for schedule in SCHEDULES[1:] if num_warps > 1 else []:
        assert torch.equal(run(name, *args, schedule=schedule, **options)[0], expected)
    assert torch.equal(run(name, LU[1:], pivots[1:], X[1:], **options)[0], expected[1:])


@pytest.mark.parametrize("name", MAPS)
def test_layouts_of_tiles(name):
    LU, pivots, X = problem(2, (40, 35), torch.float32)
    options = {"rows": 32, "num_warps": 1, "target": "sm_80"}
    expected, _ = run(name, LU, pivots, X, **options)
    assert_agrees(expected, name, LU, pivots, X)
    for args in ((by_row(LU), pivots, by_column(X)), (LU, pivots, X, by_matrix(expected.clone()))):
        assert torch.equal(run(name, *args, **options)[0], expected)
    once = X[:1, :1].expand_as(X)
    assert torch.equal(run(name, LU, pivots, once, **options)[0], run(name, LU, pivots, once.clone(), **options)[0])


@pytest.mark.parametrize("name", MAPS)
def test_regular_matrices_of_tiles(name):
    args = problem(len(REGULAR), (64, 64), torch.float32, REGULAR)
    out, _ = run(name, *args, rows=32, num_warps=1, target="sm_90")
    assert_agrees(out, name, *args)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", MAPS)
def test_irregular_matrices_leave_their_neighbours_alone(name):
    regular = problem(len(IRREGULAR), (64, 64), torch.float32)
    irregular = problem(len(IRREGULAR), (64, 64), torch.float32, IRREGULAR)
    options = {"rows": 32, "num_warps": 1, "target": "sm_90"}
    mixed = [torch.stack([a, b], dim=1).flatten(0, 1) for a, b in zip(irregular, regular, strict=True)]
    mixed[0] = by_column(mixed[0])
    assert torch.equal(run(name, *mixed, **options)[0][1::2], run(name, *regular, **options)[0])


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("plan", [((8, 8), torch.float32, 4, 1), ((32, 32), torch.float32, 1, 1)], ids=str)
def test_regular_matrices(name, plan):
    shape, dtype, matrices, num_warps = plan
    args = problem(len(REGULAR), shape, dtype, REGULAR)
    out, _ = run(name, *args, matrices=matrices, num_warps=num_warps, target="sm_90")
    assert_agrees(out, name, *args)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("layout", [by_row, by_column, by_matrix])
@pytest.mark.parametrize("plan", [((4, 4), torch.complex64, 4, 1), ((20, 31), torch.float64, 1, 1)], ids=str)
def test_layouts(name, plan, layout):
    shape, dtype, matrices, num_warps = plan
    LU, pivots, X = problem(5, shape, dtype)
    options = {"matrices": matrices, "num_warps": num_warps, "target": "sm_80"}
    expected, _ = run(name, LU, pivots, X, **options)
    for args in ((layout(LU), pivots, X), (LU, pivots, layout(X)), (LU, pivots, X, layout(expected.clone()))):
        assert torch.equal(run(name, *args, **options)[0], expected)
    once = X[:1, :1].expand_as(X)
    assert torch.equal(run(name, LU, pivots, once, **options)[0], run(name, LU, pivots, once.clone(), **options)[0])


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("plan", FULL_PLANS, ids=str)
def test_traffic(name, plan):
    """Nothing is read twice, written twice or fetched in part; B by columns and X by rows are both coalesced."""
    shape, dtype, matrices, num_warps = plan
    LU, pivots, X = args = problem(8 * matrices, shape, dtype)
    _, report = run(name, *args, matrices=matrices, num_warps=num_warps, target="sm_90")
    read = sum(x.nbytes for x in (LU, pivots, X))
    assert report.unique_read <= 1.02 * read
    assert report.unique_written <= 1.02 * X.nbytes
    load, store = report.global_memory["load"], report.global_memory["store"]
    assert load["bytes"] + store["bytes"] <= 1.1 * (read + X.nbytes)
    assert min(load["efficiency"], store["efficiency"]) >= 0.9


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("target", [*TARGETS, "sm_100"])
@pytest.mark.parametrize("plan", [plan for plan in FULL_PLANS if plan[0] != (8, 8)], ids=str)
def test_registers_suffice(name, plan, target):
    shape, dtype, matrices, num_warps = plan
    _, report = run(name, *problem(1, shape, dtype), matrices=matrices, num_warps=num_warps, target=target)
    # For sm_80 the size 32 kernel is four registers short of those that let twelve programs share a multiprocessor.
    accepted = 16 if (shape, target) == ((32, 32), "sm_80") else 0
    assert max(report.static["spill_stores"], report.static["spill_loads"]) <= accepted


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("dtype", "target"),
    [
        *((torch.float32, target) for target in [*TARGETS, "sm_100"]),
        *((dtype, "sm_90") for dtype in (torch.float64, torch.complex64, torch.complex128)),
    ],
    ids=str,
)
def test_registers_suffice_for_tiles(name, dtype, target):
    chosen = asdict(kernel_plan(name, 64, 64, dtype))
    _, report = run(name, *problem(1, (64, 64), dtype), **chosen, target=target)
    assert max(report.static["spill_stores"], report.static["spill_loads"]) <= 80


def without_barriers(ptx):
    edited, count = re.subn(r"^\s*bar\.sync[^;]*;", "", ptx, flags=re.M)
    assert count
    return edited


def without_store_masks(ptx):
    edited, count = re.subn(r"@%p\d+\s+(st\.global)", r"\1", ptx)
    assert count
    return edited


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("fault", "finding"), [(without_barriers, "race-shared"), (without_store_masks, "out-of-bounds")]
)
def test_planted_fault_is_found(name, fault, finding):
    """The checks above can fail: without barriers between its warps, or without its masks, the kernel is caught."""
    args = problem(17, (8, 8), torch.float32)
    _, report = run(name, *args, matrices=16, num_warps=4, target="sm_80", edit_ptx=fault, raise_errors=False)
    assert any(finding in str(error) for error in report.errors)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(("fault", "finding"), [(without_barriers, "race"), (without_store_masks, "out-of-bounds")])
def test_planted_fault_in_tiles_is_found(name, fault, finding):
    args = problem(1, (40, 40), torch.complex128)
    options = {"rows": 16, "num_warps": 2, "target": "sm_80", "edit_ptx": fault, "raise_errors": False}
    _, report = run(name, *args, **options)
    assert any(finding in str(error) for error in report.errors)
