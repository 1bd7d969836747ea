"""What type checkers say about programs that use the package: nothing of a right one, each fault of a wrong one."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RIGHT, WRONG = ROOT / "tests" / "types" / "right.py", ROOT / "tests" / "types" / "wrong.py"
FAULTS = {i for i, line in enumerate(WRONG.read_text().splitlines(), 1) if "  # wrong: " in line}


def complaints(command, cwd):
    """(file, line) of every error that a type checker prints."""
    done = subprocess.run([*command, str(RIGHT), str(WRONG)], cwd=cwd, capture_output=True, text=True)
    found = re.findall(r"^\s*(.*?):(\d+):.*?\berror: ", done.stdout, re.MULTILINE)
    assert found, done.stdout + done.stderr
    return {(Path(cwd, file).name, int(line)) for file, line in found}


def test_mypy(request, monkeypatch):
    monkeypatch.setenv("MYPYPATH", f"{ROOT}:{ROOT / 'kernels'}")
    cache = request.config.cache.mkdir("mypy")  # PyTorch takes half a minute the first time
    options = ("--strict", "--follow-imports=silent", "--config-file=", f"--cache-dir={cache}")
    assert complaints([sys.executable, "-m", "mypy", *options], cache) == {(WRONG.name, line) for line in FAULTS}


@pytest.mark.skipif(shutil.which("pyright") is None, reason="pyright is not installed")
def test_pyright(tmp_path):
    (tmp_path / "pyrightconfig.json").write_text(f'{{"extraPaths": ["{ROOT}", "{ROOT / "kernels"}"]}}')
    command = ["pyright", "--project", str(tmp_path), "--pythonpath", sys.executable]
    assert complaints(command, tmp_path) == {(WRONG.name, line) for line in FAULTS}
