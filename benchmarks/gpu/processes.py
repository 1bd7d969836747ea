"""The processes beside the one that decides: one that measures, and many that compile."""

import multiprocessing
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection
from multiprocessing.pool import AsyncResult
from typing import Any, Protocol
from unittest.mock import patch

from benchmarks.times import Case, precompile

SPAWN = multiprocessing.get_context("spawn")
START_SECONDS = 180


class Healthy(Protocol):
    """What a process that measures has at hand, and whether it can go on."""

    def is_healthy(self) -> bool: ...


class RowError(Exception):
    """What a row gets instead of numbers."""


class Worker:
    """Calls functions in a process of its own, which is replaced where one ends it, hangs, or spoils its CUDA context.

    Args:
        setup: gives what all functions take first, in that process.
        arguments: of it.
        environment: variables that the process has beside ours.
    """

    def __init__(self, setup: Callable[..., Healthy], *arguments: Any, environment: Mapping[str, str] | None = None):
        self._setup, self._environment = (setup, arguments), environment or {}
        self._process: Any = None

    def run(self, function: Callable[..., Any], *arguments: Any, seconds: float) -> Any:
        """function(setup's, *arguments). Raises TimeoutError, and RowError for whatever it raises, or if it crashes."""
        if self._process is None:
            self._start()
        self._pipe.send((function, arguments))
        try:
            result, complaint, healthy = self._answer(seconds)
        except (TimeoutError, RowError):
            self.stop()
            raise
        if not healthy:
            self.stop()
        if complaint is not None:
            raise RowError(complaint)
        return result

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.join()
            self._process = None

    def _start(self) -> None:
        self._pipe, theirs = SPAWN.Pipe()
        with patch.dict(os.environ, self._environment):
            self._process = SPAWN.Process(target=_work, args=(theirs, *self._setup), daemon=True)
            self._process.start()
        theirs.close()
        try:
            _, complaint, _ = self._answer(START_SECONDS)
        except (TimeoutError, RowError) as error:
            complaint = str(error)
        if complaint is not None:
            self.stop()
            raise RuntimeError(f"no process can measure: {complaint}")

    def _answer(self, seconds: float) -> tuple[Any, str | None, bool]:
        if not self._pipe.poll(max(0.0, seconds)):
            raise TimeoutError(f"no answer in {seconds:.0f} s")
        try:
            return self._pipe.recv()
        except (EOFError, ConnectionResetError):
            self._process.join()
            raise RowError(f"the process ended with exit code {self._process.exitcode}") from None


def _work(pipe: Connection, setup: Callable[..., Healthy], arguments: Sequence[Any]) -> None:
    at_hand, complaint = _called(setup, *arguments)
    pipe.send((None, complaint, True))
    with suppress(EOFError):  # nobody is there any more
        while True:
            function, arguments = pipe.recv()
            result, complaint = _called(function, at_hand, *arguments)
            pipe.send((result, complaint, at_hand.is_healthy()))


def _called(function: Callable[..., Any], *arguments: Any) -> tuple[Any, str | None]:
    try:
        return function(*arguments), None
    except Exception as error:  # whatever it is, other rows are to be measured
        return None, " ".join(str(error).split())[:300] or type(error).__name__


class Compiler:
    """Compiles kernels for `target`, `most` of them, in so many processes, in the order in which they are asked for."""

    def __init__(self, target: str, processes: int, most: int | None = None):
        # The host's time is part of what is measured meanwhile: whoever measures goes first.
        self._pool = SPAWN.Pool(processes, os.nice, (10,))
        self._target, self._most = target, most
        self._jobs: dict[Case, AsyncResult[None]] = {}

    def add(self, cases: Iterable[Case]) -> None:
        for case in cases:
            if case not in self._jobs and len(self._jobs) != self._most:
                self._jobs[case] = self._pool.apply_async(precompile, (case, self._target))

    def has(self, cases: Iterable[Case]) -> bool:
        """Whether these have been compiled, or have failed to."""
        return all(self._jobs[case].ready() for case in cases if case in self._jobs)

    def stop(self) -> None:
        self._pool.terminate()
