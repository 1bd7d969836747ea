"""Second derivatives in every nesting of forward and reverse mode, beside PyTorch's own functions."""

import pytest
import torch
from torch._dynamo.exc import TorchDynamoException
from torch.func import hessian, jacfwd, jacrev, vmap

import triton_lu

INNER = {"reverse": jacrev, "forward": jacfwd}
OUTER = INNER
n = 4


B = torch.randn(n, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

OURS = {
    "lu": lambda A: triton_lu.lu(A)[0].diagonal().abs().log().sum(),
    "lu_solve": lambda A: triton_lu.linalg.lu_solve(*triton_lu.linalg.lu_factor(A), B).square().sum(),
    "det": triton_lu.linalg.det,
    "slogdet": lambda A: triton_lu.linalg.slogdet(A).logabsdet,
    "solve": lambda A: triton_lu.linalg.solve(A, B).square().sum(),
}
PYTORCHS = {
    "det": torch.linalg.det,
    "slogdet": lambda A: torch.linalg.slogdet(A).logabsdet,
    "solve": lambda A: torch.linalg.solve(A, B).square().sum(),
}


def error(function, inner, outer):
    """Of the Hessian, relative to differences of gradients."""
    A = torch.randn(n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    gradient, h = torch.func.grad(function), 1e-5
    steps = h * torch.eye(n * n, dtype=torch.float64).view(n * n, n, n)
    exact = torch.stack([(gradient(A + E) - gradient(A - E)) / (2 * h) for E in steps], -1).view(n, n, n, n)
    return float((OUTER[outer](INNER[inner](function))(A) - exact).norm() / exact.norm())


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", OURS)
def test_ours_are_right(name, inner, outer):
    assert error(OURS[name], inner, outer) < 1e-7


def of_a_batch(function, inner, outer):
    """How far second derivatives under vmap are from those of every matrix, relative to these."""
    A = torch.randn(3, n, n, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    derivative = OUTER[outer](INNER[inner](function))
    expected = torch.stack([derivative(matrix) for matrix in A])
    return float((vmap(derivative)(A) - expected).norm() / expected.norm())


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("inner", INNER)
@pytest.mark.parametrize("name", OURS)
def test_ours_are_right_in_batches(name, inner, outer):
    assert of_a_batch(OURS[name], inner, outer) < 1e-12


@pytest.mark.parametrize("name", ["slogdet", "solve"])
def test_pytorchs_are_wrong_in_batches_in_the_other_nesting_too(name):
    """Its lu_solve reads other matrices; see `triton_lu.systems`. Failing, this says that PyTorch has mended that."""
    assert of_a_batch(PYTORCHS[name], "reverse", "forward") > 0.1


@pytest.mark.parametrize("outer", OUTER)
@pytest.mark.parametrize("name", PYTORCHS)
def test_pytorchs_are_wrong_where_forward_mode_is_the_inner_one(name, outer):
    """Failing, this says that PyTorch has mended its issues 192540, 192521, 196696, 196697: the README is to say so."""
    assert error(PYTORCHS[name], "reverse", outer) < 1e-7
    assert error(PYTORCHS[name], "forward", outer) > 0.1


def test_compiled_under_vmap():
    """One nesting is PyTorch's to mend: when that fails to fail, docs/limits.md is to say so."""

    def log_determinant(A):
        return triton_lu.lu(A, get_infos=True)[0].diagonal().abs().log().sum()

    A = torch.randn(3, n, n, dtype=torch.float64)
    expected = vmap(hessian(log_determinant))(A)
    compiled = torch.compile(vmap(jacrev(jacfwd(log_determinant))), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(A), expected)
    with pytest.raises(TorchDynamoException, match="INTERNAL ASSERT FAILED"):
        torch.compile(vmap(hessian(log_determinant)), backend="aot_eager", fullgraph=True)(A)
