"""Factorization without exchanges of rows where there is no kernel."""

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from tests.support.matrices import ZOO
from triton_lu import aten_backend, elimination, plan

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def eliminated(A):
    """One matrix, by the definition, without a division by zero."""
    W = A.clone()
    for j in range(min(W.shape)):
        if W[j, j] != 0:
            W[j + 1 :, j] /= W[j, j]
        W[j + 1 :, j + 1 :] -= W[j + 1 :, j, None] * W[j, j + 1 :]
    return W


def parts(LU):
    m, n = LU.shape[-2:]
    k = min(m, n)
    return LU[..., :k].tril(-1) + torch.eye(m, k, dtype=LU.dtype), LU[..., :k, :].triu()


def require_factors(A, LU):
    """|A - L U| is at most some eps |L| |U|, entry by entry."""
    wide = torch.complex128 if A.is_complex() else torch.float64
    L, U = parts(LU.to(wide))
    eps = torch.finfo(A.dtype).eps
    assert ((A - L @ U).abs() <= 4 * max(A.shape[-2:]) * eps * (L.abs() @ U.abs())).all()


@pytest.fixture
def by_columns(monkeypatch):
    """The shapes [m, n, batch] that were eliminated column by column."""
    shapes = []

    def recorded(W, right=elimination._columns_):
        shapes.append(W.shape)
        return right(W)

    monkeypatch.setattr(elimination, "_columns_", recorded)
    return shapes


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [
        *((n, n) for n in (1, 2, 31, 32, 33, 64, 65, 100, 200)),
        *((90, 20), (20, 90), (70, 40), (40, 70), (300, 2), (2, 300)),
        *((1, 6, 6), (2, 3, 5, 5), (40, 4, 4), (200, 8, 8), (129, 40, 8), (129, 8, 40), (7, 33, 33), (3, 70, 40)),
        *((3, 40, 70), (3, 129, 40), (20, 129, 2), (2, 150, 150)),
    ],
    ids=str,
)
def test_factors(shape, dtype):
    """Gaussian: some pivots are small, and many entries of L above 1."""
    A = torch.randn(shape, dtype=dtype)
    LU, pivots, infos = aten_backend.factor(A, False)
    require_factors(A, LU)
    k = min(shape[-2:])
    assert torch.equal(pivots, torch.arange(1, k + 1, dtype=torch.int32).expand(*shape[:-2], k))
    assert not infos.any()
    assert LU.mT.is_contiguous()


@pytest.mark.parametrize("shape", [(0, 3, 3), (3, 0, 2), (3, 2, 0), (0, 0)], ids=str)
def test_empty(shape):
    LU, pivots, infos = aten_backend.factor(torch.empty(shape), False)
    assert (LU.shape, pivots.shape, infos.shape) == (shape, (*shape[:-2], min(shape[-2:])), shape[:-2])
    assert not infos.any()


def test_plans_reach_every_form():
    plans = {plan.elimination(*shape) for shape in ((1, 4, 4), (40, 4, 4), (3, 100, 100), (3, 150, 150), (200, 200, 2))}
    assert {form for form, _ in plans} == {"columns", "panels"}
    assert {at_once > 1 for form, at_once in plans if form == "panels"} == {True, False}
    assert plan.elimination(1, 1, 10**7) == ("panels", 1)
    assert plan.elimination(3, 1, 10**7) == ("columns", 1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(70, 70), (3, 70, 70), (5, 20, 15)], ids=str)
def test_lapack_keeps_the_rows_in_place(shape, dtype, by_columns):
    """Also where L has entries up to 2¹⁶."""
    A = torch.randn(shape, dtype=dtype) + 8 * torch.eye(*shape[-2:])
    A[..., 1, :] *= 10_000
    require_factors(A, aten_backend.factor(A, False)[0])
    assert by_columns == []


def difficult(dtype):
    """Where LAPACK would exchange rows, or scaled numbers leave the range of double, or end in zero."""
    tiny = torch.finfo(dtype).tiny
    yield "small pivot", [[1e-9, 1.0], [1.0, 1.0]]
    yield "zero pivot", [[0.0, 1.0], [1.0, 1.0]]
    yield "zeros", [[0.0, 0.0], [0.0, 0.0]]
    yield "pivot that is rounded to zero", [[1.0, 2 * tiny], [2 * tiny, 0.0]]
    yield "small numbers", [[1.0, 0.0], [2 * tiny, 1.0]]
    yield "large numbers", [[1.0, 0.01 / tiny], [0.0, 1.0]]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("kind", range(6))
@pytest.mark.parametrize("among", [(), (5,)], ids=str)
def test_panels_that_lapack_is_not_given(kind, dtype, among, by_columns):
    """They take the same steps as the definition; others of the batch stay with LAPACK."""
    name, block = [*difficult(dtype)][kind]
    A = torch.randn(*among, 40, 40, dtype=dtype) + 80 * torch.eye(40)
    one = A[2] if among else A
    one[28:30] = 0
    one[:, 28:30] = 0
    one[28:30, 28:30] = torch.tensor(block, dtype=torch.float64).to(dtype)
    LU, _, infos = aten_backend.factor(A, False)
    actual, expected = (LU[2] if among else LU), eliminated(one)
    assert torch.equal(actual[28:30, 28:30], expected[28:30, 28:30])
    torch.testing.assert_close(actual, expected)
    assert infos.flatten()[2 if among else 0] == {"zero pivot": 29, "zeros": 29}.get(
        name, 30 if name.startswith("pivot that") else 0
    )
    in_single = dtype in (torch.float32, torch.complex64)
    assert by_columns == ([] if in_single and name.endswith("numbers") else [(40, 32, 1)])
    if among:
        others = [0, 1, 3, 4]
        assert torch.equal(LU[others], aten_backend.factor(A[others], False)[0])
        assert not infos[others].any()


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_zoo(name, dtype):
    """As by the definition, up to rounding, zeros of the diagonal and all that is not finite included."""
    A = ZOO[name].make(12, 10, dtype, 0)
    LU, _, infos = aten_backend.factor(A, False)
    expected = eliminated(A)
    if not expected.isfinite().all():
        assert not LU.isfinite().all()
        return
    if name != "singular":  # whose last pivot is zero or a rounding error
        zeros = (expected.diagonal() == 0).nonzero()
        assert infos == (int(zeros[0]) + 1 if len(zeros) else 0)
    if ZOO[name].regular and infos == 0:
        require_factors(A, LU)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("shape", [(3, 6, 6), (40, 4, 4), (3, 50, 50)], ids=str)
def test_what_is_not_finite_stays_in_its_matrix(shape, value, dtype):
    A = torch.randn(shape, dtype=dtype) + 2 * shape[-1] * torch.eye(shape[-1])
    expected = aten_backend.factor(A, False)[0]
    A[1, 2, 3] = value
    LU = aten_backend.factor(A, False)[0]
    assert not LU[1].isfinite().all()
    assert torch.equal(LU[[0, 2]], expected[[0, 2]])


class Recorder(TorchDispatchMode):
    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.calls.append(func)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("shape", "calls"), [((32, 32), 30), ((64, 64), 60), ((256, 256), 250), ((100, 8, 8), 30)], ids=str
)
def test_calls_are_few(shape, calls):
    """Not ten for every column."""
    A = torch.randn(shape) + 2 * shape[-1] * torch.eye(shape[-1])
    with Recorder() as recorder:
        aten_backend.factor(A, False)
    assert len(recorder.calls) <= shape[-1] + 24


@pytest.mark.skipif(not torch.backends.cuda.is_built(), reason="fake CUDA tensors need a PyTorch built for CUDA")
@pytest.mark.parametrize("pivot", [True, False])
def test_on_cuda_pytorch_is_asked(pivot):
    with FakeTensorMode():
        A = torch.empty(3, 64, 64, device="cuda")
        with Recorder() as recorder:
            aten_backend.factor(A, pivot)
    assert torch.ops.aten.linalg_lu_factor_ex.default in recorder.calls
    assert len(recorder.calls) <= 3


def test_scaling_is_undone_exactly():
    """Of a matrix of powers of two every step is exact."""
    L = torch.tril(2.0 ** torch.randint(-9, 9, (32, 32)).double(), -1) * (torch.rand(32, 32) < 0.1) + torch.eye(32)
    U = torch.triu(2.0 ** torch.randint(-9, 9, (32, 32)).double(), 1) * (torch.rand(32, 32) < 0.1) + torch.eye(32)
    LU = aten_backend.factor(L.double() @ U.double(), False)[0]
    assert np.array_equal(LU, L.tril(-1) + U)
