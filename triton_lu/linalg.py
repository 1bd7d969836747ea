"""`lu_factor`, `lu_factor_ex` and `lu` with the signatures and results of their namesakes in `torch.linalg`."""

from torch import Tensor
from torch.return_types import linalg_lu, linalg_lu_factor, linalg_lu_factor_ex  # type: ignore[attr-defined]

from triton_lu import ops
from triton_lu.api import _factor, lu_unpack


def lu_factor(A: Tensor, *, pivot: bool = True) -> linalg_lu_factor:
    """(LU, pivots): `triton_lu.lu(A, pivot)`, which see, with the named tuple of `torch.linalg.lu_factor`.

    Raises `torch.linalg.LinAlgError` when a pivot is exactly zero.
    """
    LU, pivots, infos = _factor("linalg.lu_factor", A, pivot)
    ops.check(infos, "linalg.lu_factor")
    return linalg_lu_factor((LU, pivots))


def lu_factor_ex(A: Tensor, *, pivot: bool = True, check_errors: bool = False) -> linalg_lu_factor_ex:
    """(LU, pivots, info): as `torch.linalg.lu_factor_ex`; see `triton_lu.lu` for shapes, layout and derivatives.

    Raises `torch.linalg.LinAlgError` for a zero pivot only with check_errors, and synchronizes the device only then.
    """
    LU, pivots, infos = _factor("linalg.lu_factor_ex", A, pivot)
    if check_errors:
        ops.check(infos, "linalg.lu_factor_ex")
    return linalg_lu_factor_ex((LU, pivots, infos))


def lu(A: Tensor, *, pivot: bool = True) -> linalg_lu:
    """(P, L, U) with A = P L U: as `torch.linalg.lu`.

    P [..., m, m] (empty without pivot), L [..., m, k] and U [..., k, n] with k = min(m, n). L and U are differentiable
    with respect to A, to every order. A singular A raises nothing, as in torch.linalg.
    """
    LU, pivots, _ = _factor("linalg.lu", A, pivot)
    P, L, U = lu_unpack(LU, pivots, unpack_pivots=pivot)
    return linalg_lu((P, L, U))
