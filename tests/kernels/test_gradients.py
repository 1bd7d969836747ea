"""Derivatives through the kernels, under Triton's interpreter, for a size or two of each regime."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp

import triton_lu
from triton_lu import aten

REGIMES = {"warp, full": (3, 3), "warp": (12, 9), "halves": (17, 25), "tile": (40, 35), "sweep": (130, 6)}


@pytest.fixture(autouse=True)
def _on_kernels(monkeypatch):
    """The kernels, with what stands in for the maps in ATen out of reach."""

    def unreachable(*_):
        raise AssertionError("a map ran without a kernel")

    for operator in ("vjp", "jvp"):
        monkeypatch.setattr(aten, operator, unreachable)
    with triton_lu.backend("triton"):
        yield


def matrix(shape, dtype, pivot):
    """A matrix that needs exchanges if `pivot`, and none otherwise. No small step changes their choice."""
    A = torch.randn(shape, dtype=dtype) + 2 * max(shape) * torch.eye(*shape, dtype=dtype)
    return (A[torch.randperm(shape[0])] if pivot else A).requires_grad_()


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize(
    ("regime", "pivot"),
    [*((regime, True) for regime in REGIMES), ("warp, full", False), ("warp", False)],
)
def test_derivatives_of_both_orders(regime, pivot, dtype):
    """In both modes: reverse, forward, reverse over reverse, forward over reverse and reverse over forward."""
    shape = REGIMES[regime]
    A = matrix(shape, dtype, pivot)

    def factor(A):
        return triton_lu.lu(A, pivot=pivot, get_infos=True)[0]

    def tangent(A, E):
        return jvp(factor, (A,), (E,))[1]

    assert gradcheck(factor, A, fast_mode=True, check_forward_ad=True)
    assert gradgradcheck(factor, A, fast_mode=True, check_fwd_over_rev=True)
    assert gradcheck(tangent, (A, torch.randn_like(A, requires_grad=True)), fast_mode=True)
