"""Measures the crossovers that plans read: see `triton_lu.calibration`."""

from collections.abc import Iterator
from functools import partial
from itertools import product

import torch
from rich.console import Console

from triton_lu import aten_backend, calibration, hardware, ops, plan
from triton_lu._backend import backend
from triton_lu.bench.problems import Problem, Size
from triton_lu.bench.timing import Clockmaker, interleaved
from triton_lu.command import InputError
from triton_lu.validation import DTYPES

SIZES = (32, 64, 128, 256, 512, 1024)
WIDTHS = (32, 64, 128, 256, 512)
BATCH = 2**22  # elements of a batch that fills a GPU
KERNELS = (*((name, False) for name in calibration.KERNELS), ("factor", True))  # and whether of one matrix alone
GAIN = 1.05  # what is worth another plan than the default's


def run(device: torch.device, clockmaker: Clockmaker, seconds: float, console: Console) -> None:
    """Measures and saves what concerns this kind of device."""
    if device.type == "cuda" and (reason := hardware.obstacle(device)):
        raise InputError(f"there are no kernels on {device} to calibrate: {reason}")
    measured = kernel_sizes(device, clockmaker, seconds) if device.type == "cuda" else block_widths(clockmaker, seconds)
    values = {}
    for name, value in measured:
        console.print(f"{name}: {value}")
        values[name] = value
    try:
        calibration.write(device, values)
    except (OSError, RuntimeError) as error:  # RuntimeError: there is no home
        raise InputError(f"the calibration cannot be saved: {error}") from error
    console.print(f"wrote {calibration.path()}")


def block_widths(clockmaker: Clockmaker, seconds: float) -> Iterator[tuple[str, int]]:
    """The best width of the blocks in ATen's sweep, of those that are not narrower than the plan's own."""
    for dtype, kind, k in product(DTYPES, ("single", "batch"), SIZES):
        batch = 1 if kind == "single" else max(2, 2**20 // k**2)
        default = plan.default_block(batch, k)
        if default >= k:
            continue
        problem = Problem("backward", Size(batch, k, k), dtype)
        LU, G = torch.linalg.lu_factor_ex(problem.matrices()).LU, problem.gaussian(1)
        arguments = torch.empty_like(G), G, LU, plan.widths(batch, k, k, dtype, "cpu").span
        widths = [default, *(width for width in WIDTHS if default < width <= k)]
        clocks = {str(width): clockmaker(partial(_sweep, *arguments, width)) for width in widths}
        timings = interleaved(clocks, limit_seconds=seconds)
        gains = {width: timings[str(default)].ratio(timings[str(width)]) for width in widths}
        best = max(widths, key=gains.__getitem__)
        yield calibration.block(dtype, batch, k), best if gains[best] >= GAIN else default


def _sweep(X: torch.Tensor, G: torch.Tensor, LU: torch.Tensor, span: int, block: int) -> None:
    aten_backend._vjp_sweep_(X.copy_(G), LU, plan.Widths(block, max(span, block)))


def kernel_sizes(device: torch.device, clockmaker: Clockmaker, seconds: float) -> Iterator[tuple[str, int]]:
    """The crossover of every kernel."""
    for (name, single), dtype in product(KERNELS, DTYPES):
        found = crossover(name, dtype, device, clockmaker, seconds, single=single)
        yield calibration.kernel(name, dtype, single=single), found


def crossover(
    name: str, dtype: torch.dtype, device: torch.device, clockmaker: Clockmaker, seconds: float, *, single: bool
) -> int:
    """The largest size for which a kernel is faster than ATen, for one matrix or batches that fill the device.

    Without a limit if that is the largest one that is measured: beyond, plans are the defaults.
    """
    largest = n = 0
    for problem in problems(name, dtype, device.type, single=single):
        n = problem.size.n
        A, G = problem.matrices(), problem.gaussian(1)
        LU, pivots, _ = torch.linalg.lu_factor_ex(A)
        arguments = (A,) if name == "factor" else (LU, pivots, G)
        clocks = {}
        for choice in ("triton", "aten"):
            call = backend(choice)(partial(getattr(ops, name), *arguments))
            clocks[choice] = clockmaker(call)
        timings = interleaved(clocks, limit_seconds=seconds)
        if timings["aten"].ratio(timings["triton"]) >= 1:
            largest = n
    return calibration.LARGEST if 0 < n == largest else largest


def problems(name: str, dtype: torch.dtype, device: str, *, single: bool) -> list[Problem]:
    """On which a kernel is compared with ATen."""
    sizes = [n for n in (4, 8, 16, *SIZES) if plan.kernel(name, n, n, dtype) is not None]
    return [Problem("backward", Size(1 if single else max(1, BATCH // n**2), n, n), dtype, device) for n in sizes]
