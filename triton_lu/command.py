"""What commands have in common: those of `python -m triton_lu`, and those of benchmarks/ in a checkout."""

import os
import sys
from argparse import ArgumentParser, Namespace
from collections.abc import Callable
from math import inf
from pathlib import Path
from typing import NoReturn

import torch


class InputError(Exception):
    """What the user gave cannot be used."""


class Parser(ArgumentParser):
    """Complains in one line, without all the options before it."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists all options)\n")


def exit_code(command: Callable[[], int | None]) -> int:
    """Runs a command; its exit code, 2 with one line for input or output that cannot be used, 130 if interrupted."""
    try:
        code = command() or 0
        sys.stdout.flush()  # or a full disk is noticed at the end of Python, which has a traceback for it
        return code
    except InputError as error:
        complaint = " ".join(str(error).split())
    except OSError as error:
        complaint = f"{error.filename}: {error.strerror}" if error.filename else str(error.strerror or error)
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # where the rest goes at the end of Python
    except KeyboardInterrupt:
        return 130
    print("triton_lu: error:", complaint, file=sys.stderr)
    return 2


def dtype_name(dtype: torch.dtype) -> str:
    """As users write it: "float32"."""
    return str(dtype).removeprefix("torch.")


def chosen_device(name: str | None) -> torch.device:
    """The device of that type; without a name CUDA's, if there is one."""
    device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError("there is no CUDA device")
    return device


def duration(text: str) -> float:
    """Reads a number that is not negative."""
    value = float(text)
    if not 0 <= value < inf:
        raise ValueError(text)
    return value


def add_output(parser: ArgumentParser, default: str) -> None:
    """The options that `new_file` reads."""
    parser.add_argument("--output", type=Path, metavar="CSV", help=f"the file to write (default: {default})")
    parser.add_argument("--force", action="store_true", default=None, help="overwrite the file if it exists")
    parser.set_defaults(default_output=Path(default))


def new_file(args: Namespace) -> Path:
    """Where results go, made sure of before any are measured. Nothing is written yet: an old file stays till then."""
    path: Path = args.output or args.default_output
    if not path.parent.is_dir():
        raise InputError(f"{path}: there is no folder {path.parent}")
    if path.is_dir():
        raise InputError(f"{path}: is a folder")
    if path.is_file() and not args.force:
        raise InputError(f"{path} exists: name another file with --output, or overwrite it with --force")
    if not os.access(path if path.exists() else path.parent, os.W_OK):
        raise InputError(f"{path}: cannot be written")
    return path
