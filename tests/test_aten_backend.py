"""The ATen maps: against double precision on the zoo, against PyTorch's own backward, and their memory."""

import weakref

import numpy as np
import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

import triton_lu
from benchmarks import accuracy
from tests.support.matrices import REGULAR, ZOO
from triton_lu import aten_backend, plan, reference
from triton_lu.bench.timing import peak_bytes

SIZES = ((1, 1), (6, 6), (33, 33), (40, 25), (25, 40), (150, 150), (150, 70), (70, 150))
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def factored(name, m, n, dtype):
    """LU computed in double precision and rounded, so that every computation starts from the same B."""
    A = ZOO[name].make(m, n, dtype, 0)
    LU, pivots, _ = torch.linalg.lu_factor_ex(reference.double(A))
    return LU.to(dtype), pivots


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("name", ["vjp", "jvp"])
def test_maps_of_gaussian_matrices(name, size, dtype):
    LU, pivots = factored("gaussian", *size, dtype)
    X = torch.randn(size, dtype=dtype)
    computed = getattr(aten_backend, name)(LU, pivots, X)
    expected = getattr(reference, name)(LU, pivots, X)
    assert reference.relative_error(computed, expected) < reference.tolerance(dtype, max(size))
    assert (computed if name == "vjp" else computed.mT).is_contiguous()


def assert_maps(shape, names=("vjp", "jvp")):
    LU, pivots, _ = torch.linalg.lu_factor_ex(torch.randn(shape, dtype=torch.complex128))
    X = torch.randn(shape, dtype=torch.complex128)
    for name in names:
        computed = getattr(aten_backend, name)(LU, pivots, X)
        assert reference.relative_error(computed, getattr(reference, name)(LU, pivots, X)) < 1e-12


@pytest.mark.parametrize("sweep", [(2, 2), (2, 6), (2, 99), (2, 10), (5, 5), (8, 8), (13, 13), (64, 64)], ids=str)
@pytest.mark.parametrize("shape", [(13, 13), (4, 13, 13), (3, 17, 9), (3, 9, 17), (9, 17)], ids=str)
def test_every_sweep_gives_the_same_maps(sweep, shape, monkeypatch):
    monkeypatch.setattr(plan, "in_numpy", lambda *problem: None)
    monkeypatch.setattr(plan, "widths", lambda *problem: plan.Widths(*sweep))
    assert_maps(shape)


@pytest.mark.parametrize("shape", [(13, 13), (1, 17, 9), (1, 1, 9, 17), (1, 7), (7, 1)], ids=str)
def test_one_small_matrix(shape):
    assert plan.in_numpy("vjp", 1, *shape[-2:], torch.complex128, "cpu") == "block"
    assert_maps(shape)


@pytest.mark.parametrize("shape", [(4, 13, 13), (3, 17, 9), (3, 9, 17), (10, 12, 4, 4)], ids=str)
def test_columns_of_a_batch(shape, monkeypatch):
    monkeypatch.setattr(plan, "in_numpy", lambda *problem: "columns")
    monkeypatch.setattr(plan, "CACHED", 500)
    assert_maps(shape, ("vjp", "jvp", "curvature"))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "shape",
    [(6, 6), (1, 7, 4), (4, 7), (3, 20, 20), (2, 3, 9, 5), (5, 9), (40, 4, 3), (300, 300), (2, 300, 270)],
    ids=str,
)
def test_products_of_second_derivatives(shape, dtype):
    m, n = shape[-2:]
    _, pivots, _ = torch.linalg.lu_factor_ex(torch.randn(shape))
    D, X, dB = (torch.randn(shape, dtype=dtype) for _ in range(3))
    for name, args in (("curvature", (D, pivots, X)), ("mixed", (D, pivots, dB))):
        computed, expected = getattr(aten_backend, name)(*args), getattr(reference, name)(*args)
        assert reference.relative_error(computed, expected) < reference.tolerance(dtype, max(m, n))
        assert computed.is_contiguous()


@pytest.fixture
def by_products(monkeypatch):
    """The CUDA plan's code on CPU tensors, in blocks of the width that is set here."""
    return lambda block: monkeypatch.setattr(plan, "block_of_products", lambda *problem: block)


MAPS = ("vjp", "jvp", "curvature", "mixed")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [32, 128])
@pytest.mark.parametrize(
    "shape",
    [(100, 100), (1, 128, 128), (64, 150), (150, 64), (1, 1, 300), (300, 1), (2, 2, 70, 90), (3, 90, 70)],
    ids=str,
)
def test_products(shape, block, dtype, by_products):
    by_products(block)
    LU, pivots, _ = torch.linalg.lu_factor_ex(reference.double(torch.randn(shape, dtype=dtype)))
    LU, X = LU.to(dtype), torch.randn(shape, dtype=dtype)
    for name in MAPS:
        computed, expected = getattr(aten_backend, name)(LU, pivots, X), getattr(reference, name)(LU, pivots, X)
        assert reference.relative_error(computed, expected) < reference.tolerance(dtype, max(shape)), name
        assert computed.shape == X.shape
        assert (computed.mT if name == "jvp" else computed).is_contiguous()


@pytest.mark.parametrize(
    "layout", [lambda X: X.mT.contiguous().mT, lambda X: X[0, 0].expand_as(X), lambda X: X.repeat(1, 2)[:, ::2]]
)
def test_products_of_any_layout(layout, by_products):
    by_products(32)
    LU, pivots = factored("gaussian", 70, 70, torch.complex128)
    X = layout(torch.randn(70, 70, dtype=torch.complex128))
    for name in MAPS:
        computed, expected = (getattr(maps, name)(LU.contiguous(), pivots, X) for maps in (aten_backend, reference))
        assert reference.relative_error(computed, expected) < 1e-11


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_products_beside_a_zero_pivot(dtype, by_products):
    """No tangent is divided by the last pivot."""
    by_products(64)
    n = 100
    LU, pivots = factored("gaussian", n, n, dtype)
    E = torch.randn(n, n, dtype=dtype)
    expected = reference.jvp(LU, pivots, E)
    LU[-1, -1] = 0
    computed = aten_backend.jvp(LU, pivots, E)
    assert computed.isfinite().all()
    assert reference.relative_error(computed[:, :-1], expected[:, :-1]) < reference.tolerance(dtype, n)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(2048, 2048), (2, 2048, 2048), (3000, 2100)], ids=str)
def test_products_on_a_gpu_do_not_wait_and_fit(shape, dtype):
    """On CUDA tensors without data: whoever asks for a value would fail. With the result 2.5 matrices,
    and of complex ones conjugates of parts."""
    with FakeTensorMode():
        X = torch.empty(shape, dtype=dtype, device="cuda")
        LU = torch.empty_like(X.mT).mT
        pivots = torch.empty(*shape[:-2], min(shape[-2:]), dtype=torch.int32, device="cuda")
        for name in MAPS:
            with Memory() as memory:
                result = getattr(aten_backend, name)(LU, pivots, X)
            assert result.is_cuda
            matrices = memory.peak / (X.numel() * X.element_size())
            assert 1 <= matrices <= (3 if dtype.is_complex else 2.51), name


class Memory(TorchDispatchMode):
    """The most bytes that storages made inside held at once."""

    peak = held = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        given = {x.untyped_storage()._cdata for x in (*args, *(kwargs or {}).values()) if isinstance(x, torch.Tensor)}
        result = func(*args, **kwargs or {})
        if isinstance(result, torch.Tensor) and (storage := result.untyped_storage())._cdata not in given:
            size = storage.nbytes()
            self.held += size
            self.peak = max(self.peak, self.held)
            weakref.finalize(storage, self.free, size)
        return result

    def free(self, size):
        self.held -= size


def torch_jvp(LU, pivots, E):
    """What PyTorch's forward mode does (lu_factor_ex_jvp for a square matrix), from the same LU."""
    P, L, U = torch.lu_unpack(LU, pivots)
    M = torch.linalg.solve_triangular(L, P.mT @ E, upper=False, unitriangular=True)
    M = torch.linalg.solve_triangular(U, M, upper=True, left=False)
    return L @ M.tril(-1) + M.triu() @ U


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("name", [name for name in REGULAR if name != "wilkinson"])  # it grows by 2^n
def test_accuracy_of_products_beside_torch(name, dtype, monkeypatch):
    """In the blocks of a GPU's plan: at most three times the error of PyTorch's formulas, as above."""
    monkeypatch.setattr(plan, "block_of_products", lambda m, n, device: plan.gpu.block_of_products(m, n))
    n = 600
    LU, pivots = factored(name, n, n, dtype)
    X = torch.randn(n, n, dtype=dtype)
    for function, torch_function in (("vjp", torch_vjp), ("jvp", torch_jvp)):
        expected = getattr(reference, function)(LU, pivots, X)
        ours = reference.relative_error(getattr(aten_backend, function)(LU, pivots, X), expected)
        theirs = reference.relative_error(torch_function(LU, pivots, X), expected)
        assert ours <= 3 * theirs + 4 * torch.finfo(dtype).eps, (function, ours, theirs)


@pytest.mark.parametrize("name", ["ill_conditioned", "orthogonal"])
def test_accuracy_of_products_in_double_precision(name, monkeypatch):
    """Likewise, against extended precision, in two blocks. Without Newton's step of the inverses: 7 to 10."""
    monkeypatch.setattr(plan, "block_of_products", lambda m, n, device: plan.gpu.block_of_products(m, n))
    n = 300
    LU, pivots = factored(name, n, n, torch.float64)
    X = torch.randn(n, n, dtype=torch.float64)
    for function, torch_function, extended in (
        ("vjp", torch_vjp, accuracy.extended_gradient),
        ("jvp", torch_jvp, extended_tangent),
    ):
        expected = extended(LU, pivots, X)
        ours, theirs = (
            np.linalg.norm(computed(LU, pivots, X).numpy() - expected)
            for computed in (getattr(aten_backend, function), torch_function)
        )
        assert ours <= 3 * theirs, function


def extended_tangent(LU, pivots, E):
    """dB of one square matrix in extended precision."""
    B, n = LU.numpy().astype(np.longdouble), len(LU)
    L, U = np.tril(B, -1), np.triu(B)
    M = E.numpy().astype(np.longdouble)[triton_lu.permutation(pivots, n).numpy()]
    for i in range(n):
        M[i] -= L[i, :i] @ M[:i]
    for j in range(n):
        M[:, j] = (M[:, j] - M[:, :j] @ U[:j, j]) / U[j, j]
    T = np.tril(M, -1)
    return T + L @ T + np.triu(M) @ U


def torch_vjp(LU, pivots, G):
    """What PyTorch's backward does (lu_factor_ex_backward for a square matrix), from the same LU."""
    P, L, U = torch.lu_unpack(LU, pivots)
    Phi = (L.mH @ G).tril(-1) + (G @ U.mH).triu()
    X = torch.linalg.solve_triangular(U.mH, Phi, upper=False, left=False)
    return P @ torch.linalg.solve_triangular(L.mH, X, upper=True, unitriangular=True)


def test_torch_vjp_is_the_backward_of_torch():
    A = torch.randn(20, 20, requires_grad=True)
    G = torch.randn(20, 20)
    LU, pivots, _ = torch.linalg.lu_factor_ex(A)
    torch.testing.assert_close(torch.autograd.grad(LU, A, G)[0], torch_vjp(LU.detach(), pivots, G))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("batch", [1, 8, 600])
@pytest.mark.parametrize("name", REGULAR)
def test_accuracy_beside_torch(name, batch, dtype):
    """At most three times the error of PyTorch's backward, with a floor of 4 eps where both are all but exact."""
    sizes = {1: (4, 24, 50, 100, 150, 256, 512), 8: (24, 128, 256), 600: (4, 24)}[batch]
    for n in sizes:
        if name == "wilkinson" and n > 50:  # it grows by 2^n: the gradient overflows in single precision
            continue
        LU, pivots = factored(name, n, n, dtype)
        G = torch.randn(n, n, dtype=dtype)
        expected = reference.vjp(LU, pivots, G)
        stacked = [x.expand(batch, *x.shape).clone() for x in (LU, pivots, G)]
        ours = reference.relative_error(aten_backend.vjp(*stacked)[0], expected)
        theirs = reference.relative_error(torch_vjp(LU, pivots, G), expected)
        assert ours <= 3 * theirs + 4 * torch.finfo(dtype).eps, (n, ours, theirs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64], ids=str)
@pytest.mark.parametrize("n", [512, 1024])
def test_peak_memory_of_a_backward(n, dtype):
    """The result included: one and a half matrices. PyTorch's own takes about eleven."""
    A = torch.randn(n, n, dtype=dtype, requires_grad=True)
    LU, *_ = torch.ops.triton_lu.factor(A)
    G = torch.randn(n, n, dtype=dtype)
    matrix = n * n * A.element_size()
    peak = peak_bytes(lambda: torch.autograd.grad(LU, A, G, retain_graph=True))
    assert matrix <= peak <= 1.5 * matrix
