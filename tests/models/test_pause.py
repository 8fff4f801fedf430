"""Learned positions within the text: where they stand, what is read where, what is scored."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from golf.config import Run
from golf.errors import UserError
from golf.models.norms import norm
from golf.models.pause import Pause, PauseConfig
from golf.tokens.tokenizer import ByteCounter
from tests.evals.helpers import score, windows_of
from tests.helpers.models import built, context_of, ids_for, stirred
from tests.helpers.parts import full_size, run_of_line

PAUSE = "model.embed.features.pause"


def pause_of(count: int, every: int, read: str = "memory", dim: int = 4) -> Pause:
    return Pause(PauseConfig(count=count, every=every, read=read, init_std=0.02), dim, norm)


def small(toy: Callable[..., Run], read: str, *overrides: str, count: int = 2, every: int = 5) -> Run:
    """A toy with `count` pauses after every 5 tokens."""
    return toy(
        "model/features=pause", f"{PAUSE}.count={count}", f"{PAUSE}.every={every}", f"{PAUSE}.read={read}", *overrides
    )


@pytest.mark.parametrize("length", [1, 2, 3, 4, 6, 7])
def test_pauses_stand_after_whole_groups(length: int) -> None:
    """Written out one position at a time."""
    part, x = pause_of(2, 3), torch.randn(2, length, 4)
    rows, tokens, reads = [], [], []
    for t in range(length):
        tokens.append(len(rows))
        rows.append(x[:, t])
        if t % 3 == 2:
            rows += [norm(part.vectors_pD[i]).expand(2, -1) for i in range(2)]
        reads.append(len(rows) - 1)
    torch.testing.assert_close(part(x, torch.zeros(2, length)), torch.stack(rows, dim=1))
    memory, delay = part.places(length), pause_of(2, 3, "delay").places(length)
    assert memory.count == delay.count == len(rows) == length + 2 * (length // 3)
    assert list(memory.tokens) == list(memory.reads) == list(delay.tokens) == tokens
    assert list(delay.reads) == reads


@pytest.mark.parametrize("count, every, positions", [(4, 64, 1088), (8, 32, 1280)])
def test_published_lengths(count: int, every: int, positions: int) -> None:
    assert pause_of(count, every).places(1024).count == positions
    assert pause_of(count, every).places(1023).count == positions - count - 1, "the last group is not whole"


@pytest.mark.parametrize("read", ["memory", "delay"])
def test_without_pauses_it_is_the_baseline(read: str, toy: Callable[..., Run]) -> None:
    base, none = stirred(toy()), stirred(small(toy, read, count=0))
    ids = ids_for(toy())
    assert torch.equal(base.log_probs(ids), none.log_probs(ids))


@pytest.mark.parametrize("read", ["memory", "delay"])
def test_no_position_sees_what_comes_after_it(read: str, toy: Callable[..., Run]) -> None:
    run = small(toy, read)
    model, ids = stirred(run), ids_for(run)
    with torch.no_grad():
        before = model.log_probs(ids)
        for place in (3, 4, 5, 9, 10, 20, 23):
            changed = ids.clone()
            changed[:, place] = (changed[:, place] + 1) % run.model.vocab_size
            after = model.log_probs(changed)
            assert torch.equal(before[:, :place], after[:, :place])
            assert not torch.isclose(before[:, place:], after[:, place:]).all(dim=-1).any(), "and all that comes does"
        torch.testing.assert_close(model.log_probs(ids[:, :13]), before[:, :13])


def last_reads(run: Run, ids: Tensor, vector: int) -> Tensor:
    """Which predictions change when only the residual stream's own path of one pause vector does: no token mixes."""
    model = stirred(run)
    for block in model.stack.blocks:
        block.mixer.out.weight.data.zero_()
    before = model.log_probs(ids)
    model.embed.features["pause"].vectors_pD.data[vector] += 1.0
    return (before != model.log_probs(ids))[0].any(dim=-1)


def test_delayed_predictions_are_read_at_the_last_pause(toy: Callable[..., Run]) -> None:
    ids = ids_for(toy(), rows=1, length=14)
    ends = [t in (4, 9) for t in range(14)]
    assert last_reads(small(toy, "delay"), ids, 1).tolist() == ends, "the last pause of each group, nothing else"
    assert not last_reads(small(toy, "delay"), ids, 0).any()
    assert not last_reads(small(toy, "memory"), ids, 1).any()


@pytest.mark.parametrize("read", ["memory", "delay"])
def test_the_same_tokens_and_bytes_are_scored_once_each(read: str, toy: Callable[..., Run]) -> None:
    base, paused = stirred(toy()), stirred(small(toy, read))
    stream = np.random.default_rng(0).integers(2, 384, size=207).astype(np.uint16)
    lengths = torch.arange(384) % 5 + 1
    counter = ByteCounter(lengths, *torch.zeros(2, 384, dtype=torch.bool))
    for stride in (None, 7):
        evaluator = windows_of(32, stride)
        plain, found = (score(evaluator, model, stream, counter) for model in (base, paused))
        assert (plain.tokens, plain.bytes) == (found.tokens, found.bytes) == (206, int(lengths[stream[1:]].sum()))
        assert plain.nats != found.nats


@pytest.mark.parametrize("read", ["memory", "delay"])
def test_it_goes_with_registers_and_bigrams(read: str, toy: Callable[..., Run]) -> None:
    run = toy("model/features=[bigram,pause,registers]", f"{PAUSE}.count=2", f"{PAUSE}.every=5", f"{PAUSE}.read={read}")
    model, ids = stirred(run), ids_for(run, length=11)
    places = model.embed.places(11)
    x = model.embed(ids, torch.float32)
    assert places.count == x.shape[1] == 4 + 11 + 2 * 2
    assert list(places.tokens) == [4 + t + 2 * (t // 5) for t in range(11)]
    assert list(places.reads) == [4 + t + 2 * ((t + (read == "delay")) // 5) for t in range(11)]
    vectors = norm(model.embed.features["pause"].vectors_pD)
    torch.testing.assert_close(x[:, 9:11], vectors.expand(2, -1, -1))
    torch.testing.assert_close(x[:, 16:18], vectors.expand(2, -1, -1))
    assert model.log_probs(ids).shape[1] == 11


def test_ids_of_pauses_are_the_first(toy: Callable[..., Run]) -> None:
    ids = torch.tensor([[7, 8, 9, 6]])
    context = context_of(torch.zeros(1, 6, 4), ids)
    context.places = pause_of(2, 3).places(4)
    assert context.padded_ids().tolist() == [[7, 8, 9, 0, 0, 6]]


def test_the_residual_keeps_its_type(toy: Callable[..., Run]) -> None:
    run = small(toy, "memory")
    model, ids = built(run), ids_for(run)
    assert model.embed(ids, torch.bfloat16).dtype == torch.bfloat16
    assert model.embed.features["pause"].vectors_pD.dtype == torch.float32


@pytest.mark.parametrize("name, added", [("pause_4_64", 4 * 512), ("pause_8_32", 8 * 512), ("pause_delay", 4 * 512)])
def test_published_sizes(name: str, added: int) -> None:
    run = full_size(f"model={name}")
    assert sum(p.numel() for p in run.model.build_on_meta().parameters()) == 17_059_912 + added
    assert run.model.embed.features["pause"].every == (32 if name == "pause_8_32" else 64)


def test_settings_that_make_no_sense_are_refused() -> None:
    with pytest.raises(UserError, match=r"features\.pause\.read='late' is not a choice; use one of memory, delay"):
        run_of_line("model/features=pause", f"{PAUSE}.read=late")
    with pytest.raises(UserError, match=r"features\.pause\.every=0 must lie in 1"):
        run_of_line("model/features=pause", f"{PAUSE}.every=0")
