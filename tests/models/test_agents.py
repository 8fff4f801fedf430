"""A stack heard through a narrow message: the decoder's formula, its reach, the message's."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from golf.config import Run
from golf.models.agents import mean_so_far
from golf.models.lm import LM
from golf.models.norms import norm
from tests.helpers.models import context_of, ids_for, stirred
from tests.helpers.parts import full_size

STACKS = pytest.mark.parametrize("stack", ["agents", "agents_mean"])


def gelu(x: Tensor) -> Tensor:
    return 0.5 * x * (1 + torch.erf(x / math.sqrt(2)))


@STACKS
def test_the_decoder_is_its_formula(stack: str, toy: Callable[..., Run]) -> None:
    """One position at a time."""
    run = toy(f"model/stack={stack}")
    agents = stirred(run).stack
    ids, x = ids_for(run, length=12), norm(torch.randn(2, 12, 32))
    found = agents(x, context_of(x, ids))
    state = norm(agents.inner(x, context_of(x, ids)))
    window, width = run.model.stack.context, run.model.stack.width
    for t in range(12):
        heard = state[:, : t + 1].mean(dim=1) if stack == "agents_mean" else state[:, t]
        parts = [torch.zeros(2, width)] * max(0, window - 1 - t)
        parts += [norm(agents.table_VE[ids[:, s]]) for s in range(max(0, t - window + 1), t + 1)]
        h = torch.cat((*parts, heard @ agents.message.weight.T), dim=-1)
        for layer in (agents.first, agents.second):
            h = norm(gelu(h @ layer.weight.T))
        torch.testing.assert_close(found[:, t], h @ agents.out.weight.T, atol=1e-4, rtol=1e-4)


def changes(model: LM, ids: Tensor, place: int) -> list[bool]:
    """Which predictions change with the token at `place`."""
    other = ids.clone()
    other[:, place] = (other[:, place] + 1) % 384
    with torch.no_grad():
        return (model.log_probs(ids) != model.log_probs(other)).any(dim=-1).any(dim=0).tolist()


@STACKS
def test_without_a_message_it_sees_its_window_of_tokens(stack: str, toy: Callable[..., Run]) -> None:
    run = toy(f"model/stack={stack}", "model.stack.context=5")
    model, ids = stirred(run), ids_for(run)
    assert changes(model, ids, 10) == [t >= 10 for t in range(24)], "with one, everything before"
    model.stack.message.weight.data.zero_()
    assert changes(model, ids, 10) == [10 <= t < 15 for t in range(24)]


@STACKS
def test_all_that_is_known_of_far_tokens_goes_through_the_message(stack: str, toy: Callable[..., Run]) -> None:
    """States that differ only across the message's null space are one to the decoder."""
    run = toy(f"model/stack={stack}", "model.stack.message=4")
    model, ids = stirred(run), ids_for(run)
    seen: list[Tensor] = []
    model.stack.message.register_forward_hook(lambda module, inputs, output: seen.append(output))
    before = model.log_probs(ids)
    assert seen[0].shape == (2, 24, 4)
    model.stack.message.register_forward_hook(lambda module, inputs, output: seen[0])
    model.stack.inner.blocks[0].mlp.up.weight.data.mul_(3)
    assert torch.equal(model.log_probs(ids), before), "another encoder, the same message"


def test_a_mean_so_far_is_the_mean_of_what_was() -> None:
    m = torch.randn(2, 9, 3)
    expected = torch.stack([m[:, : t + 1].mean(dim=1) for t in range(9)], dim=1)
    torch.testing.assert_close(mean_so_far(m), expected)
    long = torch.randn(1, 5000, 1).bfloat16()
    exact = (long.double().cumsum(1) / torch.arange(1, 5001)[:, None]).bfloat16()
    assert (mean_so_far(long) == exact).float().mean() > 0.99, "summed in fp32"


def test_the_stack_inside_keeps_its_depth_and_stages(toy: Callable[..., Run]) -> None:
    run = toy("model/stack=agents", "model/stack@model.stack.inner=recurrence", "model.layers=11")
    model, ids = stirred(run), ids_for(run)
    alone = toy("model/stack=recurrence", "model.layers=11").model.build_on_meta()
    assert (model.stack.stored_depth(), model.stack.effective_depth()) == (11, 17)
    assert model.repeated_params() == alone.repeated_params() > 0
    assert model.stack.starts == alone.stack.starts and model.stage(0.4) == len(model.stack.starts) > 0
    with torch.no_grad():
        assert not torch.equal(model.hidden(ids, 0), model.hidden(ids))


def test_positions_without_a_token_are_in_the_window(toy: Callable[..., Run]) -> None:
    run = toy("model/stack=agents", "model/features=[registers,bigram]")
    model, ids = stirred(run), ids_for(run)
    model.stack.message.weight.data.zero_()
    assert changes(model, ids, 10) == [10 <= t < 18 for t in range(24)]
    seen: list[Tensor] = []
    recent = model.stack.recent
    model.stack.recent = lambda ids_BT, dtype: seen.append(ids_BT) or recent(ids_BT, dtype)
    model.log_probs(ids)
    assert torch.equal(seen[0][:, 4:], ids) and not seen[0][:, :4].any()


def test_size() -> None:
    run = full_size("model=agents")
    vocab, dim, width, message, window, hidden = 1024, 512, 128, 64, 8, 256
    decoder = vocab * width + dim * message + (window * width + message) * hidden + hidden**2 + hidden * dim
    assert sum(p.numel() for p in run.model.build_on_meta().parameters()) == 17_059_912 + decoder
