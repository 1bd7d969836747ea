"""Which implementation the operators run on."""

from collections.abc import Iterator
from contextlib import contextmanager

CHOICES = ("auto", "triton", "aten")

_choice = "auto"  # of the process, not of a thread: autograd runs CUDA backwards in threads of its own


def current() -> str:
    """The choice in force: "auto", "triton" or "aten"."""
    return _choice


@contextmanager
def backend(choice: str) -> Iterator[None]:
    """Choose the implementation of the operators for the duration of a `with` block (or decorated function).

    The choice is read when an operator executes, so a backward uses the backend in force when it runs, and compiled
    programs obey it too. It is one setting of the process; do not change it from several threads at once.

    Args:
        choice: "auto", the default: ATen for CPU tensors; for CUDA tensors Triton kernels, and ATen where there is
            none. "triton": the kernels, on whatever tensors they are given (also CPU tensors under Triton's
            interpreter); a derivative for which there is no kernel raises NotImplementedError. "aten": ATen
            operations on any device. Factorizations without a kernel are ATen's under every choice.

    Raises:
        ValueError: for any other choice.
    """
    global _choice
    if choice not in CHOICES:
        raise ValueError(f"`backend` expects one of {', '.join(map(repr, CHOICES))}; got {choice!r}")
    previous, _choice = _choice, choice
    try:
        yield
    finally:
        _choice = previous
