"""Matrices in memory and in registers.

In memory a batch of matrices may have any strides: a `Matrix`. In registers it is a *tile*, a field element of tensors
[matrices, rows, cols], or a tuple of *columns*, each a field element of tensors [matrices, rows]: Triton cannot index a
tensor by a number, but a tuple it can, and a loop that is unrolled over such a tuple addresses registers.

Strides count field elements, as those of a torch tensor do; a complex number is two adjacent reals. Where a matrix
begins is a number of 64 bits, from the first multiplication by a stride; offsets inside it have 32, in reals: addresses
take many registers. Batch strides of complex numbers must be below 2^30: in reals they have 32 bits too. (Multiplied
later, the kernel of jvp for 16 x 16 in complex64 takes 221 registers instead of 168.)

A batch may have several dimensions, those of `launch.batch_dims`: the first of the strides is a tuple of theirs, and
`batch`, the indices of some matrices, another.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Matrix(NamedTuple):
    """Some matrices of a batch in memory, or vectors, whose strides end with that of their entries.

    A kernel makes it of what the launcher passes for a tensor, a `launch.Strided`: `Matrix(*x, shape, batch, exists,
    RAGGED)`, in the call that takes it: assigned to a name, its constants would become values.

    pointer: to reals
    strides: of the batch dimensions, from the innermost on, in a tuple of their own; then of rows and columns
    COMPONENTS: reals of a field element
    BY_COLUMN: whether the entries of a column lie closer together than those of a row
    shape: (m, n, then the sizes of the batch dimensions, from the innermost on, but for the outermost)
    batch: the indices of the matrices in every batch dimension, each [matrices]
    exists: [matrices], which of them there are
    RAGGED: whether tiles and blocks may lead out of a matrix
    """

    pointer: Any
    strides: Any
    COMPONENTS: tl.constexpr
    BY_COLUMN: tl.constexpr
    shape: Any
    batch: Any
    exists: Any
    RAGGED: tl.constexpr


@triton.jit
def _entries(ROWS: tl.constexpr, COLS: tl.constexpr, COMPONENTS: tl.constexpr, BY_COLUMN: tl.constexpr):
    """Row, column and component of all reals of a matrix, in the order in which they lie in memory: accesses in this
    order are coalesced however small the matrix is."""
    real = tl.arange(0, ROWS * COLS * COMPONENTS)
    entry = real // COMPONENTS
    if BY_COLUMN:
        return entry % ROWS, entry // ROWS, real % COMPONENTS
    else:
        return entry // COLS, entry % COLS, real % COMPONENTS


@triton.jit
def batch_index(number, shape):
    """The indices of matrices in every batch dimension, from the innermost on, of their numbers, 64 bits wide: `shape`
    has the sizes after m and n, but for the outermost. A kernel does this once, since it takes divisions."""
    batch = ()
    for dim in tl.static_range(2, len(shape)):
        batch += (number % shape[dim],)
        number = number // shape[dim]
    batch += (number,)
    return batch


@triton.jit
def batch_of_program(program, shape, batch_size, MATRICES: tl.constexpr):
    """The indices of the matrices of a program, one of those with MATRICES each, and which of them exist."""
    number = program.to(tl.int64) * MATRICES + tl.arange(0, MATRICES)
    return batch_index(number, shape), number < batch_size


@triton.jit
def batch_of_one(number, shape):
    """The indices of one matrix, of its number, and that it exists."""
    batch = batch_index(number.to(tl.int64) + tl.arange(0, 1), shape)
    return batch, batch[0] >= 0


@triton.jit
def batch_offset(x):
    """Where the matrices begin [matrices, 1], in reals."""
    offset = x.batch[0][:, None] * (x.strides[0][0] * x.COMPONENTS)
    for dim in tl.static_range(1, len(x.batch)):
        offset += x.batch[dim][:, None] * (x.strides[0][dim] * x.COMPONENTS)
    return offset


@triton.jit
def _offsets(x, row, col, component):
    """Offsets [matrices, reals] in reals; `row` and `col` are [1, reals] or differ between the matrices."""
    row_offset = row * (x.strides[1] * x.COMPONENTS)
    col_offset = col * (x.strides[2] * x.COMPONENTS) + component[None, :]
    return batch_offset(x) + (row_offset + col_offset)


@triton.jit
def _mask(x, row, col):
    """Which entries exist. A tile that its matrix fills is not tested by row and column: that would forbid the compiler
    accesses to several entries at once."""
    if x.RAGGED:
        return x.exists[:, None] & (row < x.shape[0]) & (col < x.shape[1])
    else:
        return x.exists[:, None] & (row >= 0)


@triton.jit
def load_tile(x, ROWS: tl.constexpr, COLS: tl.constexpr, DIAGONAL: tl.constexpr = 0.0, row=0, col=0, order=None):
    """The matrices x, completed to ROWS x COLS with zeros and DIAGONAL on the diagonal.

    Of larger matrices the part from (row, col) on. Row i is row order[i] of the matrix if `order` [matrices, ROWS] is
    given.
    """
    MATRICES: tl.constexpr = x.exists.shape[0]
    rows, cols, component = _entries(ROWS, COLS, x.COMPONENTS, x.BY_COLUMN)
    rows = rows[None, :] + row
    cols = cols[None, :] + col
    mask = _mask(x, rows, cols)
    if order is None:
        offsets = _offsets(x, rows, cols, component)
    else:
        offsets = _offsets(x, _spread(order, COLS, x.COMPONENTS, x.BY_COLUMN), cols, component)
    reals = tl.load(x.pointer + offsets, mask, other=0.0)
    if DIAGONAL != 0:
        completion = tl.where((rows == cols) & (component == 0)[None, :], DIAGONAL, 0.0).to(reals.dtype)
        reals = tl.where(mask, reals, completion)
    if x.COMPONENTS == 1:
        flat = (reals,)
    else:
        re, im = tl.split(tl.reshape(reals, (MATRICES, ROWS * COLS, 2)))
        flat = (re, im)
    if x.BY_COLUMN:
        return transpose(reshape(flat, (MATRICES, COLS, ROWS)))
    else:
        return reshape(flat, (MATRICES, ROWS, COLS))


@triton.jit
def store_tile(x, tile, row=0, col=0, order=None):
    """Writes a tile to the matrices x, row i to row order[i] if `order` [matrices, rows] is given.

    To larger matrices from (row, col) on.
    """
    ROWS: tl.constexpr = tile[0].shape[1]
    COLS: tl.constexpr = tile[0].shape[2]
    rows, cols, component = _entries(ROWS, COLS, x.COMPONENTS, x.BY_COLUMN)
    rows = rows[None, :] + row
    cols = cols[None, :] + col
    mask = _mask(x, rows, cols)
    if order is None:
        offsets = _offsets(x, rows, cols, component)
    else:
        offsets = _offsets(x, _spread(order, COLS, x.COMPONENTS, x.BY_COLUMN), cols, component)
    tl.store(x.pointer + offsets, _flatten(tile, x.BY_COLUMN), mask)


@triton.jit
def _spread(rows, COLS: tl.constexpr, COMPONENTS: tl.constexpr, BY_COLUMN: tl.constexpr):
    """Numbers [matrices, rows] of rows, each at all reals [matrices, reals] of its row in the order of `_entries`."""
    entries = tl.broadcast_to(rows[:, :, None, None], (rows.shape[0], rows.shape[1], COLS, COMPONENTS))
    if BY_COLUMN:
        entries = tl.permute(entries, (0, 2, 1, 3))
    spread = tl.reshape(entries, (rows.shape[0], rows.shape[1] * COLS * COMPONENTS))
    if not BY_COLUMN:
        # True, and beyond what the compiler can see through a reshape: neighbours lie in the same row.
        spread = tl.max_constancy(spread, [1, COLS * COMPONENTS])
    return spread


@triton.jit
def _flatten(tile, BY_COLUMN: tl.constexpr):
    """A tile's reals [matrices, reals] in the order of `_entries`."""
    MATRICES: tl.constexpr = tile[0].shape[0]
    REALS: tl.constexpr = tile[0].shape[1] * tile[0].shape[2] * len(tile)
    if BY_COLUMN:
        tile = transpose(tile)
    if len(tile) == 1:
        return tl.reshape(tile[0], (MATRICES, REALS))
    else:
        return tl.reshape(tl.join(tile[0], tile[1]), (MATRICES, REALS))


@triton.jit
def transpose(tile):
    """The transpose of every matrix of a tile, or of a block [N, N]."""
    result = ()
    for component in tl.static_range(len(tile)):
        x = tile[component]
        result += (tl.permute(x, (0, 2, 1)) if len(x.shape) == 3 else tl.permute(x, (1, 0)),)
    return result


@triton.jit
def reshape(tile, SHAPE: tl.constexpr):
    """Each component in another shape, its entries in the same order."""
    result = ()
    for component in tl.static_range(len(tile)):
        result += (tl.reshape(tile[component], SHAPE),)
    return result


@triton.jit
def pair(first, second):
    """A tile of two matrices from two blocks [N, N]."""
    result = ()
    for component in tl.static_range(len(first)):
        result += (tl.permute(tl.join(first[component], second[component]), (2, 0, 1)),)
    return result


@triton.jit
def unpair(tile):
    """The two blocks [N, N] of a tile of two matrices."""
    first = ()
    second = ()
    for component in tl.static_range(len(tile)):
        a, b = tl.split(tl.permute(tile[component], (1, 2, 0)))
        first += (a,)
        second += (b,)
    return first, second


@triton.jit
def unstack(tile):
    """The columns of a tile [matrices, rows, cols]: the first half of them, then the second, each found likewise."""
    COLS: tl.constexpr = tile[0].shape[2]
    left = ()
    right = ()
    for component in tl.static_range(len(tile)):
        x = tile[component]
        if COLS == 1:
            left += (tl.reshape(x, (x.shape[0], x.shape[1])),)
        else:
            halves = tl.reshape(x, (x.shape[0], x.shape[1], 2, COLS // 2))
            a, b = tl.split(tl.permute(halves, (0, 1, 3, 2)))
            left += (a,)
            right += (b,)
    if COLS == 1:
        return (left,)
    else:
        return unstack(left) + unstack(right)


@triton.jit
def stack(columns):
    """The tile [matrices, rows, cols] of a tuple of columns: `unstack` undone."""
    COLS: tl.constexpr = len(columns)
    tile = ()
    if COLS == 1:
        for component in tl.static_range(len(columns[0])):
            x = columns[0][component]
            tile += (tl.reshape(x, (x.shape[0], x.shape[1], 1)),)
    else:
        left = stack(columns[: COLS // 2])
        right = stack(columns[COLS // 2 :])
        for component in tl.static_range(len(left)):
            halves = tl.permute(tl.join(left[component], right[component]), (0, 1, 3, 2))
            tile += (tl.reshape(halves, (halves.shape[0], halves.shape[1], COLS)),)
    return tile


@triton.jit
def turn(columns):
    """The rows, each a field element [matrices, cols], of matrices given by columns: lanes and registers swap."""
    return unstack(transpose(stack(columns)))
