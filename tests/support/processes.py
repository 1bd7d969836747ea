"""A group of worker processes that run the same function, as `torchrun` would start them."""

import tempfile
import traceback
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
from torch.multiprocessing import get_context

TIMEOUT = 180  # seconds for one function, the start of a process among them


class Processes:
    """`run(function, *args)` calls the function in all `size` processes of a gloo group."""

    def __init__(self, size):
        self.size = size
        self.workers, self.pipes = [], []

    def run(self, function, *args):
        if not self.workers:
            self.start()
        for pipe in self.pipes:
            pipe.send((function, args))
        failures = [pipe.recv() if pipe.poll(2 * TIMEOUT) else "no answer" for pipe in self.pipes]
        if any(failures):
            self.stop()  # what they have exchanged may be out of step
            raise AssertionError("\n".join(f"process {rank}: {failure}" for rank, failure in enumerate(failures)))

    def start(self):
        context = get_context("spawn")
        store = Path(tempfile.mkdtemp()) / "store"
        for rank in range(self.size):
            ours, theirs = context.Pipe()
            worker = context.Process(target=work, args=(rank, self.size, store, theirs), daemon=True)
            worker.start()
            self.workers.append(worker)
            self.pipes.append(ours)

    def stop(self):
        for worker in self.workers:
            worker.terminate()
            worker.join()
        self.workers, self.pipes = [], []


def work(rank, size, store, pipe):
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size, timeout=timedelta(seconds=TIMEOUT)
    )
    while True:
        function, args = pipe.recv()
        torch.manual_seed(0)
        try:
            function(*args)
        except Exception:
            pipe.send(traceback.format_exc())
        else:
            pipe.send(None)
