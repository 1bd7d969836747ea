"""How long the kernels take on this GPU, alone: `python -m benchmarks.times [vjp] [curvature] [--sizes 4 100x40]`.

A row is a kernel for one size and dtype as it is planned; with --others also in the other configurations that it could
have: what plans rest on. What it computes is checked first. `us` is the median of calls between events, each with an
L2 cache flushed; `graph_us`, where there are several launches, of a CUDA graph of them; `copy_us` what the fewest bytes
take at the speed of a large copy.

Kernels are compiled beforehand, as many at once as there are cores.
"""

import multiprocessing
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any
from unittest.mock import patch

import pandas as pd
import torch
from rich.console import Console
from rich.progress import track

import triton_lu
from benchmarks.kernels import KERNELS, compiling, fewest_bytes, parser_of
from triton_lu import aten_backend, ops, plan, reference, registration
from triton_lu.bench import machine
from triton_lu.bench.problems import Size
from triton_lu.bench.timing import Clockmaker, event_clock
from triton_lu.command import add_output, dtype_name, exit_code, new_file

SIZES = (*(Size(1, n, n) for n in (4, 8, 16, 32, 64, 128, 256, 512, 1024)), Size(1, 100, 40))
ELEMENTS = 2**24  # of a batch: more than an L2 cache holds
CHOICES: dict[type, dict[str, tuple[int, ...]]] = {
    plan.Factor: {"matrices": (1, 2, 4, 8, 16, 32), "num_warps": (1, 2, 4)},
    plan.FactorBlocks: {"rows": (16, 32, 64), "num_warps": (1, 2, 4, 8)},
    plan.Warp: {"matrices": (1, 2, 4, 8, 16, 32, 64), "num_warps": (1, 2, 4)},
    plan.Tile: {"registers": (128, 168, 255), "num_warps": (1, 2, 4)},
    plan.Sweep: {"block": (32, 64), "terms": (16, 32), "num_warps": (2, 4, 8)},
    plan.Curvature: {"block": (16, 32, 64), "terms": (16, 32), "num_warps": (1, 2, 4, 8)},
}

Case = tuple[str, Size, torch.dtype, Any]
"""A kernel, how many matrices of which size, their dtype, and a plan."""


def cases(
    names: Sequence[str],
    sizes: Sequence[Size],
    dtypes: Sequence[torch.dtype],
    *,
    others: bool,
    elements: int = ELEMENTS,
    multiprocessors: int = plan.MULTIPROCESSORS,
) -> Iterator[Case]:
    for name, (_, m, n), dtype in product(names, sizes, dtypes):
        for batch in dict.fromkeys((max(1, elements // (m * n)), 1)):
            planned = plan.kernel(name, m, n, dtype, batch, multiprocessors)
            if planned is None or (batch == 1 and not isinstance(planned, plan.Sweep)):
                continue
            found = [planned]
            if others:
                choices = dict(CHOICES[type(planned)])
                if max(m, n) > 16 and "matrices" in choices:
                    choices["matrices"] = (1,)
                changes = (dict(zip(choices, values, strict=True)) for values in product(*choices.values()))
                found += [replace(planned, **change) for change in changes]  # type: ignore[arg-type]
            yield from ((name, Size(batch, m, n), dtype, chosen) for chosen in dict.fromkeys(found))


def arguments(case: Case, device: str, *, filled: bool = True) -> tuple[torch.Tensor, ...]:
    """What the operator takes: row-major, LU as LAPACK leaves it."""
    name, shape, dtype, _ = case
    A = torch.empty(shape, dtype=dtype, device=device)
    if filled:
        torch.nn.init.normal_(A).diagonal(dim1=-2, dim2=-1).add_(2 * max(shape[1:]) ** 0.5)
    if name == "factor":
        return (A,)
    if filled:
        return (*torch.linalg.lu_factor_ex(A)[:2], torch.randn_like(A))
    return A.mT.contiguous().mT, A.new_empty(shape[0], min(shape[1:]), dtype=torch.int32), A


@contextmanager
def operator(case: Case) -> Iterator[Callable[..., Any]]:
    """The operator; inside, it runs on its kernel as `case` plans it."""
    name, _, _, chosen = case
    planned = patch.object(plan, "kernel", lambda *_: chosen)
    with triton_lu.backend("triton"), planned, patch.dict(registration.prepared_calls, clear=True):
        yield getattr(ops, name)


def precompile(case: Case, target: str) -> None:
    """Leaves the compiled kernel in Triton's cache, if it can be compiled."""
    try:
        with compiling(target), operator(case) as op:
            op(*arguments(case, "cpu", filled=False))
    except Exception:  # which the measurement will meet again, and report
        pass


def check(case: Case, given: tuple[torch.Tensor, ...]) -> float:
    """The relative error of the first matrices; ArithmeticError if the kernel is wrong."""
    name, shape, dtype, _ = case
    some = [x[:64] for x in given]
    with operator(case) as op:
        result = op(*given)
    if name == "factor":
        error = reference.residual(some[0], result[0][:64], result[1][:64])
    else:
        with triton_lu.backend("aten"):
            exact = getattr(aten_backend, name)(*(x if x.dtype == torch.int32 else reference.double(x) for x in some))
        error = reference.relative_error(result[:64], exact)
    if not error <= reference.tolerance(dtype, max(shape[1:])):  # NaN fails too
        raise ArithmeticError(f"relative error {error:.1e}")
    return error


def measure(case: Case, device: str, clockmaker: Clockmaker, graph_clockmaker: Clockmaker) -> dict[str, object]:
    """The columns that are measured; ArithmeticError if the kernel is wrong."""
    given = arguments(case, device)
    error = check(case, given)
    with operator(case) as op:
        times: dict[str, object] = {"error": error, "us": 1e6 * clockmaker(partial(op, *given))()}
        if isinstance(case[-1], plan.Sweep):
            times["graph_us"] = 1e6 * graph_clockmaker(partial(op, *given))()
    return times


def main() -> None:
    parser = parser_of("times", __doc__, SIZES)
    parser.add_argument("--others", action="store_true", help="also in configurations that are not the plan's")
    add_output(parser, "times.csv")
    options = parser.parse_args()
    output = new_file(options)
    if not torch.cuda.is_available():
        parser.error("there is no CUDA device")
    torch.cuda.set_stream(torch.cuda.Stream())  # on which a graph can be captured
    facts = machine.facts(torch.device("cuda"))
    target = "sm_{}{}".format(*torch.cuda.get_device_capability())
    wanted = [getattr(torch, name) for name in options.dtypes]
    count = torch.cuda.get_device_properties().multi_processor_count
    names = options.kernels or list(KERNELS)
    found = list(cases(names, options.sizes, wanted, others=options.others, multiprocessors=count))
    with ProcessPoolExecutor(mp_context=multiprocessing.get_context("spawn")) as pool:
        compiled = pool.map(partial(precompile, target=target), found)
        list(track(compiled, description="compiling", total=len(found)))
    gb_per_s = machine.ceilings(torch.device("cuda"), torch.float32, event_clock)["copy_gb_per_s"]
    rows = []
    console = Console(markup=False, highlight=False, emoji=False, soft_wrap=True)
    for case in found:
        name, shape, dtype, chosen = case
        copy_us = shape.batch * fewest_bytes(name, shape, dtype) / gb_per_s * 1e-3
        row = {"kernel": name, "batch": shape.batch, "m": shape.m, "n": shape.n, "dtype": dtype_name(dtype)}
        row |= {"plan": repr(chosen), "status": "ok", "copy_us": copy_us}
        try:
            row |= measure(case, "cuda", event_clock, partial(event_clock, graph=True))
        except Exception as error:  # whatever it is, the others are to be measured
            row["status"] = f"failed: {' '.join(str(error).split())[:200] or type(error).__name__}"
        rows.append(row | facts)
        us = f"{row['us']:.1f} µs, a copy {copy_us:.1f}" if "us" in row else row["status"]
        console.print(f"{name} {shape} {row['dtype']} {chosen}: {us}")
        pd.DataFrame(rows).to_csv(output, index=False, float_format="%.4g")


if __name__ == "__main__":
    sys.exit(exit_code(main))
