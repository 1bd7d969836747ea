"""Errors of gradients beside PyTorch's: `python -m benchmarks.accuracy`.

For every class of regular matrices of `tests/support/matrices.py` the relative error, in the Frobenius norm, of the
backward of LU. Both providers start from the same LU; single precision is judged by the formula in double precision,
double precision by the formula in NumPy's extended precision. Of a batch the worst counts. For the ratio PyTorch's
error is at least the unit roundoff, which storing an exact result may cost. Takes five minutes.
"""

import csv
import sys
from collections.abc import Iterator

import numpy as np
import torch
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

import triton_lu
from tests.support.matrices import REGULAR, ZOO
from triton_lu import reference
from triton_lu.bench import machine
from triton_lu.command import Parser, add_output, dtype_name, exit_code, new_file

SINGLE, DOUBLE = (torch.float32, torch.complex64), (torch.float64, torch.complex128)
SIZES = {1: (4, 16, 64, 150, 256, 512, 1024, 2048), 8: (4, 16, 64, 128, 150, 256), 600: (4, 8)}
"""n by the size of the batch: both decide how the sweep runs."""
LARGEST_IN_EXTENDED_PRECISION = 256
EXCESS = 3.0
"""Ratios to PyTorch's error above this are listed."""


def problems() -> Iterator[tuple[str, int, int, torch.dtype]]:
    """(class, batch, n, dtype)."""
    for dtype in SINGLE + DOUBLE:
        for batch, sizes in SIZES.items():
            for n in sizes:
                if dtype in SINGLE or (batch == 1 and n <= LARGEST_IN_EXTENDED_PRECISION):
                    yield from ((name, batch, n, dtype) for name in REGULAR)


def measure(name: str, batch: int, n: int, dtype: torch.dtype) -> dict[str, object] | None:
    """A row of the table; None if the gradient overflows."""
    A = torch.stack([ZOO[name].make(n, n, dtype, seed) for seed in range(batch)])
    A = (A if batch > 1 else A[0]).requires_grad_()
    G = torch.randn(A.shape, dtype=dtype, generator=torch.Generator().manual_seed(1))
    result = torch.linalg.lu_factor_ex(A)
    LU, pivots = result.LU.detach(), result.pivots
    exact = extended_gradient(LU, pivots, G) if dtype in DOUBLE else reference.vjp(LU, pivots, G).numpy()
    gradients = {
        "triton_lu": torch.ops.triton_lu.vjp(LU, pivots, G).numpy(),
        "torch": torch.autograd.grad(result.LU, A, G)[0].numpy(),
    }
    if not all(np.isfinite(x).all() for x in (exact, *gradients.values())):
        return None
    errors = {
        provider: float((np.linalg.norm(x - exact, axis=(-2, -1)) / np.linalg.norm(exact, axis=(-2, -1))).max())
        for provider, x in gradients.items()
    }
    return {
        "matrices": name,
        "batch": batch,
        "n": n,
        "dtype": dtype_name(dtype),
        **{f"{provider}_error": f"{error:.2e}" for provider, error in errors.items()},
        "ratio": round(errors["triton_lu"] / max(errors["torch"], torch.finfo(dtype).eps / 2), 2),
    }


def extended_gradient(LU: Tensor, pivots: Tensor, G: Tensor) -> np.ndarray:
    """P L⁻ᴴ (tril(Lᴴ G, -1) + triu(G Uᴴ)) U⁻ᴴ of one square matrix in extended precision."""
    wide = np.clongdouble if LU.is_complex() else np.longdouble
    B, W = LU.numpy().astype(wide), G.numpy().astype(wide)
    n = len(B)
    LH, UH = (np.tril(B, -1) + np.eye(n)).conj().T, np.triu(B).conj().T
    X = np.tril(LH @ W, -1) + np.triu(W @ UH)
    for i in reversed(range(n)):
        X[i] -= LH[i, i + 1 :] @ X[i + 1 :]
    for j in reversed(range(n)):
        X[:, j] = (X[:, j] - X[:, j + 1 :] @ UH[j + 1 :, j]) / UH[j, j]
    result = np.empty_like(X)
    result[triton_lu.permutation(pivots, n).numpy()] = X
    return result


def show(rows: list[dict[str, object]]) -> None:
    """A line for each dtype and size, a column for each class; then the ratios in excess."""
    console = Console(highlight=False, width=max(Console().width, 120))
    table = Table(title="error of the gradient / error of PyTorch's")
    for column in ("dtype", "batch", "n", *REGULAR):
        table.add_column(column.replace("_", "\n"), justify="right")
    lines: dict[tuple[str, ...], dict[object, str]] = {}
    for row in rows:
        ratios = lines.setdefault(tuple(str(row[key]) for key in ("dtype", "batch", "n")), {})
        ratios[row["matrices"]] = f"{row['ratio']:.2g}"
    for problem, ratios in lines.items():
        table.add_row(*problem, *(ratios.get(name, "–") for name in REGULAR))
    console.print(table)
    for row in rows:
        if float(str(row["ratio"])) > EXCESS:
            console.print(f"above {EXCESS}:", *row.values())


def main() -> None:
    parser = Parser(prog="python -m benchmarks.accuracy", description=__doc__)
    add_output(parser, "accuracy.csv")
    output = new_file(parser.parse_args())
    rows = [row for problem in track(list(problems()), description="accuracy") if (row := measure(*problem))]
    show(rows)
    about = machine.facts(torch.device("cpu"))
    with output.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[*rows[0], *about])
        writer.writeheader()
        writer.writerows({**row, **about} for row in rows)


if __name__ == "__main__":
    sys.exit(exit_code(main))
