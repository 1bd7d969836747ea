"""`python -m triton_lu bench`: the factorization and its derivatives, measured beside other libraries."""
