"""Settings that allow products of reduced precision do not reach the operators, and are as before afterwards."""

import threading
from itertools import product

import pytest
import torch

import triton_lu
from triton_lu import aten, precision


@pytest.fixture
def tf32():
    torch.set_float32_matmul_precision("high")
    yield
    torch.set_float32_matmul_precision("highest")


def settings():
    return torch.backends.cuda.matmul.fp32_precision, torch.backends.mkldnn.matmul.fp32_precision


def spy(monkeypatch, module, name):
    """The settings in force whenever the function is called."""
    seen, function = [], getattr(module, name)

    def recorded(*args, **kwargs):
        seen.append(settings())
        return function(*args, **kwargs)

    monkeypatch.setattr(module, name, recorded)
    return seen


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64], ids=str)
def test_operators_run_in_full_precision(tf32, monkeypatch, dtype):
    seen = [spy(monkeypatch, aten, name) for name in ("factor", "vjp", "jvp")]
    before = settings()
    assert before == ("tf32", "tf32")
    A = torch.randn(5, 5, dtype=dtype, requires_grad=True)
    LU, _ = triton_lu.lu(A, pivot=False)
    LU.abs().sum().backward()
    torch.func.jvp(lambda A: triton_lu.lu(A)[0], (A.detach(),), (torch.ones_like(A),))
    assert settings() == before
    expected = before if dtype == torch.float64 else ("ieee", "ieee")  # double precision: nothing to protect
    assert all(each and set(each) == {expected} for each in seen)


def test_third_derivatives_run_in_full_precision(tf32, monkeypatch):
    """They hold no products besides the operators'."""
    seen = [spy(monkeypatch, aten, name) for name in ("jvp", "vjp", "curvature", "mixed")]
    outside = spy(monkeypatch, torch.Tensor, "__matmul__")
    A = torch.randn(4, 4)
    for first, second, third in product([torch.func.jacrev, torch.func.jacfwd], repeat=3):
        first(second(third(lambda A: triton_lu.lu(A)[0].square().sum())))(A)
    assert [{*each} for each in seen] == [{("ieee", "ieee")}] * 4
    assert not outside
    assert settings() == ("tf32", "tf32")


def test_the_last_thread_restores(tf32):
    X = torch.zeros(1)
    entered, leave = threading.Barrier(3), [threading.Event(), threading.Event()]

    def work(event):
        with precision.full_precision(X):
            entered.wait()
            event.wait()

    threads = [threading.Thread(target=work, args=(event,)) for event in leave]
    for thread in threads:
        thread.start()
    entered.wait()
    for event, thread in zip(leave, threads, strict=True):
        assert settings() == ("ieee", "ieee")
        event.set()
        thread.join()
    assert settings() == ("tf32", "tf32")


def test_restores_after_an_error(tf32):
    with pytest.raises(ZeroDivisionError), precision.full_precision(torch.zeros(1)):
        raise ZeroDivisionError
    assert settings() == ("tf32", "tf32")


def test_a_setting_that_follows_another_goes_on_to_follow_it():
    torch.backends.cuda.matmul.fp32_precision = torch.backends.mkldnn.matmul.fp32_precision = "none"
    with torch.backends.flags(fp32_precision="tf32"):
        assert settings() == ("tf32", "tf32")
        triton_lu.lu(torch.eye(3))
        assert settings() == ("tf32", "tf32")
        with torch.backends.flags(fp32_precision="ieee"):
            assert settings() == ("ieee", "ieee")
