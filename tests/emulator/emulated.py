"""What the tests of compiled kernels have in common."""

import re

TARGETS = ["sm_80", "sm_90"]
SCHEDULES = ["lockstep", "warps", "warps-reversed"]


def without_barriers(ptx):
    return re.sub(r"^\s*bar\.sync[^;]*;", "", ptx, flags=re.M)


def without_load_masks(ptx):
    return re.sub(r"@!?%p\d+\s+(ld\.global)", r"\1", ptx)


def without_store_masks(ptx):
    return re.sub(r"@!?%p\d+\s+(st\.global)", r"\1", ptx)
