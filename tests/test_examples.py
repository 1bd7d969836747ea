"""The programs in `examples/` run, and are right."""

import torch

from examples import flow, implicit, laplacian


def test_flow():
    given, generated = flow.main()
    assert (given - generated).norm() < 0.1 * given.norm()


def test_laplacian():
    x, values = laplacian.main(walkers=3)
    for walker, value in zip(x, values, strict=True):
        hessian = torch.autograd.functional.hessian(laplacian.log_determinant, walker)
        torch.testing.assert_close(value, hessian.view(walker.numel(), -1).trace(), rtol=1e-6, atol=1e-6)


def test_implicit():
    A, b, x = implicit.main()
    torch.testing.assert_close(A @ x + x.tanh(), b)
    assert torch.autograd.gradcheck(
        implicit.solve, (A.detach()[:4, :4].requires_grad_(), b.detach()[:4].requires_grad_())
    )
