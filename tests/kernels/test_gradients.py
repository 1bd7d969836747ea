"""Derivatives through the kernels, under Triton's interpreter, for sizes that represent each regime.

In the interpreter a kernel takes up to a second: second derivatives of larger complex matrices are compared with those
of ATen instead, in `tests/test_backend.py`.
"""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jvp

import triton_lu
from triton_lu import aten_backend

FIRST_ORDER = [
    ((3, 3), torch.float64, True),
    ((3, 3), torch.float64, False),
    ((3, 3), torch.complex128, True),
    ((3, 3), torch.complex128, False),
    ((12, 9), torch.float64, True),
    ((17, 25), torch.float64, True),
    ((5, 25), torch.complex128, True),
    ((33, 3), torch.float64, True),
    ((130, 2), torch.float64, True),
]
SECOND_ORDER = [
    ((3, 3), torch.float64, False),
    ((3, 3), torch.complex128, True),
    ((18, 3), torch.float64, True),
]


@pytest.fixture(autouse=True)
def _on_kernels(monkeypatch):
    """The kernels, with what stands in for the maps in ATen out of reach."""

    def unreachable(*_):
        raise AssertionError("a map ran without a kernel")

    for operator in ("vjp", "jvp"):
        monkeypatch.setattr(aten_backend, operator, unreachable)
    with triton_lu.backend("triton"):
        yield


def matrix(shape, dtype, pivot):
    """A matrix that needs exchanges of rows if `pivot`, and none otherwise; no small step changes which."""
    A = torch.randn(shape, dtype=dtype) + 2 * max(shape) * torch.eye(*shape, dtype=dtype)
    return (A[torch.randperm(shape[0])] if pivot else A).requires_grad_()


def factor(pivot):
    return lambda A: triton_lu.lu(A, pivot=pivot, get_infos=True)[0]


@pytest.mark.parametrize(("shape", "dtype", "pivot"), FIRST_ORDER, ids=str)
def test_gradcheck(shape, dtype, pivot):
    assert gradcheck(factor(pivot), matrix(shape, dtype, pivot), fast_mode=True, check_forward_ad=True)


@pytest.mark.parametrize(("shape", "dtype", "pivot"), SECOND_ORDER, ids=str)
def test_gradgradcheck(shape, dtype, pivot):
    """Reverse over reverse and forward over reverse; reverse over forward."""
    check_second_order(matrix(shape, dtype, pivot), pivot)


@pytest.mark.usefixtures("small_sweep")
def test_gradgradcheck_in_the_sweep_regime():
    check_second_order(matrix((17, 18), torch.float64, True), True)


def check_second_order(A, pivot):
    options = {"fast_mode": True, "check_undefined_grad": False}
    assert gradgradcheck(factor(pivot), A, check_fwd_over_rev=True, **options)

    def tangent(A):
        return jvp(factor(pivot), (A,), (torch.ones_like(A),))[1]

    assert gradcheck(tangent, A, **options)
