"""Real and complex arithmetic from one source.

A field element is a tuple of tensors of equal shape: `(re,)` over the reals, `(re, im)` over the complex numbers. Every
function here takes and returns such tuples, so that a kernel written with them serves all four dtypes. The number of
components is a compile-time fact; nothing of the tuple survives in the generated code.

Products are written with `tl.fma`: the same instructions whatever the compiler's default for contraction.
"""

import triton
import triton.language as tl


@triton.jit
def negate(a):
    """-a"""
    result = ()
    for component in tl.static_range(len(a)):
        result += (-a[component],)
    return result


@triton.jit
def conjugate(a):
    """The complex conjugate of a; a itself over the reals."""
    if len(a) == 1:
        return a
    else:
        return (a[0], -a[1])


@triton.jit
def add(a, b):
    """a + b"""
    result = ()
    for component in tl.static_range(len(a)):
        result += (a[component] + b[component],)
    return result


@triton.jit
def subtract(a, b):
    """a - b"""
    result = ()
    for component in tl.static_range(len(a)):
        result += (a[component] - b[component],)
    return result


@triton.jit
def multiply(a, b):
    """a b"""
    if len(a) == 1:
        return (a[0] * b[0],)
    else:
        return (tl.fma(-a[1], b[1], a[0] * b[0]), tl.fma(a[1], b[0], a[0] * b[1]))


@triton.jit
def scale(a, factor):
    """a times a real."""
    result = ()
    for component in tl.static_range(len(a)):
        result += (a[component] * factor,)
    return result


@triton.jit
def multiply_add(a, b, c):
    """a b + c"""
    if len(a) == 1:
        return (tl.fma(a[0], b[0], c[0]),)
    else:
        re = tl.fma(-a[1], b[1], tl.fma(a[0], b[0], c[0]))
        im = tl.fma(a[1], b[0], tl.fma(a[0], b[1], c[1]))
        return (re, im)


@triton.jit
def reciprocal(a):
    """1 / a, over the complex numbers without overflow or underflow of |a|^2."""
    if len(a) == 1:
        return (1.0 / a[0],)
    else:
        scale = tl.maximum(tl.abs(a[0]), tl.abs(a[1]), propagate_nan=tl.PropagateNan.ALL)
        re = a[0] / scale
        im = a[1] / scale
        factor = 1.0 / (scale * tl.fma(re, re, im * im))
        return (re * factor, -im * factor)


@triton.jit
def divide(a, b):
    """a / b, over the complex numbers without overflow or underflow of |b|^2."""
    if len(a) == 1:
        return (a[0] / b[0],)
    else:
        scale = inverse_power_of_two(tl.maximum(tl.abs(b[0]), tl.abs(b[1])))
        re = b[0] * scale
        im = b[1] * scale
        product = multiply((a[0] * scale, a[1] * scale), (re, -im))
        factor = 1.0 / tl.fma(re, re, im * im)
        return (product[0] * factor, product[1] * factor)


@triton.jit
def inverse_power_of_two(a):
    """A power of two that brings a > 0 between 1 and 4, or below 2 if it is denormal: the exponent's bits mirrored."""
    if a.dtype == tl.float64:
        bits = a.to(tl.int64, bitcast=True) & 0x7FF0000000000000
        return tl.maximum(0x7FE0000000000000 - bits, 0x0010000000000000).to(tl.float64, bitcast=True)
    else:
        bits = a.to(tl.int32, bitcast=True) & 0x7F800000
        return tl.maximum(0x7F000000 - bits, 0x00800000).to(tl.float32, bitcast=True)


@triton.jit
def modulus(a):
    """|a|, over the complex numbers |re| + |im|: what LAPACK compares."""
    if len(a) == 1:
        return tl.abs(a[0])
    else:
        return tl.abs(a[0]) + tl.abs(a[1])


@triton.jit
def phase_and_log(a):
    """a / |a|, zero where a is, and log |a|; over the complex numbers without overflow or underflow of |a|^2."""
    if len(a) == 1:
        sign = tl.where(a[0] > 0.0, 1.0, tl.where(a[0] < 0.0, -1.0, a[0]))
        return (sign,), tl.log(tl.abs(a[0]))
    else:
        scale = inverse_power_of_two(tl.maximum(tl.abs(a[0]), tl.abs(a[1])))
        re = a[0] * scale
        im = a[1] * scale
        square = tl.fma(re, re, im * im)
        factor = 1.0 / tl.sqrt(tl.where(square == 0.0, 1.0, square))
        return (re * factor, im * factor), 0.5 * tl.log(square) - tl.log(scale)


@triton.jit
def _multiply_reals(a, b):
    return a * b


@triton.jit
def _multiply_complex(a_re, a_im, b_re, b_im):
    return multiply((a_re, a_im), (b_re, b_im))


@triton.jit
def product_of_lanes(a):
    """The product of the entries of every row of a [matrices, lanes], as [matrices]."""
    if len(a) == 1:
        return (tl.reduce(a[0], 1, _multiply_reals),)
    else:
        return tl.reduce(a, 1, _multiply_complex)


@triton.jit
def is_zero(a):
    """Whether a is exactly zero."""
    if len(a) == 1:
        return a[0] == 0.0
    else:
        return (a[0] == 0.0) & (a[1] == 0.0)


@triton.jit
def dot(a, b):
    """The matrix product a b of blocks; over the complex numbers as (b^T a^T)^T, for the sake of compile time: the pass
    that prepares dots walks, for each of them, through all connected operations up to the next transposition."""
    if len(a) == 1:
        return (_dot(a[0], b[0]),)
    else:
        a_re, a_im, b_re, b_im = tl.trans(a[0]), tl.trans(a[1]), tl.trans(b[0]), tl.trans(b[1])
        re = _dot(b_re, a_re) - _dot(b_im, a_im)
        im = _dot(b_im, a_re) + _dot(b_re, a_im)
        return (tl.trans(re), tl.trans(im))


@triton.jit
def parts(b):
    """b as a sum of numbers whose products tensor cores find exactly: float32 in two, the first rounded to 11 bits."""
    result = ()
    for component in tl.static_range(len(b)):
        if b[component].dtype == tl.float64:
            result += ((b[component],),)
        else:
            high = ((b[component].to(tl.int32, bitcast=True) + 4096) & -8192).to(tl.float32, bitcast=True)
            result += ((high, b[component] - high),)
    return result


@triton.jit
def dot_parts(a, b):
    """The matrix product of a and b, both in `parts`."""
    if len(a) == 1:
        return (_dot_parts(a[0], b[0]),)
    else:
        re = _dot_parts(a[0], b[0]) - _dot_parts(a[1], b[1])
        return (re, _dot_parts(a[0], b[1]) + _dot_parts(a[1], b[0]))


@triton.jit
def _dot_parts(a, b):
    if len(a) == 1:
        return tl.dot(a[0], b[0], input_precision="ieee", out_dtype=a[0].dtype)
    else:
        product = tl.dot(a[1], b[0], input_precision="tf32")
        product = tl.dot(a[0], b[1], product, input_precision="tf32")
        return tl.dot(a[0], b[0], product, input_precision="tf32")


@triton.jit
def _dot(a, b):
    """A product of reals, in their own precision: on tensor cores float32 takes three products of its parts."""
    PRECISION: tl.constexpr = "ieee" if a.dtype == tl.float64 else "tf32x3"
    return tl.dot(a, b, input_precision=PRECISION, out_dtype=a.dtype)


@triton.jit
def constant_like(a, VALUE: tl.constexpr):
    """A real constant in the shape of a."""
    result = (tl.full(a[0].shape, VALUE, a[0].dtype),)
    if len(a) == 2:
        result += (tl.zeros_like(a[1]),)
    return result


@triton.jit
def zeros(SHAPE: tl.constexpr, dtype: tl.constexpr, COMPONENTS: tl.constexpr):
    """Zeros of the real dtype given."""
    result = ()
    for _ in tl.static_range(COMPONENTS):
        result += (tl.zeros(SHAPE, dtype),)
    return result


@triton.jit
def where(condition, a, b):
    """a where the condition holds, b elsewhere."""
    result = ()
    for component in tl.static_range(len(a)):
        result += (tl.where(condition, a[component], b[component]),)
    return result


@triton.jit
def gather(a, lane):
    """Every lane gets the entry of a [matrices, lanes] in the lane of its matrix that it names."""
    result = ()
    for component in tl.static_range(len(a)):
        result += (tl.gather(a[component], lane, 1),)
    return result


@triton.jit
def broadcast(a, INDEX: tl.constexpr):
    """Entry INDEX of every row of a [matrices, lanes], brought to all lanes of the row."""
    return gather(a, tl.full(a[0].shape, INDEX, tl.int32))
