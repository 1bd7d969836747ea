"""What the launchers have in common."""

from collections.abc import Callable
from contextvars import ContextVar
from typing import Any, NamedTuple

import torch
from torch.utils._python_dispatch import TorchDispatchMode
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


def ceil_div(a, b):
    """a / b, rounded up. On the host, where `triton.cdiv` and its kin take 8 µs."""
    return -(-a // b)


def power_of_two(size):
    """The least one from 2 on that is not below `size`."""
    return max(2, 1 << (size - 1).bit_length())


class Launch(NamedTuple):
    """Of a kernel by Triton; `compiled` is None in the interpreter."""

    kernel: Any
    compiled: CompiledKernel | None
    programs: int
    args: tuple
    constants: dict


def run(kernel, programs, args, constants, **options) -> None:
    """Launches `kernel[(programs,)](*args, **constants, **options)`: `args` are `Strided` tensors, and then numbers and
    tuples of numbers; `constants` the last parameters of the kernel, in their order."""
    launcher(kernel, constants, options)(programs, *args)


def launcher(kernel, constants, options) -> Callable[..., None]:
    """`run` for a series of args that all compile to the same. Triton looks a kernel up by a specialization of every
    argument, which takes 20 µs and more: here for the first launch only."""
    compiled = None

    def launch(programs, *args):
        nonlocal compiled
        if compiled is None or getattr(kernel, "pre_run_hooks", True):
            launched = kernel[(programs,)](*args, **constants, **options)
            compiled = launched if isinstance(launched, CompiledKernel) else None
        else:
            compiled[programs, 1, 1](*args, *constants.values())
        if (recording := _recording.get()) is not None:
            recording.launches.append(Launch(kernel, compiled, programs, args, constants))

    return launch


class Recording(TorchDispatchMode):
    """A context that takes down what the code inside it does: the tensors that it allocates, the kernels it `run`s.

    tensors: the arguments, then what is allocated.
    slots: of a tensor, by its id, which of them begins where it does.
    complete: whether nothing else is done.
    """

    def __init__(self, args):
        super().__init__()
        self.tensors, self.launches, self.complete = [*args], [], True
        self.slots = {id(x): slot for slot, x in enumerate(args)}
        self._views = []  # kept: no other tensor may get the id of one

    def __enter__(self):
        self._token = _recording.set(self)
        return super().__enter__()

    def __exit__(self, *error):
        _recording.reset(self._token)
        super().__exit__(*error)

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func.overloadpacket in _ALLOCATE:
            self.slots[id(result)] = len(self.tensors)
            self.tensors.append(result)
        elif func.overloadpacket in _VIEW and id(args[0]) in self.slots:
            self.slots[id(result)] = self.slots[id(args[0])]
            self._views.append(result)
        else:
            self.complete = False
        return result


_ALLOCATE = [getattr(torch.ops.aten, name) for name in ("empty", "empty_like", "empty_permuted", "new_empty")]
_VIEW = [getattr(torch.ops.aten, name) for name in ("view_as_real", "mT", "detach")]  # by some factories
_recording: ContextVar[Recording | None] = ContextVar("recording", default=None)


def prepare(function, args):
    """The result of `function(*args)`, whose first arguments are tensors, and that call `Prepared`; instead of this the
    function if it does more than to allocate its results and workspaces and to launch kernels for them, and None if
    something is set that has a say in that."""
    if getattr(knobs.runtime, "interpret", True) or not _undisturbed():
        return function(*args), None
    tensors = [x.detach() for x in args if isinstance(x, torch.Tensor)]  # one given twice has two ids
    with Recording(tensors) as recording:
        result = function(*tensors, *args[len(tensors) :])
    if not recording.complete or not recording.launches:
        return result, function
    try:
        return result, Prepared(function, len(tensors), recording, result)
    except (AttributeError, LookupError):  # a name of Triton's that is gone; a tensor from elsewhere
        return result, function


def _undisturbed() -> bool:
    """Whether nothing is set that changes what is compiled, or is told of launches."""
    try:
        runtime = knobs.runtime
        return not (
            runtime.debug
            or knobs.compilation.instrumentation_mode
            or runtime.add_stages_inspection_hook
            or getattr(runtime.launch_enter_hook, "calls", True)
            or getattr(runtime.launch_exit_hook, "calls", True)
        )
    except AttributeError:  # a name of Triton's that is gone
        return False


class Prepared:
    """A call of `function` once more, for arguments that differ from the recorded ones in nothing but where tensors lie
    in memory, modulo 16 bytes: allocates, and launches what has been compiled. It keeps no stream and no memory.
    """

    def __init__(self, function, given, recording, result):
        self.function, self.given = function, given
        with torch.cuda.device_of(recording.tensors[0]):
            self.device = driver.active.get_current_device()
        slots = recording.slots
        self.results = slots[id(result)] if torch.is_tensor(result) else [slots[id(x)] for x in result]
        self.allocated = [
            (x.shape, x.stride(), {"dtype": x.dtype, "device": x.device}) for x in recording.tensors[given:]
        ]
        self.hooks = [kernel.pre_run_hooks for kernel in {launch.kernel for launch in recording.launches}]
        self.kernels = {launch.compiled for launch in recording.launches}  # kept: without a reference they are unloaded
        self.launches = []  # those for the same tensors together
        for _, compiled, programs, args, constants in recording.launches:
            tensors = [(slots[id(x.reals)], x[1:]) for x in args if isinstance(x, Strided)]
            others = (*args[len(tensors) :], *constants.values())
            if any(isinstance(part, torch.Tensor) for x in others for part in (x if isinstance(x, tuple) else [x])):
                raise LookupError("a tensor among the numbers")
            if not self.launches or self.launches[-1][0] != tensors:
                self.launches.append((tensors, []))
            launch = compiled.run, programs, compiled.function, compiled.packed_metadata, others
            self.launches[-1][1].append(launch)

    def __call__(self, *args):
        if any(self.hooks) or not _undisturbed():
            return self.function(*args)
        active = driver.active
        if active.get_current_device() != self.device:
            with torch.cuda.device(self.device):
                return self(*args)
        tensors = [*args[: self.given]]
        # aligned alike: PyTorch allocates at multiples of 64 bytes and more
        tensors += [torch.empty_strided(shape, stride, **options) for shape, stride, options in self.allocated]
        pointers = [x.data_ptr() for x in tensors]
        stream = active.get_current_stream(self.device)
        for operands, launches in self.launches:
            matrices = [(pointers[slot], *layout) for slot, layout in operands]
            for start, programs, function, metadata, others in launches:
                start(programs, 1, 1, stream, function, metadata, None, None, None, *matrices, *others)
        return tensors[self.results] if isinstance(self.results, int) else tuple([tensors[i] for i in self.results])
