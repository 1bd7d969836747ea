"""What a few large matrices cost on a GPU, by an estimate: `python -m benchmarks.large [--sizes 512 4x1024x1024] ...`.

No time of a GPU is measured here. The operations that ATen is asked for are counted on tensors without data. Each takes
the longer of its flops at 40 TFLOP/s (single precision) or 50 (double) and its bytes at 3.0 TB/s, of every argument and
result once, and 6 µs before it starts; a triangular solve waits 0.3 µs more for every column of its triangle. A
sequence takes the sum, since each operation needs the one before. (An H100 was seen to do 52 TFLOP/s in large products;
small ones, which do not fill the GPU, are slower than that.) PyTorch's own sequences are counted in the same way. The
0.3 µs are fitted: with them the backwards of float32 that were measured on an H100, which stand beside the estimates,
took 1.4 times as long up to 512×512, where the host was in them, and 0.85 to 0.95 times from 1024×1024 on.

Where the plan has kernels, their launches take the emulator's estimates, if it is importable: of each launch the longer
of two, of all its programs and of the first one alone. The first is the longest; in a mean over programs the one with a
diagonal block, for which all wait, would vanish. A program alone fetches its code anew in every launch, which may be
too pessimistic.

The host's time is measured here, on one core: of the kernels with launches to nowhere (`benchmarks.host`), of products
on matrices so small that the same operations compute next to nothing on the CPU. What a driver adds is not in it. It is
the least of many calls over the least of `A * 2` in between, in 2.6 µs, which that takes on a core without other work.
A plan of kernels takes the host's time and the launches', one of products the longer of the two, since the 6 µs of each
operation are the host's already.
"""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache, partial
from itertools import product
from math import ceil, nan, prod
from time import thread_time
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, grad
from torch.utils._python_dispatch import TorchDispatchMode
from triton_lu_kernels import launch

import triton_lu
from benchmarks.host import SilentDevice, silent
from benchmarks.kernels import GPUS, permuted, problem, ptxrun
from triton_lu import aten_backend, plan
from triton_lu import products as products_backend
from triton_lu.bench.problems import Size
from triton_lu.bench.problems import size as size_of
from triton_lu.command import Parser, add_output, dtype_name, exit_code, new_file

SIZES = (
    *(Size(1, n, n) for n in (160, 256, 512, 1024, 1536, 2048, 4096, 8192)),
    Size(4, 256, 256),
    Size(4, 1024, 1024),
)
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
START = 6e-6
COLUMN = 0.3e-6  # of a triangle that is solved with
BANDWIDTH = 3.0e12
SPEED = {torch.float32: 40e12, torch.complex64: 40e12, torch.float64: 50e12, torch.complex128: 50e12}
MEASURED_MS = {  # PyTorch's backward
    torch.float32: {256: 0.296, 512: 0.5197, 1024: 0.8527, 2048: 2.714, 4096: 13.93},
    torch.float64: {2048: 2.8, 4096: 13.4},
}
NOT_COUNTED = {"alias", "detach", "device", "empty", "empty_like", "empty_permuted", "linalg_lu_factor_ex"}
TURNS = 20  # of calls in a row, of which the host takes the least
UNIT = 2.6e-6  # of `A * 2` on a core without other work


class Costs(TorchDispatchMode):
    """Of the operations inside."""

    def __init__(self) -> None:
        super().__init__()
        self.operations = 0
        self.flops = self.bytes = self.seconds = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        name = func.overloadpacket.__name__
        if func.is_view or name in NOT_COUNTED:
            return result
        tensors = {id(x): x for x in (*args, *kwargs.values(), result) if isinstance(x, Tensor)}
        factors = {"mm": 0, "bmm": 0, "addmm_": 1, "addmm": 1, "baddbmm_": 1, "baddbmm": 1}
        flops = waits = 0.0
        if name in factors:
            A, B = args[factors[name] :][:2]
            flops = 2.0 * prod(A.shape) * B.shape[-1]
        elif name == "linalg_solve_triangular":
            T, X = args[:2]
            flops = float(T.shape[-1] * X.numel())
            waits = COLUMN * T.shape[-1]
        bytes_ = float(sum(x.numel() * x.element_size() for x in tensors.values()))
        dtype = next((x.dtype for x in tensors.values() if x.dtype in SPEED), torch.float64)
        flops *= 4 if dtype.is_complex else 1
        self.operations += 1
        self.flops += flops
        self.bytes += bytes_
        self.seconds += START + waits + max(flops / SPEED[dtype], bytes_ / BANDWIDTH)
        return result


MAPS = {
    "vjp": ("vjp",),
    "jvp": ("jvp",),
    "second derivative": ("jvp", "curvature", "vjp"),  # reverse over reverse mode, or forward over reverse
    "forward over forward": ("jvp", "jvp", "mixed", "jvp"),
}


def matrices(size: Size, dtype: torch.dtype, device: str = "cpu") -> Tensor:
    return torch.empty(size[1:] if size.batch == 1 else size, dtype=dtype, device=device)


def products(parts: Sequence[str], size: Size, dtype: torch.dtype) -> Costs:
    """Of the operations in `products.py` for these operators."""
    with FakeTensorMode():
        X = matrices(size, dtype, "cuda")
        pivots = torch.empty(X.shape[:-1], dtype=torch.int32, device="cuda")
        with Costs() as costs:
            for part in parts:
                getattr(aten_backend, part)(X.mT, pivots, X)
    return costs


def torch_sequence(name: str, size: Size, dtype: torch.dtype) -> Costs:
    """Of PyTorch's derivative of `lu_factor_ex`, without the factorization; it is the same sequence on every device."""

    def factors(A: Tensor) -> Tensor:
        return torch.linalg.lu_factor_ex(A).LU

    with FakeTensorMode():
        A, G = (matrices(size, dtype) for _ in range(2))
        costs = Costs()
        if name == "forward over forward":
            with costs:
                torch.func.jvp(lambda A: torch.func.jvp(factors, (A,), (G,))[1], (A,), (G,))
            return costs
        if name == "jvp":
            with forward_ad.dual_level(), costs:
                factors(forward_ad.make_dual(A, G))
            return costs
        A.requires_grad_()
        LU = factors(A)
        if name == "second derivative":
            (X,) = grad(LU, A, G, create_graph=True)
            with costs:
                grad(X, A, G)
        else:
            with costs:
                grad(LU, A, G)
    return costs


def by_kernel(part: str, size: Size, dtype: torch.dtype) -> bool:
    """Whether the plan has a kernel for that operator."""
    batch, m, n = size
    pays = plan.kernel_pays(part, m, n, dtype, torch.device("cuda", 0), batch)
    return pays and plan.kernel(part, m, n, dtype) is not None


@contextmanager
def first_programs_alone() -> Iterator[None]:
    """Inside, every launch is followed by one of its first program alone."""
    launcher = launch.launcher

    def twice(*about: Any) -> Callable[..., None]:
        launch_programs = launcher(*about)

        def launch_both(programs: int, *args: Any) -> None:
            launch_programs(programs, *args)
            launch_programs(1, *args)

        return launch_both

    with patch.object(launch, "launcher", twice):
        yield


@cache
def launch_seconds(part: str, size: Size, dtype: torch.dtype) -> list[float]:
    """Of every launch of that operator's kernels, by the emulator."""
    reports: list[Any]
    options = {"target": GPUS["H100"], "sample": 8, "check": False}
    with (
        ptxrun.device(**options) as reports,
        triton_lu.backend("triton"),
        permuted(),
        first_programs_alone(),
    ):
        problem(part, size, dtype, size.batch)()
    times = [report.roofline("H100")["time"] for report in reports]
    return [max(pair) for pair in zip(times[::2], times[1::2], strict=True)]


def host_seconds(function: Callable[[], object]) -> float:
    """Of a call, by the clock of the thread, which stands while others have the core."""
    unit: Callable[[], object] = partial(torch.mul, torch.ones(64, 8, 8), 2)

    def least(call: Callable[[], object]) -> float:
        for _ in range(3):  # which prepare the others
            call()
        times = []
        for _ in range(10):
            start = thread_time()
            call()
            times.append(thread_time() - start)
        return min(times)

    times, units = zip(*((least(function), least(unit)) for _ in range(TURNS)), strict=True)
    return UNIT * min(times) / min(units)


@cache
def kernels_host_seconds(part: str, size: Size, dtype: torch.dtype) -> float:
    with silent(SilentDevice(GPUS["H100"])):
        return host_seconds(problem(part, size, dtype, size.batch))


@cache
def products_host_seconds(part: str, size: Size, dtype: torch.dtype) -> float:
    """Of as many blocks, joined of as many smaller ones, that have one column each."""
    block = plan.block_of_products(*size[1:], "cuda")
    assert block is not None
    width = block // plan.SUBSTITUTION
    n = ceil(size.n / block) * width
    X = matrices(Size(size.batch, n, n), dtype).zero_()
    X.diagonal(dim1=-2, dim2=-1).fill_(1)
    pivots = torch.arange(1, n + 1, dtype=torch.int32).expand(X.shape[:-1]).contiguous()
    with patch.object(plan, "SUBSTITUTION", 1):
        return host_seconds(lambda: getattr(products_backend, part)(X.mT, pivots, X, width))


def plan_in_words(name: str, size: Size, dtype: torch.dtype) -> str:
    chosen = {"kernels" if by_kernel(part, size, dtype) else "products" for part in MAPS[name]}
    return " and ".join(sorted(chosen))


def row(name: str, size: Size, dtype: torch.dtype) -> dict[str, object]:
    parts = MAPS[name]
    by_kernels = [part for part in parts if by_kernel(part, size, dtype)]
    by_products = [part for part in parts if part not in by_kernels]
    ours, theirs = products(parts, size, dtype), torch_sequence(name, size, dtype)

    def products_host(parts: Sequence[str]) -> float:
        return sum(products_host_seconds(part, size, dtype) for part in parts)

    planned = max(products(by_products, size, dtype).seconds, products_host(by_products))
    launches: list[float] = []
    kernels_host = kernels = None
    if by_kernels:
        kernels_host = sum(kernels_host_seconds(part, size, dtype) for part in by_kernels)
        if ptxrun is None:
            planned = nan
        else:
            launches = [time for part in by_kernels for time in launch_seconds(part, size, dtype)]
            kernels = sum(launches)
            planned += kernels_host + kernels
    batch, _, n = size
    measured = MEASURED_MS.get(dtype, {}).get(n) if name == "vjp" and batch == 1 else None
    n3 = batch * n**3 * (4 if dtype.is_complex else 1)

    def ms(time: float | None) -> float | None:
        return time and round(1e3 * time, 3)

    return {
        "map": name,
        "batch": batch,
        "n": n,
        "dtype": dtype_name(dtype),
        "plan": plan_in_words(name, size, dtype),
        "operations": ours.operations,
        "flops_over_n3": round(ours.flops / n3, 2),
        "products_ms": ms(ours.seconds),
        "products_host_ms": ms(products_host(parts)),
        "launches": len(launches) or None,
        "kernels_ms": ms(kernels),
        "kernels_host_ms": ms(kernels_host),
        "plan_ms": ms(planned),
        "torch_operations": theirs.operations,
        "torch_flops_over_n3": round(theirs.flops / n3, 2),
        "torch_ms": ms(theirs.seconds),
        "torch_over_plan": round(theirs.seconds / planned, 2),
        "torch_measured_ms": measured,
        "measured_over_plan": measured and round(measured / (1e3 * planned), 2),
    }


def main() -> None:
    parser = Parser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--maps", nargs="+", default=[*MAPS], choices=[*MAPS])
    parser.add_argument("--sizes", type=size_of, nargs="+", default=SIZES, help="N or BATCHxNxN")
    parser.add_argument("--dtypes", nargs="+", default=[*map(dtype_name, DTYPES)], choices=[*map(dtype_name, DTYPES)])
    add_output(parser, "large.csv")
    arguments = parser.parse_args()
    output = new_file(arguments)
    torch.set_num_threads(1)
    asked = product(arguments.maps, (getattr(torch, name) for name in arguments.dtypes), arguments.sizes)
    rows = []
    for name, dtype, size in track(list(asked), description="large"):
        rows.append(row(name, size, dtype))
        pd.DataFrame(rows).to_csv(output, index=False)  # row by row: what is done stays when it is interrupted
    shown = Table(
        title="Estimates, not measurements, but for torch_measured_ms and the host", box=box.SIMPLE_HEAD, padding=0
    )
    table = pd.DataFrame(rows)
    for column in table:
        shown.add_column(column.replace("_", "\n"), justify="right", no_wrap=True)
    for values in table.itertuples(index=False):
        shown.add_row(*("–" if pd.isna(value) else f"{value}" for value in values))
    Console(width=max(Console().width, 160)).print(shown)


if __name__ == "__main__":
    sys.exit(exit_code(main))
