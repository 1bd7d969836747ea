"""All that is to be measured on a GPU that is at hand for minutes: `python -m benchmarks.gpu`.

Stages in the order of their value have a share of the time each, and what has not fitted gets what is left at the end:

    checks        every kernel's results, by regime and dtype; later `tests/gpu`
    steps         factorization and derivatives beside PyTorch, between events and as CUDA graphs
    kernels       each planned kernel alone, beside a copy
    host          how long the calls of operators take the host
    choices       kernels in other configurations than the plan's, the closest first
    counters      why warps wait, and what the instruction caches miss (if Nsight Compute is there and permitted)
    tests
    calibration   crossovers between kernels and ATen, also in the form in which the package ships them

Kernels are compiled in as many processes as there are cores, while the GPU measures what is ready. A process of its own
measures, one row at a time: what crashes or hangs there becomes a status. Rows are written as they come. A later run,
of the same code with the same versions on such a GPU, goes on where this one ended.
"""
