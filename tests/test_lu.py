"""The public functions: results, layouts, infos and errors of the factorization itself."""

import warnings

import numpy as np
import pytest
import torch
from torch.autograd import forward_ad
from torch.overrides import TorchFunctionMode

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
        for pivot, kind in ((None, "NoneType"), (1, "int"), (np.True_, r"numpy\.bool_?")):
            with pytest.raises(TypeError, match=f"expects pivot to be a bool; got {kind}$"):
                function(torch.eye(2), pivot=pivot)
        with pytest.raises(NotImplementedError, match=r"expects A to be dense .* got torch.sparse_coo"):
            function(torch.eye(2).to_sparse())
    with pytest.raises(TypeError, match=r"`linalg.lu_factor_ex` expects check_errors to be a bool; got int"):
        triton_lu.linalg.lu_factor_ex(torch.eye(2), check_errors=1)


CALLS = {
    "lu_factor": lambda linalg, A, **kwargs: linalg.lu_factor(A, **kwargs),
    "lu_factor_ex": lambda linalg, A, **kwargs: linalg.lu_factor_ex(A, **kwargs),
    "lu": lambda linalg, A, **kwargs: linalg.lu(A, **kwargs),
    "lu_solve": lambda linalg, A, **kwargs: linalg.lu_solve(*torch.linalg.lu_factor(A), A, **kwargs),
}


def replaced(i, change):
    """The i-th tensor changed."""
    return lambda out: (*out[:i], change(out[i]), *out[i + 1 :])


CHANGES = {
    "nothing": tuple,
    "a list": list,
    "one tensor": lambda out: out[0],
    "one too few": lambda out: tuple(out[:-1]),
    "one too many": lambda out: (*out, out[0]),
    "None among them": replaced(0, lambda x: None),
    "an iterator": iter,
    "a string": lambda out: "abc"[: len(out)],
    "another device": replaced(-1, lambda x: x.to("meta")),
    "a wider dtype": replaced(0, lambda x: x.double()),
    "a complex dtype": replaced(0, lambda x: x.to(torch.complex64)),
    "a narrower dtype": replaced(0, lambda x: x.half()),
    "integers": replaced(0, lambda x: x.int()),
    "other integers": replaced(-1, lambda x: x if x.is_floating_point() else x.long()),
    "empty": lambda out: tuple(x.new_empty(0) for x in out),
    "another shape": lambda out: tuple(x.new_empty(5) for x in out),
    "larger": lambda out: tuple(x.new_empty(100) for x in out),
    "row-major": lambda out: tuple(x.new_empty(x.shape) for x in out),
    "strided": lambda out: tuple(x.new_empty((*x.shape, 2))[..., 0] for x in out),
    "overlapping": replaced(0, lambda x: x.new_empty(1).expand(x.shape)),
    "sparse": replaced(0, lambda x: torch.zeros_like(x).to_sparse()),
    "one that requires grad": replaced(0, lambda x: x.requires_grad_()),
    "one that requires grad, empty": replaced(0, lambda x: x.new_empty(0, requires_grad=True)),
}


@pytest.mark.parametrize("name", CALLS)
class TestOut:
    """`out` as in torch.linalg."""

    def expected(self, name, A):
        results = CALLS[name](torch.linalg, A)
        return (results,) if isinstance(results, torch.Tensor) else tuple(results)

    def call(self, name, A, out):
        return CALLS[name](triton_lu.linalg, A, out=out[0] if name == "lu_solve" else out)

    @pytest.mark.filterwarnings("ignore:An output with one or more elements was resized")
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

    @pytest.mark.parametrize("change", CHANGES)
    @pytest.mark.parametrize("grad", [True, False])
    def test_whatever_it_is_the_outcome_is_that_of_torch(self, name, change, grad):
        if name == "lu" and change.startswith("one that requires grad") and grad:
            pytest.skip("PyTorch writes into it behind the back of autograd")
        A = torch.randn(2, 3, 3)
        with torch.set_grad_enabled(grad):
            ours, theirs = (self.outcome(linalg, name, A, change) for linalg in (triton_lu.linalg, torch.linalg))
        assert ours == theirs

    def outcome(self, linalg, name, A, change):
        """The type of the error; or the warnings and, for each tensor in out, what it has become."""
        out = CHANGES[change]([torch.empty_like(x) for x in self.expected(name, A)])
        if name == "lu_solve" and isinstance(out, tuple) and len(out) == 1 and isinstance(out[0], torch.Tensor):
            out = out[0]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                CALLS[name](linalg, A, out=out)
            except Exception as error:
                return type(error)
        assert all(str(warning.message).startswith("An output with one or more elements") for warning in caught)
        targets = [out] if isinstance(out, torch.Tensor) else out
        return len(caught), [(x.tolist(), x.stride(), x.dtype, x.requires_grad) for x in targets]

    def test_errors(self, name):
        """What is wrong and what was expected."""
        A = torch.randn(3, 3)
        first, *others = (torch.empty_like(x) for x in self.expected(name, A))
        with pytest.raises(RuntimeError, match=rf"`linalg.{name}` expects a tensor on cpu in out; got one on meta"):
            self.call(name, A, (first.to("meta"), *others))
        with pytest.raises(TypeError, match=rf"`linalg.{name}` expects out to be a torch.Tensor; got int"):
            self.call(name, A, (1, *others))
        if others:
            with pytest.raises(
                TypeError, match=rf"`linalg.{name}` expects out to be a tuple of . tensors; got torch.Te"
            ):
                self.call(name, A, first)

    def test_tangents_are_refused(self, name):
        """As in torch.linalg."""
        A = torch.randn(3, 3)
        out = tuple(torch.empty_like(x) for x in self.expected(name, A))
        for linalg in (torch.linalg, triton_lu.linalg):
            with forward_ad.dual_level(), pytest.raises(NotImplementedError):
                CALLS[name](linalg, forward_ad.make_dual(A, A), out=out[0] if name == "lu_solve" else out)

    def test_a_warning_points_at_the_call(self, name):
        A = torch.randn(2, 3, 3)
        out = tuple(torch.empty(5, dtype=x.dtype) for x in self.expected(name, A))
        with pytest.warns(UserWarning, match=r"had shape \[5\].* required output shape \[2") as caught:
            self.call(name, A, out)
        assert {warning.filename for warning in caught} == {__file__}


# `__torch_function__`: the public functions are as open to it as PyTorch's


def all_of_them(A, B):
    LU, pivots, infos = triton_lu.lu(A, get_infos=True)
    LU, pivots, infos = triton_lu.linalg.lu_factor_ex(A, pivot=False)
    P, L, U = triton_lu.linalg.lu(A)
    LU, pivots = triton_lu.linalg.lu_factor(A)
    Q, _, _ = triton_lu.lu_unpack(LU, pivots)
    order = triton_lu.permutation(pivots, A.shape[-2])
    return triton_lu.linalg.lu_solve(LU, pivots, B), P @ L @ U, infos, order, Q


PUBLIC = [
    triton_lu.lu,
    triton_lu.linalg.lu_factor_ex,
    triton_lu.linalg.lu,
    triton_lu.linalg.lu_factor,
    torch.lu_unpack,
    triton_lu.permutation,
    triton_lu.linalg.lu_solve,
]


def test_fx_traces_every_function():
    A, B = torch.randn(2, 3, 3), torch.randn(2, 3, 1)
    program = torch.fx.symbolic_trace(all_of_them)
    called = [node.target for node in program.graph.nodes if node.op == "call_function"]
    assert [function for function in called if function in PUBLIC] == PUBLIC
    torch.testing.assert_close(program(A, B), all_of_them(A, B))
    torch.testing.assert_close(program(A[0], B[0]), all_of_them(A[0], B[0]))


class Recorder(TorchFunctionMode):
    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_function__(self, function, types, args=(), kwargs=None):
        self.seen.append(function)
        return function(*args, **(kwargs or {}))


def test_modes_see_every_function():
    A, B = torch.randn(2, 3, 3), torch.randn(2, 3, 1)
    expected = all_of_them(A, B)
    with Recorder() as outer, Recorder() as inner:
        results = all_of_them(A, B)
    assert [function for function in inner.seen if function in PUBLIC] == PUBLIC
    assert [function for function in outer.seen if function in PUBLIC] == PUBLIC
    torch.testing.assert_close(results, expected)


class Named(torch.Tensor):
    pass


class Refusing(torch.Tensor):
    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        return function, kwargs


def test_classes_of_tensors_keep_their_class_or_take_over():
    A = torch.randn(2, 3, 3)
    for function in (triton_lu.lu, triton_lu.linalg.lu_factor, triton_lu.linalg.lu_factor_ex, triton_lu.linalg.lu):
        assert {type(x) for x in function(A.as_subclass(Named))} == {Named}
        assert function(A.as_subclass(Refusing), pivot=False) == (function, {"pivot": False})
    LU, pivots = triton_lu.linalg.lu_factor(A)
    solve = triton_lu.linalg.lu_solve
    assert type(solve(LU, pivots, A.as_subclass(Named))) is Named
    assert solve(LU, pivots, A.as_subclass(Refusing), left=False) == (solve, {"left": False})
    assert triton_lu.permutation(pivots.as_subclass(Refusing), 3) == (triton_lu.permutation, {})
    compiled = torch.compile(lambda A: triton_lu.lu(A)[0].sin(), backend="eager", fullgraph=True)
    assert type(compiled(A.as_subclass(Named))) is Named
