"""The same errors under every transform, copies of results, modes of autograd, threads."""

import copy
import pickle
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from torch.autograd import forward_ad, grad
from torch.func import jacfwd, jacrev, jvp, vjp, vmap

import triton_lu

HERE = {
    "lu": lambda A: triton_lu.lu(A)[0],
    "linalg.lu_factor": lambda A: triton_lu.linalg.lu_factor(A).LU,
    "linalg.lu_factor_ex": lambda A: triton_lu.linalg.lu_factor_ex(A, check_errors=True).LU,
}
every_function = pytest.mark.parametrize("name", HERE)


def matrix(*shape):
    return torch.randn(shape, dtype=torch.float64) + 3 * torch.eye(shape[-1], dtype=torch.float64)


def error(function, *args):
    with pytest.raises(Exception) as raised:  # noqa: PT011
        function(*args)
    return raised.type, str(raised.value)


def in_dual_level(function):
    def run(A):
        with forward_ad.dual_level():
            function(forward_ad.make_dual(A, A))

    return run


def with_backward(function):
    return lambda A: function(A.clone().requires_grad_()).sum().backward()


# Errors

TRANSFORMS = {
    "autograd": with_backward,
    "grad": lambda f: torch.func.grad(lambda A: f(A).sum()),
    "vjp": lambda f: lambda A: vjp(f, A),
    "jvp": lambda f: lambda A: jvp(f, (A,), (A,)),
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "jacfwd of jacrev": lambda f: jacfwd(jacrev(f)),
    "forward AD": in_dual_level,
    "vmap": lambda f: lambda A: vmap(f)(A[None]),
    "vmap of grad": lambda f: lambda A: vmap(torch.func.grad(lambda A: f(A).sum()))(A[None]),
    "vmap over the last dimension": lambda f: lambda A: vmap(f, in_dims=-1)(A[..., None]),
    "no_grad": torch.no_grad(),
    "inference_mode": torch.inference_mode(),
    "compile": lambda f: torch.compile(f, backend="aot_eager"),
    "compile of grad": lambda f: torch.compile(torch.func.grad(lambda A: f(A).sum()), backend="aot_eager"),
    "compile of vmap": lambda f: torch.compile(lambda A: vmap(f)(A[None]), backend="aot_eager"),
    "autocast": lambda f: torch.autocast("cpu", torch.bfloat16)(f),
    "override": lambda f: triton_lu.override()(f),
}


@every_function
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_bad_shape_and_dtype(name, transform):
    torch._dynamo.reset()
    function, A = HERE[name], matrix(3, 3)
    for bad in (lambda A: function(A[0]), lambda A: function(A.long()).double(), lambda A: function(A.shape)):
        assert error(TRANSFORMS[transform](bad), A) == error(bad, A)


@every_function
@pytest.mark.parametrize("transform", [name for name in TRANSFORMS if "vmap" not in name])
def test_singular(name, transform):
    """vmap adds to the batch that the message names: see the next test."""
    torch._dynamo.reset()
    A = matrix(3, 4, 4)
    A[1, :, 2] = 0
    expected = error(HERE[name], A)
    assert expected[0] is torch.linalg.LinAlgError
    assert error(TRANSFORMS[transform](HERE[name]), A) == expected


@every_function
@pytest.mark.parametrize(
    "transform",
    [
        lambda f: vmap(vmap(f)),
        lambda f: vmap(f),
        lambda f: lambda A: vmap(f, in_dims=1)(A.movedim(0, 1)),
        lambda f: lambda A: vmap(vmap(f), in_dims=-1)(A.movedim(0, -1)),
        lambda f: vmap(vmap(torch.func.grad(lambda A: f(A).sum()))),
        lambda f: vmap(lambda A: jvp(f, (A,), (A,))),
        lambda f: torch.compile(vmap(f), backend="aot_eager", fullgraph=True),
        lambda f: torch.compile(vmap(vmap(f)), backend="inductor", fullgraph=True),
    ],
)
def test_singular_under_vmap(name, transform):
    """The message counts the dimensions that vmap took away."""
    torch._dynamo.reset()
    A = matrix(2, 3, 4, 4)
    A[1, 2, :, 2] = 0
    assert "batch element (1, 2): U[3, 3]" in error(HERE[name], A)[1]
    assert error(transform(HERE[name]), A) == error(HERE[name], A)


@every_function
def test_regular_under_vmap(name):
    A = matrix(3, 2, 4, 4)
    for function in (vmap(HERE[name]), vmap(HERE[name], in_dims=1, out_dims=1)):
        assert torch.equal(function(A), HERE[name](A))
        assert torch.equal(torch.compile(function, backend="aot_eager", fullgraph=True)(A), HERE[name](A))


# Copies


@pytest.mark.parametrize(
    "function",
    [triton_lu.lu, *(getattr(triton_lu.linalg, name) for name in ("lu_factor", "lu_factor_ex", "lu"))],
)
@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_results_can_be_copied(function, duplicate):
    result = function(matrix(3, 5, 5))
    copied = duplicate(result)
    assert type(copied) is type(result)
    for x, y in zip(copied, result, strict=True):
        assert torch.equal(x, y)
        assert x.stride() == y.stride()


def test_functions_can_be_pickled():
    for function in (triton_lu.lu, triton_lu.permutation, triton_lu.linalg.lu_factor, triton_lu.linalg.lu_solve):
        assert pickle.loads(pickle.dumps(function)) is function


@pytest.mark.parametrize("shape", [(4, 4), (600, 4, 4), (3, 40, 40), (150, 150)], ids=str)
def test_copy_on_write_clones_stay_what_they_are(shape):
    """No operator takes a pointer to write with: that would copy what is only read."""
    A, X = matrix(*shape), matrix(*shape)
    LU, pivots, _ = triton_lu.lu(A, get_infos=True)
    ops = torch.ops.triton_lu
    calls = [(ops.factor, (A,)), (ops.factor, (A, False)), (ops.permutation, (pivots, shape[-2]))]
    calls += [(op, (LU, pivots, X)) for op in (ops.vjp, ops.jvp, ops.curvature, ops.mixed)]
    for equation in ((True, False), (False, False), (True, True)):
        calls += [(ops.lu_solve, (LU, pivots, X, *equation)), (ops.lu_solve, (LU, pivots, X[None], *equation))]
        calls.append((ops.lu_solve_vjp, (LU, pivots, X, A, X, *equation)))
    for op, args in calls:
        clones = [torch._lazy_clone(x) if isinstance(x, torch.Tensor) else x for x in args]
        op(*clones)
        assert all(torch._C._is_cow_tensor(x) for x in clones if isinstance(x, torch.Tensor)), op
    G = torch._lazy_clone(X)
    grad(triton_lu.lu(A.requires_grad_())[0], A, G)
    assert torch._C._is_cow_tensor(G)


# Modes


def test_inference_mode():
    A = matrix(3, 4, 4).requires_grad_()
    expected = triton_lu.lu(A)[0]
    with torch.inference_mode():
        LU, pivots = triton_lu.lu(A)
        X = triton_lu.linalg.lu_solve(LU, pivots, A)
        inside = matrix(3, 4, 4)
    assert (LU.is_inference(), LU.requires_grad, X.requires_grad) == (True, False, False)
    assert torch.equal(LU, expected)
    assert torch.equal(triton_lu.lu(inside)[0], torch.linalg.lu_factor(inside).LU)


def test_no_grad_and_enable_grad():
    A = matrix(3, 4, 4).requires_grad_()
    with torch.no_grad():
        assert not triton_lu.lu(A)[0].requires_grad
        assert not triton_lu.linalg.lu_solve(*triton_lu.lu(A), A).requires_grad
        with torch.enable_grad():
            (inside,) = grad(triton_lu.lu(A)[0].sum(), A)
    assert torch.equal(inside, grad(triton_lu.lu(A)[0].sum(), A)[0])


@pytest.mark.parametrize("wrap", [lambda f: f, lambda f: torch.compile(f, backend="aot_eager", fullgraph=True)])
def test_requires_grad_may_change_between_calls(wrap):
    torch._dynamo.reset()
    function, A = wrap(HERE["lu"]), matrix(3, 4, 4)
    expected = triton_lu.lu(A)[0]
    for requires_grad in (False, True, False, True):
        A.requires_grad_(requires_grad)
        LU = function(A)
        assert torch.equal(LU, expected)
        assert LU.requires_grad == requires_grad
        if requires_grad:
            assert grad(LU.sum(), A)[0].abs().sum() > 0


def test_released_graphs():
    A = matrix(4, 4).requires_grad_()
    LU = triton_lu.lu(A)[0]
    LU.sum().backward(retain_graph=True)
    LU.sum().backward()
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        LU.sum().backward()


def test_hooks_and_anomaly_mode():
    A = matrix(4, 4).requires_grad_()
    expected = grad(triton_lu.lu(A)[0].sum(), A)[0]
    with torch.autograd.graph.save_on_cpu(), torch.autograd.detect_anomaly(check_nan=True):
        LU = triton_lu.lu(A)[0]
        LU.register_hook(lambda G: 2 * G)
        LU.retain_grad()
        LU.sum().backward()
    assert torch.equal(LU.grad, torch.full_like(LU, 2))
    torch.testing.assert_close(A.grad, 2 * expected)
    with torch.autograd.detect_anomaly(), pytest.raises(RuntimeError, match=r"FactorBackward.*nan"):
        triton_lu.lu(A * 0, get_infos=True)[0].sum().backward()


@pytest.mark.parametrize("shape", [(5, 5), (300, 4, 4), (2, 70, 70)], ids=str)
def test_defaults_of_the_process(shape):
    """Default dtype and device, deterministic algorithms: nothing is created by default."""
    A = matrix(*shape).requires_grad_()

    def results():
        LU, pivots = triton_lu.lu(A)
        (first,) = grad(LU.sum(), A, create_graph=True)
        X = triton_lu.linalg.lu_solve(LU, pivots, A)
        return LU, pivots, triton_lu.permutation(pivots, shape[-1]), X, first, grad(first.sum(), A)[0]

    expected = results()
    torch.use_deterministic_algorithms(True)
    torch.set_default_dtype(torch.float16)
    try:
        with torch.device("meta"):
            changed = results()
    finally:
        torch.set_default_dtype(torch.float32)
        torch.use_deterministic_algorithms(False)
    for x, y in zip(changed, expected, strict=True):
        assert torch.equal(x, y)


# Threads


@pytest.mark.parametrize("shape", [(4, 4), (600, 4, 4), (3, 40, 40), (150, 150)], ids=str)
def test_forward_and_backward_in_several_threads(shape):
    threads, barrier = 4, Barrier(4)
    matrices = [matrix(*shape) for _ in range(threads)]

    def derivatives(A):
        A = A.clone().requires_grad_()
        (first,) = grad(triton_lu.lu(A)[0].sin().sum(), A, create_graph=True)
        return first, grad(first.sum(), A)[0]

    def run(A):
        barrier.wait()
        return [derivatives(A) for _ in range(5)]

    expected = [derivatives(A) for A in matrices]
    with ThreadPoolExecutor(threads) as pool:
        for runs, alone in zip(pool.map(run, matrices), expected, strict=True):
            for together in runs:
                for x, y in zip(together, alone, strict=True):
                    assert torch.equal(x, y)


def test_one_graph_differentiated_in_several_threads():
    A = matrix(3, 8, 8).requires_grad_()
    LU = triton_lu.lu(A)[0]
    cotangents = [torch.randn_like(LU) for _ in range(8)]
    expected = [grad(LU, A, G, retain_graph=True)[0] for G in cotangents]
    with ThreadPoolExecutor(4) as pool:
        gradients = pool.map(lambda G: grad(LU, A, G, retain_graph=True)[0], cotangents)
        assert all(map(torch.equal, gradients, expected))


def test_override_and_autocast_of_one_thread_do_not_reach_another():
    A, barrier = matrix(40, 40).float(), Barrier(2)
    expected = triton_lu.lu(A, pivot=False)[0]

    def plain():
        barrier.wait()
        results = [torch.linalg.lu_factor(A).LU.grad_fn for _ in range(20)]
        barrier.wait()
        return results

    def changed():
        with triton_lu.override() as override, torch.autocast("cpu", torch.bfloat16):
            barrier.wait()
            results = [triton_lu.lu(A, pivot=False)[0] for _ in range(20)]
            barrier.wait()
            return override.calls.total(), results

    with ThreadPoolExecutor(2) as pool:
        one, other = pool.submit(plain), pool.submit(changed)
        assert one.result() == [None] * 20
        calls, results = other.result()
    assert calls == 0
    assert all(torch.equal(LU, expected) for LU in results)
