"""`linalg.solve` and `inv` with their variants: derivatives of every order, and errors.

That samples of PyTorch's own tests pass is in `test_opinfo.py`.
"""

import pytest
import torch
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import jacfwd, jacrev, vmap
from torch.testing import assert_close

import triton_lu
from tests.support.nestings import SECOND

solve, solve_ex = triton_lu.linalg.solve, triton_lu.linalg.solve_ex
inv, inv_ex = triton_lu.linalg.inv, triton_lu.linalg.inv_ex


def matrix(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


def second_of_solution(A, b):
    """∂²x_i / ∂A_jk ∂A_lm = X_ij X_kl x_m + X_il X_mj x_k with X = A⁻¹, x = X b."""
    X = torch.linalg.inv(A)
    x = X @ b
    term = torch.einsum("ij,kl,m->ijklm", X, X, x)
    return term + term.permute(0, 3, 4, 1, 2)


@pytest.mark.parametrize("mode", SECOND)
def test_second_derivatives(mode):
    A, b = matrix(4, 4), matrix(4)
    expected = second_of_solution(A, b)
    assert_close(SECOND[mode](lambda A: solve(A, b))(A), expected)
    assert_close(SECOND[mode](lambda A: inv(A) @ b)(A), expected)


def test_third_derivatives_in_every_mode():
    A = matrix(2, 2)
    for function in (lambda A: solve(A, A.sin()), inv):
        expected = jacrev(jacrev(jacrev(function)))(A)
        for mode in SECOND.values():
            assert_close(jacfwd(mode(function))(A), expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize(
    ("batch", "shape", "left"),
    [
        ((), (3,), True),
        ((2,), (2, 3), True),
        ((2,), (3, 2), True),
        ((2,), (2, 3), False),
        ((), (2, 2, 3, 2), True),
        ((), (2, 2, 3), False),
        ((2, 1), (3, 3, 1), True),
        ((2,), (2, 0, 3), False),
    ],
    ids=str,
)
def test_gradients(batch, shape, left, dtype):
    """Of right-hand sides that broadcast, of vectors and none."""
    A, B = matrix(*batch, 3, 3, dtype=dtype).requires_grad_(), matrix(*shape, dtype=dtype).requires_grad_()
    function = lambda A, B: solve(A, B, left=left)  # noqa: E731
    right = B.unsqueeze(-1) if left and B.shape in ((3,), (*batch, 3)) else B
    X = function(A, B).reshape(torch.broadcast_shapes((*batch, 1, 1), right.shape))
    assert_close(A @ X if left else X @ A, right.expand_as(X))
    assert gradcheck(function, (A, B), check_forward_ad=True, check_batched_grad=True, fast_mode=True)
    assert gradgradcheck(function, (A, B), check_fwd_over_rev=True, fast_mode=True)


def test_vmap_over_one_argument_factorizes_once():
    A, B = matrix(3, 3), matrix(5, 3, 2)
    with torch.profiler.profile() as profile:
        X = vmap(solve, in_dims=(None, 0))(A, B)
    assert_close(X, torch.linalg.solve(A, B))
    (factorization,) = (event for event in profile.events() if event.name == "triton_lu::factor")
    assert factorization.count == 1


def test_arguments_may_be_overwritten():
    """The right-hand sides always, the matrix and the inverse's argument as in PyTorch."""
    A, B = matrix(3, 3).requires_grad_(), matrix(3, 2).requires_grad_()
    expected = grad(torch.linalg.solve(A, B).sum(), (A, B))
    b = B.clone()
    X = solve(A, b)
    with torch.no_grad():
        b.zero_()
    assert_close(grad(X.sum(), (A, B)), expected)
    a = A.clone()
    X = inv(a)
    with torch.no_grad():
        a.zero_()
    assert_close(grad(X.sum(), A), grad(torch.linalg.inv(A).sum(), A))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves(dtype):
    A, B = (matrix(3, 3).to(dtype).requires_grad_() for _ in range(2))
    a, b = (x.detach().float().requires_grad_() for x in (A, B))
    for ours, expected in ((inv(A), inv(a)), (solve(A, B), solve(a, b))):
        assert torch.equal(ours, expected)
        assert torch.equal(grad(ours.sum(), A)[0], grad(expected.sum(), a)[0].to(dtype))


def test_autocast():
    A, B = matrix(3, 3, dtype=torch.float32).requires_grad_(), matrix(3, 2, dtype=torch.float32)
    functions = (inv, lambda A: solve(A, B), lambda A: triton_lu.linalg.slogdet(A)[1], triton_lu.linalg.det)
    expected = [(function(A), jacfwd(function)(A), jacrev(function)(A)) for function in functions]
    with torch.autocast("cpu", torch.bfloat16):
        for function, results in zip(functions, expected, strict=True):
            assert_close((function(A), jacfwd(function)(A), jacrev(function)(A)), results)


def test_singular_matrices():
    A, B = torch.stack([torch.eye(3), torch.ones(3, 3)]), torch.ones(2, 3, 1)
    for function, name in ((inv, "inv"), (lambda A: solve(A, B), "solve")):
        with pytest.raises(torch.linalg.LinAlgError, match=rf"`linalg.{name}`: batch element 1: U\[2, 2\]"):
            function(A)
    for function, name in ((inv_ex, "inv_ex"), (lambda A, **how: solve_ex(A, B, **how), "solve_ex")):
        result, info = function(A)
        assert info.tolist() == [0, 2]
        assert_close(result[0], torch.eye(3) if name == "inv_ex" else B[0])
        with pytest.raises(torch.linalg.LinAlgError, match=rf"`linalg.{name}`"):
            function(A, check_errors=True)


def test_out():
    A, B = matrix(2, 3, 3), matrix(2, 3)
    X, info = torch.empty(0, dtype=A.dtype), torch.empty(0, dtype=torch.int32)
    assert solve(A, B, out=X) is X
    assert_close(X, torch.linalg.solve(A, B))
    assert inv_ex(A, out=(torch.empty_like(A), info)).info is info
    assert info.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("error", "A", "B", "left"),
    [
        (TypeError, [[1.0]], torch.ones(1), True),
        (TypeError, torch.eye(2), [1.0, 2.0], True),
        (TypeError, torch.eye(2), torch.ones(2), 1),
        (RuntimeError, torch.ones(3), torch.ones(3), True),
        (RuntimeError, torch.ones(2, 3), torch.ones(2), True),
        (RuntimeError, torch.eye(3), torch.tensor(1.0), True),
        (RuntimeError, torch.eye(3), torch.ones(4), True),
        (RuntimeError, torch.eye(3), torch.ones(3), False),
        (RuntimeError, torch.eye(3), torch.ones(3, 2), False),
        (RuntimeError, torch.eye(3), torch.ones(3).double(), True),
        (RuntimeError, torch.eye(3).expand(2, 3, 3), torch.ones(4, 3, 1), True),
        (NotImplementedError, torch.eye(3).long(), torch.ones(3).long(), True),
    ],
)
def test_errors(error, A, B, left):
    for function, name in ((solve, "solve"), (solve_ex, "solve_ex")):
        with pytest.raises(error, match=rf"^`linalg\.{name}` expects"):
            function(A, B, left=left)


def test_export():
    class Module(torch.nn.Module):
        def forward(self, A, B):
            return solve_ex(A, B).result, inv_ex(A).inverse, triton_lu.linalg.slogdet(A), triton_lu.linalg.det(A)

    batch = torch.export.Dim("batch", min=2)
    A, B = matrix(3, 4, 4), matrix(3, 4, 2)
    program = torch.export.export(Module(), (A, B), dynamic_shapes=({0: batch}, {0: batch}))
    A, B = matrix(7, 4, 4), matrix(7, 4, 2)
    assert_close(program.module()(A, B), Module()(A, B))


def test_the_likelihood_of_a_gaussian_process():
    """Its Hessian with respect to the parameters of the kernel, by forward over forward mode."""
    x, y = matrix(6), matrix(6)

    def likelihood(parameters, linalg=triton_lu.linalg):
        scale, length, noise = parameters.exp()
        K = scale * (-(x[:, None] - x).square() / length).exp() + noise * torch.eye(6, dtype=x.dtype)
        return 0.5 * (y @ linalg.solve(K, y) + linalg.slogdet(K).logabsdet)

    parameters = matrix(3)
    expected = torch.autograd.functional.hessian(lambda p: likelihood(p, torch.linalg), parameters)
    for mode in SECOND.values():
        assert_close(mode(likelihood)(parameters), expected)


def test_an_implicit_layer():
    """z = tanh(W z + x), whose gradient with respect to W is one more system (Bai, Kolter, Koltun)."""
    W, x = 0.3 * matrix(4, 4), matrix(4)

    def fixed_point(W):
        with torch.no_grad():
            z = torch.zeros(4, dtype=W.dtype)
            for _ in range(100):
                z = (W @ z + x).tanh()
        slope = 1 - z.square()
        return z + solve(torch.eye(4, dtype=W.dtype) - slope[:, None] * W, (W @ z + x).tanh() - z)

    def unrolled(W):
        z = torch.zeros(4, dtype=W.dtype)
        for _ in range(100):
            z = (W @ z + x).tanh()
        return z

    W.requires_grad_()
    assert_close(grad(fixed_point(W).square().sum(), W), grad(unrolled(W).square().sum(), W))
