"""The choice of implementation."""

import threading
from contextlib import ExitStack

import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx

import triton_lu
from triton_lu._backend import current


def test_choices_nest_and_are_restored():
    assert current() == "auto"
    with triton_lu.backend("aten"):
        with triton_lu.backend("triton"):
            assert current() == "triton"
        assert current() == "aten"
        with pytest.raises(KeyError), triton_lu.backend("triton"):
            raise KeyError
        assert current() == "aten"
    assert current() == "auto"


def test_decorates_functions():
    @triton_lu.backend("triton")
    def choice():
        return current()

    assert [choice(), choice(), current()] == ["triton", "triton", "auto"]


def test_is_one_setting_of_the_process():
    seen = []
    with triton_lu.backend("triton"):
        thread = threading.Thread(target=lambda: seen.append(current()))
        thread.start()
        thread.join()
    assert seen == ["triton"]


def test_blocks_that_overlap_as_those_of_threads_do():
    first, second = triton_lu.backend("aten"), triton_lu.backend("aten")
    with triton_lu.backend("triton"):
        first.__enter__()
        second.__enter__()
        first.__exit__(None, None, None)
        assert current() == "aten"
        second.__exit__(None, None, None)
        assert current() == "triton"
    assert current() == "auto"


# Each asks for kernels where there are none: an operator that obeys raises NotImplementedError.
NO_KERNEL = torch.ones(2, 2048, 2), torch.ones(2, 2, dtype=torch.int32)


def block(LU, pivots):
    with triton_lu.backend("triton"):
        return torch.ops.triton_lu.vjp(LU, pivots, LU)


@triton_lu.backend("triton")
def decorated(LU, pivots):
    return torch.ops.triton_lu.vjp(LU, pivots, LU)


def nested(LU, pivots):
    with triton_lu.backend("aten"):
        LU = LU + torch.ops.triton_lu.vjp(LU, pivots, LU)
        return block(LU, pivots)


def after_an_error(LU, pivots):
    try:
        with triton_lu.backend("aten"):
            raise KeyError
    except KeyError:
        return block(LU.sin(), pivots)


def on_a_stack(LU, pivots):
    with ExitStack() as stack:
        stack.enter_context(triton_lu.backend("triton"))
        return torch.ops.triton_lu.vjp(LU, pivots, LU)


forms = pytest.mark.parametrize("function", [block, decorated, nested, after_an_error, on_a_stack])


@forms
def test_compiled_code_obeys_a_block_inside(function):
    torch._dynamo.reset()
    with pytest.raises(NotImplementedError, match="`vjp` has no Triton kernel"):
        torch.compile(function, backend="eager")(*NO_KERNEL)
    assert current() == "auto"


@forms
@pytest.mark.parametrize(
    "record",
    [
        lambda f: torch.compile(f, backend="eager", fullgraph=True)(*NO_KERNEL),
        lambda f: torch.export.export(module(f), NO_KERNEL, strict=True),
        lambda f: torch.export.export(module(f), NO_KERNEL, strict=False),
        lambda f: make_fx(f)(*NO_KERNEL),
        lambda f: torch.fx.symbolic_trace(f),
        lambda f: torch.jit.trace(f, NO_KERNEL),
    ],
    ids=["fullgraph", "strict export", "export", "make_fx", "symbolic_trace", "jit.trace"],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_block_inside_what_is_recorded_is_refused(function, record):
    """The graph would hold the operators without the block."""
    torch._dynamo.reset()
    with pytest.raises(RuntimeError, match="`backend` cannot be entered in code that is compiled or traced: enter it"):
        record(function)
    assert current() == "auto"


def module(function):
    class Module(torch.nn.Module):
        def forward(self, *args):
            return function(*args)

    return Module()


def test_a_block_around_a_compiled_call_is_obeyed():
    compiled = torch.compile(lambda LU, pivots: torch.ops.triton_lu.vjp(LU, pivots, LU), backend="eager")
    assert compiled(*NO_KERNEL).shape == (2, 2048, 2)
    with triton_lu.backend("triton"), pytest.raises(NotImplementedError):
        compiled(*NO_KERNEL)


@pytest.mark.parametrize("bad", ["cuda", "", None])
def test_unknown_choice(bad):
    with (
        pytest.raises(ValueError, match=r"`backend` expects one of 'auto', 'triton', 'aten'; got"),
        triton_lu.backend(bad),
    ):
        pass


def test_triton_never_falls_back_silently():
    LU, pivots, _ = torch.ops.triton_lu.factor(torch.randn(2048, 1))
    with triton_lu.backend("triton"):
        for op in (torch.ops.triton_lu.vjp, torch.ops.triton_lu.jvp):
            with pytest.raises(NotImplementedError, match=r"no Triton kernel for 2048×1 matrices of torch.float32"):
                op(LU, pivots, LU)


@pytest.mark.parametrize(
    "shape", [(5, 4, 4), (3, 2, 7, 5), (3, 5, 7), (20, 20), (34, 20), (0, 3, 3), (2, 0, 3)], ids=str
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.complex128], ids=str)
def test_triton_agrees_with_aten(shape, dtype):
    """The kernels in Triton's interpreter, reached by the public functions."""
    A = torch.randn(shape, dtype=dtype, requires_grad=True)
    G = torch.randn(shape, dtype=dtype)
    LU, _, _ = triton_lu.lu(A, get_infos=True)
    with triton_lu.backend("triton"):
        (ours,) = torch.autograd.grad(LU, A, G, retain_graph=True)
    with triton_lu.backend("aten"):
        (expected,) = torch.autograd.grad(LU, A, G)
    torch.testing.assert_close(ours, expected, rtol=1e-3 if dtype == torch.float32 else 1e-9, atol=1e-3)
    assert ours.is_contiguous()


@pytest.mark.parametrize("shape", [(150, 150), (20, 135)], ids=str)
def test_derivatives_of_large_matrices_on_the_kernels(shape):
    """Backward and tangent against ATen, and against each other as adjoints."""
    A = torch.randn(shape, dtype=torch.float64)
    G, V = torch.randn(2, *shape, dtype=torch.float64)
    LU, pivots, _ = torch.ops.triton_lu.factor(A)
    with triton_lu.backend("triton"):
        gradient = torch.ops.triton_lu.vjp(LU, pivots, G)
        tangent = torch.ops.triton_lu.jvp(LU, pivots, V)
    torch.testing.assert_close(gradient, torch.ops.triton_lu.vjp(LU, pivots, G), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(tangent, torch.ops.triton_lu.jvp(LU, pivots, V), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close((gradient * V).sum(), (tangent * G).sum())


@pytest.mark.parametrize("shape", [(9, 3), (18, 2), (2, 33), (129, 2)], ids=str)
def test_second_derivatives_of_complex_matrices_on_the_kernels(shape):
    A, G, V = torch.randn(3, *shape, dtype=torch.complex128, requires_grad=True)

    def second_derivatives():
        LU, _, _ = triton_lu.lu(A, get_infos=True)
        (gradient,) = torch.autograd.grad(LU, A, G, create_graph=True)
        return torch.autograd.grad(gradient, (A, G), V)

    with triton_lu.backend("triton"):
        ours = second_derivatives()
    torch.testing.assert_close(ours, second_derivatives(), rtol=1e-8, atol=1e-8)


def test_triton_takes_batches_of_any_strides():
    A = torch.randn(4, 3, 5, 5, dtype=torch.float64)
    LU, pivots, _ = torch.ops.triton_lu.factor(A)
    G = torch.randn(5, 5, dtype=torch.float64)
    for dims in ((0, 1), (1, 0)):
        args = (LU.permute(*dims, 2, 3), pivots.permute(*dims, 2), G.expand(*(A.shape[d] for d in dims), 5, 5))
        with triton_lu.backend("triton"):
            ours = torch.ops.triton_lu.vjp(*args)
        torch.testing.assert_close(ours, torch.ops.triton_lu.vjp(*args))


@pytest.mark.parametrize(
    ("shape", "dtype", "pivot"),
    [
        ((2, 4, 2), torch.float64, True),
        ((2, 3), torch.float64, False),
        ((2, 1, 1), torch.complex128, False),
    ],
    ids=str,
)
def test_derivatives_on_the_kernels(shape, dtype, pivot):
    """Factorization, backward, tangent and second derivatives with every operator on a kernel."""
    A = torch.randn(shape, dtype=dtype)
    A = (A if pivot else A + 4 * torch.eye(*shape[-2:], dtype=dtype)).requires_grad_()
    with triton_lu.backend("triton"):

        def factor(A):
            return triton_lu.lu(A, pivot=pivot, get_infos=True)[0]

        assert torch.autograd.gradcheck(factor, A, check_forward_ad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(factor, A, check_fwd_over_rev=True, fast_mode=True)


@pytest.mark.parametrize("shape", [(5, 4, 4), (2, 17, 9), (0, 3), (3, 0)], ids=str)
@pytest.mark.parametrize("pivot", [True, False])
def test_factorization_on_the_kernel_is_that_of_aten(shape, pivot):
    A = torch.randn(shape, dtype=torch.float64) + (0 if pivot else 9 * torch.eye(*shape[-2:]))
    expected = triton_lu.lu(A, pivot=pivot, get_infos=True)
    with triton_lu.backend("triton"):
        ours = triton_lu.lu(A, pivot=pivot, get_infos=True)
    torch.testing.assert_close(ours[0], expected[0])
    assert torch.equal(ours[1], expected[1])
    assert torch.equal(ours[2], expected[2])
    assert [x.stride() for x in ours] == [x.stride() for x in expected]
