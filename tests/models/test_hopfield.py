"""Heads that refine the state: formulas, what they are with nothing to do, the energy of a retrieval."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.errors import UserError
from golf.losses import CROSS_ENTROPY
from golf.models.hopfield import retrieved
from golf.models.norms import norm
from golf.models.slots import Frame
from tests.helpers.parts import full_size, run_of_line

D, V = 16, 50
HEADS = pytest.mark.parametrize("name", ["attractor", "hopfield"])


def head_of(name: str, *overrides: str) -> nn.Module:
    """The head alone, with random parameters."""
    run = run_of_line("track=tiny", f"model/head={name}", *(f"model.head.{text}" for text in overrides))
    torch.manual_seed(0)
    head = run.model.head.build(Frame(V, D, 2, run.model.linear))
    for parameter in head.parameters():
        if parameter.ndim:
            nn.init.normal_(parameter, std=0.3)
    return head


def inputs(rows: int = 2, length: int = 7) -> tuple[Tensor, Tensor, Tensor]:
    """x_BTD, targets_BT, table_VD."""
    torch.manual_seed(1)
    return norm(torch.randn(rows, length, D)), torch.randint(V, (rows, length)), torch.randn(V, D) * 0.7


def capped(z: Tensor) -> Tensor:
    return (30 * torch.tanh(z / 30)).log_softmax(-1)


@pytest.mark.parametrize("bias", ["true", "false"])
def test_the_attractor_is_its_formula(bias: str) -> None:
    head, (x, _, table) = head_of("attractor", f"bias={bias}"), inputs()
    head.log_gain.data, head.alpha.data = torch.tensor(-0.4), torch.tensor(0.3)
    h = x
    for _ in range(3):
        joined = torch.cat((h, x), -1) @ head.first.weight.T
        h = h - 0.3 * (0.5 * joined * (1 + torch.erf(joined / 2**0.5))) @ head.second.weight.T
    energies = torch.stack([-(h @ (head.map.weight.T @ e)) + (bias == "true") * (e @ e) for e in table], -1)
    expected = capped(-energies * torch.tensor(-0.4).exp())
    torch.testing.assert_close(head.log_probs(x, table), expected, atol=1e-4, rtol=1e-4)


def test_with_a_second_matrix_of_zero_it_is_a_bilinear_softmax() -> None:
    head, (x, _, table) = head_of("attractor"), inputs()
    nn.init.zeros_(head.second.weight)
    expected = capped((x @ head.map.weight.T) @ table.T - table.square().sum(-1))
    torch.testing.assert_close(head.log_probs(x, table), expected, atol=1e-5, rtol=1e-5)
    run = run_of_line("track=tiny", "model/head=attractor")
    fresh = run.model.head.build(Frame(V, D, 2, run.model.linear))
    assert not fresh.second.weight.any(), "as it begins"
    torch.testing.assert_close(fresh.map.weight @ fresh.map.weight.T, torch.eye(D), atol=1e-5, rtol=0)


def test_the_gradient_stops_at_the_state_from_before() -> None:
    head, (x, _, table) = head_of("attractor", "steps=1"), inputs()
    head.first.weight.data[:, :D] = 0  # only what stands beside h is read
    x.requires_grad_()
    head.query(x, table).sum().backward()
    torch.testing.assert_close(x.grad, head.map.weight.sum(0).expand_as(x), atol=1e-5, rtol=1e-5)


def test_a_retrieval_that_adds_nothing_is_the_plain_head() -> None:
    head, (x, _, table) = head_of("hopfield"), inputs()
    head.alpha.data.zero_()
    torch.testing.assert_close(head.log_probs(x, table), capped(x @ table.T), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("steps", [1, 3])
def test_the_retrieval_is_its_formula(steps: int) -> None:
    head, (h, _, table) = head_of("hopfield", f"steps={steps}"), inputs()
    head.alpha.data, head.log_beta.data = torch.tensor(0.3), torch.tensor(2.0).log()
    x = h
    for _ in range(steps):
        weight = (2.0 * (h @ head.map.weight.T) @ table.T).softmax(-1)
        h = 0.7 * h + 0.3 * F.rms_norm(weight @ table, (D,), eps=1e-6)
    torch.testing.assert_close(head.log_probs(x, table), capped(h @ table.T), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("beta", [0.5, 1.0, 8.0])
def test_a_bare_retrieval_never_raises_the_energy(beta: float) -> None:
    """-lse(beta, E q) + |q|^2 / 2 of the paper."""
    _, _, table = inputs()
    q = torch.randn(20, D)

    def energy(q: Tensor) -> Tensor:
        return -(beta * q @ table.T).logsumexp(-1) / beta + q.square().sum(-1) / 2

    start = energy(q)
    for _ in range(6):
        before, q = energy(q), retrieved(q, table, torch.tensor(beta))
        assert (energy(q) <= before + 1e-5).all()
    assert (energy(q) < start - 0.1).all()


@HEADS
def test_losses_and_their_gradients_agree_with_log_probs(name: str) -> None:
    head, (x, targets, table) = head_of(name), inputs()
    leaves = [x.requires_grad_(), table.requires_grad_(), *head.parameters()]
    loss = head.losses(x, targets, table, CROSS_ENTROPY)["nll"]
    plain = F.nll_loss(head.log_probs(x, table).flatten(0, 1), targets.flatten())
    torch.testing.assert_close(loss, plain)
    for found, expected in zip(torch.autograd.grad(loss, leaves), torch.autograd.grad(plain, leaves), strict=True):
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)


@HEADS
def test_chunks_of_tokens_change_nothing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    head, (x, targets, table) = head_of(name), inputs()
    whole = head.losses(x, targets, table, CROSS_ENTROPY)["nll"]
    monkeypatch.setattr("golf.models.cross_entropy.CHUNK_ELEMENTS", {"cpu": 4 * V})
    torch.testing.assert_close(head.losses(x, targets, table, CROSS_ENTROPY)["nll"], whole)


@pytest.mark.parametrize("name, added, uses", [("attractor", 7 * 512**2 + 2, 1), ("hopfield", 512**2 + 2, 5)])
def test_sizes(name: str, added: int, uses: int) -> None:
    """A: D x D; F1: 2D x 2D; F2: D x 2D; two numbers."""
    model = full_size(f"model={name}").model.build_on_meta()
    assert sum(p.numel() for p in model.parameters()) == 17_059_912 + added
    assert model.head.table_uses == uses and model.head.output is None


@HEADS
def test_no_step_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.head\.steps=0 must lie in 1"):
        head_of(name, "steps=0")
