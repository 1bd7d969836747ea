"""From pivots to the permutation of rows.

Pivots are LAPACK's: 1-based; row i was exchanged with row pivots[i] - 1, for i from the first to the last. The *order*
that they leave is that of P^T X: its row i is row order[i] of X. So row i of X is row order[i] of P X.
"""

import triton
import triton.language as tl

from . import launch, layout


@triton.jit
def _chosen(pivots, shape):
    """The rows that pivots name, counting from 0. What no factorization gives must not lead out of a matrix."""
    return tl.minimum(tl.maximum(pivots - 1, 0), shape[0] - 1)


@triton.jit
def order(pivots, N: tl.constexpr):
    """The order [matrices, N] of the rows, at most 32; `pivots` is a `layout.Matrix`.

    Every lane follows its own row through the exchanges, from the last to the first: a broadcast, two comparisons and
    two selections for each, all lanes at once. Comparing all pairs of pivots takes as many, and doubling pointers comes
    on top; the shorter chain it buys is of no use here, where arithmetic that does not depend on it hides this one.
    """
    row = tl.arange(0, N)
    offsets = layout.batch_offset(pivots) + row.to(tl.int64)[None, :] * pivots.strides[1]
    mask = pivots.exists[:, None] & (row < tl.minimum(pivots.shape[0], pivots.shape[1]))[None, :]
    order = tl.broadcast_to(row[None, :], offsets.shape)
    chosen = tl.where(mask, _chosen(tl.load(pivots.pointer + offsets, mask, other=0), pivots.shape), order)
    for step in tl.static_range(N - 1, -1, -1):
        order = _exchange_with(order, tl.gather(chosen, tl.full(order.shape, step, tl.int32), 1), step)
    return order


@triton.jit
def order_in_halves(pivots):
    """The order [1, 32] of the rows of one matrix as those of its upper 16 and of its lower 16 rows."""
    return tl.split(tl.permute(tl.reshape(order(pivots, 32), (1, 2, 16)), (0, 2, 1)))


@triton.jit
def _exchange_with(rows, pivot, step):
    """The rows after one of the exchanges."""
    arrives = tl.where(rows == pivot, step, rows)
    return tl.where(rows == step, pivot, arrives)


@triton.jit
def store_order_of_one(order, pivots, stride, shape, N: tl.constexpr):
    """Writes the order of the rows of one matrix, at most N, to `order`; `pivots` points to the first of its pivots.
    For more of them than `order` can unroll: every pivot is loaded by all lanes, several at a time."""
    rows = tl.arange(0, N)
    place = rows
    steps = tl.minimum(shape[0], shape[1])
    for back in tl.range(0, steps, loop_unroll_factor=8):
        step = steps - 1 - back
        place = _exchange_with(place, _chosen(tl.load(pivots + step * stride), shape), step)
    tl.store(order + rows, place, rows < shape[0])


@triton.jit
def order_of_rows(pivots, rows, end):
    """The entries [1, N] of the order for `rows` [1, N], all of which lie before `end`."""
    k = tl.minimum(pivots.shape[0], pivots.shape[1])
    first = pivots.pointer + layout.batch_offset(pivots)
    order = rows
    if _leads_back(first, pivots.strides, k):
        for i in range(k - 1, -1, -1):
            step = i + tl.arange(0, 1)[None, :]
            pivot = tl.load(first + step.to(tl.int64) * pivots.strides[1])
            order = _exchange_with(order, _chosen(pivot, pivots.shape), step)
    else:
        order = _order_of_rows(first, pivots, rows, tl.minimum(end, k))
    return order


@triton.jit
def _leads_back(first, strides, k):
    """Whether one of k pivots lies before its row, which no factorization chooses."""
    lane = tl.arange(0, 256)[None, :]
    before = tl.zeros(lane.shape, tl.int32)
    for start in range(0, k, 256):
        steps = start + lane
        pivot = tl.load(first + steps.to(tl.int64) * strides[1], steps < k, other=2147483647)
        before |= (pivot <= steps).to(tl.int32)
    return tl.max(before) > 0


@triton.jit
def _order_of_rows(first, pivots, rows, end):
    """`order_of_rows` for the pivots of a factorization, of which those from `end` on do not matter.

    A row is moved by its own exchange first, and by earlier ones that chose the row where it lies by then: a chain of
    two instructions per exchange, which is short beside anything else that is done with so large a matrix.
    """
    own = tl.load(first + rows.to(tl.int64) * pivots.strides[1], rows < end, other=0)
    order = tl.where(rows < end, _chosen(own, pivots.shape), rows)
    lane = tl.arange(0, 32)[None, :]
    for chunk in range(tl.cdiv(end, 32) - 1, -1, -1):
        steps = chunk * 32 + lane
        chosen = tl.load(first + steps.to(tl.int64) * pivots.strides[1], steps < end, other=0) - 1
        for i in tl.static_range(31, -1, -1):
            step = chunk * 32 + i
            pivot = tl.gather(chosen, tl.full(rows.shape, i, tl.int32), 1)
            order = tl.where((order == pivot) & (rows > step), step, order)
    return order


@triton.jit
def store_order(order, pivots, first, ROWS: tl.constexpr):
    """Writes ROWS entries of the order, from `first` on, to `order`, contiguous."""
    rows = first + tl.arange(0, ROWS)[None, :]
    entries = order_of_rows(pivots, rows, first + ROWS)
    offsets = layout.batch_offset(order) + rows
    tl.store(order.pointer + offsets, entries.to(order.pointer.dtype.element_ty), rows < order.shape[0])


@triton.jit
def load_order(order, first, ROWS: tl.constexpr):
    """Entries [1, ROWS] of `order`, contiguous, from `first` on; 0 for rows that do not exist."""
    rows = first + tl.arange(0, ROWS)[None, :]
    offsets = layout.batch_offset(order) + rows
    return tl.load(order.pointer + offsets, rows < order.shape[0], other=0)


@triton.jit
def permutation_kernel(order, pivots, shape, ROWS: tl.constexpr):
    programs = tl.cdiv(shape[0], ROWS)
    batch, exists = layout.batch_of_one(tl.program_id(0) // programs, shape)
    store_order(
        layout.Matrix(*order, shape, batch, exists, True),
        layout.Matrix(*pivots, shape, batch, exists, True),
        tl.program_id(0) % programs * ROWS,
        ROWS,
    )


def permutation(out, pivots, *, rows, num_warps):
    """Writes the order of the rows to `out`: row i of P^T A is row out[i] of A.

    `out` is [*batch, m] int64, contiguous; `pivots` [*batch, k] int32 with k at most m, any strides. Grid: one axis,
    `rows` rows, a power of two, per program. Nothing is launched for an empty `out`.
    """
    if out.numel() == 0:
        return
    args = launch.arguments((*out.shape, pivots.shape[-1]), out, pivots)
    programs = out.shape[:-1].numel() * launch.ceil_div(out.shape[-1], rows)
    launch.run(permutation_kernel, programs, args, {"ROWS": rows}, num_warps=num_warps)
