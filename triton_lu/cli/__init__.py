"""The commands `demo` and `doctor` of `python -m triton_lu`, and what they have in common."""

from torch import Tensor

from triton_lu import ops, plan


def served_by(A: Tensor) -> str:
    """The implementation that computes the gradient of `lu(A)`, and its plan, in words."""
    m, n = A.shape[-2:]
    kernel = plan.kernel("vjp", m, n, A.dtype)
    if kernel and ops.Vjp.by_kernel(A, on_cuda=A.is_cuda):
        return f"Triton kernel, {type(kernel).__name__.lower()}"
    if block := plan.block_of_products(m, n, A.device.type):
        return f"ATen products, blocks {block}"
    batch = A.shape[:-2].numel()
    if small := plan.in_numpy("vjp", batch, m, n, A.dtype, A.device.type):
        return "NumPy, " + {"block": "one block", "columns": "column by column"}[small]
    return f"ATen sweep, blocks {min(m, n, plan.widths(batch, m, n, A.dtype, A.device.type).block)}"
