"""Batches of several dimensions, under Triton's interpreter: what has no common stride is neither copied nor wrong."""

import pytest
import torch
from triton_lu_kernels import factor, launch, sweep, tile, warp

import triton_lu

SHAPES = {"warp": (3, 4), "tile": (17, 5), "sweep": (20, 3)}
VIEWS = {
    "expanded along the first": lambda x: x[:1].expand_as(x),
    "expanded along the second": lambda x: x[:, :1].expand_as(x),
    "sliced": lambda x: x.repeat(1, 2, *[1] * (x.ndim - 2))[:, : x.shape[1]],
    "transposed": lambda x: x.transpose(0, 1).contiguous().transpose(0, 1),
}
every_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())


class Recorded:
    """A kernel that takes down what memory it is given."""

    def __init__(self, kernel, memory):
        self.kernel, self.memory = kernel, memory

    def __getitem__(self, grid):
        def run(*args, **constants):
            self.memory |= {x.reals.data_ptr() for x in args if isinstance(x, launch.Strided)}
            return self.kernel[grid](*args, **constants)

        return run


@pytest.fixture
def memory(monkeypatch):
    """Where the tensors begin that kernels are given."""
    memory = set()
    for module in (factor, sweep, tile, warp):
        for name in [name for name in vars(module) if name.endswith("_kernel")]:
            monkeypatch.setattr(module, name, Recorded(getattr(module, name), memory))
    return memory


def check(name, args, memory):
    """The kernels are given the arguments themselves, and the results are those of contiguous arguments."""
    assert args[-1].flatten(0, -3).data_ptr() != args[-1].data_ptr()  # with one batch dimension it would be a copy
    operator = getattr(torch.ops.triton_lu, name)
    with triton_lu.backend("triton"):
        results = operator(*args)
        assert {x.data_ptr() for x in args} <= memory
        expected = operator(*(x.contiguous() for x in args))
    for x, y in zip(results, expected, strict=True):
        assert torch.equal(x, y)


def problem(*shape, dtype=torch.float32):
    """LU by rows, as `contiguous` leaves it, pivots, and an argument of a map."""
    LU, pivots, _ = torch.linalg.lu_factor_ex(torch.randn(shape, dtype=dtype))
    return LU.contiguous(), pivots, torch.randn(shape, dtype=dtype)


@pytest.mark.parametrize(
    ("regime", "view"),
    [*(("warp", view) for view in VIEWS), *((regime, "transposed") for regime in SHAPES if regime != "warp")],
)
@pytest.mark.parametrize("name", ["vjp", "jvp"])
def test_maps(name, regime, view, memory, request):
    """All regimes find the matrices of a batch by the same function."""
    if regime == "sweep":
        request.getfixturevalue("small_sweep")
    check(name, [VIEWS[view](x) for x in problem(2, 3, *SHAPES[regime])], memory)


@every_view
@pytest.mark.parametrize("name", ["vjp", "jvp"])
def test_one_argument(name, view, memory):
    """As it is when torch.func.vmap maps over the others."""
    LU, pivots, X = problem(2, 3, 3, 4, dtype=torch.complex64)
    check(name, (LU, pivots, view(X)), memory)


@every_view
@pytest.mark.parametrize("shape", [(3, 4), (18, 2)], ids=str)
def test_factor(shape, view, memory):
    check("factor", [view(torch.randn(2, 3, *shape))], memory)


@pytest.mark.parametrize("batch", [(2, 3, 2), (2, 1, 3), (2, 2, 3, 2)], ids=str)
def test_any_number_of_dimensions(batch, memory):
    A = torch.randn(*batch, 3, 3)
    check("factor", [A.transpose(0, -3)], memory)
    memory.clear()
    check("factor", [A[..., :1, :, :].expand_as(A)], memory)


@pytest.mark.parametrize("batch", [(), (1,), (6,), (2, 3), (2, 1, 3, 1)], ids=str)
def test_contiguous_batches_have_one_dimension(batch):
    """So one compiled kernel serves them all."""
    LU, pivots, infos = torch.linalg.lu_factor_ex(torch.randn(*batch, 3, 3))
    assert launch.batch_dims(batch, LU, pivots, infos) == ((), [((9,), 1, 3), ((3,), 1), ((1,),)])
