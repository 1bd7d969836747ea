"""What the tests in Triton's interpreter have in common."""

import pytest

from triton_lu import plan


@pytest.fixture
def small_sweep(monkeypatch):
    """vjp and jvp by the sweep regime, in blocks of 16: of a small matrix, for the interpreter takes its time."""
    chosen = plan.Sweep(block=16, terms=16, pieces=2, split=True, num_warps=1)
    monkeypatch.setattr(plan, "kernel", lambda name, *_: chosen if name in ("vjp", "jvp") else None)
