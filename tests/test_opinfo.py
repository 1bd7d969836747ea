"""PyTorch's own tests of its LU family, on ours: the OpInfo entries of torch.testing with `op` replaced.

The sample inputs that PyTorch draws for its functions go through the checks that PyTorch applies to them.
"""

import copy

import pytest
import torch
from torch._subclasses import CrossRefFakeMode
from torch.testing._internal import composite_compliance
from torch.testing._internal.common_dtype import integral_types_and
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_utils import TestGradients as Gradients  # "Test" would be collected by pytest

import triton_lu

OURS = {
    "lu": triton_lu.lu,
    "lu_unpack": triton_lu.lu_unpack,
    "linalg.lu": triton_lu.linalg.lu,
    "linalg.lu_factor": triton_lu.linalg.lu_factor,
    "linalg.lu_factor_ex": triton_lu.linalg.lu_factor_ex,
}
if hasattr(triton_lu.linalg, "lu_solve"):
    OURS["linalg.lu_solve"] = triton_lu.linalg.lu_solve
FACTORIZATIONS = ("lu", "linalg.lu", "linalg.lu_factor", "linalg.lu_factor_ex")
SINGLE = (torch.float32, torch.complex64)
DOUBLE = (torch.float64, torch.complex128)

THEIRS = {entry.name: entry for entry in op_db if entry.name in OURS}
ENTRIES = {name: copy.copy(entry) for name, entry in THEIRS.items()}
for _name, _entry in ENTRIES.items():
    _entry.op = OURS[_name]

gradients = Gradients("_check_helper")
every_function = pytest.mark.parametrize("name", OURS)


def samples(name, dtype, requires_grad=False):
    conjugated = dtype.is_complex and THEIRS[name].test_conjugated_samples
    found = list(THEIRS[name].sample_inputs("cpu", dtype, requires_grad, include_conjugated_inputs=conjugated))
    assert len(found) >= 20
    return found


def some(name, samples):
    """All that PyTorch draws for a factorization, one in eleven of the hundreds for a solve."""
    return samples[::11] if name == "linalg.lu_solve" else samples


def call(function, sample, *tensors):
    """The function's results as a tuple; `tensors`, if any, take the place of the sample's."""
    left = iter(tensors)
    args = (sample.input, *sample.args)
    if tensors:
        args = tuple(next(left) if isinstance(x, torch.Tensor) else x for x in args)
    results = function(*args, **sample.kwargs)
    return results if isinstance(results, tuple) else (results,)


def tensors_of(sample):
    return [x for x in (sample.input, *sample.args) if isinstance(x, torch.Tensor)]


def differentiable(tensors):
    return [x for x in tensors if x.requires_grad]


def test_every_function_has_its_entry():
    assert set(THEIRS) == set(OURS)


@pytest.mark.parametrize("dtype", SINGLE + DOUBLE, ids=str)
@every_function
def test_results_are_those_of_torch(name, dtype):
    """To the bit (a solve, which need not take the same steps, to rounding), with their types, dtypes and strides."""
    for sample in samples(name, dtype):
        before = [x.clone() for x in tensors_of(sample)]
        ours, theirs = (call(function, sample) for function in (OURS[name], THEIRS[name].op))
        if name.startswith("linalg"):
            assert type(ours) is type(theirs)
        exact = {} if name == "linalg.lu_solve" else {"rtol": 0, "atol": 0}
        torch.testing.assert_close(tuple(ours), tuple(theirs), check_stride=name != "linalg.lu_solve", **exact)
        assert all(map(torch.equal, tensors_of(sample), before))


@pytest.mark.parametrize("dtype", SINGLE + DOUBLE, ids=str)
@every_function
def test_gradients_are_those_of_torch(name, dtype):
    for sample in samples(name, dtype, requires_grad=True):
        inputs = differentiable(tensors_of(sample))
        results = []
        for function in (OURS[name], THEIRS[name].op):
            outputs = differentiable(call(function, sample))
            torch.manual_seed(1)
            cotangents = [torch.randn(x.shape, dtype=dtype) for x in outputs]
            results.append(torch.autograd.grad(outputs, inputs, cotangents))
        tolerance = 1e-3 if dtype in SINGLE else 1e-10
        torch.testing.assert_close(*results, rtol=tolerance, atol=tolerance)


@pytest.mark.filterwarnings("ignore:.*does not have storage:UserWarning")
@pytest.mark.parametrize("dtype", DOUBLE, ids=str)
@pytest.mark.parametrize("check", ["gradcheck", "bwgrad_bwgrad", "fwgrad_bwgrad"])
@every_function
def test_gradcheck(name, check, dtype):
    """First derivatives in both modes, batched where PyTorch's own are; reverse and forward over reverse."""
    entry = copy.copy(ENTRIES[name])
    if dtype.is_complex:  # of a solve, whose many samples all count in float64
        few = some(name, samples(name, dtype, requires_grad=True))
        entry.sample_inputs = lambda *_, **__: few
    assert entry.supports_forward_ad
    assert entry.supports_fwgrad_bwgrad
    first_order = {
        "check_forward_ad": True,
        "check_batched_grad": True,
        "check_batched_forward_grad": bool(entry.check_batched_forward_grad),
    }
    gradients._check_helper("cpu", dtype, entry, entry.op, check, **first_order if check == "gradcheck" else {})


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@every_function
def test_vmap(name, dtype):
    """Over all arguments or one of them, along the first dimension and the last."""
    for sample, another in zip(samples(name, dtype), samples(name, dtype), strict=True):
        pairs = list(zip(tensors_of(sample), tensors_of(another), strict=True))
        count = len(pairs)
        alone = {tuple(0 if i == j else None for j in range(count)) for i in range(count)}
        for dims in {(0,) * count, (-1,) * count, *alone}:
            args = [x[0] if dim is None else torch.stack(x, dim) for x, dim in zip(pairs, dims, strict=True)]
            batched = torch.vmap(lambda *x, sample=sample: tuple(call(OURS[name], sample, *x)), in_dims=dims)(*args)
            for i in range(2):
                one = [x if dim is None else x.select(dim, i) for x, dim in zip(args, dims, strict=True)]
                torch.testing.assert_close(tuple(x[i] for x in batched), tuple(call(OURS[name], sample, *one)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@every_function
def test_fake_tensors_are_like_the_real_ones(name, dtype):
    """Shapes, dtypes, strides and aliasing of every operator that runs, those of the backward included."""
    for sample in some(name, samples(name, dtype, requires_grad=True)):
        with CrossRefFakeMode():
            outputs = differentiable(call(OURS[name], sample))
            inputs = differentiable(tensors_of(sample))
            torch.autograd.grad(outputs, inputs, [torch.ones_like(x) for x in outputs])


@every_function
def test_composite_compliance(name):
    """Tangents, cotangents or both may be tensors of a subclass: no derivative writes into a plain tensor."""
    for sample in some(name, samples(name, torch.float64, requires_grad=True)):
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
    drawn = samples(name, torch.float64, requires_grad=True)
    for sample in drawn[:: len(drawn) // 4]:
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
