"""The factorization in blocks of columns as compiled, with the plan's constants. Runs like `test_factor`."""

import ptxrun
import pytest
import torch
from triton_lu_kernels import factor_blocks

from tests.support.emulated import FAULTS, OLD_COMPILER, SCHEDULES, TARGETS, assert_is_factorization
from tests.support.factorizations import assert_factors, assert_same, batch_of, outputs, residual
from tests.support.layouts import by_column, by_row
from triton_lu import plan

WHOLE, LAUNCHES = (70, 66), (258, 20)
"""Shapes that a program factors as a whole, and that take several launches; neither fills its panels."""
CASES = [
    (WHOLE, torch.float32, "sm_80"),
    ((66, 100), torch.float32, "sm_90"),
    ((40, 50), torch.float64, "sm_90"),
    ((50, 36), torch.complex64, "sm_80"),
    ((34, 34), torch.complex128, "sm_90"),
    (LAUNCHES, torch.float32, "sm_90"),
    ((130, 20), torch.complex64, "sm_90"),
    ((20, 258), torch.float64, "sm_80"),
]
LARGEST_SPILL = {"sm_80": 192, "sm_90": 64}  # bytes of a thread; products of sm_80 have both factors in registers
MANY = 10_000  # matrices, for which kernels have few registers
MANY_STACK = {torch.float32: 288, torch.complex64: 224}  # bytes of a thread; OLD_COMPILER may have twice as many


def run(A, layout=None, *, pivot=True, batch=None, **options):
    """LU, pivots and infos, from outputs and a workspace of NaN and impossible numbers, and the reports."""
    out = outputs(A, layout) if layout else outputs(A)
    chosen = vars(plan.kernel("factor", *A.shape[1:], A.dtype, batch or len(A)))
    work, order = factor_blocks.workspace(A, **chosen)
    with ptxrun.device(**options) as reports:
        factor_blocks.factor(*out, A, work.fill_(torch.nan), order.fill_(-(2**30)), pivot=pivot, **chosen)
    return out, reports


@pytest.mark.parametrize(("shape", "dtype", "target"), CASES, ids=str)
def test_agrees(shape, dtype, target):
    A = torch.randn(2, *shape, dtype=dtype)
    results, _ = run(A, target=target, explicit_barriers=True)
    assert_is_factorization(A, results)
    assert_factors(A, *results)
    assert residual(A, *results[:2]) <= 3 * residual(A, *torch.linalg.lu_factor(A))


@pytest.mark.parametrize(("shape", "dtype"), [(WHOLE, torch.float32), ((50, 36), torch.complex64)], ids=str)
def test_constants_for_many(shape, dtype):
    """Two panels for each pass over a matrix, with few registers; A by columns."""
    A = by_column(torch.randn(2, *shape, dtype=dtype))
    results, (report,) = run(A, batch=MANY, target="sm_90", explicit_barriers=True)
    assert_is_factorization(A, results)
    assert residual(A, *results[:2]) <= 3 * residual(A, *torch.linalg.lu_factor(A))
    assert report.static["stack"] <= (2 if OLD_COMPILER else 1) * MANY_STACK[dtype]


@pytest.mark.parametrize("shape", [WHOLE, LAUNCHES], ids=str)
def test_schedules(shape):
    A = torch.randn(1, *shape)
    each = [run(A, target="sm_90", schedule=schedule)[0] for schedule in SCHEDULES]
    for results in each:
        assert_same(results, each[0])


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("shape", [WHOLE, LAUNCHES], ids=str)
def test_faults_are_found(shape, fault):
    edit, what = FAULTS[fault]
    A = torch.randn(2, *shape)[:, 1:]
    with pytest.raises((ptxrun.CheckError, AssertionError), match=what):
        assert_factors(A, *run(A, target="sm_90", edit_ptx=edit)[0])


def test_extreme_matrices():
    """Denormal and huge entries, ties, zeros, and more growth than any other matrix."""
    kinds = ["denormal", "huge", "zero", "constant", "permutation", "triangular", "wilkinson", "graded_columns"]
    A = batch_of(kinds, 66, 66, torch.float32)
    A[1] *= 1e6
    results, _ = run(A, target="sm_90", check=False)
    expected = torch.linalg.lu_factor_ex(A)
    assert_factors(A, *results)
    assert_same([x[2:7] for x in results[1:]], [expected.pivots[2:7], expected.info[2:7]])
    for i in range(len(kinds)):
        of_kernel, of_lapack = (residual(A[i : i + 1], *(x[i : i + 1] for x in f[:2])) for f in (results, expected))
        assert of_kernel <= max(3 * of_lapack, 0.3)


@pytest.mark.parametrize("shape", [WHOLE, LAUNCHES], ids=str)
def test_without_pivoting(shape):
    """A diagonal that dominates makes both the same; LU by rows, which the operator does not ask for."""
    A = torch.randn(1, *shape) + 2 * max(shape) * torch.eye(*shape)
    (LU, pivots, infos), _ = run(A, by_row, pivot=False, target="sm_80", explicit_barriers=True)
    assert_is_factorization(A, (LU, pivots, infos))
    A[:, 0] = 0
    assert run(A, pivot=False, target="sm_80", check=False)[0][2].tolist() == [1]


def test_same_bits_in_any_batch():
    """By the plans for few and for many matrices, which differ."""
    A = torch.randn(1, *WHOLE)
    assert plan.kernel("factor", *WHOLE, A.dtype, 1) != plan.kernel("factor", *WHOLE, A.dtype, MANY)
    few, many = (run(A, batch=batch, target="sm_90", check=False)[0] for batch in (1, MANY))
    assert_same(few, many)


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((128, 128), torch.float32),
        ((256, 256), torch.float32),
        ((320, 320), torch.float32),
        ((128, 128), torch.float64),
        ((128, 128), torch.complex64),
    ],
    ids=str,
)
def test_registers_suffice(shape, dtype, target):
    _, reports = run(torch.randn(1, *shape, dtype=dtype), target=target, check=False, sample=1)
    spilled = max(report.static["spill_stores"] for report in reports)
    assert spilled <= (2 if OLD_COMPILER else 1) * LARGEST_SPILL[target]
