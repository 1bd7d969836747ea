"""Launches as a driver gets them, of compiled kernels: those of a prepared call are Triton's own, in every argument."""

import gc
import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
import torch
from triton import knobs
from triton.language import constexpr
from triton.runtime import JITFunction, driver
from triton_lu_kernels import launch, warp
from triton_lu_kernels.launch import Launch, Strided
from triton_lu_kernels.permutation import permutation_kernel

import triton_lu
from benchmarks.host import SilentDevice, silent
from tests.support.matrices import problem
from triton_lu import plan, registration, triton_backend


class Device(SilentDevice):
    """Takes down grid, kernel and arguments of every launch, of each thread apart, and calls the hooks."""

    def __init__(self):
        super().__init__("sm_90")
        self.by_thread = {}

    @property
    def launches(self):
        return self.by_thread.setdefault(threading.get_ident(), [])

    def launch(self, *launched):
        x, y, z, stream, function, _, metadata, enter, leave, *args = launched
        self.launches.append((x, y, z, stream, function, *map(pointed, args)))
        if enter is not None:
            enter(metadata)
            leave(metadata)


def pointed(argument):
    """A tensor in the form in which drivers take it too, its address."""
    if not isinstance(argument, tuple):
        return argument
    first, *others = argument
    return (first.data_ptr() if isinstance(first, torch.Tensor) else first, *others)


@pytest.fixture
def device():
    device = Device()
    with silent(device):
        yield device


def arguments(name, m, n, dtype=torch.float32, batch=2):
    LU, pivots, X = problem(batch, m, n, dtype)
    others = {
        "factor": (X,),
        "slogdet": (X,),
        "inv_ex": (X,),
        "permutation": (pivots, m),
        "inverse": (X, LU, pivots),
        "lu_solve": (LU, pivots, X, False, False),
        "solve_ex": (X, LU, True),
    }
    return others.get(name, (LU, pivots, X))


def launches(device, name, args):
    """Of a call. Addresses are named by what is there: an argument, a result, or one of the workspaces."""
    device.launches.clear()
    results = getattr(torch.ops.triton_lu, name)(*args)
    results = results if isinstance(results, tuple) else (results,)
    names = {x.data_ptr(): f"argument {i}" for i, x in enumerate(args) if isinstance(x, torch.Tensor)}
    names |= {x.data_ptr(): f"result {i}, {x.shape}, {x.stride()}, {x.dtype}" for i, x in enumerate(results)}

    def named(argument):
        if not isinstance(argument, tuple) or not isinstance(argument[-1], constexpr):
            return argument
        address, *others = argument
        return names.setdefault(address, f"workspace {len(names)}, {address % 16}"), *others

    return [tuple(map(named, launched)) for launched in device.launches]


def number_of_prepared():
    return sum(isinstance(prepared, launch.Prepared) for prepared in registration.prepared_calls.values())


def prepared(device, *call):
    """The launches of a call, which is prepared afterwards."""
    number = number_of_prepared()
    first = launches(device, *call)
    assert number_of_prepared() == number
    second = launches(device, *call)
    assert number_of_prepared() == number + 1
    assert first == second
    return first


@contextmanager
def looked_up_by_triton():
    """The list of the kernels that Triton looks up inside."""
    kernels, run = [], JITFunction.run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", lambda self, *args, **kw: kernels.append(self) or run(self, *args, **kw))
        yield kernels


def check(device, calls):
    """The same launches before and after the calls are prepared, and if Triton looks every kernel up."""
    found = [prepared(device, *call) for call in calls]
    with looked_up_by_triton() as looked_up:
        assert [launches(device, *call) for call in calls] == found
    assert not looked_up
    with pytest.MonkeyPatch.context() as patch, looked_up_by_triton() as looked_up:
        patch.setattr(registration, "prepared_calls", {})
        patch.setattr(launch, "CompiledKernel", ())  # nothing is one
        assert [launches(device, *call) for call in calls] == found
    assert len(looked_up) == sum(map(len, found))
    return found


@pytest.mark.parametrize(
    ("name", "m", "n", "dtype", "number"),
    [
        ("factor", 4, 3, torch.float32, 1),
        ("factor", 34, 34, torch.float64, 1),
        ("permutation", 70, 3, torch.float32, 1),
        ("vjp", 3, 4, torch.float32, 1),
        ("vjp", 40, 35, torch.float32, 1),
        ("curvature", 3, 3, torch.complex64, 1),
        ("curvature", 40, 35, torch.float32, 1),
        ("slogdet", 3, 3, torch.complex64, 1),
        ("inverse", 4, 4, torch.complex64, 1),
        ("inv_ex", 5, 5, torch.float32, 2),
        ("lu_solve", 4, 4, torch.float32, 1),
        ("solve_ex", 3, 3, torch.complex64, 2),
    ],
    ids=str,
)
def test_prepared_calls(name, m, n, dtype, number, device):
    (found,) = check(device, [(name, arguments(name, m, n, dtype))])
    assert len(found) == number
    assert len({launched[4] for launched in found}) == number  # kernels


@pytest.fixture
def small_sweep(monkeypatch):
    """The sweep regime, in blocks that compile fast."""
    chosen = plan.Sweep(block=16, terms=16, pieces=2, split=True, num_warps=1)
    monkeypatch.setattr(plan, "kernel", lambda *_: chosen)


def test_prepared_sequences(device, small_sweep):
    (found,) = check(device, [("jvp", arguments("jvp", 70, 50))])
    assert len(found) == 9  # one that prepares, and for each of four blocks two, but for the last that has no tiles
    assert len({launched[4] for launched in found}) == 3  # kernels


def test_arguments_that_compile_differently(device):
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
    found = check(device, [("vjp", args) for args in variants])
    assert len({launched[0][4] for launched in found}) >= 6  # kernels


def test_the_same_tensor_twice(device):
    """Is no reason to take one for the other later."""
    LU, pivots, X = arguments("vjp", 4, 4)
    prepared(device, "vjp", (LU, pivots, LU))
    other = X.mT.contiguous().mT
    with looked_up_by_triton() as looked_up:
        (found,) = launches(device, "vjp", (LU, pivots, other))
    assert not looked_up
    assert [argument[0] for argument in found[5:9]][1:] == ["argument 0", "argument 1", "argument 2"]


@pytest.mark.parametrize("hook", ["launch_enter_hook", "launch_exit_hook"])
def test_hooks_are_told_of_every_launch(hook, device, small_sweep, monkeypatch):
    call = ("jvp", arguments("jvp", 70, 50))
    check(device, [call])
    told = []
    monkeypatch.setattr(getattr(knobs.runtime, hook), "calls", [lambda metadata: told.append(metadata.get())])
    found = launches(device, *call)
    assert len(found) == 9
    assert [about["function"] for about in told] == [launched[4] for launched in found]


def test_hooks_before_runs_are_called(device):
    call = ("vjp", arguments("vjp", 4, 4))
    (plain,) = prepared(device, *call)
    seen = []
    warp.warp_kernel.add_pre_run_hook(lambda *args, **options: seen.append(options["MAP"]))
    try:
        assert [launches(device, *call) for _ in range(2)] == 2 * [[plain]]
    finally:
        warp.warp_kernel.pre_run_hooks.clear()
    assert seen == 2 * [warp.MAPS["vjp"]]


SETTINGS = {
    "debug": (knobs.runtime, "debug", True),
    "instrumentation": (knobs.compilation, "instrumentation_mode", "consan"),
    "stages": (knobs.runtime, "add_stages_inspection_hook", lambda *_: ("a key", "a hash")),
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_what_is_compiled_follows_settings(setting, device, monkeypatch):
    call = ("permutation", arguments("permutation", 5, 3))
    (plain,) = prepared(device, *call)
    with looked_up_by_triton() as looked_up:
        with monkeypatch.context() as patch:
            patch.setattr(*setting)
            for _ in range(2):
                (found,) = launches(device, *call)
                assert found[4] != plain[4] or setting is SETTINGS["stages"]  # which here changes no stage
        assert len(looked_up) == 2
        assert launches(device, *call) == [plain]
        assert len(looked_up) == 2


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS)
def test_what_is_compiled_under_settings_is_not_kept(setting, device, monkeypatch):
    call = ("permutation", arguments("permutation", 5, 3))
    with monkeypatch.context() as patch:
        patch.setattr(*setting)
        for _ in range(3):
            (found,) = launches(device, *call)
    assert not number_of_prepared()
    (plain,) = launches(device, *call)
    assert found[4] != plain[4] or setting is SETTINGS["stages"]
    assert number_of_prepared() == 1


class Without:
    """An object with an attribute less."""

    def __init__(self, whole, name):
        self.whole, self.name = whole, name

    def __getattr__(self, name):
        if name == self.name:
            raise AttributeError(name)
        return getattr(self.whole, name)


@pytest.mark.parametrize("name", ["run", "function", "packed_metadata", "pre_run_hooks"])
def test_private_names_of_kernels(name, device, monkeypatch):
    """Triton's that prepared calls need, and do without when they are gone."""
    call = ("permutation", arguments("permutation", 5, 3))
    found = prepared(device, *call)
    (call_again,) = registration.prepared_calls.values()
    (compiled,) = call_again.kernels
    assert hasattr(permutation_kernel, name) or hasattr(compiled, name)
    registration.prepared_calls.clear()

    def less(kernel, launched, *others):
        return Launch(Without(kernel, name), Without(launched, name), *others)

    monkeypatch.setattr(launch, "Launch", less)
    assert [launches(device, *call) for _ in range(3)] == 3 * [found]
    assert not number_of_prepared()


@pytest.mark.parametrize(
    "name",
    [
        "runtime.debug",
        "runtime.interpret",
        "runtime.launch_enter_hook",
        "runtime.launch_exit_hook",
        "runtime.add_stages_inspection_hook",
        "compilation.instrumentation_mode",
    ],
)
def test_private_names_of_settings(name, device, monkeypatch):
    group, setting = name.split(".")
    assert hasattr(getattr(knobs, group), setting)
    call = ("permutation", arguments("permutation", 5, 3))
    groups = {"runtime": knobs.runtime, "compilation": knobs.compilation}
    monkeypatch.setattr(launch, "knobs", SimpleNamespace(**groups | {group: Without(groups[group], setting)}))
    found = launches(device, *call)
    assert len(found) == 1
    assert [launches(device, *call) for _ in range(2)] == 2 * [found]
    assert not number_of_prepared()


@pytest.mark.parametrize("name", ["get_current_device", "get_current_stream"])
def test_private_names_of_the_driver(name, device):
    assert hasattr(driver.active, name)


def test_a_call_that_does_more_than_launch_is_not_kept(device, monkeypatch):
    """Here it copies what has too large strides, and zeros the infos of empty matrices."""
    monkeypatch.setattr(triton_backend, "_within_32_bits", torch.clone)
    for _ in range(3):
        launches(device, "factor", arguments("factor", 4, 3))
        assert not torch.ops.triton_lu.factor(torch.ones(4, 0, 3))[2].any()
    assert not number_of_prepared()


def test_a_call_that_is_not_kept_is_recorded_once(device, monkeypatch):
    """Here the solution of a broadcast system, which no kernel finds."""
    recorded, recording = [], launch.Recording
    monkeypatch.setattr(launch, "Recording", lambda args: recorded.append(args) or recording(args))
    LU, pivots, B = problem(2, 4, 4, torch.float32)
    with triton_lu.backend("triton"):
        found = [torch.ops.triton_lu.lu_solve(LU, pivots, B[:1], True, False) for _ in range(4)]
    assert len(recorded) == 1
    expected = torch.linalg.lu_solve(LU, pivots, B[:1])
    assert all(torch.equal(X, expected) for X in found)


def test_a_call_that_fills_what_it_allocates_is_not_kept(device, monkeypatch):
    def zeros(A):
        return torch.empty_like(A).zero_()

    monkeypatch.setattr(triton_backend, "empty_row_major", zeros)
    for _ in range(3):
        launches(device, "vjp", arguments("vjp", 4, 4))
        assert not torch.ops.triton_lu.vjp(*arguments("vjp", 4, 4)).any()
    assert not number_of_prepared()


def test_tensors_that_a_kernel_takes_in_another_form(device, monkeypatch):
    """Are none that a prepared call could replace."""
    other, strided = namedtuple("Other", Strided._fields), launch._strided
    monkeypatch.setattr(launch, "_strided", lambda *args: other(*strided(*args)))
    for _ in range(3):
        launches(device, "vjp", arguments("vjp", 4, 4))
    assert not number_of_prepared()


def test_what_is_kept_is_limited(device, monkeypatch):
    monkeypatch.setattr(registration, "MOST_PREPARED", 3)
    for batch in range(1, 9):
        for _ in range(3):
            launches(device, "vjp", arguments("vjp", 4, 4, batch=batch))
        assert 1 <= len(registration.prepared_calls) <= 3


def test_no_tensor_is_kept(device):
    call = ("jvp", arguments("jvp", 4, 4, torch.complex64))

    def tensors():
        gc.collect()
        return sum(type(x) is torch.Tensor for x in gc.get_objects())

    before = tensors()
    prepared(device, *call)
    assert tensors() == before


def test_the_stream_is_that_of_the_call(device, monkeypatch):
    call = ("vjp", arguments("vjp", 4, 4))
    prepared(device, *call)
    for stream in (5, 6):
        monkeypatch.setattr(device, "get_current_stream", lambda number, stream=stream: stream)
        (found,) = launches(device, *call)
        assert found[3] == stream


def test_the_device_is_that_of_the_tensors(device, monkeypatch):
    call = ("vjp", arguments("vjp", 4, 4))
    prepared(device, *call)
    entered = []

    @contextmanager
    def enter(number):
        entered.append(number)
        with monkeypatch.context() as patch:
            patch.setattr(device, "get_current_device", lambda: number)
            yield

    number = device.get_current_device()
    monkeypatch.setattr(torch.cuda, "device", enter)
    monkeypatch.setattr(device, "get_current_device", lambda: number + 1)
    monkeypatch.setattr(device, "get_current_stream", lambda asked: 100 + asked)
    (found,) = launches(device, *call)
    assert entered == [number]
    assert found[3] == 100 + number


def test_threads(device):
    """Each of them makes the same calls, and gets the launches of its own tensors."""

    def calls():
        return [("vjp", arguments("vjp", 4, 4, batch=batch)) for batch in range(1, 4)]

    expected = [launches(device, *call) for call in calls()]
    registration.prepared_calls.clear()
    own = [calls() for _ in range(4)]
    start = threading.Barrier(len(own))

    def work(calls):
        start.wait()
        return [[launches(device, *call) for call in calls] for _ in range(50)]

    with ThreadPoolExecutor(len(own)) as pool:
        found = list(pool.map(work, own))
    assert found == [[expected] * 50] * len(own)
    assert number_of_prepared() == 3
