"""`full_precision` and `product`: products in single precision have its digits, whatever the process allows.

`torch.backends.cuda.matmul.allow_tf32`, `torch.set_float32_matmul_precision` and their kin let matrix products drop 13
of 24 bits. A factorization or its derivative would multiply that error by its condition, so PyTorch's own LU refuses.
"""

import threading
from functools import reduce
from typing import Any

import torch
from torch import Tensor

from triton_lu.autograd_key import is_observed, is_traced

_settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
_lock = threading.Lock()
_replaced: list[tuple[Any, str]] = []  # settings that would reduce precision, with their values outside
_inside = 0  # contexts that rely on `_replaced` and have not ended, in all threads


class full_precision:
    """A context in which products of matrices like X round as IEEE 754 says.

    The settings belong to the process: while the context lasts, other threads lose speed, never precision.
    """

    def __init__(self, X: Tensor) -> None:
        self._X = X

    def __enter__(self) -> None:
        self._counted = self._X.dtype in (torch.float32, torch.complex64) and _enter(on_cuda=self._X.is_cuda)

    def __exit__(self, *_: object) -> None:
        if self._counted:
            _leave()


def product(*matrices: Tensor) -> Tensor:
    """Their product in full precision, also in its derivatives and in compiled code: there by an operator, which takes
    the time of two products of small matrices. All have the same batch.
    """
    X = matrices[0]
    if not _may_be_reduced(X):
        return reduce(torch.matmul, matrices)
    if is_observed(matrices):
        return reduce(torch.ops.triton_lu.product.default, matrices)
    with full_precision(X):
        return reduce(torch.matmul, matrices)


def _may_be_reduced(X: Tensor) -> bool:
    """Whether products of matrices like X are, by a setting or by autocast, or may be, in compiled code."""
    if X.dtype not in (torch.float32, torch.complex64):
        return False
    device = "cuda" if X.is_cuda else "cpu"
    return (
        bool(_replaced)
        or _is_reduced(_settings[0 if X.is_cuda else 1])
        or torch.is_autocast_enabled(device)
        or is_traced()
    )


def _enter(*, on_cuda: bool) -> bool:
    """Whether the settings are kept at full precision until `_leave`: not if they are anyway.

    Under the lock: between the test and the count another thread could restore a reduced precision.
    """
    global _inside
    with _lock:
        if not _inside:
            if not _is_reduced(_settings[0 if on_cuda else 1]):
                return False
            for setting in filter(_is_reduced, _settings):  # the others stay: contexts that are not counted use them
                _replaced.append((setting, _take(setting)))
        _inside += 1
        return True


def _leave() -> None:
    global _inside
    with _lock:
        _inside -= 1
        while not _inside and _replaced:  # the last one out restores what the first one found
            setting, value = _replaced.pop()
            setting.fp32_precision = value


def _is_reduced(setting: Any) -> bool:
    return setting.fp32_precision not in ("none", "ieee")


def _take(setting: Any) -> str:
    """The value of a setting, "none" if it follows the settings above it; full precision from now on."""
    value = setting.fp32_precision
    setting.fp32_precision = "none"
    follows = setting.fp32_precision == value
    setting.fp32_precision = "ieee"
    return "none" if follows else value
