"""torch.compile, torch.export, opcheck, fake CUDA tensors."""

import pytest
import torch
from torch._dynamo.testing import CompileCounter, CompileCounterWithBackend
from torch._dynamo.utils import counters
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.autograd import grad
from torch.func import hessian, jacfwd, jacrev, jvp, vmap
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import triton_lu
from triton_lu import aten_backend, ops

BACKENDS = ("eager", "aot_eager", "inductor")


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def loss(A):
    return triton_lu.lu(A)[0].tril().square().sum()


def loss_ex(A):
    return triton_lu.linalg.lu_factor_ex(A, pivot=False).LU.sin().sum()


def loss_linalg(A):
    P, L, U = triton_lu.linalg.lu(A)
    return (P @ L @ U.square()).sum()


def matrix(*shape):
    return (torch.randn(shape, dtype=torch.float64) + 4 * torch.eye(shape[-1])).requires_grad_()


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize(
    ("function", "backend"),
    [
        *((function, "aot_eager") for function in (loss, loss_ex, loss_linalg)),
        (loss, "eager"),
        (loss_linalg, "inductor"),
    ],
)
def test_forward_and_backward_in_one_graph(function, backend, dynamic):
    counter = CompileCounterWithBackend(backend)
    compiled = torch.compile(function, backend=counter, fullgraph=True, dynamic=dynamic)
    shapes = [(3, 5, 5), (7, 6, 6), (4, 9, 9)] if dynamic else [(3, 5, 5)]
    for shape in shapes:
        A = matrix(*shape)
        value = compiled(A)
        torch.testing.assert_close(value, function(A))
        torch.testing.assert_close(grad(value, A)[0], grad(function(A), A)[0])
    assert counter.frame_count == 1


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("requires_grad", [False, True])
def test_singular_matrices_raise_in_compiled_code(backend, requires_grad):
    A = torch.randn(3, 4, 4)
    A[1, :, 2] = 0
    with pytest.raises(torch.linalg.LinAlgError, match=r"batch element 1: U\[3, 3\]"):
        torch.compile(loss, backend=backend, fullgraph=True)(A.requires_grad_(requires_grad))


@pytest.mark.parametrize(
    "transform",
    [
        torch.func.grad,
        hessian,
        lambda f: vmap(torch.func.grad(f)),
        lambda f: lambda A: jvp(f, (A,), (A,))[1],
        lambda f: jacrev(lambda A: jvp(f, (A,), (A,))[1]),
    ],
)
def test_compiled_transforms(transform):
    A = matrix(2, 3, 3).detach()
    compiled = torch.compile(transform(loss_ex), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(A), transform(loss_ex)(A))


def factors(A):
    return triton_lu.lu(A)[0]


@pytest.mark.parametrize(
    "transform",
    [vmap, jacrev, jacfwd, lambda f: vmap(jacrev(f)), lambda f: lambda A: jvp(f, (A,), (A,))[1]],
    ids=["vmap", "jacrev", "jacfwd", "vmap(jacrev)", "jvp"],
)
def test_compiled_transforms_of_lu(transform):
    """With its check for singular matrices, which is one of all batches together."""
    A = matrix(2, 3, 3).detach()
    compiled = torch.compile(transform(factors), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(A), transform(factors)(A))
    A[1, :, 1] = 0
    with pytest.raises(torch.linalg.LinAlgError, match=r"batch element 1: U\[2, 2\]"):
        compiled(A)


@torch._dynamo.config.patch(error_on_recompile=True)
@pytest.mark.parametrize("mode", ["reduce-overhead", "max-autotune"])
def test_modes_of_compilation(mode):
    """One graph and no recompilation for other batches and sizes, forwards and backwards, whatever the mode."""
    counters.clear()
    compiled = torch.compile(loss, mode=mode, fullgraph=True, dynamic=True)
    for shape in [(3, 5, 5), (7, 5, 5), (4, 9, 9)]:
        A = matrix(*shape)
        value = compiled(A)
        torch.testing.assert_close(value, loss(A))
        torch.testing.assert_close(grad(value, A)[0], grad(loss(A), A)[0])
    assert counters["stats"]["unique_graphs"] == 1
    assert not counters["graph_break"]


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_compiled_autograd(backend):
    A = matrix(3, 3)
    counters.clear()
    with torch._dynamo.config.patch(compiled_autograd=True):

        @torch.compile(backend=backend)
        def step(A):
            value = loss(A)
            value.backward()
            return value

        step(A)
    torch.testing.assert_close(A.grad, grad(loss(A), A)[0])
    assert counters["compiled_autograd"]["captures"] == 1


@pytest.mark.parametrize("shape", [(4, 4), (2, 3, 5), (2, 5, 3), (0, 3), (600, 4, 4)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_opcheck(shape, dtype):
    A = (torch.randn(shape, dtype=dtype) + 3 * torch.eye(*shape[-2:])).requires_grad_()
    LU, pivots, infos = torch.ops.triton_lu.factor(A.detach())
    for op, args in (
        (torch.ops.triton_lu.factor, (A,)),
        (torch.ops.triton_lu.factor, (A, False)),
        (torch.ops.triton_lu.vjp, (LU, pivots, A)),
        (torch.ops.triton_lu.vjp, (LU.clone().requires_grad_(), pivots, A.mT.clone().mT)),
        (torch.ops.triton_lu.jvp, (LU, pivots, A)),
        (torch.ops.triton_lu.curvature, (LU, pivots, A)),
        (torch.ops.triton_lu.curvature, (LU.clone().requires_grad_(), pivots, A.mT.clone().mT)),
        (torch.ops.triton_lu.mixed, (LU.clone().requires_grad_(), pivots, A)),
        (torch.ops.triton_lu.permutation, (pivots, shape[-2])),
        (torch.ops.triton_lu.check, (infos, "lu")),
    ):
        torch.library.opcheck(op.default, args)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize(
    "shape",
    [(3, 3), (1, 3, 3), (1, 3, 2), (1, 1, 2, 3), (3, 1, 1), (2, 1, 3), (70, 70), (1, 70, 70), (600, 4, 4), (0, 3, 3)],
    ids=str,
)
def test_traced_strides_are_the_real_ones(shape, dtype):
    """Also of dimensions of size 1, which opcheck leaves out."""
    A = torch.randn(shape, dtype=dtype) + 3 * torch.eye(*shape[-2:])
    pivots = torch.ops.triton_lu.factor(A)[1]

    def results(A, pivots):
        maps = (getattr(ops, name)(A, pivots, A) for name in ("vjp", "jvp", "curvature", "mixed"))
        return *ops.factor(A), *ops.factor(A, False), *maps, ops.permutation(pivots, A.shape[-2])

    real = results(A, pivots)
    with FakeTensorMode() as mode:
        traced = results(mode.from_tensor(A), mode.from_tensor(pivots))
    assert [(x.shape, x.stride(), x.dtype) for x in traced] == [(x.shape, x.stride(), x.dtype) for x in real]


def test_the_choice_of_backend_reaches_compiled_code():
    """It is read when an operator executes, also in the backward of a graph that is compiled already."""
    A = torch.randn(2, 2, 2048, requires_grad=True)
    value = torch.compile(loss_ex, backend=CompileCounter(), fullgraph=True)(A)
    with (
        triton_lu.backend("triton"),
        pytest.raises(NotImplementedError, match="`vjp` has no Triton kernel for 2×2048"),
    ):
        value.backward()


fake_cuda = pytest.mark.skipif(
    not torch.backends.cuda.is_built(), reason="fake CUDA tensors need a PyTorch built for CUDA, though no GPU"
)


@fake_cuda
def test_fake_cuda_tensors():
    """Shapes, dtypes and strides of the CUDA branch, with no data to look at."""
    with FakeTensorMode():
        A = torch.empty(3, 5, 4, device="cuda", dtype=torch.complex64)
        LU, pivots, infos = triton_lu.lu(A, get_infos=True)
        G = torch.empty(3, 5, 4, device="cuda", dtype=torch.complex64).mT.contiguous().mT
        X = torch.ops.triton_lu.vjp(LU, pivots, G)
        dLU = torch.ops.triton_lu.jvp(LU, pivots, G)
        order = triton_lu.permutation(pivots, 5)
    assert all(x.device.type == "cuda" for x in (LU, pivots, infos, X, dLU, order))
    assert (LU.shape, LU.stride(), LU.dtype) == ((3, 5, 4), (20, 1, 5), torch.complex64)
    assert (pivots.shape, pivots.dtype, infos.shape, infos.dtype) == ((3, 4), torch.int32, (3,), torch.int32)
    assert (X.shape, X.stride(), X.dtype) == ((3, 5, 4), (20, 4, 1), torch.complex64)
    assert (dLU.shape, dLU.stride(), dLU.dtype) == ((3, 5, 4), (20, 1, 5), torch.complex64)
    assert (order.shape, order.dtype) == ((3, 5), torch.int64)


class OnDevice(TorchDispatchMode):
    """Every operation stays on CUDA. Reading a value (`item`, `nonzero`) is an error of fake tensors by themselves."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            assert not isinstance(x, torch.Tensor) or x.device.type == "cuda", func
        return result


def layout(X):
    return X.shape, X.stride(), X.dtype, X.device


@fake_cuda
@pytest.mark.skipif(torch.__version__ < "2.13", reason="fake addmm_ and baddbmm_ of PyTorch 2.11 raise IndexError")
@pytest.mark.parametrize(
    ("shape", "dtype"),
    [
        ((150, 150), torch.float32),
        ((3, 40, 30), torch.complex64),
        ((2, 2, 5, 40), torch.float64),
        ((1000, 8, 8), torch.float32),
    ],
    ids=str,
)
def test_aten_on_fake_cuda_tensors(shape, dtype):
    """What runs on a GPU where there is no kernel: no synchronization, and results as the operators announce them."""
    with FakeTensorMode(), OnDevice():
        A = torch.empty(shape, device="cuda", dtype=dtype)
        for pivot in (True, False):
            factored = aten_backend.factor(A, pivot)
            assert [*map(layout, factored)] == [*map(layout, ops.factor(A, pivot))]
        LU, pivots, _ = factored
        assert layout(aten_backend.permutation(pivots, shape[-2])) == layout(ops.permutation(pivots, shape[-2]))
        assert layout(aten_backend.vjp(LU, pivots, A)) == layout(A)
        assert layout(aten_backend.jvp(LU, pivots, A)) == layout(LU)
        assert layout(aten_backend.curvature(LU, pivots, A)) == layout(ops.curvature(LU, pivots, A))
        assert layout(aten_backend.mixed(LU, pivots, A)) == layout(ops.mixed(LU, pivots, A))


@fake_cuda
@pytest.mark.parametrize("batches", [((), ()), ((3,), (3,)), ((), (2, 3)), ((3, 1), (2,)), ((2,), (3, 1))], ids=str)
@pytest.mark.parametrize("left", [True, False])
def test_solves_on_fake_cuda_tensors(batches, left):
    """Likewise."""
    batch, batch_of_B = batches
    with FakeTensorMode(), OnDevice():
        LU = torch.empty(*batch, 5, 5, device="cuda", dtype=torch.complex64).mT
        pivots = torch.empty(*batch, 5, device="cuda", dtype=torch.int32)
        B = torch.empty(*batch_of_B, *((5, 2) if left else (2, 5)), device="cuda", dtype=torch.complex64)
        X = ops.lu_solve(LU, pivots, B, left, False)
        assert layout(aten_backend.lu_solve(LU, pivots, B, left, False)) == layout(X)
        args = (LU, pivots, B.expand_as(X), X, X.contiguous(), left, False)
        assert [*map(layout, aten_backend.lu_solve_vjp(*args))] == [*map(layout, ops.lu_solve_vjp(*args))]


@fake_cuda
def test_the_operator_that_reads_values_stays_out_of_cuda_graphs():
    with FakeTensorMode(), pytest.raises(DataDependentOutputException):
        ops.Check.run(torch.empty(3, device="cuda", dtype=torch.int32), "lu", on_cuda=True)
    operators = (ops.factor, ops.vjp, ops.jvp, ops.curvature, ops.mixed, ops.permutation, ops.check)
    assert [op for op in operators if torch.Tag.cudagraph_unsafe in op.tags] == [ops.check]
