"""Every public function has an example in its docstring, and the examples are right."""

import doctest

import pytest
import torch

import triton_lu
from triton_lu import linalg

PUBLIC = {name: getattr(triton_lu, name) for name in triton_lu.__all__ if name != "linalg"}
PUBLIC |= {f"linalg.{name}": x for name, x in vars(linalg).items() if getattr(x, "__module__", "") == linalg.__name__}
PUBLIC = {name: x for name, x in PUBLIC.items() if not name.startswith("linalg._")}


@pytest.mark.parametrize("name", PUBLIC)
def test_example(name):
    names = {"torch": torch, "triton_lu": triton_lu}
    (found,) = doctest.DocTestFinder(recurse=False).find(PUBLIC[name], name, globs=names)
    assert found.examples
    assert doctest.DocTestRunner().run(found).failed == 0
