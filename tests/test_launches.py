"""The tests in `tests/launch`, of launches of compiled kernels: in a process where Triton compiles."""

import os
import subprocess
import sys
from pathlib import Path


def test_launches():
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/launch"]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    run = subprocess.run(command, cwd=Path(__file__).parent.parent, env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout + run.stderr
