"""Used wrongly: type checkers complain about every line marked so, and no other. Not run."""

import torch

import triton_lu
from triton_lu import linalg

A, B = torch.randn(3, 8, 8), torch.randn(8, 2)

LU, pivots, infos = triton_lu.lu(A)  # wrong: infos were not asked for
LU, pivots = triton_lu.lu(A, get_infos=True)  # wrong: there are infos
triton_lu.lu([[1.0]])  # wrong: no tensor
triton_lu.lu(A, pivots=False)  # wrong: no such argument
F = linalg.lu_factor(A)
print(F.info)  # wrong: lu_factor_ex has them
linalg.lu_factor(A, False)  # wrong: pivot is named
print(linalg.lu_factor_ex(A).infos)  # wrong: info
linalg.lu_solve(*linalg.lu_factor_ex(A), B)  # wrong: info is no right-hand side
linalg.lu_solve(F, B)  # wrong: LU and pivots are two arguments
P, L = linalg.lu(A)  # wrong: three
triton_lu.backend("cuda")  # wrong: no such backend
triton_lu.permutation(pivots)  # wrong: the number of rows is missing
with triton_lu.override() as override:
    print(override.count)  # wrong: calls
