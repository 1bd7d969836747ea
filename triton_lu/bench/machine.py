"""What a measurement was made on and with, and what can be measured there."""

import subprocess
from datetime import UTC, datetime
from pathlib import Path

import torch

import triton_lu
from triton_lu.bench.timing import Clockmaker, interleaved
from triton_lu.calibration import device_name, triton_version


def facts(device: torch.device) -> dict[str, str]:
    """Hardware, versions, commit and date: the last columns of every row."""
    return {
        "device": device_name(device),
        "threads": str(torch.get_num_threads()),
        "torch": torch.__version__,
        "triton": triton_version(),
        "cuda": torch.version.cuda or "none",
        "triton_lu": triton_lu.__version__,
        "commit": commit(Path(triton_lu.__file__).parent),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit(folder: Path) -> str:
    """The commit that `folder` is at, "+" added for changes since; "unknown" if its files are under no version control.

    A package that is installed into somebody else's repository is not of that repository.
    """

    def git(*arguments: str) -> str:
        return subprocess.run(["git", "-C", folder, *arguments], capture_output=True, text=True, check=True).stdout

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--exclude=*", "--dirty=+").strip()
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def free_bytes(device: torch.device) -> int | None:
    """Memory that is available, or None if the system does not tell."""
    if device.type == "cuda":
        torch.cuda.empty_cache()  # what PyTorch keeps for itself counts as taken otherwise
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def ceilings(device: torch.device, dtype: torch.dtype, clockmaker: Clockmaker) -> dict[str, float]:
    """The speeds of a copy that no cache holds and of a matrix product: the problems' are fractions of them."""
    on_gpu = device.type == "cuda"
    x = torch.empty((1 << (30 if on_gpu else 27)) // dtype.itemsize, dtype=dtype, device=device).zero_()
    y = torch.empty_like(x)
    n = 8192 if on_gpu else 1024
    A = torch.randn(n, n, dtype=dtype, device=device)
    flops = 2 * n**3 * (4 if dtype.is_complex else 1)
    clocks = {"copy": clockmaker(lambda: y.copy_(x)), "matmul": clockmaker(lambda: A @ A)}
    seconds = {name: timing.median for name, timing in interleaved(clocks, rounds=5).items()}
    return {
        "copy_gb_per_s": 2e-9 * x.nbytes / seconds["copy"],
        "matmul_tflop_per_s": 1e-12 * flops / seconds["matmul"],
    }
