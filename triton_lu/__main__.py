"""The command line: `python -m triton_lu demo [FILE ...]`, `doctor` and `bench`.

Exit codes: 0, or 1 when a check of `doctor` failed or `bench` met a wrong result of this package, 2 for input that
cannot be used or output that cannot be written, 130 when interrupted.
"""

import sys
from collections.abc import Sequence
from pathlib import Path

import triton_lu
from triton_lu.bench import run as bench
from triton_lu.bench.problems import PROBLEMS, size
from triton_lu.bench.providers import PROVIDERS
from triton_lu.cli import demo, doctor
from triton_lu.command import Parser, add_output, dtype_name, duration, exit_code
from triton_lu.validation import DTYPES


def parser() -> Parser:
    """The commands and their options."""
    result = Parser(prog="python -m triton_lu", description=triton_lu.__doc__)
    result.add_argument("--version", action="version", version=f"triton_lu {triton_lu.__version__}")
    commands = result.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("demo", help="accuracy, time and memory of the gradient for given matrices")
    command.description = "Factors matrices, differentiates, and prints accuracy, time and memory beside PyTorch's own."
    command.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="FILE",
        help="a matrix or a batch of matrices [..., m, n] in .npy, any number of them in .npz or .pt, a matrix in .mtx "
        "or .mtx.gz (Matrix Market), or - for one of these from standard input; without it, well-known matrices",
    )
    command.add_argument("--dtype", choices=list(map(dtype_name, DTYPES)), help="convert the matrices to it")
    command.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    command.set_defaults(run=demo.run)

    command = commands.add_parser("doctor", help="versions, devices, and checks of the results on each of them")
    command.description = "Prints versions and devices, and checks results on every device and dtype in seconds."
    command.set_defaults(run=doctor.run)

    command = commands.add_parser("bench", help="times and memory of the factorization and its derivatives, as a table")
    command.description = (
        "Checks, times and tabulates the factorization and its derivatives beside other libraries. Without options "
        "the quick grid, in single precision, in less than five minutes."
    )
    task = command.add_mutually_exclusive_group()
    task.add_argument("--plot", type=Path, metavar="CSV", help="draw a table's figures, in SVG files beside it")
    task.add_argument("--calibrate", action="store_true", help="measure crossovers and keep them for later plans")
    task.add_argument("--full", action="store_true", help="the large grid: up to 8192×8192, and full batches")
    task.add_argument("--sizes", nargs="+", type=size, help="N, MxN or BATCHxMxN, in place of a grid", metavar="SIZE")
    command.add_argument("--problems", nargs="+", choices=PROBLEMS, help="default: all", metavar="P")
    command.add_argument("--dtypes", nargs="+", choices=list(map(dtype_name, DTYPES)), metavar="DTYPE")
    command.add_argument(
        "--providers",
        nargs="+",
        choices=PROVIDERS,
        metavar="PROVIDER",
        help=f"of {', '.join(PROVIDERS)} (default: triton_lu torch)",
    )
    command.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    command.add_argument("--seconds", type=duration, help="for each problem, about (default: 2)")
    command.add_argument("--graph", action="store_true", default=None, help="on a GPU, time CUDA graphs")
    add_output(command, "bench.csv")
    command.set_defaults(run=bench.run)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""

    def command() -> int:
        args = parser().parse_args(argv)
        return args.run(args)

    return exit_code(command)


if __name__ == "__main__":
    sys.exit(main())
