"""float16 and bfloat16, and autocast: LU and its derivatives in float32, gradients in the dtype of A."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, grad
from torch.func import jacfwd, jacrev, jvp, vmap

import triton_lu

HALVES = (torch.float16, torch.bfloat16)
FACTORIZATIONS = {
    "lu": lambda A: triton_lu.lu(A)[0],
    "lu without pivoting": lambda A: triton_lu.lu(A, pivot=False)[0],
    "linalg.lu_factor": lambda A: triton_lu.linalg.lu_factor(A).LU,
    "linalg.lu_factor_ex": lambda A: triton_lu.linalg.lu_factor_ex(A).LU,
    "linalg.lu": lambda A: torch.cat(triton_lu.linalg.lu(A), -1),
}
every_half = pytest.mark.parametrize("dtype", HALVES, ids=str)
every_factorization = pytest.mark.parametrize("name", FACTORIZATIONS)


def matrix(*shape, dtype=torch.float32):
    return (torch.randn(shape) + 3 * torch.eye(*shape[-2:])).to(dtype)


def factor(A):
    return triton_lu.linalg.lu_factor_ex(A).LU


@every_half
@every_factorization
def test_a_half_is_factored_in_single_precision(name, dtype):
    function, A = FACTORIZATIONS[name], matrix(3, 5, 5, dtype=dtype)
    half, single = A.clone().requires_grad_(), A.float().requires_grad_()
    ours, expected = function(half), function(single)
    assert torch.equal(ours, expected)
    assert ours.dtype == torch.float32
    G = torch.randn_like(ours)
    (gradient,) = grad(ours, half, G)
    assert gradient.dtype == dtype
    assert torch.equal(gradient, grad(expected, single, G)[0].to(dtype))


@every_half
def test_forward_mode(dtype):
    A, E = matrix(4, 4, dtype=dtype), matrix(4, 4, dtype=dtype)
    expected = jvp(factor, (A.float(),), (E.float(),))[1]
    assert torch.equal(jvp(factor, (A,), (E,))[1], expected)
    with forward_ad.dual_level():
        assert torch.equal(forward_ad.unpack_dual(factor(forward_ad.make_dual(A, E))).tangent, expected)


@every_half
@pytest.mark.parametrize(
    "transform",
    [vmap, jacrev, jacfwd, lambda f: vmap(jacrev(f)), lambda f: jacfwd(jacrev(f)), lambda f: jacfwd(jacfwd(f))],
)
def test_transforms(transform, dtype):
    """The last conversion of a derivative is to the dtype of A, all else is single precision."""
    A = matrix(2, 3, 3, dtype=dtype)
    torch.testing.assert_close(
        transform(factor)(A), transform(factor)(A.float()), rtol=torch.finfo(dtype).eps, atol=1e-2, check_dtype=False
    )


@every_half
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled(backend, dtype):
    A = matrix(3, 4, 4, dtype=dtype).requires_grad_()
    compiled = torch.compile(factor, backend=backend, fullgraph=True)(A)
    assert torch.equal(compiled, factor(A))
    G = torch.randn_like(compiled)
    ours, expected = (grad(LU, A, G)[0] for LU in (compiled, factor(A)))
    assert ours.dtype == dtype
    assert torch.equal(ours, expected)


@every_half
def test_solve(dtype):
    A, B = matrix(3, 4, 4, dtype=dtype), torch.randn(3, 4, 2, dtype=dtype, requires_grad=True)
    LU, pivots, _ = triton_lu.linalg.lu_factor_ex(A)
    X = triton_lu.linalg.lu_solve(LU, pivots, B)
    assert torch.equal(X, triton_lu.linalg.lu_solve(LU, pivots, B.float()))
    assert (X.dtype, grad(X.sum(), B)[0].dtype) == (torch.float32, dtype)


def test_other_dtypes_raise_and_name_those_that_do_not():
    with pytest.raises(NotImplementedError, match=r"expects a matrix of float16, bfloat16, float32.*; got torch.int8"):
        triton_lu.lu(torch.ones(2, 2, dtype=torch.int8))


# Autocast. 40×40 matrices, so that the derivatives consist of products that it would convert


def first(A, G):
    return grad(factor(A), A, G)[0]


def second(A, G):
    return grad(grad(factor(A), A, G, create_graph=True)[0].sin().abs().sum(), A)[0]


def third(A, G):
    X = factor(A)
    for _ in range(3):
        X = grad(X, A, G, create_graph=True)[0].sin()
    return X


def second_of_jvp(A, G):
    return grad(jvp(factor, (A,), (G,))[1].sin().abs().sum(), A)[0]


COMPUTATIONS = {
    "factorization": lambda A, G: factor(A),
    "elimination": lambda A, G: triton_lu.lu(A, pivot=False)[0],
    "backward": first,
    "forward mode": lambda A, G: jvp(factor, (A,), (G,))[1],
    "reverse over reverse": second,
    "reverse over forward": second_of_jvp,
    "third derivative": third,
    "forward over reverse": lambda A, G: jvp(lambda A: torch.func.vjp(factor, A)[1](G)[0], (A,), (G,))[1],
    "forward over forward": lambda A, G: jvp(lambda A: jvp(factor, (A,), (G,))[1], (A,), (G,))[1],
    "solve": lambda A, G: triton_lu.linalg.lu_solve(*triton_lu.lu(A), G),
    "backward of solve": lambda A, G: grad(triton_lu.linalg.lu_solve(*triton_lu.lu(A), G), A, G)[0],
    "forward mode of solve": lambda A, G: jvp(lambda A: triton_lu.linalg.lu_solve(*triton_lu.lu(A), G), (A,), (G,))[1],
}


@every_half
@pytest.mark.parametrize("name", COMPUTATIONS)
@pytest.mark.parametrize("wide", [torch.float32, torch.float64, torch.complex64], ids=str)
def test_autocast_leaves_wider_dtypes_alone(name, wide, dtype):
    A = (torch.randn(40, 40, dtype=wide) + 8 * torch.eye(40)).requires_grad_()
    G = torch.randn(40, 40, dtype=wide)
    expected = COMPUTATIONS[name](A, G)
    with torch.autocast("cpu", dtype):
        assert (A @ A).dtype == (dtype if wide == torch.float32 else wide)  # it is on
        ours = COMPUTATIONS[name](A, G)
    assert ours.dtype == wide
    assert torch.equal(ours, expected)


@every_half
def test_autocast_of_a_network(dtype):
    """A layer whose output is half: the gradient goes through it to the single precision of the weights."""
    layer, x = torch.nn.Linear(6, 6, bias=False), torch.randn(4, 6, 6)
    with torch.autocast("cpu", dtype):
        y = layer(x)
        LU, _ = triton_lu.lu(y)
        LU.sum().backward()
    assert (y.dtype, LU.dtype, layer.weight.grad.dtype) == (dtype, torch.float32, torch.float32)
    (G,) = grad(triton_lu.lu(y.float())[0].sum(), y)
    expected = G.flatten(0, -2).T.float() @ x.flatten(0, -2)
    torch.testing.assert_close(layer.weight.grad, expected, rtol=0.05, atol=0.05 * expected.abs().max().item())


@every_half
def test_operators_convert_halves_under_autocast(dtype):
    LU, pivots, _ = torch.ops.triton_lu.factor(matrix(3, 4, 4))
    X = torch.randn(3, 4, 4, dtype=dtype)
    with torch.autocast("cpu", dtype):
        assert torch.ops.triton_lu.factor(X)[0].dtype == torch.float32
        for op in (torch.ops.triton_lu.vjp, torch.ops.triton_lu.jvp):
            assert torch.equal(op(LU, pivots, X), op(LU, pivots, X.float()))
        solve = torch.ops.triton_lu.lu_solve
        assert torch.equal(solve(LU, pivots, X, True, False), solve(LU, pivots, X.float(), True, False))


def test_autocast_of_cuda_tensors():
    """On fake tensors: the dtypes of the CUDA branch."""
    torch.set_autocast_enabled("cuda", True)  # torch.autocast would not, without a GPU
    try:
        _check_dtypes_of_cuda_tensors()
    finally:
        torch.set_autocast_enabled("cuda", False)


def _check_dtypes_of_cuda_tensors():
    with FakeTensorMode():
        A = torch.empty(3, 4, 4, device="cuda", dtype=torch.float16)
        LU, pivots, _ = torch.ops.triton_lu.factor(A)
        assert LU.dtype == torch.float32
        assert torch.ops.triton_lu.vjp(LU, pivots, A).dtype == torch.float32
        assert triton_lu.lu(A, get_infos=True)[0].dtype == torch.float32
        assert torch.ops.triton_lu.factor(A.double())[0].dtype == torch.float64


@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_autocast_of_compiled_code(backend):
    A = matrix(2, 40, 40).requires_grad_()
    compiled = torch.compile(lambda A: factor(A @ A), backend=backend, fullgraph=True)
    with torch.autocast("cpu", torch.bfloat16):
        ours, expected = compiled(A), factor(A @ A)
    torch.testing.assert_close(ours, expected)
    torch.testing.assert_close(grad(ours.sum(), A), grad(expected.sum(), A), rtol=1e-2, atol=1e-2)


def test_autocast_inside_compiled_code():
    def function(A):
        with torch.autocast("cpu", torch.bfloat16):
            return factor(A @ A)

    A = matrix(2, 40, 40)
    compiled = torch.compile(function, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(A), function(A))
