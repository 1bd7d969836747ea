"""How long calls take the host, over the time of `A * 2`: `python -m benchmarks.host [--sizes 64x8x8 1x1024x1024]`.

Of a call on a GPU this is the time until it returns, while the queue of the GPU has room. Without a GPU our kernels are
compiled, and launched to a driver that does nothing: what is left is the host's part. PyTorch's operations beside them
have no such driver, and compute on the CPU. Medians of calls in turns, float32, one thread, with `A * 2` for 64×8×8;
what takes longer than 5 ms is left out.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from functools import partial
from statistics import median
from time import perf_counter
from types import ModuleType
from unittest.mock import patch

import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch.autograd import grad
from triton.compiler import CompiledKernel
from triton.runtime import driver

import triton_lu
from benchmarks.kernels import NoDevice
from triton_lu import ops, registration
from triton_lu.bench.problems import Problem, Size, size
from triton_lu.command import Parser

SIZES = (Size(64, 8, 8), Size(1, 1024, 1024))
TURNS = 50
CALLS_PER_TURN = 10  # a queue holds the launches of far more
LONG = 5e-3  # seconds


class Arguments:
    """Of the calls that are measured."""

    def __init__(self, shape: Size, device: str):
        self.A, self.G = (Problem("backward", shape, torch.float32, device).gaussian(seed) for seed in range(2))
        self.LU, self.pivots, _ = torch.linalg.lu_factor_ex(self.A)
        self.map = self.LU, self.pivots, self.G

    def differentiated(self) -> torch.Tensor:
        return self.A.clone().requires_grad_()

    def backward(self, linalg: ModuleType) -> Callable[[], object]:
        A = self.differentiated()
        return partial(grad, linalg.lu_factor_ex(A).LU, A, self.G, retain_graph=True)


CALLS: dict[str, Callable[[Arguments], Callable[[], object]]] = {
    "factor": lambda x: partial(ops.factor, x.A),
    "vjp": lambda x: partial(ops.vjp, *x.map),
    "jvp": lambda x: partial(ops.jvp, *x.map),
    "curvature": lambda x: partial(ops.curvature, *x.map),
    "mixed": lambda x: partial(ops.mixed, *x.map),
    "permutation": lambda x: partial(ops.permutation, x.pivots, x.A.shape[-2]),
    "lu": lambda x: partial(triton_lu.lu, x.differentiated(), get_infos=True),
    "lu_factor_ex": lambda x: partial(triton_lu.linalg.lu_factor_ex, x.A),
    "lu_solve": lambda x: partial(triton_lu.linalg.lu_solve, *x.map),
    "backward": lambda x: x.backward(triton_lu.linalg),
    "torch lu": lambda x: partial(torch.linalg.lu_factor_ex, x.differentiated()),
    "torch lu_factor_ex": lambda x: partial(torch.linalg.lu_factor_ex, x.A),
    "torch lu_solve": lambda x: partial(torch.linalg.lu_solve, *x.map),
    "torch backward": lambda x: x.backward(torch.linalg),
    "torch matmul": lambda x: partial(torch.matmul, x.A, x.G),
    "torch clone": lambda x: partial(torch.clone, x.A),
}


class SilentDevice(NoDevice):
    """Kernels are compiled for it, and launched to nowhere."""

    def launch(self, *launched: object) -> None:
        pass


@contextmanager
def silent(device: SilentDevice) -> Iterator[None]:
    """Inside, operators run on kernels for CPU tensors, which are launched to that device."""

    def load(kernel: CompiledKernel) -> None:
        kernel.function = kernel.hash
        kernel._run = lambda *launched: driver.active.launch(*launched)

    with (
        patch.object(CompiledKernel, "_init_handles", load),
        patch.object(driver, "_active", device),
        patch.dict(registration.prepared_calls, clear=True),
        triton_lu.backend("triton"),
    ):
        yield


def seconds(function: Callable[[], object], calls: int) -> float:
    """Of a call, on average."""
    start = perf_counter()
    for _ in range(calls):
        function()
    return (perf_counter() - start) / calls


def measure(functions: dict[str, Callable[[], object]], device: str) -> dict[str, float]:
    """Medians, in seconds, of those that do not compute for long themselves."""
    found: dict[str, list[float]] = {}
    for name, function in functions.items():
        seconds(function, 2)  # which prepare the others
        if seconds(function, 1) < LONG:
            found[name] = []
    for _ in range(TURNS):
        for name, times in found.items():
            functions[name]()  # the caches have been another's
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(seconds(functions[name], CALLS_PER_TURN))
    return {name: median(times) for name, times in found.items()}


def main() -> None:
    parser = Parser(prog="python -m benchmarks.host", description=__doc__)
    parser.add_argument("--sizes", type=size, nargs="+", default=SIZES, help="N, MxN or BATCHxMxN")
    sizes = parser.parse_args().sizes
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_num_threads(1)
    with nullcontext() if device == "cuda" else silent(SilentDevice("sm_90")):
        unit = partial(torch.mul, Arguments(SIZES[0], device).A, 2)
        names = [name for name in CALLS if device == "cuda" or name != "lu_solve"]  # it needs results of kernels
        columns = []
        for shape in sizes:
            arguments = Arguments(shape, device)
            columns.append(measure({"A * 2": unit, **{name: CALLS[name](arguments) for name in names}}, device))
    table = Table(title="µs of the host, and over A * 2", box=box.SIMPLE_HEAD)
    table.add_column("call")
    for shape in sizes:
        table.add_column(str(shape), justify="right")
        table.add_column("", justify="right")
    for name in ("A * 2", *names):
        cells = []
        for times in columns:
            found = name in times
            cells += [f"{1e6 * times[name]:.1f}", f"{times[name] / times['A * 2']:.1f}"] if found else ["", ""]
        table.add_row(name, *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
