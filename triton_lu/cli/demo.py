"""`python -m triton_lu demo`: what this package does for given matrices, beside PyTorch's own derivatives."""

from argparse import Namespace
from collections.abc import Iterator

import torch
from rich.box import HORIZONTALS
from rich.console import Console
from rich.filesize import decimal
from rich.live import Live
from rich.table import Table
from torch import Tensor

import triton_lu
from triton_lu import reference
from triton_lu.bench.timing import interleaved, peak_bytes, wall_clock
from triton_lu.cli import matrixfile, served_by
from triton_lu.command import InputError, chosen_device, dtype_name

CAPTION = """\
Errors are Frobenius norms, the worst of the batch with singular ones left out: of Pᵀ A - L U relative to A, and of the
gradient relative to a reference: for single precision the formula evaluated densely in double precision at the same
LU, for double precision PyTorch's own gradient. Time and peak memory are those of the backward pass, × how many times
less than PyTorch's. Times are medians of interleaved runs."""


def run(args: Namespace) -> int:
    """Prints the table; a row appears as soon as it is measured."""
    device = chosen_device(args.device)
    console = Console(markup=False, highlight=False, emoji=False)
    matrices = [item for file in args.files for item in matrixfile.read(file, console.print).items()]
    problems = [(name, _cast(name, A, args.dtype)) for name, A in matrices or well_known()]
    table = Table(box=HORIZONTALS, show_lines=True, padding=(0, 1, 0, 0))
    for heading in ("matrices", "residual", "gradient\nerror", "backward\ntime", "backward\nmemory", "served by"):
        table.add_column(heading, overflow="fold")
    threads = f", threads: {torch.get_num_threads()}" if device.type == "cpu" else ""
    console.print(f"triton_lu {triton_lu.__version__}, torch {torch.__version__}, {device}{threads}")
    with Live(table, console=console, auto_refresh=False) as live:  # no thread that refreshes while we measure
        for name, A in problems:
            table.add_row(*row(name, A.to(device)))
            live.refresh()
    if not console.is_terminal:
        console.line()  # Live ends one only there
    console.print(" ".join(CAPTION.split()), style="dim")
    return 0


def well_known() -> Iterator[tuple[str, Tensor]]:
    """Matrices to show when no file is given, singles and batches of several sizes and dtypes."""
    generator = torch.Generator().manual_seed(0)

    def gaussian(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=dtype)

    i = torch.arange(1, 1025, dtype=torch.float64)
    frank = torch.minimum(i[:12, None], i[:12]).flip(0, 1).triu(-1)
    grcar = (torch.ones(100, 100).triu() - torch.ones(100, 100).triu(4) - torch.eye(100).roll(-1, 1).tril()).double()
    lotkin = torch.cat([torch.ones(1, 8).double(), 1 / (i[1:8, None] + i[:8] - 1)])
    second_difference = 2 * torch.eye(24) - torch.eye(25)[1:, :-1] - torch.eye(25)[:-1, 1:]
    laplacian = torch.kron(second_difference, torch.eye(24)) + torch.kron(torch.eye(24), second_difference)

    yield "Gaussian", gaussian(4096, 4, 4, dtype=torch.float32)
    yield "Gaussian", gaussian(256, 32, 32, dtype=torch.complex64)
    yield "Orthogonal", torch.linalg.qr(gaussian(32, 128, 128)).Q
    yield "Graded rows", torch.logspace(0, -6, 96, dtype=torch.float64)[:, None] * gaussian(32, 96, 48)
    yield "Gaussian", gaussian(32, 48, 96, dtype=torch.complex128)
    yield "Lotkin", lotkin
    yield "Frank", frank
    yield "Grcar", grcar
    yield "Poisson on a square", laplacian.double()
    yield "Gaussian", gaussian(512, 512, dtype=torch.float32)
    yield "Gaussian", gaussian(1024, 1024)


def row(name: str, A: Tensor) -> list[str]:
    """The cells of one matrix or batch of matrices."""
    A.requires_grad_()
    LU, pivots, infos = triton_lu.lu(A, get_infos=True)
    theirs, _, _ = torch.linalg.lu_factor_ex(A)
    G = torch.randn(A.shape, generator=torch.Generator().manual_seed(0), dtype=A.dtype).to(A.device)

    def gradient(factors: Tensor = LU) -> Tensor:
        return torch.autograd.grad(factors, A, G, retain_graph=True)[0]

    def their_gradient() -> Tensor:
        return gradient(theirs)

    finite = A.detach().isfinite().all(-1).all(-1)
    regular = finite & (infos == 0)
    errors = ["–", "–"]
    if regular.any():
        X, B, p = gradient()[regular], LU.detach()[regular], pivots[regular]
        single = torch.finfo(A.dtype).bits == 32
        exact = reference.vjp(B, p, G[regular]) if single else their_gradient()[regular]
        residual, error = reference.residual(A.detach()[regular], B, p), reference.relative_error(X, exact)
        errors = [f"{residual:.1e}", f"{error:.1e}\nvs {'double' if single else 'PyTorch'}"]
    times = interleaved({"own": wall_clock(gradient), "theirs": wall_clock(their_gradient)}, limit_seconds=0.5)
    memory, their_memory = peak_bytes(gradient, A.device), peak_bytes(their_gradient, A.device)
    shape, dtype = "×".join(map(str, A.shape)), dtype_name(A.dtype)
    return [
        "\n".join([name, f"{shape} {dtype}", *_complaints(finite, infos)]),
        *errors,
        f"{1e3 * times['own'].median:.3g} ms\n{_factor(times['theirs'].ratio(times['own']), 'faster', 'slower')}",
        f"{decimal(memory)}\n{_factor(their_memory / memory, 'less', 'more')}",
        served_by(A).replace(", ", "\n"),
    ]


def _factor(ratio: float, above: str, below: str) -> str:
    """How many times, in words for ratios above one and below."""
    return f"{ratio:.2f}× {above}" if ratio >= 1 else f"{1 / ratio:.2f}× {below}"


def _complaints(finite: Tensor, infos: Tensor, shown: int = 3) -> Iterator[str]:
    """One line for each of the first few matrices that are singular or not finite."""
    bad = (~finite | (infos != 0)).nonzero().tolist()
    for index in bad[:shown]:
        place = f"{index}: " if index else ""
        info = int(infos[tuple(index)])
        yield place + (f"singular, U[{info}, {info}] = 0" if finite[tuple(index)] else "not finite")
    if len(bad) > shown:
        yield f"and {len(bad) - shown} more of {infos.numel()}"


def _cast(name: str, A: Tensor, dtype: str | None) -> Tensor:
    target = getattr(torch, dtype) if dtype else A.dtype
    if A.is_complex() and not target.is_complex:
        raise InputError(f"{name} is complex: it has no {dtype}")
    return A.to(target)
