"""Differentiable LU factorization for PyTorch, with hand-written Triton kernels for its derivatives."""

from triton_lu import linalg
from triton_lu._backend import backend
from triton_lu._install import install, uninstall
from triton_lu._override import override
from triton_lu.api import lu, lu_unpack, permutation

__version__ = "0.1.0"
__all__ = ["backend", "install", "linalg", "lu", "lu_unpack", "override", "permutation", "uninstall"]
