"""The kernel of inverses as compiled, with the plan's constants. Runs in a process of its own, without Triton's
interpreter and with `ptxrun` importable."""

from dataclasses import asdict

import ptxrun
import pytest
import torch
from triton_lu_kernels import inverse

from tests.support.emulated import FAULTS, OLD_COMPILER, SCHEDULES, TARGETS
from tests.support.layouts import by_column, by_row
from triton_lu import plan, reference

CASES = [
    ((33, 4, 4), torch.float32, by_column, "sm_90"),
    ((17, 5, 5), torch.float32, by_row, "sm_80"),
    ((2, 32, 32), torch.float32, by_column, "sm_90"),
    ((1, 20, 20), torch.float32, by_row, "sm_80"),
    ((65, 2, 2), torch.float64, by_row, "sm_90"),
    ((2, 31, 31), torch.float64, by_column, "sm_80"),
    ((17, 8, 8), torch.complex64, by_column, "sm_80"),
    ((3, 13, 13), torch.complex64, by_row, "sm_90"),
    ((17, 7, 7), torch.complex128, by_column, "sm_90"),
    ((2, 18, 18), torch.complex128, by_column, "sm_90"),
]


def run(LU, pivots, **options):
    """The inverses, in an output that held NaN before, and the report of the one launch."""
    X = torch.full(LU.shape, torch.nan, dtype=LU.dtype)
    with ptxrun.device(**options) as reports:
        inverse.inverse_transpose(X.mT, LU, pivots, **asdict(plan.kernel("inverse", *LU.shape[1:], LU.dtype)))
    (report,) = reports
    assert not report.errors
    assert not report.warnings
    return X, report


def check(shape, dtype, layout, target, **options):
    """No finding and the right result under every schedule."""
    A = torch.randn(shape, dtype=dtype)
    LU, pivots = torch.linalg.lu_factor(A)
    for schedule in SCHEDULES:
        X, report = run(layout(LU), pivots, target=target, schedule=schedule, explicit_barriers=True, **options)
        assert (
            reference.relative_error(X @ A, torch.eye(shape[-1], dtype=dtype).expand(shape))
            <= 2e4 * torch.finfo(dtype).eps
        )
    return report


@pytest.mark.parametrize(("shape", "dtype", "layout", "target"), CASES, ids=lambda x: getattr(x, "__name__", str(x)))
def test_case(shape, dtype, layout, target):
    check(shape, dtype, layout, target)


@pytest.mark.parametrize(("n", "dtype"), [(4, torch.float32), (8, torch.complex64), (16, torch.float64)], ids=str)
def test_traffic(n, dtype):
    """Nothing is read twice, written twice or fetched in part."""
    batch = 8 * plan.kernel("inverse", n, n, dtype).matrices
    LU, pivots = torch.linalg.lu_factor(torch.randn(batch, n, n, dtype=dtype))
    X, report = run(LU, pivots, target="sm_90")
    assert report.unique_read == LU.nbytes + pivots.nbytes
    assert report.unique_written == X.nbytes
    load, store = report.global_memory["load"], report.global_memory["store"]
    assert load["bytes"] + store["bytes"] <= 1.1 * (LU.nbytes + pivots.nbytes + X.nbytes)
    assert min(load["efficiency"], store["efficiency"]) >= 0.9


@pytest.mark.parametrize("target", [*TARGETS, "sm_100"])
@pytest.mark.parametrize(
    ("n", "dtype"),
    [(16, torch.float32), (16, torch.complex128), (32, torch.float64), (32, torch.complex64)],
    ids=str,
)
def test_registers_suffice(n, dtype, target):
    _, report = run(*torch.linalg.lu_factor(torch.randn(1, n, n, dtype=dtype)), target=target)
    accepted = (300 if OLD_COMPILER else 100) if n == 32 else 0
    assert max(report.static["spill_stores"], report.static["spill_loads"]) <= accepted


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_is_found(fault):
    edit, finding = FAULTS[fault]
    with pytest.raises(AssertionError, match=finding):
        check((17, 5, 5), torch.float32, by_row, "sm_80", edit_ptx=edit)
