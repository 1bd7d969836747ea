"""What the launchers have in common."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

import torch
from triton import knobs
from triton.compiler import CompiledKernel
from triton.language import constexpr
from triton.runtime import driver


class Strided(NamedTuple):
    """A tensor as kernels take it: the first fields of a `layout.Matrix`, of matrices or of vectors."""

    reals: torch.Tensor
    strides: tuple
    COMPONENTS: constexpr
    BY_COLUMN: constexpr


# By `is_complex` and by whether the entries of a column lie closer together than those of a row. Made once: a constexpr
# takes longer than all the rest of a `Strided`.
_COMPONENTS = constexpr(1), constexpr(2)
_BY_COLUMN = constexpr(False), constexpr(True)


def arguments(shape, *tensors):
    """What kernels take first, for matrices of that shape: each of the tensors, [*batch, ...], as a `Strided`, and then
    m, n and the sizes of `batch_dims`."""
    *batch, m, n = shape
    sizes, strides = batch_dims(batch, *tensors)
    return (*map(_strided, tensors, strides), (m, n, *sizes))


def _strided(x, strides):
    is_complex = x.is_complex()
    reals = torch.view_as_real(x) if is_complex else x
    by_column = len(strides) > 2 and strides[1] < strides[2]
    return Strided(reals, strides, _COMPONENTS[is_complex], _BY_COLUMN[by_column])


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


def run(kernel, programs, args, constants, **options) -> None:
    """Launches `kernel[(programs,)](*args, **constants, **options)` as `launcher` does."""
    launcher(kernel, constants, options)(programs, *args)


def launcher(kernel, constants, options) -> Callable[..., None]:
    """Launches a kernel as `kernel[(programs,)](*args, **constants, **options)`, for args that all compile to the same,
    on the device and stream of the first launch. `args` are `Strided` tensors, of which the first parameter is one,
    numbers and tuples of numbers, `constants` the last parameters of the kernel.

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
        args[0].reals.device,
        *(
            (x.reals.dtype, x.reals.data_ptr() % 16, x.strides, x.COMPONENTS.value, x.BY_COLUMN.value)
            if isinstance(x, Strided)
            else x
            for x in args
        ),
        *constants.items(),
        *options.items(),
    )


def _starter(compiled, kernel, args, constants) -> Callable[..., None]:
    """Starts the compiled kernel for such args, on the current stream.

    Without hooks of launches nothing is prepared for them: that would double the time of a launch.
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
