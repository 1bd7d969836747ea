"""The kernel of solutions as compiled, with the plan's constants. Runs in a process of its own, without Triton's
interpreter and with `ptxrun` importable."""

import ptxrun
import pytest
import torch

from tests.support.emulated import FAULTS, SCHEDULES
from tests.support.layouts import by_column, by_row
from triton_lu import backend, triton_backend

CASES = [
    ((33, 4), 1, torch.float32, True, False, by_column, "sm_90"),
    ((5, 13), 3, torch.float32, False, False, by_row, "sm_80"),
    ((2, 32), 8, torch.float32, True, True, by_column, "sm_80"),
    ((17, 8), 2, torch.float64, True, True, by_row, "sm_80"),
    ((3, 16), 16, torch.float64, True, False, by_column, "sm_90"),
    ((1, 21), 1, torch.float64, False, True, by_column, "sm_90"),
    ((9, 7), 1, torch.complex64, True, True, by_column, "sm_90"),
    ((2, 30), 4, torch.complex64, False, True, by_row, "sm_80"),
    ((65, 2), 2, torch.complex128, False, False, by_column, "sm_80"),
    ((1, 32), 4, torch.complex128, True, False, by_column, "sm_90"),
]


def check(size, k, dtype, left, adjoint, layout, target, **options):
    """No finding, no spills, and the right result under every schedule."""
    batch, n = size
    A = torch.randn(batch, n, n, dtype=dtype)
    LU, pivots = torch.linalg.lu_factor(A)
    B = torch.randn(batch, *((n, k) if left else (k, n)), dtype=dtype)
    expected = torch.linalg.lu_solve(LU, pivots, B, left=left, adjoint=adjoint)
    for schedule in SCHEDULES:
        options |= {"target": target, "schedule": schedule, "explicit_barriers": True}
        with ptxrun.device(**options) as reports, backend("triton"):
            X = triton_backend.lu_solve(layout(LU), pivots, B, left, adjoint)
        (report,) = reports
        assert not report.errors
        assert not report.warnings
        assert (X - expected).abs().max() <= 1e4 * torch.finfo(dtype).eps * expected.abs().max()
        assert max(report.static["spill_stores"], report.static["spill_loads"]) == 0


@pytest.mark.parametrize(
    ("size", "k", "dtype", "left", "adjoint", "layout", "target"), CASES, ids=lambda x: getattr(x, "__name__", str(x))
)
def test_case(size, k, dtype, left, adjoint, layout, target):
    check(size, k, dtype, left, adjoint, layout, target)


@pytest.mark.parametrize(("dtype", "k"), [(torch.float32, 1), (torch.complex128, 4)], ids=str)
def test_compiled_for_newer_gpus(dtype, k):
    check((1, 32), k, dtype, True, False, by_column, "sm_100")


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if "masks" in fault])
def test_planted_fault_is_found(fault):
    """Programs of one warp need no barriers."""
    edit, finding = FAULTS[fault]
    with pytest.raises(AssertionError, match=finding):
        check((5, 13), 3, torch.float32, False, False, by_row, "sm_80", edit_ptx=edit)
