"""Texts passed in pieces: what is kept of attention's keys and values stands for all that went before."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from golf.conf_files import CONF
from golf.config import Run
from golf.errors import RunError, UserError
from golf.models.lm import LM, declared_length
from golf.models.recall import Recall
from tests.helpers.model_choices import CHOICES, FIRST
from tests.helpers.models import built, ids_for, stirred
from tests.helpers.tiers import slow

GROUPS = ("features", "input", "mixer", "output", "residual", "rope", "stack", "value", "window")
PARTS = [f"model/{group}={path.stem}" for group in GROUPS for path in sorted((CONF / "model" / group).glob("*.yaml"))]
WHOLE = {  # what keeps more of a text than keys and values
    "model/mixer=diagonal_masked": "model.mixer.masked_layers has a mask of whole texts"
} | {
    f"model/stack={name}": "model.stack keeps more of a text"
    for name in ("agents", "agents_mean", "mps", "mps_pr", "surge", "surge_off", "surge_per_token", "surge_single_pass",
                 "surge_two_pass", "surge_two_pass_drop")
}  # fmt: skip


def in_pieces(model: LM, ids_BT: Tensor, stops: tuple[int, ...]) -> Tensor:
    """x_BTD, the text up to each of these tokens at a time."""
    past = Recall(model.attend)
    with torch.no_grad(), declared_length(model, ids_BT.shape[1]):
        return torch.cat([model.hidden(ids_BT[:, :stop], past=past) for stop in stops], dim=1)


NUMBERS = {choice for choice in CHOICES if choice not in FIRST.values()}  # what differs from another in these alone


@pytest.mark.parametrize("part", [slow(part) if part in NUMBERS else part for part in PARTS])
def test_pieces_are_the_whole_or_are_refused(part: str, toy: Callable[..., Run]) -> None:
    run = toy(part, "scale.seq=0.03125")
    if part in WHOLE:
        assert built(run).stack.why_whole(24).startswith(WHOLE[part])
        return
    model, ids = stirred(run), ids_for(run)
    assert not model.stack.why_whole(24)
    with torch.no_grad():
        whole = model.hidden(ids)
    torch.testing.assert_close(in_pieces(model, ids, (1, 8, 9, 24)), whole, atol=2e-5, rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_windows_are_kept_to_at_every_edge(dtype: torch.dtype, toy: Callable[..., Run]) -> None:
    """In double precision nothing is left to tell them apart."""
    model = stirred(toy("model/window=early", "model.mixer.window.size=3", "model.mixer.window.layers=all")).to(dtype)
    model.compute_dtype, ids = dtype, ids_for(toy())
    with torch.no_grad():
        whole = model.log_probs(ids)
        for size in (1, 2, 3, 4, 5, 23):
            found = model.head.log_probs(in_pieces(model, ids, (*range(size, 24, size), 24)), model.embed.table_VD)
            assert (found - whole).abs().max() < (1e-6 if dtype == torch.float64 else 1e-5)


def test_a_base_is_of_the_declared_length_and_not_of_the_pass(toy: Callable[..., Run]) -> None:
    """So the beginning of a text scores as the whole one does, in pieces too; a longer declaration turns otherwise."""
    run = toy("model/rope=partial")
    assert run.model.mixer.rope.reference_length == 32  # type: ignore[attr-defined]
    model, ids = stirred(run), ids_for(run, length=48)
    with torch.no_grad():
        undeclared = model.hidden(ids)
        with declared_length(model, 48):
            torch.testing.assert_close(model.hidden(ids[:, :24]), undeclared[:, :24], atol=2e-5, rtol=1e-5)
        torch.testing.assert_close(in_pieces(model, ids, (1, 24, 40, 48)), undeclared, atol=2e-5, rtol=1e-5)
        with declared_length(model, 96):
            assert (model.hidden(ids) - undeclared).abs().max() > 1e-3
        assert (model.hidden(ids[:, :24]) - undeclared[:, :24]).abs().max() > 1e-4, "each is a text of its own here"


def test_a_declared_length_is_kept_to(toy: Callable[..., Run]) -> None:
    model, ids = built(toy()), ids_for(toy())
    with torch.no_grad(), declared_length(model, 23), pytest.raises(RunError, match=r"24 tokens .* at most 23"):
        model.log_probs(ids)
    with torch.no_grad(), pytest.raises(RunError, match="in pieces needs"):
        model.hidden(ids, past=Recall(model.attend))


def test_a_cache_holds_what_is_said_of_it(toy: Callable[..., Run]) -> None:
    """Numbers a token and layer: keys and values of grouped queries; of the published latent form, where it looks at
    the latent itself, the keys alone, since the values are a part of them."""
    kept = []
    for parts in ([], ["model/mixer=mla_decoupled", "model.mixer.absorb=true"]):
        run = toy(*parts)
        model = built(run)
        past = Recall(model.attend)
        with torch.no_grad(), declared_length(model, 24):
            model.hidden(ids_for(run), past=past)
        assert past.positions == 24 and len(past.past) == run.model.layers
        kept.append((*past.past[-1], run.model.mixer))
    (keys, values, gqa), (latent, again, mla) = kept
    assert keys[0, 0].numel() + values[0, 0].numel() == gqa.cached_numbers(32)
    assert latent[0, 0].numel() == mla.cached_numbers(32)
    assert torch.equal(latent[..., : mla.latent], again[..., : mla.latent]) and not again[..., mla.latent :].any()


def test_chunks_of_a_changing_stack_refuse_such_mixers(toy: Callable[..., Run]) -> None:
    with pytest.raises(UserError, match=r"model\.stack: chunks see each other .* model\.mixer\.masked_layers has"):
        built(toy("model/stack=surge", "model/mixer=diagonal_masked", "model.mixer.masked_layers=last:1"))
