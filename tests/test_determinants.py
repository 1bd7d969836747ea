"""`linalg.slogdet`, `det` and `logdet` where they are more than PyTorch's, and their derivatives of every order.

That samples of PyTorch's own tests pass is in `test_opinfo.py`.
"""

import pytest
import torch
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, jvp, vmap
from torch.testing import assert_close

import triton_lu
from tests.support.nestings import SECOND

slogdet, det, logdet = triton_lu.linalg.slogdet, triton_lu.linalg.det, triton_lu.linalg.logdet


def matrix(*shape, dtype=torch.float64):
    return torch.randn(shape, dtype=dtype)


def adjugate(A):
    """By minors, without a division."""
    n = A.shape[-1]
    C = torch.empty_like(A)
    for i in range(n):
        for j in range(n):
            rows, columns = [k for k in range(n) if k != i], [k for k in range(n) if k != j]
            C[j, i] = (-1) ** (i + j) * by_laplace(A[rows][:, columns])
    return C


def by_laplace(A):
    """The determinant, expanded along the first row."""
    n = len(A)
    if n == 0:
        return torch.ones((), dtype=A.dtype)
    return sum((-1) ** j * A[0, j] * by_laplace(A[1:, [k for k in range(n) if k != j]]) for j in range(n))


def second_of_log(A):
    """∂²log|det A| / ∂A_ij ∂A_kl = -X_jk X_li, X = A⁻¹."""
    X = torch.linalg.inv(A)
    return -torch.einsum("jk,li->ijkl", X, X)


def second_of_det(A):
    X = torch.linalg.inv(A)
    return torch.linalg.det(A) * (torch.einsum("ji,lk->ijkl", X, X) - torch.einsum("jk,li->ijkl", X, X))


@pytest.mark.parametrize("mode", SECOND)
@pytest.mark.parametrize(
    ("function", "expected"),
    [(lambda A: slogdet(A).logabsdet, second_of_log), (det, second_of_det)],
    ids=["log", "det"],
)
def test_second_derivatives(mode, function, expected):
    A = matrix(4, 4)
    assert_close(SECOND[mode](function)(A), expected(A))


def test_third_derivatives_in_every_mode():
    A = matrix(3, 3)
    for function in (lambda A: slogdet(A).logabsdet, det):
        expected = jacrev(jacrev(jacrev(function)))(A)
        for mode in SECOND.values():
            assert_close(jacfwd(mode(function))(A), expected)


def test_jvp_of_jvp():
    """-tr(A⁻¹ E A⁻¹ E) = -2/3 where A⁻¹ E is the cyclic exchange of 1 and 1/3."""
    A, E = torch.eye(2, dtype=torch.float64), torch.tensor([[0.0, 1.0], [1 / 3, 0.0]], dtype=torch.float64)
    first = lambda A: jvp(lambda A: slogdet(A).logabsdet, (A,), (E,))[1]  # noqa: E731
    assert_close(jvp(first, (A,), (E,))[1].item(), -2 / 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("function", [slogdet, det, lambda A: logdet(A @ A)], ids=["slogdet", "det", "logdet"])
def test_gradients(function, dtype):
    A = matrix(2, 4, 4, dtype=dtype).requires_grad_()
    assert gradcheck(function, A, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True)
    assert gradgradcheck(function, A, check_fwd_over_rev=True)


def test_vmapped_hessians():
    A = matrix(5, 3, 3)
    expected = torch.stack([second_of_log(a) for a in A])
    assert_close(vmap(hessian(lambda A: slogdet(A).logabsdet))(A), expected)


def singular_matrices():
    """By name, all of 5×5."""
    rank_4 = matrix(5, 5)
    rank_4[4] = 0
    middle = matrix(5, 5)
    middle[:, 2] = 0
    first = matrix(5, 5)
    first[:, 0] = 0
    two_zeros = matrix(5, 5).triu()
    two_zeros[1, 1] = two_zeros[3, 3] = 0
    rank_3 = matrix(5, 5)
    rank_3[:, 1] = rank_3[:, 3] = 0
    integers = torch.tensor(
        [[1.0, 2, 0, 1, 2], [0, 1, 1, 0, 1], [2, 0, 1, 1, 0], [1, 1, 1, 2, 1], [1, 3, 1, 1, 3]], dtype=torch.float64
    )
    return {
        "last row": rank_4,
        "middle column": middle,
        "first column": first,
        "two zeros on the diagonal": two_zeros,
        "two zero columns": rank_3,
        "integers": integers,
        "shift": torch.ones(4, dtype=torch.float64).diag(1),
        "zero": torch.zeros(5, 5, dtype=torch.float64),
        "ones": torch.ones(5, 5, dtype=torch.float64),
        "regular": matrix(5, 5),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_the_gradient_of_det_is_the_adjugate(dtype):
    """Also of singular matrices, in one batch with a regular one."""
    matrices = singular_matrices()
    A = torch.stack([*matrices.values()]).to(dtype)
    if dtype.is_complex:
        A = A * torch.tensor([1, 1j, 1 + 1j, 2, -1j], dtype=dtype)
    A.requires_grad_()
    (ours,) = grad(det(A), A, torch.ones(len(A), dtype=dtype))
    wide = torch.complex128 if dtype.is_complex else torch.float64
    expected = torch.stack([adjugate(a).mH for a in A.detach().to(wide)])
    assert_close(ours.to(wide), expected, rtol=0, atol=1e3 * torch.finfo(dtype).eps)
    E = matrix(*A.shape, dtype=dtype)
    tangent = jvp(det, (A.detach(),), (E,))[1]
    assert_close(tangent, (expected.conj().to(dtype) * E).sum((-2, -1)), rtol=0, atol=1e4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("neighbour", [0.0, 1e30, 1e-30, torch.inf, torch.nan])
def test_no_matrix_changes_the_bits_of_another(neighbour, dtype):
    A = matrix(9, 6, 6, dtype=dtype)
    among = torch.cat([torch.full_like(A[:1], neighbour).tril(), A[1:]])
    results = []
    for batch in (A, among):
        batch.requires_grad_()
        values = det(batch)
        results.append((values[1:], grad(values, batch, torch.ones_like(values))[0][1:]))
    assert all(map(torch.equal, *results))


@pytest.mark.parametrize("n", [6, 40])
def test_a_matrix_has_the_same_determinant_in_a_batch(n):
    A = matrix(2, n, n)
    assert torch.equal(torch.stack([*map(det, A)]), det(A))


@pytest.mark.parametrize("value", [1e-40, 0.0, 3e38])
def test_the_gradient_of_a_number_is_one(value):
    A = torch.tensor([[value]], requires_grad=True)
    assert grad(det(A), A)[0].item() == 1


@pytest.mark.parametrize("n", [1, 2, 3])
def test_the_gradient_of_det_at_zero(n):
    A = torch.zeros(n, n, requires_grad=True)
    assert grad(det(A), A)[0].tolist() == torch.full((n, n), float(n == 1)).tolist()


def test_second_derivatives_of_det_are_nan_where_it_is_singular():
    """And right in the rest of the batch."""
    A = torch.stack([matrix(3, 3), torch.ones(3, 3, dtype=torch.float64), matrix(3, 3)])
    for mode in SECOND.values():
        second = vmap(mode(det))(A)
        assert second[1].isnan().all()
        for i in (0, 2):
            assert_close(second[i], second_of_det(A[i]))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("n", [6, 200, 1000])
def test_det_does_not_overflow_on_its_way(n, dtype):
    exponent = 100 if dtype.to_real() == torch.float32 else 900
    powers = torch.tensor([2.0**exponent, 2.0**-exponent], dtype=torch.float64)
    A = powers.repeat_interleave(n // 2).to(dtype).diag()
    A[0, 0] *= -3
    A[[0, 1]] = A[[1, 0]]
    assert det(A).item() == 3
    assert not torch.linalg.det(A).isfinite()


def test_det_over_and_underflows_where_it_must():
    values = {1e30: torch.inf, 1e-30: 0.0}
    for scale, expected in values.items():
        assert det(scale * torch.eye(5)).item() == expected
    assert det(torch.tensor([1e38, 2.0]).diag()).item() == pytest.approx(2e38)
    assert det(torch.tensor([0.0, 1e30, 1e30, 1e30]).diag()).item() == 0
    assert det(torch.tensor([torch.nan, 1e30, 1e30]).diag()).isnan()


@pytest.mark.parametrize("function", [slogdet, det, logdet])
def test_singular_and_empty_values_are_those_of_torch(function):
    theirs = torch.logdet if function is logdet else getattr(torch.linalg, function.__name__)
    for A in (torch.zeros(2, 3, 3), torch.ones(3, 3), torch.ones(3, 3, dtype=torch.complex64), torch.ones(2, 0, 0)):
        assert_close(function(A), theirs(A), equal_nan=True)
    assert_close(logdet(-torch.eye(3)), torch.tensor(torch.nan), equal_nan=True)


def test_a_singular_matrix_leaves_the_gradients_of_others_alone():
    A = matrix(3, 4, 4)
    A[1] = 1
    A.requires_grad_()
    (ours,) = grad(slogdet(A).logabsdet.sum(), A)
    for i in (0, 2):
        assert_close(ours[i], torch.linalg.inv(A.detach()[i]).mT)
    (theirs,) = grad(torch.linalg.slogdet(A).logabsdet.sum(), A)
    assert not ours[1].isfinite().any()
    assert not theirs[1].isfinite().all()


def test_the_laplacian_of_a_slater_determinant():
    """Forward over reverse mode, as in quantum Monte Carlo: of log|det φ_j(x_i)|, φ_j(x) = exp(-|x - c_j|²)."""
    x, c = matrix(4, 3), matrix(4, 3)

    def log_wave(x, functions=triton_lu.linalg):
        return functions.slogdet((-(x[:, None] - c).square().sum(-1)).exp()).logabsdet

    def laplacian(f):
        gradient = jacrev(f)
        return sum(
            jvp(gradient, (x,), (e.view(4, 3),))[1].flatten()[i] for i, e in enumerate(torch.eye(12, dtype=x.dtype))
        )

    expected = torch.autograd.functional.hessian(lambda x: log_wave(x, torch.linalg), x).reshape(12, 12).trace()
    assert_close(laplacian(log_wave), expected)
    assert_close(jacfwd(jacfwd(log_wave))(x).reshape(12, 12).trace(), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_halves(dtype):
    A = matrix(3, 3).to(dtype).requires_grad_()
    for function in (lambda A: slogdet(A).logabsdet, det):
        value = function(A)
        assert value.dtype == torch.float32
        (ours,) = grad(value, A)
        wide = A.detach().float().requires_grad_()
        assert ours.dtype == dtype
        assert torch.equal(ours, grad(function(wide), wide)[0].to(dtype))


def test_out():
    A = matrix(2, 3, 3)
    sign, logabsdet = torch.empty(2, dtype=A.dtype), torch.empty(2, dtype=A.dtype)
    result = slogdet(A, out=(sign, logabsdet))
    assert result.sign is sign
    assert_close(logabsdet, torch.linalg.slogdet(A).logabsdet)
    assert det(A, out=sign) is sign
    assert_close(sign, torch.linalg.det(A))


@pytest.mark.parametrize("name", ["slogdet", "det", "logdet", "inv", "inv_ex"])
def test_errors(name):
    function = getattr(triton_lu.linalg, name)
    for error, A in (
        (TypeError, [[1.0]]),
        (RuntimeError, torch.ones(3)),
        (RuntimeError, torch.ones(2, 3)),
        (NotImplementedError, torch.ones(2, 2, dtype=torch.int64)),
        (NotImplementedError, torch.eye(2).to_sparse()),
        (NotImplementedError, torch.nested.nested_tensor([torch.eye(2), torch.eye(3)])),
    ):
        with pytest.raises(error, match=rf"^`linalg\.{name}` expects"):
            function(A)
