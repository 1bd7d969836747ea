"""Benchmarks of the factorization's derivatives, beside PyTorch's own."""
