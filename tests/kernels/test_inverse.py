"""The kernel of inverses, under Triton's interpreter, against inverses in double precision."""

from dataclasses import asdict

import pytest
import torch
from triton_lu_kernels import inverse

from tests.support.assertions import same_bits
from tests.support.factorizations import DTYPES, batch_of
from tests.support.layouts import by_column, by_matrix, by_row, sliced
from tests.support.matrices import IRREGULAR, REGULAR, any_pivots
from triton_lu import backend, plan, reference, triton_backend

SIZES = [(1, torch.float32), (2, torch.complex64), (3, torch.float64), (4, torch.complex128), (7, torch.float32)]
SIZES += [(8, torch.float64), (13, torch.complex64), (16, torch.complex128), (16, torch.float32)]
SIZES += [(17, torch.float64), (23, torch.complex128), (32, torch.float32), (32, torch.complex64)]


def run(LU, pivots, out=None):
    """The inverses by the kernel that is planned, many to a program up to 16 x 16."""
    n = LU.shape[-1]
    out = torch.full_like(LU, torch.nan) if out is None else out
    options = asdict(plan.kernel("inverse", n, n, LU.dtype))
    options |= {"matrices": 8 if n <= 16 else 1, "num_warps": 1}
    inverse.inverse_transpose(out.mT, LU, pivots, **options)
    return out


def factors(A):
    return torch.linalg.lu_factor_ex(A)[:2]


def exact(LU, pivots):
    L, U = reference.factors(LU)
    P = reference.permutation_matrix(pivots, LU.shape[-1], L.dtype)
    L_inverse = torch.linalg.solve_triangular(L, P.mT, upper=False, unitriangular=True)
    return torch.linalg.solve_triangular(U, L_inverse, upper=True)


def assert_agrees(X, LU, pivots):
    """Column by column within n eps |U^-1| |U| |U^-1| |L^-1| |L| |L^-1| P^T, what substitution guarantees."""
    n = LU.shape[-1]
    L, U = reference.factors(LU)
    P = reference.permutation_matrix(pivots, n, torch.float64)
    L_inverse, U_inverse = torch.linalg.inv(L).abs(), torch.linalg.inv(U).abs()
    bound = U_inverse @ U.abs() @ U_inverse @ L_inverse @ L.abs() @ L_inverse @ P.mT
    assert ((reference.double(X) - exact(LU, pivots)).abs() <= 4 * n * torch.finfo(LU.dtype).eps * bound).all()


@pytest.mark.parametrize(("n", "dtype"), SIZES, ids=str)
def test_zoo(n, dtype):
    args = factors(batch_of(REGULAR if n <= 16 else ["graded_rows", "wilkinson", "permutation", "huge"], n, n, dtype))
    assert_agrees(run(*args), *args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_inverses_of_torch(dtype):
    A = torch.randn(5, 6, 6, dtype=dtype)
    with backend("triton"):
        X = triton_backend.inverse(A, *factors(A), False)
    assert X.mT.is_contiguous()
    torch.testing.assert_close(X, torch.linalg.inv(A), rtol=1e-3, atol=1e4 * torch.finfo(dtype).eps)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize(("n", "dtype"), [(4, torch.float32), (7, torch.complex128), (18, torch.float64)], ids=str)
def test_irregular_matrices_leave_their_neighbours_alone(n, dtype):
    """And a matrix gets the same bits in any batch."""
    regular = batch_of(["gaussian"] * len(IRREGULAR), n, n, dtype)
    mixed = torch.stack([batch_of(IRREGULAR, n, n, dtype), regular], dim=1).flatten(0, 1)
    X = run(*factors(regular))
    assert torch.equal(run(*factors(mixed))[1::2], X)
    assert torch.equal(run(*(x[2:3] for x in factors(regular))), X[2:3])


@pytest.mark.parametrize("layout", [by_row, by_column, by_matrix, sliced])
@pytest.mark.parametrize(("n", "dtype"), [(4, torch.float32), (5, torch.complex64), (19, torch.float32)], ids=str)
def test_strides(n, dtype, layout):
    LU, pivots = factors(torch.randn(3, n, n, dtype=dtype))
    expected = run(LU, pivots)
    assert same_bits(run(layout(LU), pivots), expected)
    assert same_bits(run(LU, by_matrix(pivots)), expected)
    assert same_bits(run(LU, pivots, layout(torch.zeros_like(LU))), expected)
    one = [x[:1].expand_as(x) for x in (LU, pivots)]
    assert same_bits(run(*one), expected[:1].expand(3, -1, -1))


@pytest.mark.parametrize("n", [5, 20])
def test_output_written_only_where_it_should(n):
    LU, pivots = factors(torch.randn(3, n, n))
    out = sliced(LU, filler=7)
    expected = run(LU, pivots)
    assert same_bits(run(LU, pivots, out), expected)
    out.fill_(7)
    assert (out._base == 7).all()


@pytest.mark.parametrize("n", [6, 32])
def test_any_pivots(n):
    """Also those that no factorization gives."""
    LU, _ = factors(torch.randn(4, n, n, dtype=torch.float64))
    pivots = any_pivots(4, k=n, m=n)
    assert_agrees(run(LU, pivots), LU, pivots)


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 0)], ids=str)
def test_empty(shape):
    assert run(torch.empty(shape), torch.empty(shape[:-1], dtype=torch.int32)).shape == shape
