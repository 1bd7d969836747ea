"""Differentiable LU factorization for PyTorch, with hand-written Triton kernels for its derivatives."""

from triton_lu import linalg
from triton_lu.api import lu, lu_unpack, permutation
from triton_lu.backend import backend
from triton_lu.install import install, uninstall
from triton_lu.override import override

__version__ = "0.1.0"
__all__ = ["backend", "install", "linalg", "lu", "lu_unpack", "override", "permutation", "uninstall"]
