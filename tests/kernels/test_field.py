"""The arithmetic of field elements, under Triton's interpreter, against NumPy's."""

import numpy as np
import pytest
import torch
import triton
import triton.language as tl
from triton_lu_kernels import field

DTYPES = [np.float32, np.float64, np.complex64, np.complex128]
MATRICES, LANES = 4, 16


@triton.jit
def load(x, index, COMPONENTS: tl.constexpr):
    element = ()
    for component in tl.static_range(COMPONENTS):
        element += (tl.load(x + index * COMPONENTS + component),)
    return element


@triton.jit
def store(x, index, element):
    for component in tl.static_range(len(element)):
        tl.store(x + index * len(element) + component, element[component])


@triton.jit
def kernel(out, a, b, c, FUNCTION: tl.constexpr, ROWS: tl.constexpr, COLS: tl.constexpr, COMPONENTS: tl.constexpr):
    index = tl.arange(0, ROWS)[:, None] * COLS + tl.arange(0, COLS)[None, :]
    FUNCTION(out, index, load(a, index, COMPONENTS), load(b, index, COMPONENTS), load(c, index, COMPONENTS))


def evaluate(function, *args, dtype=None):
    """What `function` stores, of arrays of one shape; those that are not given are the first once more."""
    reals = [torch.from_numpy(np.atleast_1d(x).view(x.real.dtype)) for x in (*args, *args[:1] * (3 - len(args)))]
    out = np.full_like(args[0], np.nan, dtype=dtype)
    components = 2 if np.iscomplexobj(args[0]) else 1
    kernel[(1,)](torch.from_numpy(out.view(out.real.dtype)), *reals, function, *args[0].shape, components)
    return out


def gaussian(dtype, seed, shape=(MATRICES, LANES)):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * generator.standard_normal(shape)
    return x.astype(dtype)


def assert_close(found, expected):
    error = np.abs(found - expected).max()
    assert error <= 8 * np.finfo(found.dtype).eps * np.abs(expected).max()


@triton.jit
def negate(out, index, a, b, c):
    store(out, index, field.negate(a))


@triton.jit
def conjugate(out, index, a, b, c):
    store(out, index, field.conjugate(a))


@triton.jit
def add(out, index, a, b, c):
    store(out, index, field.add(a, b))


@triton.jit
def subtract(out, index, a, b, c):
    store(out, index, field.subtract(a, b))


@triton.jit
def multiply(out, index, a, b, c):
    store(out, index, field.multiply(a, b))


@triton.jit
def multiply_add(out, index, a, b, c):
    store(out, index, field.multiply_add(a, b, c))


@triton.jit
def reciprocal(out, index, a, b, c):
    store(out, index, field.reciprocal(a))


@triton.jit
def divide(out, index, a, b, c):
    store(out, index, field.divide(a, b))


@triton.jit
def dot(out, index, a, b, c):
    store(out, index, field.dot(a, b))


@triton.jit
def where(out, index, a, b, c):
    store(out, index, field.where(index % 3 == 0, a, b))


@triton.jit
def constants(out, index, a, b, c):
    zeros = field.zeros(index.shape, a[0].dtype, len(a))
    store(out, index, field.add(field.constant_like(a, 3.0), zeros))


@triton.jit
def gather(out, index, a, b, c):
    store(out, index, field.gather(a, 15 - index % 16))


@triton.jit
def broadcast(out, index, a, b, c):
    store(out, index, field.broadcast(a, 5))


@triton.jit
def modulus(out, index, a, b, c):
    tl.store(out + index, field.modulus(a))


@triton.jit
def is_zero(out, index, a, b, c):
    tl.store(out + index, field.is_zero(a))


ARITHMETIC = {
    negate: lambda a, b, c: -a,
    conjugate: lambda a, b, c: a.conj(),
    add: lambda a, b, c: a + b,
    subtract: lambda a, b, c: a - b,
    multiply: lambda a, b, c: a * b,
    multiply_add: lambda a, b, c: a * b + c,
    reciprocal: lambda a, b, c: 1 / a,
    divide: lambda a, b, c: a / b,
    where: lambda a, b, c: np.where(np.arange(a.size).reshape(a.shape) % 3 == 0, a, b),
    constants: lambda a, b, c: np.full_like(a, 3),
    gather: lambda a, b, c: a[:, ::-1],
    broadcast: lambda a, b, c: np.broadcast_to(a[:, 5:6], a.shape),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("function", ARITHMETIC, ids=lambda function: function.__name__)
def test_arithmetic(function, dtype):
    args = [gaussian(dtype, seed) for seed in range(3)]
    wide = [x.astype(np.result_type(dtype, np.float64)) for x in args]
    assert_close(evaluate(function, *args), ARITHMETIC[function](*wide))


@pytest.mark.parametrize("dtype", DTYPES)
def test_dot(dtype):
    a, b = (gaussian(dtype, seed, (16, 16)) for seed in range(2))
    assert_close(evaluate(dot, a, b), a @ b)


@pytest.mark.parametrize("dtype", DTYPES)
def test_modulus_and_zero(dtype):
    """The modulus is LAPACK's."""
    a = gaussian(dtype, 0)
    a[:, ::3] = 0
    if np.iscomplexobj(a):
        a.imag[:, 1::3] = 0
        a.real[:, 2::3] = 0
    assert_close(evaluate(modulus, a, dtype=a.real.dtype), np.abs(a.real) + np.abs(a.imag))
    assert (evaluate(is_zero, a, dtype=np.float32) == (a == 0)).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("sign", [-1, 1])
def test_no_overflow_between(dtype, sign):
    """Quotients whose result is a normal number, of numbers whose squares are none."""
    exponent = sign * (np.finfo(dtype).maxexp - 4)
    scale = np.asarray(2.0, np.finfo(dtype).dtype) ** exponent
    a, b = gaussian(dtype, 0), gaussian(dtype, 1)
    assert_close(evaluate(divide, a * scale, b * scale), a / b)
    scale = scale ** np.asarray(0.75, scale.dtype)
    assert_close(evaluate(reciprocal, b * scale) * scale, 1 / b)
