"""Samples of PyTorch's own tests on the path that CUDA takes: every operator on a Triton kernel, in the interpreter.

Of the LU family these are the factorizations: `lu_unpack` and `lu_solve` take factors and reach no kernel. In the
interpreter a kernel takes a tenth of a second or more, so the samples are dealt out: see `deal`.
"""

import pytest
import torch
from torch.autograd import forward_ad, grad
from torch.testing._internal.common_utils import noncontiguous_like
from torch.testing._internal.opinfo.core import SampleInput

import triton_lu
from tests.support.opinfo import (
    DOUBLE,
    FACTORIZATIONS,
    OURS,
    SINGLE,
    THEIRS,
    assert_vmaps,
    call,
    check,
    differentiable,
    samples,
)
from triton_lu import aten_backend

WIDE = dict(zip(SINGLE + DOUBLE, DOUBLE + DOUBLE, strict=True))
every_factorization = pytest.mark.parametrize("name", FACTORIZATIONS)


@pytest.fixture(autouse=True)
def _on_kernels(monkeypatch):
    """The kernels, with what stands in for them in ATen out of reach."""

    def unreachable(*_):
        raise AssertionError("an operator ran without a kernel")

    for operator in ("factor", "vjp", "jvp"):
        monkeypatch.setattr(aten_backend, operator, unreachable)
    with triton_lu.backend("triton"):
        yield


def deal(name, dtype, requires_grad=False):
    """Samples of all sizes from 3×5 to 7×5: five, for `lu` three or four.

    PyTorch draws the same shapes for every factorization: these sizes as single matrices and in three batches, one of
    them empty, which `lu` lacks. Each factorization gets every fourth of them, so that the four together have all
    that are not empty, in every dtype. Over the complex numbers every second sample is conjugated.
    """
    drawn = samples(name, dtype, requires_grad)
    plain, conjugated = ({x.input.shape: x for x in drawn if x.input.is_conj() == kind} for kind in (False, True))
    first = FACTORIZATIONS.index(name) + (*SINGLE, *DOUBLE).index(dtype)
    shapes = list(plain)[first % 4 :: 4]
    return [(conjugated if dtype.is_complex and i % 2 else plain)[shape] for i, shape in enumerate(shapes)]


def without_pivoting(sample):
    """The sample with `pivot=False`, which PyTorch draws for CUDA alone, and the one that is PyTorch's reference.

    That has pivoting, as always on a CPU, but its rows are in the order of their pivots, and nothing is exchanged. The
    matrices are not contiguous.
    """
    A = sample.input.detach()
    order = triton_lu.permutation(torch.linalg.lu_factor_ex(A).pivots, A.shape[-2])
    A = noncontiguous_like(A.take_along_dim(order[..., None], -2)).requires_grad_(sample.input.requires_grad)
    unpivoted = {"args": (False, *sample.args[1:])} if sample.args else {"kwargs": {"pivot": False}}
    return SampleInput(A, **unpivoted), SampleInput(A, args=sample.args, kwargs=sample.kwargs)


def pairs(name, dtype, requires_grad=False):
    """Samples for this package's function and for PyTorch's: those of `deal`, each with pivoting and without."""
    for sample in deal(name, dtype, requires_grad):
        yield sample, sample
        yield without_pivoting(sample)


def derivatives(function, sample):
    """The gradient, its own gradients with respect to matrix and cotangents, and the tangents, along random directions.

    These are the same for samples of the same shape, whatever their precision.
    """
    draw = torch.Generator().manual_seed(1)

    def like(x):
        return torch.randn(x.shape, dtype=WIDE[x.dtype], generator=draw).to(x.dtype)

    A = sample.input
    outputs = differentiable(call(function, sample))
    cotangents = [like(x).requires_grad_() for x in outputs]
    (gradient,) = grad(outputs, A, cotangents, create_graph=True)
    second = grad(gradient, [A, *cotangents], like(gradient))
    with forward_ad.dual_level():
        results = call(function, sample, forward_ad.make_dual(A.detach(), like(A)))
        tangents = [forward_ad.unpack_dual(x).tangent for x in results]
    return gradient.detach(), *second, *(x for x in tangents if x is not None)


@pytest.mark.parametrize("dtype", SINGLE + DOUBLE, ids=str)
@every_factorization
def test_results_are_those_of_torch(name, dtype):
    """Pivots, permutations and infos exactly, factors to rounding; types, dtypes and strides."""
    for sample, reference in pairs(name, dtype):
        ours, theirs = call(OURS[name], sample), call(THEIRS[name].op, reference)
        if name.startswith("linalg"):
            assert type(ours) is type(theirs)
        if name == "linalg.lu" and sample is not reference:
            assert ours.P.numel() == 0
            ours, theirs = ours[1:], theirs[1:]
        torch.testing.assert_close(tuple(ours), tuple(theirs), check_stride=True)


@pytest.mark.parametrize("dtype", SINGLE, ids=str)
@every_factorization
def test_derivatives_are_those_of_torch(name, dtype):
    """First and second derivatives and tangents, against PyTorch's in double precision; of every third pair."""
    for sample, reference in list(pairs(name, dtype, requires_grad=True))[::3]:
        A = reference.input.detach().to(WIDE[dtype]).requires_grad_()
        expected = derivatives(THEIRS[name].op, SampleInput(A, args=reference.args, kwargs=reference.kwargs))
        for x, y in zip(derivatives(OURS[name], sample), expected, strict=True):
            assert x.dtype == dtype
            assert (x - y).norm() <= 1e-4 * y.norm()


@pytest.mark.parametrize(
    ("name", "dtype", "pivot"),
    [
        ("lu", torch.float64, True),
        ("linalg.lu_factor_ex", torch.float64, False),
        ("linalg.lu", torch.complex128, True),
    ],
    ids=str,
)
def test_gradcheck(name, dtype, pivot):
    """First derivatives in both modes, of one sample."""
    sample = deal(name, dtype, requires_grad=True)[0]
    check(name, "gradcheck", dtype, [sample if pivot else without_pivoting(sample)[0]], batched=False)


def test_gradgradcheck():
    """Forward over reverse, of one sample."""
    sample = deal("linalg.lu_factor", torch.float64, requires_grad=True)[:1]
    check("linalg.lu_factor", "fwgrad_bwgrad", torch.float64, sample, batched=False)


@every_factorization
def test_vmap(name):
    """Along the first dimension and the last, of one sample."""
    sample, another = (deal(name, torch.complex128)[0] for _ in range(2))
    assert_vmaps(name, sample, another)
