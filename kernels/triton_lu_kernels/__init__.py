"""Triton kernels for a differentiable LU: nothing but torch and triton underneath.

The modules from the bottom up: `field` (real and complex arithmetic from one source), `layout` (strides, masked tiles,
tiles as tuples of columns), `permutation` (pivots to rows), and modules of kernels together with their launchers:
`factor`, one for each regime of sizes of the maps, and `curvature`. Importing the package itself imports none of them.

Launchers write into tensors that the caller has allocated and validated.
"""
