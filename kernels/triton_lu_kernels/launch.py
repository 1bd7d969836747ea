"""What the launchers have in common."""

import torch


def arguments(out, LU, pivots, x, N):
    """The pointers, strides and shape that every kernel of a map takes first, and its constants for a map of x, which
    is the gradient G or the change E, completed to N x N."""
    m, n = out.shape[1:]
    reals = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in (out, LU, x)]
    strides = (out.stride(), LU.stride(), pivots.stride(), x.stride())
    constants = {
        "COMPONENTS": 2 if out.is_complex() else 1,
        "OUT_BY_COLUMN": by_column(out),
        "LU_BY_COLUMN": by_column(LU),
        "IN_BY_COLUMN": by_column(x),
        "RAGGED": (m, n) != (N, N),
    }
    return (reals[0], reals[1], pivots, reals[2], *strides, (m, n)), constants


def by_column(x):
    """Whether the entries of a column lie closer together than those of a row."""
    return x.stride(1) < x.stride(2)
