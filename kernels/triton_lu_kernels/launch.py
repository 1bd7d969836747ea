"""What the launchers have in common."""

from collections.abc import Callable, Hashable

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


def run(kernel, programs, args, constants, **options) -> None:
    """Launches `kernel[(programs,)](*args, **constants, **options)` as `launcher` does."""
    launcher(kernel, constants, options)(programs, *args)


def launcher(kernel, constants, options) -> Callable[..., None]:
    """Launches a kernel as `kernel[(programs,)](*args, **constants, **options)`, for args that all compile to the same,
    on the device and stream of the first launch. `args` are tensors, numbers and tuples of numbers, `constants` the
    last parameters of the kernel.

    Triton looks a compiled kernel up by its specialization of every argument, which takes 20 µs and more, on some hosts
    more than the kernel. Here it does so only for arguments unlike all earlier ones in more than their place in memory.
    """
    start = None

    def launch(programs, *args):
        nonlocal start
        if start is None:
            key = _key(kernel, args, constants, options)
            compiled = _compiled.get(key)
            if compiled is None:
                launched = kernel[(programs,)](*args, **constants, **options)
                if isinstance(launched, CompiledKernel):  # the interpreter has none
                    _keep(key, launched)
                    start = _starter(launched, kernel, args, constants)
                return
            start = _starter(compiled, kernel, args, constants)
        start(programs, *args)

    return launch


MOST = 4096  # of the arguments whose kernels are kept, at a kilobyte each
_compiled: dict[Hashable, CompiledKernel] = {}


def _keep(key, compiled) -> None:
    if len(_compiled) == MOST:
        _compiled.clear()
    _compiled[key] = compiled


def _key(kernel, args, constants, options) -> Hashable:
    """Whatever the compiled kernel depends on, and more: the values of numbers."""
    return (
        kernel,
        args[0].device,
        *((x.dtype, x.data_ptr() % 16) if isinstance(x, torch.Tensor) else x for x in args),
        *constants.items(),
        *options.items(),
    )


def _starter(compiled, kernel, args, constants) -> Callable[..., None]:
    """Starts the compiled kernel for such args, on the current stream.

    Of the 5 µs of a launch half would go to what hooks of launches are told: it is found out only if there are hooks.
    """
    in_order = [constants[name] for name in kernel.arg_names[len(args) :]]
    hooks = knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook
    if any(getattr(hook, "calls", True) for hook in hooks):
        return lambda programs, *args: compiled[programs, 1, 1](*args, *in_order)
    stream = driver.active.get_current_stream(driver.active.get_current_device())
    again, about = compiled.run, (stream, compiled.function, compiled.packed_metadata, None, None, None)
    return lambda programs, *args: again(programs, 1, 1, *about, *args, *in_order)


def ceil_div(a, b):
    """a / b, rounded up. On the host, where `triton.cdiv` and its kin take 8 µs."""
    return -(-a // b)


def power_of_two(size):
    """The least one from 2 on that is not below `size`."""
    return max(2, 1 << (size - 1).bit_length())
