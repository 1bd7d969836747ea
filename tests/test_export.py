"""torch.export and AOTInductor: programs that are written to files and run without their Python source."""

from io import BytesIO

import pytest
import torch
from torch.autograd import grad
from torch.export import Dim, export, load, save
from torch.fx.experimental.proxy_tensor import make_fx

import triton_lu
from tests.support.readme import examples

BATCH = ({0: Dim("batch")},)


class Factors(torch.nn.Module):
    def forward(self, A):
        return triton_lu.linalg.lu_factor_ex(A).LU.sin()


class Checked(torch.nn.Module):
    def forward(self, A):
        LU, pivots = triton_lu.lu(A)
        return LU.cos(), triton_lu.permutation(pivots, A.shape[-2])


def matrix(*shape):
    return torch.randn(shape, dtype=torch.float64).requires_grad_()


def test_an_exported_program_is_saved_loaded_and_differentiated():
    file = BytesIO()
    save(export(Factors(), (matrix(3, 4, 4).detach(),), dynamic_shapes=BATCH), file)
    program = load(BytesIO(file.getvalue())).module()
    for A in (matrix(3, 4, 4), matrix(5, 4, 4)):
        torch.testing.assert_close(program(A), Factors()(A))
        ours, theirs = (grad(f(A).square().sum(), A, create_graph=True)[0] for f in (program, Factors()))
        torch.testing.assert_close(ours, theirs)
        ours, theirs = (grad(g.square().sum(), A)[0] for g in (ours, theirs))
        torch.testing.assert_close(ours, theirs)


class Solution(torch.nn.Module):
    def __init__(self, left, adjoint):
        super().__init__()
        self.equation = {"left": left, "adjoint": adjoint}

    def forward(self, LU, pivots, B):
        return triton_lu.linalg.lu_solve(LU, pivots, B, **self.equation)


def system(batch, batch_of_B, n):
    LU, pivots = torch.linalg.lu_factor(torch.randn(*batch, n, n, dtype=torch.float64))
    return LU, pivots, torch.randn(*batch_of_B, n, n, dtype=torch.float64)


BATCHES_OF_SYSTEMS = ([True, True, True], [True, True, False], [False, False, True])


@pytest.mark.parametrize("batched", BATCHES_OF_SYSTEMS, ids=str)
@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("left", [False, True])
@pytest.mark.parametrize("adjoint", [False, True])
def test_solutions_of_any_batch(left, adjoint, strict, batched):
    def example(size):
        return system((size,) if batched[0] else (), (size,) if batched[2] else (), 4)

    dynamic = tuple({0: Dim("batch")} if dim else None for dim in batched)
    module = Solution(left, adjoint)
    program = export(module, example(3), dynamic_shapes=dynamic, strict=strict).module()
    for size in (2, 7):
        problem = example(size)
        torch.testing.assert_close(program(*problem), module(*problem))


@pytest.mark.parametrize("batched", BATCHES_OF_SYSTEMS, ids=str)
@pytest.mark.parametrize("left", [False, True])
def test_symbolic_traces_of_solutions_hold_for_any_shape(left, batched):
    """Of values, gradients and tangents."""

    def example(size, n):
        return system((size,) if batched[0] else (), (size,) if batched[2] else (), n)

    value = Solution(left, False)

    def gradients(LU, pivots, B):
        return torch.func.grad(lambda LU, B: value(LU, pivots, B).square().sum(), argnums=(0, 1))(LU, B)

    def tangent(LU, pivots, B):
        return torch.func.jvp(lambda LU, B: value(LU, pivots, B), (LU, B), (LU.sin(), B.cos()))[1]

    for function in (value, gradients, tangent):
        graph = make_fx(function, tracing_mode="symbolic")(*example(3, 4))
        problem = example(5, 6)
        torch.testing.assert_close(graph(*problem), function(*problem))


def test_an_exported_program_checks_for_singular_matrices():
    program = export(Checked(), (matrix(3, 4, 4).detach(),), dynamic_shapes=BATCH).module()
    with pytest.raises(torch.linalg.LinAlgError, match=r"batch element 0: U\[1, 1\]"):
        program(torch.zeros(2, 4, 4, dtype=torch.float64))


def saved(program):
    file = BytesIO()
    torch.jit.save(program, file)
    return torch.jit.load(BytesIO(file.getvalue()))


class Twice(torch.nn.Module):
    def __init__(self, traced):
        super().__init__()
        self.traced = traced

    def forward(self, A, times: int = 2):
        for _ in range(times):
            _ = self.traced(A)
        return A


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    "use",
    [lambda f: f, saved, torch.jit.freeze, lambda f: torch.jit.script(Twice(f))],
    ids=["traced", "saved", "frozen", "scripted"],
)
@pytest.mark.parametrize(
    "function",
    [
        triton_lu.lu,
        lambda A: tuple(triton_lu.linalg.lu_factor(A)),
        lambda A: triton_lu.linalg.lu_factor_ex(A, check_errors=True)[0],
        triton_lu.override()(lambda A: torch.linalg.lu_factor(A)[0]),
    ],
    ids=["lu", "lu_factor", "lu_factor_ex", "override"],
)
def test_a_traced_program_checks_for_singular_matrices(function, use):
    """In TorchScript, where an operator without results is kept only if it says that its effects are not known."""
    A = torch.randn(3, 4, 4)
    program = use(torch.jit.trace(Called(function).eval(), A))
    for B in (A, A + 1):
        program(B)
    for _ in range(3):  # the second run optimizes the graph
        with pytest.raises(
            RuntimeError, match=r"batch element 0: U\[1, 1\] .* is exactly zero: the matrix is singular"
        ):
            program(torch.zeros(3, 4, 4))


class Called(torch.nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, A):
        return self.function(A)


def test_aot_inductor(tmp_path, monkeypatch):
    """The example of the README: a gradient as a library for any batch, which calls the operators of this process."""
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, "triton_lu": triton_lu, "A": matrix(3, 4, 4).detach()}
    for example in examples("Compiled and exported"):
        exec(example, names)
    run, loss = names["run"], names["loss"]
    for batch in (3, 7):
        A = matrix(batch, 4, 4).detach()
        torch.testing.assert_close(run(A), torch.func.grad(loss)(A))
    if torch.__version__ >= "2.13":  # programs compiled by PyTorch 2.11 print the errors of operators and go on
        with pytest.raises(RuntimeError, match="singular"):
            run(torch.zeros(2, 4, 4, dtype=torch.float64))
