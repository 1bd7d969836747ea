"""Measured crossovers, which plans prefer to their own: of this machine, in one small file in the user's cache
directory, or else of GPUs of its name, in a file that the package may ship; so far it ships none.

`python -m triton_lu bench --calibrate` writes the user's file; a process reads it once, when the first plan asks. For
every machine, identified by device and versions, it holds integers by name:

    block DTYPE single|batch K              width of the blocks in ATen's sweep for min(m, n) in (K/2, K], K a power
                                            of two
    kernel factor|vjp|jvp|curvature DTYPE   largest max(m, n) for which the kernel is faster than ATen, for batches
    kernel factor DTYPE single              the same for one matrix

The files of the package, calibrations/GPU.json, hold the numbers of a GPU, for every version of PyTorch and Triton.
"""

import json
import logging
import os
import platform
import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path

import torch

from triton_lu._version import __version__

KERNELS = ("factor", "vjp", "jvp", "curvature")
LARGEST = 1 << 15
SHIPPED = files("triton_lu") / "calibrations"

_log = logging.getLogger(__name__)

_DTYPE = "(float32|float64|complex64|complex128)"
_NAME = re.compile(
    rf"block {_DTYPE} (single|batch) [1-9]\d*|kernel ({'|'.join(KERNELS)}) {_DTYPE}|kernel factor {_DTYPE} single"
)


def block(dtype: torch.dtype, batch: int, k: int) -> str:
    """The name of the width of the sweep's blocks."""
    return f"block {str(dtype)[6:]} {'single' if batch == 1 else 'batch'} {1 << (k - 1).bit_length()}"


def kernel(name: str, dtype: torch.dtype, *, single: bool) -> str:
    """The name of the largest size of a kernel, for one matrix alone or for batches."""
    return f"kernel {name} {str(dtype)[6:]}{' single' if single else ''}"


def value(device: torch.device, name: str, default: int) -> int:
    """What was measured on a device like this one, or the default."""
    return _values(device).get(name, default)


@cache
def _values(device: torch.device) -> dict[str, int]:
    machines = _read_once()
    own = machines.get(machine(device)) if machines else None
    return _shipped(device) if own is None and device.type == "cuda" and torch.cuda.is_available() else own or {}


@cache
def _read_once() -> dict[str, dict[str, int]]:
    return read()


def _shipped(device: torch.device) -> dict[str, int]:
    try:
        content = (SHIPPED / f"{slug(device_name(device))}.json").read_text()
    except OSError:
        return {}
    return _validated_numbers(json.loads(content))


def slug(device: str) -> str:
    """What files about a device of that name are called."""
    return re.sub("[^a-z0-9]+", "-", device.lower())


def path() -> Path:
    """Where the file is, by the conventions of the platform."""
    if sys.platform == "win32":
        folder, default = os.environ.get("LOCALAPPDATA", ""), "AppData/Local"
    elif sys.platform == "darwin":
        folder, default = "", "Library/Caches"
    else:
        folder, default = os.environ.get("XDG_CACHE_HOME", ""), ".cache"
    base = Path(folder) if os.path.isabs(folder) else Path.home() / default
    return base / "triton_lu" / "calibration.json"


def device_name(device: torch.device) -> str:
    """The name of that GPU, or of the CPU."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, "") or platform.machine()


def triton_version() -> str:
    """Triton's version; "none" where it is not installed."""
    try:
        return version("triton")
    except PackageNotFoundError:
        return "none"


def machine(device: torch.device) -> str:
    """What measurements are valid for: device and versions, on a CPU with its number of threads."""
    with_what = f"triton {triton_version()}" if device.type == "cuda" else f"{torch.get_num_threads()} threads"
    return f"{device_name(device)}, {with_what}, torch {torch.__version__}"


def read() -> dict[str, dict[str, int]]:
    """Values by machine. Empty without a file, or where it is malformed or of another version.

    The log says so, not a warning: plans ask inside of backwards, where one that is made an error would end them.
    """
    try:
        return _validated(json.loads(path().read_text()))
    except (ValueError, RecursionError) as error:
        _log.warning("triton_lu ignores %s: %s. To renew it: python -m triton_lu bench --calibrate", path(), error)
    except (OSError, RuntimeError):  # no file, or no home to look for it
        pass
    return {}


def _validated(content: object) -> dict[str, dict[str, int]]:
    match content:
        case {"triton_lu": str(written_by), "machines": dict(machines), **others} if not others:
            pass
        case _:
            raise ValueError("expected an object with the members triton_lu and machines")
    if written_by != __version__:
        raise ValueError(f"written by triton_lu {written_by}, this is {__version__}")
    return {name: _validated_numbers(values) for name, values in machines.items()}


def _validated_numbers(values: object) -> dict[str, int]:
    if not isinstance(values, dict):
        raise ValueError(f"expected an object for every machine; got {values!r:.40}")
    for name, number in values.items():
        if not _NAME.fullmatch(name):
            raise ValueError(f"unknown name {name!r:.40}")
        if type(number) is not int or not 0 <= number <= LARGEST:
            raise ValueError(f"{name}: expected an integer from 0 to {LARGEST}; got {number!r:.40}")
    return values


def write(device: torch.device, values: dict[str, int]) -> None:
    """Saves what was measured on this device, and keeps what the file has of other machines."""
    machines = {**read(), machine(device): values}
    content = {"triton_lu": __version__, "machines": machines}
    _validated(content)
    _write(path(), content)


def write_shipped(file: Path, values: dict[str, int]) -> None:
    """A file such as come with the package."""
    _write(file, _validated_numbers(values))


def _write(file: Path, content: object) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    temporary.replace(file)  # at once: another process never reads half of it
    _read_once.cache_clear()
    _values.cache_clear()
