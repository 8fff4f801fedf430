"""The relations can fail: each catches what breaks it, alone and where all are tried in one pass."""

import contextlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golf.dist import Ranks
from golf.evals.case import Case
from golf.evals.evaluator import EvaluatorConfig
from golf.evals.known_bad import CheatConfig, LengthKnownConfig, boundary_gate, rows_beside, slot
from golf.evals.scorers import BESIDE, ORDER, Scorer, ScorerConfig, Window
from golf.models.bigram import BigramHashConfig
from golf.models.lm import LM
from golf.models.slots import Context
from golf.models.stack import Blocks
from golf.scoring import Scoring
from golf.tokens.shards import open_shard
from tests.evals.helpers import windows_of
from tests.helpers.learners import BOS, documents
from tests.helpers.relations import (
    BATCH,
    CHANGES,
    LENGTH,
    NUMBERS,
    PREFIX,
    RANKS,
    RELATIONS,
    SHARDS,
    case_of,
    model_of,
    moved_by,
    moving,
    relation,
)

Make = Callable[[pytest.MonkeyPatch], Case]


@dataclass(kw_only=True, slots=True)
class OpenedConfig(ScorerConfig):
    """A cheat that may know its ranks, and begins anew with each pass."""

    cheat_of: Any

    def open(self, model: LM, ranks: Ranks) -> Scorer:
        return CheatConfig(cheat=self.cheat_of(ranks)).open(model, ranks)


def by_document(scorer: ScorerConfig | None = None) -> EvaluatorConfig:
    return documents(length=LENGTH, chunk_tokens=12, documents=8, batch_tokens=1000, order="stream", scorer=scorer)


def in_windows(**fields: Any) -> EvaluatorConfig:
    return windows_of(LENGTH, 12, 1000, chunk_tokens=48, **fields)


def of(evaluator: EvaluatorConfig, model: str = "model=baseline") -> Case:
    return case_of(evaluator, model_of(model), "cheat", places=4)


def cheating(cheat: Callable[[LM, Window], Tensor]) -> Make:
    return lambda _: of(by_document(CheatConfig(cheat=cheat)))


def sharper(model: LM, window: Window, by: float) -> Tensor:
    return F.log_softmax(model.log_probs(window.ids_BT, window.scored) * (1 + by), dim=-1)


def neighbours(model: LM, window: Window) -> Tensor:
    """The mean over what is scored together, mixed in."""
    logp_BSV = model.log_probs(window.ids_BT, window.scored)
    return torch.log(0.9 * logp_BSV.exp() + 0.1 * logp_BSV.exp().mean(0, keepdim=True))


def even_numbers(model: LM, window: Window) -> Tensor:
    logp_BSV = model.log_probs(window.ids_BT, window.scored)
    return F.log_softmax(logp_BSV + 0.5 * (torch.arange(logp_BSV.shape[-1]) % 2), dim=-1)


def of_rank(ranks: Ranks) -> Callable[[LM, Window], Tensor]:
    return lambda model, window: sharper(model, window, 0.1 * ranks.rank)


def of_place(ranks: Ranks) -> Callable[[LM, Window], Tensor]:
    """Rows are scored the more sharply the later they come."""
    rows = count()
    return lambda model, window: torch.cat(
        [sharper(model, Window(ids_T[None], window.scored, window.slot_B), 0.1 * next(rows)) for ids_T in window.ids_BT]
    )


def without_first_tokens(patch: pytest.MonkeyPatch) -> Case:
    """The first token of a shard is lost."""

    def stream(scoring: Scoring) -> np.ndarray:
        first, *others = map(open_shard, scoring.prepared.splits["val"].shards)
        return np.concatenate([first, *(tokens[1:] for tokens in others)])

    patch.setattr(Scoring, "stream", stream)
    return of(by_document())


def shards_turned(patch: pytest.MonkeyPatch) -> Case:
    """Shards are read in another order."""
    patch.setattr(Scoring, "stream", lambda scoring: np.concatenate(
        [open_shard(path) for path in reversed(scoring.prepared.splits["val"].shards)]
    ))  # fmt: skip
    return of(by_document())


def model_of_neighbours(patch: pytest.MonkeyPatch) -> Case:
    """Its stream has the mean over rows mixed in."""
    forward = Blocks.forward

    def mixing(stack: Blocks, x_BND: Tensor, context: Context) -> Tensor:
        x_BND = forward(stack, x_BND, context)
        return x_BND + 0.1 * x_BND.mean(0, keepdim=True)

    patch.setattr(Blocks, "forward", mixing)
    return of(by_document())


def hash_undeclared(patch: pytest.MonkeyPatch) -> Case:
    patch.setattr(BigramHashConfig, "hashes_ids", False)
    return of(by_document(), "model/features=bigram")


def length_undeclared(patch: pytest.MonkeyPatch) -> Case:
    """Rotary bases follow the length of a pass."""
    patch.setattr("golf.evals.evaluator.declared_length", lambda model, length: contextlib.nullcontext())
    return of(by_document(), "model/rope=partial")


CHEATS: dict[str, tuple[Make, set[str]]] = {
    "rows are counted": (cheating(rows_beside), {BATCH}),
    "rows are mixed": (cheating(neighbours), {BATCH, BESIDE, PREFIX}),
    "a model mixes rows": (model_of_neighbours, {BATCH, BESIDE, PREFIX}),
    "the rank is known": (lambda _: of(by_document(OpenedConfig(cheat_of=of_rank))), {RANKS}),
    "the place in the stream is known": (lambda _: of(by_document(OpenedConfig(cheat_of=of_place))), {ORDER}),
    "first tokens are lost": (without_first_tokens, {SHARDS}),
    "shards are turned": (shards_turned, {SHARDS}),
    "numbers of tokens are known": (cheating(even_numbers), {NUMBERS}),
    "a model hashes them": (hash_undeclared, {NUMBERS}),
    "the length of the text is known": (lambda _: of(LengthKnownConfig(
        length=LENGTH, stride=12, batch_tokens=1000, chunk_tokens=48)), {PREFIX}),
    "the length of a document is known": (length_undeclared, {PREFIX}),
    "its own text is fitted": (cheating(slot), {PREFIX}),
    "its end is known": (cheating(lambda model, window: boundary_gate(model, window, bos_id=BOS)), {PREFIX}),
}  # fmt: skip


@pytest.mark.parametrize("name", list(CHEATS))
def test_a_cheat_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    make, broken = CHEATS[name]
    case = make(monkeypatch)
    assert all(relation(what, case) for what in broken)
    assert broken.isdisjoint(CHANGES) or moved_by(CHANGES.values(), case), "in one pass"


def test_what_is_caught_in_one_pass_is_named() -> None:
    assert moving(of(by_document(CheatConfig(cheat=rows_beside))), set()).keys() == {BATCH, RANKS}


def test_every_relation_catches_something() -> None:
    assert set().union(*(broken for _, broken in CHEATS.values())) == set(RELATIONS)


@pytest.mark.parametrize("evaluator", [by_document(), in_windows()])
def test_what_does_not_cheat_is_not_caught(evaluator: EvaluatorConfig) -> None:
    assert moving(of(evaluator), set()).keys() == set(evaluator.depends_on)
