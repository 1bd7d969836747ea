"""The order of rows after any exchanges: pivots[i] may lie before i, where no factorization has it."""

import itertools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import triton_lu
from tests.support.matrices import any_pivots
from triton_lu import ops, plan
from triton_lu import row_order as forms
from triton_lu.reference import permutation_matrix, row_order

FORMS = ("by table", "by matrix", "by step", "links")


@st.composite
def exchanges(draw):
    """(pivots, m), few enough for a table."""
    k = draw(st.integers(0, 5))
    m = draw(st.integers(max(k, 1), 5))
    batch = draw(st.lists(st.integers(0, 3), max_size=2))
    size = torch.Size(batch).numel() * k
    pivots = draw(st.lists(st.integers(1, m), min_size=size, max_size=size))
    return torch.tensor(pivots, dtype=torch.int32).view(*batch, k), m


@pytest.mark.parametrize("form", FORMS)
@given(problem=exchanges())
def test_every_form_makes_any_exchanges(form, problem):
    pivots, m = problem
    batch = pivots.shape[:-1].numel()
    if batch * pivots.shape[-1] == 0 and form != "links":
        return  # no plan has it
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plan, "permutation", lambda *_: form)
        order = forms.permutation(pivots, m)
        whole, inverse = (forms.of_batch(pivots, m, inverse=inverse) for inverse in (False, True))
    assert torch.equal(order, row_order(pivots, m))
    numbers = torch.arange(batch * m)
    assert torch.equal(whole.view(batch, m), order.view(batch, m) + m * torch.arange(batch)[:, None])
    assert torch.equal(whole[inverse], numbers)


@pytest.mark.parametrize("k", [1, 2, 31, 32, 33, 100, 300])
def test_links_are_followed_to_the_end(k):
    """One row goes through every step, down and up again; and exchanges of any rows."""
    chains = torch.stack([torch.arange(2, k + 2), torch.arange(k, 0, -1), torch.ones(k), torch.arange(k).clamp(min=1)])
    for pivots in (chains.int(), any_pivots(8, k=k, m=k + 1), any_pivots(8, k=k, m=2 * k)):
        m = max(k + 1, int(pivots.max()))
        assert torch.equal(forms._by_links(pivots, m), row_order(pivots, m))


def test_whatever_the_plan():
    chosen = set()
    for k, batch in itertools.product((1, 2, 3, 5, 6, 20, 128, 129, 2049), (1, 2, 24, 25, 49, 260)):
        for m in (k, k + 3):
            chosen.add(plan.permutation(batch, m, k, "cpu"))
            pivots = any_pivots(batch, k=k, m=m)
            assert torch.equal(triton_lu.permutation(pivots, m), row_order(pivots, m))
    assert chosen == {"by table", "by matrix", "by step"}


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_links_are_what_has_no_kernel(device):
    assert (plan.permutation(4, 8, 8, device) == "links") == (device == "cuda")


@pytest.mark.parametrize("n", [3, 40, 130, 300])
def test_as_pytorch_unpacks_and_solves(n):
    LU = torch.randn(2, n, n, dtype=torch.float64) / n + 2 * torch.eye(n)
    B = torch.randn(2, n, 3, dtype=torch.float64)
    pivots = any_pivots(2, k=n, m=n)
    P = torch.lu_unpack(LU, pivots, unpack_data=False)[0]
    order = triton_lu.permutation(pivots, n)
    assert torch.equal(torch.eye(n, dtype=torch.float64)[order].mT, P)
    ours, theirs = (linalg.lu_solve(LU, pivots, B) for linalg in (triton_lu.linalg, torch.linalg))
    torch.testing.assert_close(ours, theirs)


def require_permuted_maps(shape, dtype):
    """Every map with any pivots is the map without exchanges of permuted rows."""
    *batch, m, n = shape
    k = min(m, n)
    LU, G, D = torch.randn(3, *shape, dtype=dtype)
    LU = LU / max(m, n) + 2 * torch.eye(m, n)
    pivots, none = any_pivots(*batch, k=k, m=m), torch.arange(1, k + 1, dtype=torch.int32).expand(*batch, k)
    P = permutation_matrix(pivots, m, dtype)
    torch.testing.assert_close(ops.vjp(LU, pivots, G), P @ ops.vjp(LU, none, G))
    torch.testing.assert_close(ops.jvp(LU, pivots, G), ops.jvp(LU, none, P.mT @ G))
    torch.testing.assert_close(ops.curvature(D, pivots, G), ops.curvature(D, none, P.mT @ G))
    torch.testing.assert_close(ops.mixed(D, pivots, G), P @ ops.mixed(D, none, G))


@pytest.mark.parametrize("shape", [(5, 4), (40, 40), (150, 130), (200, 4, 4), (30, 20, 25), (3, 140, 130)], ids=str)
def test_maps(shape):
    require_permuted_maps(shape, torch.float64)


@pytest.mark.parametrize("shape", [(3, 2, 2), (2, 8, 6), (12, 16), (2, 20, 25), (40, 33)], ids=str)
def test_maps_on_kernels(shape):
    with triton_lu.backend("triton"):
        require_permuted_maps(shape, torch.float64)
