"""The factorization in blocks of columns, under Triton's interpreter, which takes a second for 16 columns of a matrix:
small ones, in programs whose panels and blocks they do not fill."""

import pytest
import torch
from torch.autograd import gradcheck
from triton_lu_kernels import factor_blocks

import triton_lu
from tests.support.factorizations import (
    DTYPES,
    FINITE,
    assert_agrees,
    assert_factors,
    assert_same,
    assert_valid,
    batch_of,
    outputs,
    residual,
)
from tests.support.layouts import by_column, by_matrix, by_row, sliced
from tests.support.matrices import REGULAR, ZOO
from triton_lu import aten_backend

WHOLE = {"block": 16, "panel": 16, "cols": 16, "rows": 16, "num_warps": 1, "registers": 255}
INNER = WHOLE | {"block": 32, "num_warps": 2}
LAUNCHES = INNER | {"span": 16}
every_form = pytest.mark.parametrize("form", [WHOLE, INNER, LAUNCHES], ids=["whole", "inner", "launches"])


def run(A, out=None, *, pivot=True, form=WHOLE, **options):
    """LU, pivots and infos, computed in a workspace of NaN and impossible rows."""
    out = outputs(A) if out is None else out
    options = form | options
    work, order = factor_blocks.workspace(A, **options)
    factor_blocks.factor(*out, A, work.fill_(torch.nan), order.fill_(-(2**30)), pivot=pivot, **options)
    return out


@every_form
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((40, 40), torch.float32),
        ((50, 20), torch.float64),
        ((20, 50), torch.complex64),
        ((33, 37), torch.complex128),
        ((1, 18), torch.float64),
        ((18, 1), torch.complex64),
    ],
    ids=str,
)
def test_shapes(shape, dtype, form):
    A = torch.randn(2, *shape, dtype=dtype)
    assert_agrees(A, run(A, form=form))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
def test_zoo(dtype):
    """Singular and zero matrices, denormal and huge entries included. Where the computation is exact, LAPACK's pivots:
    ties and zeros are those of LAPACK."""
    A = batch_of(FINITE, 18, 20, dtype)
    LU, pivots, infos = run(A)
    assert LU.isfinite().all()
    assert_factors(A, LU, pivots, infos)
    expected = torch.linalg.lu_factor_ex(A)
    exact = [FINITE.index(kind) for kind in ("zero", "constant", "permutation", "wilkinson", "triangular")]
    assert torch.equal(pivots[exact], expected.pivots[exact])
    assert torch.equal(infos[exact], expected.info[exact])
    regular = [FINITE.index(kind) for kind in REGULAR]
    growth, lapack = (x[regular].triu().abs().amax((-2, -1)) for x in (LU, expected.LU))
    assert (growth <= 1.01 * lapack).all()


@pytest.mark.parametrize("form", [INNER, LAUNCHES], ids=["inner", "launches"])
def test_zoo_in_larger_blocks(form):
    A = batch_of(["zero", "wilkinson", "permutation", "graded_columns", "singular", "denormal"], 36, 40, torch.float32)
    A[2, 5] = A[2, :, 6] = 0
    LU, pivots, infos = run(A, form=form)
    assert LU.isfinite().all()
    assert_factors(A, LU, pivots, infos)
    expected = torch.linalg.lu_factor_ex(A[:3])
    assert torch.equal(pivots[:3], expected.pivots)
    assert torch.equal(infos[:3], expected.info)


@every_form
@pytest.mark.parametrize("scale", [1e-41, 1e-37, 1e36])
def test_scaled_entries(scale, form):
    """No worse than LAPACK where numbers lose bits and where they are close to overflow."""
    A = torch.randn(1, 40, 40) * scale
    results, expected = run(A, form=form), torch.linalg.lu_factor_ex(A)
    assert residual(A, *results[:2]) <= 3 * residual(A, *expected[:2])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_first_of_equal_moduli(dtype):
    """First by the position it has then, not by the row it was once: after 1 ↔ 4 row 1 comes last."""
    A = torch.tensor([[0, 2, 0, 1], [1, 1, 0, 0], [1, -1, 5, 0], [3, 2, 1, 0]], dtype=torch.float64)
    A = torch.stack([A, A.flip(0), A.mT, -A.mT, torch.ones(4, 4), torch.eye(4)]).to(dtype).contiguous()
    A = torch.cat([A, 1j * A]) if A.is_complex() else A
    expected = torch.linalg.lu_factor_ex(A)
    for num_warps in (1, 2):
        _, pivots, infos = run(A, num_warps=num_warps)
        assert torch.equal(pivots, expected.pivots)
        assert torch.equal(infos, expected.info)


def test_complex_modulus_is_lapacks():
    """|3 + 3i| < |4.5| but |re| + |im| is larger."""
    A = torch.tensor([[[4.5, 1], [3 + 3j, 1]]], dtype=torch.complex64)
    assert run(A)[1].tolist() == [[2, 2]]


@pytest.mark.parametrize("num_warps", [1, 2])
def test_double_moduli_that_differ_in_the_last_bits(num_warps):
    """Both words of 64 bits count, the lower one without a sign, in one warp and between two."""
    column = 1 + torch.tensor([0, 2.0**-52, 2.0**-21, 2.0**-21 + 2.0**-52], dtype=torch.float64)
    columns = torch.stack([column, column.flip(0), column.roll(1), -column.roll(2)])
    A = torch.zeros(4, 64, 4, dtype=torch.float64)
    A[:, ::20, :1] = columns[:, :, None]
    A[:, :, 1:] = torch.randn(4, 64, 3, dtype=torch.float64)
    assert torch.equal(run(A, num_warps=num_warps)[1], torch.linalg.lu_factor(A)[1])


@every_form
@pytest.mark.parametrize(("shape", "dtype"), [((20, 35), torch.float32), ((35, 20), torch.complex128)], ids=str)
def test_without_pivoting(shape, dtype, form):
    A = torch.randn(2, *shape, dtype=dtype) + 8 * torch.eye(*shape, dtype=dtype)
    A[1, 0, 0] = 0
    results, expected = run(A, pivot=False, form=form), aten_backend.factor(A, False)
    torch.testing.assert_close(results[0], expected[0], rtol=1e-3, atol=1e4 * torch.finfo(dtype).eps)
    assert torch.equal(results[1], expected[1])
    assert torch.equal(results[2], expected[2])


@pytest.mark.parametrize("pivot", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_zero_pivots(pivot, dtype):
    """Integers, for which both computations are exact: a zero pivot divides nothing, and the first one is reported."""
    A = torch.randint(-1, 2, (24, 3, 3), generator=torch.Generator().manual_seed(0)).to(dtype)
    expected = aten_backend.factor(A, pivot)
    assert len(set(expected[2].tolist())) == 4
    for result, reference_result in zip(run(A, pivot=pivot), expected, strict=True):
        assert torch.equal(result, reference_result)


@pytest.mark.parametrize("pivot", [True, False])
@pytest.mark.parametrize("col", [1, 17])
def test_zero_column(pivot, col):
    """In the first panel, and in a later one. Its step chooses the row it is at."""
    A = torch.randn(1, 20, 20) + 8 * torch.eye(20)
    A[:, :, col] = 0
    LU, pivots, infos = run(A, pivot=pivot)
    assert infos.tolist() == [col + 1]
    assert pivots[0, col] == col + 1
    assert (LU[0, col:, col] == 0).all()
    assert residual(A, LU, pivots) <= 3


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("kind", ["containing_nan", "containing_inf", "everywhere"])
@pytest.mark.parametrize(("shape", "dtype"), [((18, 20), torch.float32), ((20, 3), torch.complex128)], ids=str)
def test_nan_and_infinity_stay_in_their_matrix(shape, dtype, kind):
    clean = torch.randn(3, *shape, dtype=dtype)
    dirty = clean.clone()
    dirty[1] = torch.nan if kind == "everywhere" else ZOO[kind].make(*shape, dtype, 0)
    for pivot in (True, False):
        before, after = (run(A, pivot=pivot) for A in (clean[[0, 2]], dirty))
        assert not after[0][1].isfinite().all()
        assert_valid(after[1], shape[0])
        assert ((after[2] >= 0) & (after[2] <= min(shape))).all()
        assert_same([x[[0, 2]] for x in after], before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
def test_expanded_and_sliced_columns(dtype):
    """Rows that are the same in memory, and columns that lie apart."""
    for A in (torch.randn(2, 1, 18, dtype=dtype).expand(2, 20, 18), torch.randn(2, 20, 40, dtype=dtype)[..., 1::2]):
        assert_same(run(A), run(A.contiguous()))


@pytest.mark.parametrize(
    ("dtype", "form"),
    [(torch.float32, WHOLE), (torch.complex64, INNER), (torch.float32, LAUNCHES)],
    ids=["whole", "inner", "launches"],
)
def test_strides(dtype, form):
    """All of A and of the results."""
    A = torch.randn(2, 20, 18, dtype=dtype)
    expected = run(A, form=form)
    assert_agrees(A, expected)
    wide = torch.full((2, 44, 30), torch.nan, dtype=dtype)[:, 3:43:2, 5:23].copy_(A)
    for layout, view in ((by_row, wide), (by_matrix, by_column(A)), (sliced, wide.mT.contiguous().mT)):
        LU, pivots, infos = outputs(A, layout)
        strided_pivots, strided_infos = (torch.stack([x, x], dim=-1)[..., 0] for x in (pivots, infos))
        assert_same(run(view, (LU, strided_pivots, strided_infos), form=form), expected)


@every_form
def test_output_written_only_where_it_should(form):
    A = torch.randn(2, 35, 37)
    out = tuple(sliced(x, filler=7) for x in outputs(A))
    run(A, out, form=form)
    assert_agrees(A, out)
    for x in out:
        x.fill_(7)
        assert (x._base == 7).all()


@pytest.mark.parametrize("shape", [(0, 40, 40), (3, 0, 40), (3, 40, 0)], ids=str)
def test_empty(shape):
    _, _, infos = run(torch.empty(shape))
    assert not infos.any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_same_bits_in_any_batch(dtype):
    """And with any number of warps, which may depend on the batch."""
    A = torch.randn(3, 36, 20, dtype=dtype)
    together = run(A)
    assert_same([x.flip(0) for x in run(A.flip(0))], together)
    assert_same(run(A[1:2]), [x[1:2] for x in together])
    assert_same(run(A[1:2], num_warps=2), [x[1:2] for x in together])


@pytest.mark.parametrize(
    ("shape", "dtype"), [((66, 2), torch.float32), ((3, 34), torch.complex64), ((34, 2), torch.float64)], ids=str
)
def test_operator(shape, dtype):
    """As planned, for whatever layout of A and with several batch dimensions."""
    A = torch.randn(2, 1, *shape, dtype=dtype)
    expected = torch.linalg.lu_factor_ex(A)
    with triton_lu.backend("triton"):
        views = [A, by_column(A), sliced(A), A.expand(2, 2, *shape)]
        for LU, pivots, infos in map(torch.ops.triton_lu.factor, views):
            assert LU.stride()[-2:] == (1, shape[0])
            torch.testing.assert_close(LU, expected.LU.expand_as(LU))
            assert torch.equal(pivots, expected.pivots.expand_as(pivots))
            assert torch.equal(infos, expected.info.expand_as(infos))
        lazy = A.conj() if A.is_complex() else torch._neg_view(A)
        assert_same(torch.ops.triton_lu.factor(lazy), torch.ops.triton_lu.factor(lazy.resolve_conj().resolve_neg()))


@pytest.mark.parametrize(
    ("shape", "dtype", "pivot"), [((3, 34), torch.complex128, True), ((34, 2), torch.float64, False)], ids=str
)
def test_derivatives(shape, dtype, pivot):
    A = torch.randn(shape, dtype=dtype) + 2 * max(shape) * torch.eye(*shape, dtype=dtype)
    if pivot:
        A = A[torch.randperm(shape[0])]
    with triton_lu.backend("triton"):
        assert gradcheck(
            lambda A: triton_lu.lu(A, pivot=pivot)[0], A.requires_grad_(), fast_mode=True, check_forward_ad=True
        )
