"""LU of small matrices, with partial pivoting or none: rows over the lanes of a warp.

    P^T A = L U

    A       [*batch, m, n]
    LU      [*batch, m, n]  L strictly below the diagonal, U on and above it
    pivots  [*batch, k]     int32, 1-based; k = min(m, n)
    infos   [*batch]        int32: the first i, from 1, for which U[i, i] is exactly zero, or 0

and of square matrices, in the place of infos,

    sign        [*batch]  det A / |det A|, or 0
    logabsdet   [*batch]  real: log |det A|, the sum over U's diagonal

Real and complex, any strides, but offsets inside a matrix must be below 2^31, counted in reals. As in LAPACK, a step
exchanges its row with that of the entry of largest modulus, |re| + |im| over the complex numbers, the first one of
equals, and does not divide by a pivot that is exactly zero.

Grid: one axis, `MATRICES` matrices per program, each completed with zeros to N x N, N a power of two. No row moves
before the end: a lane keeps its rows and knows the positions that the exchanges have given them. The last step gathers.

The steps of `PANEL` columns share a loop, for the sake of compile time and registers; PANEL = 1 unrolls them all.

A NaN counts as the largest modulus. Nothing passes from one matrix to another, and a matrix gets the same bits in any
batch. A is read once, the results are written once; nothing else is touched.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import field, launch, layout


@triton.jit
def find_pivot(modulus, position, row, step, SHAPE: tl.constexpr):
    """Position and row of the largest modulus at positions from `step` on, of equals the first, broadcast to SHAPE.

    The bits of a positive number, as an integer, are in its order. They are compared by words of 32 bits, for which a
    GPU has an instruction that finds the maximum over a warp.
    """
    N: tl.constexpr = modulus.shape[1]
    if modulus.dtype == tl.float64:
        bits = modulus.to(tl.uint64, bitcast=True)
        words = ((bits >> 32).to(tl.uint32), bits.to(tl.uint32))
    else:
        words = (modulus.to(tl.uint32, bitcast=True),)
    largest = position >= step
    for i in tl.static_range(len(words)):
        largest &= words[i] == tl.max(tl.where(largest, words[i], 0), 1)[:, None]
    place = (position * N + row).to(tl.uint32)
    first = tl.broadcast_to(tl.min(tl.where(largest, place, N * N), 1)[:, None], SHAPE)
    return (first // N).to(tl.int32), (first % N).to(tl.int32)


@triton.jit
def find_column(columns, step, FIRST: tl.constexpr, PANEL: tl.constexpr):
    """Column `step` of the panel from FIRST on."""
    column = columns[FIRST]
    for j in tl.static_range(FIRST + 1, FIRST + PANEL):
        column = field.where(step == j, columns[j], column)
    return column


@triton.jit
def eliminate(columns, column, pivot_row, below, step, FIRST: tl.constexpr, PANEL: tl.constexpr):
    """One step: the rows `below` lose their entry in `column`, where the multiplier takes its place.

    Also returns the pivot.
    """
    zero = field.constant_like(column, 0.0)
    pivot = field.gather(column, pivot_row)
    divisor = field.where(field.is_zero(pivot), field.constant_like(column, 1.0), pivot)
    multiplier = field.where(below, field.divide(column, divisor), zero)
    eliminated = field.where(below, multiplier, column)
    negated = field.negate(multiplier)
    result = columns[:FIRST]
    if PANEL == 1:
        result += (eliminated,)
    else:
        for j in tl.static_range(FIRST, FIRST + PANEL):
            updated = field.multiply_add(negated, field.gather(columns[j], pivot_row), columns[j])
            result += (field.where(j > step, updated, field.where(j == step, eliminated, columns[j])),)
    for j in tl.static_range(FIRST + PANEL, len(columns)):
        result += (field.multiply_add(negated, field.gather(columns[j], pivot_row), columns[j]),)
    return result, pivot


class State(NamedTuple):
    """What a step finds, and leaves, of matrices in registers."""

    columns: Any
    position: Any  # [matrices, rows], where the exchanges have put a row
    order: Any  # the row at a position, for those of steps that are done
    exchanged: Any  # with which position a step has exchanged its own
    first_zero: Any  # the first step whose pivot was zero


@triton.jit
def advance(state, A, step, FIRST: tl.constexpr, PANEL: tl.constexpr, PIVOT: tl.constexpr):
    """One step, in the panel from FIRST on: exchanges rows and eliminates."""
    columns, position, order, exchanged, first_zero = state
    N: tl.constexpr = position.shape[1]
    row = tl.broadcast_to(tl.arange(0, N)[None, :], position.shape)
    # Fastest to compile is one index for each row. With more rows than lanes, though, each would be another shuffle.
    SHAPE: tl.constexpr = (position.shape[0], N if N <= 32 else 1)
    column = find_column(columns, step, FIRST, PANEL)
    pivot_row = tl.full(SHAPE, 0, tl.int32) + step
    if PIVOT:
        modulus = field.modulus(column)
        if A.RAGGED:
            # Zero entries never win against those of the matrix, which come first. NaN may get into the padding.
            modulus = tl.where((row < A.shape[0]) & (step < A.shape[1]), modulus, 0.0)
        pivot_position, pivot_row = find_pivot(modulus, position, row, step, SHAPE)
        exchanged = tl.where(row == step, pivot_position, exchanged)
        order = tl.where(row == step, pivot_row, order)
        displaced = tl.where(position == step, pivot_position, position)
        position = tl.where(row == pivot_row, step, displaced)
    columns, pivot = eliminate(columns, column, pivot_row, position > step, step, FIRST, PANEL)
    first_zero = tl.where(field.is_zero(pivot), tl.minimum(first_zero, step), first_zero)
    return State(columns, position, order, exchanged, first_zero)


@triton.jit
def _factor(A, N: tl.constexpr, PANEL: tl.constexpr, PIVOT: tl.constexpr):
    """The state after the last step."""
    columns = layout.unstack(layout.load_tile(A, N, N))
    row = tl.broadcast_to(tl.arange(0, N)[None, :], (A.exists.shape[0], N))
    state = State(columns, row, row, row, tl.full(row.shape, N, tl.int32))
    for FIRST in tl.static_range(0, N, PANEL):
        if PANEL == 1:
            state = advance(state, A, FIRST, FIRST, PANEL, PIVOT)
        else:
            # In each step a row finds its place, also after the last column.
            for step in range(FIRST, tl.minimum(FIRST + PANEL, A.shape[0])):
                state = advance(state, A, step, FIRST, PANEL, PIVOT)
    return state


@triton.jit
def _store_factors(LU, pivots, state, PIVOT: tl.constexpr):
    columns = state.columns
    N: tl.constexpr = len(columns)
    if PIVOT:
        ordered = ()
        for j in tl.static_range(N):
            ordered += (field.gather(columns[j], state.order),)
        columns = ordered
    layout.store_tile(LU, layout.stack(columns))

    row = tl.broadcast_to(tl.arange(0, N)[None, :], state.position.shape)
    steps = tl.minimum(LU.shape[0], LU.shape[1])
    pivots_offsets = layout.batch_offset(pivots) + row.to(tl.int64) * pivots.strides[1]
    tl.store(pivots.pointer + pivots_offsets, state.exchanged + 1, pivots.exists[:, None] & (row < steps))


@triton.jit
def _store_infos(infos, state):
    steps = tl.minimum(infos.shape[0], infos.shape[1])
    _store_entry(infos, (tl.where(state.first_zero < steps, state.first_zero + 1, 0),))


@triton.jit
def _store_determinant(sign, logabsdet, state):
    """Products of the pivots, each in the lane of its row; an exchange of two rows counts as a factor -1."""
    N: tl.constexpr = len(state.columns)
    n = sign.shape[0]
    pivot = find_column(state.columns, state.position, 0, N)
    pivot = field.where(state.position < n, pivot, field.constant_like(pivot, 1.0))
    phase, log = field.phase_and_log(pivot)
    row = tl.broadcast_to(tl.arange(0, N)[None, :], state.position.shape)
    phase = field.where((row < n) & (state.exchanged != row), field.negate(phase), phase)
    product = field.product_of_lanes(phase)
    spread = ()
    for component in tl.static_range(len(product)):
        spread += (tl.broadcast_to(product[component][:, None], row.shape),)
    _store_entry(sign, spread)
    _store_entry(logabsdet, (tl.broadcast_to(tl.sum(log, 1)[:, None], row.shape),))


@triton.jit
def _store_entry(x, value):
    """Writes one number for every matrix, which all of its lanes [matrices, lanes] have: a lane for each component."""
    lane = tl.arange(0, value[0].shape[1])[None, :]
    component = value[0] if len(value) == 1 else tl.where(lane == 0, value[0], value[1])
    tl.store(x.pointer + (layout.batch_offset(x) + lane), component, x.exists[:, None] & (lane < len(value)))


@triton.jit
def factor_kernel(
    LU,
    pivots,
    infos,
    A,
    shape,
    batch_size,
    N: tl.constexpr,
    MATRICES: tl.constexpr,
    PANEL: tl.constexpr,
    RAGGED: tl.constexpr,
    PIVOT: tl.constexpr,
):
    batch, exists = layout.batch_of_program(tl.program_id(0), shape, batch_size, MATRICES)
    state = _factor(layout.Matrix(*A, shape, batch, exists, RAGGED), N, PANEL, PIVOT)
    _store_factors(
        layout.Matrix(*LU, shape, batch, exists, RAGGED),
        layout.Matrix(*pivots, shape, batch, exists, RAGGED),
        state,
        PIVOT,
    )
    _store_infos(layout.Matrix(*infos, shape, batch, exists, RAGGED), state)


@triton.jit
def slogdet_kernel(
    sign,
    logabsdet,
    LU,
    pivots,
    A,
    shape,
    batch_size,
    N: tl.constexpr,
    MATRICES: tl.constexpr,
    PANEL: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch, exists = layout.batch_of_program(tl.program_id(0), shape, batch_size, MATRICES)
    state = _factor(layout.Matrix(*A, shape, batch, exists, RAGGED), N, PANEL, True)
    _store_determinant(
        layout.Matrix(*sign, shape, batch, exists, RAGGED),
        layout.Matrix(*logabsdet, shape, batch, exists, RAGGED),
        state,
    )
    _store_factors(
        layout.Matrix(*LU, shape, batch, exists, RAGGED),
        layout.Matrix(*pivots, shape, batch, exists, RAGGED),
        state,
        True,
    )


def factor(LU, pivots, infos, A, *, pivot, matrices, panel, num_warps):
    """Writes the packed factors of A to `LU`, with partial pivoting if `pivot`, and LAPACK's `pivots` and `infos`.

    `A` and `LU` are [*batch, m, n] of one dtype (float32, float64, complex64, complex128), m and n at most 64; `pivots`
    is [*batch, min(m, n)] int32, `infos` [*batch] int32. Any strides, an expanded A too; the results overlap nothing.
    `matrices`, a power of two, is the number of them that each program of `num_warps` warps takes; `panel` divides
    the least power of two that holds m and n. Nothing is validated, and nothing launched for an empty batch.
    """
    if LU.numel() == 0:
        infos.zero_()
        return
    constants = {**_constants(A, matrices, panel), "PIVOT": pivot}
    _launch(factor_kernel, (LU, pivots, infos, A), matrices, constants, num_warps)


def slogdet(sign, logabsdet, LU, pivots, A, *, matrices, panel, num_warps):
    """`factor` with pivoting of square matrices, which writes their determinants instead of infos.

    `sign` is [*batch] of the dtype of A, `logabsdet` [*batch] of its real dtype: 0 and -inf for a singular matrix.
    """
    if LU.numel() == 0:
        sign.fill_(1)
        logabsdet.zero_()
        return
    constants = _constants(A, matrices, panel)
    _launch(slogdet_kernel, (sign, logabsdet, LU, pivots, A), matrices, constants, num_warps)


def _constants(A, matrices, panel):
    m, n = A.shape[-2:]
    N = launch.power_of_two(max(m, n))
    return {"N": N, "MATRICES": matrices, "PANEL": panel, "RAGGED": (m, n) != (N, N)}


def _launch(kernel, tensors, matrices, constants, num_warps):
    shape = tensors[-1].shape
    batch_size = shape[:-2].numel()
    args = (*launch.arguments(shape, *tensors), batch_size)
    launch.run(kernel, launch.ceil_div(batch_size, matrices), args, constants, num_warps=num_warps)
