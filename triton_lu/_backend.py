"""Which implementation the operators run on."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal, get_args

import torch

from triton_lu.autograd_key import is_fx_symbolic_tracing

Choice = Literal["auto", "triton", "aten"]
CHOICES = get_args(Choice)

# Of the process, not of a thread: autograd runs CUDA backwards in threads of its own. The second member makes entries
# distinct, because blocks of several threads need not end in the reverse order.
_entered: list[tuple[Choice, object]] = [("auto", None)]


def current() -> Choice:
    """The choice in force."""
    return _entered[-1][0]


@contextmanager
def backend(choice: Choice) -> Iterator[None]:
    """Choose the implementation of the operators for the duration of a `with` block (or decorated function).

    The choice is read when an operator executes, so a backward uses the backend in force when it runs, and compiled
    programs obey it too: enter it around their calls. Code that is compiled or traced cannot enter it, because only
    operators are recorded; without fullgraph, torch.compile leaves a function that enters it uncompiled. It is one
    setting of the process: of the blocks that any threads are in, the one entered last decides.

    Args:
        choice: "auto", the default: ATen for CPU tensors; for CUDA tensors Triton kernels, and ATen where there is
            none. "triton": the kernels, on whatever tensors they are given (also CPU tensors under Triton's
            interpreter); a derivative for which there is no kernel raises NotImplementedError. "aten": ATen
            operations on any device. Solutions, factorizations and products of higher derivatives without a kernel
            are ATen's under every choice.

    CUDA tensors have no kernels without Triton, on GPUs of other makers, or below compute capability 8.0.

    Raises:
        ValueError: for any other choice. RuntimeError: entered in code that is being compiled, exported or traced. An
        operator raises RuntimeError under "triton" where no kernels run on the device of its tensors.

    Example:
        >>> A = torch.eye(3, requires_grad=True)
        >>> LU, pivots = triton_lu.lu(A)
        >>> with triton_lu.backend("aten"):
        ...     LU.sum().backward()
    """
    if choice not in CHOICES:
        raise ValueError(f"`backend` expects one of {', '.join(map(repr, CHOICES))}; got {choice!r}")
    # Not in a function of its own: after a graph break torch.compile would compile that one, and the answer be True.
    if torch.compiler.is_compiling() or is_fx_symbolic_tracing() or torch.jit.is_tracing():
        raise RuntimeError("`backend` cannot be entered in code that is compiled or traced: enter it around the call")
    entry: tuple[Choice, object] = (choice, object())
    _entered.append(entry)
    try:
        yield
    finally:
        _entered.remove(entry)
