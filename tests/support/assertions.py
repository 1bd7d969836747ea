"""What tests of the maps assert."""

import torch

from triton_lu import reference


def assert_agrees(out, name, LU, pivots, X):
    """Whether `out` is that map of X, computed in X's dtype on any device."""
    expected = getattr(reference, name)(LU.cpu(), pivots.cpu(), X.cpu())
    assert reference.relative_error(out.cpu(), expected) <= reference.tolerance(X.dtype, max(X.shape[-2:]))


def same_bits(x, y):
    """Equality in which NaN equals NaN."""
    return torch.equal(x.isnan(), y.isnan()) and torch.equal(x.nan_to_num(), y.nan_to_num())
