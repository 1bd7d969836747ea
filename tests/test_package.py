"""What importing the package costs and brings along."""

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import torch

import triton_lu


def run(code):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code], capture_output=True, text=True, check=True, env=environment
    ).stdout


def test_import_and_use_on_a_cpu_load_neither_triton_nor_dynamo():
    code = """
import sys, torch
before = set(sys.modules)
import triton_lu
A = torch.randn(2, 4, 4, requires_grad=True)
triton_lu.lu(A)[0].sum().backward()
heavy = {"triton", "torch._dynamo", "torch._inductor", "torch.distributed.tensor", "numpy", "rich", "triton_lu_kernels"}
print(sorted(heavy & (set(sys.modules) - before)))
"""
    assert run(code).strip() == "[]"


def test_public_names():
    assert set(triton_lu.__all__) == {
        "backend",
        "install",
        "linalg",
        "lu",
        "lu_unpack",
        "override",
        "permutation",
        "uninstall",
    }
    assert triton_lu.__version__


def test_no_public_name_hides_a_module():
    """`import triton_lu.backend` shall not give a function."""
    for module in pkgutil.iter_modules(triton_lu.__path__, "triton_lu."):
        if module.name != "triton_lu.__main__":
            importlib.import_module(module.name)
            assert inspect.ismodule(getattr(triton_lu, module.name.partition(".")[2])), module.name
    for name in triton_lu.__all__:
        if name != "linalg":
            with pytest.raises(ModuleNotFoundError):
                importlib.import_module(f"triton_lu.{name}")


def test_kernels_without_a_gpu_or_the_interpreter_say_what_is_missing():
    code = """
import torch, triton_lu
with triton_lu.backend("triton"):
    try:
        triton_lu.lu(torch.eye(3))
    except RuntimeError as error:
        print(error)
"""
    if not torch.cuda.is_available():
        assert "TRITON_INTERPRET=1" in run(code)


def test_version_is_written_once():
    root = Path(triton_lu.__file__).parents[1]
    project = tomllib.loads((root / "pyproject.toml").read_text())
    assert "version" not in project["project"]
    written = (root / project["tool"]["hatch"]["version"]["path"]).read_text()
    assert f'\n__version__ = "{triton_lu.__version__}"\n' in written
