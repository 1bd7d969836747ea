"""The private names of PyTorch that `triton_lu/autograd_key.py` rests on: if one moves, this says which."""

import pytest
import torch


@pytest.mark.parametrize(
    "name",
    [
        "torch._C._AutoDispatchBelowAutograd",
        "torch._C._after_ADInplaceOrView_keyset",
        "torch._C._any_requires_grad",
        "torch._C._is_cow_tensor",
        "torch._C._is_fwd_grad_enabled",
        "torch._C._is_torch_function_enabled",
        "torch._C._len_torch_dispatch_stack",
        "torch._C._functorch.peek_interpreter_stack",
        "torch._VF._unpack_dual",
        "torch._C._functorch.get_single_level_autograd_function_allowed",
        "torch._C._functorch.set_single_level_autograd_function_allowed",
        "torch.autograd.forward_ad._current_level",
        "torch.autograd.forward_ad._set_fwd_grad_enabled",
        "torch.autograd.function._SingleLevelFunction",
        "torch.autograd.Function._compiled_autograd_key",
        "torch.fx._symbolic_trace.is_fx_symbolic_tracing",
        "torch.ops.aten.linalg_lu_factor_ex.default._dispatch_cache",
    ],
)
def test_private_name_exists(name):
    found = torch
    for part in name.split(".")[1:]:
        assert hasattr(found, part), f"PyTorch {torch.__version__} has no {name}: autograd_key.py must find another way"
        found = getattr(found, part)


def test_forward_over_forward_is_not_lost():
    """PyTorch's own autograd.Function returns zeros here; should it mend this, autograd_key.py could become simpler."""
    from torch.func import jacfwd

    import triton_lu

    A = torch.randn(2, 2, dtype=torch.float64)
    second = jacfwd(jacfwd(lambda A: triton_lu.lu(A, get_infos=True)[0]))(A)
    assert second.abs().max() > 0
