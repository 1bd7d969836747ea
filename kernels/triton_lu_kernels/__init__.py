"""Triton kernels for a differentiable LU: nothing but torch and triton underneath.

The modules from the bottom up: `field` (real and complex arithmetic from one source), `layout` (matrices in memory and
in registers), `launch` (what launchers have in common), `permutation` (pivots to rows), `substitution` and `blocks`
(products and solves with triangles), `fragments` (tiles as tensor cores take them), and modules of kernels together
with their launchers: `factor` and, with `panel`, `factor_blocks`; `warp`, `tile` and `sweep`, the maps by the size of
the matrices; `curvature`; and, from factors, `inverse` and `lu_solve`. Importing the package itself imports none of
them.

Launchers write into tensors that the caller has allocated and validated.
"""
