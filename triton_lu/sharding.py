"""Sharding rules of the operators for DTensor; importing this module registers them.

A device factorizes whole matrices: batch dimensions may be sharded, at no communication; sharded rows or columns are
gathered, and partial sums reduced, before the operator runs.
"""

from typing import Any

import torch
from torch.distributed.tensor import Partial, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from triton_lu import ops
from triton_lu.registration import OPERATORS


def _batched(op: torch._ops.OpOverload, core_ndim: int) -> None:
    """Register that all tensors of `op` have the batch of its first argument: what is before its core dimensions."""
    results = len(op._schema.returns)

    @register_sharding(op)
    def rule(X: Any, *args: Any) -> list[tuple[list[Any], list[Any]]]:
        is_tensor = [True, *(hasattr(x, "placements") for x in args)]
        choices = [Replicate(), *map(Shard, range(X.ndim - core_ndim))]
        return [([p] * results, [p if tensor else None for tensor in is_tensor]) for p in choices]


for _op, _operator in OPERATORS.items():
    if _op not in (ops.lu_solve, ops.lu_solve_vjp, ops.solve, ops.solve_ex):
        _batched(_op, _operator.core_ndim)
_batched(torch.ops.aten.lu_unpack.default, 2)  # PyTorch 2.11 and 2.12 have none; a rule of PyTorch's own has priority


@register_sharding(ops.lu_solve)
def _lu_solve(LU: Any, pivots: Any, B: Any, left: bool, adjoint: bool) -> list[tuple[list[Any], list[Any]]]:
    return _systems(LU, B, left)


def _systems(LU: Any, B: Any, left: bool) -> list[tuple[list[Any], list[Any]]]:
    whole: Any = Replicate()
    rank = max(LU.ndim, B.ndim)
    choices = [([whole], [whole, whole, whole, None, None])]
    for dim in _divisible(rank, left):
        of_LU, of_B = whole if dim > -3 else _shard(LU, dim), _shard(B, dim)
        if of_LU != whole or of_B != whole:
            choices.append(([Shard(rank + dim)], [of_LU, of_LU, of_B, None, None]))
    return choices


@register_sharding(ops.solve)
def _solve(A: Any, LU: Any, pivots: Any, B: Any, left: bool, adjoint: bool) -> list[tuple[list[Any], list[Any]]]:
    return [(result, [of_LU, of_LU, *rest]) for result, (of_LU, *rest) in _systems(LU, B, left)]


@register_sharding(ops.solve_ex)
def _solve_ex(A: Any, B: Any, left: bool) -> list[tuple[list[Any], list[Any]]]:
    return [([of_X, of_A, of_A, of_A], [of_A, of_B, None]) for (of_X,), (of_A, _, of_B, *_) in _systems(A, B, left)]


@register_sharding(ops.lu_solve_vjp)
def _lu_solve_vjp(
    LU: Any, pivots: Any, B: Any, X: Any, G: Any, left: bool, adjoint: bool
) -> list[tuple[list[Any], list[Any]]]:
    whole: Any = Replicate()
    choices = [([whole, whole], [whole, whole, whole, whole, whole, None, None])]
    for dim in _divisible(X.ndim, left):
        of_LU, of_X = whole if dim > -3 else _shard(LU, dim), Shard(X.ndim + dim)
        of_gradient = Partial() if of_LU == whole else of_LU  # a sum over the right-hand sides
        choices.append(([of_gradient, of_X], [of_LU, of_LU, of_X, of_X, of_X, None, None]))
    return choices


def _divisible(rank: int, left: bool) -> list[int]:
    """The dimensions of right-hand sides, from the last, that may be sharded: the batch and the columns (or rows)."""
    return [*range(-rank, -2), -1 if left else -2]


def _shard(X: Any, dim: int) -> Any:
    """X's part of a system sharded in that dimension."""
    return Shard(X.ndim + dim) if -dim <= X.ndim and X.shape[dim] != 1 else Replicate()
