"""`python -m triton_lu doctor`: what is installed, and whether it computes what it should."""

import platform
import warnings
from argparse import Namespace
from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

import triton_lu
from triton_lu import hardware, reference
from triton_lu.calibration import triton_version
from triton_lu.cli import served_by
from triton_lu.command import dtype_name
from triton_lu.validation import DTYPES

SHAPES = ((520, 4, 4), (5, 20, 12), (5, 12, 20), (3, 48, 48), (150, 150))
"""What is factorized: a little of every algorithm."""


class CheckError(Exception):
    """A result is not what it should be."""


@dataclass(frozen=True)
class Case:
    """A device, a dtype, and whether to pivot."""

    device: torch.device
    dtype: torch.dtype
    pivot: bool

    def __str__(self) -> str:
        return f"{self.device}, {dtype_name(self.dtype)}, {'' if self.pivot else 'no '}pivoting"

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """All of them on a CPU. On a GPU each has kernels that take seconds to compile, once: one case has them all."""
        has_all = self.device.type == "cpu" or (self.dtype == torch.float32 and self.pivot)
        return SHAPES if has_all else SHAPES[:1]

    def gaussian(self, *shape: int, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(shape, dtype=self.dtype, generator=generator).to(self.device)

    def matrices(self, *shape: int) -> Tensor:
        """Gaussian; without pivoting, with a diagonal that makes it safe."""
        A = self.gaussian(*shape, seed=0)
        if not self.pivot:
            A.diagonal(dim1=-2, dim2=-1).add_(2 * max(shape[-2:]))
        return A

    def lu(self, A: Tensor) -> tuple[Tensor, ...]:
        return triton_lu.lu(A, pivot=self.pivot, get_infos=True)

    def gradient(self, A: Tensor, G: Tensor) -> Tensor:
        A = A.detach().requires_grad_()
        return torch.autograd.grad(self.lu(A)[0], A, G)[0]

    def require(self, what: str, error: float, n: int) -> None:
        """An error of the size of rounding errors."""
        allowed = reference.tolerance(self.dtype, n)
        if not error <= allowed:  # NaN fails too
            raise CheckError(f"{what} {error:.1e}, more than {allowed:.1e}")


def residual(case: Case) -> None:
    """Pᵀ A = L U."""
    for shape in case.shapes:
        A = case.matrices(*shape)
        LU, pivots, infos = case.lu(A)
        if infos.any():
            raise CheckError(f"{shape}: regular matrices are called singular")
        case.require(f"{shape}: residual", reference.residual(A, LU, pivots), max(shape[-2:]))


def gradient(case: Case) -> None:
    """The gradient is that of the formula, evaluated densely in double precision at the same LU."""
    for shape in case.shapes:
        A, G = case.matrices(*shape), case.gaussian(*shape, seed=1)
        LU, pivots, _ = case.lu(A)
        exact = reference.vjp(LU, pivots, G)
        case.require(f"{shape}: relative error", reference.relative_error(case.gradient(A, G), exact), max(shape[-2:]))


def adjoints(case: Case) -> None:
    """Forward and reverse mode are adjoint: Re⟨G, jvp(E)⟩ = Re⟨vjp(G), E⟩."""
    for shape in case.shapes:
        A, G, E = case.matrices(*shape), case.gaussian(*shape, seed=1), case.gaussian(*shape, seed=2)
        tangent = torch.func.jvp(lambda A: case.lu(A)[0], (A,), (E,))[1]
        X = case.gradient(A, G)
        difference = (_products(G, tangent) - _products(X, E)).sum()
        scale = G.norm() * tangent.norm() + X.norm() * E.norm()
        case.require(f"{shape}: disagreement", float(difference.abs() / scale), max(shape[-2:]))


def _products(X: Tensor, Y: Tensor) -> Tensor:
    """The terms of Re⟨X, Y⟩."""
    return (reference.double(X).conj() * reference.double(Y)).real


def singular(case: Case) -> None:
    """A column of zeros is found, named, and does no harm to its neighbours."""
    A, G = case.matrices(3, 4, 4), case.gaussian(3, 4, 4, seed=1)
    A[1, :, 2] = 0
    if (infos := case.lu(A)[2].tolist()) != [0, 3, 0]:
        raise CheckError(f"expected infos [0, 3, 0]; got {infos}")
    _require_isolation(case, A, G)


def nan(case: Case) -> None:
    """A NaN stays in its matrix, and is not swallowed there."""
    A, G = case.matrices(3, 4, 4), case.gaussian(3, 4, 4, seed=1)
    A[1, 2, 2] = torch.nan
    if not (case.lu(A)[0][1].isnan().any() and case.gradient(A, G)[1].isnan().any()):
        raise CheckError("LU or gradient of a matrix with NaN hold none")
    _require_isolation(case, A, G)


def _require_isolation(case: Case, A: Tensor, G: Tensor) -> None:
    """Matrices 0 and 2 of three are treated as if alone."""
    kept = [0, 2]
    LU, X = case.lu(A)[0][kept], case.gradient(A, G)[kept]
    case.require("change of a neighbour's LU", reference.relative_error(LU, case.lu(A[kept])[0]), 4)
    alone = case.gradient(A[kept], G[kept])
    case.require("change of a neighbour's gradient", reference.relative_error(X, alone), 4)


CHECKS: dict[str, Callable[[Case], None]] = {
    "residual": residual,
    "gradient": gradient,
    "adjoint": adjoints,
    "singular": singular,
    "NaN": nan,
}


def devices() -> list[torch.device]:
    """The CPU and every CUDA device."""
    return [torch.device("cpu"), *(torch.device("cuda", i) for i in range(torch.cuda.device_count()))]


def run(args: Namespace) -> int:
    """Prints the report; 1 if a check failed, else 0."""
    console = Console(markup=False, highlight=False, emoji=False)
    warnings.filterwarnings("ignore", ".*torch.jit.script")  # which PyTorch's forward mode uses
    console.print(_installation(), "")
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False)
    for heading in ("device", "dtype", "pivot", "checks", "backend"):
        table.add_column(heading, overflow="fold")
    failures = []
    with console.status("") as status:
        for device, dtype, pivot in product(devices(), DTYPES, (True, False)):
            case = Case(device, dtype, pivot)
            status.update(f"checking {case}" + (": compiling, once" if device.type == "cuda" else ""))
            wrong = []
            for name, check in CHECKS.items():
                try:
                    check(case)
                except Exception as error:  # whatever it is, it is to be reported and the other checks made
                    failures.append(f"{case}: {name}: {' '.join(str(error).split()) or type(error).__name__}")
                    wrong.append(name)
            result = Text(f"FAIL: {', '.join(wrong)}", "bold red") if wrong else Text("ok", "green")
            backend = served_by(case.matrices(*SHAPES[0])).partition(",")[0]
            table.add_row(str(device), dtype_name(dtype), "yes" if pivot else "no", result, backend)
    console.print(table, f"checks: {', '.join(CHECKS)}", "")
    for failure in failures:
        console.print(f"FAIL {failure}", style="red")
    total = len(CHECKS) * table.row_count
    console.print(f"{len(failures)} of {total} checks failed" if failures else f"all {total} checks passed")
    return 1 if failures else 0


def _installation() -> Table:
    grid = Table.grid(padding=(0, 2))
    grid.add_row("triton_lu", triton_lu.__version__)
    grid.add_row("python", f"{platform.python_version()}, {platform.system()} {platform.machine()}")
    grid.add_row("torch", torch.__version__)
    grid.add_row("triton", triton_version())
    grid.add_row("CUDA", torch.version.cuda or "none: torch is built without")
    for device in devices():
        if device.type == "cpu":
            description = f"threads: {torch.get_num_threads()}"
        else:
            major, minor = torch.cuda.get_device_capability(device)
            description = f"{torch.cuda.get_device_name(device)}, compute capability {major}.{minor}"
        grid.add_row(str(device), description)
        if device.type == "cuda":
            reason = hardware.obstacle(device)
            grid.add_row("", f"kernels: none: {reason}" if reason else f"kernels: Triton {triton_version()}")
    return grid
