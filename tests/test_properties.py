"""What holds for every matrix: properties on drawn shapes, batches, dtypes, strides and values, on both backends.

Deterministic, about 2,500 examples; `pytest --hypothesis-profile=thorough tests/test_properties.py` draws forty times
as many, anew each time. An example is a few parameters and a seed, so what is printed for a failure reproduces it.
"""

from dataclasses import dataclass, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import triton_lu
from tests.support.assertions import same_bits
from triton_lu import reference
from triton_lu._backend import current

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
LARGEST = {"aten": 40, "triton": 4}  # the interpreter takes a hundred times as long
EXAMPLES = {"aten": 1, "triton": 1 / 8}


@dataclass(frozen=True)
class Layout:
    """How a tensor lies in memory: its dimensions in the order of their strides, each with a step of 1 or 2."""

    order: tuple[int, ...]
    steps: tuple[int, ...]
    conjugated: bool  # values that are conjugated lazily, if they are complex

    def __call__(self, x):
        """x stored that way, between NaN or, for integers, nonsense."""
        filler = torch.nan if x.is_floating_point() or x.is_complex() else -77
        sizes = [x.shape[d] * self.steps[d] for d in self.order]
        large = torch.full(sizes, filler, dtype=x.dtype)
        view = large.permute([self.order.index(d) for d in range(x.ndim)])[
            tuple(slice(None, None, s) for s in self.steps)
        ]
        conjugated = self.conjugated and x.is_complex()
        view.copy_(x.conj() if conjugated else x)
        return view.conj() if conjugated else view


@dataclass(frozen=True)
class Problem:
    shape: tuple[int, ...]
    dtype: torch.dtype
    pivot: bool
    kind: str
    layout: Layout
    repeated: bool  # one matrix, expanded to the batch
    seed: int

    def tensors(self, count, make):
        """`count` tensors in the layout of the problem."""
        generator = torch.Generator().manual_seed(self.seed)
        for _ in range(count):
            drawn = self.layout(make(self.shape, self.dtype, generator))
            yield drawn[:1].expand(self.shape) if self.repeated else drawn

    def matrix(self):
        (A,) = self.tensors(1, KINDS[self.kind])
        return A

    def gaussians(self, count):
        return self.tensors(count, gaussian)

    def factors(self):
        """LU and pivots of well-conditioned matrices, of any kind of permutation."""
        m, n = self.shape[-2:]
        k = min(m, n)
        (B,) = self.tensors(1, well_conditioned)
        first = torch.arange(k)
        chosen = first + (
            torch.rand(*self.shape[:-2], k, generator=torch.Generator().manual_seed(self.seed)) * (m - first)
        )
        pivots = (chosen.long() + 1).int() if self.pivot else (first + 1).int().expand(chosen.shape)
        return B, pivots


def gaussian(shape, dtype, generator):
    return torch.randn(shape, dtype=dtype, generator=generator)


def integers(shape, dtype, generator):
    """Small ones: exact ties, exact zeros."""
    real = torch.randint(-2, 3, shape, generator=generator)
    return (
        (real + 1j * torch.randint(-2, 3, shape, generator=generator)).to(dtype) if dtype.is_complex else real.to(dtype)
    )


def scaled(scale):
    def make(shape, dtype, generator):
        return (scale(dtype) * gaussian(shape, torch.complex128 if dtype.is_complex else torch.float64, generator)).to(
            dtype
        )

    return make


def smallest(dtype):
    return 4 * torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps


def duplicated_rows(shape, dtype, generator):
    A = gaussian(shape, dtype, generator)
    return A[..., torch.randint(max(shape[-2], 1), (shape[-2],), generator=generator), :]


def rank_deficient(shape, dtype, generator):
    """Of integers: the zeros that elimination finds are exact."""
    rank = min(shape[-2:]) // 2
    return integers((*shape[:-1], rank), dtype, generator) @ integers((*shape[:-2], rank, shape[-1]), dtype, generator)


def permutation(shape, dtype, generator):
    return torch.eye(*shape[-2:], dtype=dtype)[torch.randperm(shape[-2], generator=generator)].expand(shape)


def triangular(upper):
    def make(shape, dtype, generator):
        A = gaussian(shape, dtype, generator)
        return A.triu() if upper else A.tril()

    return make


def zero(shape, dtype, generator):
    return torch.zeros(shape, dtype=dtype)


def well_conditioned(shape, dtype, generator):
    """Off the diagonal small, on it between 1 and 2 in modulus."""
    A = gaussian(shape, dtype, generator) / (2 * max(*shape[-2:], 1))
    diagonal = A.diagonal(dim1=-2, dim2=-1)
    diagonal.copy_(
        torch.polar(
            1 + torch.rand(diagonal.shape, generator=generator, dtype=torch.float64), 6 * diagonal.real.double()
        ).to(dtype)
        if dtype.is_complex
        else 1 + torch.rand(diagonal.shape, generator=generator)
    )
    return A


KINDS = {
    "gaussian": gaussian,
    "integers": integers,
    "huge": scaled(lambda dtype: 1e30),
    "tiny": scaled(lambda dtype: 1e-30),
    "denormal": scaled(smallest),
    "duplicated rows": duplicated_rows,
    "rank deficient": rank_deficient,
    "permutation": permutation,
    "lower": triangular(upper=False),
    "upper": triangular(upper=True),
    "zero": zero,
    "well conditioned": well_conditioned,
}


@st.composite
def problems(draw, largest, kinds=tuple(KINDS)):
    m, n = draw(st.integers(0, largest)), draw(st.integers(0, largest))
    batch = draw(st.lists(st.integers(0, 5), max_size=3).map(tuple))
    if largest > 8 and draw(st.integers(0, 7)) == 7:  # the sweep for large batches of small matrices
        m, n, batch = min(m, 8), min(n, 8), (2, 300)
    if torch.Size(batch).numel() > (30 if largest > 8 else 6):
        batch = batch[:1] if batch != (2, 300) else batch
    ndim = len(batch) + 2
    layout = Layout(
        draw(st.permutations(range(ndim)).map(tuple)),
        draw(st.tuples(*[st.integers(1, 2)] * ndim)),
        draw(st.booleans()),
    )
    repeated = bool(batch) and draw(st.integers(0, 4)) == 4
    dtype, pivot = draw(st.sampled_from(DTYPES)), draw(st.booleans())
    return Problem(
        (*batch, m, n), dtype, pivot, draw(st.sampled_from(kinds)), layout, repeated, draw(st.integers(0, 99))
    )


def holds_for_all(*kinds, backends=("aten", "triton")):
    """Makes tests of a property of a `Problem`, one for each backend."""

    def decorate(holds):
        @pytest.mark.parametrize("backend", backends)
        @pytest.mark.filterwarnings("ignore::RuntimeWarning")  # NumPy's, of the interpreter: overflow is meant to be
        def test(backend):
            @settings(max_examples=int(settings.default.max_examples * EXAMPLES[backend]))
            @given(problems(LARGEST[backend], kinds or tuple(KINDS)))
            def run(problem):
                with triton_lu.backend(backend):
                    holds(problem)

            run()

        test.__name__, test.__doc__ = holds.__name__, holds.__doc__
        return test

    return decorate


def product(x, y):
    """Re⟨x, y⟩ of every matrix."""
    return (x.conj() * y).real.sum((-2, -1))


def norm(x):
    return torch.linalg.matrix_norm(reference.double(x))


vjp, jvp = torch.ops.triton_lu.vjp, torch.ops.triton_lu.jvp


@holds_for_all()
def test_factorization(problem):
    """P L U = A, entry by entry to k eps |L| |U|; multipliers, pivots, infos, strides; A is not written to."""
    A = problem.matrix()
    m, n = A.shape[-2:]
    k = min(m, n)
    before = A.clone()
    LU, pivots, infos = triton_lu.lu(A, pivot=problem.pivot, get_infos=True)
    assert same_bits(A, before)

    expected = torch.linalg.lu_factor_ex(torch.empty(A.shape, dtype=A.dtype, device="meta"))
    assert [(x.shape, x.stride(), x.dtype) for x in (LU, pivots, infos)] == [
        (x.shape, x.stride(), x.dtype) for x in expected
    ]
    step = torch.arange(1, k + 1, dtype=torch.int32)
    assert ((pivots >= step) & (pivots <= m) if problem.pivot else pivots == step).all()
    zeros = torch.where(LU.diagonal(dim1=-2, dim2=-1) == 0, step, k + 1)
    assert torch.equal(infos, (zeros.amin(-1) % (k + 1)).int() if k else torch.zeros_like(infos))
    # LAPACK, as it comes with PyTorch, multiplies by the reciprocals of its pivots, also where they overflow.
    overflows = problem.kind == "denormal" and current() == "aten"
    overflows = overflows and not torch.linalg.lu_factor_ex(A).LU.isfinite().all()
    if problem.pivot and LU.numel() and not overflows:
        assert LU.tril(-1).abs().max() <= (1.5 if A.is_complex() else 1) + 4 * torch.finfo(A.dtype).eps

    L, U = reference.factors(LU)
    L, U = L[..., :m, :k], U[..., :k, :n]
    usable = LU.isfinite().all(-1).all(-1) & ((infos == 0) | problem.pivot)
    P = reference.permutation_matrix(pivots, m, L.dtype)
    error = (P @ L @ U - reference.double(A)).abs()
    rounding = torch.finfo(A.dtype).smallest_normal
    bound = 10 * max(k, 1) * torch.finfo(A.dtype).eps * (P.abs() @ L.abs() @ U.abs() + rounding)
    assert (error <= bound)[usable].all()
    assert usable.all() or not problem.pivot or overflows


@holds_for_all("gaussian", "well conditioned", "permutation")
def test_gradients_by_autograd(problem):
    """Whatever the strides of A and of the gradient: the formula in double precision, at the same LU."""
    A = problem.matrix().detach().requires_grad_()
    _, G = problem.gaussians(2)
    LU, pivots, infos = triton_lu.lu(A, pivot=problem.pivot, get_infos=True)
    (gradient,) = torch.autograd.grad(LU, A, G)
    assert gradient.shape == A.shape
    U = LU.detach().triu().diagonal(dim1=-2, dim2=-1).abs()
    if problem.kind == "gaussian" and LU.numel():  # rounding errors grow with the condition number
        bounded = (U.amin(-1) > 0.1) & (LU.detach().abs().amax((-2, -1)) < 10) & (infos == 0)
    else:
        bounded = infos == 0
    expected = reference.vjp(LU.detach(), pivots, G)
    error = norm(reference.double(gradient) - expected)[bounded]
    assert (error <= 100 * max(*A.shape[-2:], 2) ** 2 * torch.finfo(A.dtype).eps * norm(expected)[bounded]).all()


@holds_for_all("well conditioned")
def test_maps_agree_with_double_precision(problem):
    """vjp, by rows, and jvp, by columns as LU is, and nothing written to the arguments."""
    LU, pivots = problem.factors()
    (X,) = problem.gaussians(1)
    arguments = (LU, pivots, X)
    before = [x.clone() for x in arguments]
    for op, exact in ((vjp, reference.vjp), (jvp, reference.jvp)):
        result = op(*arguments)
        assert (result if op is vjp else result.mT).is_contiguous()
        assert (result.shape, result.dtype) == (X.shape, X.dtype)
        assert all(map(torch.equal, arguments, before))
        assert reference.relative_error(result, exact(*arguments)) <= reference.tolerance(X.dtype, max(X.shape[-2:]))


@holds_for_all("well conditioned")
def test_maps_are_adjoint(problem):
    """Re⟨G, jvp(E)⟩ = Re⟨vjp(G), E⟩."""
    LU, pivots = problem.factors()
    G, E = problem.gaussians(2)
    X, T = vjp(LU, pivots, G), jvp(LU, pivots, E)
    difference = (
        product(reference.double(G), reference.double(T)) - product(reference.double(X), reference.double(E))
    ).abs()
    assert (
        difference <= reference.tolerance(G.dtype, max(G.shape[-2:])) * (norm(G) * norm(T) + norm(X) * norm(E))
    ).all()


@holds_for_all("well conditioned")
def test_maps_are_linear(problem):
    """To rounding; over powers of two, with which no rounding changes, to the bit."""
    LU, pivots = problem.factors()
    G, H = problem.gaussians(2)
    for op in (vjp, jvp):
        image = op(LU, pivots, G)
        assert torch.equal(op(LU, pivots, -4 * G), -4 * image)
        total, parts = op(LU, pivots, 3 * G + H), (3 * image, op(LU, pivots, H))
        scale = norm(parts[0]) + norm(parts[1])
        assert (norm(total - parts[0] - parts[1]) <= reference.tolerance(G.dtype, max(G.shape[-2:])) * scale).all()


@holds_for_all("well conditioned")
def test_strides_of_the_argument_change_no_bit(problem):
    LU, pivots = problem.factors()
    (X,) = problem.gaussians(1)
    for op in (vjp, jvp):
        assert torch.equal(op(LU, pivots, X), op(LU, pivots, X.clone(memory_format=torch.contiguous_format)))


@holds_for_all("well conditioned", backends=("triton",))
def test_strides_of_all_arguments_and_the_rest_of_the_batch_change_no_bit(problem):
    """Of the kernels. Of ATen's sweeps, no: BLAS rounds in another order for another alignment in memory."""
    LU, pivots = problem.factors()
    (X,) = problem.gaussians(1)
    batch = tuple(range(len(problem.shape) - 2))
    for op in (vjp, jvp):
        result = op(LU, pivots, X)
        assert torch.equal(result, op(LU.clone(memory_format=torch.contiguous_format), pivots, X))
        assert torch.equal(result, op(*(x.flip(batch) for x in (LU, pivots, X))).flip(batch))


@holds_for_all("gaussian", "well conditioned")
def test_a_bad_matrix_changes_no_other(problem):
    """NaN or infinity anywhere in a matrix: LU, pivots, infos and both maps of the others keep every bit."""
    if len(problem.shape) == 2 or 0 in problem.shape:
        return
    problem = replace(problem, repeated=False)
    clean, bad = problem.matrix(), problem.matrix()
    index = tuple(problem.seed % size for size in problem.shape)
    bad[index] = torch.nan if problem.seed % 2 else torch.inf
    (G,) = problem.gaussians(1)
    others = torch.ones(problem.shape[:-2], dtype=torch.bool)
    others[index[:-2]] = False
    before, after = (triton_lu.lu(A, pivot=problem.pivot, get_infos=True) for A in (clean, bad))
    for x, y in zip(before, after, strict=True):
        assert same_bits(x[others], y[others])
    assert not after[0][~others].isfinite().all()
    m, k = problem.shape[-2], min(problem.shape[-2:])
    assert ((after[1] >= 1) & (after[1] <= m)).all()
    assert ((after[2] >= 0) & (after[2] <= k)).all()
    for op in (vjp, jvp):
        assert same_bits(op(*before[:2], G)[others], op(*after[:2], G)[others])


@holds_for_all("gaussian", backends=("aten",))
def test_rows_in_another_order(problem):
    """A and Q A have the same L and U, and the same gradient with respect to A: only the pivots differ.

    With more rows than columns, those that are never pivots come in another order.
    """
    problem = replace(problem, shape=(*problem.shape[:-2], *sorted(problem.shape[-2:])))
    A = reference.double(problem.matrix()).detach().requires_grad_()
    (G,) = map(reference.double, problem.gaussians(1))
    Q = torch.randperm(A.shape[-2], generator=torch.Generator().manual_seed(problem.seed))
    (LU, pivots, _), (same, others, _) = (triton_lu.lu(x, get_infos=True) for x in (A, A[..., Q, :]))
    rows, permuted = (triton_lu.permutation(p, A.shape[-2]) for p in (pivots, others))
    assert torch.equal(Q[permuted], rows)
    for x, y in ((LU, same), [torch.autograd.grad(x, A, G)[0] for x in (LU, same)]):
        assert (norm(x - y) <= 1e-6 * norm(x)).all()


@holds_for_all("well conditioned", backends=("aten",))
def test_second_derivatives(problem):
    """The gradient with respect to LU of Re⟨V, vjp(G)⟩ and of Re⟨jvp(V), G⟩ is the curvature."""
    LU, pivots = problem.factors()
    G, V = (reference.double(x) for x in problem.gaussians(2))
    LU = reference.double(LU).detach().requires_grad_()
    expected = reference.second_derivative(LU.detach(), pivots, G, V)
    for op, x, cotangent in ((vjp, G, V), (jvp, V, G)):
        (curvature,) = torch.autograd.grad(op(LU, pivots, x), LU, cotangent)
        assert (norm(curvature - expected) <= 1e-11 * norm(G) * norm(V)).all()


@holds_for_all("well conditioned", backends=("aten",))
def test_permutations(problem):
    """Of any pivots, by whichever of the algorithms serves them."""
    _, pivots = problem.factors()
    m = problem.shape[-2]
    assert torch.equal(triton_lu.permutation(pivots, m), reference.row_order(pivots, m))


@pytest.mark.parametrize("k", [1, 2, 3, 64, 65, 66, 100, 300, 3000])
def test_the_longest_chain_of_exchanges(k):
    """Every step hands the first row on to the next: the most links there can be to follow."""
    pivots = (torch.arange(2, k + 2).clamp(max=k)).int().expand(40, k)
    assert torch.equal(triton_lu.permutation(pivots, k + 1), reference.row_order(pivots, k + 1))
