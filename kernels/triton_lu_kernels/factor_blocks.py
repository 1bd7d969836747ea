"""LU of matrices that one warp's registers do not hold, with partial pivoting or none: blocks of columns.

Arguments, results and pivots are those of `factor`. A block of BLOCK columns is factored in panels of PANEL columns
(`panel`); then the columns right of it are updated by products:

    U12 = L11^-1 A12        A22 = A22 - L21 U12

Rows stay where they are in A until the end: `order` [batch, m] has the row at every position. Workspace: `work` [batch,
m, columns], row-major, takes L and what is left of A, `inverse` [batch, BLOCK, BLOCK], by columns, L11^-1, and `scratch`
a panel. U12 goes to its place in LU at once, L and the diagonal blocks of U, PANEL wide, in the end.

Products of float32 on tensor cores lose bits of numbers near the smallest, and parts of numbers near the largest
overflow: U12 is scaled by a power of two that brings a tile's largest number between 1 and 4, and a fused addition takes
it back, in which nothing over- or underflows but the result.

`whole_kernel` has a program for each matrix. For large ones `block_kernel` has one for each matrix, and is followed by
`update_kernel`, with programs for every tile of the columns that follow, and in the end by `finish_kernel`. A program
for a matrix does the same whatever the batch is, and no program reads what another one of the same launch writes.
"""

import torch
import triton
import triton.language as tl

from . import blocks, field, launch, layout, panel


@triton.jit
def _load(x, rows, there, col, end, COLS: tl.constexpr, COMPONENTS: tl.constexpr):
    """Columns from `col` to `end` of the rows given, as far as they are there, of x = (pointer, stride of the rows), by
    rows; zeros elsewhere."""
    real = tl.arange(0, COLS * COMPONENTS)
    mask = there[:, None] & (col + real // COMPONENTS < end)[None, :]
    reals = tl.load(x[0] + rows[:, None] * x[1] + (col * COMPONENTS + real)[None, :], mask, other=0.0)
    if COMPONENTS == 1:
        return (reals,)
    else:
        re, im = tl.split(tl.reshape(reals, (rows.shape[0], COLS, 2)))
        return (re, im)


@triton.jit
def _store(x, tile, rows, there, col, end):
    """`_load` the other way."""
    COMPONENTS: tl.constexpr = len(tile)
    COLS: tl.constexpr = tile[0].shape[1]
    real = tl.arange(0, COLS * COMPONENTS)
    mask = there[:, None] & (col + real // COMPONENTS < end)[None, :]
    reals = tile[0]
    if COMPONENTS == 2:
        reals = tl.reshape(tl.join(tile[0], tile[1]), (rows.shape[0], COLS * 2))
    tl.store(x[0] + rows[:, None] * x[1] + (col * COMPONENTS + real)[None, :], reals, mask)


@triton.jit
def _load_inverse(
    inverse,
    row,
    col,
    end,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    BLOCK: tl.constexpr,
    PANEL: tl.constexpr,
):
    """Rows from `row` and columns from `col` on of `inverse`, both below `end`; zeros elsewhere, and above the panels'
    own inverses, where nothing is written."""
    rows = (row + tl.arange(0, ROWS))[:, None]
    cols = (col + tl.arange(0, COLS))[None, :]
    mask = (rows < end) & (cols < end) & (rows // PANEL >= cols // PANEL)
    block = ()
    for c in tl.static_range(COMPONENTS):
        block += (tl.load(inverse + c * BLOCK * BLOCK + rows + cols * BLOCK, mask, other=0.0),)
    return block


@triton.jit
def _factor_panel(
    source,
    work,
    order,
    scratch,
    inverse,
    m,
    k,
    end,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PANEL: tl.constexpr,
    WARPS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    PIVOT: tl.constexpr,
):
    """Factors columns from k to `end`, PANEL at most, at positions from k on: from `source` to `work`, L^-1 to `inverse`.

    Returns the positions chosen, counted from k, and the first step with a zero pivot, or PANEL.
    """
    CHUNK: tl.constexpr = WARPS * 32
    CHUNKS: tl.constexpr = ROWS // CHUNK
    index = tl.arange(0, CHUNK)
    place = ()
    rows = ()
    chunks = ()
    for q in tl.static_range(CHUNKS):
        row = q * CHUNK + index
        there = k + row < m
        rows += (tl.load(order + k + row, there, other=0),)
        start = tl.where(there, row * ROWS, -2 * PANEL * ROWS) + row
        place += (tl.reshape(start, (WARPS, 32)),)
    for q in tl.static_range(CHUNKS):
        tile = _load(source, rows[q], k + q * CHUNK + index < m, k, end, PANEL, COMPONENTS)
        chunks += (layout.unstack(layout.reshape(tile, (WARPS, 32, PANEL))),)
    columns = ()
    for j in tl.static_range(PANEL):
        column = ()
        for q in tl.static_range(CHUNKS):
            column += (chunks[q][j],)
        columns += (column,)

    steps = end - k
    columns, place, chosen, first_zero = panel.factor(columns, place, scratch, steps, PIVOT)
    tl.debug_barrier()

    for q in tl.static_range(CHUNKS):
        finished = (place[q] < 0) & (place[q] >= -PANEL * ROWS)
        position = tl.where(finished, place[q] + PANEL * ROWS, place[q]) // ROWS
        tl.store(order + k + position, tl.reshape(rows[q], (WARPS, 32)), finished | (place[q] >= 0))
        for j in tl.static_range(PANEL):  # column i of L^-1 is the one from the last but `steps` on
            col = j - (PANEL - steps)
            for c in tl.static_range(COMPONENTS):
                tl.store(inverse + (c * BLOCK * BLOCK + position + col * BLOCK), columns[j][q][c], finished & (col >= 0))
    for q in tl.static_range(CHUNKS):
        tile = ()
        col = tl.arange(0, PANEL)
        for c in tl.static_range(COMPONENTS):
            tile += (tl.load(scratch + (q * CHUNK + index)[:, None] + ((col * COMPONENTS + c) * ROWS)[None, :]),)
        _store(work, tile, rows[q], k + q * CHUNK + index < m, k, end)
    tl.debug_barrier()
    return chosen, first_zero


@triton.jit
def _extend(
    work, order, inverse, k, row, end, COMPONENTS: tl.constexpr, BLOCK: tl.constexpr, PANEL: tl.constexpr
):
    """Rows of L11^-1 from `row` to `end`, PANEL at most, of a block of columns that begins at k: from the rows above and
    from the panel's own inverse."""
    index = row + tl.arange(0, PANEL)
    L = _load(work, tl.load(order + k + index, index < end, other=0), index < end, k, k + row, BLOCK, COMPONENTS)
    own = _load_inverse(inverse, row, row, end, PANEL, PANEL, COMPONENTS, BLOCK, PANEL)
    for col in tl.range(0, row, PANEL, num_stages=1):
        above = _load_inverse(inverse, 0, col, row, BLOCK, PANEL, COMPONENTS, BLOCK, PANEL)
        below = field.negate(field.dot(own, field.dot(L, above)))
        offsets = (row + tl.arange(0, PANEL))[:, None] + (col + tl.arange(0, PANEL))[None, :] * BLOCK
        for c in tl.static_range(COMPONENTS):
            tl.store(inverse + c * BLOCK * BLOCK + offsets, below[c])


@triton.jit
def _scaling(tile):
    """A power of two that brings the largest number of a tile between 1 and 4, and its inverse."""
    largest = tl.abs(tile[0])
    if len(tile) == 2:
        largest = tl.maximum(largest, tl.abs(tile[1]))
    scale = field.inverse_power_of_two(tl.max(tl.max(largest, 1), 0))
    return scale, field.inverse_power_of_two(scale)


@triton.jit
def _update(
    source,
    work,
    LU,
    order,
    inverse,
    m,
    k,
    block_end,
    col,
    cols_end,
    first,
    rows_end,
    writes,
    BLOCK: tl.constexpr,
    PANEL: tl.constexpr,
    WIDTH: tl.constexpr,
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
):
    """COLS columns from `col` on, below `cols_end`, after the block of WIDTH columns from k to `block_end`: the rows of U
    go to LU if `writes`, what is left of the rows at positions from `first` to `rows_end` goes to `work`."""
    COMPONENTS: tl.constexpr = LU[4]
    index = k + tl.arange(0, WIDTH)
    there = index < tl.minimum(block_end, m)
    A12 = _load(source, tl.load(order + index, there, other=0), there, col, cols_end, COLS, COMPONENTS)
    scale, back = _scaling(A12)
    L11_inverse = _load_inverse(inverse, 0, 0, block_end - k, WIDTH, WIDTH, COMPONENTS, BLOCK, PANEL)
    U12 = field.dot_parts(field.parts(L11_inverse), field.parts(field.scale(A12, scale)))
    U12_parts = field.parts(U12)
    if writes:
        blocks.store(LU[:2] + ((tl.minimum(block_end, m), cols_end),) + LU[3:], field.scale(U12, back), k, col)
    for position in tl.range(first, rows_end, ROWS, num_stages=1):
        below = position + tl.arange(0, ROWS)
        exist = below < rows_end
        rows = tl.load(order + below, exist, other=0)
        A22 = _load(source, rows, exist, col, cols_end, COLS, COMPONENTS)
        product = field.dot_parts(field.parts(_load(work, rows, exist, k, block_end, WIDTH, COMPONENTS)), U12_parts)
        left = ()
        for c in tl.static_range(COMPONENTS):
            left += (tl.fma(product[c], -back, A22[c]),)
        _store(work, left, rows, exist, col, cols_end)


@triton.jit
def _factor_block(
    source,
    work,
    LU,
    pivots,
    info,
    order,
    scratch,
    inverse,
    shape,
    k,
    end,
    PANEL_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PANEL: tl.constexpr,
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    PIVOT: tl.constexpr,
):
    """Factors the block of columns from k to `end`, panel by panel, and finds its L11^-1. Returns `info`, the first step
    of the matrix, from 1, whose pivot was zero, or 0."""
    m = shape[0]
    steps = tl.arange(0, PANEL)
    for p in tl.range(k, end, PANEL, num_stages=1):
        panel_end = tl.minimum(p + PANEL, end)
        own_inverse = inverse + (p - k) * (BLOCK + 1)
        left = _either(p == 0, source, work)
        chosen, first_zero = _factor_panel(
            left, work, order, scratch, own_inverse, m, p, panel_end, PANEL_ROWS, BLOCK, PANEL, WARPS, LU[4], PIVOT
        )
        tl.store(pivots[0] + (p + steps).to(tl.int64) * pivots[1], chosen + p + 1, p + steps < panel_end)
        info = tl.where((info == 0) & (first_zero < PANEL), p + first_zero + 1, info)
        if BLOCK > PANEL:
            if panel_end < end:
                _update(
                    left,
                    work,
                    LU,
                    order,
                    own_inverse,
                    m,
                    p,
                    panel_end,
                    panel_end,
                    end,
                    panel_end,
                    m,
                    True,
                    BLOCK,
                    PANEL,
                    PANEL,
                    COLS,
                    ROWS,
                )
            if (end < shape[1]) & (p > k):
                _extend(work, order, inverse, k, p - k, panel_end - k, LU[4], BLOCK, PANEL)
            tl.debug_barrier()
    return info


@triton.jit
def _either(condition, first, second):
    """One of two matrices, each (pointer, stride)."""
    return tl.where(condition, first[0], second[0]), tl.where(condition, first[1], second[1])


@triton.jit
def _finish(work, LU, order, m, col, end, row, PANEL: tl.constexpr, ROWS: tl.constexpr):
    """ROWS rows of a panel of L, and of U's diagonal block, to their place."""
    index = row + tl.arange(0, ROWS)
    there = index < m
    tile = _load(work, tl.load(order + index, there, other=0), there, col, end, PANEL, LU[4])
    blocks.store(LU[:2] + ((m, end),) + LU[3:], tile, row, col)


@triton.jit
def _start(strides, number, shape):
    """Where a matrix begins, of its number of 64 bits."""
    batch = layout.batch_index(number, shape)
    offset = batch[0] * strides[0][0]
    for dim in tl.static_range(1, len(batch)):
        offset += batch[dim] * strides[0][dim]
    return offset


@triton.jit
def _places(A_ptr, work_ptr, order_ptr, A_strides, shape, stride, size, number, COMPONENTS: tl.constexpr):
    """A and `work`, each (pointer, stride of the rows), and `order` of the matrix of that number."""
    A = (A_ptr + _start(A_strides, number, shape) * COMPONENTS, A_strides[1] * COMPONENTS)
    return A, (work_ptr + number * size, stride), order_ptr + number * shape[0]


@triton.jit
def whole_kernel(
    LU_ptr,
    A_ptr,
    work_ptr,
    order_ptr,
    LU_strides,
    A_strides,
    shape,
    stride,
    size,
    pivots_ptr,
    infos_ptr,
    pivots_strides,
    infos_strides,
    PANEL_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PANEL: tl.constexpr,
    INNER: tl.constexpr,
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    PIVOT: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    source, work, order = _places(A_ptr, work_ptr, order_ptr, A_strides, shape, stride, size, number, COMPONENTS)
    batch = layout.batch_index(number + tl.arange(0, 1), shape)
    m = shape[0]
    n = shape[1]
    scratch = work[0] + m * stride
    inverse = scratch + PANEL_ROWS * PANEL * COMPONENTS
    pivots = (pivots_ptr + _start(pivots_strides, number, shape), pivots_strides[1])
    index = tl.arange(0, PANEL_ROWS)
    tl.store(order + index, index, index < m)
    tl.debug_barrier()
    info = tl.full((), 0, tl.int32)
    for k in tl.range(0, tl.minimum(m, n), BLOCK, num_stages=1):
        end = tl.minimum(k + BLOCK, tl.minimum(m, n))
        info = _factor_block(
            source, work, (LU_ptr, LU_strides, shape, batch, COMPONENTS, LU_BY_COLUMN, True), pivots, info, order, scratch, inverse, shape, k, end, PANEL_ROWS, BLOCK, PANEL, INNER, ROWS, WARPS, PIVOT
        )
        for col in tl.range(end, n, COLS, num_stages=1):
            _update(
                _either(k == 0, source, work), work, (LU_ptr, LU_strides, shape, batch, COMPONENTS, LU_BY_COLUMN, True), order, inverse, m, k, end, col, n, end, m, True, BLOCK, PANEL, BLOCK, COLS, ROWS
            )
        tl.debug_barrier()
    tl.store(infos_ptr + _start(infos_strides, number, shape), info)
    for col in tl.range(0, tl.minimum(m, n), PANEL, num_stages=1):
        end = tl.minimum(col + PANEL, tl.minimum(m, n))
        for row in tl.range(col, m, FINISH_ROWS, num_stages=1):
            _finish(work, (LU_ptr, LU_strides, shape, batch, COMPONENTS, LU_BY_COLUMN, True), order, m, col, end, row, PANEL, FINISH_ROWS)


FINISH_ROWS: tl.constexpr = tl.constexpr(64)


@triton.jit
def block_kernel(
    LU_ptr,
    A_ptr,
    work_ptr,
    order_ptr,
    LU_strides,
    A_strides,
    shape,
    stride,
    size,
    pivots_ptr,
    infos_ptr,
    pivots_strides,
    infos_strides,
    k,
    PANEL_ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    PANEL: tl.constexpr,
    INNER: tl.constexpr,
    ROWS: tl.constexpr,
    WARPS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
    PIVOT: tl.constexpr,
):
    number = tl.program_id(0).to(tl.int64)
    source, work, order = _places(A_ptr, work_ptr, order_ptr, A_strides, shape, stride, size, number, COMPONENTS)
    batch = layout.batch_index(number + tl.arange(0, 1), shape)
    m = shape[0]
    inverse = work[0] + m * stride
    scratch = inverse + BLOCK * BLOCK * COMPONENTS
    pivots = (pivots_ptr + _start(pivots_strides, number, shape), pivots_strides[1])
    info_ptr = infos_ptr + _start(infos_strides, number, shape)
    info = tl.full((), 0, tl.int32)
    if k == 0:
        index = tl.arange(0, PANEL_ROWS)
        tl.store(order + index, index, index < m)
        tl.debug_barrier()
    else:
        info = tl.load(info_ptr)
    end = tl.minimum(k + BLOCK, tl.minimum(m, shape[1]))
    info = _factor_block(
        source, work, (LU_ptr, LU_strides, shape, batch, COMPONENTS, LU_BY_COLUMN, True), pivots, info, order, scratch, inverse, shape, k, end, PANEL_ROWS, BLOCK, PANEL, INNER, ROWS, WARPS, PIVOT
    )
    tl.store(info_ptr, info)


@triton.jit
def update_kernel(
    LU_ptr,
    A_ptr,
    work_ptr,
    order_ptr,
    LU_strides,
    A_strides,
    shape,
    stride,
    size,
    k,
    SPAN: tl.constexpr,
    BLOCK: tl.constexpr,
    PANEL: tl.constexpr,
    COLS: tl.constexpr,
    ROWS: tl.constexpr,
    COMPONENTS: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
):
    m = shape[0]
    n = shape[1]
    end = tl.minimum(k + BLOCK, tl.minimum(m, n))
    below = tl.maximum(tl.cdiv(m - end, SPAN), 1)
    tasks = below * tl.cdiv(n - end, COLS)
    number = (tl.program_id(0) // tasks).to(tl.int64)
    task = tl.program_id(0) % tasks
    source, work, order = _places(A_ptr, work_ptr, order_ptr, A_strides, shape, stride, size, number, COMPONENTS)
    batch = layout.batch_index(number + tl.arange(0, 1), shape)
    inverse = work[0] + m * stride
    first = end + task % below * SPAN
    _update(
        _either(k == 0, source, work),
        work,
        (LU_ptr, LU_strides, shape, batch, COMPONENTS, LU_BY_COLUMN, True),
        order,
        inverse,
        m,
        k,
        end,
        end + task // below * COLS,
        n,
        first,
        tl.minimum(first + SPAN, m),
        task % below == 0,
        BLOCK,
        PANEL,
        BLOCK,
        COLS,
        ROWS,
    )


@triton.jit
def finish_kernel(
    LU_ptr,
    A_ptr,
    work_ptr,
    order_ptr,
    LU_strides,
    A_strides,
    shape,
    stride,
    size,
    PANEL: tl.constexpr,
    COMPONENTS: tl.constexpr,
    LU_BY_COLUMN: tl.constexpr,
):
    k = tl.minimum(shape[0], shape[1])
    panels = tl.cdiv(k, PANEL)
    number = (tl.program_id(0) // panels).to(tl.int64)
    _, work, order = _places(A_ptr, work_ptr, order_ptr, A_strides, shape, stride, size, number, COMPONENTS)
    batch = layout.batch_index(number + tl.arange(0, 1), shape)
    col = tl.program_id(0) % panels * PANEL
    for row in tl.range(col, shape[0], FINISH_ROWS, num_stages=1):
        _finish(work, (LU_ptr, LU_strides, shape, batch, COMPONENTS, LU_BY_COLUMN, True), order, shape[0], col, tl.minimum(col + PANEL, k), row, PANEL, FINISH_ROWS)


def workspace(A, *, block, panel, num_warps, **_):
    """Uninitialized `work` and `order` for A and these options of `factor`."""
    *batch, m, n = A.shape
    components = 2 if A.is_complex() else 1
    size = _size(m, n, components, block, panel, num_warps)
    real = A.real.dtype if A.is_complex() else A.dtype
    work = torch.empty(A.shape[:-2].numel(), size, dtype=real, device=A.device)
    return work, torch.empty(*batch, m, dtype=torch.int32, device=A.device)


def _stride(n, components):
    """Reals from one row of `work` to the next."""
    return components * 16 * launch.ceil_div(n, 16)


def _panel_rows(m, num_warps):
    return max(launch.power_of_two(m), 32 * num_warps)


def _size(m, n, components, block, panel, num_warps):
    """Reals of the workspace of a matrix: what is left of it, a panel and an inverse."""
    return m * _stride(n, components) + components * (_panel_rows(m, num_warps) * panel + block * block)


def factor(LU, pivots, infos, A, work, order, *, pivot, block, panel, cols, rows, num_warps, registers=255, span=None):
    """Writes the packed factors of A, pivots and infos: `factor.factor` for any m and n.

    The rows of A are contiguous. `work` and `order` are those of `workspace` and hold nothing of use afterwards. Options:

    block: columns that are factored before the others are updated, a power of two times `panel`.
    panel: columns in registers, 16.
    cols: columns of a tile that is updated, a power of two from 16 on.
    rows: rows of such a tile that are in registers at once.
    num_warps
    span: rows that a program updates, if there are launches for every block of columns; None: a program per matrix.
    """
    if LU.numel() == 0:
        infos.zero_()
        return
    batch_size, (m, n) = A.shape[:-2].numel(), A.shape[-2:]
    components = 2 if A.is_complex() else 1
    LU_reals, A_reals = (torch.view_as_real(x) if x.is_complex() else x for x in (LU, A))
    sizes, (LU_strides, A_strides, *others) = launch.batch_dims(A.shape[:-2], LU, A, pivots, infos)
    size = _size(m, n, components, block, panel, num_warps)
    common = (LU_reals, A_reals, work, order, LU_strides, A_strides, (m, n, *sizes), _stride(n, components), size)
    args = (*common, pivots, infos, *others)
    constants = {"BLOCK": block, "PANEL": panel, "INNER": max(panel, launch.power_of_two(block - panel))}
    about = {"COMPONENTS": components, "LU_BY_COLUMN": launch.by_column(LU)}
    options = {"num_stages": 1, "maxnreg": registers}
    if span is None:
        first = {"PANEL_ROWS": _panel_rows(m, num_warps)}
        last = {"COLS": cols, "ROWS": rows, "WARPS": num_warps, **about, "PIVOT": pivot}
        launch.run(whole_kernel, batch_size, args, first | constants | last, num_warps=num_warps, **options)
        return
    k = min(m, n)
    for j in range(0, k, block):
        panel_rows = _panel_rows(m - j, 4)
        warps = min(num_warps, max(panel_rows // 64, 1))
        first = {"PANEL_ROWS": panel_rows}
        last = {"ROWS": max(rows, 16 * warps), "WARPS": warps, **about, "PIVOT": pivot}
        launch.run(block_kernel, batch_size, (*args, j), first | constants | last, num_warps=warps, **options)
        end = min(j + block, k)
        if end < n:
            tasks = max(launch.ceil_div(m - end, span), 1) * launch.ceil_div(n - end, cols)
            constants_ = {"SPAN": span, "BLOCK": block, "PANEL": panel, "COLS": cols, "ROWS": rows, **about}
            launch.run(update_kernel, batch_size * tasks, (*common, j), constants_, num_warps=4, **options)
    launch.run(finish_kernel, batch_size * launch.ceil_div(k, panel), common, {"PANEL": panel, **about}, num_warps=4)
