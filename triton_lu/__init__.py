"""Differentiable LU factorization for PyTorch, with hand-written Triton kernels for its derivatives."""

from triton_lu import linalg
from triton_lu._backend import backend
from triton_lu._install import install, uninstall
from triton_lu._override import override
from triton_lu._version import __version__ as __version__
from triton_lu.api import lu, lu_unpack, permutation

__all__ = ["backend", "install", "linalg", "lu", "lu_unpack", "override", "permutation", "uninstall"]
