"""`install` and `uninstall`: the LU operators of PyTorch on this package, for the whole process.

The kernels registered here stand under the Autograd keys of ATen's operators. Below them nothing changes, so the
factorization inside `triton_lu/aten_backend.py`, which runs below autograd, still finds PyTorch's own.
"""

from collections.abc import Callable
from typing import Any

import torch

from triton_lu import linalg
from triton_lu.api import DTYPES

OPERATORS: dict[str, Callable[..., Any]] = {
    "linalg_lu_factor_ex": linalg.lu_factor_ex,
    "linalg_lu": linalg.lu,
    "linalg_lu_solve": linalg.lu_solve,
}
TAG = "[triton_lu.install]"

_library: torch.library.Library | None = None


def install() -> None:
    """Run the LU operators of PyTorch on this package in the whole process, on CPU and CUDA, until `uninstall()`.

    Replaced are aten::linalg_lu_factor_ex, linalg_lu and linalg_lu_solve, in every thread, whoever calls them: their
    functions and methods in Python (torch.linalg.lu_factor, torch.lu, Tensor.lu ... are made of them), TorchScript,
    C++ and the backwards of other operators. Forward and backward, autograd, torch.func and torch.compile.

    Left to PyTorch: variants with `out`, dtypes other than float32, float64, complex64 and complex128, devices other
    than CPU and CUDA, inference mode (it has no derivatives to replace), and torch.lu_unpack, the same in both.
    torch.linalg.det, solve and inv have operators of their own that factor inside and keep their derivatives.

    Code compiled before stays as it was until `torch._dynamo.reset()`. Caches of compiled code on disk are kept apart
    from those of processes without it by `torch.compiler.config.cache_key_tag`, which belongs to the thread in
    recent versions of PyTorch: call `install()` in the thread that compiles.

    Calling it twice does nothing more.

    Example:
        >>> triton_lu.install()
        >>> A = torch.eye(3, requires_grad=True)
        >>> torch.linalg.lu_factor(A).LU.grad_fn.name()
        'FactorBackward'
        >>> triton_lu.uninstall()
    """
    global _library
    if _library is not None:
        return
    _library = torch.library.Library("aten", "IMPL")
    for name, replacement in OPERATORS.items():
        for key in ("AutogradCPU", "AutogradCUDA"):
            native = torch.library.get_kernel(f"aten::{name}", key)
            _library.impl(name, _kernel(native, replacement), key, with_keyset=True)
    torch.compiler.config.cache_key_tag += TAG


def uninstall() -> None:
    """Undo `install()`. Graphs of autograd that exist already keep the derivatives of this package.

    Example:
        >>> triton_lu.install()
        >>> triton_lu.uninstall()
    """
    global _library
    if _library is None:
        return
    _library = None  # registrations live as long as their library
    before, _, after = torch.compiler.config.cache_key_tag.rpartition(TAG)  # others may have appended theirs
    torch.compiler.config.cache_key_tag = before + after


def _kernel(native: Any, replacement: Callable[..., Any]) -> Callable[..., Any]:
    def kernel(keyset: Any, A: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        if A.dtype not in DTYPES:
            return native.call_boxed(keyset, A, *args, **kwargs)
        return replacement(A, *args, **kwargs)

    return kernel
