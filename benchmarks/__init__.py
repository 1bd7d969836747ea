"""What the kernels cost, and the results of all measurements."""
