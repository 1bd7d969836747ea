"""The command line: `python -m triton_lu demo [FILE]` and `python -m triton_lu doctor`.

Exit codes: 0, or 1 when a check of `doctor` failed, 2 for input that cannot be used, 130 when interrupted.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import triton_lu
from triton_lu.api import DTYPES
from triton_lu.cli import demo, doctor, dtype_name
from triton_lu.cli.matrixfile import InputError


def parser() -> argparse.ArgumentParser:
    """The commands and their options."""
    result = argparse.ArgumentParser(prog="python -m triton_lu", description=triton_lu.__doc__)
    result.add_argument("--version", action="version", version=f"triton_lu {triton_lu.__version__}")
    commands = result.add_subparsers(title="commands", metavar="COMMAND", required=True)

    command = commands.add_parser("demo", help="accuracy, time and memory of the gradient for given matrices")
    command.description = "Factors matrices, differentiates, and prints accuracy, time and memory beside PyTorch's own."
    command.add_argument(
        "file",
        nargs="?",
        type=Path,
        help="a matrix or a batch of matrices [..., m, n] in .npy, any number of them in .npz, or a matrix in .mtx "
        "(Matrix Market); without it, well-known matrices",
    )
    command.add_argument("--dtype", choices=list(map(dtype_name, DTYPES)), help="convert the matrices to it")
    command.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    command.set_defaults(run=demo.run)

    command = commands.add_parser("doctor", help="versions, devices, and checks of the results on each of them")
    command.description = "Prints versions and devices, and checks results on every device and dtype in seconds."
    command.set_defaults(run=doctor.run)
    return result


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except InputError as error:
        print("triton_lu: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        return 130


if __name__ == "__main__":
    sys.exit(main())
