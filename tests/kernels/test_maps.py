"""The kernels of vjp and jvp, and those of small matrices, under Triton's interpreter."""

import pytest
import torch
from triton_lu_kernels import tile, warp

import triton_lu
from tests.support.assertions import assert_agrees, same_bits
from tests.support.layouts import by_column, by_matrix, by_row, sliced
from tests.support.matrices import IRREGULAR, REGULAR, problem

MAPS = ["vjp", "jvp"]
ALL = [*MAPS, "curvature"]
DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]
SMALL_SHAPES = [(1, 1), (2, 2), (3, 3), (4, 4), (8, 8), (1, 5), (5, 1), (5, 3), (3, 7), (8, 6)]
LARGE_SHAPES = [(16, 16), (32, 32), (7, 32), (32, 9), (17, 17), (13, 11)]
TILES = [
    ((33, 33), torch.complex128),
    ((48, 48), torch.float32),
    ((52, 20), torch.float32),
    ((18, 50), torch.complex64),
    ((3, 40), torch.float64),
]


def run(name, LU, pivots, X, out=None, matrices=2, num_warps=1):
    """The map's result, in an output that held NaN before."""
    if out is None:
        out = torch.empty(X.shape, dtype=X.dtype)
    out.fill_(torch.nan)
    if max(X.shape[1:]) > 16:
        programs = 2 if name == "curvature" else 1
        order = tile.workspace(out, programs)
        tile.evaluate(name, out, LU, pivots, X, order, num_warps=num_warps, programs=programs)
    else:
        warp.evaluate(name, out, LU, pivots, X, matrices=matrices, num_warps=1)
    return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("shape", SMALL_SHAPES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_small_shapes(name, shape, dtype):
    args = problem(5, *shape, dtype)
    assert_agrees(run(name, *args), name, *args)


@pytest.mark.parametrize("shape", LARGE_SHAPES, ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_large_shapes(name, shape):
    args = problem(1, *shape, torch.float32)
    assert_agrees(run(name, *args, matrices=1), name, *args)


@pytest.mark.parametrize("dtype", DTYPES[1:], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_largest_shape_in_the_other_dtypes(name, dtype):
    args = problem(1, 32, 32, dtype)
    assert_agrees(run(name, *args, matrices=1), name, *args)


@pytest.mark.parametrize(("shape", "dtype"), TILES, ids=str)
@pytest.mark.parametrize("name", ALL)
def test_tiles(name, shape, dtype):
    args = problem(1, *shape, dtype)
    assert_agrees(run(name, *args), name, *args)


@pytest.mark.parametrize("layout", [by_row, by_column, by_matrix, sliced])
@pytest.mark.parametrize(("shape", "dtype"), [((4, 4), torch.complex64), ((6, 5), torch.float32)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_strides(name, shape, layout, dtype):
    LU, pivots, X = problem(3, *shape, dtype)
    expected = run(name, LU, pivots, X)
    assert_agrees(expected, name, LU, pivots, X)
    strided_pivots = torch.stack([pivots, pivots], dim=-1)[..., 0]
    assert torch.equal(run(name, layout(LU), pivots, X), expected)
    assert torch.equal(run(name, LU, strided_pivots, layout(X)), expected)
    assert torch.equal(
        run(name, LU, pivots, X, out=layout(expected).clone(memory_format=torch.preserve_format)), expected
    )


@pytest.mark.parametrize("shape", [(3, 5, 3), (1, 35, 18)], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_output_written_only_where_it_should(name, shape):
    LU, pivots, X = problem(*shape, torch.float32)
    surroundings = torch.full([2 * size + 1 for size in shape], 7.0)
    out = surroundings[1::2, 1::2, 1::2]
    run(name, LU, pivots, X, out=out)
    assert_agrees(out, name, LU, pivots, X)
    out.fill_(7.0)
    assert (surroundings == 7.0).all()


@pytest.mark.parametrize("shape", [(3, 5, 3), (1, 35, 18)], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_no_pivots_lead_out_of_a_matrix(name, shape):
    LU, pivots, X = problem(*shape, torch.float32)
    surroundings = torch.full([3 * size for size in shape], 7.0)
    inside = tuple(slice(size, 2 * size) for size in shape)
    run(name, LU, torch.randint_like(pivots, -9, 99), X, out=surroundings[inside])
    surroundings[inside] = 7.0
    assert (surroundings == 7.0).all()


@pytest.mark.parametrize("expand", [(-1, 1, 1), (-1, 1, 4), (-1, 4, 1), (1, 4, 4)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_expanded_argument(name, expand):
    LU, pivots, X = problem(3, 4, 4, torch.float64)
    expanded = X[tuple(slice(size if size > 0 else None) for size in expand)].expand(3, 4, 4)
    assert torch.equal(run(name, LU, pivots, expanded), run(name, LU, pivots, expanded.clone()))
    assert_agrees(run(name, LU, pivots, expanded), name, LU, pivots, expanded)


@pytest.mark.parametrize("name", ALL)
def test_expanded_factorization(name):
    LU, pivots, _ = problem(1, 4, 4, torch.float64)
    X = problem(3, 4, 4, torch.float64)[2]
    LU, pivots = LU.expand(3, 4, 4), pivots.expand(3, 4)
    assert_agrees(run(name, LU, pivots, X), name, LU, pivots, X)


@pytest.mark.parametrize("shape", [(0, 4, 4), (3, 0, 4), (3, 4, 0), (0, 0, 0), (0, 40, 40), (2, 40, 0)], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_empty(name, shape):
    X = torch.empty(shape)
    pivots = torch.empty(shape[0], min(shape[1:]), dtype=torch.int32)
    assert run(name, X, pivots, X).shape == X.shape


@pytest.mark.parametrize("batch", [1, 3, 4, 7])
@pytest.mark.parametrize("name", ALL)
def test_batch_not_a_multiple(name, batch):
    args = problem(batch, 3, 3, torch.float32)
    assert_agrees(run(name, *args, matrices=4), name, *args)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(4, 4), (7, 5)], ids=str)
@pytest.mark.parametrize("name", ALL)
def test_regular_matrices(name, shape, dtype):
    args = problem(len(REGULAR), *shape, dtype, REGULAR)
    assert_agrees(run(name, *args, matrices=4), name, *args)


@pytest.mark.parametrize("shape", [(16, 16), (32, 20)], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_regular_matrices_of_larger_size(name, shape):
    args = problem(len(REGULAR), *shape, torch.float32, REGULAR)
    assert_agrees(run(name, *args, matrices=4), name, *args)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
@pytest.mark.parametrize("size", [4, 7])
@pytest.mark.parametrize("name", MAPS)
def test_irregular_matrices_leave_their_neighbours_alone(name, size, dtype):
    regular = problem(len(IRREGULAR), size, size, dtype)
    alone = run(name, *regular, matrices=4)
    assert_agrees(alone, name, *regular)
    irregular = problem(len(IRREGULAR), size, size, dtype, IRREGULAR)
    mixed = [torch.stack([a, b], dim=1).flatten(0, 1) for a, b in zip(irregular, regular, strict=True)]
    assert same_bits(run(name, *mixed, matrices=4)[1::2], alone)


@pytest.mark.parametrize("size", [4, 32])
@pytest.mark.parametrize("name", MAPS)
def test_nan_in_one_argument(name, size):
    LU, pivots, X = problem(4, size, size, torch.float32)
    clean = run(name, LU, pivots, X, matrices=4)
    X[1] = torch.nan
    poisoned = run(name, LU, pivots, X, matrices=4)
    assert poisoned[1].isnan().any()
    assert torch.equal(poisoned[[0, 2, 3]], clean[[0, 2, 3]])


@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 3), torch.complex128), ((9, 2), torch.float32), ((17, 2), torch.float32)], ids=str
)
@pytest.mark.parametrize("name", MAPS)
def test_same_bits_in_any_batch(name, shape, dtype):
    LU, pivots, X = problem(5, *shape, dtype)
    together = run(name, LU, pivots, X, matrices=4)
    assert torch.equal(run(name, LU, pivots, X, matrices=4), together)
    assert torch.equal(run(name, LU.flip(0), pivots.flip(0), X.flip(0), matrices=4).flip(0), together)
    assert torch.equal(run(name, LU[3:4], pivots[3:4], X[3:4], matrices=4), together[3:4])


@pytest.mark.parametrize("name", MAPS)
def test_far_entries(name):
    """The last entry lies 2^31 entries after the first, although every stride is below 2^31, or inside a matrix just
    below 2^31. (Memory that is never touched is not occupied.)"""
    storage = torch.empty(2**31 + 1, dtype=torch.float32)
    for shape, strides in (
        ((3, 1, 1), (2**30, 1, 1)),
        ((1, 2, 1), (1, 2**31 - 1, 1)),
        ((1, 1, 2), (1, 1, 2**31 - 1)),
        ((1, 33, 2), (1, 2**26 - 1, 2**5 - 1)),
        ((1, 2, 33), (1, 2**5 - 1, 2**26 - 1)),
    ):
        LU, pivots, X = problem(*shape, torch.float32)
        out = storage.as_strided(X.shape, strides)
        assert_agrees(run(name, LU, pivots, X, out=out).clone(), name, LU, pivots, X)


@pytest.mark.parametrize("name", MAPS)
def test_entries_too_far_for_the_kernels(name):
    """The operators copy a matrix whose last entry lies 2^31 reals after the first."""
    real, complex_ = torch.empty(2**31 + 1), torch.empty(2**30 + 1, dtype=torch.complex64)
    for storage, shape in (
        (real, (1, 3, 1)),
        (real, (1, 1, 3)),
        (complex_, (2, 1, 1)),
        (complex_, (1, 2, 1)),
        (complex_, (1, 1, 2)),
    ):
        LU, pivots, X = problem(*shape, storage.dtype)
        far = storage.as_strided(shape, [1 if size == 1 else 2**30 for size in shape]).copy_(X)
        with triton_lu.backend("triton"):
            assert_agrees(getattr(torch.ops.triton_lu, name)(LU, pivots, far), name, LU, pivots, X)
