"""What the tests of compiled kernels have in common."""

import re

import torch
import triton

OLD_COMPILER = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 9)
"""Which keeps less in registers: it may spill more than the kernels' choices, made with Triton 3.9, allow for."""
TARGETS = ["sm_80", "sm_90"]
SCHEDULES = ["lockstep", "warps", "warps-reversed"]


def without_barriers(ptx):
    return re.sub(r"^\s*bar\.sync[^;]*;", "", ptx, flags=re.M)


def without_masks(access):
    return lambda ptx: re.sub(rf"@!?%p\d+\s+({access}\.global)", r"\1", ptx)


FAULTS = {
    "without barriers": (without_barriers, "race"),
    "without masks of loads": (without_masks("ld"), "out-of-bounds"),
    "without masks of stores": (without_masks("st"), "race|out-of-bounds|<="),
}
"""To be planted by `edit_ptx`, and what is to be found: by the emulator, or an error above what is accepted."""


def assert_is_factorization(A, results):
    """LAPACK's pivots and infos, and its factors up to rounding."""
    LU, pivots, infos = torch.linalg.lu_factor_ex(A)
    assert torch.equal(results[1], pivots)
    assert torch.equal(results[2], infos)
    scale = LU.abs().amax((-2, -1), keepdim=True)
    assert ((results[0] - LU).abs() <= 1e3 * torch.finfo(A.dtype).eps * scale).all()
