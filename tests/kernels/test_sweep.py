"""The kernels of vjp and jvp for more than 128 rows and columns, under Triton's interpreter."""

import pytest
import torch
from triton_lu_kernels import sweep

from tests.support.assertions import assert_agrees
from tests.support.layouts import by_column, by_matrix, sliced
from tests.support.matrices import REGULAR, problem
from triton_lu import reference

MAPS = ["vjp", "jvp"]
DTYPES = [torch.float64, torch.complex64, torch.complex128]


def run(name, LU, pivots, X, out=None, block=16, split=True):
    """The map's result; the output and the workspaces held NaN before."""
    out = torch.empty(X.shape, dtype=X.dtype) if out is None else out
    options = {"block": block, "pieces": 2, "split": split}
    order, inverses, sums = sweep.workspace(out, **options)
    options |= {"terms": 16, "rows": 32, "num_warps": 4}
    for x in (out, inverses, sums):
        x.fill_(torch.nan)
    sweep.evaluate(name, out, LU, pivots, X, order.fill_(-1), inverses, sums, **options)
    return out


@pytest.mark.parametrize("shape", [(48, 48), (33, 33), (1, 1), (50, 17), (10, 50), (3, 35)], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_shapes(name, shape):
    args = problem(1, *shape, torch.float32)
    assert_agrees(run(name, *args), name, *args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_dtypes(name, dtype):
    args = problem(1, 30, 40, dtype)
    assert_agrees(run(name, *args), name, *args)


@pytest.mark.parametrize("name", MAPS)
def test_wide_blocks(name):
    args = problem(1, 60, 130, torch.float64)
    assert_agrees(run(name, *args, block=64), name, *args)


@pytest.mark.parametrize("layout", [by_column, by_matrix, sliced])
@pytest.mark.parametrize("name", MAPS)
def test_strides(name, layout):
    LU, pivots, X = problem(2, *((20, 10) if name == "vjp" else (10, 20)), torch.complex64)
    expected = run(name, LU, pivots, X)
    assert_agrees(expected, name, LU, pivots, X)
    out = layout(expected).clone(memory_format=torch.preserve_format)
    strided_pivots = torch.stack([pivots, pivots], dim=-1)[..., 0]
    assert torch.equal(run(name, layout(LU), strided_pivots, layout(X), out=out), expected)


@pytest.mark.parametrize("name", MAPS)
def test_expanded_arguments(name):
    LU, pivots, X = problem(1, 20, 20, torch.float64)
    args = (LU.expand(2, 20, 20), pivots.expand(2, 20), X[:, :1, :1].expand(2, 20, 20))
    assert_agrees(run(name, *args), name, *args)


@pytest.mark.parametrize("name", MAPS)
def test_output_written_only_where_it_should(name):
    LU, pivots, X = problem(2, 19, 15, torch.float32)
    surroundings = torch.full((5, 39, 31), 7.0)
    out = surroundings[1:-1:2, 1::2, 1::2]
    run(name, LU, pivots, X, out=out)
    assert_agrees(out, name, LU, pivots, X)
    out.fill_(7.0)
    assert (surroundings == 7.0).all()


@pytest.mark.parametrize("shape", [(0, 20, 20), (3, 0, 20), (3, 20, 0)], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_empty(name, shape):
    X = torch.empty(shape)
    pivots = torch.empty(shape[0], min(shape[1:]), dtype=torch.int32)
    assert run(name, X, pivots, X).shape == X.shape


@pytest.mark.parametrize("name", MAPS)
def test_regular_matrices(name):
    args = problem(len(REGULAR), 20, 16, torch.float32, REGULAR)
    assert_agrees(run(name, *args), name, *args)


@pytest.mark.parametrize("name", MAPS)
def test_same_bits_with_split_sums(name):
    """Of some sums the last piece is short, others have fewer pieces than they may have."""
    args = problem(1, 70, 55, torch.float32)
    out = run(name, *args, split=True)
    assert_agrees(out, name, *args)
    assert torch.equal(run(name, *args, split=False), out)


@pytest.mark.parametrize("name", MAPS)
def test_same_bits_in_any_batch_and_nan_stays_in_its_matrix(name):
    LU, pivots, X = problem(3, 10, 35, torch.float32)
    together = run(name, LU, pivots, X)
    assert torch.equal(run(name, LU[1:2], pivots[1:2], X[1:2]), together[1:2])
    LU[1, 2, 2], X[1, 1, 1] = 0, torch.nan
    assert torch.equal(run(name, LU, pivots, X)[::2], together[::2])


@pytest.mark.parametrize("name", MAPS)
def test_far_entries(name):
    """The last entry lies 2^31 entries after the first, although every stride is below 2^31, or inside a matrix just
    below 2^31. (Memory that is never touched is not occupied.)"""
    storage = torch.empty(2**31 + 1, dtype=torch.float32)
    far = 2**31 - 1
    for shape, strides in ((3, 1, 1), (2**30, 1, 1)), ((1, 2, 1), (1, far, 1)), ((1, 1, 2), (1, 1, far)):
        LU, pivots, X = problem(*shape, torch.float32)
        out = storage.as_strided(X.shape, strides)
        assert_agrees(run(name, LU, pivots, X, out=out).clone(), name, LU, pivots, X)


@pytest.mark.parametrize(("m", "rows"), [(35, 32), (130, 16)])
def test_order_of_rows(m, rows):
    """Any valid pivots: one cycle through all rows, the last row always, and random ones."""
    k = 35
    step = torch.arange(1, k + 1)
    random = step + (torch.rand(k) * (m - step + 1)).long()
    pivots = torch.stack([(step + 1).clamp(max=m), step.new_full((k,), m), random]).int()
    X = torch.eye(m, k).expand(3, m, k)
    out = torch.empty_like(X, memory_format=torch.contiguous_format)
    options = {"block": 16, "pieces": 1, "split": False}
    order, inverses, sums = sweep.workspace(out, **options)
    options |= {"terms": 16, "rows": rows, "num_warps": 4}
    sweep.evaluate("vjp", out, X, pivots, X, order, inverses, sums, **options)
    assert torch.equal(order.long(), reference.row_order(pivots, m))


class Counted:
    """A kernel whose launches are counted."""

    def __init__(self, kernel):
        self.kernel = kernel
        self.launches = 0

    def __getitem__(self, grid):
        self.launches += 1
        return self.kernel[grid]


@pytest.mark.parametrize("split", [False, True])
@pytest.mark.parametrize("name", MAPS)
def test_two_launches_per_block(name, split, monkeypatch):
    kernels = [Counted(sweep.prepare_kernel), Counted(sweep.step_kernel)]
    monkeypatch.setattr(sweep, "prepare_kernel", kernels[0])
    monkeypatch.setattr(sweep, "step_kernel", kernels[1])
    run(name, *problem(1, 48, 48, torch.float32), split=split)
    assert [kernel.launches for kernel in kernels] == [1, 5]
