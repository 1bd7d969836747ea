"""Sharding rules of the operators for DTensor; importing this module registers them.

A device factorizes whole matrices: batch dimensions may be sharded, at no communication; sharded rows or columns are
gathered, and partial sums reduced, before the operator runs.
"""

from typing import Any

import torch
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

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
    _batched(_op, _operator.core_ndim)
_batched(torch.ops.aten.lu_unpack.default, 2)  # PyTorch 2.11 and 2.12 have none; a rule of PyTorch's own has priority
