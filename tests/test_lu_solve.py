"""`linalg.lu_solve`: values and errors beside torch.linalg, derivatives of every order."""

import warnings
from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import grad, gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, jvp, vmap

import triton_lu
from triton_lu import ops
from triton_lu.bench.timing import peak_bytes
from triton_lu.linalg import lu_solve

DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
BATCHES = (
    ((), ()),
    ((3,), (3,)),
    ((3,), ()),
    ((), (2, 3)),
    ((3, 1), (2,)),
    ((2,), (3, 1)),
    ((0,), ()),
    ((1,), (4,)),
    ((1,), (3, 1)),
    ((2, 1, 3), (4, 1)),
)
every_equation = pytest.mark.parametrize(("left", "adjoint"), list(product([True, False], repeat=2)))


def system(n, k, left=True, batch=(), batch_of_B=(), dtype=torch.float64):
    LU, pivots = torch.linalg.lu_factor(torch.randn(*batch, n, n, dtype=dtype))
    return LU, pivots, torch.randn(*batch_of_B, *((n, k) if left else (k, n)), dtype=dtype)


@every_equation
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("batch", "batch_of_B"), BATCHES, ids=str)
def test_values_are_those_of_torch(batch, batch_of_B, dtype, left, adjoint):
    tolerance = 1e-3 if torch.finfo(dtype).bits == 32 else 1e-9
    for n, k in ((5, 2), (1, 1), (4, 0), (0, 3), (0, 0), (40, 3)):
        problem = system(n, k, left, batch, batch_of_B, dtype)
        ours = lu_solve(*problem, left=left, adjoint=adjoint)
        theirs = torch.linalg.lu_solve(*problem, left=left, adjoint=adjoint)
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance)
        assert ours.stride() == theirs.stride()
        assert not ours.is_conj()


@every_equation
@pytest.mark.parametrize("view", [lambda x: x[:, None], lambda x: x[None].movedim(0, 1)], ids=["[:, None]", "movedim"])
def test_strides_of_single_matrices(view, left, adjoint):
    """Along a dimension of one matrix: PyTorch's takes that stride for the whole batch's."""
    problem = system(4, 4, left, (5,), (5,))
    X = lu_solve(*problem, left=left, adjoint=adjoint)
    torch.testing.assert_close(lu_solve(*map(view, problem), left=left, adjoint=adjoint), view(X), check_stride=False)
    LU, pivots, B = problem
    several = lu_solve(view(LU), view(pivots), B[None].expand(3, 5, 4, 4)[:, :, None], left=left, adjoint=adjoint)
    torch.testing.assert_close(several, view(X).expand_as(several), check_stride=False)
    inverse = ops.inverse(*map(view, (LU, LU, pivots)))
    torch.testing.assert_close(inverse, view(ops.inverse(LU, LU, pivots)), check_stride=False)


@every_equation
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize(("batch", "batch_of_B"), BATCHES, ids=str)
def test_traced_strides_are_the_real_ones(batch, batch_of_B, dtype, left, adjoint):
    for n, k in ((5, 2), (1, 1), (4, 0), (0, 3), (3, 1)):
        LU, pivots, B = system(n, k, left, batch, batch_of_B, dtype)
        X = lu_solve(LU, pivots, B, left=left, adjoint=adjoint)
        real = (X, *ops.lu_solve_vjp(LU, pivots, B.expand_as(X), X, X.clone(), left, adjoint))
        with FakeTensorMode() as mode:
            LU, pivots, B = map(mode.from_tensor, (LU, pivots, B))
            X = lu_solve(LU, pivots, B, left=left, adjoint=adjoint)
            traced = (X, *ops.lu_solve_vjp(LU, pivots, B.expand_as(X), X, X.clone(), left, adjoint))
        assert [(x.shape, x.stride()) for x in traced] == [(x.shape, x.stride()) for x in real]


@pytest.mark.parametrize("batch", [(), (1,), (2, 1)], ids=str)
@pytest.mark.parametrize("left", [True, False])
def test_LU_is_not_copied_for_a_batch_of_B(batch, left):
    """The dimensions of the batch that only B has are columns: no memory but for the solution and a copy of B."""
    LU, pivots, B = system(60, 2, left, batch, (*batch[:-1], 50))
    LU.requires_grad_()
    B.requires_grad_()
    size = B.numel() * B.itemsize
    assert peak_bytes(lambda: lu_solve(LU, pivots, B, left=left)) <= 2 * size
    if not batch:
        assert peak_bytes(lambda: vmap(lambda B: lu_solve(LU, pivots, B, left=left))(B)) <= 2 * size
        with triton_lu.override():
            assert peak_bytes(lambda: torch.linalg.lu_solve(LU, pivots, B, left=left)) <= 2 * size
    X = lu_solve(LU, pivots, B, left=left)
    gradients = peak_bytes(lambda: grad(X, (LU, B), torch.ones_like(X), retain_graph=True))
    assert gradients <= 10 * size + 4 * LU.numel() * LU.itemsize  # one copy of LU per right-hand side: 30 times B
    E = torch.ones_like(LU)
    change = peak_bytes(lambda: jvp(lambda LU: lu_solve(LU, pivots, B, left=left), (LU.detach(),), (E,)))
    assert change <= 10 * size + 4 * LU.numel() * LU.itemsize


@every_equation
def test_solves_the_equation(left, adjoint):
    A = torch.randn(3, 6, 6, dtype=torch.complex128)
    B = torch.randn(6, 6, dtype=torch.complex128)
    X = lu_solve(*triton_lu.lu(A), B, left=left, adjoint=adjoint)
    coefficients = A.mH if adjoint else A
    torch.testing.assert_close(coefficients @ X if left else X @ coefficients, B.expand(3, 6, 6))


def test_any_strides():
    LU, pivots, B = system(5, 4, batch=(3,), batch_of_B=(3,), dtype=torch.complex128)
    expected = torch.linalg.lu_solve(LU, pivots, B)
    strided = torch.empty(6, 5, 8, dtype=B.dtype)[::2, :, ::2].copy_(B)
    for same in (B.mT.contiguous().mT, strided, B.conj_physical().conj()):
        torch.testing.assert_close(lu_solve(LU.contiguous(), pivots, same), expected)


def test_singular_raises_nothing():
    A = torch.randn(2, 3, 3, dtype=torch.float64)
    A[1, :, 1] = 0
    LU, pivots, _ = triton_lu.linalg.lu_factor_ex(A)
    X = lu_solve(LU, pivots, torch.ones(3, 1, dtype=torch.float64))
    assert X[0].isfinite().all()
    assert not X[1].isfinite().all()


@every_equation
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize(("batch", "batch_of_B"), [((), ()), ((2,), ()), ((), (2,))], ids=str)
def test_gradcheck(batch, batch_of_B, dtype, left, adjoint):
    LU, pivots, B = system(3, 2, left, batch, batch_of_B, dtype)

    def solve(LU, B):
        return lu_solve(LU, pivots, B, left=left, adjoint=adjoint)

    problem = (LU.requires_grad_(), B.requires_grad_())
    assert gradcheck(
        solve, problem, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True, fast_mode=True
    )
    assert gradgradcheck(solve, problem, check_fwd_over_rev=True, check_batched_grad=True, fast_mode=True)


@every_equation
def test_gradient_is_that_of_torch(left, adjoint):
    """Through the factorization, and with respect to both triangles of LU."""
    A = torch.randn(3, 5, 5, dtype=torch.complex128, requires_grad=True)
    B = torch.randn(5, 5, dtype=torch.complex128, requires_grad=True)
    gradients = []
    for linalg in (triton_lu.linalg, torch.linalg):
        LU, pivots = linalg.lu_factor(A)
        X = linalg.lu_solve(LU, pivots, B, left=left, adjoint=adjoint)
        gradients.append(grad(X.abs().sum(), (A, B, LU)))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs)


NESTED = {
    "reverse over reverse": lambda f: jacrev(jacrev(f)),
    "reverse over forward": lambda f: jacrev(jacfwd(f)),
    "forward over reverse": lambda f: jacfwd(jacrev(f)),
    "forward over forward": lambda f: jacfwd(jacfwd(f)),
    "third, reverse": lambda f: jacrev(jacrev(jacrev(f))),
    "third, forward": lambda f: jacfwd(jacfwd(jacfwd(f))),
    "third, mixed": lambda f: jacrev(jacfwd(jacrev(f))),
    "jvp of jvp of grad": lambda f: lambda x: jvp(lambda x: jvp(jacrev(f), (x,), (x.sin(),))[1], (x,), (x.cos(),))[1],
}


@pytest.mark.parametrize("name", NESTED)
@pytest.mark.parametrize(("batch", "batch_of_B"), [((), ()), ((), (2,)), ((2,), ())], ids=str)
@every_equation
def test_derivatives_of_every_order(name, batch, batch_of_B, left, adjoint):
    """With respect to LU and B together, beside the reverse mode of dense products and inverses."""
    LU, pivots, B = system(2, 1, left, batch, batch_of_B)
    P = torch.lu_unpack(LU, pivots)[0]

    def ours(x):
        return lu_solve(
            x[: LU.numel()].view(LU.shape), pivots, x[LU.numel() :].view(B.shape), left=left, adjoint=adjoint
        )

    def dense(x):
        LU_, B_ = x[: LU.numel()].view(LU.shape), x[LU.numel() :].view(B.shape)
        A = P @ (LU_.tril(-1) + torch.eye(2, dtype=x.dtype)) @ LU_.triu()
        inverse = torch.linalg.inv(A.mT if adjoint else A)
        return inverse @ B_ if left else B_ @ inverse

    x = torch.cat([LU.flatten(), B.flatten()])
    if name == "jvp of jvp of grad":
        expected = torch.einsum("...jkl,k,l->...j", jacrev(jacrev(jacrev(dense)))(x), x.sin(), x.cos())
        expected += torch.einsum("...jk,k->...j", jacrev(jacrev(dense))(x), x.cos() * x.cos())
    else:
        expected = NESTED["third, reverse" if "third" in name else "reverse over reverse"](dense)(x)
    torch.testing.assert_close(NESTED[name](ours)(x), expected, rtol=1e-8, atol=1e-8)


def test_gradient_of_an_ill_conditioned_system():
    """With Y = L⁻¹ Pᵀ B, where the product U X would lose all digits."""
    n = 12
    A = torch.vander(torch.linspace(0.1, 1, n, dtype=torch.float64))
    LU, pivots = torch.linalg.lu_factor(A)
    B, G = torch.randn(n, 1, dtype=torch.float64), torch.randn(n, 1, dtype=torch.float64)
    X = lu_solve(LU.requires_grad_(), pivots, B)
    (gradient,) = grad(X, LU, G)
    order, factors = triton_lu.permutation(pivots, n), LU.detach()
    solve = torch.linalg.solve_triangular
    Y = solve(factors, B[order], upper=False, unitriangular=True)
    V = solve(factors.mT, G, upper=False)
    W = solve(factors.mT, V, upper=True, unitriangular=True)
    expected = -(W @ Y.mT).tril(-1) - (V @ X.detach().mT).triu()
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize(
    "transform",
    [
        jacrev,
        jacfwd,
        hessian,
        lambda f: jacfwd(jacfwd(f)),
        lambda f: jacrev(jacfwd(f)),
        vmap,
        lambda f: vmap(jacrev(f)),
        lambda f: vmap(f, in_dims=1, out_dims=-1),
    ],
)
def test_func_transforms(transform):
    """Of the solution of A X = I, whose derivatives are those of the inverse."""
    A = torch.randn(2, 2, 2, dtype=torch.float64)

    def inverse(A):
        return lu_solve(*triton_lu.lu(A, get_infos=True)[:2], torch.eye(A.shape[-1], dtype=A.dtype))

    torch.testing.assert_close(transform(inverse)(A), transform(torch.linalg.inv)(A), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, 0, None), (None, None, 0), (None, None, -1)])
def test_vmap_over_some_arguments(in_dims):
    LU, pivots, B = system(4, 3, batch=(5,), batch_of_B=(5,))
    if in_dims[0] is None:
        LU, pivots = LU[0], pivots[0]
    if in_dims[2] is None:
        B = B[0]
    ours, theirs = (
        vmap(solve, in_dims)(LU, pivots, B.movedim(0, -1) if in_dims[2] == -1 else B)
        for solve in (lu_solve, torch.linalg.lu_solve)
    )
    torch.testing.assert_close(ours, theirs)


@every_equation
@pytest.mark.parametrize("in_dims", [(0, 0, 0), (0, 0, None), (None, None, 0), (0, None, 0)], ids=str)
def test_vmap_over_complex_systems(in_dims, left, adjoint):
    """Also of derivatives, and of batches of different ranks; nothing is done sample by sample, which would warn."""
    args = system(3, 2, left, (5,), (5, 2), torch.complex128)
    args = [x if dim == 0 else x[0] for x, dim in zip(args, in_dims, strict=True)]

    def solve(LU, pivots, B):
        return lu_solve(LU, pivots, B, left=left, adjoint=adjoint)

    def gradients(LU, pivots, B):
        return torch.func.grad(lambda LU, B: solve(LU, pivots, B).abs().square().sum(), argnums=(0, 1))(LU, B)

    def change(LU, pivots, B):
        return jvp(lambda LU, B: solve(LU, pivots, B), (LU, B), (2j * LU, B + 1j))[1]

    def change_of_gradients(LU, pivots, B):
        return jvp(lambda LU, B: gradients(LU, pivots, B), (LU, B), (2j * LU, B + 1j))[1]

    for function in (solve, gradients, change, change_of_gradients):
        with warnings.catch_warnings():
            warnings.simplefilter("error", UserWarning)
            ours = vmap(function, in_dims)(*args)
        one_by_one = [
            function(*(x if dim is None else x[i] for x, dim in zip(args, in_dims, strict=True))) for i in range(5)
        ]
        if isinstance(ours, tuple):
            ours, one_by_one = list(ours), [torch.stack(x) for x in zip(*one_by_one, strict=True)]
        else:
            one_by_one = torch.stack(one_by_one)
        torch.testing.assert_close(ours, one_by_one)


@every_equation
@pytest.mark.parametrize(("batch", "batch_of_B"), [((3,), (3,)), ((), (3,)), ((2, 1), (3,))], ids=str)
def test_compiled_complex_gradients(batch, batch_of_B, left, adjoint):
    torch._dynamo.reset()
    LU, pivots, B = system(4, 2, left, batch, batch_of_B, torch.complex128)
    inputs = LU.requires_grad_(), B.requires_grad_()

    def loss(LU, B):
        return lu_solve(LU, pivots, B, left=left, adjoint=adjoint).abs().square().sum()

    ours = grad(torch.compile(loss, fullgraph=True)(*inputs), inputs)
    torch.testing.assert_close(ours, grad(loss(*inputs), inputs))


@every_equation
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize(("batch", "batch_of_B"), [((), ()), ((3,), ()), ((), (2,))], ids=str)
def test_opcheck(batch, batch_of_B, dtype, left, adjoint):
    LU, pivots, B = system(4, 2, left, batch, batch_of_B, dtype)
    X = lu_solve(LU, pivots, B, left=left, adjoint=adjoint)
    inputs = LU.requires_grad_(), pivots, B.requires_grad_()
    torch.library.opcheck(ops.lu_solve, (*inputs, left, adjoint))
    B = B.detach().expand_as(X)
    torch.library.opcheck(ops.lu_solve_vjp, (LU.detach(), pivots, B, X, torch.randn_like(X), left, adjoint))


def test_right_hand_sides_may_share_a_buffer():
    """As in PyTorch, whose derivative does not need them; also where it takes the place of PyTorch's."""
    LU, pivots, _ = system(4, 2)
    LU.requires_grad_()

    def gradients(solve):
        buffer, total = torch.empty(4, 2, dtype=torch.float64), 0
        for value in (1.0, 2.0):
            total = total + solve(LU, pivots, buffer.fill_(value)).square().sum()
        (gradient,) = grad(total, LU, create_graph=True)
        return gradient, *grad(gradient.square().sum(), LU)

    expected = gradients(torch.linalg.lu_solve)
    torch.testing.assert_close(gradients(lu_solve), expected)
    with triton_lu.override():
        torch.testing.assert_close(gradients(torch.linalg.lu_solve), expected)


def test_nothing_is_saved_for_a_derivative_that_is_not_asked_for():
    LU, pivots, B = system(6, 2)
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        lu_solve(LU, pivots, B.requires_grad_())
    assert {x.data_ptr() for x in saved} == {LU.data_ptr(), pivots.data_ptr()}


@pytest.mark.parametrize(
    ("left", "adjoint", "backend"),
    [(True, False, "inductor"), *((*equation, "aot_eager") for equation in product([True, False], repeat=2))],
)
def test_compiled(left, adjoint, backend):
    def solve(A, B):
        return lu_solve(*triton_lu.lu(A), B, left=left, adjoint=adjoint)

    compiled = torch.compile(solve, backend=backend, fullgraph=True, dynamic=True)
    for batch, n in (((3,), 4), ((2,), 5)):
        A = torch.randn(*batch, n, n, dtype=torch.float64, requires_grad=True)
        B = torch.randn(n, n, dtype=torch.float64, requires_grad=True)
        X = compiled(A, B)
        torch.testing.assert_close(X, solve(A, B))
        torch.testing.assert_close(grad(X.sum(), (A, B)), grad(solve(A, B).sum(), (A, B)))


def test_no_matrix_is_formed_but_the_solutions():
    """No dense P, no second factorization: every result of the forward has the shape of B, LU or pivots."""
    LU, pivots, B = system(6, 2)
    LU.requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        lu_solve(LU, pivots, B)
    assert {x.data_ptr() for x in saved if x.shape == LU.shape} == {LU.data_ptr()}


class TestErrors:
    LU = torch.eye(4).expand(3, 4, 4)
    pivots = torch.arange(1, 5, dtype=torch.int32).expand(3, 4)
    B = torch.ones(3, 4, 2)

    @pytest.mark.parametrize(
        ("changed", "message"),
        [
            ({"LU": [[1.0]]}, "LU to be a torch.Tensor; got list"),
            ({"pivots": [1]}, "pivots to be a torch.Tensor; got list"),
            ({"B": 1.0}, "B to be a torch.Tensor; got float"),
            ({"LU": LU.int(), "B": B.int()}, "LU of float16, bfloat16, float32, .*; got torch.int32"),
            ({"LU": LU[0, 0]}, r"LU of 2 or more dimensions; got shape \(4,\)"),
            ({"LU": LU[..., :3], "pivots": pivots[..., :3]}, r"LU of shape \[..., n, n\]; got \(3, 4, 3\)"),
            ({"pivots": pivots.long()}, r"dtype torch.int32 and shape \(3, 4\); got torch.int64 and \(3, 4\)"),
            ({"pivots": pivots[..., :3]}, r"shape \(3, 4\); got torch.int32 and \(3, 3\)"),
            ({"pivots": pivots[0]}, r"shape \(3, 4\); got torch.int32 and \(4,\)"),
            ({"B": B.double()}, "same dtype; got torch.float32 and torch.float64"),
            ({"B": B[0, :, 0]}, r"B of 2 or more dimensions; got shape \(4,\)"),
            ({"B": B.mT}, r"B of shape \[..., 4, k\]; got \(3, 2, 4\)"),
            ({"left": False}, r"B of shape \[..., k, 4\]; got \(3, 4, 2\)"),
        ],
    )
    def test_bad_input_raises_the_type_of_torch(self, changed, message):
        arguments = {"LU": self.LU, "pivots": self.pivots, "B": self.B, **changed}
        with pytest.raises(Exception) as torch_error:  # noqa: PT011
            torch.linalg.lu_solve(**arguments)
        with pytest.raises(type(torch_error.value), match=f"`linalg.lu_solve` expects .*{message}"):
            lu_solve(**arguments)

    def test_devices_that_differ(self):
        """PyTorch's reads memory that is not there."""
        for changed in ({"pivots": self.pivots.to("meta")}, {"B": self.B.to("meta")}):
            arguments = {"LU": self.LU, "pivots": self.pivots, "B": self.B, **changed}
            message = f"`linalg.lu_solve` expects LU and {next(iter(changed))} on the same device; got cpu and meta"
            with pytest.raises(RuntimeError, match=message):
                lu_solve(**arguments)

    @pytest.mark.parametrize(
        ("wrong", "text"), [(0, "greater or equal to 1"), (5, r"smaller or equal to LU.size\(-2\)")]
    )
    def test_pivots_out_of_range(self, wrong, text):
        pivots = self.pivots[0].clone()
        pivots[2] = wrong
        for solve in (torch.linalg.lu_solve, lu_solve):
            with pytest.raises(RuntimeError, match=f"Pivots given to lu_solve must all be {text}"):
                solve(self.LU[0], pivots, self.B[0])
            with pytest.raises(RuntimeError, match=f"Pivots given to lu_solve must all be {text}"):
                solve(self.LU[0].clone().requires_grad_(), pivots, self.B)

    def test_batches_that_do_not_broadcast(self):
        with pytest.raises(RuntimeError):
            torch.linalg.lu_solve(self.LU, self.pivots, self.B[:2])
        with pytest.raises(RuntimeError, match=r"`linalg.lu_solve` expects .*\(3,\) and \(2,\)"):
            lu_solve(self.LU, self.pivots, self.B[:2])
