"""What CUDA tensors meet: compiled kernels, and ATen on the GPU, held to the references in double precision."""

from functools import partial

import pytest
import torch
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.func import vmap

import triton_lu
from tests.support.assertions import assert_agrees
from tests.support.layouts import by_column, by_matrix
from tests.support.matrices import IRREGULAR, REGULAR, batch_of, random_pivots
from tests.support.matrices import problem as problem_on
from triton_lu import ops, plan, reference
from triton_lu.__main__ import main
from triton_lu.bench.timing import peak_bytes

MAPS = ["vjp", "jvp"]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
SHAPES = [  # of every regime: square, tall and wide, multiples of a block and not
    *((1, 1), (2, 2), (3, 3), (4, 4), (5, 3), (8, 8), (6, 8), (13, 13), (16, 16)),
    *((17, 17), (32, 32), (32, 9), (7, 32), (33, 33), (64, 64), (100, 40), (40, 100), (128, 128)),
    *((129, 129), (256, 256), (300, 130), (130, 300), (512, 512)),
]
REGIMES = [4, 12, 32, 64, 128, 200]
FACTORIZATIONS = [1, 3, 4, 8, 16, 31, 32, 33, 64, 65, 200]


problem = partial(problem_on, device="cuda")


def factor(A):
    return triton_lu.lu(A, get_infos=True)[0]


def tangent(A, E):
    with forward_ad.dual_level():
        return forward_ad.unpack_dual(factor(forward_ad.make_dual(A, E))).tangent


@pytest.fixture
def no_synchronization():
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    yield
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("name", [*MAPS, "curvature"])
def test_maps(name, shape, dtype):
    args = problem(len(REGULAR), *shape, dtype, REGULAR)
    assert getattr(ops, name.capitalize()).by_kernel(args[2], on_cuda=True) or (
        name == "curvature" and dtype.is_complex and max(shape) > 128
    )
    assert_agrees(getattr(ops, name)(*args), name, *args)


@pytest.mark.parametrize("size", [256, 2048])
@pytest.mark.parametrize("name", MAPS)
def test_maps_in_aten(name, size):
    args = problem(1, size, size, torch.float32)
    with triton_lu.backend("aten"):
        assert_agrees(getattr(ops, name)(*args), name, *args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("layout", [by_column, by_matrix])
@pytest.mark.parametrize("size", REGIMES)
@pytest.mark.parametrize("name", MAPS)
def test_strides(name, size, layout, dtype):
    LU, pivots, X = problem(3, size, size, dtype)
    op = getattr(ops, name)
    expected = op(LU, pivots, X)
    strided_pivots = torch.stack([pivots, pivots], dim=-1)[..., 0]
    assert torch.equal(op(layout(LU), strided_pivots, layout(X)), expected)
    expanded = X[:, :1, :1].expand_as(X)
    assert torch.equal(op(LU, pivots, expanded), op(LU, pivots, expanded.clone()))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", REGIMES)
@pytest.mark.parametrize("name", MAPS)
def test_same_bits_in_any_batch_and_every_time(name, size, dtype):
    LU, pivots, X = problem(150, size, size, dtype)
    op = getattr(ops, name)
    together = op(LU, pivots, X)
    assert all(torch.equal(op(LU, pivots, X), together) for _ in range(5))
    for some in (slice(0, 1), slice(37, 40), slice(149, 150)):
        assert torch.equal(op(LU[some], pivots[some], X[some]), together[some])


@pytest.mark.parametrize("size", REGIMES)
@pytest.mark.parametrize("name", MAPS)
def test_irregular_matrices_leave_their_neighbours_alone(name, size):
    args = problem(2 * len(IRREGULAR), size, size, torch.float32)
    alone = getattr(ops, name)(*args)
    for x, bad in zip(args, problem(len(IRREGULAR), size, size, torch.float32, IRREGULAR), strict=True):
        x[::2] = bad
    assert torch.equal(getattr(ops, name)(*args)[1::2], alone[1::2])


@pytest.mark.parametrize("shape", [(70_000, 3, 3), (66_000, 34, 2), (66_000, 2, 130)], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_more_matrices_than_the_second_axis_of_a_grid_has(name, shape):
    LU, pivots, X = problem(1, *shape[1:], torch.float32)
    alone = getattr(ops, name)(LU, pivots, X)
    batch = (LU.expand(shape), pivots.expand(shape[0], -1), X.expand(shape))
    assert torch.equal(getattr(ops, name)(*batch), alone.expand(shape))


def test_more_than_2_to_the_31_elements():
    n = 128
    shape = (2**31 // n**2 + 1, n, n)
    LU, pivots, X = problem(1, n, n, torch.float32)
    out = ops.vjp(LU.expand(shape), pivots.expand(shape[0], -1), X.expand(shape))
    assert torch.equal(out[[0, -1]], ops.vjp(LU, pivots, X).expand(2, n, n))


@pytest.mark.parametrize("pivot", [True, False])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", FACTORIZATIONS)
def test_factorization(n, dtype, pivot):
    for m in {n, max(n - 2, 1), n + 3}:
        A = batch_of(("gaussian", "graded_rows", "orthogonal"), 5, m, n, dtype).cuda()
        A = A if pivot else A + 3 * max(m, n) * torch.eye(m, n, device="cuda")
        LU, pivots, infos = triton_lu.lu(A, pivot=pivot, get_infos=True)
        expected = torch.linalg.lu_factor_ex(A.cpu().to(torch.promote_types(dtype, torch.float64)))
        assert torch.equal(pivots.cpu(), expected.pivots)
        assert not infos.any()
        assert LU.stride() == expected.LU.stride()
        L, U = reference.factors(LU.cpu())
        PA = reference.permutation_matrix(pivots.cpu(), m, L.dtype).mT @ reference.double(A.cpu())
        k = min(m, n)
        bound = torch.finfo(dtype).eps * 2 * k * (L[:, :m, :k].abs() @ U[:, :k, :n].abs())
        assert ((PA - L[:, :m, :k] @ U[:, :k, :n]).abs() <= bound).all()


@pytest.mark.parametrize("pivot", [True, False])
@pytest.mark.parametrize("n", FACTORIZATIONS[1:])
def test_factorizations_of_bad_matrices(n, pivot):
    clean = torch.randn(9, n, n, device="cuda") + 2 * n * torch.eye(n, device="cuda")
    LU, pivots, _ = triton_lu.lu(clean, pivot=pivot, get_infos=True)
    A = clean.clone()
    A[2, :, n // 2], A[5, 1, 1], A[7] = 0, torch.nan, 0
    bad = triton_lu.lu(A, pivot=pivot, get_infos=True)
    assert (bad[2][2], bad[2][7]) == (n // 2 + 1, 1)
    others = torch.tensor([0, 1, 3, 4, 6, 8])
    assert torch.equal(bad[0][others], LU[others])
    assert torch.equal(bad[1][others], pivots[others])
    assert ((bad[1] >= 1) & (bad[1] <= n)).all()
    with pytest.raises(torch.linalg.LinAlgError, match="batch element 2: "):
        triton_lu.lu(A, pivot=pivot)


@pytest.mark.parametrize("shape", [(2, 3, 3), (2, 6, 4), (20, 20), (40, 35), (33, 70), (130, 20), (20, 130)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("pivot", [True, False])
def test_derivatives_of_first_and_second_order(shape, dtype, pivot):
    A = torch.randn(shape, dtype=dtype, device="cuda") + 2 * max(shape) * torch.eye(*shape[-2:], device="cuda")
    A = (A[..., torch.randperm(shape[-2]), :] if pivot else A).requires_grad_()

    def value(A):
        return triton_lu.lu(A, pivot=pivot, get_infos=True)[0]

    assert gradcheck(value, A, fast_mode=True, check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(value, A, fast_mode=True, check_fwd_over_rev=True, check_rev_over_rev=True)


@pytest.mark.parametrize("shape", [(9, 9), (70, 50), (3, 150, 150)], ids=str)
def test_derivatives_are_those_of_torch(shape):
    A, G, V = torch.randn(3, *shape, dtype=torch.float64, device="cuda").requires_grad_()

    def results(function):
        (first,) = grad(function(A), A, G, create_graph=True)
        return first, *grad(first, (A, G), V), tangent(A.detach(), V)

    expected = results(lambda A: torch.linalg.lu_factor_ex(A).LU)
    torch.testing.assert_close(results(factor), expected, rtol=1e-7, atol=1e-7)


@pytest.mark.usefixtures("no_synchronization")
@pytest.mark.parametrize("shape", [(50, 4, 4), (50, 30, 20), (9, 64, 64), (100, 100), (200, 200), (2100, 10)], ids=str)
def test_no_synchronization(shape):
    A, E = torch.randn(2, *shape, device="cuda")
    G = torch.ones((), device="cuda").expand(shape).clone().requires_grad_()
    A = A.clone().requires_grad_()
    LU, pivots, _ = triton_lu.lu(A, get_infos=True)
    (first,) = grad(LU, A, G, create_graph=True)
    grad(first, (A, G), E)
    ops.jvp(LU.detach(), pivots, E)
    triton_lu.permutation(pivots, shape[-2])


@pytest.mark.parametrize("n", [*REGIMES, 700])
def test_cuda_graphs(n):
    """Captured once and replayed with other matrices, all but the factorization where that is a library's."""

    def results(A, LU, pivots, E):
        X = ops.vjp(LU, pivots, E)
        dLU = ops.jvp(LU, pivots, E)
        return (X, dLU, *(grad(triton_lu.lu(A, get_infos=True)[0], A, E) if n <= 32 else ()))

    def arguments():
        A = torch.randn(3, n, n, device="cuda").requires_grad_()
        return A, *torch.linalg.lu_factor(A.detach()), torch.randn(3, n, n, device="cuda")

    static = arguments()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):  # compiles outside of the capture
        results(*static)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, stream=stream):
        captured = results(*static)
    for _ in range(2):
        others = arguments()
        with torch.no_grad():
            for x, y in zip(static, others, strict=True):
                x.copy_(y)
        graph.replay()
        assert all(map(torch.equal, captured, results(*others)))


@pytest.mark.parametrize("n", [8, 100, 300])
def test_several_streams(n):
    inputs = [torch.randn(16, n, n, device="cuda").requires_grad_() for _ in range(4)]

    def gradient(A):
        return grad(factor(A).square().sum(), A)[0]

    expected = [gradient(A) for A in inputs]
    torch.cuda.synchronize()
    gradients = []
    for A in inputs:
        with torch.cuda.stream(torch.cuda.Stream()):
            gradients.append(gradient(A))
    torch.cuda.synchronize()
    assert all(map(torch.equal, gradients, expected))


@pytest.mark.parametrize("n", [8, 128, 512])
def test_memory_of_a_backward(n):
    batch = 2**22 // n**2
    A = torch.randn(batch, n, n, device="cuda").requires_grad_()
    LU = factor(A)
    G = torch.randn_like(LU)
    used = peak_bytes(lambda: grad(LU, A, G, retain_graph=True), "cuda") / A.nbytes
    assert used <= (1.01 if n <= 128 else 1 + 4 * 64 / n + 0.05)


@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
@pytest.mark.parametrize("n", [8, 40, 150])
def test_compiled(n, mode):
    def loss(A):
        return triton_lu.lu(A, get_infos=True)[0].sin().sum()

    compiled = torch.compile(loss, fullgraph=True, mode=mode)
    for seed in range(3):
        A = batch_of(("gaussian",), 4, n, n, torch.float64).cuda().add_(seed).requires_grad_()
        torch.compiler.cudagraph_mark_step_begin()
        (gradient,) = grad(compiled(A), A)
        torch.testing.assert_close(gradient, grad(loss(A), A)[0])


def test_transforms():
    A = torch.randn(5, 4, 4, dtype=torch.float64, device="cuda")
    for transform in (torch.func.jacrev, torch.func.jacfwd, torch.func.hessian):
        ours = vmap(transform(factor))(A)
        torch.testing.assert_close(ours.cpu(), vmap(transform(lambda A: torch.linalg.lu_factor_ex(A).LU))(A.cpu()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves_and_autocast(dtype):
    A = torch.randn(4, 40, 40, device="cuda").to(dtype).requires_grad_()
    single = A.detach().float().requires_grad_()
    expected = factor(single)
    G = torch.randn_like(expected)
    for x in (A, single):
        with torch.autocast("cuda", dtype):
            LU = factor(x)
        assert torch.equal(LU, expected)
        (gradient,) = grad(LU, x, G)
        assert torch.equal(gradient, grad(expected, single, G, retain_graph=True)[0].to(x.dtype))


@pytest.mark.parametrize("precision", ["highest", "high", "medium"])
@pytest.mark.parametrize("n", [64, 256, plan.PRODUCTS_FROM["vjp"]])
def test_no_product_in_reduced_precision(n, precision):
    """Whatever the process allows."""
    args = problem(1, n, n, torch.float32)
    torch.set_float32_matmul_precision(precision)
    try:
        out = ops.vjp(*args)
    finally:
        torch.set_float32_matmul_precision("highest")
    assert_agrees(out, "vjp", *args)


def test_solve_and_the_functions_of_torch():
    A, B = torch.randn(3, 50, 50, device="cuda").requires_grad_(), torch.randn(3, 50, 2, device="cuda")

    def solution(linalg):
        X = linalg.lu_solve(*linalg.lu_factor(A), B)
        return X, *grad(X.square().sum(), A)

    expected = solution(torch.linalg)
    torch.testing.assert_close(solution(triton_lu.linalg), expected, rtol=1e-2, atol=1e-2)
    with triton_lu.override() as override:
        torch.testing.assert_close(solution(torch.linalg), expected, rtol=1e-2, atol=1e-2)
    assert override.calls.total() == 2
    P, L, U = triton_lu.linalg.lu(A)
    torch.testing.assert_close(P @ L @ U, A, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("k", "m"), [(5, 5), (100, 130), (3000, 3000)])
def test_permutation(k, m):
    pivots = random_pivots(3, k=k, m=m)
    expected = reference.row_order(pivots, m)
    for choice in ("triton", "aten"):
        with triton_lu.backend(choice):
            assert torch.equal(triton_lu.permutation(pivots.cuda(), m).cpu(), expected)


@pytest.mark.parametrize("command", ["doctor", "demo"])
def test_commands(command):
    assert main([command]) == 0
