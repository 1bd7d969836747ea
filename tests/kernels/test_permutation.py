"""The kernel of the permutation, under Triton's interpreter."""

import pytest
import torch

import triton_lu
from tests.support.matrices import any_pivots, random_pivots
from triton_lu import ops
from triton_lu.reference import permutation_matrix, row_order


@pytest.fixture(autouse=True)
def _on_kernels():
    with triton_lu.backend("triton"):
        yield


@pytest.mark.parametrize(("k", "m"), [(1, 1), (3, 3), (32, 32), (33, 33), (100, 100), (5, 70), (64, 65), (1, 40)])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)], ids=str)
@pytest.mark.parametrize("draw", [random_pivots, any_pivots])
def test_permutation(batch, k, m, draw):
    pivots = draw(*batch, k=k, m=m)
    order = triton_lu.permutation(pivots, m)
    assert order.dtype == torch.int64
    assert order.is_contiguous()
    assert torch.equal(order, row_order(pivots, m))


@pytest.mark.parametrize("choose", [lambda k: torch.arange(k, 0, -1), lambda k: torch.arange(k) + 2, lambda k: k])
def test_long_chains(choose):
    """Exchanges that all concern one row, or move one along."""
    k = 70
    pivots = (torch.zeros(k) + choose(k)).clamp(max=k).maximum(torch.arange(k) + 1).int()
    assert torch.equal(triton_lu.permutation(pivots, k), row_order(pivots, k))


@pytest.mark.parametrize(
    ("k", "i", "pivot"), [(40, 1, 1), (40, 31, 31), (40, 39, 33), (260, 255, 200), (260, 256, 256)]
)
def test_one_exchange_with_a_row_before(k, i, pivot):
    pivots = random_pivots(k=k, m=k)
    pivots[i] = pivot
    assert torch.equal(triton_lu.permutation(pivots, k), row_order(pivots, k))


def test_sweep_with_any_exchanges(small_sweep):
    LU, pivots, G = torch.randn(40, 36, dtype=torch.float64), any_pivots(k=36, m=40), torch.randn(40, 36)
    LU, G = LU / 40 + 2 * torch.eye(40, 36), G.double()
    P = permutation_matrix(pivots, 40, torch.float64)
    with triton_lu.backend("aten"):
        none = torch.arange(1, 37, dtype=torch.int32)
        expected = P @ ops.vjp(LU, none, G), ops.jvp(LU, none, P.mT @ G)
    torch.testing.assert_close((ops.vjp(LU, pivots, G), ops.jvp(LU, pivots, G)), expected)


@pytest.mark.parametrize("view", [lambda p: p.expand(4, -1, -1), lambda p: p.mT.contiguous().mT, lambda p: p[:, ::2]])
def test_any_strides(view):
    pivots = view(random_pivots(3, k=40, m=80))
    assert torch.equal(triton_lu.permutation(pivots, 80), row_order(pivots, 80))


@pytest.mark.parametrize(("shape", "m"), [((0,), 3), ((0,), 0), ((2, 0), 40), ((0, 3), 3)], ids=str)
def test_empty(shape, m):
    order = triton_lu.permutation(torch.empty(shape, dtype=torch.int32), m)
    assert torch.equal(order, torch.arange(m).expand(*shape[:-1], m))
