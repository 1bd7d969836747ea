"""The order of the rows after the exchanges that pivots stand for, in four forms; `plan.permutation` chooses.

As `torch.lu_unpack` they take any exchanges: pivots[i], counting from 1, may also lie before i, which it does in no
factorization.
"""

from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from triton_lu import plan
from triton_lu.autograd_key import readable


def permutation(pivots: Tensor, m: int) -> Tensor:
    """Row i of Pᵀ A is row permutation[i] of A."""
    return _exchanged(pivots, m, inverse=False, stride=0).view(*pivots.shape[:-1], m)


def of_batch(pivots: Tensor, m: int, *, inverse: bool = False) -> Tensor:
    """`permutation` of a batch as one vector, in which the rows of matrix i are numbered from i m on.

    The inverse: row i of P X is row permutation[i] of X.
    """
    if pivots.is_cuda:  # where the operator may be a kernel
        order = torch.ops.triton_lu.permutation(pivots, m)
        return _number(order.view(pivots.shape[:-1].numel(), m), inverse=inverse, stride=m)
    return _exchanged(pivots, m, inverse=inverse, stride=m)


def permuted(X: Tensor, pivots: Tensor, *, inverse: bool = False) -> Tensor:
    """Pᵀ X, or the inverse P X, contiguous."""
    m, n = X.shape[-2:]
    return torch.index_select(X.reshape(-1, n), 0, of_batch(pivots, m, inverse=inverse)).view(X.shape)


def of_one(pivots: Tensor, m: int, *, inverse: bool = False) -> list[int]:
    """The same for one matrix, as a list."""
    chosen = pivots.flatten().tolist()
    return _exchange_([*range(m)], chosen, range(len(chosen))[:: -1 if inverse else 1])


def _number(order: Tensor, *, inverse: bool, stride: int) -> Tensor:
    """The rows in that order or its inverse as one vector, those of matrix i numbered from i * stride on."""
    batch, m = order.shape
    if batch == 1 and not inverse:
        return order.view(-1)
    first = stride * torch.arange(batch, device=order.device)[:, None]
    if not inverse:
        return (order + first).view(-1)
    return torch.empty_like(order).scatter_(-1, order, torch.arange(m, device=order.device) + first).view(-1)


def _exchanged(pivots: Tensor, m: int, *, inverse: bool, stride: int) -> Tensor:
    """The rows, numbered as by `_number`, after the exchanges or, with `inverse`, after the same in reverse order."""
    k = pivots.shape[-1]
    batch = pivots.shape[:-1].numel()
    form = plan.permutation(batch, m, k, pivots.device.type)
    pivots = pivots.reshape(batch, k)
    if form == "links":
        return _number(_by_links(pivots, m), inverse=inverse, stride=stride)
    steps = range(k)[::-1] if inverse else range(k)
    if form == "by matrix":
        return _by_matrix(pivots, m, steps, stride)
    orders = _by_table if form == "by table" else _by_step
    order = orders(readable(pivots).numpy(), m, steps) + stride * np.arange(batch)[:, None]
    return torch.from_numpy(order.reshape(-1))


def _exchange_(order: list[int], pivots: list[int], steps: Iterable[int]) -> list[int]:
    """Exchanges entries of `order` as these steps of a factorization do."""
    for i in steps:
        j = pivots[i] - 1
        order[i], order[j] = order[j], order[i]
    return order


def _by_matrix(pivots: Tensor, m: int, steps: Sequence[int], stride: int) -> Tensor:
    """By their definition, one exchange after the other in Python."""
    numbers: list[int] = []
    for matrix, chosen in enumerate(pivots.tolist()):
        numbers += _exchange_([*range(matrix * stride, matrix * stride + m)], chosen, steps)
    return torch.from_numpy(np.array(numbers, dtype=np.int64))  # torch.tensor takes four times as long


def _by_step(pivots: np.ndarray, m: int, steps: Sequence[int]) -> np.ndarray:
    """The orders [batch, m] of many matrices, with the i-th exchange of all of them at once."""
    matrix = np.arange(len(pivots))
    order = np.arange(m)[:, None] + np.zeros_like(matrix)
    flat = order.reshape(-1)  # NumPy gathers from one dimension faster than from two
    chosen = len(matrix) * (pivots.T.astype(np.int64) - 1) + matrix
    for i in steps:
        found = flat[chosen[i]]
        flat[chosen[i]] = order[i]
        order[i] = found
    return order.T


def _by_table(pivots: np.ndarray, m: int, steps: Sequence[int]) -> np.ndarray:
    """The same, looked up by the pivots as digits of a number."""
    powers, orders = _all_orders(m, steps)
    return orders.take((pivots - 1) @ powers, axis=0)


@lru_cache(maxsize=32)
def _all_orders(m: int, steps: range) -> tuple[np.ndarray, np.ndarray]:
    """The powers of m, and the order of the rows for each number, whose digits to base m are the pivots minus one."""
    powers = m ** np.arange(len(steps))
    pivots = np.arange(m ** len(steps))[:, None] // powers % m + 1
    return powers, _by_step(pivots, m, steps)


def _by_links(pivots: Tensor, m: int) -> Tensor:
    """The orders [batch, m] with all exchanges at once: O(log k) passes, no chain of k dependent steps.

    Step i touches positions i and pivots[i] - 1; these are touches m + 2 i and m + 2 i + 1. It leaves at one what was
    at the other, which the touch before had left there: that touch is its link, or if there was none the number of the
    position, whose row it is. Pointer doubling resolves the links of all touches; the last one of a position has its
    row. (Where step i chooses row i, its first touch is a link to itself that no other leads to.)
    """
    batch, k = pivots.shape
    number = torch.arange(m + 2 * k, device=pivots.device)
    own, chosen = number[:k].expand(batch, k), pivots.long() - 1
    touched = torch.stack([own, chosen], -1).view(batch, 2 * k)
    position, touch = touched.sort(dim=-1, stable=True)
    again = position[:, 1:] == position[:, :-1]
    before = torch.cat([position[:, :1], torch.where(again, m + touch[:, :-1], position[:, 1:])], -1)
    links = number.repeat(batch, 1)
    links[:, m:] = torch.empty_like(before).scatter_(-1, touch ^ 1, before)  # ^ 1: the other touch of the step
    last = number[:m].repeat(batch, 1).scatter_reduce_(-1, touched, number[m:].expand(batch, 2 * k), "amax")
    for _ in range((k - 1).bit_length()):
        links = links.gather(-1, links)
    return links.gather(-1, last)
