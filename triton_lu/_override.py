"""`override`: what PyTorch computes by an LU factorization on this package, for the calls inside a `with` block.

It works above PyTorch's dispatcher, on calls from Python only; `triton_lu/_install.py` works inside it.
"""

from collections import Counter
from collections.abc import Callable, Collection
from contextlib import ContextDecorator
from typing import TYPE_CHECKING, Any, Self

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from triton_lu import linalg
from triton_lu.validation import DTYPES, FAMILY, require_family


class override(ContextDecorator, TorchFunctionMode):
    """Run the LU family of PyTorch on this package for the duration of a `with` block (or decorated function).

    Replaced are, also where they were imported by name before,

    - "lu": torch.linalg.lu_factor, lu_factor_ex, lu and lu_solve, torch.lu and lu_solve, Tensor.lu and lu_solve;
    - "slogdet": torch.linalg.slogdet, torch.slogdet and logdet, Tensor.slogdet and logdet;
    - "det": torch.linalg.det, torch.det, Tensor.det;
    - "solve": torch.linalg.solve and solve_ex;
    - "inv": torch.linalg.inv and inv_ex, torch.inverse, Tensor.inverse.

    torch.lu_unpack is the same in both. Signatures and results are PyTorch's; pivot=False works on CPUs too. The block
    holds for the thread that enters it, nests, may be entered again, and works inside and around torch.func transforms
    and torch.compile(fullgraph=True). The backward of what was computed in it needs none.

    Args:
        only: which of these five; all by default.

    A call is left to PyTorch where it has `out`, where an argument is no strided tensor of float32, float64, complex64
    or complex128 on a CPU or CUDA device, and where it is of a class with a `__torch_function__` of its own. Every
    other call of PyTorch from Python takes about 2 µs more inside the block.

    Attributes:
        calls: collections.Counter, how often each function was replaced, by its name in PyTorch. Compiled code does
            not count: a count that changes would have it compiled anew each time.

    Example:
        >>> with triton_lu.override() as override:
        ...     LU, pivots = torch.linalg.lu_factor(torch.eye(3))
        >>> override.calls
        Counter({'torch.linalg.lu_factor': 1})
    """

    def __init__(self, only: Collection[str] = FAMILY) -> None:
        super().__init__()
        require_family("override", only)
        self._only = frozenset(only)
        self.calls: Counter[str] = Counter()

    if TYPE_CHECKING:  # PyTorch's have no types, and it compiles modes with methods of their own only in part

        def __enter__(self) -> Self: ...
        def __exit__(self, *exc_info: object) -> None: ...

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = kwargs.get("out")
        kind, name, replacement = REPLACEMENTS.get(func, (None, "", func))
        if kind not in self._only or out is not None or not _accepts(types, *args, *kwargs.values()):
            return func(*args, **kwargs)
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


def _slogdet(input: Tensor) -> torch.return_types.slogdet:
    return torch.return_types.slogdet(linalg.slogdet(input))


def _slogdet_method(self: Tensor) -> torch.return_types.slogdet:
    return _slogdet(self)


def _det(input: Tensor) -> Tensor:
    return linalg.det(input)


def _det_method(self: Tensor) -> Tensor:
    return linalg.det(self)


def _logdet(input: Tensor) -> Tensor:
    return linalg.logdet(input)


def _logdet_method(self: Tensor) -> Tensor:
    return linalg.logdet(self)


def _inverse(input: Tensor) -> Tensor:
    return linalg.inv(input)


def _inverse_method(self: Tensor) -> Tensor:
    return linalg.inv(self)


REPLACEMENTS: dict[Callable[..., Any], tuple[str, str, Callable[..., Any]]] = {
    torch.linalg.lu_factor: ("lu", "torch.linalg.lu_factor", linalg.lu_factor),
    torch.linalg.lu_factor_ex: ("lu", "torch.linalg.lu_factor_ex", linalg.lu_factor_ex),
    torch.linalg.lu: ("lu", "torch.linalg.lu", linalg.lu),
    torch.linalg.lu_solve: ("lu", "torch.linalg.lu_solve", linalg.lu_solve),
    torch.lu: ("lu", "torch.lu", _lu),
    torch.lu_solve: ("lu", "torch.lu_solve", _lu_solve),
    torch.Tensor.lu: ("lu", "torch.Tensor.lu", _lu_method),
    torch.Tensor.lu_solve: ("lu", "torch.Tensor.lu_solve", _lu_solve_method),
    torch.linalg.slogdet: ("slogdet", "torch.linalg.slogdet", linalg.slogdet),
    torch.slogdet: ("slogdet", "torch.slogdet", _slogdet),
    torch.logdet: ("slogdet", "torch.logdet", _logdet),
    torch.Tensor.slogdet: ("slogdet", "torch.Tensor.slogdet", _slogdet_method),
    torch.Tensor.logdet: ("slogdet", "torch.Tensor.logdet", _logdet_method),
    torch.linalg.det: ("det", "torch.linalg.det", linalg.det),
    torch.det: ("det", "torch.det", _det),
    torch.Tensor.det: ("det", "torch.Tensor.det", _det_method),
    torch.linalg.solve: ("solve", "torch.linalg.solve", linalg.solve),
    torch.linalg.solve_ex: ("solve", "torch.linalg.solve_ex", linalg.solve_ex),
    torch.linalg.inv: ("inv", "torch.linalg.inv", linalg.inv),
    torch.linalg.inv_ex: ("inv", "torch.linalg.inv_ex", linalg.inv_ex),
    torch.inverse: ("inv", "torch.inverse", _inverse),
    torch.Tensor.inverse: ("inv", "torch.Tensor.inverse", _inverse_method),
}
