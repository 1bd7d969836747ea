"""`override`: the LU functions of PyTorch on this package, for the calls inside a `with` block.

It works above PyTorch's dispatcher, on calls from Python only; `triton_lu/_install.py` works inside it.
"""

from collections import Counter
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from triton_lu import linalg
from triton_lu.validation import DTYPES


class override(ContextDecorator, TorchFunctionMode):
    """Run the LU functions of PyTorch on this package for the duration of a `with` block (or decorated function).

    Replaced are torch.linalg.lu_factor, lu_factor_ex, lu and lu_solve, torch.lu and lu_solve, and the methods Tensor.lu
    and Tensor.lu_solve, also where they were imported by name before; torch.lu_unpack is the same in both. Signatures
    and results are PyTorch's; pivot=False works on CPUs too. The block holds for the thread that enters it, nests, may
    be entered again, and works inside and around torch.func transforms and torch.compile(fullgraph=True). The backward
    of what was computed in it needs none.

    A call is left to PyTorch where it has `out`, where an argument is no strided tensor of float32, float64, complex64
    or complex128 on a CPU or CUDA device, and where it is of a class with a `__torch_function__` of its own. Functions
    that factor a matrix inside, such as torch.linalg.det or solve, are not replaced. Every other call of PyTorch from
    Python takes about 2 µs more inside the block.

    Attributes:
        calls: collections.Counter, how often each function was replaced, by its name in PyTorch. Compiled code does
            not count: a count that changes would have it compiled anew each time.

    Example:
        >>> with triton_lu.override() as override:
        ...     LU, pivots = torch.linalg.lu_factor(torch.eye(3))
        >>> override.calls
        Counter({'torch.linalg.lu_factor': 1})
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()

    if TYPE_CHECKING:  # PyTorch's have no types, and it compiles modes with methods of their own only in part

        def __enter__(self) -> Self: ...
        def __exit__(self, *exc_info: object) -> None: ...

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = kwargs.get("out")
        if func not in REPLACEMENTS or out is not None or not _accepts(types, *args, *kwargs.values()):
            return func(*args, **kwargs)
        name, replacement = REPLACEMENTS[func]
        if not torch.compiler.is_compiling():
            self.calls[name] += 1
        kwargs.pop("out", None)
        return replacement(*args, **kwargs)


def _accepts(types: Any, *args: Any) -> bool:
    return all(cls is Tensor for cls in types) and all(
        _is_plain(x) if isinstance(x, Tensor) else isinstance(x, (int, type(None))) for x in args
    )


def _is_plain(x: Tensor) -> bool:
    return x.dtype in (*DTYPES, torch.int32) and x.layout == torch.strided and x.device.type in ("cpu", "cuda")


# With the names that the arguments have in PyTorch


def _lu(A: Tensor, pivot: bool = True, get_infos: bool = False) -> tuple[Tensor, ...]:
    factorization = linalg.lu_factor_ex(A, pivot=pivot)  # torch.lu does not raise for a singular matrix
    return factorization if get_infos else factorization[:2]


def _lu_method(self: Tensor, pivot: bool = True, get_infos: bool = False) -> tuple[Tensor, ...]:
    return _lu(self, pivot, get_infos)


def _lu_solve(input: Tensor, LU_data: Tensor, LU_pivots: Tensor) -> Tensor:
    return linalg.lu_solve(LU_data, LU_pivots, input)


def _lu_solve_method(self: Tensor, LU_data: Tensor, LU_pivots: Tensor) -> Tensor:
    return linalg.lu_solve(LU_data, LU_pivots, self)


REPLACEMENTS: dict[Callable[..., Any], tuple[str, Callable[..., Any]]] = {
    torch.linalg.lu_factor: ("torch.linalg.lu_factor", linalg.lu_factor),
    torch.linalg.lu_factor_ex: ("torch.linalg.lu_factor_ex", linalg.lu_factor_ex),
    torch.linalg.lu: ("torch.linalg.lu", linalg.lu),
    torch.linalg.lu_solve: ("torch.linalg.lu_solve", linalg.lu_solve),
    torch.lu: ("torch.lu", _lu),
    torch.lu_solve: ("torch.lu_solve", _lu_solve),
    torch.Tensor.lu: ("torch.Tensor.lu", _lu_method),
    torch.Tensor.lu_solve: ("torch.Tensor.lu_solve", _lu_solve_method),
}
