"""Which algorithm serves which problem: every threshold of the package is here.

Plans are pure functions of shape and dtype and nothing else, so that the same problem always runs the same way.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Sweep:
    """The blocked sweep in ATen operations.

    blocks: widths of the diagonal blocks, from the outer sweep to the innermost; below the last, the closed form.
    invert: solve with the diagonal blocks by multiplication with their inverses (many right-hand sides), or by
        substitution (few).
    """

    blocks: tuple[int, ...]
    invert: bool


def sweep(batch: int, m: int, n: int) -> Sweep:
    """The sweep of `batch` matrices of m×n."""
    k = min(m, n)
    if batch > 1:
        return Sweep(blocks=(k if k <= 16 else 16,), invert=False)
    if k <= 64:
        return Sweep(blocks=(max(k, 1),), invert=False)
    return Sweep(blocks=(64,), invert=True)
