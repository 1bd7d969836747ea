"""What one large matrix costs on a GPU, by an estimate: `python -m benchmarks.large`. Nothing here is measured.

The operations that ATen is asked for are counted on tensors without data. Each takes the longer of its flops at 40
TFLOP/s (single precision) or 50 (double) and its bytes at 3.0 TB/s, of every argument and result once, and 6 µs before
it starts; a sequence takes the sum, since each operation needs the one before. (An H100 was seen to do 52 TFLOP/s in
large products.) PyTorch's own sequences are counted in the same way, as if its triangular solves ran at the speed of
products, which they do not: the times that an H100 did take for its backward stand beside them. Below the size from
which the plan is products, the kernels serve: their time is the emulator's estimate, where it is importable. The host
is not in it, beyond the 6 µs.
"""

import argparse
from itertools import product
from math import prod
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich import box
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd import forward_ad, grad
from torch.utils._python_dispatch import TorchDispatchMode

import triton_lu
from benchmarks.kernels import permuted, problem, ptxrun
from triton_lu import aten_backend, plan
from triton_lu.bench.problems import Size
from triton_lu.command import dtype_name

RESULTS = Path(__file__).parent / "results" / "estimates" / "large.csv"
SIZES = (256, 512, 1024, 2048, 4096, 8192)
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)
START = 6e-6
BANDWIDTH = 3.0e12
SPEED = {torch.float32: 40e12, torch.complex64: 40e12, torch.float64: 50e12, torch.complex128: 50e12}
MEASURED_MS = {  # PyTorch's backward
    torch.float32: {256: 0.296, 512: 0.5197, 1024: 0.8527, 2048: 2.714, 4096: 13.93},
    torch.float64: {2048: 2.8, 4096: 13.4},
}
NOT_COUNTED = {"alias", "detach", "device", "empty", "empty_like", "empty_permuted", "linalg_lu_factor_ex"}


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
        flops = 0.0
        if name in factors:
            A, B = args[factors[name] :][:2]
            flops = 2.0 * prod(A.shape) * B.shape[-1]
        elif name == "linalg_solve_triangular":
            T, X = args[:2]
            flops = float(T.shape[-1] * X.numel())
        bytes_ = float(sum(x.numel() * x.element_size() for x in tensors.values()))
        dtype = next((x.dtype for x in tensors.values() if x.dtype in SPEED), torch.float64)
        flops *= 4 if dtype.is_complex else 1
        self.operations += 1
        self.flops += flops
        self.bytes += bytes_
        self.seconds += START + max(flops / SPEED[dtype], bytes_ / BANDWIDTH)
        return result


MAPS = {"vjp": ("vjp",), "jvp": ("jvp",), "second derivative": ("jvp", "curvature", "vjp")}


def products(name: str, n: int, dtype: torch.dtype) -> Costs:
    """Of the operations in `products.py`."""
    with FakeTensorMode():
        X = torch.empty(n, n, dtype=dtype, device="cuda")
        pivots = torch.empty(n, dtype=torch.int32, device="cuda")
        with Costs() as costs:
            for part in MAPS[name]:
                getattr(aten_backend, part)(X.mT, pivots, X)
    return costs


def torch_sequence(name: str, n: int, dtype: torch.dtype) -> Costs:
    """Of PyTorch's derivative of `lu_factor_ex`, without the factorization; it is the same sequence on every device."""
    with FakeTensorMode():
        A, G = (torch.empty(n, n, dtype=dtype) for _ in range(2))
        costs = Costs()
        if name == "jvp":
            with forward_ad.dual_level(), costs:
                torch.linalg.lu_factor_ex(forward_ad.make_dual(A, G))
            return costs
        A.requires_grad_()
        LU = torch.linalg.lu_factor_ex(A).LU
        if name == "second derivative":
            (X,) = grad(LU, A, G, create_graph=True)
            with costs:
                grad(X, A, G)
        else:
            with costs:
                grad(LU, A, G)
    return costs


def kernels_seconds(name: str, n: int, dtype: torch.dtype) -> float:
    """The emulator's estimate for the launches."""
    reports: list[Any]
    with ptxrun.device(target="sm_90", sample=8, check=False) as reports, triton_lu.backend("triton"), permuted():
        for part in MAPS[name]:
            problem(part, Size(1, n, n), dtype, 1)()
    return sum(report.roofline("H100")["time"] for report in reports)


def by_kernels(name: str, n: int, dtype: torch.dtype) -> bool:
    """Whether the plan has kernels for that, by default."""
    return all(plan.kernel(part, n, n, dtype) is not None for part in MAPS[name])


def row(name: str, n: int, dtype: torch.dtype) -> dict[str, object]:
    ours, theirs = products(name, n, dtype), torch_sequence(name, n, dtype)
    kernels = 1e3 * kernels_seconds(name, n, dtype) if ptxrun is not None and by_kernels(name, n, dtype) else None
    estimate = 1e3 * ours.seconds if kernels is None else kernels
    measured = MEASURED_MS.get(dtype, {}).get(n) if name == "vjp" else None
    return {
        "map": name,
        "n": n,
        "dtype": dtype_name(dtype),
        "plan": "kernels" if by_kernels(name, n, dtype) else "products",
        "operations": ours.operations,
        "flops_over_n3": round(ours.flops / n**3 / (4 if dtype.is_complex else 1), 2),
        "products_ms": round(1e3 * ours.seconds, 3),
        "kernels_ms": kernels and round(kernels, 3),
        "torch_operations": theirs.operations,
        "torch_flops_over_n3": round(theirs.flops / n**3 / (4 if dtype.is_complex else 1), 2),
        "torch_ms": round(1e3 * theirs.seconds, 3),
        "torch_over_plan": round(1e3 * theirs.seconds / estimate, 2),
        "torch_measured_ms": measured,
        "measured_over_plan": measured and round(measured / estimate, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.large", description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES, metavar="N")
    parser.add_argument("--dtypes", nargs="+", default=["float32", "float64"], choices=[*map(dtype_name, DTYPES)])
    parser.add_argument("--output", type=Path, default=RESULTS)
    arguments = parser.parse_args()
    asked = product(MAPS, (getattr(torch, name) for name in arguments.dtypes), arguments.sizes)
    table = pd.DataFrame([row(name, n, dtype) for name, dtype, n in asked])
    shown = Table(title="Estimates, not measurements, but for torch_measured_ms", box=box.SIMPLE_HEAD, padding=0)
    for column in table:
        shown.add_column(column.replace("_", "\n"), justify="right", no_wrap=True)
    for values in table.itertuples(index=False):
        shown.add_row(*("–" if pd.isna(value) else f"{value}" for value in values))
    Console(width=max(Console().width, 140)).print(shown)
    table.to_csv(arguments.output, index=False)


if __name__ == "__main__":
    main()
