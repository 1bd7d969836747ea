"""Where no Triton kernel runs, CUDA tensors take ATen's path; there is no GPU here, so its properties are made up."""

import sys

import pytest
import torch
import triton

import triton_lu
from triton_lu import aten_backend, hardware, ops, triton_backend
from triton_lu.bench import calibrate
from triton_lu.cli import doctor
from triton_lu.command import InputError

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def _asked_anew():
    hardware.obstacle.cache_clear()
    yield
    hardware.obstacle.cache_clear()


@pytest.fixture
def gpu(monkeypatch):
    """A GPU on which kernels run; the devices it has been asked for."""
    asked = []
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: asked.append(device) or (9, 0))
    return asked


def test_a_device_is_asked_once(gpu):
    assert [hardware.obstacle(GPU) for _ in range(3)] == [None] * 3
    assert hardware.obstacle(torch.device("cuda", 1)) is None
    assert gpu == [GPU, torch.device("cuda", 1)]


@pytest.mark.parametrize(("capability", "runs"), [((7, 5), False), ((8, 0), True), ((8, 9), True), ((12, 0), True)])
def test_an_old_gpu(gpu, monkeypatch, capability, runs):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert hardware.obstacle(GPU) == (None if runs else "compute capability 7.5 is below 8.0")


def test_a_gpu_of_another_maker(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert hardware.obstacle(GPU) == "the GPU is not NVIDIA's"
    assert hardware.obstacle(torch.device("cpu")) is None


@pytest.mark.parametrize("device", [GPU, torch.device("cpu")], ids=str)
def test_without_triton(gpu, monkeypatch, device):
    monkeypatch.setitem(sys.modules, "triton", None)
    assert hardware.obstacle(device) == "no module triton"


def test_an_old_triton(gpu, monkeypatch):
    monkeypatch.setattr(triton, "__version__", "3.5.1")
    assert hardware.obstacle(GPU) == "Triton 3.5.1 is older than 3.6"


def test_a_broken_triton(gpu, monkeypatch):
    def failing(name, *args, right=__import__):
        if name == "triton":
            raise OSError("libtriton.so: undefined symbol")
        return right(name, *args)

    monkeypatch.setattr("builtins.__import__", failing)
    assert hardware.obstacle(GPU) == "Triton cannot be imported: libtriton.so: undefined symbol"


def calls():
    """Every operator with a kernel, and arguments."""
    A = torch.randn(3, 4, 4)
    LU, pivots, _ = aten_backend.factor(A, True)
    yield ops.Factor, (A, True)
    yield ops.Permutation, (pivots, 4)
    for operator in (ops.Vjp, ops.Jvp, ops.Curvature):
        yield operator, (LU, pivots, A)


def test_operators_take_the_other_path(monkeypatch):
    for operator, arguments in calls():
        monkeypatch.setattr(triton_backend, operator.name, lambda *_: "kernel")
        monkeypatch.setattr(aten_backend, operator.name, lambda *_: "ATen")
        results = []
        for reason in (None, "too old"):
            monkeypatch.setattr(hardware, "obstacle", lambda _, reason=reason: reason)
            results.append(operator.run(*arguments, on_cuda=True))
        assert results == ["kernel", "ATen"], operator.name


def test_the_choice_of_kernels_is_refused(monkeypatch):
    monkeypatch.setattr(hardware, "obstacle", lambda _: "too old")
    for operator, arguments in calls():
        with triton_lu.backend("triton"), pytest.raises(RuntimeError, match="no Triton kernels for cpu: too old; use"):
            operator.run(*arguments, on_cuda=True)
        with triton_lu.backend("aten"):
            operator.run(*arguments, on_cuda=True)


@pytest.mark.parametrize(("hip", "kernels"), [(None, "Triton 3."), ("6.4", "none: the GPU is not NVIDIA's")])
def test_doctor_says_so(gpu, monkeypatch, hip, kernels):
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "a GPU")
    cells = [cell for column in doctor._installation().columns for cell in column.cells]
    assert any(str(cell).startswith(f"kernels: {kernels}") for cell in cells)


def test_there_is_nothing_to_calibrate(gpu, monkeypatch):
    monkeypatch.setattr(torch.version, "hip", "6.4")
    with pytest.raises(InputError, match="no kernels on cuda:0 to calibrate: the GPU is not NVIDIA's"):
        calibrate.run(GPU, None, 1.0, None)
