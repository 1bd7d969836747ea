"""The public functions: results, layouts, infos and errors of the factorization itself."""

import pytest
import torch

import triton_lu
from tests.support.matrices import ZOO
from triton_lu.reference import factors, row_order

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
SHAPES = (
    (1, 1),
    (4, 4),
    (7, 3),
    (3, 7),
    (2, 5, 5),
    (2, 3, 6, 4),
    (0, 3),
    (3, 0),
    (0, 0),
    (0, 4, 4),
    (2, 0, 3),
    (70, 70),
)


def residual(A, LU, pivots):
    """max |P^T A - L U| over eps |L| |U|, entry by entry: at most about min(m, n) for any elimination."""
    m, n = A.shape[-2:]
    k = min(m, n)
    L, U = factors(LU)
    L, U = L[..., :m, :k], U[..., :k, :n]
    A = torch.take_along_dim(A.to(L.dtype), row_order(pivots, m)[..., None], -2)
    bound = torch.finfo(LU.dtype).eps * (L.abs() @ U.abs())
    error = (A - L @ U).abs()
    return (error / bound.clamp_min(1e-300)).max().item() if A.numel() else 0.0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lu_is_that_of_torch(shape, dtype):
    A = torch.randn(shape, dtype=dtype)
    LU, pivots, infos = triton_lu.lu(A, get_infos=True)
    expected = torch.linalg.lu_factor_ex(A)
    for ours, theirs in zip((LU, pivots, infos), expected, strict=True):
        assert torch.equal(ours, theirs)
        assert ours.dtype == theirs.dtype
        assert ours.stride() == theirs.stride()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_lu_without_pivoting(shape, dtype):
    m, n = shape[-2:]
    A = torch.randn(shape, dtype=dtype) + 10 * torch.eye(m, n, dtype=dtype)
    LU, pivots, infos = triton_lu.lu(A, pivot=False, get_infos=True)
    expected = torch.linalg.lu_factor_ex(A)
    assert torch.equal(pivots, torch.arange(1, min(m, n) + 1, dtype=torch.int32).expand(pivots.shape))
    assert torch.equal(infos, torch.zeros(shape[:-2], dtype=torch.int32))
    assert (LU.stride(), pivots.dtype, infos.dtype) == (expected.LU.stride(), torch.int32, torch.int32)
    assert residual(A, LU, pivots) < 2 * max(min(m, n), 1)


@pytest.mark.parametrize(
    "view",
    [
        lambda A: A.mT,
        lambda A: A[..., ::2, 1:],
        lambda A: A[:1].expand(3, -1, -1),
        lambda A: A.permute(1, 0, 2),
        lambda A: A.conj(),
        lambda A: A.mT.conj(),
        lambda A: A.imag,
    ],
)
@pytest.mark.parametrize("pivot", [True, False])
def test_lu_of_any_strides(view, pivot):
    A = view(torch.randn(6, 6, 6, dtype=torch.complex128) + 9 * torch.eye(6))
    before = A.clone()
    LU, pivots = triton_lu.lu(A, pivot=pivot)
    expected, expected_pivots = triton_lu.lu(A.clone(memory_format=torch.contiguous_format), pivot=pivot)
    assert torch.equal(LU, expected)
    assert torch.equal(pivots, expected_pivots)
    assert torch.equal(A, before)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("pivot", [True, False])
def test_lu_of_the_zoo(name, pivot):
    A = ZOO[name].make(12, 12, torch.float64, 0)
    LU, pivots, infos = triton_lu.lu(A, pivot=pivot, get_infos=True)
    zero_pivots = (LU.diagonal() == 0).nonzero()
    assert infos == (zero_pivots[0] + 1 if len(zero_pivots) else 0)
    if ZOO[name].regular and (pivot or infos == 0):
        assert residual(A, LU, pivots) < 24


def test_elimination_goes_on_past_a_zero_pivot():
    A = torch.tensor([[0.0, 1, 2], [0, 3, 4], [0, 5, 8]])
    LU, _, infos = triton_lu.lu(A, pivot=False, get_infos=True)
    assert infos == 1
    torch.testing.assert_close(LU, torch.tensor([[0, 1, 2], [0, 3, 4], [0, 5 / 3, 8 - 4 * 5 / 3]]))


@pytest.mark.parametrize("pivot", [True, False])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_bad_values_stay_in_their_matrix(pivot, value):
    A = torch.randn(9, 6, 6) + 6 * torch.eye(6)
    good = triton_lu.lu(A, pivot=pivot)
    A[4, 2, 3] = value
    LU, pivots = triton_lu.lu(A, pivot=pivot)
    others = torch.arange(9) != 4
    assert torch.equal(LU[others], good[0][others])
    assert torch.equal(pivots[others], good[1][others])
    assert not LU[4].isfinite().all()


@pytest.mark.parametrize(
    "shape", [(2, 2, 256, 256), (3, 512, 300), (0, 300, 300), (4, 160, 160), (4, 64, 256), (4, 256, 100)], ids=str
)
def test_batches_of_large_matrices_on_several_threads(shape):
    """Where PyTorch itself returns wrong factors once the number of threads has been set."""
    torch.set_num_threads(2)
    A = torch.randn(shape)
    LU, pivots, infos = triton_lu.lu(A, get_infos=True)
    assert residual(A, LU, pivots) < min(shape[-2:])
    expected = torch.linalg.lu_factor_ex(torch.empty(shape, device="meta"))
    assert [x.stride() for x in (LU, pivots, infos)] == [x.stride() for x in expected]


class TestErrors:
    def test_singular_names_element_and_pivot(self):
        A = torch.randn(2, 3, 4, 4)
        A[1, 2, :, 2] = 0
        with pytest.raises(torch.linalg.LinAlgError, match=r"`lu`: batch element \(1, 2\): U\[3, 3\]"):
            triton_lu.lu(A)
        with pytest.raises(torch.linalg.LinAlgError, match=r"`lu`: batch element 2: U\[3, 3\]"):
            triton_lu.lu(A[1])
        with pytest.raises(torch.linalg.LinAlgError, match=r"`linalg.lu_factor`: U\[3, 3\]"):
            triton_lu.linalg.lu_factor(A[1, 2])
        with pytest.raises(torch.linalg.LinAlgError, match=r"`linalg.lu_factor_ex`: U\[1, 1\]"):
            triton_lu.linalg.lu_factor_ex(torch.zeros(2, 2), check_errors=True)
        assert triton_lu.lu(A, get_infos=True)[2].tolist() == [[0, 0, 0], [0, 0, 3]]
        assert triton_lu.linalg.lu_factor_ex(A).info.tolist() == [[0, 0, 0], [0, 0, 3]]

    @pytest.mark.parametrize("name", ["lu", "linalg.lu", "linalg.lu_factor", "linalg.lu_factor_ex"])
    @pytest.mark.parametrize(
        ("bad", "came"),
        [
            ([[1.0]], "list"),
            (torch.ones(3), r"\(3,\)"),
            (torch.ones(2, 2, dtype=torch.int64), "int64"),
            (torch.ones(2, 2, dtype=torch.bool), "bool"),
        ],
    )
    def test_bad_input_raises_the_type_of_torch(self, name, bad, came):
        ours, theirs = triton_lu, torch
        for part in name.split("."):
            ours, theirs = getattr(ours, part), getattr(theirs, part)
        with pytest.raises(Exception) as torch_error:  # noqa: PT011
            theirs(bad)
        with pytest.raises(type(torch_error.value), match=rf"`{name}` expects .*{came}"):
            ours(bad)

    def test_permutation(self):
        with pytest.raises(TypeError, match=r"`permutation` expects pivots to be a torch.Tensor; got list"):
            triton_lu.permutation([1], 1)
        with pytest.raises(RuntimeError, match=r"int32; got torch.int64"):
            triton_lu.permutation(torch.ones(2, dtype=torch.int64), 2)
        with pytest.raises(RuntimeError, match=r"k <= m = 2; got shape \(3,\)"):
            triton_lu.permutation(torch.ones(3, dtype=torch.int32), 2)


@pytest.mark.parametrize("pivots_from", ["factorization", "random"])
@pytest.mark.parametrize(
    ("batch", "k", "m"),
    [
        ((), 1, 1),
        ((), 5, 9),
        ((3, 2), 6, 6),
        ((), 0, 4),
        ((0,), 3, 3),
        ((), 300, 310),
        ((700,), 4, 5),
        ((20, 50), 30, 33),
        ((30,), 100, 100),
        ((), 3000, 3000),
    ],
)
def test_permutation_is_the_product_of_exchanges(batch, k, m, pivots_from):
    if pivots_from == "factorization" and m < 1000:
        pivots = torch.linalg.lu_factor_ex(torch.randn(*batch, m, k)).pivots
    else:  # every step may choose any row from its own on
        first = torch.arange(k)
        pivots = (first + (torch.rand(*batch, k) * (m - first)).long() + 1).int()
    assert torch.equal(triton_lu.permutation(pivots, m), row_order(pivots, m))


@pytest.mark.parametrize("pivots", [[1, 0], [1, 4], [-3, 2]])
def test_permutation_refuses_pivots_out_of_range(pivots):
    with pytest.raises(RuntimeError, match=r"`permutation` expects pivots from 1 to m = 3; got"):
        triton_lu.permutation(torch.tensor(pivots, dtype=torch.int32), 3)


def test_linalg_family_is_that_of_torch():
    A = torch.randn(3, 5, 4, dtype=torch.complex64)
    for ours, theirs in (
        (triton_lu.linalg.lu_factor(A), torch.linalg.lu_factor(A)),
        (triton_lu.linalg.lu_factor_ex(A), torch.linalg.lu_factor_ex(A)),
        (triton_lu.linalg.lu(A), torch.linalg.lu(A)),
    ):
        assert type(ours) is type(theirs)
        for x, y in zip(ours, theirs, strict=True):
            assert torch.equal(x, y)
            assert x.stride() == y.stride()
    P, L, U = triton_lu.linalg.lu(torch.eye(3), pivot=False)
    assert (P.numel(), L.shape, U.shape) == (0, (3, 3), (3, 3))
    LU, pivots = triton_lu.lu(A)
    for x, y in zip(triton_lu.lu_unpack(LU, pivots), torch.lu_unpack(LU, pivots), strict=True):
        assert torch.equal(x, y)


def test_pivot_is_a_bool_and_matrices_are_dense():
    for function in (triton_lu.lu, triton_lu.linalg.lu_factor, triton_lu.linalg.lu_factor_ex, triton_lu.linalg.lu):
        with pytest.raises(TypeError, match="expects pivot to be a bool; got NoneType"):
            function(torch.eye(2), pivot=None)
        with pytest.raises(NotImplementedError, match=r"expects A to be dense .* got torch.sparse_coo"):
            function(torch.eye(2).to_sparse())


CALLS = {
    "lu_factor": lambda linalg, A, **kwargs: linalg.lu_factor(A, **kwargs),
    "lu_factor_ex": lambda linalg, A, **kwargs: linalg.lu_factor_ex(A, **kwargs),
    "lu": lambda linalg, A, **kwargs: linalg.lu(A, **kwargs),
    "lu_solve": lambda linalg, A, **kwargs: linalg.lu_solve(*torch.linalg.lu_factor(A), A, **kwargs),
}


@pytest.mark.parametrize("name", CALLS)
class TestOut:
    """`out` as in torch.linalg."""

    def expected(self, name, A):
        results = CALLS[name](torch.linalg, A)
        return (results,) if isinstance(results, torch.Tensor) else tuple(results)

    def call(self, name, A, out):
        return CALLS[name](triton_lu.linalg, A, out=out[0] if name == "lu_solve" else out)

    @pytest.mark.parametrize("shape", [(0,), (7, 1), None], ids=str)
    def test_results_are_written(self, name, shape):
        A = torch.randn(2, 4, 4)
        expected = self.expected(name, A)
        out = tuple(torch.full(x.shape if shape is None else shape, 9, dtype=x.dtype) for x in expected)
        results = self.call(name, A, out)
        results = (results,) if name == "lu_solve" else results
        for x, result, target in zip(expected, results, out, strict=True):
            assert result is target
            torch.testing.assert_close(target, x)
            if shape is not None and name != "lu_solve":
                assert target.stride() == x.stride()

    def test_derivatives_and_other_dtypes_are_refused(self, name):
        A = torch.randn(3, 3)
        empty = tuple(torch.empty(0, dtype=x.dtype) for x in self.expected(name, A))
        with pytest.raises(RuntimeError, match=rf"`linalg.{name}` has no derivative with out"):
            self.call(name, A.clone().requires_grad_(), empty)
        with pytest.raises(RuntimeError, match=rf"`linalg.{name}` expects a tensor of torch.float32 in out; got "):
            self.call(name, A, (torch.empty(0, dtype=torch.int64), *empty[1:]))
        if name != "lu_solve":
            with pytest.raises(TypeError, match=rf"`linalg.{name}` expects out to be {len(empty)} tensors; got 1"):
                self.call(name, A, empty[:1])
