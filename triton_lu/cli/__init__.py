"""The commands of `python -m triton_lu`."""

import torch


def dtype_name(dtype: torch.dtype) -> str:
    """As users write it: "float32"."""
    return str(dtype).removeprefix("torch.")
