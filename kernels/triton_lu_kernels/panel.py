"""LU of a panel: some columns of a matrix in registers, its rows over all threads of a program.

A column is a tuple of CHUNKS field elements [WARPS, 32], the panel a tuple of COLUMNS columns. It has ROWS rows, CHUNKS
times WARPS times 32: row i is that of lane i % 32 of warp i // 32 % WARPS in chunk i // 32 // WARPS.

No row moves. Every thread knows the *place* of its rows, position * ROWS + row, where the position is that to which the
exchanges have brought the row. From the position of a row that has been a pivot COLUMNS is subtracted, which makes its
place negative, and from that of a row that does not exist twice as much.

One loop runs over the steps. The pivot column of a step is the first of the tuple: the others move up by one as they
are updated, which costs nothing, and the finished column goes to memory. Last in the tuple is then the column of the
identity that belongs to the pivot row. These columns are eliminated like the others and become L^-1 in the pivot rows,
and no step has to know which columns are finished.
"""

import triton
import triton.language as tl

from . import field


@triton.jit
def _words(modulus):
    """The bits of a modulus as signed words of 32 bits, which are in its order: over a warp, a GPU has an instruction
    that finds their maximum."""
    if modulus.dtype == tl.float64:
        bits = modulus.to(tl.int64, bitcast=True)
        return ((bits >> 32).to(tl.int32), bits.to(tl.int32) ^ -2147483648)
    else:
        return (modulus.to(tl.int32, bitcast=True),)


@triton.jit
def _modulus(words):
    """The modulus of these words."""
    if len(words) == 2:
        low = (words[1] ^ -2147483648).to(tl.uint32, bitcast=True).to(tl.int64)
        return ((words[0].to(tl.int64) << 32) | low).to(tl.float64, bitcast=True)
    else:
        return words[0].to(tl.float32, bitcast=True)


@triton.jit
def _spread(x, AXIS: tl.constexpr):
    """What a reduction along the axis left, against what it was applied to."""
    if AXIS == 0:
        return x
    else:
        return x[:, None]


@triton.jit
def _largest(words, places, AXIS: tl.constexpr):
    """The largest of some numbers, and the least place that has it, along an axis of all chunks: `words[chunk][i]`."""
    largest = ()
    candidates = places
    for i in tl.static_range(len(words[0])):
        most = words[0][i]
        for q in tl.static_range(len(words)):
            word = words[q][i] if i == 0 else tl.where(candidates[q] != 0x7FFFFFFF, words[q][i], -2147483648)
            most = tl.maximum(most, word) if q > 0 else word
        most = tl.max(most, AXIS)
        largest += (most,)
        left = ()
        for q in tl.static_range(len(words)):
            left += (tl.where(words[q][i] == _spread(most, AXIS), candidates[q], 0x7FFFFFFF),)
        candidates = left
    first = candidates[0]
    for q in tl.static_range(1, len(words)):
        first = tl.minimum(first, candidates[q])
    return largest, tl.min(first, AXIS)


@triton.jit
def _find_pivot(column, place):
    """The largest modulus of the rows that are left, and the place where it is, of equals the first."""
    WARPS: tl.constexpr = place[0].shape[0]
    words = ()
    for q in tl.static_range(len(column)):
        key = _words(field.modulus(column[q]))
        high = (key[0] | (place[q] >> 31),)  # -1 unless the row is left
        words += (high + key[1:],)
    largest, first = _largest(words, place, 1)
    if WARPS > 1:
        if len(largest) == 2:
            largest = _to_all_warps(largest[0], largest[1])
            first, _ = _to_all_warps(first, first)
        else:
            most, first = _to_all_warps(largest[0], first)
            largest = (most,)
    largest, first = _largest((largest,), (first,), 0)
    return _modulus(largest), first


@triton.jit
def _to_all_warps(a, b):
    """Two words of every warp [WARPS], exchanged at once: [32], again and again, for the sake of that instruction."""
    pair = (a.to(tl.int64) << 32) | (b.to(tl.int64) & 0xFFFFFFFF)
    pair = tl.gather(pair, tl.arange(0, 32) % a.shape[0], 0)
    return (pair >> 32).to(tl.int32), pair.to(tl.int32)


@triton.jit
def _pick(columns, chunk, lane, FIRST: tl.constexpr, CHUNKS: tl.constexpr):
    """The reals [WARPS, 1] of all columns in that lane of a chunk: branches that all threads take alike, then one
    shuffle for each."""
    if CHUNKS == 1:
        reals = ()
        for j in tl.static_range(len(columns)):
            reals += field.gather(columns[j][FIRST], lane)
        return reals
    else:
        if chunk < FIRST + CHUNKS // 2:
            reals = _pick(columns, chunk, lane, FIRST, CHUNKS // 2)
        else:
            reals = _pick(columns, chunk, lane, FIRST + CHUNKS // 2, CHUNKS // 2)
        return reals


@triton.jit
def _join(reals):
    """[WARPS, C] of a tuple of C tensors [WARPS, 1]."""
    C: tl.constexpr = len(reals)
    if C == 1:
        return reals[0]
    else:
        joined = tl.join(_join(reals[: C // 2]), _join(reals[C // 2 :]))
        return tl.reshape(tl.permute(joined, (0, 2, 1)), (joined.shape[0], C))


@triton.jit
def _scalars(x):
    """The entries of a vector, one by one."""
    C: tl.constexpr = x.shape[0]
    if C == 1:
        return (tl.sum(x, 0),)
    else:
        left, right = tl.split(tl.permute(tl.reshape(x, (2, C // 2)), (1, 0)))
        return _scalars(left) + _scalars(right)


@triton.jit
def _row(columns, row):
    """A row of the panel, known to all threads."""
    WARPS: tl.constexpr = columns[0][0][0].shape[0]
    COMPONENTS: tl.constexpr = len(columns[0][0])
    lane = tl.full((WARPS, 1), 0, tl.int32) + row % 32
    reals = _pick(columns, row // (32 * WARPS), lane, 0, len(columns[0]))
    if WARPS > 1:  # one exchange between the warps for all of them
        C: tl.constexpr = len(reals)
        reals = _scalars(tl.reshape(tl.gather(_join(reals), tl.full((1, C), 0, tl.int32) + row // 32 % WARPS, 0), (C,)))
    entries = ()
    for j in tl.static_range(len(columns)):
        entries += (reals[j * COMPONENTS : (j + 1) * COMPONENTS],)
    return entries


@triton.jit
def _inverse(pivot, modulus):
    """A power of two, and the inverse of the pivot times that power, without overflow or underflow. Both are 1 if the
    pivot is zero: then nothing is divided."""
    zero = modulus == 0.0
    scale = field.inverse_power_of_two(tl.where(zero, 1.0, modulus))
    if len(pivot) == 2:
        re = tl.where(zero, 1.0, pivot[0] * scale)
        im = pivot[1] * scale
        factor = 1.0 / tl.fma(re, re, im * im)
        return scale, (re * factor, -im * factor)
    else:
        divisor = tl.where(zero, 1.0, modulus * scale)  # does not wait for the pivot row
        # Rounded correctly, no multiplier is larger than 1. Without `div_rn` a GPU rounds only float64 so.
        inverse = tl.div_rn(1.0, divisor) if modulus.dtype == tl.float32 else 1.0 / divisor
        return scale, (tl.where(pivot[0] < 0.0, -inverse, inverse),)


@triton.jit
def factor(columns, place, scratch, steps, PIVOT: tl.constexpr):
    """Takes `steps` steps and writes each finished column of L and U to `scratch`, [COLUMNS, COMPONENTS, ROWS], as far
    as there are rows.

    Returns columns and places as they are then, the positions that the steps chose [COLUMNS] and the first step with a
    pivot that is zero, or COLUMNS.
    """
    COLUMNS: tl.constexpr = len(columns)
    COMPONENTS: tl.constexpr = len(columns[0][0])
    CHUNKS: tl.constexpr = len(place)
    WARPS: tl.constexpr = place[0].shape[0]
    ROWS: tl.constexpr = CHUNKS * WARPS * 32
    row = tl.arange(0, WARPS)[:, None] * 32 + tl.arange(0, 32)[None, :]
    exists = ()
    for q in tl.static_range(CHUNKS):
        exists += (place[q] >= 0,)
    which = tl.arange(0, COLUMNS)
    chosen = which
    first_zero = tl.full((), COLUMNS, tl.int32)
    for step in range(steps):
        column = columns[0]
        if PIVOT:
            modulus, pivot_place = _find_pivot(column, place)
        else:
            pivot_place = tl.full((), 0, tl.int32) + step * (ROWS + 1)
        entries = _row(columns, pivot_place & (ROWS - 1))
        if not PIVOT:
            modulus = field.modulus(entries[0])
            if WARPS == 1:
                modulus = tl.sum(tl.sum(modulus, 1), 0)
        scale, inverse = _inverse(entries[0], modulus)
        first_zero = tl.where((modulus == 0.0) & (first_zero == COLUMNS), step, first_zero)
        chosen = tl.where(which == step, pivot_place // ROWS, chosen)
        distance = (pivot_place & -ROWS) - step * ROWS
        moved = ()
        negated = ()
        unit = ()
        for q in tl.static_range(CHUNKS):
            is_pivot = place[q] == pivot_place
            displaced = tl.where((place[q] & -ROWS) == step * ROWS, place[q] + distance, place[q])
            moved += (tl.where(is_pivot, place[q] - (distance + COLUMNS * ROWS), displaced),)
            left = moved[q] >= 0
            multiplier = field.multiply(field.scale(column[q], scale), inverse)
            finished = field.where(left, multiplier, column[q])
            for c in tl.static_range(COMPONENTS):
                tl.store(scratch + (c * ROWS + q * WARPS * 32) + row, finished[c], exists[q])
            negated += (field.where(left, field.negate(multiplier), field.constant_like(multiplier, 0.0)),)
            unit += (field.where(is_pivot, field.constant_like(multiplier, 1.0), negated[q]),)
        place = moved
        scratch += COMPONENTS * ROWS
        updated = ()
        for j in tl.static_range(1, COLUMNS):
            chunks = ()
            for q in tl.static_range(CHUNKS):
                chunks += (field.multiply_add(negated[q], entries[j], columns[j][q]),)
            updated += (chunks,)
        updated += (unit,)
        columns = updated
    return columns, place, chosen, first_zero
