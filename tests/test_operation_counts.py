"""How many operations the maps take: what docs/mathematics.md says of them."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from triton_lu import aten_backend, plan

N = 512


class Operations(TorchDispatchMode):
    """Counts those of dense products and triangular solves."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        match func.overloadpacket.__name__:
            case "mm":
                self.count += product(*args[:2])
            case "addmm" | "addmm_":
                self.count += product(*args[1:3])
            case "linalg_solve_triangular":
                triangle, right_hand_sides = args[:2]
                self.count += triangle.shape[0] * right_hand_sides.numel()
        return func(*args, **kwargs or {})


def product(A, B):
    return 2 * math.prod(A.shape) * B.shape[1]


def operations(function, *args):
    """In n³."""
    with Operations() as counted:
        function(*args)
    return counted.count / N**3


def problem():
    LU, _, _ = torch.linalg.lu_factor_ex(torch.randn(N, N, dtype=torch.float64))
    return torch.randn(N, N, dtype=torch.float64), LU


@pytest.mark.parametrize("sweep", [aten_backend._vjp_sweep_, aten_backend._jvp_sweep_])
def test_sweeps_in_narrow_blocks_take_two_factorizations(sweep):
    assert operations(sweep, *problem(), plan.Widths(8, 8)) == pytest.approx(4 / 3, rel=0.03)


def test_solving_with_u_first():
    assert operations(aten_backend._vjp_sweep_, *problem(), plan.Widths(8, N)) == pytest.approx(2, rel=0.03)


def test_two_spans():
    """The last has the part f of the columns."""
    f = 3 / 8
    expected = 2 - 2 * f**2 * (1 - f)
    spans = plan.Widths(8, N - int(f * N))
    assert operations(aten_backend._vjp_sweep_, *problem(), spans) == pytest.approx(expected, rel=0.03)


def test_backward_of_torch():
    A = problem()[0].requires_grad_()
    LU, _ = torch.linalg.lu_factor(A)
    assert operations(LU.backward, torch.ones_like(LU)) == pytest.approx(8, rel=0.01)
