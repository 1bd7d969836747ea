"""Crossovers measured on this machine, which plans prefer to their own: one small file in the user's cache directory.

`python -m triton_lu bench --calibrate` writes the file; a process reads it once, when the first plan asks. It holds for
every machine, named with its versions, whole numbers by name:

    block DTYPE single|batch K      width of the blocks in ATen's sweep for min(m, n) in (K/2, K], K a power of two
    kernel vjp|jvp|factor DTYPE     largest max(m, n) for which the kernel is faster than ATen
"""

import json
import logging
import os
import platform
import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import triton_lu

LARGEST = 1 << 15

_log = logging.getLogger(__name__)

_DTYPE = "(float32|float64|complex64|complex128)"
_NAME = re.compile(rf"block {_DTYPE} (single|batch) [1-9]\d*|kernel (vjp|jvp|factor) {_DTYPE}")


def block(dtype: torch.dtype, batch: int, k: int) -> str:
    """The name of the width of the sweep's blocks."""
    return f"block {str(dtype)[6:]} {'single' if batch == 1 else 'batch'} {1 << (k - 1).bit_length()}"


def kernel(name: str, dtype: torch.dtype) -> str:
    """The name of the largest size of a kernel."""
    return f"kernel {name} {str(dtype)[6:]}"


def value(device: torch.device, name: str, default: int) -> int:
    """What was measured on a device like this one, or the default."""
    return _values(device).get(name, default)


@cache
def _values(device: torch.device) -> dict[str, int]:
    return machines.get(machine(device), {}) if (machines := _read_once()) else {}


@cache
def _read_once() -> dict[str, dict[str, int]]:
    return read()


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
    """ "none" where Triton is not installed."""
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
    if written_by != triton_lu.__version__:
        raise ValueError(f"written by triton_lu {written_by}, this is {triton_lu.__version__}")
    for values in machines.values():
        if not isinstance(values, dict):
            raise ValueError(f"expected an object for every machine; got {values!r:.40}")
        for name, number in values.items():
            if not _NAME.fullmatch(name):
                raise ValueError(f"unknown name {name!r:.40}")
            if type(number) is not int or not 0 <= number <= LARGEST:
                raise ValueError(f"{name}: expected an integer from 0 to {LARGEST}; got {number!r:.40}")
    return machines


def write(device: torch.device, values: dict[str, int]) -> None:
    """Saves what was measured on this device, and keeps what the file has of other machines."""
    machines = {**read(), machine(device): values}
    content = {"triton_lu": triton_lu.__version__, "machines": machines}
    _validated(content)
    file = path()
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = file.with_suffix(f".{os.getpid()}")
    temporary.write_text(json.dumps(content, indent=1, sort_keys=True) + "\n")
    temporary.replace(file)  # at once: another process never reads half of it
    _read_once.cache_clear()
    _values.cache_clear()
