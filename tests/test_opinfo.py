"""PyTorch's own tests of its LU family, on ours: the OpInfo entries of torch.testing with `op` replaced.

The sample inputs that PyTorch draws for its functions, or `some` of them, go through the checks that PyTorch applies to
them, here on ATen; `tests/kernels/test_opinfo_kernels.py` has a few on the Triton kernels.
"""

import random

import pytest
import torch
from torch._subclasses import CrossRefFakeMode
from torch.testing._internal import composite_compliance
from torch.testing._internal.common_dtype import integral_types_and

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
    tensors_of,
)

every_function = pytest.mark.parametrize("name", OURS)


def some(samples):
    """Nine that have entries, and one that has none: PyTorch draws up to 216, which differ in shape and layout."""
    draw = random.Random(0)
    full, empty = ([x for x in samples if all(t.numel() for t in tensors_of(x)) == kind] for kind in (True, False))
    return [x for kind, count in ((full, 9), (empty, 1)) for x in draw.sample(kind, min(count, len(kind)))]


def test_every_function_has_its_entry():
    assert set(THEIRS) == set(OURS)


@pytest.mark.parametrize("dtype", SINGLE + DOUBLE, ids=str)
@every_function
def test_results_are_those_of_torch(name, dtype):
    """Factors to the bit, what takes other steps to rounding; with their types, dtypes and strides.

    But for batches of vectors: PyTorch lays out solutions column-major, as if they were one matrix.
    """
    for sample in samples(name, dtype):
        before = [x.clone() for x in tensors_of(sample)]
        ours, theirs = (call(function, sample) for function in (OURS[name], THEIRS[name].op))
        if name.startswith("linalg"):
            assert type(ours) is type(theirs)
        exact = {"rtol": 0, "atol": 0} if name in (*FACTORIZATIONS, "lu_unpack") else {}
        vectors = name in ("linalg.solve", "linalg.solve_ex") and sample.args[0].shape == sample.input.shape[:-1]
        torch.testing.assert_close(tuple(ours), tuple(theirs), check_stride=not vectors, **exact)
        assert all(map(torch.equal, tensors_of(sample), before))


@pytest.mark.parametrize("dtype", SINGLE + DOUBLE, ids=str)
@every_function
def test_gradients_are_those_of_torch(name, dtype):
    for sample in some(samples(name, dtype, requires_grad=True)):
        inputs = differentiable(tensors_of(sample))
        results = []
        for function in (OURS[name], THEIRS[name].op):
            outputs = differentiable(call(function, sample))
            torch.manual_seed(1)
            cotangents = [torch.randn(x.shape, dtype=x.dtype) for x in outputs]
            results.append(torch.autograd.grad(outputs, inputs, cotangents))
        tolerance = 1e-3 if dtype in SINGLE else 1e-10
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:.*does not have storage:UserWarning")
@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
@pytest.mark.parametrize("kind", ["gradcheck", "bwgrad_bwgrad", "fwgrad_bwgrad"])
@every_function
def test_gradcheck(name, kind, dtype):
    """First derivatives in both modes, batched where PyTorch's own are; reverse and forward over reverse."""
    check(name, kind, dtype, some(samples(name, dtype, requires_grad=True)), batched=True)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@every_function
def test_vmap(name, dtype):
    """Over all arguments or one of them, along the first dimension and the last."""
    for sample, another in zip(some(samples(name, dtype)), some(samples(name, dtype)), strict=True):
        assert_vmaps(name, sample, another)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@every_function
def test_fake_tensors_are_like_the_real_ones(name, dtype):
    """Shapes, dtypes, strides and aliasing of every operator that runs, those of the backward included."""
    for sample in some(samples(name, dtype, requires_grad=True)):
        with CrossRefFakeMode():
            outputs = differentiable(call(OURS[name], sample))
            inputs = differentiable(tensors_of(sample))
            torch.autograd.grad(outputs, inputs, [torch.ones_like(x) for x in outputs])


@every_function
def test_composite_compliance(name):
    """Tangents, cotangents or both may be tensors of a subclass: no derivative writes into a plain tensor."""
    for sample in some(samples(name, torch.float64, requires_grad=True))[::2]:
        args = (sample.input, *sample.args)
        composite_compliance.check_backward_formula(
            OURS[name], args, sample.kwargs, sample.output_process_fn_grad, assert_equal_fn=torch.testing.assert_close
        )
        composite_compliance.check_forward_ad_formula(
            OURS[name], args, sample.kwargs, assert_equal_fn=torch.testing.assert_close
        )


@pytest.mark.parametrize("name", FACTORIZATIONS)
def test_dtypes_that_torch_refuses(name):
    for dtype in integral_types_and(torch.bool):
        A = torch.ones(3, 3, dtype=dtype)
        for function in (OURS[name], THEIRS[name].op):
            with pytest.raises(NotImplementedError if function is OURS[name] else RuntimeError):
                function(A)


@every_function
def test_compile(name):
    """A few samples, with their backward, in one graph each."""
    torch._dynamo.reset()
    for sample in some(samples(name, torch.float64, requires_grad=True))[::4]:
        compiled = torch.compile(
            lambda *x, sample=sample: tuple(call(OURS[name], sample, *x)), backend="aot_eager", fullgraph=True
        )
        tensors = tensors_of(sample)
        ours, expected = compiled(*tensors), tuple(call(OURS[name], sample))
        torch.testing.assert_close(ours, expected)
        inputs = differentiable(tensors)
        ours, expected = (
            torch.autograd.grad(sum(x.abs().square().sum() for x in differentiable(outputs)), inputs)
            for outputs in (ours, expected)
        )
        torch.testing.assert_close(ours, expected)
