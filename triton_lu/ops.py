"""The operators `torch.ops.triton_lu.*`: schemas, shapes for tracing, implementations, batching and autocast rules.

Operators are opaque to compilers: one node in a graph, whatever number of kernels they launch. Derivatives are
registered in `autograd.py`. Layouts: LU is column-major as LAPACK leaves it, and so is its tangent, which forward AD
would copy otherwise; all other matrices are row-major.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from triton_lu import aten_backend, plan
from triton_lu._backend import current
from triton_lu.results import empty_column_major, empty_factors, empty_row_major, empty_solution

_library = torch.library.Library("triton_lu", "DEF")


def _define(schema: str, *tags: torch.Tag) -> torch._ops.OpOverload:
    _library.define(schema, tags=(torch.Tag.pt2_compliant_tag, *tags))
    return getattr(torch.ops.triton_lu, schema.partition("(")[0]).default


factor = _define("factor(Tensor A, bool pivot=True) -> (Tensor LU, Tensor pivots, Tensor infos)")
vjp = _define("vjp(Tensor LU, Tensor pivots, Tensor G) -> Tensor")
jvp = _define("jvp(Tensor LU, Tensor pivots, Tensor E) -> Tensor")
curvature = _define("curvature(Tensor D, Tensor pivots, Tensor Y) -> Tensor")
mixed = _define("mixed(Tensor D, Tensor pivots, Tensor dB) -> Tensor")
lu_solve = _define("lu_solve(Tensor LU, Tensor pivots, Tensor B, bool left, bool adjoint) -> Tensor")
lu_solve_vjp = _define(
    "lu_solve_vjp(Tensor LU, Tensor pivots, Tensor B, Tensor X, Tensor G, bool left, bool adjoint) -> (Tensor, Tensor)"
)
permutation = _define("permutation(Tensor pivots, SymInt m) -> Tensor")
check = _define("check(Tensor infos, str name) -> ()", torch.Tag.cudagraph_unsafe)  # it waits for the infos
torch.fx.node.has_side_effect(check)  # an exception is all it does: compilers must keep it


# Shapes, dtypes and strides, for tracing without data


def _factor_shapes(A: Tensor, pivot: bool = True) -> tuple[Tensor, Tensor, Tensor]:
    return empty_factors(A)


def _vjp_shapes(LU: Tensor, pivots: Tensor, G: Tensor) -> Tensor:
    return empty_row_major(G)


def _jvp_shapes(LU: Tensor, pivots: Tensor, E: Tensor) -> Tensor:
    return empty_column_major(E)


def _product_shapes(D: Tensor, pivots: Tensor, X: Tensor) -> Tensor:
    return empty_row_major(X)


def _lu_solve_shapes(LU: Tensor, pivots: Tensor, B: Tensor, left: bool, adjoint: bool) -> Tensor:
    batch = torch.broadcast_shapes(LU.shape[:-2], B.shape[:-2])
    return empty_solution(B.expand(*batch, *B.shape[-2:]), left)


def _lu_solve_vjp_shapes(
    LU: Tensor, pivots: Tensor, B: Tensor, X: Tensor, G: Tensor, left: bool, adjoint: bool
) -> tuple[Tensor, Tensor]:
    return empty_row_major(LU), empty_solution(X, left)


def _permutation_shapes(pivots: Tensor, m: int) -> Tensor:
    return pivots.new_empty((*pivots.shape[:-1], m), dtype=torch.int64)


def _check_shapes(infos: Tensor, name: str) -> None:
    return None


_shapes: dict[str, Callable[..., Any]] = {
    "factor": _factor_shapes,
    "vjp": _vjp_shapes,
    "jvp": _jvp_shapes,
    "curvature": _product_shapes,
    "mixed": _product_shapes,
    "lu_solve": _lu_solve_shapes,
    "lu_solve_vjp": _lu_solve_vjp_shapes,
    "permutation": _permutation_shapes,
    "check": _check_shapes,
}
for _name, _fake in _shapes.items():
    torch.library.register_fake(f"triton_lu::{_name}", _fake, lib=_library)


# Implementations


def by_kernel(name: str, X: Tensor, on_cuda: bool) -> bool:
    """Whether the backend in force means Triton for this problem."""
    choice = current()
    if choice == "auto" and on_cuda:
        m, n = X.shape[-2:]
        return _has_kernel(name, X) and plan.kernel_pays(name, m, n, X.dtype)
    return choice == "triton"


def _has_kernel(name: str, X: Tensor) -> bool:
    m, n = X.shape[-2:]
    return plan.kernel(name, m, n, X.dtype) is not None


def _run_factor(A: Tensor, pivot: bool = True, *, on_cuda: bool) -> tuple[Tensor, Tensor, Tensor]:
    if by_kernel("factor", A, on_cuda) and _has_kernel("factor", A):
        from triton_lu import triton_backend  # imports Triton

        return triton_backend.factor(A, pivot)
    return aten_backend.factor(A, pivot)


def _run_map(LU: Tensor, pivots: Tensor, X: Tensor, *, name: str, on_cuda: bool) -> Tensor:
    """`vjp` or `jvp`."""
    if by_kernel(name, X, on_cuda):
        from triton_lu import triton_backend

        return getattr(triton_backend, name)(LU, pivots, X)
    return getattr(aten_backend, name)(LU, pivots, X)


def _run_product(D: Tensor, pivots: Tensor, X: Tensor, *, name: str, on_cuda: bool) -> Tensor:
    """`curvature` or `mixed`."""
    if by_kernel(name, X, on_cuda) and _has_kernel(name, X):
        from triton_lu import triton_backend

        return getattr(triton_backend, name)(D, pivots, X)
    return getattr(aten_backend, name)(D, pivots, X)


def _run_permutation(pivots: Tensor, m: int, *, on_cuda: bool) -> Tensor:
    if pivots.numel() and not on_cuda:  # there, looking at them would be a synchronization
        first, last = map(int, pivots.aminmax())
        if first < 1 or last > m:
            raise RuntimeError(f"`permutation` expects pivots from 1 to m = {m}; got pivots from {first} to {last}")
    if current() == "triton" or (current() == "auto" and on_cuda):
        from triton_lu import triton_backend

        return triton_backend.permutation(pivots, m)
    return aten_backend.permutation(pivots, m)


for _key in ("CPU", "CUDA"):
    _on_cuda = _key == "CUDA"
    _library.impl("factor", partial(_run_factor, on_cuda=_on_cuda), _key)
    _library.impl("permutation", partial(_run_permutation, on_cuda=_on_cuda), _key)
    _library.impl("lu_solve", aten_backend.lu_solve, _key)
    _library.impl("lu_solve_vjp", aten_backend.lu_solve_vjp, _key)
    for _name in ("curvature", "mixed"):
        _library.impl(_name, partial(_run_product, name=_name, on_cuda=_on_cuda), _key)
    for _name in ("vjp", "jvp"):
        _library.impl(_name, partial(_run_map, name=_name, on_cuda=_on_cuda), _key)


def _check(infos: Tensor, name: str) -> None:
    if infos.any():
        flat = infos.flatten()
        element = int(flat.nonzero()[0])
        pivot = int(flat[element])
        where = "" if infos.ndim == 0 else f"batch element {_position(element, infos.shape)}: "
        raise torch.linalg.LinAlgError(
            f"`{name}`: {where}U[{pivot}, {pivot}] (counting from 1) is exactly zero: the matrix is singular. "
            "Ask for the infos to factorize without this error"
        )


def _position(element: int, batch: torch.Size) -> int | tuple[int, ...]:
    index = tuple(int(i) for i in torch.unravel_index(torch.tensor(element), batch))
    return index if len(index) > 1 else index[0]


_library.impl("check", _check, "CompositeExplicitAutograd")


# Batching rules of torch.func.vmap: the operators are batched already, bring every argument to the same batch


def _vmap(op: torch._ops.OpOverload) -> Callable[..., Any]:
    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        def to_front(x: Any, dim: int | None) -> Any:
            if not isinstance(x, Tensor):
                return x
            return x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)

        in_dims += (None,) * (len(args) - len(in_dims))
        return op(*map(to_front, args, in_dims)), 0

    return rule


for _op in (factor, vjp, jvp, curvature, mixed, permutation, check):
    torch.library.register_vmap(_op, _vmap(_op), lib=_library)


def _vmap_solve(op: torch._ops.OpOverload, *, all_batched: bool) -> Callable[..., Any]:
    """LU, or B, stays without the batch if only the other has it: the operator broadcasts them without a copy of LU."""

    def rule(info: Any, in_dims: tuple[int | None, ...], *args: Any) -> Any:
        *tensors, left, adjoint = args
        batched = [dim is not None for dim in in_dims[: len(tensors)]]
        ranks = [x.ndim - is_batched - 2 for x, is_batched in zip(tensors, batched, strict=True)]
        ranks[1] += 1  # pivots
        batched[0] = batched[1] = batched[0] or batched[1]

        def to_front(x: Tensor, dim: int | None, is_batched: bool, rank: int) -> Tensor:
            if all_batched or is_batched:
                x = x.expand(info.batch_size, *x.shape) if dim is None else x.movedim(dim, 0)
                x = x[(slice(None), *[None] * (max(ranks) - rank))]
            return x

        return op(*map(to_front, tensors, in_dims, batched, ranks), left, adjoint), (0, 0) if all_batched else 0

    return rule


torch.library.register_vmap(lu_solve, _vmap_solve(lu_solve, all_batched=False), lib=_library)
torch.library.register_vmap(lu_solve_vjp, _vmap_solve(lu_solve_vjp, all_batched=True), lib=_library)


# Autocast: LU in single precision, with autocast off for the operations inside

for _op in (factor, vjp, jvp, curvature, mixed, lu_solve, lu_solve_vjp):
    for _device in ("cpu", "cuda"):
        torch.library.register_autocast(_op, _device, torch.float32, lib=_library)
