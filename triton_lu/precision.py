"""Products of single-precision matrices in single precision, whatever else the process allows.

`torch.backends.cuda.matmul.allow_tf32`, `torch.set_float32_matmul_precision` and their kin let matrix products drop 13
of 24 bits. A factorization or its derivative would multiply that error by its condition, so PyTorch's own LU refuses.
"""

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor

_settings = (torch.backends.cuda.matmul, torch.backends.mkldnn.matmul)  # type: ignore[attr-defined]
_lock = threading.Lock()
_allowed: list[str] = []  # the settings outside
_inside = 0  # calls of `_full` that have not ended, in all threads


def full_precision(X: Tensor) -> AbstractContextManager[None]:
    """A context in which products of matrices like X round as IEEE 754 says.

    The settings belong to the process: while the context lasts, other threads lose speed, never precision.
    """
    single = X.dtype in (torch.float32, torch.complex64)
    return _full() if single and (_inside or _is_reduced(on_cuda=X.is_cuda)) else nullcontext()


def _is_reduced(*, on_cuda: bool) -> bool:
    return _settings[0 if on_cuda else 1].fp32_precision not in ("none", "ieee")


@contextmanager
def _full() -> Iterator[None]:
    global _inside, _allowed
    with _lock:
        if not _inside:
            _allowed = [_take(setting) for setting in _settings]
            _set(["ieee"] * len(_settings))
        _inside += 1
    try:
        yield
    finally:
        with _lock:
            _inside -= 1
            if not _inside:  # the last one out restores what the first one found
                _set(_allowed)


def _take(setting: Any) -> str:
    """The value of a setting, "none" if it follows the settings above it, as it does from now on."""
    value = setting.fp32_precision
    setting.fp32_precision = "none"
    return "none" if setting.fp32_precision == value else value


def _set(values: list[str]) -> None:
    for setting, value in zip(_settings, values, strict=True):
        setting.fp32_precision = value
