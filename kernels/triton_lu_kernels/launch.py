"""What the launchers have in common."""

from collections.abc import Callable

import torch
from triton import knobs
from triton.compiler import CompiledKernel
from triton.runtime import driver


def arguments(out, LU, pivots, x, N, *others):
    """The pointers, strides and shape that every kernel of a map takes first, and its constants for a map of x, which
    is the gradient G or the change E, completed to N x N. Pointer and strides of each of the `others` follow."""
    m, n = out.shape[-2:]
    tensors = (out, LU, pivots, x, *others)
    sizes, strides = batch_dims(out.shape[:-2], *tensors)
    reals = [torch.view_as_real(tensor) if tensor.is_complex() else tensor for tensor in tensors]
    constants = {
        "COMPONENTS": 2 if out.is_complex() else 1,
        "OUT_BY_COLUMN": by_column(out),
        "LU_BY_COLUMN": by_column(LU),
        "IN_BY_COLUMN": by_column(x),
        "RAGGED": (m, n) != (N, N),
    }
    arguments_of_others = sum(zip(reals[4:], strides[4:], strict=True), ())
    return (*reals[:4], *strides[:4], (m, n, *sizes), *arguments_of_others), constants


def batch_dims(batch, *tensors):
    """The batch dimensions of tensors as kernels take them, from the innermost on: sizes without the outermost one, and
    of each tensor the strides, those of the batch dimensions in a tuple of their own.

    Dimensions become one where the strides of all tensors allow it. Usually one is left, and there are no sizes.
    """
    ndim = len(batch)
    dims = []
    for size, *steps in reversed([*zip(batch, *(x.stride()[:ndim] for x in tensors), strict=True)]):
        if dims and steps == [dims[-1][0] * step for step in dims[-1][1:]]:
            dims[-1][0] *= size
        elif size != 1:
            dims.append([size, *steps])
    if not dims:  # one matrix: as in a contiguous batch, for which there may be a compiled kernel
        dims = [[1, *(x.shape[ndim:].numel() for x in tensors)]]
    sizes, *strides = zip(*dims, strict=True)
    return sizes[:-1], [(steps, *x.stride()[ndim:]) for steps, x in zip(strides, tensors, strict=True)]


def by_column(x):
    """Whether the entries of a column lie closer together than those of a row."""
    return x.stride(-2) < x.stride(-1)


def launcher(kernel, constants, options) -> Callable[..., None]:
    """Launches a kernel as `kernel[(programs,)](*args, **constants, **options)`, for args that all compile to the same,
    on the device and stream of the first launch.

    Triton looks the compiled kernel up for that one only: with its specialization of every argument it takes 20 µs and
    more, on some hosts more than the kernel. Of the 5 µs that are left half go to what hooks of launches are told: it
    is found out for each launch only where there are such hooks. `constants` are the last parameters of the kernel.
    """
    start = None

    def launch(programs, *args):
        nonlocal start
        if start is not None:
            start(programs, *args)
            return
        launched = kernel[(programs,)](*args, **constants, **options)
        if isinstance(launched, CompiledKernel):  # the interpreter has none
            start = _starter(launched, [constants[name] for name in kernel.arg_names[len(args) :]])

    return launch


def _starter(compiled, constants) -> Callable[..., None]:
    """Starts that kernel again, on the current stream."""
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    if any(getattr(hook, "calls", True) for hook in hooks):
        return lambda programs, *args: compiled[programs, 1, 1](*args, *constants)
    stream = driver.active.get_current_stream(driver.active.get_current_device())
    run, about = compiled.run, (stream, compiled.function, compiled.packed_metadata, None, None, None)
    return lambda programs, *args: run(programs, 1, 1, *about, *args, *constants)


def ceil_div(a, b):
    """a / b, rounded up. On the host, where `triton.cdiv` and its kin take 8 µs."""
    return -(-a // b)


def power_of_two(size):
    """The least one from 2 on that is not below `size`."""
    return max(2, 1 << (size - 1).bit_length())
