"""Derivatives of every order, under autograd, forward AD and torch.func."""

import pytest
import torch
from torch.autograd import forward_ad, grad, gradcheck, gradgradcheck
from torch.func import hessian, jacfwd, jacrev, jvp, vjp, vmap
from torch.utils.checkpoint import checkpoint

import triton_lu
from triton_lu import reference

SHAPES = ((1, 1), (3, 3), (5, 3), (3, 5), (2, 4, 4), (2, 1, 3, 2), (0, 3), (2, 3, 0), (2, 0, 3))


def factor(A, pivot=True):
    return triton_lu.lu(A, pivot=pivot, get_infos=True)[0]


def matrix(shape, dtype=torch.float64, pivot=True):
    """A matrix whose pivots are well apart from each other, so that no small step changes their choice."""
    A = torch.randn(shape, dtype=dtype)
    return A if pivot else A + 5 * torch.eye(*shape[-2:], dtype=dtype)


@pytest.mark.parametrize("pivot", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradcheck(shape, dtype, pivot):
    A = matrix(shape, dtype, pivot).requires_grad_()
    assert gradcheck(
        lambda A: factor(A, pivot), A, check_forward_ad=True, check_batched_grad=True, check_batched_forward_grad=True
    )


@pytest.mark.parametrize("pivot", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_gradgradcheck(shape, dtype, pivot):
    A = matrix(shape, dtype, pivot).requires_grad_()
    assert gradgradcheck(
        lambda A: factor(A, pivot), A, check_fwd_over_rev=True, check_rev_over_rev=True, check_batched_grad=True
    )


@pytest.mark.parametrize("name", ["vjp", "jvp", "curvature", "mixed"])
@pytest.mark.parametrize("shape", [(2, 3), (3, 3), (2, 4, 3)], ids=str)
def test_gradgradcheck_of_the_maps(shape, name):
    """Also their derivatives with respect to LU itself, or the D in its place."""
    LU, pivots, _ = torch.linalg.lu_factor_ex(matrix(shape, torch.complex128))
    X = torch.randn(shape, dtype=torch.complex128, requires_grad=True)
    LU.requires_grad_()
    op = getattr(torch.ops.triton_lu, name)

    def linear_map(LU, X):
        return op(LU, pivots, X)

    assert gradcheck(linear_map, (LU, X), check_forward_ad=True, check_batched_grad=True)
    assert gradgradcheck(linear_map, (LU, X), check_fwd_over_rev=True)


TRANSFORMS = {
    "jacrev": jacrev,
    "jacfwd": jacfwd,
    "hessian": hessian,
    "reverse over reverse": lambda f: jacrev(jacrev(f)),
    "reverse over forward": lambda f: jacrev(jacfwd(f)),
    "forward over forward": lambda f: jacfwd(jacfwd(f)),
    "third, reverse": lambda f: jacrev(jacrev(jacrev(f))),
    "third, forward": lambda f: jacfwd(jacfwd(jacfwd(f))),
    "third, mixed": lambda f: jacfwd(jacrev(jacfwd(f))),
    "vmap": vmap,
    "vmap of jacrev": lambda f: vmap(jacrev(f)),
    "vmap of hessian": lambda f: vmap(hessian(f)),
    "jacrev of vmap": lambda f: jacrev(vmap(f)),
    "vmap of vmap of jacfwd": lambda f: lambda A: vmap(vmap(jacfwd(f)))(A[:, None]),
    "vmap over the last dimension": lambda f: lambda A: vmap(f, in_dims=-1, out_dims=1)(A.movedim(0, -1)),
    "vmap over the rows of stacked matrices": lambda f: lambda A: vmap(f, in_dims=1)(A.transpose(0, 1)),
}


@pytest.mark.parametrize("shape", [(3, 3), (3, 2), (2, 3)], ids=str)
@pytest.mark.parametrize("name", TRANSFORMS)
def test_func_transforms(name, shape):
    A = matrix((2, *shape) if "vmap" in name else shape)
    transform = TRANSFORMS[name]
    torch.testing.assert_close(
        transform(factor)(A), transform(lambda A: torch.linalg.lu_factor_ex(A).LU)(A), rtol=1e-9, atol=1e-9
    )


def test_func_vjp_and_jvp_are_adjoint():
    A, E, G = (matrix((4, 3, 5)) for _ in range(3))
    tangent = jvp(factor, (A,), (E,))[1]
    (gradient,) = vjp(factor, A)[1](G)
    torch.testing.assert_close((G * tangent).sum(), (gradient * E).sum())


def test_vmap_of_the_maps_over_some_arguments():
    """Every argument may or may not be batched."""
    LU, pivots, _ = torch.linalg.lu_factor_ex(matrix((5, 4, 3)))
    G = matrix((5, 4, 3))
    op = torch.ops.triton_lu.vjp
    one = vmap(op, in_dims=(None, None, 0))(LU[0], pivots[0], G)
    torch.testing.assert_close(one, op(LU[:1].expand(5, 4, 3), pivots[:1].expand(5, 3), G))
    torch.testing.assert_close(vmap(op, in_dims=(0, 0, None))(LU, pivots, G[0]), op(LU, pivots, G[:1].expand(5, 4, 3)))
    rows = vmap(lambda p: triton_lu.permutation(p, 4))(pivots)
    assert torch.equal(rows, triton_lu.permutation(pivots, 4))


def test_saves_only_LU_and_pivots():
    A = matrix((3, 6, 6)).requires_grad_()
    saved = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: saved.append(x) or x, lambda x: x):
        LU, pivots, _ = triton_lu.lu(A, get_infos=True)
    assert {x.data_ptr() for x in saved} == {LU.data_ptr(), pivots.data_ptr()}


def test_integers_carry_no_gradient():
    LU, pivots, infos = triton_lu.lu(matrix((3, 3)).requires_grad_(), get_infos=True)
    assert (LU.requires_grad, pivots.requires_grad, infos.requires_grad) == (True, False, False)


@pytest.mark.parametrize(
    "loss",
    [
        lambda LU: LU.sum(),  # an expanded gradient
        lambda LU: LU.diagonal(dim1=-2, dim2=-1).abs().log().sum(),
        lambda LU: (LU.mT.contiguous() * torch.arange(7.0, dtype=LU.dtype)).sum(),
        lambda LU: LU[..., 1, 2].sum(),
        lambda LU: (LU * torch.ones(5, 1, 1, dtype=LU.dtype)).real.sum() if LU.ndim == 3 else LU.real.sum(),
    ],
)
@pytest.mark.parametrize("shape", [(7, 7), (5, 7, 7)], ids=str)
def test_any_upstream_gradient(loss, shape):
    A = matrix(shape).requires_grad_()
    (ours,) = grad(loss(factor(A)), A)
    (theirs,) = grad(loss(torch.linalg.lu_factor_ex(A).LU), A)
    torch.testing.assert_close(ours, theirs)


def test_absent_gradient():
    A = matrix((3, 3)).requires_grad_()
    LU, pivots, _ = triton_lu.lu(A, get_infos=True)
    assert grad(pivots.double().sum() + A.sum(), A)[0].equal(torch.ones(3, 3, dtype=torch.float64))
    (LU * 0).sum().backward()
    assert A.grad.equal(torch.zeros(3, 3, dtype=torch.float64))

    def undefined_gradient(ctx, *_):
        return None

    identity = type(
        "Identity", (torch.autograd.Function,), {"forward": lambda ctx, x: x + 0, "backward": undefined_gradient}
    )
    identity.forward = staticmethod(identity.forward)
    identity.backward = staticmethod(undefined_gradient)
    assert grad(identity.apply(triton_lu.lu(A)[0]).sum(), A, allow_unused=True) == (None,)


def test_in_place_use_of_the_result():
    A = matrix((4, 4)).requires_grad_()
    LU, _ = triton_lu.lu(A)
    scaled = LU * 2
    scaled += 1
    (ours,) = grad(scaled.sum(), A)
    (theirs,) = grad((torch.linalg.lu_factor(A).LU * 2 + 1).sum(), A)
    torch.testing.assert_close(ours, theirs)
    LU, _ = triton_lu.lu(A)
    LU.mul_(2)  # overwrites what the backward needs
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        LU.sum().backward()


def test_linalg_lu_differentiates():
    A = matrix((2, 4, 3)).requires_grad_()
    assert gradcheck(lambda A: triton_lu.linalg.lu(A)[1:], A, check_forward_ad=True)
    assert gradcheck(lambda A: triton_lu.linalg.lu_factor(A).LU, A)


def test_dual_tensors_keep_a_graph():
    """Reverse mode through a tangent of forward AD."""
    A = matrix((3, 3)).requires_grad_()
    E = matrix((3, 3))
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(factor(forward_ad.make_dual(A, E))).tangent
        (ours,) = grad(tangent.sum(), A)
    expected = jacrev(lambda A: jvp(lambda A: torch.linalg.lu_factor_ex(A).LU, (A,), (E,))[1].sum())(A.detach())
    torch.testing.assert_close(forward_ad.unpack_dual(ours).primal, expected)


def test_checkpointing():
    A = matrix((4, 4)).requires_grad_()
    (ours,) = grad(checkpoint(lambda A: factor(A).sin().sum(), A, use_reentrant=False), A)
    assert torch.equal(ours, grad(factor(A).sin().sum(), A)[0])


@pytest.mark.parametrize("bad", [0.0, float("nan"), float("inf")])
@pytest.mark.parametrize("shape", [(5, 4, 4), (600, 4, 4), (5, 40, 40)], ids=str)
def test_bad_matrices_keep_their_gradient_to_themselves(shape, bad):
    A = matrix(shape)
    clean = A.clone().requires_grad_()
    A[2, :, 1] = bad
    A.requires_grad_()
    G = torch.randn(shape, dtype=torch.float64)
    (gradient,) = grad(factor(A), A, G)
    (expected,) = grad(factor(clean), clean, G)
    others = torch.arange(shape[0]) != 2
    assert torch.equal(gradient[others], expected[others])
    assert not gradient[2].isfinite().all()
    (theirs,) = grad(torch.linalg.lu_factor_ex(A).LU, A, G)
    assert not theirs[2].isfinite().all()


@pytest.mark.parametrize("shape", [(6, 6), (8, 5), (2, 5, 8)], ids=str)
def test_curvature_is_the_reference(shape):
    LU, pivots, _ = torch.linalg.lu_factor_ex(matrix(shape, torch.complex128))
    G, V = (matrix(shape, torch.complex128).requires_grad_() for _ in range(2))
    expected = reference.second_derivative(LU, pivots, G.detach(), V.detach())
    LU.requires_grad_()
    gradient = torch.ops.triton_lu.vjp(LU, pivots, G)
    tangent = torch.ops.triton_lu.jvp(LU, pivots, V)
    torch.testing.assert_close(grad(gradient, LU, V, retain_graph=True)[0], expected)
    torch.testing.assert_close(grad(tangent, LU, G, retain_graph=True)[0], expected)
    torch.testing.assert_close(grad(gradient, G, V)[0], reference.jvp(LU, pivots, V))
    torch.testing.assert_close(grad(tangent, V, G)[0], reference.vjp(LU, pivots, G))
