"""Why the warps of some kernels wait, and what instruction caches miss, as Nsight Compute counts: its `ncu`.

`ncu ... python -m benchmarks.gpu.counters` profiles one launch of each kernel in CASES.
"""

import csv
import os
import re
import shutil
import subprocess
import sys
from glob import glob
from pathlib import Path

import torch

from benchmarks.gpu.lab import Lab, launches
from benchmarks.gpu.table import Row
from benchmarks.times import ELEMENTS, Case, cases
from triton_lu.bench.problems import Size
from triton_lu.command import dtype_name

WANTED = r"(gpu__time_duration|smsp__average_warps_issue_stalled_\w+_per_issue_active|sm__icc_requests\w*|"
WANTED += r"gcc__cache_requests_type_instruction\w*)"
ROOT = Path(__file__).parents[2]
OPTIONS = ["--csv", "--page", "raw", "--print-units", "base", "--profile-from-start", "off", "--clock-control", "none"]
OPTIONS += ["--target-processes", "all", "--section", "WarpStateStats"]


def profiled_cases(*, dry: bool) -> list[Case]:
    """Of every regime of one launch: small and large programs, real and complex."""
    asked = [("factor", 32, torch.float32), ("factor", 64, torch.float32), ("vjp", 16, torch.float32)]
    asked += [("vjp", 32, torch.complex64), ("vjp", 64, torch.float32), ("vjp", 128, torch.float32)]
    if dry:
        asked = [("vjp", 4, torch.float32)]
    elements = 32 if dry else ELEMENTS
    return [
        case
        for name, n, dtype in asked
        for case in cases([name], [Size(1, n, n)], [dtype], others=False, elements=elements)
    ]


def find() -> str | None:
    """The program, on the path or where CUDA has it."""
    folders = sorted(glob("/usr/local/cuda*/bin"), reverse=True)
    return shutil.which("ncu", path=os.pathsep.join([os.environ.get("PATH", os.defpath), *folders]))


def count(ncu: str, dry: bool, seconds: float) -> list[Row]:
    """A row for each kernel and metric. ChildProcessError for what ncu complains of."""
    environment = {**os.environ, "TRITON_INTERPRET": str(int(dry))}
    program = [sys.executable, "-m", "benchmarks.gpu.counters", *(["--dry-run"] if dry else [])]
    try:
        listed = subprocess.run([ncu, "--query-metrics"], capture_output=True, text=True, timeout=seconds / 2).stdout
        command = [ncu, *OPTIONS, *metrics(listed), *program]
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, cwd=ROOT, env=environment)
    except subprocess.TimeoutExpired as error:
        raise TimeoutError(str(error)) from error
    found = [(case, row) for case, row in zip(profiled_cases(dry=dry), parsed(done.stdout), strict=False)]
    if not found:
        complaints = [line for line in (done.stdout + done.stderr).splitlines() if "ERR" in line or "rror" in line]
        raise ChildProcessError(" ".join(complaints[:3]) or f"ncu counted nothing, exit code {done.returncode}")
    return [
        {**about(case), "metric": metric, "value": value, "status": "ok"}
        for case, row in found
        for metric, value in row.items()
    ]


def about(case: Case) -> Row:
    name, (batch, m, n), dtype, chosen = case
    return {"kernel": name, "batch": batch, "m": m, "n": n, "dtype": dtype_name(dtype), "plan": repr(chosen)}


def metrics(listed: str) -> list[str]:
    """The option for those that this GPU has, of what ncu lists: names, and whether they are counters or ratios."""
    found = re.findall(rf"^{WANTED}\s+(Counter|Ratio)\b", listed, flags=re.MULTILINE)
    names = [f"{name}.{'sum' if kind == 'Counter' else 'ratio'}" for name, kind in found if "not_issued" not in name]
    return ["--metrics", ",".join(names)] if names else []


def parsed(output: str) -> list[dict[str, float]]:
    """The metrics of every launch, in their order: of a table in CSV, after other lines, with units below its head."""
    lines = output.splitlines()
    start = next((i for i, line in enumerate(lines) if line.startswith('"ID"')), len(lines))
    rows = list(csv.DictReader(lines[start:]))[1:]
    return [
        {name: float(text.replace(",", "")) for name, text in row.items() if re.match(WANTED, name) and _number(text)}
        for row in rows
        if row["ID"].isdigit()
    ]


def _number(text: str) -> bool:
    return re.fullmatch(r"[-+\d.,]+(e[-+]?\d+)?", text or "") is not None


if __name__ == "__main__":
    dry = "--dry-run" in sys.argv
    launches(Lab(dry), profiled_cases(dry=dry))
