"""The kernel of `curvature` by blocks, under Triton's interpreter."""

import pytest
import torch
from triton_lu_kernels import curvature

import triton_lu
from tests.support.assertions import assert_agrees, same_bits
from tests.support.layouts import by_column, by_matrix, by_row, sliced
from tests.support.matrices import random_pivots

DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def problem(batch, m, n, dtype):
    D, Y = (torch.randn(batch, m, n, dtype=dtype) for _ in range(2))
    return D, random_pivots(batch, k=min(m, n), m=m), Y


def run(D, pivots, Y, out=None, block=16, terms=16):
    """The result, in an output that held NaN before."""
    out = torch.empty(Y.shape, dtype=Y.dtype) if out is None else out
    out.fill_(torch.nan)
    order = triton_lu.permutation(pivots, Y.shape[-2])
    curvature.curvature(out, D, order, Y, block=block, terms=terms, num_warps=1)
    return out


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (3, 7), (16, 16), (33, 33), (40, 20), (20, 40)], ids=str)
def test_shapes(shape, dtype):
    args = problem(2, *shape, dtype)
    assert_agrees(run(*args), "curvature", *args)


@pytest.mark.parametrize(("block", "terms"), [(32, 16), (32, 32)])
def test_other_blocks(block, terms):
    args = problem(2, 50, 40, torch.float32)
    assert_agrees(run(*args, block=block, terms=terms), "curvature", *args)


@pytest.mark.parametrize("layout", [by_row, by_column, by_matrix, sliced])
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_strides(layout, dtype):
    D, pivots, Y = args = problem(3, 20, 18, dtype)
    expected = run(*args)
    assert torch.equal(run(layout(D), pivots, layout(Y)), expected)
    assert torch.equal(run(*args, out=layout(expected).clone(memory_format=torch.preserve_format)), expected)


def test_output_written_only_where_it_should():
    args = problem(2, 19, 21, torch.float32)
    surroundings = torch.full([5, 39, 43], 7.0)
    out = surroundings[1::2, 1::2, 1::2]
    run(*args, out=out)
    assert_agrees(out, "curvature", *args)
    out.fill_(7.0)
    assert (surroundings == 7.0).all()


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 4), (3, 4, 0)], ids=str)
def test_empty(shape):
    X = torch.empty(shape)
    assert run(X, torch.empty(shape[0], min(shape[1:]), dtype=torch.int32), X).shape == X.shape


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_matrix_gets_the_same_bits_in_any_batch_beside_any_other():
    D, pivots, Y = problem(3, 20, 20, torch.float32)
    D[1], Y[1, 0, 0] = torch.nan, torch.inf
    together = run(D, pivots, Y)
    for i in range(3):
        assert same_bits(run(*(x[i : i + 1] for x in (D, pivots, Y)))[0], together[i])
    assert together[::2].isfinite().all()
