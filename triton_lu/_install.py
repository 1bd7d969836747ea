"""`install` and `uninstall`: the operators of PyTorch that factorize by LU on this package, for the whole process.

The kernels registered here replace those under the Autograd keys of ATen's operators. Below autograd nothing changes,
so that `triton_lu/aten_backend.py` still finds PyTorch's own factorization there.
"""

from collections.abc import Callable, Collection
from threading import Lock
from typing import Any

import torch
from torch import Tensor

from triton_lu import linalg, ops, plan
from triton_lu._version import __version__
from triton_lu.api import by_columns, solution
from triton_lu.autograd_key import forget_kernels, is_differentiated
from triton_lu.validation import DTYPES, FAMILY, require_family, require_square

_library: torch.library.Library | None = None
_tag = ""
"""What is in the keys of caches while it is installed."""
_lock = Lock()


def install(only: Collection[str] = FAMILY) -> None:
    """Run the LU family of PyTorch on this package in the whole process, on CPU and CUDA, until `uninstall()`.

    Replaced are the operators aten::

    - "lu": linalg_lu_factor_ex, linalg_lu and linalg_lu_solve,
    - "slogdet": _linalg_slogdet, "det": _linalg_det, "solve": _linalg_solve_ex, "inv": linalg_inv_ex,

    in every thread, whoever calls them: their functions and methods in Python (torch.lu, torch.logdet, Tensor.det,
    torch.linalg.solve ... are made of them), TorchScript, C++ and the backwards of other operators. Forward and
    backward, autograd, torch.func and torch.compile.

    Where nothing is differentiated and the result would be PyTorch's own (`lu_solve`'s anywhere, and on a CPU,
    with pivots, all others but `det`'s), its own operator runs, and takes 3 µs longer.

    Args:
        only: which of these five; all by default.

    Left to PyTorch: variants with `out`, dtypes other than float32, float64, complex64 and complex128, devices other
    than CPU and CUDA, inference mode (it has no derivatives to replace), and torch.lu_unpack, the same in both.

    Code compiled before stays as it was until `torch._dynamo.reset()`. Caches of compiled code on disk are kept apart
    from those of processes without it by `torch.compiler.config.cache_key_tag`, which belongs to the thread in
    recent versions of PyTorch: call `install()` in the thread that compiles.

    Calling it twice does nothing more: to choose anew, call `uninstall()` first.

    Example:
        >>> triton_lu.install()
        >>> A = torch.eye(3, requires_grad=True)
        >>> torch.linalg.lu_factor(A).LU.grad_fn.name()
        'FactorBackward'
        >>> triton_lu.uninstall()
    """
    global _library, _tag
    require_family("install", only)
    with _lock:
        if _library is not None:
            return
        _library = torch.library.Library("aten", "IMPL")
        for name, (kind, replacement, is_native) in REPLACEMENTS.items():
            if kind not in only:
                continue
            for key in ("AutogradCPU", "AutogradCUDA"):
                native = torch.library.get_kernel(f"aten::{name}", key)
                _library.impl(name, _kernel(native, replacement, is_native), key, with_keyset=True)
        _forget_kernels()
        _tag = f"[triton_lu.install {__version__}: {' '.join(sorted(set(only)))}]"
        torch.compiler.config.cache_key_tag += _tag


def uninstall() -> None:
    """Undo `install()`. Graphs of autograd that exist already keep the derivatives of this package.

    Example:
        >>> triton_lu.install()
        >>> triton_lu.uninstall()
    """
    global _library
    with _lock:
        if _library is None:
            return
        _library = None  # registrations live as long as their library
        _forget_kernels()
        before, _, after = torch.compiler.config.cache_key_tag.rpartition(_tag)  # others may have appended theirs
        torch.compiler.config.cache_key_tag = before + after


def _lu_factor_ex(A: Tensor, *, pivot: bool = True, check_errors: bool = False) -> tuple[Tensor, ...]:
    LU, pivots, infos = ops.Factor.autograd(A, pivot)
    if check_errors:
        ops.check(infos, "linalg.lu_factor_ex")
    return LU, pivots, infos


def _lu_solve(LU: Tensor, pivots: Tensor, B: Tensor, *, left: bool = True, adjoint: bool = False) -> Tensor:
    return ops.LuSolve.autograd(LU, pivots, B, left, adjoint)


def _slogdet(A: Tensor) -> tuple[Tensor, ...]:
    return ops.Slogdet.autograd(by_columns(require_square("linalg.slogdet", A)))


def _det(A: Tensor) -> tuple[Tensor, ...]:
    return ops.Det.autograd(by_columns(require_square("linalg.det", A)))


def _solve_ex(A: Tensor, B: Tensor, *, left: bool = True, check_errors: bool = False) -> tuple[Tensor, ...]:
    X, LU, pivots, infos = solution("linalg.solve", A, B, left)
    if check_errors:
        ops.check(infos, "linalg.solve")
    return X, LU, pivots, infos


def _is_native(A: Tensor, *_: Tensor, pivot: bool = True, **__: bool) -> bool:
    """Whether a factorization here would be one call of PyTorch's."""
    return pivot and not ops.Factor.by_kernel(A, on_cuda=A.is_cuda) and not plan.one_by_one(A.shape, A.device.type)


def _always(*_: Tensor, **__: bool) -> bool:
    return True


def _never(*_: Tensor, **__: bool) -> bool:
    return False


REPLACEMENTS: dict[str, tuple[str, Callable[..., Any], Callable[..., bool]]] = {
    "linalg_lu_factor_ex": ("lu", _lu_factor_ex, _is_native),
    "linalg_lu": ("lu", linalg.lu, _is_native),
    "linalg_lu_solve": ("lu", _lu_solve, _always),
    "_linalg_slogdet": ("slogdet", _slogdet, _is_native),
    "_linalg_det": ("det", _det, _never),  # PyTorch's may overflow
    "_linalg_solve_ex": ("solve", _solve_ex, _is_native),
    "linalg_inv_ex": ("inv", linalg.inv_ex, _is_native),
}


def _forget_kernels() -> None:
    for name in REPLACEMENTS:
        forget_kernels(getattr(torch.ops.aten, name).default)


def _kernel(native: Any, replacement: Callable[..., Any], is_native: Callable[..., bool]) -> Callable[..., Any]:
    """An operator's kernel for an Autograd key: native where no derivative is needed and the result is the same."""

    def kernel(keyset: Any, *args: Any, **kwargs: Any) -> Any:
        A = args[0]
        if A.dtype in DTYPES and A.ndim >= 2 and (is_differentiated(args) or not is_native(*args, **kwargs)):
            return replacement(*args, **kwargs)
        return native.call_boxed(keyset, *args, **kwargs)

    return kernel
