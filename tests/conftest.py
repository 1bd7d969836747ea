"""Before anything imports Triton: the tests here run its kernels in the interpreter, on the CPU.

`tests/emulator`, which runs compiled kernels, is a suite of its own: `TRITON_INTERPRET=0 pytest tests/emulator`. Those
in `tests/launch` are compiled too; `tests/test_launches.py` runs them in a process of their own.
"""

import os
import tempfile

os.environ.setdefault("TRITON_INTERPRET", "1")
if "TORCHINDUCTOR_CACHE_DIR" not in os.environ:  # whatever other versions have compiled and kept stays out of it
    _cache = tempfile.TemporaryDirectory()
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = _cache.name
os.environ.setdefault("KINETO_LOG_LEVEL", "99")

import pytest
import torch
from hypothesis import HealthCheck, settings

from triton_lu import calibration

settings.register_profile(
    "default", max_examples=150, derandomize=True, deadline=None, suppress_health_check=list(HealthCheck)
)
settings.register_profile("thorough", settings.get_profile("default"), max_examples=10_000, derandomize=False)
settings.load_profile("default")

if os.environ["TRITON_INTERPRET"] == "1":
    collect_ignore = ["emulator", "gpu", "launch"]


def pytest_configure(config):
    """Compiled kernels are kept per checkout: in them are the names of its files, where the emulator reads lines."""
    os.environ.setdefault("TRITON_CACHE_DIR", str(config.rootpath / ".pytest_cache" / "triton"))


def pytest_collection_modifyitems(items):
    for item in items:
        if item.path.parent.name in ("emulator", "gpu"):
            item.add_marker(item.path.parent.name)


@pytest.fixture(autouse=True, scope="session")
def _default_plans(tmp_path_factory):
    """No test depends on a calibration of the machine it runs on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibration, "path", lambda: tmp_path_factory.getbasetemp() / "calibration.json")
        patch.setattr(calibration, "SHIPPED", tmp_path_factory.getbasetemp() / "calibrations")
        yield


@pytest.fixture(autouse=True)
def _reproducible():
    torch.manual_seed(0)
    torch.set_num_threads(1)  # pytest -n 2 runs as many processes as there are cores
