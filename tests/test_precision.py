"""Settings that allow products of reduced precision do not reach the operators, and are as before afterwards."""

import threading
from functools import partial
from itertools import product

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

import triton_lu
from tests.support.nestings import SECOND
from triton_lu import aten_backend, plan, precision, systems


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


class Products(TorchDispatchMode):
    """The settings in force at every product of matrices."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if "mm" in function._schema.name:
            self.seen.append(settings())
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64, torch.float64], ids=str)
@pytest.mark.parametrize("shape", [(130, 130), (3, 40, 40)], ids=str)
def test_products_are_in_full_precision(tf32, shape, dtype):
    before = settings()
    assert before == ("tf32", "tf32")
    LU, pivots, _ = aten_backend.factor(torch.randn(shape, dtype=dtype), True)
    maps = {name: partial(getattr(aten_backend, name), LU, pivots, LU) for name in ("vjp", "jvp", "curvature", "mixed")}
    maps["factor"] = partial(aten_backend.factor, LU, False)
    for equation in ((True, False), (False, False)):
        maps["lu_solve_vjp"] = partial(aten_backend.lu_solve_vjp, LU, pivots, LU, LU, LU, *equation)
        maps["lu_solve_jvp"] = partial(systems.lu_solve_jvp, LU, pivots, LU, LU, LU, *equation)
    for name, compute in maps.items():
        with Products() as products:
            compute()
        assert products.seen
        expected = before if dtype == torch.float64 else ("ieee", "ieee")  # double precision: nothing to protect
        assert {*products.seen} == {expected}, name
        assert settings() == before


def test_third_derivatives_are_in_full_precision(tf32, monkeypatch):
    """They hold no products besides the operators'."""
    operators = [spy(monkeypatch, aten_backend, name) for name in ("jvp", "vjp", "curvature", "mixed")]
    inside = [(torch, "bmm"), (torch.Tensor, "addmm_"), (torch.Tensor, "baddbmm_")]
    seen = [spy(monkeypatch, *product) for product in inside]
    outside = spy(monkeypatch, torch.Tensor, "__matmul__")
    monkeypatch.setattr(plan, "in_numpy", lambda *problem: None)
    A = torch.randn(4, 4)
    for first, second, third in product([torch.func.jacrev, torch.func.jacfwd], repeat=3):
        first(second(third(lambda A: triton_lu.lu(A)[0].square().sum())))(A)
    assert all(operators)
    assert [{*each} for each in seen] == [{("ieee", "ieee")}] * 3
    assert not outside
    assert settings() == ("tf32", "tf32")


@pytest.mark.parametrize("name", ["det", "inv", "solve"])
@pytest.mark.parametrize("mode", SECOND)
@pytest.mark.parametrize("reduced_by", ["setting", "compiler"])
def test_second_derivatives_hold_no_products_of_torch(tf32, monkeypatch, reduced_by, mode, name):
    """But those inside the operators."""
    other = "is_traced" if reduced_by == "setting" else "_is_reduced"
    monkeypatch.setattr(precision, other, lambda *_: False)
    function, args = getattr(triton_lu.linalg, name), [torch.randn(3, 3)] if name == "solve" else []
    with Products() as products:
        SECOND[mode](lambda A: function(A, *args).square().sum())(torch.randn(3, 3))
    assert not products.seen


def test_products_of_a_gradient_are_in_full_precision(tf32, monkeypatch):
    seen = spy(monkeypatch, torch, "matmul")
    A = torch.randn(3, 3, requires_grad=True)
    (triton_lu.linalg.inv(A) + triton_lu.linalg.solve(A, torch.eye(3))).sum().backward()
    assert seen == [("ieee", "ieee")] * 3


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


class Setting:
    def __init__(self, value, above):
        self.values, self.above = [value], above

    @property
    def fp32_precision(self):
        return self.above if self.values[-1] == "none" else self.values[-1]

    @fp32_precision.setter
    def fp32_precision(self, value):
        self.values.append(value)


def test_no_thread_undoes_what_another_relies_on(monkeypatch):
    """One comes and goes while another looks whether there is anything to do."""
    X = torch.zeros(1)
    entered, leave = threading.Event(), threading.Event()

    def other():
        with precision.full_precision(X):
            entered.set()
            leave.wait()

    thread = threading.Thread(target=other)

    class Interrupted(Setting):
        @property
        def fp32_precision(self):
            if thread.ident is None:
                thread.start()
                entered.wait(0.5)  # in vain if there is a lock
            return Setting.fp32_precision.fget(self)

        @fp32_precision.setter
        def fp32_precision(self, value):
            self.values.append(value)

    setting = Interrupted("tf32", "tf32")
    monkeypatch.setattr(precision, "_settings", (setting, setting))
    with precision.full_precision(X):
        leave.set()
        thread.join()
        assert setting.fp32_precision == "ieee"
    assert setting.fp32_precision == "tf32"


def test_a_setting_at_full_precision_is_not_touched(monkeypatch):
    """Not for a moment: another thread may be inside a context that found it so."""
    cuda, cpu = Setting("ieee", "tf32"), Setting("tf32", "tf32")
    monkeypatch.setattr(precision, "_settings", (cuda, cpu))
    with precision.full_precision(torch.zeros(1)):
        assert cpu.fp32_precision == "ieee"
    assert cuda.values == ["ieee"]
    assert cpu.fp32_precision == "tf32"


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
