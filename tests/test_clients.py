"""Packages that factorize with PyTorch's functions give the same with this package's in their place.

`pip install -e ".[clients]"`, then `pytest -m clients`.
"""

import pytest
import torch
from torch.testing import assert_close

import triton_lu

pytestmark = pytest.mark.clients


def both(run, *functions):
    """What `run` returns with PyTorch's functions and with this package's, from the same seed."""
    torch.manual_seed(1)
    theirs = run()
    torch.manual_seed(1)
    with triton_lu.override() as taken:
        ours = run()
    assert set(functions) <= set(taken.calls)
    return ours, theirs


def test_qpth():
    """A batch of quadratic programs by an interior-point method, with the derivatives of the optima (Amos, Kolter)."""
    qp = pytest.importorskip("qpth.qp")

    def run():
        batch, n, inequalities, equalities = 5, 6, 8, 2
        factor = torch.randn(batch, n, n, dtype=torch.float64)
        Q = factor @ factor.mT + torch.eye(n, dtype=torch.float64)
        p = torch.randn(batch, n, dtype=torch.float64)
        G = torch.randn(batch, inequalities, n, dtype=torch.float64)
        A = torch.randn(batch, equalities, n, dtype=torch.float64)
        feasible = torch.randn(batch, n, 1, dtype=torch.float64)
        h = (G @ feasible).squeeze(-1) + torch.rand(batch, inequalities, dtype=torch.float64)
        b = (A @ feasible).squeeze(-1)
        arguments = [x.requires_grad_() for x in (Q, p, G, h, A, b)]
        optima = qp.QPFunction(verbose=-1)(*arguments)
        return optima, *torch.autograd.grad(optima.square().sum(), arguments)

    ours, theirs = both(run, "torch.linalg.lu_factor", "torch.linalg.lu_solve")
    assert_close(ours, theirs)


@pytest.mark.parametrize("points", [4, 7])
def test_kornia(points):
    """Homographies from four correspondences by a tall LU factorization, from more by normal equations."""
    geometry = pytest.importorskip("kornia.geometry")

    def run():
        H = torch.eye(3, dtype=torch.float64) + 0.1 * torch.randn(6, 3, 3, dtype=torch.float64)
        source = torch.rand(6, points, 2, dtype=torch.float64)
        target = geometry.transform_points(H, source) + 0.01 * torch.randn_like(source)
        source.requires_grad_(), target.requires_grad_()
        found = geometry.find_homography_dlt(source, target, solver="lu")
        return found, *torch.autograd.grad(found.square().sum(), (source, target))

    ours, theirs = both(run, "torch.linalg.lu_factor_ex", "torch.linalg.lu_solve")
    assert_close(ours, theirs)


def test_pyro():
    """The 1×1 convolution of Glow, which starts as the LU factors of a random orthogonal matrix."""
    transforms = pytest.importorskip("pyro.distributions.transforms")

    def run():
        layer = transforms.GeneralizedChannelPermute(channels=8)
        image = torch.randn(2, 8, 4, 4)
        result = layer(image)
        loss = result.square().sum() - layer.log_abs_det_jacobian(image, result).sum()
        return layer.permutation, result, layer.inv(result), *torch.autograd.grad(loss, layer.parameters())

    ours, theirs = both(run, "torch.linalg.lu_factor")
    assert_close(ours, theirs)


def test_normflows():
    """The likelihood of points under a flow with a dense layer, by its inverse and log|det|."""
    flows = pytest.importorskip("normflows")

    def run():
        layers = [flows.flows.InvertibleAffine(4, use_lu=lu).double() for lu in (False, True)]
        flow = flows.NormalizingFlow(flows.distributions.DiagGaussian(4, trainable=False).double(), layers)
        points = torch.randn(20, 4, dtype=torch.float64)
        loss = flow.forward_kld(points) + flow.forward(points).square().mean()
        return loss, *torch.autograd.grad(loss, [*flow.parameters()])

    ours, theirs = both(run, "torch.slogdet", "torch.inverse")
    assert_close(ours, theirs)


def test_geotorch():
    """Orthogonal matrices by Cayley's map (I + X/2) (I - X/2)⁻¹ of skew-symmetric ones."""
    geotorch = pytest.importorskip("geotorch")

    def run():
        layer = torch.nn.Linear(5, 5, bias=False).double()
        geotorch.orthogonal(layer, "weight", triv="cayley")
        weight = layer.weight
        return weight, *torch.autograd.grad(weight.exp().sum(), layer.parameters())

    ours, theirs = both(run, "torch.linalg.solve")
    assert_close(ours, theirs)
