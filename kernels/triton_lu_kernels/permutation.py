"""From pivots to the permutation of rows.

Pivots are LAPACK's: 1-based; row i was exchanged with row pivots[i] - 1, for i from the first to the last.
"""

import triton
import triton.language as tl

from . import launch, layout


@triton.jit
def _chosen(pivots, shape):
    """The rows that pivots name, counting from 0. What no factorization gives must not lead out of a matrix."""
    return tl.minimum(tl.maximum(pivots - 1, 0), shape[0] - 1)


@triton.jit
def destinations(pivots_ptr, strides, shape, batch, batch_mask, N: tl.constexpr):
    """The row [matrices, N] of P X at which row i of X arrives.

    Every lane follows its own row through the exchanges, from the last to the first: a broadcast, two comparisons and
    two selections for each, all lanes at once. Comparing all pairs of pivots takes as many, and doubling pointers comes
    on top; the shorter chain it buys is of no use here, where arithmetic that does not depend on it hides this one.
    """
    row = tl.arange(0, N)
    offsets = layout.batch_offset(strides[0], batch) + row.to(tl.int64)[None, :] * strides[1]
    mask = batch_mask[:, None] & (row < tl.minimum(shape[0], shape[1]))[None, :]
    destination = tl.broadcast_to(row[None, :], offsets.shape)
    pivots = tl.where(mask, _chosen(tl.load(pivots_ptr + offsets, mask, other=0), shape), destination)
    if N <= 32:
        for step in tl.static_range(N - 1, -1, -1):
            destination = _exchange(destination, pivots, step)
    else:  # unrolled, all broadcasts would wait in registers at once: 300 bytes of spills at N = 128
        for step in tl.range(N - 1, -1, -1, loop_unroll_factor=8):
            destination = _exchange(destination, pivots, step)
    return destination


@triton.jit
def _exchange(rows, pivots, step):
    """The rows after one of the exchanges."""
    return _exchange_with(rows, tl.gather(pivots, tl.full(rows.shape, step, tl.int32), 1), step)


@triton.jit
def _exchange_with(rows, pivot, step):
    arrives = tl.where(rows == pivot, step, rows)
    return tl.where(rows == step, pivot, arrives)


@triton.jit
def destinations_of(pivots_ptr, strides, shape, batch, rows, end):
    """The rows of P X at which `rows` [1, N] of X arrive; all of them lie before `end`."""
    k = tl.minimum(shape[0], shape[1])
    pivots_ptr += layout.batch_offset(strides[0], batch)
    destination = rows
    if _leads_back(pivots_ptr, strides, k):
        for i in range(k - 1, -1, -1):
            step = i + tl.arange(0, 1)[None, :]
            pivot = tl.load(pivots_ptr + step.to(tl.int64) * strides[1])
            destination = _exchange_with(destination, _chosen(pivot, shape), step)
    else:
        destination = _destinations_of(pivots_ptr, strides, shape, rows, tl.minimum(end, k))
    return destination


@triton.jit
def _leads_back(pivots_ptr, strides, k):
    """Whether one of k pivots lies before its row, which no factorization chooses."""
    lane = tl.arange(0, 256)[None, :]
    before = tl.zeros(lane.shape, tl.int32)
    for first in range(0, k, 256):
        steps = first + lane
        pivots = tl.load(pivots_ptr + steps.to(tl.int64) * strides[1], steps < k, other=2147483647)
        before |= (pivots <= steps).to(tl.int32)
    return tl.max(before) > 0


@triton.jit
def _destinations_of(pivots_ptr, strides, shape, rows, end):
    """`destinations_of` for the pivots of a factorization, of which those from `end` on do not matter.

    A row is moved by its own exchange first, and by earlier ones that chose the row where it lies by then: a chain of
    two instructions per exchange, which is short beside anything else that is done with so large a matrix.
    """
    own = tl.load(pivots_ptr + rows.to(tl.int64) * strides[1], rows < end, other=0)
    destination = tl.where(rows < end, _chosen(own, shape), rows)
    lane = tl.arange(0, 32)[None, :]
    for chunk in range(tl.cdiv(end, 32) - 1, -1, -1):
        steps = chunk * 32 + lane
        pivots = tl.load(pivots_ptr + steps.to(tl.int64) * strides[1], steps < end, other=0) - 1
        for i in tl.static_range(31, -1, -1):
            step = chunk * 32 + i
            pivot = tl.gather(pivots, tl.full(rows.shape, i, tl.int32), 1)
            destination = tl.where((destination == pivot) & (rows > step), step, destination)
    return destination


@triton.jit
def store_destinations(order_ptr, order_strides, pivots_ptr, pivots_strides, shape, batch, first, ROWS: tl.constexpr):
    """Writes the rows of P X at which ROWS rows of X arrive, from `first` on."""
    rows = first + tl.arange(0, ROWS)[None, :]
    destination = destinations_of(pivots_ptr, pivots_strides, shape, batch, rows, first + ROWS)
    offsets = layout.batch_offset(order_strides[0], batch) + rows
    tl.store(order_ptr + offsets, destination.to(order_ptr.dtype.element_ty), rows < shape[0])


@triton.jit
def places(order, row, ROWS: tl.constexpr):
    """Entries [1, ROWS] from `row` on of order = (pointer, strides, shape, batch), contiguous; 0 for rows that do not
    exist."""
    rows = row + tl.arange(0, ROWS)[None, :]
    offsets = layout.batch_offset(order[1][0], order[3]) + rows
    return tl.load(order[0] + offsets, rows < order[2][0], other=0)


@triton.jit
def order_kernel(order_ptr, pivots_ptr, order_strides, pivots_strides, shape, ROWS: tl.constexpr):
    programs = tl.cdiv(shape[0], ROWS)
    batch = layout.batch_index((tl.program_id(0) // programs).to(tl.int64) + tl.arange(0, 1), shape)
    first = tl.program_id(0) % programs * ROWS
    store_destinations(order_ptr, order_strides, pivots_ptr, pivots_strides, shape, batch, first, ROWS)


def order(out, pivots):
    """Writes the order of the rows to `out`: row i of P^T A is row out[i] of A.

    `out` is [*batch, m] int64, contiguous; `pivots` [*batch, k] int32 with k at most m, any strides. Grid: one axis,
    32 rows per program. Nothing is launched for an empty `out`.
    """
    if out.numel() == 0:
        return
    m, k = out.shape[-1], pivots.shape[-1]
    sizes, strides = launch.batch_dims(out.shape[:-1], out, pivots)
    programs = out.shape[:-1].numel() * launch.ceil_div(m, 32)
    launch.run(order_kernel, programs, (out, pivots, *strides, (m, k, *sizes)), {"ROWS": 32}, num_warps=1)
