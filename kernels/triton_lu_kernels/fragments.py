"""Tiles of 16 x 16 in registers as tensor cores take them, straight from global memory: no shared memory, no shuffles.

Every warp of a program has a tile of its own. A tile is a field element of tensors [W, 16, 16], W being the number of
warps: dots of such tensors leave a matrix to each warp. What its rows and columns stand for is ours to choose, if it is
the same for the factors of a product and for their product. That is what saves all exchange: mma gives lane 4 g + t,
with g < 8 and t < 4, the positions

    rows       8 r + g            r < 2    of factors and of results
    columns    8 s + 4 h + t      s, h < 2 of a factor
               8 s + 2 t + h               of a result

so the lane loads what lies at these positions. If the one at (s, h, t) is the index

    4 t + 2 h + s          entries of 4 bytes           t: 0 0 0 0 1 1 1 1 2 2 2 2 3 3 3 3
                                                        h: 0 0 1 1 0 0 1 1 0 0 1 1 0 0 1 1
                                                        s: 0 1 0 1 0 1 0 1 0 1 0 1 0 1 0 1
    8 h + 2 t + s          of 8 bytes                   t: 0 0 1 1 2 2 3 3 0 0 1 1 2 2 3 3
                                                        h: 0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1
                                                        s: 0 1 0 1 0 1 0 1 0 1 0 1 0 1 0 1
    8 h + 4 s + t          of 16 bytes                  t: 0 1 2 3 0 1 2 3 0 1 2 3 0 1 2 3
                                                        h: 0 0 0 0 0 0 0 0 1 1 1 1 1 1 1 1
                                                        s: 0 0 0 0 1 1 1 1 0 0 0 0 1 1 1 1

of a column, and that at (r, g) the same of a row with s = r and 2 t + h = g, then

* the columns of a result stand for what those of a factor do, in other registers of the same lane: a result becomes a
  factor by renaming registers;
* a lane has 16 bytes of neighbours in a row, or two neighbours in a column: one access of 64 or 128 bits;
* four lanes have 64 bytes of neighbours, so no sector is fetched in part.

Products are a b^T, so that rows are rows in both. In memory the neighbours may be in rows (NEAR = 1), in columns (0),
or be too badly aligned, or permuted (2, for every entry an access of its own): the bits are the same.

All this is said to the compiler by shapes. It gives neighbours to a lane, the last two other dimensions of a tensor of
pointers to the lanes, here 8 x 4, and the one before to the warps; reshape and permute then only rename. Three traps:

* Alignment must be visible, or accesses are scalar and in another distribution: indices by // and %, not by bits; a
  stride multiplies after a gather of rows, not before; `s // V * V` for a stride that is a multiple of V.
* Transpose before the split into parts of a float32, not after: compilers take that through shared memory.
* In float32 the three products of parts are summed from zero, and then added: half the error.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl

from . import field, layout


class Matrix(NamedTuple):
    """One matrix in memory. A kernel makes it in the call that takes it, as it does a `layout.Matrix`.

    pointer: to its first real
    row_stride, col_stride: in reals
    rows, cols: how many there are
    COMPONENTS: reals of a field element
    V: entries of 16 bytes
    NEAR: whether neighbours are those in a column (0) or in a row (1), V of them aligned, V > 1; 2: neither
    RAGGED: whether tiles may lead out of the matrix
    """

    pointer: Any
    row_stride: Any
    col_stride: Any
    rows: Any
    cols: Any
    COMPONENTS: tl.constexpr
    V: tl.constexpr
    NEAR: tl.constexpr
    RAGGED: tl.constexpr


@triton.jit
def _index(s, h, t, V: tl.constexpr):
    if V == 4:
        return t * 4 + h * 2 + s
    elif V == 2:
        return h * 8 + t * 2 + s
    else:
        return h * 8 + s * 4 + t


@triton.jit
def row_index(V: tl.constexpr):
    """Of every row, and of every column of a result."""
    p = tl.arange(0, 16)
    return _index(p // 8, p % 2, p // 2 % 4, V)


@triton.jit
def column_index(V: tl.constexpr):
    """Of every column of a factor."""
    p = tl.arange(0, 16)
    return _index(p // 8, p // 4 % 2, p % 4, V)


@triton.jit
def rows(first, V: tl.constexpr):
    """[2 (r), W, 8 (g)]: the rows from `first` [W] on."""
    r = tl.arange(0, 2)[:, None, None]
    g = tl.arange(0, 8)[None, None, :]
    return first[None, :, None] + _index(r, g % 2, g // 2, V)


@triton.jit
def columns(first, V: tl.constexpr):
    """[4 (2 h + s), W, 4 (t)]: the columns from `first` [W] on."""
    hs = tl.arange(0, 4)[:, None, None]
    t = tl.arange(0, 4)[None, None, :]
    return first[None, :, None] + _index(hs % 2, hs // 2, t, V)


@triton.jit
def _near_columns(j, V: tl.constexpr, C: tl.constexpr):
    """[4 / V, 1, W, 1, 4 V C]: the reals of 16 neighbours in a row from column j on."""
    chunk = tl.arange(0, 4 // V)[:, None, None, None, None] * (4 * V * C)
    return j[None, None, :, None, None] * C + (chunk + tl.arange(0, 4 * V * C)[None, None, None, None, :])


@triton.jit
def _near_rows(i, V: tl.constexpr, C: tl.constexpr):
    """[1, W, 8 (g), 1, 2 C (r)]: those of pairs of neighbours in a column from row i on."""
    g = tl.arange(0, 8)[None, None, :, None, None]
    pair = i[None, :, None, None, None] + _index(0, g % 2, g // 2, V)
    return pair * C + tl.arange(0, 2 * C)[None, None, None, None, :]


@triton.jit
def _pointers(x, row, col, places, i, j, TRANSPOSED: tl.constexpr, FORM: tl.constexpr):
    """To the reals of a tile, in a shape that ends with lanes, 8 (g) x 4 (t), and neighbours."""
    C: tl.constexpr = x.COMPONENTS
    row = row if TRANSPOSED or places is None else places
    col = places if TRANSPOSED and places is not None else col
    row_offset = row * (x.col_stride if TRANSPOSED else x.row_stride)
    col_offset = col * (x.row_stride if TRANSPOSED else x.col_stride)
    if FORM == 1:  # [4 / V, 2 (r), W, 8, 4 V C]
        return x.pointer + (row_offset[None, :, :, :, None] + _near_columns(j, x.V, C))
    elif FORM == 0:  # [4 (2 h + s), W, 8, 4, 2 C (r)]
        return x.pointer + (col_offset[:, :, None, :, None] + _near_rows(i, x.V, C))
    else:  # [4 (2 h + s), 2 (r), W, 8, 4, C]
        component = tl.arange(0, C)[None, None, None, None, None, :]
        offset = row_offset[None, :, :, :, None, None] + col_offset[:, None, :, None, :, None]
        return x.pointer + (offset + component)


@triton.jit
def _mask(x, row, col, i, j, there, TRANSPOSED: tl.constexpr, FORM: tl.constexpr):
    """Which of the reals of a tile exist."""
    C: tl.constexpr = x.COMPONENTS
    V: tl.constexpr = x.V
    end_row = x.cols if TRANSPOSED else x.rows
    end_col = x.rows if TRANSPOSED else x.cols
    if x.RAGGED:
        if FORM == 1:
            mask = (row < end_row)[None, :, :, :, None] & (_near_columns(j, V, C) // C < end_col // V * V)
        elif FORM == 0:
            mask = (col < end_col)[:, :, None, :, None] & (_near_rows(i, V, C) // C < end_row // V * V)
        else:
            mask = (row < end_row)[None, :, :, :, None, None] & (col < end_col)[:, None, :, None, :, None]
        return mask if there is None else mask & _like(there, FORM)
    else:  # all of a tile, or nothing: a warp may be beyond the end
        exists = (i < end_row) & (j < end_col)
        return _like(exists if there is None else exists & there, FORM)


@triton.jit
def _like(condition, FORM: tl.constexpr):
    """A condition on tiles [W] in the dimensions of pointers."""
    if FORM == 1:
        return condition[None, None, :, None, None]
    elif FORM == 0:
        return condition[None, :, None, None, None]
    else:
        return condition[None, None, :, None, None, None]


@triton.jit
def _rename(x, SHAPE: tl.constexpr, ORDER: tl.constexpr, RESULT: tl.constexpr):
    y = ()
    for k in tl.static_range(len(x)):
        y += (tl.reshape(tl.permute(tl.reshape(x[k], SHAPE), ORDER), RESULT),)
    return y


@triton.jit
def load(x, i, j, TRANSPOSED: tl.constexpr = False, places=None, there=None, RESULT: tl.constexpr = False):
    """The tiles at (i, j) [W] of x, or of its transpose, as factors or RESULTs; zeros where nothing exists, or, of
    several warps, not `there` [W]. With `places`, a permutation of the rows of x at `rows(i)`, or if TRANSPOSED at
    `columns(j)`."""
    C: tl.constexpr = x.COMPONENTS
    V: tl.constexpr = x.V
    W: tl.constexpr = i.shape[0]
    ALONE: tl.constexpr = x.NEAR == 2 or (x.NEAR == 0 and places is not None)
    FORM: tl.constexpr = 2 if ALONE else 1 - x.NEAR if TRANSPOSED else x.NEAR  # NEAR of the tile
    row = rows(i, V)
    col = columns(j, V)
    pointers = _pointers(x, row, col, places, i, j, TRANSPOSED, FORM)
    if x.RAGGED or W > 1:
        reals = tl.load(pointers, _mask(x, row, col, i, j, there, TRANSPOSED, FORM), other=0.0)
    else:
        reals = tl.load(pointers)
    if C == 1:
        tile = (reals,)
    else:
        SHAPE: tl.constexpr = reals.shape[:-1] + [reals.shape[-1] // 2, 2]  # noqa: RUF005 (Triton unpacks no lists)
        re, im = tl.split(tl.reshape(reals, SHAPE))
        tile = (re, im)
    # to r, g and, of the columns, s, h, t, or s, t, h
    if FORM == 1 and V == 4:
        return _rename(tile, (2, W, 8, 4, 2, 2), (1, 0, 2, 5, 3, 4) if RESULT else (1, 0, 2, 5, 4, 3), (W, 16, 16))
    elif FORM == 1:
        return _rename(tile, (2, 2, W, 8, 4, 2), (2, 1, 3, 5, 4, 0) if RESULT else (2, 1, 3, 5, 0, 4), (W, 16, 16))
    elif FORM == 0:
        return _rename(tile, (2, 2, W, 8, 4, 2), (2, 5, 3, 1, 4, 0) if RESULT else (2, 5, 3, 1, 0, 4), (W, 16, 16))
    else:
        return _rename(tile, (2, 2, 2, W, 8, 4), (3, 2, 4, 1, 5, 0) if RESULT else (3, 2, 4, 1, 0, 5), (W, 16, 16))


@triton.jit
def store(x, result, i, j, TRANSPOSED: tl.constexpr = False, places=None, there=None):
    """`load` of a RESULT the other way."""
    C: tl.constexpr = x.COMPONENTS
    V: tl.constexpr = x.V
    W: tl.constexpr = i.shape[0]
    ALONE: tl.constexpr = x.NEAR == 2 or (x.NEAR == 0 and places is not None)
    FORM: tl.constexpr = 2 if ALONE else 1 - x.NEAR if TRANSPOSED else x.NEAR  # NEAR of the tile
    if FORM == 1 and V == 4:
        tile = _rename(result, (W, 2, 8, 2, 4, 2), (1, 0, 2, 4, 5, 3), (1, 2, W, 8, 16))
    elif FORM == 1:
        tile = _rename(result, (W, 2, 8, 2, 4, 2), (5, 1, 0, 2, 4, 3), (2, 2, W, 8, 8))
    elif FORM == 0:
        tile = _rename(result, (W, 2, 8, 2, 4, 2), (5, 3, 0, 2, 4, 1), (4, W, 8, 4, 2))
    else:
        tile = _rename(result, (W, 2, 8, 2, 4, 2), (5, 3, 1, 0, 2, 4), (4, 2, W, 8, 4, 1))
    reals = tile[0]
    if C == 2:
        SHAPE: tl.constexpr = reals.shape[:-1] + [reals.shape[-1] * 2]  # noqa: RUF005
        reals = tl.reshape(tl.join(reals, tile[1]), SHAPE)
    row = rows(i, V)
    col = columns(j, V)
    pointers = _pointers(x, row, col, places, i, j, TRANSPOSED, FORM)
    if x.RAGGED or W > 1:
        tl.store(pointers, reals, _mask(x, row, col, i, j, there, TRANSPOSED, FORM))
    else:
        tl.store(pointers, reals)


@triton.jit
def factor(result):
    """A result as a factor."""
    W: tl.constexpr = result[0].shape[0]
    return _rename(result, (W, 16, 2, 4, 2), (0, 1, 2, 4, 3), (W, 16, 16))


@triton.jit
def transpose(tile):
    y = ()
    for k in tl.static_range(len(tile)):
        y += (tl.permute(tile[k], (0, 2, 1)),)
    return y


@triton.jit
def triangle(tile, V: tl.constexpr, UPPER: tl.constexpr, DIAGONAL: tl.constexpr = None, end=None):
    """Of a factor, one triangle, with its own DIAGONAL, but ones from row `end` on, or with that DIAGONAL."""
    row = row_index(V)[None, :, None]
    col = column_index(V)[None, None, :]
    beyond = col > row if UPPER else col < row
    if DIAGONAL is None:
        beyond = beyond | (col == row)
        diagonal = 0.0
        if end is not None:
            beyond = beyond & ((col != row) | (row < end))
            diagonal = 1.0
    else:
        diagonal = DIAGONAL
    zero = field.constant_like(tile, 0.0)
    if diagonal != 0.0:
        zero = field.where(col == row, field.constant_like(tile, 1.0), zero)
    return field.where(beyond, tile, zero)


@triton.jit
def add_all(c, tile):
    """c [1, 16, 16] plus the tile of every warp, one after the other: the bits do not depend on their number."""
    W: tl.constexpr = tile[0].shape[0]
    if W == 1:
        return field.add(c, tile)
    else:
        last = ()
        for k in tl.static_range(len(tile)):
            last += (tl.permute(tile[k], (1, 2, 0)),)
        each = layout.unstack(last)
        for w in tl.static_range(W):
            c = field.add(c, layout.reshape(each[w], (1, 16, 16)))
        return c


@triton.jit
def broadcast(tile, W: tl.constexpr):
    """A tile [1, 16, 16] in every warp."""
    y = ()
    for k in tl.static_range(len(tile)):
        y += (tl.broadcast_to(tile[k], (W, 16, 16)),)
    return y


@triton.jit
def dot(a, b, c):
    """c + a b^T; c is a result."""
    b = field.parts(transpose(b))
    a = field.parts(a)
    if len(a) == 1:
        return (_dot(c[0], a[0], b[0], False),)
    else:
        re = _dot(_dot(c[0], a[0], b[0], False), a[1], b[1], True)
        return (re, _dot(_dot(c[1], a[0], b[1], False), a[1], b[0], False))


@triton.jit
def _dot(c, a, b, NEGATED: tl.constexpr):
    """c + a b, or c - a b if NEGATED, of reals in parts."""
    if len(a) == 1:
        return tl.dot(-a[0] if NEGATED else a[0], b[0], c, input_precision="ieee", out_dtype=c.dtype)
    else:
        product = tl.dot(a[1], b[0], tl.zeros_like(c), input_precision="tf32")
        product = tl.dot(a[0], b[1], product, input_precision="tf32")
        product = tl.dot(a[0], b[0], product, input_precision="tf32")
        return c - product if NEGATED else c + product
