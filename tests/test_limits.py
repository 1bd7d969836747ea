"""Sizes at the edges: none, one, very long, too many to count in 32 bits, too large for memory; several processes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch._subclasses import FakeTensorMode

import triton_lu
from triton_lu import reference

ROOT = Path(__file__).parents[1]
DTYPES = (torch.float32, torch.float64, torch.complex64, torch.complex128)


def start(code):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{ROOT}:{ROOT / 'kernels'}"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def derivatives(A):
    """LU, pivots, infos, gradient, tangent and second derivative of A, all cotangents and tangents ones."""
    ones = torch.ones_like(A)
    LU, pivots, infos = triton_lu.lu(A, get_infos=True)
    (X,) = torch.autograd.grad(LU, A, ones.requires_grad_(), create_graph=True)
    (second,) = torch.autograd.grad(X, A, torch.ones_like(X))
    tangent = torch.ops.triton_lu.jvp(LU.detach(), pivots, ones.detach())
    return LU, pivots, infos, X, tangent, second


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("shape", [(70_000, 4, 4), (300_000, 128, 128), (3, 40_000, 40_000), (2**31, 1, 1)], ids=str)
def test_shapes_beyond_32_bits(shape, device):
    """Without data: nothing that is traced counts elements in 32 bits, or a batch in the 65,535 of a CUDA grid."""
    with FakeTensorMode():
        A = torch.empty(shape, device=device, requires_grad=True)
        LU, pivots, infos, *results = derivatives(A)
    assert all(x.shape == A.shape for x in (LU, *results))
    assert pivots.shape == shape[:-1]
    assert infos.shape == shape[:-2]


def test_batch_beyond_65535():
    """By ATen, 10 of its matrices against one computation each."""
    A = torch.randn(70_001, 2, 2, dtype=torch.float64, requires_grad=True)
    G = torch.randn_like(A)
    LU, pivots, _ = triton_lu.lu(A, get_infos=True)
    (X,) = torch.autograd.grad(LU, A, G)
    some = torch.arange(0, 70_001, 7_000)
    expected = reference.vjp(LU.detach()[some], pivots[some], G[some])
    assert reference.relative_error(X[some], expected) < 1e-12


@pytest.mark.parametrize("shape", [(0, 0), (0, 5), (5, 0), (0, 3, 3), (2, 0, 3), (2, 3, 0), (0, 0, 0)], ids=str)
@pytest.mark.parametrize("pivot", [True, False])
@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_nothing(shape, pivot, backend):
    A = torch.empty(shape, dtype=torch.complex64, requires_grad=True)
    with triton_lu.backend(backend):
        LU, pivots, infos, *results = derivatives(A)
        assert triton_lu.lu(A, pivot=pivot)[0].shape == shape
    assert all(x.shape == shape for x in (LU, *results))
    assert (pivots.shape, infos.shape) == ((*shape[:-2], 0 if 0 in shape[-2:] else 3), shape[:-2])
    assert not infos.any()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("backend", ["aten", "triton"])
def test_one_by_one(backend, dtype):
    """LU is A, its gradient G, its tangent E, its second derivative zero."""
    A = torch.randn(3, 1, 1, dtype=dtype, requires_grad=True)
    with triton_lu.backend(backend):
        LU, pivots, _, X, tangent, second = derivatives(A)
    assert torch.equal(LU, A)
    assert torch.equal(pivots, torch.ones(3, 1, dtype=torch.int32))
    torch.testing.assert_close(X, torch.ones_like(A))
    torch.testing.assert_close(tangent, torch.ones_like(A))
    torch.testing.assert_close(second, torch.zeros_like(A))


@pytest.mark.parametrize("shape", [(10_000, 3), (3, 10_000), (10_000, 1), (1, 200_000), (4, 10_000, 5)], ids=str)
def test_long_and_narrow(shape):
    """Pᵀ A = L U, Pᵀ E = dL U + L dU and Re⟨G, jvp(E)⟩ = Re⟨vjp(G), E⟩, which need no matrix of 10,000×10,000."""
    m, n = shape[-2:]
    k = min(m, n)
    A, E, G = (torch.randn(shape, dtype=torch.float64) for _ in range(3))
    LU, pivots, infos = triton_lu.lu(A, get_infos=True)
    assert not infos.any()
    T, X = torch.ops.triton_lu.jvp(LU, pivots, E), torch.ops.triton_lu.vjp(LU, pivots, G)
    (L, U), (dL, dU) = ((x[..., :k].tril(-1), x[..., :k, :].triu()) for x in (LU, T))
    L = L + torch.eye(m, k)
    rows = triton_lu.permutation(pivots, m)[..., None].expand(shape)
    torch.testing.assert_close(L @ U, A.gather(-2, rows))
    torch.testing.assert_close(dL @ U + L @ dU, E.gather(-2, rows))
    torch.testing.assert_close((G * T).sum((-2, -1)), (X * E).sum((-2, -1)))


@pytest.mark.skipif(sys.platform != "linux", reason="limits the address space as Linux does")
def test_memory_that_does_not_suffice_is_torchs_error_and_leaves_no_trace():
    """In the factorization, the backward, the tangent: the same operators give the same bits afterwards."""
    code = """
import resource, torch, triton_lu
torch.set_num_threads(1)
small = torch.randn(3, 20, 20, requires_grad=True)

def results():
    LU, pivots = triton_lu.lu(small)
    return [LU, pivots, *torch.autograd.grad(LU, small, torch.ones(3, 20, 20))]

before = results()
A = torch.randn(3000, 3000, requires_grad=True)
LU, pivots = triton_lu.lu(A)
calls = {
    "factor": lambda: triton_lu.lu(A),
    "backward": lambda: torch.autograd.grad(LU, A, LU.detach(), retain_graph=True),
    "jvp": lambda: torch.ops.triton_lu.jvp(LU.detach(), pivots, A.detach()),
}
pages = int(open("/proc/self/statm").read().split()[0])
unlimited = resource.getrlimit(resource.RLIMIT_AS)
for name, call in calls.items():
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + 2**20, unlimited[1]))
    try:
        call()
        print(name, "succeeded")
    except RuntimeError as error:
        print(name, "not enough memory" in str(error) or "can't allocate memory" in str(error))
    resource.setrlimit(resource.RLIMIT_AS, unlimited)
    print(name, all(map(torch.equal, results(), before)))
print(torch.autograd.grad(LU, A, LU.detach())[0].isfinite().all().item())
"""
    process = start(code)
    out, err = process.communicate(timeout=300)
    assert (process.returncode, err) == (0, "")
    expected = [line for name in ("factor", "backward", "jvp") for line in [f"{name} True"] * 2]
    assert out.splitlines() == [*expected, "True"]


def test_two_processes_at_once(tmp_path, monkeypatch):
    """Both interpret kernels and compile a graph, with one cache between them, and agree."""
    monkeypatch.setenv("TRITON_CACHE_DIR", str(tmp_path / "triton"))
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "inductor"))
    code = """
import torch, triton_lu
torch.manual_seed(0)
A = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
compiled = torch.compile(lambda A: triton_lu.lu(A)[0].square().sum(), backend="aot_eager", fullgraph=True)
for backend in ("triton", "aten"):
    with triton_lu.backend(backend):
        gradient, = torch.autograd.grad(compiled(A), A)
        print(gradient.flatten().tolist())
"""
    processes = [start(code) for _ in range(2)]
    (first, second) = (process.communicate(timeout=300) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], first[1] + second[1]
    assert first[0] == second[0]
    kernels, aten = (torch.tensor(eval(line)) for line in first[0].splitlines())
    torch.testing.assert_close(kernels, aten)
