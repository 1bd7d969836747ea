"""The factorization kernel, under Triton's interpreter."""

from dataclasses import asdict

import pytest
import torch
from triton_lu_kernels import factor

from tests.support.factorizations import (
    DTYPES,
    FINITE,
    assert_agrees,
    assert_factors,
    assert_same,
    assert_valid,
    batch_of,
    outputs,
)
from tests.support.layouts import by_column, by_matrix, by_row, sliced
from tests.support.matrices import REGULAR, ZOO
from triton_lu import aten_backend, backend, plan, reference, triton_backend

SMALL_SHAPES = [(1, 1), (2, 2), (3, 3), (4, 4), (8, 8), (1, 5), (5, 1), (5, 3), (3, 7), (8, 6)]
LARGE_SHAPES = [(16, 16), (32, 32), (7, 32), (32, 9), (17, 17), (13, 11)]
PANELS = [
    ((20, 20), torch.complex128),
    ((18, 21), torch.complex64),
    ((21, 18), torch.complex128),
    ((10, 35), torch.float32),
]
"""Sizes whose kernels loop over the columns of panels, the last ones beyond the matrix or partly so."""


def run(A, out=None, *, pivot=True, matrices=4):
    """LU, pivots and infos of the kernel that is planned, but for the number of matrices per program."""
    out = outputs(A) if out is None else out
    options = asdict(plan.kernel("slogdet", *A.shape[1:], A.dtype))  # which has the same constants, and larger matrices
    options |= {"matrices": matrices, "num_warps": 1}
    factor.factor(*out, A, pivot=pivot, **options)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=str)
def test_small_shapes(shape, dtype):
    A = torch.randn(5, *shape, dtype=dtype)
    assert_agrees(A, run(A))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", LARGE_SHAPES, ids=str)
def test_large_shapes(shape, dtype):
    A = torch.randn(2, *shape, dtype=dtype)
    assert_agrees(A, run(A))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
def test_largest_shape_in_the_other_dtypes(dtype):
    A = torch.randn(2, 32, 32, dtype=dtype)
    assert_agrees(A, run(A))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 4), (7, 5), (5, 8), (24, 24)], ids=str)
def test_zoo(shape, dtype):
    """Singular and zero matrices, denormal and huge entries included."""
    A = batch_of(FINITE, *shape, dtype)
    LU, pivots, infos = run(A, matrices=16)
    assert LU.isfinite().all()
    assert_factors(A, LU, pivots, infos)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_growth_no_worse_than_lapack(dtype):
    A = batch_of(REGULAR, 8, 8, dtype)
    growth, lapack = (LU.triu().abs().amax((-2, -1)) for LU in (run(A, matrices=16)[0], torch.linalg.lu_factor(A)[0]))
    assert (growth <= 1.01 * lapack).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_first_of_equal_moduli(dtype):
    """First by the position it has then, not by the row it was once: after 1 ↔ 4 row 1 comes last."""
    A = torch.tensor([[0, 2, 0, 1], [1, 1, 0, 0], [1, -1, 5, 0], [3, 2, 1, 0]], dtype=torch.float64)
    A = torch.stack([A, A.flip(0), A.mT, -A.mT, torch.ones(4, 4), torch.eye(4)]).to(dtype)
    A = torch.cat([A, 1j * A]) if A.is_complex() else A
    _, pivots, infos = torch.linalg.lu_factor_ex(A)
    results = run(A)
    assert torch.equal(results[1], pivots)
    assert torch.equal(results[2], infos)


def test_complex_modulus_is_lapacks():
    """|3 + 3i| < |4.5| but |re| + |im| is larger."""
    A = torch.tensor([[[4.5, 1], [3 + 3j, 1]]], dtype=torch.complex64)
    assert run(A)[1].tolist() == [[2, 2]]


def test_double_moduli_that_differ_in_the_last_bits():
    """Both words of 64 bits count, the lower one without a sign."""
    column = 1 + torch.tensor([0, 2.0**-52, 2.0**-21, 2.0**-21 + 2.0**-52], dtype=torch.float64)
    columns = torch.stack([column, column.flip(0), column.roll(1), -column.roll(2)])
    A = torch.cat([columns[:, :, None], torch.randn(4, 4, 3, dtype=torch.float64)], dim=-1)
    assert torch.equal(run(A)[1], torch.linalg.lu_factor(A)[1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (4, 4), (5, 3), (3, 7), (16, 16)], ids=str)
def test_without_pivoting(shape, dtype):
    A = torch.randn(3, *shape, dtype=dtype) + 8 * torch.eye(*shape, dtype=dtype)
    A[1, 0, 0] = 0
    results, expected = run(A, pivot=False), aten_backend.factor(A, False)
    torch.testing.assert_close(results[0], expected[0], rtol=1e-4, atol=1e3 * torch.finfo(dtype).eps)
    assert torch.equal(results[1], expected[1])
    assert torch.equal(results[2], expected[2])


@pytest.mark.parametrize(("shape", "dtype"), PANELS, ids=str)
def test_panels(shape, dtype):
    """Other strides, an expanded matrix, another batch, a NaN beside it, and no pivoting where none is needed."""
    A = torch.randn(3, *shape, dtype=dtype)
    expected = run(A)
    dirty = by_matrix(A)
    dirty[1, 2, 1] = torch.nan
    assert_same([x[[0, 2]] for x in run(dirty)], [x[[0, 2]] for x in expected])
    assert_same(run(A[2:].expand(2, -1, -1), matrices=1), [x[[2, 2]] for x in expected])
    A += 8 * max(shape) * torch.eye(*shape, dtype=dtype)
    assert_same(run(A, pivot=False), run(A))


@pytest.mark.parametrize(("shape", "dtype"), [*PANELS, ((40, 35), torch.float32)], ids=str)
def test_zoo_in_panels(shape, dtype):
    """Ties and zero pivots as in LAPACK, where the computation is exact; small residuals."""
    exact = ["zero", "constant", "permutation", "wilkinson", "triangular"]
    A = batch_of([*exact, "graded_rows", "singular", "denormal"], *shape, dtype)
    A[2, 5] = A[2, :, 6] = 0
    LU, pivots, infos = run(A, matrices=8)
    assert LU.isfinite().all()
    assert_factors(A, LU, pivots, infos)
    expected = torch.linalg.lu_factor_ex(A[: len(exact)])
    assert torch.equal(pivots[: len(exact)], expected.pivots)
    assert torch.equal(infos[: len(exact)], expected.info)


@pytest.mark.parametrize("pivot", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_zero_pivots(pivot, dtype):
    """Integers, for which both computations are exact: a zero pivot divides nothing, and the first one is reported."""
    generator = torch.Generator().manual_seed(0)
    A = torch.randint(-1, 2, (64, 3, 3), generator=generator).to(dtype)
    expected = aten_backend.factor(A, pivot)
    assert len(set(expected[2].tolist())) == 4
    for result, reference_result in zip(run(A, pivot=pivot, matrices=16), expected, strict=True):
        assert torch.equal(result, reference_result)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["containing_nan", "containing_inf", "everywhere"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 4), (7, 5), (3, 8)], ids=str)
def test_nan_and_infinity_stay_in_their_matrix(shape, dtype, kind):
    clean = torch.randn(4, *shape, dtype=dtype)
    dirty = clean.clone()
    dirty[1] = torch.nan if kind == "everywhere" else ZOO[kind].make(*shape, dtype, 0)
    for pivot in (True, False):
        before, after = (run(A, pivot=pivot) for A in (clean, dirty))
        assert not after[0][1].isfinite().all()
        assert_valid(after[1], shape[0])
        assert ((after[2] >= 0) & (after[2] <= min(shape))).all()
        assert_same([x[[0, 2, 3]] for x in after], [x[[0, 2, 3]] for x in before])


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("layout", [by_row, by_column, by_matrix, sliced])
@pytest.mark.parametrize("shape", [(4, 4), (6, 5)], ids=str)
def test_strides(shape, layout, dtype):
    A = torch.randn(3, *shape, dtype=dtype)
    expected = run(A)
    assert_agrees(A, expected)
    assert_same(run(layout(A)), expected)
    LU, pivots, infos = outputs(A, layout)
    strided_pivots, strided_infos = (torch.stack([x, x], dim=-1)[..., 0] for x in (pivots, infos))
    assert_same(run(A, (LU, strided_pivots, strided_infos)), expected)


def test_output_written_only_where_it_should():
    A = torch.randn(3, 5, 3)
    out = tuple(sliced(x, filler=7) for x in outputs(A))
    run(A, out)
    assert_agrees(A, out)
    for x in out:
        x.fill_(7)
        assert (x._base == 7).all()


@pytest.mark.parametrize("expand", [(1, 4, 4), (3, 1, 4), (3, 4, 1)], ids=str)
def test_expanded(expand):
    A = torch.randn(expand, dtype=torch.float64).expand(3, 4, 4)
    assert_same(run(A), run(A.clone()))


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0)], ids=str)
def test_empty(shape):
    _, _, infos = run(torch.empty(shape))
    assert not infos.any()


@pytest.mark.parametrize("batch", [1, 3, 4, 7])
def test_batch_not_a_multiple(batch):
    A = torch.randn(batch, 3, 3)
    assert_agrees(A, run(A))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", [(4, 3), (9, 2)], ids=str)
def test_same_bits_in_any_batch(shape, dtype):
    A = torch.randn(5, *shape, dtype=dtype)
    together = run(A)
    assert_same(run(A), together)
    assert_same([x.flip(0) for x in run(A.flip(0))], together)
    assert_same(run(A[3:4], matrices=1), [x[3:4] for x in together])


def test_far_entries():
    """The last entry lies 2^31 entries after the first, although every stride is below 2^31, or inside a matrix just
    below 2^31. (Memory that is never touched is not occupied.)"""
    storage = torch.empty(2**31 + 1, dtype=torch.float32)
    far = 2**31 - 1
    for shape, strides in ((3, 1, 1), (2**30, 1, 1)), ((1, 2, 1), (1, far, 1)), ((1, 1, 2), (1, 1, far)):
        A = torch.randn(shape)
        _, pivots, infos = outputs(A)
        out = storage.as_strided(shape, strides)
        run(A, (out, pivots, infos))
        assert_agrees(A, (out.clone(), pivots, infos))


def determinants(A, *, matrices=4):
    """Sign, logabsdet, LU and pivots of the kernel that is planned, but for the number of matrices per program."""
    options = asdict(plan.kernel("slogdet", *A.shape[1:], A.dtype)) | {"matrices": matrices, "num_warps": 1}
    sign, logabsdet = torch.full_like(A[:, 0, 0], 7), torch.full_like(A[:, 0, 0].real, 7)
    LU, pivots, _ = outputs(A)
    factor.slogdet(sign, logabsdet, LU, pivots, A, **options)
    return sign, logabsdet, LU, pivots


def assert_determinants(A, results):
    """LU and pivots of `factor`, and the determinant of LU in double precision; a U that is singular exactly has 0."""
    sign, logabsdet, LU, pivots = results
    assert_same((LU, pivots), run(A)[:2])
    n = A.shape[-1]
    diagonal = reference.double(LU).diagonal(dim1=-2, dim2=-1)
    unit = torch.ones(n, dtype=torch.float64)
    if A.is_complex():
        unit = torch.where(diagonal.real.abs() + diagonal.imag.abs() < 1e-300, 2.0**200 * unit, unit)
    diagonal = diagonal * unit  # the modulus of a complex denormal would be zero
    log = diagonal.abs().log() - unit.log()
    exchanges = (pivots != torch.arange(1, n + 1)).sum(-1)
    expected = (diagonal.sgn().prod(-1) * (-1) ** exchanges, log.sum(-1))
    eps = torch.finfo(A.dtype).eps
    # A logarithm has an error of some eps, relative to 1 or to itself; so has a sum to its terms.
    scale = 1 + log.abs().nan_to_num(posinf=0).sum(-1)
    torch.testing.assert_close(reference.double(sign), expected[0], rtol=0, atol=4 * n * eps, equal_nan=True)
    same = (reference.double(logabsdet) - expected[1]).abs() <= 4 * n * eps * scale
    assert (same | (logabsdet == expected[1])).all()
    assert torch.equal(sign == 0, logabsdet == -torch.inf)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2, 3, 4, 7, 8, 16])
def test_determinants(n, dtype):
    """Also singular, denormal and huge ones: no product of pivots over- or underflows."""
    A = batch_of(FINITE, n, n, dtype)
    assert_determinants(A, determinants(A, matrices=16))


@pytest.mark.parametrize(
    ("n", "dtype"),
    [(24, torch.float64), (32, torch.float32), (21, torch.complex64), (32, torch.complex128), (40, torch.float32)],
    ids=str,
)
def test_larger_determinants(n, dtype):
    A = batch_of(["gaussian", "permutation", "zero", "huge"], n, n, dtype)
    assert_determinants(A, determinants(A, matrices=2))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_determinants_as_torch_finds_them(dtype):
    A = torch.randn(20, 5, 5, dtype=dtype)
    A[3, :, 2] = 0
    expected = torch.linalg.slogdet(A)
    for result, theirs in zip(determinants(A), expected, strict=False):
        torch.testing.assert_close(result, theirs, rtol=1e2 * torch.finfo(dtype).eps, atol=1e2 * torch.finfo(dtype).eps)
    assert (determinants(A)[0][3], determinants(A)[1][3]) == (0, -torch.inf)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_nan_stays_in_its_determinant(dtype):
    A = torch.randn(4, 5, 5, dtype=dtype)
    expected = determinants(A)
    A[1, 2, 1] = torch.nan
    results = determinants(A)
    assert results[0][1].isnan()
    assert results[1][1].isnan()
    assert_same([x[[0, 2, 3]] for x in results], [x[[0, 2, 3]] for x in expected])


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_strides_of_determinants(dtype):
    A = torch.randn(5, 3, 3, dtype=dtype)
    sign, logabsdet, LU, pivots = determinants(A)
    out = [torch.stack([x, x], dim=-1).fill_(7)[..., 0] for x in (sign, logabsdet)]
    options = asdict(plan.kernel("slogdet", 3, 3, dtype)) | {"matrices": 4, "num_warps": 1}
    factor.slogdet(*out, LU, pivots, by_matrix(A), **options)
    assert_same(out, (sign, logabsdet))
    assert all((x._base[..., 1] == 7).all() for x in out)


def test_empty_determinants():
    with backend("triton"):
        sign, logabsdet, _, _ = triton_backend.slogdet(torch.empty(3, 0, 0, dtype=torch.complex64))
    assert (sign.tolist(), logabsdet.tolist()) == ([1] * 3, [0] * 3)
    assert (sign.dtype, logabsdet.dtype) == (torch.complex64, torch.float32)
