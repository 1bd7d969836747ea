"""LU of matrices that one warp's registers do not hold, with partial pivoting or none: blocks of columns.

Results are those of `factor`. A block of BLOCK columns is factored in panels of PANEL columns, those of `panel`; then
the columns right of it are updated by products:

    U12 = L11^-1 A12        A22 = A22 - L21 U12

Until the end rows stay where they are in A, and `order` has the row at each position. `work` takes, by rows, L, the
diagonal blocks of U, PANEL wide, and what is left of A. In the end these go to LU; U12 goes there at once.

`whole_kernel` has a program for each matrix. For larger ones `block_kernel` has that for a block of columns, and is
followed by `update_kernel`, with programs for all tiles of the columns after it, and in the end by `finish_kernel`. No
program reads what another one of the same launch writes, and a matrix gets the same bits in any batch.

Products of float32 on tensor cores lose bits of denormal numbers, and partial sums of the largest numbers overflow. So
U12 is scaled by a power of two that brings the largest number of a tile between 1 and 4. The fused addition that takes
it back over- or underflows only if its result does.
"""

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

from . import blocks, field, launch, layout, panel


class Sizes(NamedTuple):
    """What all kernels are compiled for: see `factor`."""

    BLOCK: int
    PANEL: int
    INNER: int  # columns that are updated at once inside a block
    COLS: int
    ROWS: int
    ALIGNED: bool  # whether all tiles begin at multiples of 16 columns


class Task(NamedTuple):
    """A matrix of m rows and n columns, and the workspace for it; pointers, and reals from one row to the next, of A
    also from one column to the next."""

    A: Any
    A_stride: Any
    A_col_stride: Any
    work: Any
    work_stride: Any
    order: Any
    inverse: Any
    scratch: Any
    m: Any
    n: Any


@triton.jit
def _begin(x, batch):
    """Where a matrix begins, of its indices in all batch dimensions."""
    offset = batch[0] * (x.strides[0][0] * x.COMPONENTS)
    for dim in tl.static_range(1, len(batch)):
        offset += batch[dim] * (x.strides[0][dim] * x.COMPONENTS)
    return x.reals + offset


@triton.jit
def _task(A, work, order, shape, work_stride, batch, sizes: tl.constexpr):
    work_begin = _begin(work, batch)
    inverse = work_begin + shape[0] * work_stride
    return Task(
        A=_begin(A, batch),
        A_stride=A.strides[1] * A.COMPONENTS,
        A_col_stride=A.strides[2] * A.COMPONENTS,
        work=work_begin,
        work_stride=work_stride,
        order=_begin(order, batch),
        inverse=inverse,
        scratch=inverse + sizes.BLOCK * sizes.BLOCK * A.COMPONENTS,
        m=shape[0],
        n=shape[1],
    )


@triton.jit
def _rows(task, first, end, ROWS: tl.constexpr):
    """Which rows of A are at the ROWS positions from `first` on, and which of these are below `end`."""
    position = first + tl.arange(0, ROWS)
    exist = position < end
    return tl.load(task.order + position, exist, other=0), exist


@triton.jit
def _padded(end, sizes: tl.constexpr):
    """Where columns of `work` end, for those of the matrix that end there. Beyond n there are zeros, up to a multiple
    of 16: with such an end several numbers are loaded at once."""
    return tl.cdiv(end, 16) * 16 if sizes.ALIGNED else end


@triton.jit
def _load(ptr, stride, rows, exist, col, end, COLS: tl.constexpr, COMPONENTS: tl.constexpr, col_stride=None):
    """Columns from `col` to `end` of the rows given, as far as they exist; zeros elsewhere."""
    real = tl.arange(0, COLS * COMPONENTS)
    mask = exist[:, None] & (col + real // COMPONENTS < end)[None, :]
    offset = real + col * COMPONENTS
    if col_stride is not None:
        offset = (col + real // COMPONENTS) * col_stride + real % COMPONENTS
    reals = tl.load(ptr + rows[:, None] * stride + offset[None, :], mask, other=0.0)
    if COMPONENTS == 1:
        return (reals,)
    else:
        re, im = tl.split(tl.reshape(reals, (rows.shape[0], COLS, 2)))
        return (re, im)


@triton.jit
def _store(ptr, stride, tile, rows, exist, col, end):
    """`_load` the other way."""
    COMPONENTS: tl.constexpr = len(tile)
    real = tl.arange(0, tile[0].shape[1] * COMPONENTS)
    mask = exist[:, None] & (col + real // COMPONENTS < end)[None, :]
    reals = tile[0]
    if COMPONENTS == 2:
        reals = tl.reshape(tl.join(tile[0], tile[1]), (rows.shape[0], real.shape[0]))
    tl.store(ptr + rows[:, None] * stride + (real + col * COMPONENTS)[None, :], reals, mask)


@triton.jit
def _load_left(task, k, rows, exist, col, end, COLS: tl.constexpr, COMPONENTS: tl.constexpr):
    """`_load` of what is left of A before the panel or block of columns that begins at k: A itself before the first."""
    if k == 0:
        real_end = tl.minimum(end, task.n)
        tile = _load(task.A, task.A_stride, rows, exist, col, real_end, COLS, COMPONENTS, task.A_col_stride)
    else:
        tile = _load(task.work, task.work_stride, rows, exist, col, end, COLS, COMPONENTS)
    return tile


@triton.jit
def _load_inverse(
    inverse, row, col, end, ROWS: tl.constexpr, COLS: tl.constexpr, COMPONENTS: tl.constexpr, sizes: tl.constexpr
):
    """Rows from `row` and columns from `col` on of L11^-1, both below `end`; zeros elsewhere, and right of the panels'
    own inverses, where nothing is written. Components lie apart, entries by columns."""
    rows = (row + tl.arange(0, ROWS))[:, None]
    cols = (col + tl.arange(0, COLS))[None, :]
    mask = (rows < end) & (cols < end) & (rows // sizes.PANEL >= cols // sizes.PANEL)
    block = ()
    for c in tl.static_range(COMPONENTS):
        offsets = c * sizes.BLOCK * sizes.BLOCK + rows + cols * sizes.BLOCK
        block += (tl.load(inverse + offsets, mask, other=0.0),)
    return block


@triton.jit
def _factor_panel(
    task,
    inverse,
    k,
    end,
    COMPONENTS: tl.constexpr,
    sizes: tl.constexpr,
    PANEL_ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    PIVOT: tl.constexpr,
):
    """Factors columns from k to `end`, PANEL at most, at positions from k on; L^-1 of the panel goes to `inverse`.

    Returns the positions chosen, counted from k, and the first step whose pivot was zero, or PANEL.
    """
    BLOCK: tl.constexpr = sizes.BLOCK
    PANEL: tl.constexpr = sizes.PANEL
    CHUNK: tl.constexpr = WARPS * 32
    CHUNKS: tl.constexpr = PANEL_ROWS // CHUNK
    index = tl.arange(0, CHUNK)
    place = ()
    rows = ()
    chunks = ()
    for q in tl.static_range(CHUNKS):
        row = q * CHUNK + index
        exist = k + row < task.m
        rows += (tl.load(task.order + k + row, exist, other=0),)
        start = tl.where(exist, row * PANEL_ROWS, -2 * PANEL * PANEL_ROWS) + row
        place += (tl.reshape(start, (WARPS, 32)),)
    for q in tl.static_range(CHUNKS):
        exist = k + q * CHUNK + index < task.m
        tile = _load_left(task, k, rows[q], exist, k, _padded(end, sizes), PANEL, COMPONENTS)
        chunks += (layout.unstack(layout.reshape(tile, (WARPS, 32, PANEL))),)
    columns = ()
    for j in tl.static_range(PANEL):
        column = ()
        for q in tl.static_range(CHUNKS):
            column += (chunks[q][j],)
        columns += (column,)

    steps = end - k
    columns, place, chosen, first_zero = panel.factor(columns, place, task.scratch, steps, PIVOT)
    tl.debug_barrier()

    for q in tl.static_range(CHUNKS):
        finished = (place[q] < 0) & (place[q] >= -PANEL * PANEL_ROWS)
        position = tl.where(finished, place[q] + PANEL * PANEL_ROWS, place[q]) // PANEL_ROWS
        tl.store(task.order + k + position, tl.reshape(rows[q], (WARPS, 32)), finished | (place[q] >= 0))
        for j in tl.static_range(PANEL):  # the last `steps` columns are those of L^-1
            col = j - (PANEL - steps)
            for c in tl.static_range(COMPONENTS):
                offsets = c * BLOCK * BLOCK + position + col * BLOCK
                tl.store(inverse + offsets, columns[j][q][c], finished & (col >= 0))
    col = tl.arange(0, PANEL)
    for q in tl.static_range(CHUNKS):
        exist = k + q * CHUNK + index < task.m
        tile = ()
        for c in tl.static_range(COMPONENTS):
            offsets = (q * CHUNK + index)[:, None] + ((col * COMPONENTS + c) * PANEL_ROWS)[None, :]
            tile += (tl.load(task.scratch + offsets, exist[:, None]),)
        _store(task.work, task.work_stride, tile, rows[q], exist, k, _padded(end, sizes))
    tl.debug_barrier()
    return chosen, first_zero


@triton.jit
def _extend(task, k, row, end, COMPONENTS: tl.constexpr, sizes: tl.constexpr):
    """Rows of L11^-1 from `row` to `end`, PANEL at most, in the block of columns that begins at k: from the rows above
    and the panel's own inverse."""
    BLOCK: tl.constexpr = sizes.BLOCK
    PANEL: tl.constexpr = sizes.PANEL
    rows, exist = _rows(task, k + row, k + end, PANEL)
    L = _load(task.work, task.work_stride, rows, exist, k, k + row, BLOCK, COMPONENTS)
    own = _load_inverse(task.inverse, row, row, end, PANEL, PANEL, COMPONENTS, sizes)
    for col in tl.range(0, row, PANEL, num_stages=1):
        above = _load_inverse(task.inverse, 0, col, row, BLOCK, PANEL, COMPONENTS, sizes)
        below = field.negate(field.dot(own, field.dot(L, above)))
        offsets = (row + tl.arange(0, PANEL))[:, None] + (col + tl.arange(0, PANEL))[None, :] * BLOCK
        for c in tl.static_range(COMPONENTS):
            tl.store(task.inverse + c * BLOCK * BLOCK + offsets, below[c])


@triton.jit
def _store_LU(LU, tile, row, col, end_row, end_col):
    """Rows below `end_row` and columns below `end_col` of a tile that begins at (row, col)."""
    blocks.store(
        layout.Matrix(
            LU.pointer, LU.strides, LU.COMPONENTS, LU.BY_COLUMN, (end_row, end_col), LU.batch, LU.exists, True
        ),
        tile,
        row,
        col,
    )


@triton.jit
def _scaling(tile):
    """A power of two that brings the largest number of a tile between 1 and 4, or below 1 if all are denormal, and its
    inverse, no denormal number either."""
    largest = tl.abs(tile[0])
    if len(tile) == 2:
        largest = tl.maximum(largest, tl.abs(tile[1]))
    back = field.inverse_power_of_two(field.inverse_power_of_two(tl.max(tl.max(largest, 1), 0)))
    return field.inverse_power_of_two(back), back


@triton.jit
def _subtract_product(A, L, U, back):
    """A - L U back."""
    product = field.dot_parts(field.parts(L), field.parts(U))
    left = ()
    for c in tl.static_range(len(A)):
        left += (tl.fma(product[c], -back, A[c]),)
    return left


@triton.jit
def _update(
    task,
    LU,
    inverse,
    k,
    block_end,
    col,
    cols_end,
    first,
    rows_end,
    writes_U,
    COLS: tl.constexpr,
    WIDTH: tl.constexpr,
    COUNT: tl.constexpr,
    sizes: tl.constexpr,
):
    """COLS columns from `col` on, below `cols_end`, after the columns from k to `block_end` were factored, COUNT times
    WIDTH at most: U12 if `writes_U`, and A22 at positions from `first` to `rows_end`.

    What L11^-1 has of WIDTH columns is in `inverse`; the COUNT products come one after the other, as they would in
    updates of their own.
    """
    COMPONENTS: tl.constexpr = LU.COMPONENTS
    ROWS: tl.constexpr = sizes.ROWS
    U = ()
    backs = ()
    for i in tl.static_range(COUNT):
        start = k + i * WIDTH
        end = tl.minimum(start + WIDTH, block_end)
        top, top_exist = _rows(task, start, end, WIDTH)
        A12 = _load_left(task, k, top, top_exist, col, cols_end, COLS, COMPONENTS)
        for h in tl.static_range(i):
            L11 = _load(task.work, task.work_stride, top, top_exist, k + h * WIDTH, block_end, WIDTH, COMPONENTS)
            A12 = _subtract_product(A12, L11, U[h], backs[h])
        scale, back = _scaling(A12)
        own = inverse + i * WIDTH * (sizes.BLOCK + 1)
        L11_inverse = _load_inverse(own, 0, 0, end - start, WIDTH, WIDTH, COMPONENTS, sizes)
        U12 = field.dot_parts(field.parts(L11_inverse), field.parts(field.scale(A12, scale)))
        if writes_U:
            _store_LU(LU, field.scale(U12, back), start, col, end, tl.minimum(cols_end, task.n))
        U += (U12,)
        backs += (back,)
    for position in tl.range(first, rows_end, ROWS, num_stages=1, disable_licm=True):
        rows, exist = _rows(task, position, rows_end, ROWS)
        A22 = _load_left(task, k, rows, exist, col, cols_end, COLS, COMPONENTS)
        for i in tl.static_range(COUNT):
            L21 = _load(task.work, task.work_stride, rows, exist, k + i * WIDTH, block_end, WIDTH, COMPONENTS)
            A22 = _subtract_product(A22, L21, U[i], backs[i])
        _store(task.work, task.work_stride, A22, rows, exist, col, cols_end)


@triton.jit
def _factor_block(
    task,
    LU,
    pivots_ptr,
    pivots_stride,
    first_zero,
    k,
    end,
    JOINT: tl.constexpr,
    sizes: tl.constexpr,
    PANEL_ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    PIVOT: tl.constexpr,
):
    """Factors the columns from k to `end`, panel by panel, and finds L^-1 of every panel, if JOINT L11^-1 of the block.
    Returns `first_zero`, the first step of the matrix, from 1, whose pivot was zero, or 0."""
    BLOCK: tl.constexpr = sizes.BLOCK
    PANEL: tl.constexpr = sizes.PANEL
    step = tl.arange(0, PANEL)
    for p in tl.range(k, end, PANEL, num_stages=1, disable_licm=True):
        panel_end = tl.minimum(p + PANEL, end)
        inverse = task.inverse + (p - k) * (BLOCK + 1)
        chosen, zero = _factor_panel(task, inverse, p, panel_end, LU.COMPONENTS, sizes, PANEL_ROWS, WARPS, PIVOT)
        tl.store(pivots_ptr + (p + step).to(tl.int64) * pivots_stride, p + chosen + 1, p + step < panel_end)
        first_zero = tl.where((first_zero == 0) & (zero < PANEL), p + zero + 1, first_zero)
        if BLOCK > PANEL:
            if panel_end < end:
                col = p + PANEL
                cols_end = _padded(end, sizes)
                _update(task, LU, inverse, p, col, col, cols_end, col, task.m, True, sizes.INNER, PANEL, 1, sizes)
            if JOINT and (end < task.n) & (p > k):
                _extend(task, k, p - k, panel_end - k, LU.COMPONENTS, sizes)
            tl.debug_barrier()
    return first_zero


@triton.jit
def _finish(task, LU, col, ROWS: tl.constexpr, sizes: tl.constexpr):
    """A panel of L, with its block of U, to its place."""
    end = tl.minimum(col + sizes.PANEL, tl.minimum(task.m, task.n))
    for row in tl.range(col, task.m, ROWS, num_stages=1, disable_licm=True):
        rows, exist = _rows(task, row, task.m, ROWS)
        tile = _load(task.work, task.work_stride, rows, exist, col, _padded(end, sizes), sizes.PANEL, LU.COMPONENTS)
        _store_LU(LU, tile, row, col, task.m, end)


@triton.jit
def _store_order(task, PANEL_ROWS: tl.constexpr):
    """The order of the rows in the beginning."""
    index = tl.arange(0, PANEL_ROWS)
    tl.store(task.order + index, index, index < task.m)
    tl.debug_barrier()


@triton.jit
def _factor_whole(
    task,
    LU,
    pivots_ptr,
    pivots_stride,
    sizes: tl.constexpr,
    PANEL_ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    PIVOT: tl.constexpr,
):
    BLOCK: tl.constexpr = sizes.BLOCK
    PANEL: tl.constexpr = sizes.PANEL
    COLS: tl.constexpr = sizes.COLS
    m, n = task.m, task.n
    _store_order(task, PANEL_ROWS)
    first_zero = tl.full((), 0, tl.int32)
    for k in tl.range(0, tl.minimum(m, n), BLOCK, num_stages=1, disable_licm=True):
        end = tl.minimum(k + BLOCK, tl.minimum(m, n))
        first_zero = _factor_block(
            task, LU, pivots_ptr, pivots_stride, first_zero, k, end, False, sizes, PANEL_ROWS, WARPS, PIVOT
        )
        end = _padded(end, sizes)
        for col in tl.range(end, n, COLS, num_stages=1, disable_licm=True):
            cols_end = _padded(n, sizes)
            _update(task, LU, task.inverse, k, end, col, cols_end, end, m, True, COLS, PANEL, BLOCK // PANEL, sizes)
        tl.debug_barrier()
    for col in tl.range(0, tl.minimum(m, n), PANEL, num_stages=1, disable_licm=True):
        _finish(task, LU, col, 16 * WARPS, sizes)
    return first_zero


@triton.jit
def whole_kernel(
    LU,
    pivots,
    infos,
    A,
    work,
    order,
    shape,
    work_stride,
    sizes: tl.constexpr,
    PANEL_ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    PIVOT: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    batch = layout.batch_index(number, shape)
    first_zero = _factor_whole(
        _task(A, work, order, shape, work_stride, batch, sizes),
        layout.Matrix(*LU, shape, *layout.batch_of_one(number, shape), True),
        _begin(pivots, batch),
        pivots.strides[1],
        sizes,
        PANEL_ROWS,
        WARPS,
        PIVOT,
    )
    tl.store(_begin(infos, batch), first_zero)


@triton.jit
def block_kernel(
    LU,
    pivots,
    infos,
    A,
    work,
    order,
    shape,
    work_stride,
    k,
    sizes: tl.constexpr,
    PANEL_ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    PIVOT: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    batch = layout.batch_index(number, shape)
    task = _task(A, work, order, shape, work_stride, batch, sizes)
    first_zero = tl.full((), 0, tl.int32)
    if k == 0:
        _store_order(task, PANEL_ROWS)
    else:
        first_zero = tl.load(_begin(infos, batch))
    first_zero = _factor_block(
        task,
        layout.Matrix(*LU, shape, *layout.batch_of_one(number, shape), True),
        _begin(pivots, batch),
        pivots.strides[1],
        first_zero,
        k,
        tl.minimum(k + sizes.BLOCK, tl.minimum(task.m, task.n)),
        True,
        sizes,
        PANEL_ROWS,
        WARPS,
        PIVOT,
    )
    tl.store(_begin(infos, batch), first_zero)


@triton.jit
def update_kernel(LU, A, work, order, shape, work_stride, k, sizes: tl.constexpr, SPAN: tl.constexpr):
    m, n = shape[0], shape[1]
    end = _padded(tl.minimum(k + sizes.BLOCK, tl.minimum(m, n)), sizes)
    spans = tl.maximum(tl.cdiv(m - end, SPAN), 1)
    programs = spans * tl.cdiv(n - end, sizes.COLS)
    number = (tl.program_id(0) // programs).to(tl.int64)
    tile = tl.program_id(0) % programs
    first = end + tile % spans * SPAN
    task = _task(A, work, order, shape, work_stride, layout.batch_index(number, shape), sizes)
    _update(
        task,
        layout.Matrix(*LU, shape, *layout.batch_of_one(number, shape), True),
        task.inverse,
        k,
        end,
        end + tile // spans * sizes.COLS,
        _padded(n, sizes),
        first,
        tl.minimum(first + SPAN, m),
        tile % spans == 0,
        sizes.COLS,
        sizes.BLOCK,
        1,
        sizes,
    )


@triton.jit
def finish_kernel(LU, A, work, order, shape, work_stride, sizes: tl.constexpr, ROWS: tl.constexpr):
    panels = tl.cdiv(tl.minimum(shape[0], shape[1]), sizes.PANEL)
    number = (tl.program_id(0) // panels).to(tl.int64)
    _finish(
        _task(A, work, order, shape, work_stride, layout.batch_index(number, shape), sizes),
        layout.Matrix(*LU, shape, *layout.batch_of_one(number, shape), True),
        tl.program_id(0) % panels * sizes.PANEL,
        ROWS,
        sizes,
    )


def _work_stride(A):
    """Reals from one row of `work` to the next."""
    return (2 if A.is_complex() else 1) * 16 * launch.ceil_div(A.shape[-1], 16)


def _panel_rows(rows, num_warps):
    return max(launch.power_of_two(rows), 32 * num_warps)


def workspace(A, *, block, panel, num_warps, **_):
    """Uninitialized `work` and `order` for A and these options of `factor`."""
    *batch, m, _ = A.shape
    components = 2 if A.is_complex() else 1
    size = m * _work_stride(A) + components * (block * block + panel * _panel_rows(m, num_warps))
    dtype = A.dtype.to_real() if A.is_complex() else A.dtype
    return A.new_empty((*batch, size), dtype=dtype), A.new_empty((*batch, m), dtype=torch.int32)


def factor(LU, pivots, infos, A, work, order, *, pivot, block, panel, cols, rows, num_warps, registers, span=None):
    """Writes the packed factors of A, pivots and infos: `factor.factor` for any m and n.

    Any strides, an expanded A too; the results overlap nothing. `work` and `order` are those of `workspace` and hold
    nothing of use afterwards. Options:

    block: columns that are factored before those right of them are updated, `panel` times a power of two.
    panel: columns that are in registers at once, 16 or 32.
    cols: columns of a tile that is updated, a power of two from 16 on.
    rows: rows of such a tile that are in registers at once, a power of two from 16 on.
    num_warps: at most, as there are launches for fewer and fewer rows.
    registers: that a thread may have, at most.
    span: rows that a program updates if there are launches for every block of columns; None: a program per matrix.
    """
    if LU.numel() == 0:
        infos.zero_()
        return
    batch_size, (m, n) = A.shape[:-2].numel(), A.shape[-2:]
    k = min(m, n)
    args = (*launch.arguments(A.shape, LU, pivots, infos, A, work, order), _work_stride(A))
    inner = max(panel, launch.power_of_two(block - panel))
    sizes = Sizes(block, panel, inner, cols, rows, n <= m or m % 16 == 0)
    options = {"num_stages": 1, "maxnreg": registers}

    def with_panels(m, warps, **replaced):
        panels = {"PANEL_ROWS": _panel_rows(m, warps), "WARPS": warps, "PIVOT": pivot}
        return {"sizes": sizes._replace(**replaced), **panels}

    if span is None:
        launch.run(whole_kernel, batch_size, args, with_panels(m, num_warps), num_warps=num_warps, **options)
        return
    without_results = (args[0], *args[3:])
    for j in range(0, k, block):
        warps = min(num_warps, max(4, launch.power_of_two(m - j) // 64))
        constants = with_panels(m - j, warps, ROWS=max(rows, 16 * warps))
        launch.run(block_kernel, batch_size, (*args, j), constants, num_warps=warps, **options)
        end = min(j + block, k)
        if end < n:
            programs = batch_size * max(launch.ceil_div(m - end, span), 1) * launch.ceil_div(n - end, cols)
            constants = {"sizes": sizes, "SPAN": span}
            launch.run(update_kernel, programs, (*without_results, j), constants, num_warps=4, **options)
    programs = batch_size * launch.ceil_div(k, panel)
    launch.run(finish_kernel, programs, without_results, {"sizes": sizes, "ROWS": 64}, num_warps=4)
