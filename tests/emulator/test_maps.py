"""The kernels of maps as compiled, with the plan's constants: kinds of matrices, traffic and registers.

Every regime and dtype in every layout: `test_operators`. Runs in a process of its own, without Triton's interpreter and
with `ptxrun` importable.
"""

from dataclasses import asdict

import ptxrun
import pytest
import torch
import triton
from triton_lu_kernels import tile, warp

from benchmarks.kernels import static
from tests.support.assertions import assert_agrees
from tests.support.emulated import TARGETS
from tests.support.layouts import by_column
from tests.support.matrices import IRREGULAR, REGULAR, problem
from triton_lu.bench.problems import Size
from triton_lu.plan import kernel as kernel_plan

MAPS = ["vjp", "jvp"]
MANY = 10**6
TRITON = tuple(map(int, triton.__version__.split(".")[:2]))
STACK = {
    ("vjp", torch.float32): (32, 220),
    ("jvp", torch.float32): (140, 280),
    ("vjp", torch.float64): (120, 440),
    ("jvp", torch.float64): (400, 760),
    ("curvature", torch.float32): (0, 0),
    ("curvature", torch.float64): (100, 100),
    ("vjp", torch.complex64): (480, 560),
    ("jvp", torch.complex64): (1040, 1040),
    ("curvature", torch.complex64): (180, 180),
    ("vjp", torch.complex128): (800, 1400),
    ("jvp", torch.complex128): (1600, 2000),
    ("curvature", torch.complex128): (720, 720),
}
"""Bytes of a thread for tiles of 64x64, with the 128 registers that let sixteen warps share a multiprocessor: what
compilers need from Triton 3.8 on, and before, and a little more."""
COMPILED = [
    *((torch.float32, target) for target in [*TARGETS, "sm_100"]),
    *((dtype, "sm_90") for dtype in (torch.float64, torch.complex64, torch.complex128)),
]
FULL = [(4, torch.float32), (8, torch.float64), (16, torch.float32)]
WARP = [(name, *problem) for name in [*MAPS, "curvature"] for problem in FULL]


def run(name, LU, pivots, X, out=None, **options):
    """The result, planned for many matrices, in an output that held NaN before, and the report of the one launch."""
    out = torch.empty(X.shape, dtype=X.dtype) if out is None else out
    out.fill_(torch.nan)
    with ptxrun.device(**options) as reports:
        options = asdict(kernel_plan(name, *X.shape[1:], X.dtype, MANY))
        if max(X.shape[1:]) > 16:
            tile.evaluate(name, out, LU, pivots, X, tile.workspace(out), **options)
        else:
            warp.evaluate(name, out, LU, pivots, X, **options)
    (report,) = reports
    return out, report


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize(
    ("shape", "dtype"), [((4, 4), torch.complex64), ((20, 31), torch.float64), ((40, 35), torch.float32)], ids=str
)
def test_another_layout_of_the_result(name, shape, dtype):
    """By columns, which the operators ask for in jvp only."""
    args = problem(3, *shape, dtype)
    out, _ = run(name, *args, by_column(torch.empty_like(args[2])), target="sm_80", explicit_barriers=True)
    assert_agrees(out, name, *args)


@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("size", [8, 32, 64])
def test_regular_matrices(name, size):
    args = problem(len(REGULAR), size, size, torch.float32, REGULAR)
    out, _ = run(name, *args, target="sm_90")
    assert_agrees(out, name, *args)


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
@pytest.mark.parametrize("name", MAPS)
def test_irregular_matrices_leave_their_neighbours_alone(name):
    """And a matrix gets the same bits in any batch."""
    regular = problem(len(IRREGULAR), 64, 64, torch.float32)
    irregular = problem(len(IRREGULAR), 64, 64, torch.float32, IRREGULAR)
    mixed = [torch.stack([a, b], dim=1).flatten(0, 1) for a, b in zip(irregular, regular, strict=True)]
    mixed[0] = by_column(mixed[0])
    assert torch.equal(run(name, *mixed, target="sm_90")[0][1::2], run(name, *regular, target="sm_90")[0])


@pytest.mark.parametrize(("name", "size", "dtype"), WARP, ids=str)
def test_traffic(name, size, dtype):
    """Nothing is read twice, written twice or fetched in part; B by columns and X by rows are both coalesced."""
    matrices = getattr(kernel_plan(name, size, size, dtype), "matrices", 1)
    LU, pivots, X = args = problem(8 * matrices, size, size, dtype)
    _, report = run(name, *args, target="sm_90")
    read = sum(x.nbytes for x in (LU, pivots, X))
    assert report.unique_read <= 1.02 * read
    assert report.unique_written <= 1.02 * X.nbytes
    load, store = report.global_memory["load"], report.global_memory["store"]
    assert load["bytes"] + store["bytes"] <= 1.1 * (read + X.nbytes)
    assert min(load["efficiency"], store["efficiency"]) >= 0.9


@pytest.mark.parametrize("target", [*TARGETS, "sm_100"])
@pytest.mark.parametrize(("name", "size", "dtype"), WARP, ids=str)
def test_registers_suffice(name, size, dtype, target):
    _, report = run(name, *problem(1, size, size, dtype), target=target)
    assert max(report.static["spill_stores"], report.static["spill_loads"]) == 0


@pytest.mark.parametrize("name", [*MAPS, "curvature"])
@pytest.mark.parametrize(("dtype", "target"), COMPILED, ids=str)
def test_registers_suffice_for_tiles(name, dtype, target):
    assert static(name, Size(1, 64, 64), dtype, target)["spilled_bytes"] <= STACK[name, dtype][TRITON < (3, 8)]


@pytest.mark.skipif(TRITON < (3, 8), reason="an older compiler distributes tiles otherwise")
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex64], ids=str)
@pytest.mark.parametrize("name", MAPS)
def test_tiles_exchange_nothing(name, dtype):
    """Shared memory serves the inverses of diagonal blocks, and in vjp a transposition."""
    _, report = run(name, *problem(1, 64, 64, dtype), target="sm_90")
    assert report.static["shared"] <= 4096
    assert report.barriers_per_cta == 26


@pytest.mark.parametrize("name", [*MAPS, "curvature"])
@pytest.mark.parametrize(("dtype", "shape"), [(torch.float32, (70, 100)), (torch.float64, (128, 128))], ids=str)
def test_few_matrices_get_the_bits_of_many(name, dtype, shape):
    """More warps, and of curvature more programs, share the work on a matrix."""
    args = problem(2, *shape, dtype)
    many, _ = run(name, *args, target="sm_80")
    assert_agrees(many, name, *args)
    few = asdict(kernel_plan(name, *shape, dtype, 2))
    assert few != asdict(kernel_plan(name, *shape, dtype, MANY))
    out = torch.full_like(many, torch.nan)
    with ptxrun.device(target="sm_80", explicit_barriers=True, schedule="warps-reversed"):
        tile.evaluate(name, out, *args, tile.workspace(out, few["programs"]), **few)
    assert torch.equal(out, many)
