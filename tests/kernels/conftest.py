"""What the tests in Triton's interpreter have in common."""

from dataclasses import replace

import pytest
import triton.language as tl
from triton.runtime import interpreter

from triton_lu import plan


@pytest.fixture(autouse=True, scope="session")
def _less_work_for_the_interpreter():
    """Two thirds of its time go to what comes to nothing.

    It replaces the functions of Triton's language by its own in a launch, and again in every function that the kernel
    calls. And it computes whether sums of integers overflow, for assertions that only `debug` makes.
    """
    patch_lang, run, patched = interpreter._patch_lang, interpreter.GridExecutor.__call__, set()
    builder = interpreter.interpreter_builder

    def patch(function):
        languages = {x.__name__ for x in function.__globals__.values() if x is tl or x is tl.core}
        scope = interpreter._LangPatchScope() if languages <= patched else patch_lang(function)
        patched.update(languages)
        return scope

    def launch(executor, *args, **kwargs):
        patched.clear()  # what a launch replaces it restores
        return run(executor, *args, **kwargs)

    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(interpreter, "_patch_lang", patch)
        monkeypatch.setattr(interpreter.GridExecutor, "__call__", launch)
        monkeypatch.setattr(builder, "options", replace(builder.options, sanitize_overflow=False))
        yield


@pytest.fixture
def small_sweep(monkeypatch):
    """vjp and jvp by the sweep regime, in blocks of 16: of a small matrix, for the interpreter takes its time."""
    chosen = plan.Sweep(block=16, terms=16, pieces=2, split=True, num_warps=1)
    monkeypatch.setattr(plan, "kernel", lambda name, *_: chosen if name in ("vjp", "jvp") else None)
