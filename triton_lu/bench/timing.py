"""Time and memory of functions, measured side by side."""

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from math import inf
from pathlib import Path
from statistics import median, quantiles
from tempfile import TemporaryDirectory
from time import perf_counter, sleep
from timeit import Timer

import torch
from torch.profiler import ProfilerActivity, profile

Clock = Callable[[], float]
"""Calls a function, which is warm, some times; returns the seconds per call."""
Clockmaker = Callable[[Callable[[], object]], Clock]

CACHE_BYTES = 2**28  # more than any L2 cache


@dataclass(frozen=True)
class Timing:
    """Seconds per call of one function, one figure for each round."""

    seconds: tuple[float, ...]

    @property
    def median(self) -> float:
        return median(self.seconds)

    def percentile(self, p: int) -> float:
        return quantiles(self.seconds, n=100, method="inclusive")[p - 1]

    def ratio(self, other: "Timing") -> float:
        """The median of this time over the other's of the same round: what slowed both of them cancels."""
        return median(own / others for own, others in zip(self.seconds, other.seconds, strict=True))


def _now() -> float:
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()
    return perf_counter()


def wall_clock(function: Callable[[], object], round_seconds: float = 0.005) -> Clock:
    """Times as many calls at once as fit in `round_seconds`, but at least one."""
    timer = Timer(function, timer=_now)
    timer.timeit(1)  # warm up
    calls = max(1, int(round_seconds / timer.timeit(1)))
    return lambda: timer.timeit(calls) / calls


def event_clock(function: Callable[[], object], *, graph: bool = False, round_seconds: float = 0.01) -> Clock:
    """Times the work on a GPU, each call between events and with an L2 cache flushed before: the median of a round.

    With `graph`, calls are replays of a CUDA graph, which leave out what launches take the host. It is captured on the
    current stream. That must not be the default stream, and it must be the one that `function` was prepared on, because
    autograd runs a backward where it ran the forward.
    """
    function()  # warm up
    if graph:
        torch.cuda.synchronize()
        captured = torch.cuda.CUDAGraph()
        with torch.cuda.graph(captured, stream=torch.cuda.current_stream()):
            function()
        function = captured.replay
    cache = torch.empty(CACHE_BYTES, dtype=torch.int8, device="cuda")

    def clock(calls: int) -> float:
        pairs = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in range(calls)]
        for start, end in pairs:
            cache.zero_()
            start.record()
            function()
            end.record()
        torch.cuda.synchronize()
        return median(start.elapsed_time(end) for start, end in pairs) / 1e3

    clock(1)
    flush_seconds = 1e-4
    return partial(clock, max(1, int(round_seconds / (flush_seconds + clock(1)))))


def settled(clock: Clock, function: Callable[[], object]) -> Clock:
    """The clock of a function after a pause and a call that does not count.

    For libraries that have threads of their own: these spin for a while when they are done, and their caches are cold
    when it is their turn again. Without a pause small problems take up to three times as long beside JAX as alone.
    """

    def after_pause() -> float:
        sleep(0.05)
        function()
        return clock()

    return after_pause


def interleaved(clocks: Mapping[str, Clock], *, rounds: int = 9, limit_seconds: float = inf) -> dict[str, Timing]:
    """Times functions in turn, round by round, so that they see the same machine.

    Args:
        clocks: of the functions, by name.
        rounds: how often each function is timed, in an order that alternates from round to round.
        limit_seconds: no round after the third begins later than this.
    """
    start = perf_counter()
    seconds: dict[str, list[float]] = {name: [] for name in clocks}
    for i in range(rounds):
        if i >= 3 and perf_counter() - start > limit_seconds:
            break
        for name in list(clocks)[:: -1 if i % 2 else 1]:
            seconds[name].append(clocks[name]())
    return {name: Timing(tuple(values)) for name, values in seconds.items()}


def peak_bytes(function: Callable[[], object], device: torch.device | str = "cpu") -> int:
    """The most memory that one call allocates on `device` and holds at once, its result included.

    Exact to the byte as PyTorch's allocators count (those of CUDA in units of 512), the same in every run. Memory that
    libraries take by other ways does not count. The function should not free what was there before: it is subtracted
    on CUDA, and not on a CPU, where the peak is summed up from the profiler's record of allocations.
    """
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        function()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler reports its own progress otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True, acc_events=True) as record:
        result = function()
    del result  # only now: the record is of allocations, and of what is freed before the end
    with TemporaryDirectory() as folder:
        trace = Path(folder, "trace.json")
        record.export_chrome_trace(str(trace))
        events = [event for event in json.loads(trace.read_text())["traceEvents"] if event["name"] == "[memory]"]
    on_cpu = [event for event in events if event["args"]["Device Type"] == 0]
    return max(accumulate(event["args"]["Bytes"] for event in sorted(on_cpu, key=lambda e: e["ts"])), default=0)
