"""Plans cover every problem, once, within the limits that the implementations state."""

import dataclasses
import itertools
from types import SimpleNamespace

import pytest
import torch

from triton_lu import plan, triton_backend

SIZES = (*range(1, 40), 63, 64, 65, 100, 127, 128, 129, 200, 256, 257, 500, 512, 1000, 2048, 5000)
BATCHES = (1, 2, 7, 64, 511, 512, 10_000, 1_000_000)


def test_every_problem_has_a_sweep():
    for device, batch, m, n in itertools.product(("cpu", "cuda"), BATCHES, SIZES, SIZES):
        sweep = plan.widths(batch, m, n, torch.float32, device)
        assert 2 <= sweep.block <= max(sweep.span, min(m, n), 2)


@pytest.mark.parametrize("name", ["vjp", "jvp", "curvature"])
@pytest.mark.parametrize(("dtype", "limit"), [(torch.float64, 64), (torch.complex64, 32)], ids=str)
def test_small_problems_are_small(dtype, limit, name):
    for batch, m, n in itertools.product(BATCHES, SIZES, SIZES):
        assert plan.in_numpy(name, batch, m, n, dtype, "cuda") is None
        form = plan.in_numpy(name, batch, m, n, dtype, "cpu")
        assert (form == "block") == (batch == 1 and max(m, n) <= limit)
        assert form != "columns" or (batch > 1 and max(m, n) <= 8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
@pytest.mark.parametrize("name", ["factor", "vjp", "jvp", "curvature"])
def test_kernels_serve_their_sizes(name, dtype):
    limit = plan.PRODUCTS_FROM.get(name, 1025) - 1
    if name == "factor" and dtype == torch.complex128:
        limit = 512
    if name == "curvature":
        limit = plan.gpu.CURVATURE_BY_PRODUCTS_FROM[dtype] - 1
    for m in SIZES:
        for n in SIZES:
            chosen = plan.kernel(name, m, n, dtype)
            assert (chosen is not None) == (max(m, n) <= limit)
            if chosen is not None:
                large = plan.Curvature if name == "curvature" else plan.Sweep
                limits = {16: plan.Warp, 128: plan.Tile, 5000: large}
                regime = next(regime for size, regime in limits.items() if max(m, n) <= size)
                if name == "factor":
                    regime = plan.Factor if max(m, n) <= 32 else plan.FactorBlocks
                assert isinstance(chosen, regime)
                options = dataclasses.asdict(chosen)
                assert options.pop("registers", 255) <= 255
                assert all(value & (value - 1) == 0 for value in options.values() if value is not None)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_few_matrices_have_more_warps(dtype):
    for name, size in itertools.product(("vjp", "jvp", "curvature"), (20, 50, 64, 100, 128)):
        chosen = [plan.kernel(name, size, size, dtype, batch) for batch in BATCHES]
        warps = [tile.num_warps * tile.programs for tile in chosen]
        assert warps == sorted(warps, reverse=True)
        assert all(
            number * batch <= 16 * plan.MULTIPROCESSORS for number, batch in zip(warps[:4], BATCHES, strict=False)
        )
        assert chosen[-1].programs == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.complex64, torch.complex128], ids=str)
def test_sums_are_split_where_tiles_are_few(dtype):
    for m, n in itertools.product((129, 200, 512, 700, plan.PRODUCTS_FROM["vjp"] - 1), repeat=2):
        split = [plan.kernel("vjp", m, n, dtype, batch).split for batch in BATCHES]
        assert split[0]
        assert not split[-1]
        assert split == sorted(split, reverse=True)  # up to one size of the batch


@pytest.mark.parametrize("multiprocessors", [16, 132, 148])
def test_sums_are_split_up_to_the_multiprocessors_of_the_gpu(multiprocessors):
    tiles = 4 + 4  # of 64 rows and columns
    for batch in range(1, 40):
        chosen = plan.kernel("vjp", 256, 256, torch.float32, batch, multiprocessors)
        assert chosen.split == (batch * tiles <= multiprocessors)


def test_a_launch_is_planned_for_the_gpu_of_its_tensor(monkeypatch):
    counts = {0: 16, 1: 148}
    properties = lambda device: SimpleNamespace(multi_processor_count=counts[device.index])  # noqa: E731
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties)
    triton_backend.multiprocessors.cache_clear()
    try:
        assert [triton_backend.multiprocessors(torch.device("cuda", i)) for i in counts] == [16, 148]
        assert triton_backend.multiprocessors(torch.device("cpu")) == plan.MULTIPROCESSORS
    finally:
        triton_backend.multiprocessors.cache_clear()


def test_plans_are_immutable_and_equal_for_equal_problems():
    chosen = plan.kernel("vjp", 16, 16, torch.float32)
    assert chosen == plan.kernel("vjp", 16, 16, torch.float32)
    with pytest.raises(dataclasses.FrozenInstanceError):
        chosen.num_warps = 2


def test_a_few_large_matrices_are_products():
    gpu = torch.device("cuda", 0)
    for name, limits in plan.gpu.FEW_BY_PRODUCTS_FROM.items():
        for batch, dtype in itertools.product((1, 4, 100), (torch.float64, torch.complex64)):
            limit = limits[dtype.is_complex]
            assert plan.kernel_pays(name, limit - 1, limit - 1, dtype, gpu, batch)
            assert plan.kernel_pays(name, 10, limit, dtype, gpu, batch) == (batch == 100)


def test_one_matrix_alone_is_factored_by_the_library():
    """From where on a kernel would factor it in blocks of columns; cuSOLVER has not been measured beside that."""
    gpu = torch.device("cuda", 0)
    for dtype, limit in ((torch.float32, 64), (torch.float64, 32)):
        assert plan.kernel_pays("factor", limit, limit, dtype, gpu, 1)
        assert not plan.kernel_pays("factor", limit, limit + 1, dtype, gpu, 1)
        assert plan.kernel_pays("factor", limit, limit + 1, dtype, gpu, 2)
    assert plan.kernel_pays("vjp", 256, 256, torch.float32, gpu, 1)
