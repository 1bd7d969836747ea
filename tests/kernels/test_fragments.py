"""Tiles as tensor cores take them, under Triton's interpreter: wherever neighbours are, an entry has one place."""

import pytest
import torch
import triton
import triton.language as tl
from triton_lu_kernels import field, fragments

MEMORY = [
    *((near, torch.float32) for near in (0, 1, 2)),
    *((0, torch.complex64), (1, torch.complex64), (1, torch.float64), (2, torch.complex128)),
]
STEPS = ["copy", "transpose", "permuted", "permuted transpose", "product", "product of a result"]


@triton.jit
def kernel(
    out,
    x,
    y,
    order,
    m,
    n,
    C: tl.constexpr,
    V: tl.constexpr,
    NEAR: tl.constexpr,
    RAGGED: tl.constexpr,
    STEP: tl.constexpr,
):
    """Of matrices with 48 in a row, or in a column where NEAR is 0: the tiles of x at (0, 16) and (16, 16), or their
    products with that of y at (0, 16)."""
    row_stride = C if NEAR == 0 else 48 * C
    col_stride = 48 * C if NEAR == 0 else C
    run(
        fragments.Matrix(out, 48 * C, C, m, n, C, V, 1 if V > 1 else 2, RAGGED),
        fragments.Matrix(x, row_stride, col_stride, m, n, C, V, NEAR, RAGGED),
        fragments.Matrix(y, row_stride, col_stride, m, n, C, V, NEAR, RAGGED),
        order,
        STEP,
    )


@triton.jit
def run(out, x, y, order, STEP: tl.constexpr):
    i = tl.arange(0, 2) * 16
    j = tl.arange(0, 2) * 0 + 16
    if STEP == "copy":
        fragments.store(out, fragments.load(x, i, j, RESULT=True), i, j)
    elif STEP == "transpose":
        fragments.store(out, fragments.load(x, j, i, True, RESULT=True), j, i, True)
    elif STEP == "permuted":
        rows = tl.load(order + fragments.rows(i, x.V))
        fragments.store(out, fragments.load(x, i, j, places=rows, RESULT=True), i, j)
    elif STEP == "permuted transpose":
        rows = tl.load(order + fragments.columns(i, x.V))
        fragments.store(out, fragments.load(x, j, i, True, rows, RESULT=True), j, i, True)
    else:
        zero = field.zeros((2, 16, 16), out.pointer.dtype.element_ty, out.COMPONENTS)
        result = fragments.load(x, i, j, RESULT=True)
        a = fragments.load(x, i, j) if STEP == "product" else fragments.factor(result)
        fragments.store(out, fragments.dot(a, fragments.load(y, j - 16, j), zero), i, j)


@pytest.mark.parametrize(("near", "dtype"), MEMORY, ids=str)
@pytest.mark.parametrize(("m", "n"), [(32, 32), (28, 24)])
@pytest.mark.parametrize("step", STEPS)
def test_tiles(step, m, n, near, dtype):
    x, y = torch.randn(2, m, n, dtype=dtype)
    order = torch.cat([torch.randperm(m), torch.zeros(48 - m, dtype=torch.int64)])
    out, *memory = (torch.full((48, 48), torch.nan, dtype=dtype) for _ in range(3))
    for matrix, entries in zip(memory, (x, y), strict=True):
        (matrix.mT if near == 0 else matrix)[:m, :n] = entries
    reals = [torch.view_as_real(matrix) if dtype.is_complex else matrix for matrix in (out, *memory)]
    constants = {"C": 1 + dtype.is_complex, "V": 16 // dtype.itemsize, "NEAR": near, "RAGGED": m < 32, "STEP": step}
    kernel[(1,)](*reals, order, m, n, **constants)
    expected = x[order[:m]] if "permuted" in step else x
    expected = expected[:, 16:] @ y[:16, 16:].mT if "product" in step else expected[:, 16:]
    torch.testing.assert_close(out[:m, 16:n], expected[:, : n - 16])
    out[:m, 16:n] = torch.nan
    assert out.isnan().all()
