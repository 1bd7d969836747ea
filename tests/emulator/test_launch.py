"""Launches as a driver gets them: those of kernels that were found before are Triton's own, in every argument."""

import pytest
import torch
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver
from triton_lu_kernels import launch

import triton_lu
from benchmarks.kernels import NoDevice
from tests.support.matrices import problem


class Driver(NoDevice):
    """Takes down grid, kernel and arguments of every launch, and calls the hooks.

    `inputs` has the addresses that are the same in every call: these tensors are taken down by address, results and
    workspaces by sizes and strides.
    """

    def __init__(self):
        super().__init__("sm_90")
        self.launches, self.inputs = [], set()

    def launch(self, *launched):
        *where, metadata, enter, leave = launched[:9]
        self.launches.append((*where, *map(self.describe, launched[9:])))
        if enter is not None:
            enter(metadata)
            leave(metadata)

    def describe(self, argument):
        if isinstance(argument, tuple):
            return tuple(map(self.describe, argument))
        if not isinstance(argument, torch.Tensor):
            return argument
        address = argument.data_ptr()
        known = address if address in self.inputs else address % 16
        return known, argument.shape, argument.stride(), argument.dtype


@pytest.fixture
def device(monkeypatch):
    device = Driver()

    def load(kernel):
        kernel.function = kernel.hash
        kernel._run = device.launch

    monkeypatch.setattr(CompiledKernel, "_init_handles", load)
    monkeypatch.setattr(driver, "_active", device)
    monkeypatch.setattr(launch, "_compiled", {})
    with triton_lu.backend("triton"):
        yield device


def arguments(name, m, n, dtype=torch.float32):
    LU, pivots, X = problem(2, m, n, dtype)
    return {"factor": (X,), "permutation": (pivots, m)}.get(name, (LU, pivots, X))


def launches(device, calls):
    device.launches = []
    for name, args in calls:
        getattr(torch.ops.triton_lu, name)(*args)
    return device.launches


def check(device, monkeypatch, calls):
    """The same launches the first time, the second time, and by Triton alone."""
    device.inputs = {x.data_ptr() for _, args in calls for x in args if isinstance(x, torch.Tensor)}
    first = launches(device, calls)
    assert launch._compiled
    again = launches(device, calls)
    monkeypatch.setattr(launch, "_compiled", {})
    monkeypatch.setattr(launch, "CompiledKernel", ())  # nothing is one: all are looked up
    by_triton = launches(device, calls)
    assert first == again == by_triton
    assert not launch._compiled
    return first


@pytest.mark.parametrize(
    ("name", "m", "n", "dtype", "number"),
    [
        ("factor", 4, 3, torch.float32, 1),
        ("permutation", 70, 3, torch.float32, 1),
        ("vjp", 3, 4, torch.float32, 1),
        ("jvp", 20, 18, torch.float32, 1),
        ("vjp", 40, 35, torch.float32, 1),
        ("jvp", 200, 160, torch.float32, 7),
        ("vjp", 200, 160, torch.complex64, 11),
    ],
    ids=str,
)
def test_kernels_found_before(name, m, n, dtype, number, device, monkeypatch):
    found = check(device, monkeypatch, [(name, arguments(name, m, n, dtype))])
    assert len(found) == number
    assert len({launch[4] for launch in found}) == min(number, 3)  # kernels


def test_arguments_that_compile_differently(device, monkeypatch):
    """One after the other, of one operator: other alignments, strides, sizes, batches and dtypes."""
    LU, pivots, X = arguments("vjp", 4, 4)
    off = torch.empty(X.numel() + 1)[1:].view(X.shape)
    assert off.data_ptr() % 16
    variants = [
        (LU, pivots, X),
        (LU, pivots, off),
        (LU, pivots, X.mT),
        (LU, pivots, X[:1].expand_as(X)),
        (LU[:1], pivots[:1], X[:1]),
        arguments("vjp", 3, 4),
        arguments("vjp", 4, 4, torch.complex64),
    ]
    found = check(device, monkeypatch, [("vjp", args) for args in variants])
    assert len({launch[4] for launch in found}) >= 6  # kernels


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_are_told_of_every_launch(hook, device, monkeypatch):
    told = []
    monkeypatch.setattr(getattr(knobs.runtime, hook), "calls", [lambda metadata: told.append(metadata.get())])
    found = check(device, monkeypatch, [("vjp", arguments("vjp", 200, 160))])
    assert [about["function"] for about in told] == 3 * [launch[4] for launch in found]


def test_what_is_kept_is_limited(device, monkeypatch):
    monkeypatch.setattr(launch, "MOST", 3)
    for batch in range(1, 9):
        LU, pivots, X = problem(batch, 4, 4, torch.float32)
        torch.ops.triton_lu.vjp(LU, pivots, X)
        assert 1 <= len(launch._compiled) <= 3
