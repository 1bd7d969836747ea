"""What happens to matrices that have no LU derivative: zero pivots, NaN, infinity, on both backends.

The policy: nothing is raised unless asked for, nothing hangs, pivots and infos stay valid, the factors are LAPACK's,
derivatives of such a matrix are not finite, and no other matrix of the batch changes by a bit.
"""

import pytest
import torch

import triton_lu
from tests.support.assertions import same_bits

vjp, jvp = torch.ops.triton_lu.vjp, torch.ops.triton_lu.jvp
SHAPES = {
    "aten": [(600, 4, 4), (600, 6, 4), (5, 12, 12), (5, 20, 40), (5, 40, 20), (140, 140)],
    "triton": [(5, 4, 4), (5, 3, 2)],
}
everywhere = pytest.mark.parametrize(
    ("backend", "shape"), [(name, shape) for name in SHAPES for shape in SHAPES[name]], ids=str
)
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, in the interpreter


def dominant(*shape, dtype=torch.float64):
    """Gaussian, needs no exchange of rows and has a factorization without pivoting."""
    return torch.randn(shape, dtype=dtype) + 2 * max(shape[-2:]) * torch.eye(*shape[-2:], dtype=dtype)


def assert_valid(pivots, infos, m):
    k = pivots.shape[-1]
    assert ((pivots > torch.arange(k)) & (pivots <= m)).all()
    assert ((infos >= 0) & (infos <= k)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("pivot", [True, False])
@everywhere
def test_a_zero_pivot(backend, shape, pivot, dtype):
    """A zero column before the last: LU is finite, infos name its pivot, vjp and jvp are not finite."""
    A = dominant(*shape, dtype=dtype)
    column = min(shape[-2:]) // 2 - 1
    A[..., column] = 0
    G = torch.randn_like(A)
    with triton_lu.backend(backend):
        LU, pivots, infos = triton_lu.lu(A, pivot=pivot, get_infos=True)
        X, T = vjp(LU, pivots, G), jvp(LU, pivots, G)
    assert LU.isfinite().all()
    assert (infos == column + 1).all()
    assert_valid(pivots, infos, shape[-2])
    for derivative in (X, T):
        assert not derivative.isfinite().all(-1).all(-1).any()
    if pivot:
        torch.testing.assert_close(LU, torch.linalg.lu_factor_ex(A).LU)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
@everywhere
def test_a_zero_as_the_last_pivot(backend, shape, dtype):
    """Of a square matrix it divides nothing, and LU has a derivative: either that or values that are not finite.

    Of a tall one it divides the rows of L below it: not finite.
    """
    m, n = shape[-2:]
    k = min(m, n)
    A = dominant(*shape, dtype=dtype)
    A[..., k - 1 :, :k] = 0
    G = torch.randn_like(A)
    with triton_lu.backend(backend):
        LU, pivots, infos = triton_lu.lu(A, get_infos=True)
        X, T = vjp(LU, pivots, G), jvp(LU, pivots, G)
        nearby = LU.clone()
        nearby[..., k - 1, k - 1] = 1
        limits = vjp(nearby, pivots, G), jvp(nearby, pivots, G)
    assert (infos == k).all()
    for derivative, limit in zip((X, T), limits, strict=True):
        if m > n:
            assert not derivative.isfinite().all(-1).all(-1).any()
        elif derivative.isfinite().all():
            torch.testing.assert_close(derivative, limit)


@pytest.mark.parametrize("pivot", [True, False])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf], ids=str)
@everywhere
def test_nan_and_infinity(backend, shape, bad, pivot):
    """Both reach LU; NaN reaches vjp and jvp, infinity may end there as the divisor of a zero."""
    A = dominant(*shape)
    A[..., 0, 0] = bad
    G = torch.randn_like(A)
    with triton_lu.backend(backend):
        LU, pivots, infos = triton_lu.lu(A, pivot=pivot, get_infos=True)
        X, T = vjp(LU, pivots, G), jvp(LU, pivots, G)
    assert_valid(pivots, infos, shape[-2])
    for result in (LU, X, T) if bad != bad else (LU,):
        assert not result.isfinite().all(-1).all(-1).any()


@pytest.mark.parametrize("value", [0.0, torch.nan, -torch.inf], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex64], ids=str)
@everywhere
def test_nothing_else(backend, shape, dtype, value):
    """Matrices full of one such value: everything ends, with valid pivots and infos."""
    A = torch.full(shape, value, dtype=dtype)
    with triton_lu.backend(backend):
        LU, pivots, infos = triton_lu.lu(A, get_infos=True)
        assert_valid(pivots, infos, shape[-2])
        for op in (vjp, jvp):
            assert not op(LU, pivots, torch.ones_like(A)).isfinite().all()
    order = triton_lu.permutation(pivots, shape[-2])
    assert torch.equal(order.sort(-1).values, torch.arange(shape[-2]).expand(order.shape))
    assert LU.isfinite().all() == (value == 0)
    assert (infos == (value == 0)).all()


@pytest.mark.parametrize(
    ("backend", "shape", "kind"),
    [
        ("aten", shape, kind)
        for shape in ((4, 4), (5, 3), (12, 12), (33, 33))
        for kind in ("column", "zero", "nan", "inf")
    ]
    + [("triton", (2, 2), kind) for kind in ("column", "nan")],
    ids=str,
)
def test_one_of_a_thousand_changes_no_other(backend, shape, kind):
    """Not by a bit: LU, pivots, infos, vjp, jvp and, of ATen, second derivatives."""
    torch.manual_seed(1)
    A = torch.randn(1000, *shape, dtype=torch.float64 if backend == "aten" else torch.float32)
    G = torch.randn_like(A)
    bad = A.clone()
    if kind == "column":
        bad[501, :, 1] = 0
    else:
        bad[501] = {"zero": 0, "nan": torch.nan, "inf": torch.inf}[kind]

    def results(A):
        LU, pivots, infos = triton_lu.lu(A, get_infos=True)
        X, T = vjp(LU, pivots, G), jvp(LU, pivots, G)
        if backend == "triton":
            return LU, pivots, infos, X, T
        LU.requires_grad_()
        return LU.detach(), pivots, infos, X, T, torch.autograd.grad(vjp(LU, pivots, G), LU, G)[0]

    others = torch.arange(1000) != 501
    with triton_lu.backend(backend):
        for x, y in zip(results(A), results(bad), strict=True):
            assert same_bits(x[others], y[others])


@pytest.mark.parametrize("function", [triton_lu.lu, triton_lu.linalg.lu_factor])
@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_the_first_of_several_is_named(backend, function):
    A = dominant(10, 20, 3, 3, dtype=torch.float32)
    A[7, 3, :, 1] = 0
    A[7, 2, :, 2] = 0
    A[9, 19] = 0
    with triton_lu.backend(backend), pytest.raises(torch.linalg.LinAlgError, match=r"element \(7, 2\): U\[3, 3\]"):
        function(A)


@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_nan_raises_nothing(backend):
    """As in torch.linalg: a NaN is no zero."""
    A = torch.full((2, 3, 3), torch.nan)
    with triton_lu.backend(backend):
        assert triton_lu.lu(A)[0].isnan().all()


@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_infinity_in_a_tall_matrix_moves_no_row_after_the_last_pivot(backend):
    """The kernel goes on through columns of padding, into which a NaN of one row may have got."""
    A = torch.tensor([[torch.inf], [1], [2], [torch.inf]])
    with triton_lu.backend(backend):
        LU, pivots, _ = triton_lu.lu(A, get_infos=True)
    assert pivots.tolist() == [1]
    torch.testing.assert_close(LU, torch.tensor([[torch.inf], [0], [0], [torch.nan]]), equal_nan=True)
