"""DTensor, FSDP2 and DDP, in two processes on CPUs."""

from contextlib import contextmanager, nullcontext
from functools import cache

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.debug import CommDebugMode
from torch.nn.parallel import DistributedDataParallel
from torch.testing import assert_close

import triton_lu
from tests.support.processes import Processes
from tests.support.readme import examples

SIZE = 2
GATHER, REDUCE, SCATTER = ({name: 1} for name in ("all_gather_into_tensor", "all_reduce", "reduce_scatter_tensor"))


@pytest.fixture(scope="module")
def processes():
    group = Processes(SIZE)
    yield group
    group.stop()


@cache
def mesh():
    return init_device_mesh("cpu", (SIZE,))


def distribute(A, placement):
    if placement.is_partial():
        return DTensor.from_local(A / SIZE, mesh(), [placement])
    return distribute_tensor(A, mesh(), [placement])


def counts(mode):
    return {op.__name__.rpartition(".")[2]: count for op, count in mode.get_comm_counts().items() if count}


def forward_and_backward(shape, placement, pivot, forward, backward):
    A = torch.randn(shape, dtype=torch.float64)
    G = torch.randn_like(A)
    D = distribute(A, placement).requires_grad_()
    with CommDebugMode() as communication:
        LU, pivots = triton_lu.lu(D, pivot)
        assert counts(communication) == forward
    cotangent = distribute_tensor(G, LU.device_mesh, LU.placements)
    with CommDebugMode() as communication:
        LU.backward(cotangent)
        assert counts(communication) == backward
    A.requires_grad_()
    expected = triton_lu.lu(A, pivot)
    expected[0].backward(G)
    assert LU.placements == pivots.placements
    assert LU.stride() == expected[0].stride()
    assert_close(LU.full_tensor(), expected[0])
    assert_close(pivots.full_tensor(), expected[1])
    assert_close(D.grad.full_tensor(), A.grad)


@pytest.mark.parametrize(
    ("shape", "placement", "collectives"),
    [
        ((4, 5, 5), Shard(0), {}),
        ((3, 6, 4), Shard(0), {}),  # two matrices in one process, one in the other
        ((2, 4, 4, 6), Shard(1), {}),
        ((4, 5, 5), Replicate(), {}),
        ((4, 5, 5), Shard(1), GATHER),
        ((4, 5, 6), Shard(2), GATHER),
        ((5, 5), Shard(0), GATHER),
        ((7, 5), Shard(1), GATHER),
        ((5, 5), Partial(), REDUCE),
        ((4, 5, 5), Partial(), SCATTER),  # the reduced batch remains sharded
    ],
    ids=str,
)
@pytest.mark.parametrize("pivot", [True, False])
def test_dtensor(processes, shape, placement, collectives, pivot):
    processes.run(forward_and_backward, shape, placement, pivot, collectives, {})


def cotangents():
    """The gradient goes by the matrices that a process has; cotangents placed otherwise are brought there."""
    A, G = torch.randn(2, 4, 5, 5, dtype=torch.float64)
    D = distribute(A, Shard(0)).requires_grad_()
    LU, _ = triton_lu.lu(D)
    expected = torch.ops.triton_lu.vjp(LU.full_tensor(), triton_lu.lu(A)[1], G)
    for placement, collectives in ((Replicate(), {}), (Partial(), SCATTER)):
        X = distribute(G, placement)
        with CommDebugMode() as communication:
            (grad,) = torch.autograd.grad(LU, D, X, retain_graph=True)
            assert counts(communication) == collectives
        assert grad.placements == D.placements
        assert_close(grad.full_tensor(), expected)


def other_operators():
    A, E = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    A, E = (distribute(X, Shard(0)) for X in (A, E))
    with CommDebugMode() as communication:
        LU, pivots = triton_lu.lu(A)
        dLU = torch.ops.triton_lu.jvp(LU, pivots, E)
        orders = [triton_lu.permutation(pivots, m) for m in (7, 9)]
        P, L, U = triton_lu.linalg.lu(A)
        assert counts(communication) == {}
    B, pivots = triton_lu.lu(A.full_tensor())
    assert_close(dLU.full_tensor(), torch.ops.triton_lu.jvp(B, pivots, E.full_tensor()))
    for order, m in zip(orders, (7, 9), strict=True):
        assert_close(order.full_tensor(), triton_lu.permutation(pivots, m))
    assert_close((P @ L @ U).full_tensor(), A.full_tensor())
    assert {X.placements for X in (dLU, *orders, P, L, U)} == {(Shard(0),)}


def derivatives_of_higher_order():
    """In reverse mode: where the matrices are, without communication."""
    A, V = torch.randn(2, 4, 7, 5, dtype=torch.float64)
    gradients = []
    for X, direction in ((A, V), (distribute(A, Shard(0)), distribute(V, Shard(0)))):
        X.requires_grad_()
        with CommDebugMode() as communication:
            gradient = triton_lu.lu(X)[0].sin()
            for _ in range(3):
                (gradient,) = torch.autograd.grad(gradient, X, direction, create_graph=True)
        assert counts(communication) == {}
        gradients.append(gradient.detach())
    assert_close(gradients[1].full_tensor(), gradients[0])


SYSTEMS = [  # batches and placements of LU and B
    ((4,), (4,), Shard(0), Shard(0)),
    ((3,), (3,), Shard(0), Shard(0)),
    ((4,), (), Shard(0), Replicate()),
    ((), (4,), Replicate(), Shard(0)),
    ((), (), Replicate(), Shard(1)),
    ((), (), Shard(0), Shard(0)),
    ((2, 1), (4,), Shard(0), Replicate()),
    ((2, 1), (2, 4), Replicate(), Shard(1)),
    ((1,), (4,), Replicate(), Shard(0)),
    ((4,), (1, 4), Replicate(), Partial()),
]


def solves(takeover, left, adjoint):
    """With derivatives, on ours and on what PyTorch's becomes, beside PyTorch's on whole tensors."""
    solve = torch.linalg.lu_solve if takeover else triton_lu.linalg.lu_solve
    for batch, batch_of_B, of_LU, of_B in SYSTEMS:
        A = torch.randn(*batch, 6, 6, dtype=torch.complex128)
        B = torch.randn(*batch_of_B, *((6, 4) if left else (4, 6)), dtype=torch.complex128)
        LU, pivots = torch.linalg.lu_factor(A)
        whole = LU.clone().requires_grad_(), B.clone().requires_grad_()
        expected = torch.linalg.lu_solve(whole[0], pivots, whole[1], left=left, adjoint=adjoint)
        G = torch.randn_like(expected)
        parts = [distribute(X, p).detach().requires_grad_() for X, p in ((LU, of_LU), (B, of_B))]
        order = distribute(pivots, of_LU if of_LU == Shard(0) and batch else Replicate())
        with takeover() if takeover else nullcontext():
            X = solve(parts[0], order, parts[1], left=left, adjoint=adjoint)
            of_B_alone = solve(parts[0].detach(), order, parts[1], left=left, adjoint=adjoint)
        assert_close(X.full_tensor(), expected)
        assert X.stride() == expected.stride()
        gradients = torch.autograd.grad(X, parts, distribute(G, Replicate()))
        for ours, theirs in zip(gradients, torch.autograd.grad(expected, whole, G), strict=True):
            assert_close(ours.full_tensor(), theirs)
        (gradient,) = torch.autograd.grad(of_B_alone, parts[1], distribute(G, Replicate()))
        assert_close(gradient.full_tensor(), theirs)


@contextmanager
def installed():
    triton_lu.install()
    try:
        yield
    finally:
        triton_lu.uninstall()


@pytest.mark.parametrize("left", [True, False])
@pytest.mark.parametrize("adjoint", [False, True])
@pytest.mark.parametrize("takeover", [None, installed, triton_lu.override])
def test_solves(processes, takeover, left, adjoint):
    processes.run(solves, takeover, left, adjoint)


def solves_without_communication():
    LU, pivots = torch.linalg.lu_factor(torch.randn(4, 5, 5))
    for placed, batch in ((Shard(0), 4), (Replicate(), 1)):
        parts = [distribute(X[:batch], placed) for X in (LU, pivots)]
        B = distribute(torch.randn(4, 5, 3), Shard(0)).requires_grad_()
        LU_part = parts[0].requires_grad_()
        with CommDebugMode() as communication:
            X = triton_lu.linalg.lu_solve(LU_part, parts[1], B)
            LU_grad, B_grad = torch.autograd.grad(X, (LU_part, B), torch.ones_like(X))
            assert counts(communication) == {}
        assert X.placements == B_grad.placements == (Shard(0),)
        assert LU_grad.placements == ((Shard(0),) if batch == 4 else (Partial(),))


def operators_that_solve_inside():
    """Their backwards call `lu_solve`: installed or not, they work on tensors of any placement."""
    A, B = torch.randn(4, 5, 5, dtype=torch.float64), torch.randn(4, 5, 2, dtype=torch.float64)

    def results(A, B):
        A, B = A.detach().requires_grad_(), B.detach().requires_grad_()
        values = torch.linalg.solve(A, B), torch.linalg.slogdet(A)[1], torch.linalg.inv(A)
        return torch.autograd.grad([x.sum() for x in values], (A, B))

    expected = results(A, B)
    triton_lu.install()
    for placement in (Shard(0), Replicate()):
        for ours, theirs in zip(results(distribute(A, placement), distribute(B, placement)), expected, strict=True):
            assert_close(ours.full_tensor(), theirs)
    triton_lu.uninstall()


def two_dimensions_of_devices():
    A = torch.randn(4, 6, 6, dtype=torch.float64)
    for shape in ((SIZE, 1), (1, SIZE)):
        D = distribute_tensor(A, init_device_mesh("cpu", shape), [Shard(0), Shard(1)]).requires_grad_()
        LU, _ = triton_lu.lu(D)
        LU.sum().backward()
        assert LU.placements[0] == Shard(0)
        assert_close(LU.full_tensor(), triton_lu.lu(A)[0])
        assert_close(D.grad.full_tensor(), torch.func.grad(lambda A: triton_lu.lu(A)[0].sum())(A))


def determinants_and_inverses():
    A, B = torch.randn(4, 3, 3, dtype=torch.float64), torch.randn(4, 3, 2, dtype=torch.float64)
    for function in (
        lambda A, B: triton_lu.linalg.slogdet(A).logabsdet,
        lambda A, B: triton_lu.linalg.det(A),
        lambda A, B: triton_lu.linalg.inv_ex(A).inverse,
        lambda A, B: triton_lu.linalg.solve_ex(A, B).result,
        lambda A, B: triton_lu.linalg.solve_ex(A, B.mT, left=False).result,
    ):
        results = []
        for a, b in ((distribute(A, Shard(0)), distribute(B, Shard(0))), (A, B)):
            a = a.clone().requires_grad_()
            with CommDebugMode() as communication:
                value = function(a, b)
                (first,) = torch.autograd.grad(value.sin().sum(), a, create_graph=True)
                (second,) = torch.autograd.grad(first.sin().sum(), a)
            assert not counts(communication)
            results.append((value, first, second))
        for ours, expected in zip(*results, strict=True):
            assert ours.placements == (Shard(0),)
            assert_close(ours.full_tensor(), expected)


def singular_matrix():
    A = torch.randn(4, 5, 5)
    A[3, :, 1] = 0
    D = distribute(A, Shard(0))
    if dist.get_rank() == 0:
        triton_lu.lu(D)
    else:  # the process that has the matrix, and by its place there
        with pytest.raises(torch.linalg.LinAlgError, match=r"`lu`: batch element 1: U\[2, 2\]"):
            triton_lu.lu(D)


def example_of_the_readme():
    names = {"torch": torch, "triton_lu": triton_lu, "mesh": mesh()}
    for example in examples("Distributed"):
        exec(example, names)
    names["LU"].sum().backward()
    assert names["A"].grad.placements == names["LU"].placements == (Shard(0),)


def first_use_in_inference_mode():
    with torch.inference_mode():
        LU, _ = triton_lu.lu(distribute(torch.randn(2, 3, 3), Shard(0)))
    assert LU.placements == (Shard(0),)


def compiled():
    torch._dynamo.reset()
    A = torch.randn(4, 5, 5, dtype=torch.float64)
    D = distribute(A, Shard(0)).requires_grad_()

    def loss(A):
        return triton_lu.lu(A)[0].square().sum()

    torch.compile(loss, fullgraph=True, backend="aot_eager")(D).backward()
    assert D.grad.placements == D.placements
    assert_close(D.grad.full_tensor(), torch.func.grad(loss)(A))


@pytest.mark.parametrize(
    "function",
    [
        first_use_in_inference_mode,
        example_of_the_readme,
        cotangents,
        other_operators,
        solves_without_communication,
        operators_that_solve_inside,
        derivatives_of_higher_order,
        two_dimensions_of_devices,
        determinants_and_inverses,
        singular_matrix,
    ],
)
def test_dtensor_operators(processes, function):
    processes.run(function)


@pytest.mark.skipif(
    torch.__version__ < "2.13", reason="before PyTorch 2.13 compilation records the propagation of shardings"
)
def test_compiled_dtensor(processes):
    processes.run(compiled)


class Mixing(torch.nn.Module):
    """An invertible linear layer: outputs and log |det W|, the term of a flow's likelihood."""

    def __init__(self, n):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.randn(n, n) / n**0.5 + torch.eye(n))

    def forward(self, X):
        LU, _ = triton_lu.lu(self.weight)
        return X @ self.weight, LU.diagonal().abs().log().sum()


class Flow(torch.nn.Sequential):
    def forward(self, X):
        total = 0
        for layer in self:
            X, logdet = layer(X.tanh())
            total = total + logdet
        return X.square().sum(-1).mean() / 2 - total


def train(model, X):
    """Three steps of gradient descent; the losses."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    losses = []
    for _ in range(3):
        optimizer.zero_grad()
        loss = model(X)
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return losses


def data_parallel(wrapper):
    """Each process has its part of the data, and what comes out is as with one process that has all of it."""
    model, X = Flow(Mixing(5), Mixing(5)), torch.randn(8, 5)
    reference = Flow(Mixing(5), Mixing(5))
    reference.load_state_dict(model.state_dict())
    losses = train(wrapper(model), X.chunk(SIZE)[dist.get_rank()])
    mean = torch.stack(losses)
    dist.all_reduce(mean)
    assert_close(mean / SIZE, torch.stack(train(reference, X)))
    for parameter, expected in zip(model.parameters(), reference.parameters(), strict=True):
        whole = parameter.full_tensor() if isinstance(parameter, DTensor) else parameter
        assert_close(whole, expected)


def fsdp(model):
    for layer in model:
        fully_shard(layer, mesh=mesh())
    return fully_shard(model, mesh=mesh())


@pytest.mark.parametrize("wrapper", [fsdp, DistributedDataParallel])
def test_data_parallel_training(processes, wrapper):
    processes.run(data_parallel, wrapper)
