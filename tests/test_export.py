"""torch.export and AOTInductor: programs that are written to files and run without their Python source."""

from io import BytesIO

import pytest
import torch
from torch.autograd import grad
from torch.export import Dim, export, load, save

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
