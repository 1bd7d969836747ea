"""Triton kernels for a differentiable LU: nothing but torch and triton underneath.

The modules from the bottom up: `field` (real and complex arithmetic from one source), `layout` (strides, masked tiles,
tiles as tuples of columns), `permutation` (pivots to rows), and one module per regime of sizes, besides `curvature`,
that holds its kernels together with their launchers. Importing the package itself imports none of them.

Launchers write into tensors that the caller has allocated and validated.
"""
