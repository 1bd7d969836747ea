"""Blocks of a matrix and what is done with one, under Triton's interpreter, against NumPy's."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from numpy.linalg import inv
from triton_lu_kernels import blocks, field, launch, layout

from tests.support.layouts import by_column, by_row

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
every_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


@triton.jit
def move(
    out,
    x,
    shape,
    row,
    col,
    ROWS: tl.constexpr,
    COLS: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BACKWARDS: tl.constexpr,
    RAGGED: tl.constexpr,
):
    """The block at (row, col) of x, or of its transpose, to that of `out`; if BACKWARDS, both with their rows so."""
    batch, exists = layout.batch_of_one(tl.program_id(0), shape)
    rows = shape[0] - 1 - (col + tl.arange(0, COLS) if TRANSPOSED else row + tl.arange(0, ROWS))[None, :]
    rows = rows if BACKWARDS else None
    block = blocks.load(layout.Matrix(*x, shape, batch, exists, RAGGED), row, col, ROWS, COLS, TRANSPOSED, order=rows)
    blocks.store(layout.Matrix(*out, shape, batch, exists, RAGGED), block, row, col, TRANSPOSED, rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("order", [by_row, by_column])
@pytest.mark.parametrize("backwards", [False, True])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize(("m", "n", "i", "j"), [(64, 64, 16, 0), (40, 48, 0, 32), (23, 35, 16, 32)])
def test_load_and_store(m, n, i, j, transposed, backwards, order, dtype):
    """The block of 16 x 32 at (i, j), or of 16 x 32 at (j, i) of the transpose; nothing beside it is written."""
    x = order(torch.randn(2, m, n, dtype=dtype))
    out = order(torch.full((2, m, n), 7, dtype=dtype))
    row, col = (j, i) if transposed else (i, j)
    move[(2,)](*launch.arguments(x.shape, out, x), row, col, 16, 32, transposed, backwards, RAGGED=m < 64)
    rows, cols = (slice(i, i + 32), slice(j, j + 16)) if transposed else (slice(i, i + 16), slice(j, j + 32))
    expected = torch.full((2, m, n), 7, dtype=dtype).numpy()
    step = -1 if backwards else 1
    expected[:, ::step][:, rows, cols] = x.numpy()[:, ::step][:, rows, cols]
    assert (out.numpy() == expected).all()


@triton.jit
def complete(out, x, shape, RAGGED: tl.constexpr):
    batch, exists = layout.batch_of_one(tl.program_id(0), shape)
    block = blocks.load(layout.Matrix(*x, shape, batch, exists, RAGGED), 16, 16, 32, 32, DIAGONAL=2.0)
    blocks.store(layout.Matrix(*out, shape, batch, exists, False), block, 0, 0)


@every_dtype
@pytest.mark.parametrize(("m", "n"), [(20, 40), (48, 17), (10, 10)])
def test_blocks_are_completed(m, n, dtype):
    x = torch.randn(2, m, n, dtype=dtype)
    out = torch.full((2, 32, 32), torch.nan, dtype=dtype)
    complete[(2,)](*launch.arguments(x.shape, out, x), RAGGED=True)
    expected = np.broadcast_to(2 * np.eye(32, dtype=x.numpy().dtype), (2, 32, 32)).copy()
    inside = x.numpy()[:, 16:, 16:]
    expected[:, : inside.shape[1], : inside.shape[2]] = inside
    assert (out.numpy() == expected).all()


@triton.jit
def kernel(out, B, G, shape, STEP: tl.constexpr):
    """One function, of one matrix of 16 x 16: of B, and of G or the second B."""
    batch, exists = layout.batch_of_one(tl.program_id(0), shape)
    B = blocks.load(layout.Matrix(*B, shape, batch, exists, False), 0, 0)
    G = blocks.load(layout.Matrix(*G, shape, batch, exists, False), 0, 0)
    L_inverse, U_inverse = blocks.inverse(B)
    if STEP == "L_inverse":
        result = L_inverse
    elif STEP == "U_inverse":
        result = U_inverse
    elif STEP == "inverses of L":
        first, second, _, _ = blocks.inverses(B, G)
        result = field.dot(first, second)
    elif STEP == "inverses of U":
        _, _, first, second = blocks.inverses(B, G)
        result = field.dot(first, second)
    elif STEP == "merge":
        result = blocks.merge(B, G)
    elif STEP == "unit_lower":
        result = blocks.unit_lower(B)
    elif STEP == "upper":
        result = blocks.upper(B)
    elif STEP == "strictly_lower":
        result = blocks.strictly_lower(B)
    elif STEP == "adjoint":
        result = blocks.adjoint(B)
    elif STEP == "phi":
        result = blocks.phi(B, G)
    else:
        result = blocks.recompose(B, G)
    blocks.store(layout.Matrix(*out, shape, batch, exists, False), result, 0, 0)


def split(B):
    return np.tril(B, -1) + np.eye(16), np.triu(B)


def phi(B, G):
    L, U = split(B)
    return np.tril(L.conj().T @ G, -1) + np.triu(G @ U.conj().T)


def recompose(B, M):
    L, U = split(B)
    return L @ np.tril(M, -1) + np.triu(M) @ U


STEPS = {
    "L_inverse": lambda B, G: inv(split(B)[0]),
    "U_inverse": lambda B, G: inv(split(B)[1]),
    "inverses of L": lambda B, G: inv(split(B)[0]) @ inv(split(G)[0]),
    "inverses of U": lambda B, G: inv(split(B)[1]) @ inv(split(G)[1]),
    "merge": lambda B, G: np.tril(B, -1) + np.triu(G),
    "unit_lower": lambda B, G: split(B)[0],
    "upper": lambda B, G: split(B)[1],
    "strictly_lower": lambda B, G: np.tril(B, -1),
    "adjoint": lambda B, G: B.conj().T,
    "phi": phi,
    "recompose": recompose,
}


@every_dtype
@pytest.mark.parametrize("step", STEPS)
def test_functions(step, dtype):
    B, G = (torch.randn(1, 16, 16, dtype=dtype) / 8 + torch.eye(16, dtype=dtype) for _ in range(2))
    out = torch.full_like(B, torch.nan)
    kernel[(1,)](*launch.arguments(B.shape, out, B, G), step)
    wide = np.result_type(B.numpy().dtype, np.float64)
    expected = STEPS[step](*(x[0].numpy().astype(wide) for x in (B, G)))
    assert np.abs(out[0].numpy() - expected).max() <= 100 * torch.finfo(dtype).eps * np.abs(expected).max()
