"""The examples of the README run, one after the other, and do what their comments say."""

import pytest
import torch

import triton_lu
from tests.support.readme import README, examples

EXAMPLES = [*examples("triton_lu"), *examples("Use")]  # later ones run in test_export.py and test_distributed.py


@pytest.fixture
def names():
    namespace = {}
    for example in EXAMPLES:
        exec(compile(example, "README.md", "exec"), namespace)
    return namespace


def test_factorization_and_gradient():
    namespace = {}
    exec(EXAMPLES[0], namespace)
    A = namespace["A"]
    determinants = torch.linalg.slogdet(A.detach()).logabsdet
    torch.testing.assert_close(namespace["loss"], determinants.sum(), rtol=1e-4, atol=1e-2)
    torch.testing.assert_close(A.grad, torch.linalg.inv(A.detach()).mT, rtol=0.1, atol=0.1)


def test_autocast(names):
    assert (names["y"].dtype, triton_lu.lu(names["y"])[0].dtype) == (torch.bfloat16, torch.float32)


def test_solutions(names):
    A, B, X, Y = (names[name] for name in "ABXY")
    torch.testing.assert_close(A @ X, B.expand_as(X), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(A.mH @ Y, X, rtol=1e-2, atol=1e-2)
    assert A.grad.isfinite().all()


def test_determinants(names):
    M = names["M"]
    torch.testing.assert_close(names["logabsdet"], torch.linalg.slogdet(M).logabsdet)
    torch.testing.assert_close(M.grad, torch.linalg.inv(M.detach()).mT, rtol=1e-2, atol=1e-2)


def test_existing_code(names):
    assert str(names["override"].calls) == "Counter({'torch.linalg.lu_factor': 1})"


def test_every_public_name_is_in_the_table():
    rows = "\n".join(line for line in README.splitlines() if line.startswith("| `triton_lu."))
    for name in (
        *triton_lu.__all__,
        "lu_factor",
        "lu_factor_ex",
        "lu_solve",
        "slogdet",
        "det",
        "logdet",
        "solve_ex",
        "inv_ex",
    ):
        assert name in rows
