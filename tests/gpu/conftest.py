"""On a GPU, with compiled kernels: `TRITON_INTERPRET=0 pytest tests/gpu`. Without one that is an error, not a skip."""

import pytest
import torch

if not torch.cuda.is_available():
    raise pytest.UsageError("tests/gpu needs an NVIDIA GPU, and a PyTorch built for CUDA")
