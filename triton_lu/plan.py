"""Which algorithm serves which problem: every threshold of the package is here.

Plans are pure functions of shape and dtype and nothing else, so that the same problem always runs the same way.
"""

from dataclasses import dataclass


PANEL = 256  # columns whose rows are permuted at once: the temporary memory of a backward besides its result


@dataclass(frozen=True)
class Sweep:
    """The sweep in ATen operations.

    blocks: widths of the diagonal blocks, from the outer sweep to the innermost; below the last, the closed form.
        Empty: width one with the batch as the last dimension.
    invert: solve with the diagonal blocks by multiplication with their inverses (many right-hand sides), or by
        substitution (few).
    """

    blocks: tuple[int, ...]
    invert: bool


def sweep(batch: int, m: int, n: int) -> Sweep:
    """The sweep of `batch` matrices of m×n."""
    k = min(m, n)
    if batch >= 512 and max(m, n) <= 32:
        return Sweep(blocks=(), invert=False)
    if k <= 32:
        return Sweep(blocks=(k,), invert=False)
    if batch > 1:
        return Sweep(blocks=(16,) if k <= 128 else (32,), invert=False)
    if k <= 128:
        return Sweep(blocks=(64,), invert=False)
    return Sweep(blocks=(64,), invert=True)


def exchange_one_by_one(pivots: int, device: str) -> bool:
    """Whether a permutation follows its exchanges one after the other in Python instead of all in parallel.

    On a CPU the parallel form costs 100 µs of dispatch for 27 operations, the serial one 0.06 µs per exchange.
    """
    return device == "cpu" and 0 < pivots <= 2048
