"""The whole API, used rightly: type checkers have nothing to say. Not run."""

from collections import Counter
from typing import assert_type

import torch
from torch import Tensor

import triton_lu
from triton_lu import linalg

A, B = torch.randn(3, 8, 8), torch.randn(8, 2)
flag = bool(A.numel())

LU, pivots = triton_lu.lu(A)
LU, pivots, infos = triton_lu.lu(A, get_infos=True)
LU, pivots, infos = triton_lu.lu(A, False, True)
assert_type(triton_lu.lu(A, pivot=flag), tuple[Tensor, Tensor])
assert_type(triton_lu.lu(A, get_infos=flag), tuple[Tensor, ...])
P, L, U = triton_lu.lu_unpack(LU, pivots)
assert_type(triton_lu.lu_unpack(LU, pivots).L, Tensor)
assert_type(triton_lu.permutation(pivots, 8), Tensor)

F = linalg.lu_factor(A, pivot=False)
assert_type(F.LU, Tensor)
assert_type(F.pivots, Tensor)
assert_type(linalg.lu_solve(*F, B), Tensor)
assert_type(linalg.lu_solve(F.LU, F.pivots, B, left=False, adjoint=True, out=torch.empty(0)), Tensor)
LU, pivots = linalg.lu_factor(A, out=(torch.empty(0), torch.empty(0, dtype=torch.int32)))
LU, pivots, info = linalg.lu_factor_ex(A, check_errors=True)
assert_type(linalg.lu_factor_ex(A).info, Tensor)
P, L, U = linalg.lu(A)
assert_type(linalg.lu(A).P, Tensor)

assert_type(linalg.slogdet(A).logabsdet, Tensor)
assert_type(linalg.det(A), Tensor)
assert_type(linalg.logdet(A), Tensor)
assert_type(linalg.solve(A, B, left=flag), Tensor)
assert_type(linalg.solve_ex(A, B, check_errors=flag).result, Tensor)
assert_type(linalg.inv(A), Tensor)
assert_type(linalg.inv_ex(A).inverse, Tensor)

with triton_lu.backend("aten"):
    pass


@triton_lu.backend("triton")
@triton_lu.override()
def trace(A: Tensor) -> Tensor:
    with triton_lu.override():
        return triton_lu.lu(A)[0].diagonal().sum()


assert_type(trace(A), Tensor)
with triton_lu.override() as override:
    pass
assert_type(override.calls, Counter[str])

triton_lu.install()
triton_lu.uninstall()
