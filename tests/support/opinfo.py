"""PyTorch's OpInfo entries of its LU family and their sample inputs, for the tests of this package's functions."""

import copy

import torch
from torch.testing._internal.common_methods_invocations import op_db
from torch.testing._internal.common_utils import TestGradients as Gradients  # "Test" would be collected by pytest

import triton_lu

OURS = {
    "lu": triton_lu.lu,
    "lu_unpack": triton_lu.lu_unpack,
    "linalg.lu": triton_lu.linalg.lu,
    "linalg.lu_factor": triton_lu.linalg.lu_factor,
    "linalg.lu_factor_ex": triton_lu.linalg.lu_factor_ex,
    "linalg.lu_solve": triton_lu.linalg.lu_solve,
    "linalg.slogdet": triton_lu.linalg.slogdet,
    "linalg.det": triton_lu.linalg.det,
    "logdet": triton_lu.linalg.logdet,
    "linalg.solve": triton_lu.linalg.solve,
    "linalg.solve_ex": triton_lu.linalg.solve_ex,
    "linalg.inv": triton_lu.linalg.inv,
    "linalg.inv_ex": triton_lu.linalg.inv_ex,
}
FACTORIZATIONS = ("lu", "linalg.lu", "linalg.lu_factor", "linalg.lu_factor_ex")
SINGLE = (torch.float32, torch.complex64)
DOUBLE = (torch.float64, torch.complex128)

THEIRS = {entry.name: entry for entry in op_db if entry.name in OURS}

_gradients = Gradients("_check_helper")


def samples(name, dtype, requires_grad=False):
    """What PyTorch draws; over the complex numbers again, with the first argument lazily conjugated.

    That is what its `include_conjugated_inputs` is for, which conjugates nothing where samples come from a generator.
    """
    entry = THEIRS[name]
    found = list(entry.sample_inputs("cpu", dtype, requires_grad))
    assert len(found) >= 8
    if dtype.is_complex and entry.test_conjugated_samples:
        found += map(_conjugated, entry.sample_inputs("cpu", dtype, requires_grad))
    return found


def _conjugated(sample):
    sample.input = sample.input.detach().conj().requires_grad_(sample.input.requires_grad)
    return sample


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


def check(name, kind, dtype, samples, *, batched):
    """PyTorch's check of derivatives: "gradcheck" (both modes), "bwgrad_bwgrad" or "fwgrad_bwgrad", in fast mode.

    batched: gradcheck also tries batches of cotangents, and of tangents where PyTorch's own function takes them.
    """
    entry = copy.copy(THEIRS[name])
    entry.op = OURS[name]
    entry.sample_inputs = lambda *_, **__: samples
    assert entry.supports_forward_ad
    assert entry.supports_fwgrad_bwgrad
    first_order = {
        "check_forward_ad": True,
        "check_batched_grad": batched,
        "check_batched_forward_grad": batched and bool(entry.check_batched_forward_grad),
    }
    _gradients._check_helper("cpu", dtype, entry, entry.op, kind, **first_order if kind == "gradcheck" else {})


def assert_vmaps(name, sample, another):
    """Over all arguments or one of them, along the first dimension and the last."""
    pairs = list(zip(tensors_of(sample), tensors_of(another), strict=True))
    count = len(pairs)
    alone = {tuple(0 if i == j else None for j in range(count)) for i in range(count)}
    for dims in {(0,) * count, (-1,) * count, *alone}:
        args = [x[0] if dim is None else torch.stack(x, dim) for x, dim in zip(pairs, dims, strict=True)]
        batched = torch.vmap(lambda *x: tuple(call(OURS[name], sample, *x)), in_dims=dims)(*args)
        for i in range(2):
            one = [x if dim is None else x.select(dim, i) for x, dim in zip(args, dims, strict=True)]
            torch.testing.assert_close(tuple(x[i] for x in batched), tuple(call(OURS[name], sample, *one)))
