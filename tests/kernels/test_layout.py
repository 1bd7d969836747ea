"""Matrices in memory and in registers, under Triton's interpreter, against NumPy's."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton_lu_kernels import launch, layout

from tests.support.layouts import by_column, by_matrix, by_row, sliced

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
ROWS, COLS = 4, 8
every_layout = pytest.mark.parametrize("order", [by_row, by_column, by_matrix, sliced])
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def run(kernel, shape, out, x, *others, ragged=True, matrices=2):
    """The kernel for matrices of that shape in a batch; `out` afterwards."""
    args = launch.arguments(shape, out, x)
    programs = launch.ceil_div(shape[0], matrices)
    kernel[(programs,)](*args, shape[0], *others, MATRICES=matrices, RAGGED=ragged)
    return out.numpy()


@triton.jit
def complete(
    out,
    x,
    shape,
    batch_size,
    DIAGONAL: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    MATRICES: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch, exists = layout.batch_of_program(tl.program_id(0), shape, batch_size, MATRICES)
    tile = layout.load_tile(layout.Matrix(*x, shape, batch, exists, RAGGED), ROWS, COLS, DIAGONAL)
    layout.store_tile(layout.Matrix(*out, shape, batch, exists, False), tile)


@every_dtype
@every_layout
@pytest.mark.parametrize(("m", "n"), [(3, 5), (4, 8), (1, 8)])
def test_tiles_are_completed(m, n, order, dtype):
    x = order(torch.randn(3, m, n, dtype=dtype))
    out = torch.full((3, ROWS, COLS), torch.nan, dtype=dtype)
    expected = np.zeros((3, ROWS, COLS), x.numpy().dtype)
    expected[:] = 2 * np.eye(ROWS, COLS)
    expected[:, :m, :n] = x.numpy()
    assert (run(complete, x.shape, out, x, 2.0, ROWS, COLS, ragged=(m, n) != (ROWS, COLS)) == expected).all()


@triton.jit
def move(
    out,
    x,
    shape,
    batch_size,
    row,
    col,
    PERMUTED: tl.constexpr,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    MATRICES: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """A part of x to the same part of `out`; if PERMUTED, from its rows backwards and to every second row."""
    batch, exists = layout.batch_of_program(tl.program_id(0), shape, batch_size, MATRICES)
    index = tl.broadcast_to(tl.arange(0, ROWS)[None, :], (MATRICES, ROWS))
    source = ROWS - 1 - index if PERMUTED else None
    destination = 2 * index if PERMUTED else None
    tile = layout.load_tile(layout.Matrix(*x, shape, batch, exists, RAGGED), ROWS, COLS, row=row, col=col, order=source)
    layout.store_tile(layout.Matrix(*out, shape, batch, exists, RAGGED), tile, row, col, destination)


@every_dtype
@every_layout
def test_parts(order, dtype):
    """What leads out of a matrix is neither read nor written; nor are matrices that do not exist."""
    x = order(torch.randn(3, 7, 13, dtype=dtype))
    out = order(torch.full((3, 7, 13), 7, dtype=dtype))
    expected = np.full((3, 7, 13), 7, x.numpy().dtype)
    expected[:, 4:, 8:] = x.numpy()[:, 4:, 8:]
    assert (run(move, x.shape, out, x, 4, 8, False, ROWS, COLS) == expected).all()


@every_dtype
@every_layout
@pytest.mark.parametrize("n", [8, 5])
def test_rows_from_and_to_elsewhere(n, order, dtype):
    x = order(torch.randn(3, 8, n, dtype=dtype))
    out = order(torch.full((3, 8, n), 7, dtype=dtype))
    expected = np.full((3, 8, n), 7, x.numpy().dtype)
    expected[:, 0:8:2] = x.numpy()[:, 3::-1]
    assert (run(move, x.shape, out, x, 0, 0, True, ROWS, COLS, ragged=n != COLS) == expected).all()


@pytest.mark.parametrize("view", [lambda x: x, lambda x: x.transpose(0, 1), lambda x: x[:, ::2]], ids=range(3))
def test_batches_of_several_dimensions(view):
    x = view(torch.randn(3, 4, ROWS, COLS, dtype=torch.complex64))
    out = torch.empty(x.shape, dtype=x.dtype)
    args, number = launch.arguments(x.shape, out, x), x.shape[:2].numel()
    complete[(launch.ceil_div(number, 4),)](*args, number, 0.0, ROWS, COLS, MATRICES=4, RAGGED=False)
    assert torch.equal(out, x)


@triton.jit
def rearrange(
    out,
    x,
    shape,
    batch_size,
    STEP: tl.constexpr,
    N: tl.constexpr,
    MATRICES: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch, exists = layout.batch_of_program(tl.program_id(0), shape, batch_size, MATRICES)
    tile = layout.load_tile(layout.Matrix(*x, shape, batch, exists, RAGGED), N, N)
    if STEP == "stack":
        tile = layout.stack(layout.unstack(tile))
    elif STEP == "second column":
        columns = layout.unstack(tile)
        tile = layout.stack(columns[1:2] * N)
    elif STEP == "turn":
        tile = layout.stack(layout.turn(layout.unstack(tile)))
    elif STEP == "transpose":
        tile = layout.transpose(tile)
    else:
        first, second = layout.unpair(tile)
        tile = layout.pair(second, layout.transpose(first))
    layout.store_tile(layout.Matrix(*out, shape, batch, exists, RAGGED), tile)


REARRANGED = {
    "stack": lambda x: x,
    "second column": lambda x: np.repeat(x[:, :, 1:2], x.shape[2], axis=2),
    "turn": lambda x: x.swapaxes(1, 2),
    "transpose": lambda x: x.swapaxes(1, 2),
    "pair": lambda x: np.stack([x[1], x[0].T]),
}


@every_dtype
@pytest.mark.parametrize("step", REARRANGED)
def test_tiles_in_registers(step, dtype):
    x = torch.randn(2, 8, 8, dtype=dtype)
    found = run(rearrange, x.shape, torch.empty_like(x), x, step, 8, ragged=False)
    assert (found == REARRANGED[step](x.numpy())).all()
