"""The examples of the README and of docs/usage.md run, and do what their comments say; the README is short."""

import re

import pytest
import torch

import triton_lu
from tests.support.readme import README, ROOT, examples

FIRST, WITH_OVERRIDE = examples("First steps")  # those of compiled and distributed programs run in tests of their own
USAGE = [example for section in ("Autocast", "Solutions", "Existing code") for example in examples(section)]


@pytest.fixture
def names():
    namespace = {"torch": torch, "triton_lu": triton_lu}
    for example in USAGE:
        exec(compile(example, "usage.md", "exec"), namespace)
    return namespace


def test_first_steps():
    namespace = {}
    exec(FIRST, namespace)
    A = namespace["A"].detach().double().requires_grad_()
    X = torch.linalg.solve(A, torch.ones(32, 1, dtype=torch.double))
    loss = torch.linalg.slogdet(A).logabsdet.sum() + X.square().sum()
    loss.backward()
    torch.testing.assert_close(namespace["loss"].double(), loss, rtol=1e-4, atol=0)
    error = (namespace["A"].grad.double() - A.grad).norm() / A.grad.norm()
    assert error < 1e-3


def test_existing_code_of_the_first_steps():
    A = torch.randn(3, 4, 4, requires_grad=True)
    exec(WITH_OVERRIDE, {"torch": torch, "triton_lu": triton_lu, "A": A})
    expected = torch.autograd.grad(triton_lu.lu(A)[0].square().sum(), A)[0]
    assert torch.equal(A.grad, expected)


def test_autocast(names):
    assert (names["y"].dtype, triton_lu.lu(names["y"])[0].dtype) == (torch.bfloat16, torch.float32)


def test_solutions(names):
    A, B, X, Y = (names[name] for name in "ABXY")
    torch.testing.assert_close(A @ X, B.expand_as(X), rtol=1e-2, atol=1e-2)
    torch.testing.assert_close(A.mH @ Y, X, rtol=1e-2, atol=1e-2)
    assert A.grad.isfinite().all()


def test_determinants(names):
    M = names["M"]
    torch.testing.assert_close(names["logabsdet"], torch.linalg.slogdet(M).logabsdet, rtol=1e-3, atol=1e-3)
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


def test_it_has_at_most_900_words():
    prose = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    assert len([word for word in prose.split() if re.search(r"\w", word)]) <= 900


@pytest.mark.parametrize("document", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))], ids=lambda p: p.name)
def test_links_lead_somewhere(document):
    for target, anchor in re.findall(r"\]\((?!http)([^)#]*)(?:#([^)]*))?\)", document.read_text(encoding="utf-8")):
        file = document.parent / target if target else document
        assert file.exists(), target
        if anchor:
            headings = re.findall(r"^#+ (.*)$", file.read_text(encoding="utf-8"), re.MULTILINE)
            assert anchor in [heading.lower().replace(" ", "-") for heading in headings]
