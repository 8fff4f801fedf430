"""Adaptive computation time: its weights, its halting and its loss, against the definition token by token."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from golf.config import Run
from golf.losses import NLL
from golf.models.slots import Frame
from golf.models.universal import Universal, UniversalConfig
from tests.helpers.models import context_of, ids_for, stirred

D = 8


class Step(nn.Module):
    """A block of which what it does is known."""

    def forward(self, x_BND: torch.Tensor, context: Any) -> torch.Tensor:
        return torch.tanh(1.7 * x_BND + 0.3)


def universal(**fields: Any) -> Universal:
    torch.manual_seed(0)
    settings: dict[str, Any] = {"most": 5, "threshold": 0.99, "bias": -1.0, "steps": False, "ponder": 0.5}
    config = UniversalConfig(**(settings | {"form": "graves"} | fields))
    stack = Universal(config, Frame(64, D, 1, None), lambda layer: Step())  # type: ignore[arg-type]
    if stack.halt_D is not None:
        stack.halt_D.data.normal_(std=2.0)
    return stack


def by_hand(stack: Universal, x: torch.Tensor) -> tuple[torch.Tensor, float, list[float], int]:
    """Of one token: its output, what it pays, its weights, and the steps it took (PR 1589; Graves 2016)."""
    config, total, out, weights = stack.config, 0.0, torch.zeros(D), []
    for n in range(config.most):
        x = torch.tanh(1.7 * x + 0.3)
        p = torch.sigmoid(stack.halt_D @ x + stack.halt_bias).item() if stack.halt_D is not None else 0.0
        last = n == config.most - 1
        if total + p >= config.threshold or last:
            weights.append(1 - total)
            pays = n + 1 + (1 - total if config.form == "graves" or last else 0.0)
            return out + (1 - total) * x, pays, weights, n + 1
        weights.append(p)
        out, total = out + p * x, total + p
    raise AssertionError


@pytest.mark.parametrize("form", ["graves", "last"])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_equals_the_definition_token_by_token(form: str, most: int) -> None:
    stack = universal(form=form, most=most)
    x = torch.randn(3, 7, D)
    context = context_of(x)
    found = stack(x, context)
    hands = [by_hand(stack, token) for token in x.reshape(-1, D)]
    assert torch.allclose(found.reshape(-1, D), torch.stack([out for out, *_ in hands]), atol=1e-5)
    assert all(sum(weights) == pytest.approx(1.0, abs=1e-5) for _, _, weights, _ in hands)
    if most == 5:
        assert len({steps for *_, steps in hands}) > 1, "tokens of different depth"
    if most > 1:
        expected = 0.5 * sum(pays for _, pays, *_ in hands) / len(hands)
        assert context.losses["ponder"].item() == pytest.approx(expected, rel=1e-5)
    else:
        assert not context.losses


def test_one_step_is_the_block_and_a_threshold_of_zero_takes_one() -> None:
    x = torch.randn(2, 5, D)
    assert torch.equal(universal(most=1)(x, context_of(x)), Step()(x, None))
    assert torch.allclose(universal(threshold=0.0)(x, context_of(x)), Step()(x, None), atol=1e-6)


def test_halted_tokens_stay_as_they_were_for_others() -> None:
    """A step sees the state of before the halting one."""
    stack, seen = universal(threshold=0.6), []
    stack.blocks[0].register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    x = torch.randn(1, 40, D)
    stack(x, context_of(x))
    steps = torch.tensor([by_hand(stack, token)[3] for token in x[0]])
    assert len(set(steps.tolist())) > 2
    for n in range(1, 5):
        halted = steps < n + 1  # in or before step n
        assert torch.equal(seen[n][0, steps < n], seen[n - 1][0, steps < n])
        assert torch.allclose(seen[n][0, ~halted], Step()(seen[n - 1], None)[0, ~halted])


def test_early_halting_pays_with_a_gradient_in_graves_form_only() -> None:
    for form, moves in (("graves", True), ("last", False)):
        stack = universal(form=form, bias=3.0)  # p = 0.95: all halt at the second step
        stack.halt_D.data.zero_()
        x = torch.randn(2, 20, D)
        context = context_of(x)
        stack(x, context)
        (slope,) = torch.autograd.grad(context.losses["ponder"], [stack.halt_bias], allow_unused=True)
        assert (slope is not None and slope.abs() > 0) == moves


def test_pondering_is_trained_and_never_scored(toy: Callable[..., Run]) -> None:
    run = toy("model=universal")
    model, ids = stirred(run), ids_for(run)
    losses = model(ids[:, :-1], ids[:, 1:])
    assert set(losses) == {NLL, "ponder"} and losses["ponder"] > 0
    nll = -model.log_probs(ids[:, :-1]).gather(-1, ids[:, 1:, None]).mean()
    assert nll.item() == pytest.approx(losses[NLL].item(), abs=1e-5)
    assert model.repeated_params() == 5 * sum(p.numel() for p in model.stack.blocks.parameters())
