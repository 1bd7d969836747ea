"""`override` and `install`: PyTorch's own functions run on this package, and no derivative is lost."""

import os
import subprocess
import sys
import threading
import warnings
from contextlib import nullcontext

import pytest
import torch
from torch._dynamo.testing import CompileCounter
from torch.autograd import forward_ad, grad
from torch.func import hessian, jacfwd, jacrev, jvp, vmap
from torch.linalg import lu_factor as imported_before
from torch.utils.checkpoint import checkpoint

import triton_lu
from triton_lu._version import __version__
from triton_lu.bench.timing import peak_bytes

FUNCTIONS = {
    "torch.linalg.lu_factor": lambda A: torch.linalg.lu_factor(A).LU,
    "torch.linalg.lu_factor_ex": lambda A: torch.linalg.lu_factor_ex(A).LU,
    "torch.linalg.lu": lambda A: torch.cat(torch.linalg.lu(A)[1:], -1),
    "torch.lu": lambda A: torch.lu(A)[0],
    "torch.Tensor.lu": lambda A: A.lu()[0],
    "torch.linalg.lu_solve": lambda A: torch.linalg.lu_solve(*packed(A), A.mT, left=False, adjoint=True),
    "torch.lu_solve": lambda A: torch.lu_solve(A.mT, *packed(A)),
    "torch.Tensor.lu_solve": lambda A: A.mT.lu_solve(*packed(A)),
    "torch.linalg.slogdet": lambda A: torch.linalg.slogdet(A).logabsdet,
    "torch.slogdet": lambda A: torch.slogdet(A).logabsdet,
    "torch.logdet": torch.logdet,
    "torch.Tensor.slogdet": lambda A: A.slogdet().logabsdet,
    "torch.Tensor.logdet": lambda A: A.logdet(),
    "torch.linalg.det": torch.linalg.det,
    "torch.det": torch.det,
    "torch.Tensor.det": lambda A: A.det(),
    "torch.linalg.solve": lambda A: torch.linalg.solve(A, A.sin()),
    "torch.linalg.solve_ex": lambda A: torch.linalg.solve_ex(A, A[..., 0].sin())[0],
    "torch.linalg.inv": torch.linalg.inv,
    "torch.linalg.inv_ex": lambda A: torch.linalg.inv_ex(A).inverse,
    "torch.inverse": torch.inverse,
    "torch.Tensor.inverse": lambda A: A.inverse(),
}
every_function = pytest.mark.parametrize("name", FUNCTIONS)
every_operator = pytest.mark.parametrize("name", [name for name in FUNCTIONS if name.startswith("torch.linalg")])


def packed(A):
    """Without pivoting, so that LU may be factored itself."""
    return A, torch.arange(1, A.shape[-1] + 1, dtype=torch.int32).expand(A.shape[:-1])


def matrix(*shape):
    return torch.randn(shape, dtype=torch.float64) + 4 * torch.eye(shape[-1], dtype=torch.float64)


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch.lu and torch.lu_solve are deprecated
        yield
    triton_lu.uninstall()


@pytest.fixture
def installed():
    triton_lu.install()


def runs_here(function, A):
    """Whether `function` reaches the operators of this package."""
    with torch.profiler.profile() as profile:
        function(A)
    return any(event.name.startswith("triton_lu::") for event in profile.events())


# Values and derivatives of every replaced function, for `override` and `install` alike


@pytest.fixture(params=["override", "install"])
def taken_over(request):
    if request.param == "install":
        triton_lu.install()
    return triton_lu.override if request.param == "override" else nullcontext


@every_function
def test_replaced_and_equal_to_torch(name, taken_over):
    A, function = matrix(3, 4, 4).requires_grad_(), FUNCTIONS[name]
    triton_lu.uninstall()
    expected = function(A)
    assert not runs_here(function, A)
    if taken_over is nullcontext:
        triton_lu.install()
    with taken_over():
        assert runs_here(function, A)
        ours = function(A)
    torch.testing.assert_close(ours, expected)


SECOND = {"hessian", "forward over forward", "reverse over forward", "vmap of hessian"}
TRANSFORMS = {
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "forward over forward": lambda f: jacfwd(jacfwd(f)),
    "reverse over forward": lambda f: jacrev(jacfwd(f)),
    "vmap of hessian": lambda f: vmap(hessian(f)),
    "vmap": vmap,
    "vmap of jacrev": lambda f: vmap(jacrev(f)),
    "jvp": lambda f: lambda A: jvp(f, (A,), (A.sin(),))[1],
}


@every_operator
@pytest.mark.parametrize("transform", TRANSFORMS)
def test_every_derivative(name, transform, taken_over):
    A, function = matrix(2, 3, 3), TRANSFORMS[transform](FUNCTIONS[name])
    with taken_over():
        ours = function(A)
    triton_lu.uninstall()
    if transform in SECOND:  # PyTorch's are right in reverse over reverse mode alone
        batched, second = vmap if transform.startswith("vmap") else lambda f: f, jacrev(jacrev(FUNCTIONS[name]))
        function = batched(second)
    expected = function(A)
    assert expected.abs().max() > 1e-3
    torch.testing.assert_close(ours, expected)


@every_function
def test_autograd_and_forward_mode(name, taken_over):
    A, E, function = matrix(3, 4, 4).requires_grad_(), matrix(3, 4, 4), FUNCTIONS[name]
    with taken_over():
        value = function(A)
        with forward_ad.dual_level():
            tangent = forward_ad.unpack_dual(function(forward_ad.make_dual(A.detach(), E))).tangent
    assert value.requires_grad
    first = grad(value.sin().sum(), A, create_graph=True)[0]
    second = grad(first.sin().sum(), A)[0]
    triton_lu.uninstall()
    expected_first = grad(function(A).sin().sum(), A, create_graph=True)[0]
    torch.testing.assert_close(first, expected_first)
    torch.testing.assert_close(second, grad(expected_first.sin().sum(), A)[0])
    torch.testing.assert_close(tangent, jvp(function, (A.detach(),), (E,))[1])


@pytest.mark.parametrize(
    ("name", "backend"),
    [*((name, "aot_eager") for name in FUNCTIONS), ("torch.linalg.lu_factor", "inductor")],
)
def test_compiled(name, backend, taken_over):
    A, function = matrix(3, 4, 4).requires_grad_(), FUNCTIONS[name]
    with taken_over():
        compiled = torch.compile(function, backend=backend, fullgraph=True)
        value = compiled(A)
        (ours,) = grad(value.sin().sum(), A)
        assert runs_here(compiled, A)
    triton_lu.uninstall()
    torch.testing.assert_close(value, function(A))
    torch.testing.assert_close(ours, grad(function(A).sin().sum(), A)[0])


def names(result):
    """Of a named tuple."""
    return {
        name
        for name in ("P", "L", "U", "LU", "pivots", "info", "sign", "logabsdet", "result", "inverse")
        if hasattr(result, name)
    }


def test_results_are_the_tuples_of_torch(taken_over):
    A = matrix(3, 4, 4)
    calls = (
        lambda: torch.linalg.lu_factor(A),
        lambda: torch.linalg.lu_factor_ex(A),
        lambda: torch.linalg.lu(A),
        lambda: torch.lu(A),
        lambda: torch.lu(A, get_infos=True),
        lambda: A.lu(True, True),
        lambda: torch.linalg.slogdet(A),
        lambda: A.slogdet(),
        lambda: torch.linalg.solve_ex(A, A),
        lambda: torch.linalg.inv_ex(A),
    )
    with taken_over():
        ours = [call() for call in calls]
    triton_lu.uninstall()
    for result, call in zip(ours, calls, strict=True):
        expected = call()
        assert names(result) >= names(expected)
        for x, y in zip(result, expected, strict=True):
            assert torch.equal(x, y)
            assert x.stride() == y.stride()


def test_singular_matrices_raise_where_they_do_in_torch(taken_over):
    A = torch.zeros(3, 3, requires_grad=True)
    with taken_over():
        for function in (torch.linalg.lu_factor, lambda A: torch.linalg.lu_factor_ex(A, check_errors=True)):
            with pytest.raises(RuntimeError, match=r"lu_factor.*U\[1, ?1\]"):
                function(A)
        for function in (torch.lu, torch.Tensor.lu, torch.linalg.lu, torch.linalg.lu_factor_ex):
            assert runs_here(function, A)


def outcome(function, *args, **kwargs):
    """The result, or the type and text of the error."""
    try:
        return [x.clone() for x in function(*args, **kwargs)]
    except Exception as error:
        return type(error), str(error)


@pytest.mark.parametrize(
    "A", [[[1.0]], torch.eye(2).half(), torch.eye(2).bfloat16(), torch.ones(2, 2, dtype=torch.int8)], ids=str
)
@pytest.mark.parametrize("function", [torch.linalg.lu_factor_ex, torch.linalg.lu, torch.lu])
def test_what_torch_does_not_take_is_left_to_it(function, A, taken_over):
    with taken_over():
        ours = outcome(function, A)
    triton_lu.uninstall()
    assert ours == outcome(function, A)


def test_out_is_left_to_torch(taken_over):
    A = matrix(3, 4, 4)
    out = tuple(torch.empty_like(x) for x in torch.linalg.lu_factor_ex(A))
    solution = torch.empty_like(A)
    with taken_over():
        assert not runs_here(lambda A: torch.linalg.lu_factor_ex(A, out=out), A)
        assert not runs_here(lambda A: torch.lu_solve(A, *packed(A), out=solution), A)
        assert runs_here(lambda A: torch.lu(A, out=None), A.clone().requires_grad_())
        with pytest.raises(RuntimeError, match=r"out=\.\.\. arguments don't support automatic differentiation"):
            torch.linalg.lu_factor_ex(A.requires_grad_(), out=out)
    assert torch.equal(out[0], torch.linalg.lu_factor_ex(A.detach()).LU)


def test_checkpointing(taken_over):
    A = matrix(4, 4).requires_grad_()
    with taken_over():
        (ours,) = grad(checkpoint(lambda A: torch.lu(A)[0].sin().sum(), A, use_reentrant=False), A)
    triton_lu.uninstall()
    torch.testing.assert_close(ours, grad(torch.lu(A)[0].sin().sum(), A)[0])


@pytest.mark.parametrize("kind", ["lu", "slogdet", "det", "solve", "inv"])
@pytest.mark.parametrize("how", ["override", "install"])
def test_only_what_is_asked_for(kind, how):
    A = matrix(3, 3).requires_grad_()
    context = triton_lu.override(only=[kind]) if how == "override" else nullcontext(triton_lu.install(only=[kind]))
    with context:
        found = {name for name, function in FUNCTIONS.items() if runs_here(function, A)}
    of_kind = {
        "lu": {name for name in FUNCTIONS if ".lu" in name},
        "slogdet": {name for name in FUNCTIONS if "logdet" in name},
        "det": {name for name in FUNCTIONS if name.endswith(".det")},
        "solve": {"torch.linalg.solve", "torch.linalg.solve_ex"},
        "inv": {name for name in FUNCTIONS if ".inv" in name},
    }
    assert found == of_kind[kind]


@pytest.mark.parametrize("function", [triton_lu.override, triton_lu.install])
@pytest.mark.parametrize("only", ["lu", ["lu", "qr"]])
def test_only_what_there_is(function, only):
    with pytest.raises(ValueError, match="expects only to be a collection of 'lu', 'slogdet', 'det', 'solve', 'inv'"):
        function(only=only)


@pytest.mark.parametrize(
    "function",
    [torch.linalg.slogdet, torch.linalg.det, torch.logdet, torch.linalg.inv, lambda A: torch.linalg.solve(A, A)],
)
def test_what_is_not_square_is_an_error(function, taken_over):
    for A in (matrix(3, 3)[:2].requires_grad_(), torch.ones(3, requires_grad=True)):
        with taken_over(), pytest.raises(RuntimeError):
            function(A)


def test_singular_systems_raise_where_they_do_in_torch(taken_over):
    A = torch.zeros(3, 3, requires_grad=True)
    with taken_over():
        for function in (
            torch.linalg.inv,
            lambda A: torch.linalg.solve(A, A),
            lambda A: torch.linalg.inv_ex(A, check_errors=True),
        ):
            with pytest.raises(torch.linalg.LinAlgError, match="singular"):
                function(A)
        assert torch.linalg.inv_ex(A).info == torch.linalg.solve_ex(A, A).info == 1


# override


def test_calls_are_counted_by_name():
    A = matrix(4, 4)
    with triton_lu.override() as override:
        for function in FUNCTIONS.values():
            function(A)
        imported_before(A)
        torch.linalg.cholesky_ex(A)
        torch.lu_unpack(*packed(A))
    assert override.calls == {**dict.fromkeys(FUNCTIONS, 1), "torch.linalg.lu_factor": 2}


def test_out_by_position_is_left_to_torch():
    A = matrix(3, 4, 4)
    out = tuple(torch.empty_like(x) for x in torch.linalg.lu_factor_ex(A))
    with triton_lu.override() as override:
        torch.lu(A, True, True, out)
    assert not override.calls
    assert torch.equal(out[0], triton_lu.lu(A)[0])


def test_nests_and_ends_with_the_block():
    A = matrix(3, 3)
    outer, inner = triton_lu.override(), triton_lu.override()
    with outer:
        torch.linalg.lu_factor(A)
        with inner:
            torch.linalg.lu_factor(A)
        with outer:
            torch.linalg.lu_factor(A)
    with pytest.raises(ValueError, match="on purpose"), outer:
        raise ValueError("on purpose")
    assert not runs_here(torch.linalg.lu_factor, A)
    assert (outer.calls.total(), inner.calls.total()) == (2, 1)


def test_decorator():
    override = triton_lu.override()

    @override
    def function(A, n):
        """Calls itself."""
        return torch.linalg.lu_factor(A).LU + (function(A, n - 1) if n else 0)

    function(matrix(3, 3), 2)
    assert override.calls == {"torch.linalg.lu_factor": 3}
    assert function.__doc__ == "Calls itself."


def test_holds_for_its_thread_only():
    A, found = matrix(3, 3), []
    with triton_lu.override() as override:
        thread = threading.Thread(target=lambda: found.append(torch.linalg.lu_factor(A)))
        thread.start()
        thread.join()
    assert found
    assert not override.calls


def test_subclasses_that_handle_functions_themselves_are_left_to_do_so():
    class Answers(torch.Tensor):
        @classmethod
        def __torch_function__(cls, func, types, args=(), kwargs=None):
            return "mine"

    with triton_lu.override() as override:
        assert torch.linalg.lu_factor(matrix(3, 3).as_subclass(Answers)) == "mine"
        torch.linalg.lu_factor(torch.nn.Parameter(matrix(3, 3)))
    assert override.calls.total() == 1


def test_meta_tensors_are_left_to_torch():
    with triton_lu.override() as override:
        assert torch.linalg.lu_factor_ex(torch.empty(2, 2, device="meta")).LU.device.type == "meta"
    assert not override.calls


def test_compiled_code_is_not_compiled_again():
    A = matrix(3, 3)
    counter = CompileCounter()

    @torch.compile(backend=counter, fullgraph=True)
    def enters(A):
        with triton_lu.override():
            return torch.linalg.lu_factor(A).LU

    for _ in range(3):
        assert torch.equal(enters(A), torch.linalg.lu_factor(A).LU)
    assert counter.frame_count == 1

    compiled = torch.compile(FUNCTIONS["torch.lu"], backend=counter, fullgraph=True)
    for _ in range(3):
        with triton_lu.override():
            compiled(A)
    assert counter.frame_count == 2
    assert not runs_here(compiled, A)  # outside the block: compiled again, and PyTorch's


@pytest.mark.parametrize("strict", [False, True])
def test_export(strict):
    class Module(torch.nn.Module):
        def forward(self, A):
            return torch.linalg.lu_factor_ex(A).LU

    with triton_lu.override():
        graph = torch.export.export(Module(), (matrix(3, 3),), strict=strict).graph
    assert any("triton_lu.factor" in str(node.target) for node in graph.nodes)


# install


def test_install_and_uninstall_any_number_of_times():
    A = matrix(3, 3).requires_grad_()
    tag = torch.compiler.config.cache_key_tag
    for _ in range(2):
        triton_lu.install(only=["lu", "det"])
        triton_lu.install()
        assert runs_here(torch.linalg.lu_factor, A)
        assert torch.compiler.config.cache_key_tag == f"{tag}[triton_lu.install {__version__}: det lu]"
        triton_lu.uninstall()
        triton_lu.uninstall()
        assert not runs_here(torch.linalg.lu_factor, A)
    assert torch.compiler.config.cache_key_tag == tag


@every_operator
def test_holds_for_what_was_traced_before(name):
    """Tracing remembers which key of an operator has a kernel."""
    A = matrix(3, 4, 4).requires_grad_()

    def compiled():
        torch._dynamo.reset()
        return torch.compile(FUNCTIONS[name], backend="aot_eager", fullgraph=True)

    assert not runs_here(compiled(), A)
    triton_lu.install()
    assert runs_here(compiled(), A)
    triton_lu.uninstall()
    assert not runs_here(compiled(), A)


def test_uninstall_in_another_thread_waits_for_install(monkeypatch):
    thread, right = threading.Thread(target=triton_lu.uninstall), torch.library.get_kernel

    def get_kernel(*args):
        if thread.ident is None:
            thread.start()
            thread.join(0.2)
        return right(*args)

    monkeypatch.setattr(torch.library, "get_kernel", get_kernel)
    triton_lu.install()
    thread.join()
    assert not runs_here(torch.linalg.lu_factor, matrix(3, 3).requires_grad_())


def test_uninstall_leaves_what_others_wrote_into_the_tag():
    with torch.compiler.config.patch(cache_key_tag="triton_lu and "):
        triton_lu.install()
        torch.compiler.config.cache_key_tag += " and mine"
        triton_lu.uninstall()
        assert torch.compiler.config.cache_key_tag == "triton_lu and  and mine"
        triton_lu.install()
        torch.compiler.config.cache_key_tag = "mine instead"
        triton_lu.uninstall()
        assert torch.compiler.config.cache_key_tag == "mine instead"


def test_install_holds_for_every_thread(installed):
    A, found = matrix(3, 3), []
    thread = threading.Thread(target=lambda: found.append(torch.linalg.lu_factor(A.requires_grad_()).LU.grad_fn))
    thread.start()
    thread.join()
    assert type(found[0]).__name__ == "FactorBackward"


@pytest.mark.parametrize("name", [name for name in FUNCTIONS if not name.endswith(".det")])
def test_install_leaves_what_is_not_differentiated(name, installed):
    A, function = matrix(3, 4, 4).requires_grad_(), FUNCTIONS[name]
    with torch.no_grad():
        assert not runs_here(function, A)
    assert not runs_here(function, A.detach())
    assert runs_here(function, A)
    with forward_ad.dual_level():
        assert runs_here(function, forward_ad.make_dual(A.detach(), A.detach()))


def test_install_keeps_what_torch_cannot_do_or_does_wrong(installed):
    """Without pivots on a CPU, batches of matrices that MKL factors in parallel, the choice of a backend."""
    assert runs_here(lambda A: torch.linalg.lu_factor_ex(A, pivot=False), matrix(3, 3))
    assert runs_here(torch.linalg.lu_factor_ex, matrix(2, 200, 200))
    with triton_lu.backend("triton"):
        assert runs_here(torch.linalg.lu_factor_ex, matrix(2, 4, 4))
    with pytest.raises(RuntimeError, match="2 or more dimensions"):
        torch.linalg.lu_factor_ex(torch.ones(3))


def test_install_leaves_inference_mode(installed):
    A = matrix(3, 3)
    with torch.inference_mode():
        assert not runs_here(torch.linalg.lu_factor, A)
        assert torch.equal(torch.linalg.lu_factor(A).LU, triton_lu.lu(A)[0])


@pytest.mark.parametrize("function", [torch.linalg.det, torch.linalg.inv, torch.linalg.slogdet, torch.linalg.solve])
def test_install_keeps_the_derivatives_of_other_operators(function):
    """Some of their backwards call the replaced operators."""
    triton_lu.install(only=["lu"])
    A = matrix(2, 3, 3).requires_grad_()

    def value(A):
        result = function(A, A.sin()) if function is torch.linalg.solve else function(A)
        return result[1] if isinstance(result, tuple) else result

    def first_and_second():
        (first,) = grad(value(A).sin().sum(), A, create_graph=True)
        return first, grad(first.sin().sum(), A)[0]

    ours = first_and_second()
    triton_lu.uninstall()
    for x, y in zip(ours, first_and_second(), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("operation", [torch.linalg.solve, lambda A, B: torch.linalg.slogdet(A)[1]])
def test_install_adds_no_memory_to_the_backwards_of_other_operators(operation):
    triton_lu.install(only=["lu"])
    A, B = matrix(40, 40).requires_grad_(), torch.randn(50, 40, 1, dtype=torch.float64)
    value = operation(A, B).sum()
    memory = [peak_bytes(lambda: grad(value, A, retain_graph=True))]
    assert not runs_here(lambda A: grad(value, A, retain_graph=True), A)
    triton_lu.uninstall()
    memory.append(peak_bytes(lambda: grad(value, A, retain_graph=True)))
    assert memory[0] == memory[1]


def test_graphs_outlive_uninstall(installed):
    A = matrix(3, 3).requires_grad_()
    LU = torch.linalg.lu_factor(A).LU
    triton_lu.uninstall()
    torch.testing.assert_close(grad(LU.sum(), A), grad(torch.linalg.lu_factor(A).LU.sum(), A))


def test_code_compiled_with_install_stays_out_of_the_caches_of_others(tmp_path):
    """On disk PyTorch knows compiled code by the graph before autograd, which does not show what is installed."""
    code = """
import sys, torch
if sys.argv[1] == "installed":
    import triton_lu
    triton_lu.install()
A = torch.eye(3, requires_grad=True)
torch.compile(lambda A: torch.linalg.lu_factor_ex(A).LU)(A).backward(torch.ones(3, 3))
print(A.grad.sum().item(), torch._dynamo.utils.counters["aot_autograd"]["autograd_cache_hit"])
"""
    environment = {**os.environ, "TORCH_COMPILE_CACHE_KEY_TAG": str(tmp_path)}  # nothing cached before this test
    outputs = [
        subprocess.run(
            [sys.executable, "-W", "ignore", "-c", code, mode],
            capture_output=True,
            text=True,
            check=True,
            env=environment,
        ).stdout.split()
        for mode in ("installed", "plain")
    ]
    assert outputs[0] == outputs[1] == ["9.0", "0"]
