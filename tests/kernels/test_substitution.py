"""Products and substitutions with triangular matrices by columns, under Triton's interpreter, against NumPy's."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton_lu_kernels import launch, layout, substitution

from tests.support.layouts import by_column, by_row

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


@triton.jit
def kernel(
    out,
    B,
    W,
    shape,
    batch_size,
    STEP: tl.constexpr,
    UPPER: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    N: tl.constexpr,
    MATRICES: tl.constexpr,
    RAGGED: tl.constexpr,
):
    batch, exists = layout.batch_of_program(tl.program_id(0), shape, batch_size, MATRICES)
    factors = layout.unstack(layout.load_tile(layout.Matrix(*B, shape, batch, exists, RAGGED), N, N, 1.0))
    rows = layout.turn(layout.unstack(layout.load_tile(layout.Matrix(*W, shape, batch, exists, RAGGED), N, N)))
    if STEP == "product":
        rows = substitution.product(factors, rows, UPPER, TRANSPOSED)
    elif STEP == "product of a change":
        rows = substitution.product(factors, rows, UPPER, TRANSPOSED, UNIT=False)
    else:
        rows = substitution.solve(substitution.negate(factors), rows, UPPER, TRANSPOSED)
    layout.store_tile(layout.Matrix(*out, shape, batch, exists, RAGGED), layout.transpose(layout.stack(rows)))


def run(step, B, W, upper, transposed):
    batch, m, n = B.shape
    N = launch.power_of_two(max(m, n))
    out = torch.full_like(W, torch.nan)
    args = launch.arguments(B.shape, out, B, W)
    kernel[(launch.ceil_div(batch, 2),)](
        *args, batch, step, upper, transposed, N=N, MATRICES=2, RAGGED=(m, n) != (N, N)
    )
    return out.numpy()


def triangle(B, upper, *, unit=True):
    return np.triu(B) if upper else np.tril(B, -1) + unit * np.eye(B.shape[-1])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("upper", [False, True])
@pytest.mark.parametrize(("n", "order"), [(3, by_row), (4, by_column)])
def test_triangles(n, upper, transposed, order, dtype):
    B, W = (order(torch.randn(3, n, n, dtype=dtype)) for _ in range(2))
    B = order(B + 4 * torch.eye(n, dtype=dtype))
    wide = np.result_type(B.numpy().dtype, np.float64)
    T, wide_W = triangle(B.numpy().astype(wide), upper), W.numpy().astype(wide)
    T = T.swapaxes(1, 2) if transposed else T
    change = triangle(B.numpy().astype(wide), upper, unit=False)
    change = change.swapaxes(1, 2) if transposed else change
    for step, expected in {
        "product": T @ wide_W,
        "product of a change": change @ wide_W,
        "solve": np.linalg.solve(T, wide_W),
    }.items():
        found = run(step, B, W, upper, transposed)
        assert np.abs(found - expected).max() <= 100 * np.finfo(found.dtype).eps * np.abs(expected).max(initial=1)


@triton.jit
def merge_kernel(
    out, A, B, shape, batch_size, STEP: tl.constexpr, N: tl.constexpr, MATRICES: tl.constexpr, RAGGED: tl.constexpr
):
    batch, exists = layout.batch_of_program(tl.program_id(0), shape, batch_size, MATRICES)
    first = layout.unstack(layout.load_tile(layout.Matrix(*A, shape, batch, exists, RAGGED), N, N))
    second = layout.unstack(layout.load_tile(layout.Matrix(*B, shape, batch, exists, RAGGED), N, N))
    if STEP == "columns":
        columns = substitution.merge_columns(first, second)
    elif STEP == "rows":
        columns = layout.turn(substitution.merge_rows(layout.turn(first), layout.turn(second)))
    elif STEP == "zero":
        columns = substitution.merge_columns(first, substitution.zero_like(second))
    else:
        columns = substitution.merge_columns(first, substitution.identity_like(second))
    layout.store_tile(layout.Matrix(*out, shape, batch, exists, RAGGED), layout.stack(columns))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("step", ["columns", "rows", "zero", "identity"])
def test_merged(step, dtype):
    A, B = torch.randn(2, 2, 4, 4, dtype=dtype)
    upper = {"zero": np.zeros((4, 4)), "identity": np.eye(4)}.get(step, np.triu(B.numpy()))
    out = torch.empty_like(A)
    merge_kernel[(1,)](*launch.arguments(A.shape, out, A, B), 2, step, N=4, MATRICES=2, RAGGED=False)
    assert (out.numpy() == np.tril(A.numpy(), -1) + upper).all()
