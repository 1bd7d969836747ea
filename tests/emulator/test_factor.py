"""The factorization kernel as compiled, with the plan's constants: extreme matrices, traffic and registers.

Every dtype in every layout: `test_operators`. Runs in a process of its own, without Triton's interpreter and with
`ptxrun` importable.
"""

from dataclasses import asdict

import ptxrun
import pytest
import torch
from triton_lu_kernels import factor

from tests.support.emulated import FAULTS, SCHEDULES, TARGETS, assert_is_factorization
from tests.support.layouts import by_column, by_matrix, by_row
from tests.support.matrices import ZOO
from triton_lu import plan

FULL = [
    ((4, 4), torch.float32),
    ((8, 8), torch.float64),
    ((16, 16), torch.float32),
    ((32, 32), torch.float32),
    ((32, 32), torch.complex64),
    ((32, 32), torch.complex128),
]


def run(A, layout=by_column, *, pivot=True, **options):
    """LU, pivots and infos, in outputs that held NaN and -7 before, and the report of the one launch."""
    batch, m, n = A.shape
    LU = layout(torch.full_like(A, torch.nan))
    pivots = torch.full((batch, min(m, n)), -7, dtype=torch.int32)
    infos = torch.full((batch,), -7, dtype=torch.int32)
    with ptxrun.device(**options) as reports:
        factor.factor(LU, pivots, infos, A, pivot=pivot, **asdict(plan.kernel("factor", m, n, A.dtype)))
    (report,) = reports
    return (LU, pivots, infos), report


def assert_same(results, others):
    assert all(torch.equal(x, y) for x, y in zip(results, others, strict=True))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_extreme_matrices(dtype):
    """Denormal and huge entries, and ties of zeros and ones: no division on a GPU makes infinity of them."""
    kinds = ["denormal", "huge", "zero", "constant", "permutation", "triangular", "wilkinson"]
    A = torch.stack([ZOO[kind].make(4, 4, dtype, seed) for seed, kind in enumerate(kinds)])
    (LU, pivots, infos), _ = run(A, target="sm_90")
    expected = torch.linalg.lu_factor_ex(A)
    assert LU.isfinite().all()
    assert_same((pivots[1:], infos[1:]), (expected.pivots[1:], expected.info[1:]))
    assert_is_factorization(A[1:], (LU[1:], pivots[1:], infos[1:]))
    assert LU.tril(-1).abs().max() <= 1.5


@pytest.mark.parametrize(("shape", "dtype"), [((4, 4), torch.float64), ((5, 8), torch.float32)], ids=str)
def test_without_pivoting(shape, dtype):
    A = torch.randn(9, *shape, dtype=dtype) + 8 * torch.eye(*shape, dtype=dtype)
    results, _ = run(A, pivot=False, target="sm_80")
    assert_same(results, run(A, target="sm_80")[0])  # whose diagonal dominates, so that both are the same
    A[:, 0, 0] = 0
    (_, pivots, infos), _ = run(A, pivot=False, target="sm_80")
    assert (pivots == torch.arange(1, min(shape) + 1)).all()
    assert (infos == 1).all()


@pytest.mark.parametrize("layout", [by_row, by_matrix])
@pytest.mark.parametrize(("shape", "dtype"), [((4, 4), torch.complex64), ((6, 7), torch.float64)], ids=str)
def test_layouts_of_the_factors(shape, dtype, layout):
    """Those that the operator does not ask for."""
    A = torch.randn(5, *shape, dtype=dtype)
    assert_is_factorization(A, run(A, layout, target="sm_80", explicit_barriers=True)[0])


@pytest.mark.parametrize("layout", [by_row, by_column])
@pytest.mark.parametrize(("shape", "dtype"), FULL, ids=str)
def test_traffic(shape, dtype, layout):
    """Nothing is read twice, written twice or fetched in part; A by rows and by columns are both coalesced."""
    A = layout(torch.randn(8 * plan.kernel("factor", *shape, dtype).matrices, *shape, dtype=dtype))
    results, report = run(A, target="sm_90")
    written = sum(x.nbytes for x in results)
    assert report.unique_read <= 1.02 * A.nbytes
    assert report.unique_written <= 1.02 * written
    load, store = report.global_memory["load"], report.global_memory["store"]
    assert load["bytes"] + store["bytes"] <= 1.1 * (A.nbytes + written)
    assert min(load["efficiency"], store["efficiency"]) >= 0.9


@pytest.mark.parametrize("target", [*TARGETS, "sm_100"])
@pytest.mark.parametrize(("shape", "dtype"), FULL[2:], ids=str)
def test_registers_suffice(shape, dtype, target):
    _, report = run(torch.randn(1, *shape, dtype=dtype), target=target)
    assert report.static["spill_stores"] == 0
    assert report.static["spill_loads"] == 0


def determinants(A, **options):
    """Sign, logabsdet, LU and pivots, in outputs that held other numbers before, and the report of the one launch."""
    out = A.new_full(A.shape[:1], 7), A.real.new_full(A.shape[:1], 7), torch.full_like(A.mT, torch.nan).mT
    out += (torch.full(A.shape[:2], -7, dtype=torch.int32),)
    with ptxrun.device(explicit_barriers=True, **options) as reports:
        factor.slogdet(*out, A, **asdict(plan.kernel("slogdet", *A.shape[1:], A.dtype)))
    (report,) = reports
    assert not report.errors
    assert not report.warnings
    return out, report


def check_determinants(A, **options):
    expected = torch.linalg.slogdet(A)
    tolerance = 1e2 * torch.finfo(A.dtype).eps * A.shape[-1]
    for schedule in SCHEDULES:
        results, report = determinants(A, schedule=schedule, **options)
        for result, theirs in zip(results, expected, strict=False):
            assert torch.allclose(result, theirs, rtol=tolerance, atol=tolerance), "<= tolerance"
    return report


DETERMINANTS = [
    ((33, 5, 5), torch.float32, "sm_80"),
    ((1, 40, 40), torch.float32, "sm_80"),
    ((65, 3, 3), torch.float64, "sm_80"),
    ((5, 32, 32), torch.float64, "sm_90"),
    ((1, 20, 20), torch.complex64, "sm_80"),
    ((33, 4, 4), torch.complex128, "sm_80"),
    ((1, 32, 32), torch.complex128, "sm_90"),
    ((1, 64, 64), torch.float32, "sm_100"),
    ((1, 32, 32), torch.complex64, "sm_100"),
]


@pytest.mark.parametrize(("shape", "dtype", "target"), DETERMINANTS, ids=str)
def test_determinants(shape, dtype, target):
    """No finding, nothing read or written twice or fetched in part, no spills."""
    A = torch.randn(shape, dtype=dtype)
    A[0, :, 1] = 0
    report = check_determinants(A, target=target)
    assert report.unique_read == A.nbytes
    assert max(report.static["spill_stores"], report.static["spill_loads"]) <= 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_extreme_determinants(dtype):
    """No logarithm of a denormal number is that of zero, no phase of a huge one infinite."""
    A = torch.stack([ZOO[kind].make(1, 1, dtype, 0) for kind in ("denormal", "huge", "zero", "constant")])
    if A.is_complex():
        A *= 1j
    wide = A[:, 0, 0].to(torch.complex128 if A.is_complex() else torch.float64)
    scaled = wide * torch.tensor([2.0**200, 1, 1, 1], dtype=torch.float64)
    expected = scaled.abs().log() - torch.tensor([2.0**200, 1, 1, 1], dtype=torch.float64).log()
    (sign, logabsdet, *_), _ = determinants(A, target="sm_90")
    eps = torch.finfo(dtype).eps
    torch.testing.assert_close(logabsdet.double(), expected, rtol=4 * eps, atol=4 * eps)
    torch.testing.assert_close(sign, scaled.sgn().to(dtype), rtol=0, atol=4 * eps)


@pytest.mark.parametrize("fault", FAULTS)
def test_planted_fault_in_determinants_is_found(fault):
    edit, finding = FAULTS[fault]
    with pytest.raises(AssertionError, match=finding):
        check_determinants(torch.randn(33, 5, 5), target="sm_80", edit_ptx=edit)
