"""The kernel of solutions, under Triton's interpreter, against solutions in double precision."""

import pytest
import torch

import triton_lu
from tests.support.assertions import same_bits
from tests.support.factorizations import DTYPES, batch_of
from tests.support.layouts import by_column, by_matrix, by_row, sliced
from tests.support.matrices import IRREGULAR, REGULAR, any_pivots
from triton_lu import aten_backend, backend, plan, reference, triton_backend

SIZES = [(1, 1), (2, 3), (3, 1), (4, 4), (7, 2), (8, 5), (16, 1), (13, 6), (20, 2), (32, 1)]


def run(LU, pivots, B, left=True, adjoint=False):
    with backend("triton"):
        return triton_backend.lu_solve(LU, pivots, B, left, adjoint)


def problem(A, k, left=True):
    LU, pivots, _ = torch.linalg.lu_factor_ex(A)
    *batch, n, _ = A.shape
    return LU, pivots, torch.randn(*batch, *((n, k) if left else (k, n)), dtype=A.dtype)


def assert_agrees(X, LU, pivots, B, left=True, adjoint=False):
    """A small residual, row by row: |B - A X| <= n eps |L| |U| |X|, or likewise."""
    L, U = reference.factors(LU)
    P = reference.permutation_matrix(pivots, LU.shape[-1], L.dtype)
    A, scale = P @ L @ U, P.abs() @ (L.abs() @ U.abs())
    A, scale = (A.mH, scale.mT) if adjoint else (A, scale)
    X, B = reference.double(X), reference.double(B)
    product, bound = (A @ X, scale @ X.abs()) if left else (X @ A, X.abs() @ scale)
    assert X.isfinite().all()
    assert ((product - B).abs() <= 16 * LU.shape[-1] * torch.finfo(LU.dtype).eps * bound).all()


@pytest.mark.parametrize("equation", [(True, False), (True, True), (False, False), (False, True)], ids=str)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [(1, 1), (4, 4), (5, 2), (9, 1)], ids=str)
def test_equations(size, dtype, equation):
    n, k = size
    args = problem(batch_of(REGULAR, n, n, dtype), k, equation[0])
    X = run(*args, *equation)
    assert_agrees(X, *args, *equation)
    assert X.stride() == aten_backend.lu_solve(*args, *equation).stride()


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_sizes(size, dtype):
    n, k = size
    args = problem(torch.randn(3, n, n, dtype=dtype), k)
    assert_agrees(run(*args), *args)


def test_more_columns_than_a_program_takes():
    args = problem(torch.randn(2, 5, 5, dtype=torch.complex128), 19)
    assert plan.kernel("lu_solve", 5, 19, torch.complex128).cols < 19
    assert_agrees(run(*args), *args)
    assert same_bits(run(*args[:2], args[2][..., 10:]), run(*args)[..., 10:])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("n", "dtype"), [(4, torch.float32), (7, torch.complex128)], ids=str)
def test_irregular_matrices_leave_their_neighbours_alone(n, dtype):
    """And a matrix gets the same bits in any batch."""
    LU, pivots, B = problem(batch_of(["gaussian"] * len(IRREGULAR), n, n, dtype), 2)
    irregular = torch.linalg.lu_factor_ex(batch_of(IRREGULAR, n, n, dtype))[:2]
    mixed = [torch.stack([x, y], dim=1).flatten(0, 1) for x, y in zip((*irregular, B), (LU, pivots, B), strict=True)]
    X = run(LU, pivots, B)
    assert torch.equal(run(*mixed)[1::2], X)
    assert torch.equal(run(LU[2:3], pivots[2:3], B[2:3]), X[2:3])


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_infinite_unknowns_leave_those_before_alone():
    """U of a singular matrix: what does not depend on the quotient by zero is right."""
    LU = torch.diag_embed(torch.tensor([[2.0, 0, 4]])) + torch.tensor([[0.0, 1, 0], [0, 0, 0], [0, 0, 0]])
    pivots = torch.arange(1, 4, dtype=torch.int32)[None]
    X = run(LU, pivots, torch.ones(1, 3, 1))
    assert not X[0, 1].isfinite()
    assert X[0, 2] == 0.25


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("layout", [by_row, by_column, by_matrix, sliced])
def test_strides(layout, left):
    LU, pivots, B = problem(torch.randn(3, 5, 5, dtype=torch.complex64), 3, left)
    for adjoint in (True, False):
        expected = run(LU, pivots, B, left, adjoint)
        assert same_bits(run(layout(LU), by_matrix(pivots), layout(B), left, adjoint), expected)
        one = [x[:1].expand_as(x) for x in (LU, pivots, B)]
        assert same_bits(run(*one, left, adjoint), expected[:1].expand_as(expected))


def test_any_pivots():
    """Also those that no factorization gives."""
    LU, _, B = problem(torch.randn(4, 6, 6, dtype=torch.float64), 2)
    pivots = any_pivots(4, k=6, m=6)
    for adjoint in (True, False):
        assert_agrees(run(LU, pivots, B, adjoint=adjoint), LU, pivots, B, adjoint=adjoint)


@pytest.mark.parametrize("shape", [(0, 4, 2), (3, 0, 2), (3, 4, 0)], ids=str)
def test_empty(shape):
    LU, pivots = torch.empty(*shape[:2], shape[1]), torch.empty(shape[:2], dtype=torch.int32)
    assert run(LU, pivots, torch.empty(shape)).shape == shape


@pytest.mark.parametrize("equation", [(True, False), (True, True), (False, False), (False, True)], ids=str)
def test_operator(equation, monkeypatch):
    """It runs the kernel where the batches are equal and the system is small; else ATen."""
    calls = []
    kernel = triton_backend.lu_solve_kernel
    solve = kernel.lu_solve
    monkeypatch.setattr(kernel, "lu_solve", lambda *args, **options: calls.append(args) or solve(*args, **options))
    LU, pivots, B = problem(torch.randn(3, 5, 5, dtype=torch.complex128), 2, equation[0])
    with backend("triton"):
        X = triton_lu.linalg.lu_solve(LU, pivots, B, left=equation[0], adjoint=equation[1])
        assert len(calls) == 1
        broadcast = triton_lu.linalg.lu_solve(LU[0], pivots[0], B, left=equation[0], adjoint=equation[1])
        for large in (problem(torch.randn(40, 40), 2), problem(torch.randn(20, 20), 17)):
            triton_lu.linalg.lu_solve(*large)
    assert len(calls) == 1
    assert_agrees(X, LU, pivots, B, *equation)
    torch.testing.assert_close(broadcast[:1], X[:1])


@pytest.mark.parametrize("adjoint", [False, True])
def test_derivatives(adjoint):
    LU, pivots, B = problem(torch.randn(2, 3, 3, dtype=torch.float64), 2)
    with backend("triton"):
        assert torch.autograd.gradcheck(
            lambda LU, B: triton_lu.linalg.lu_solve(LU, pivots, B, adjoint=adjoint),
            (LU.requires_grad_(), B.requires_grad_()),
        )
