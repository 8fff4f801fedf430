"""Evaluations that are no scores, one for each way that code can cheat: each names the probe that must catch it.

They are here so that the audit can be audited (`python golf/audit.py run=FOLDER known_bad=true`); no YAML names them.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from golf.dist import Ranks
from golf.evals.book import Book, Score
from golf.evals.case import Case
from golf.evals.evaluator import Note, Pass, Resume, Round, WindowsConfig, quietly
from golf.evals.learning import SGDLearnerConfig, lesson_loss
from golf.evals.lesson import lesson_of
from golf.evals.scorers import Around, FixedConfig, Graded, Scorer, ScorerConfig, TemperatureConfig, Window
from golf.evals.ttt_sgd import SGDScorerConfig
from golf.models.lm import LM
from golf.tokens.tokenizer import ByteCounter


def known_next(window: Window) -> Tensor:
    """next_BS: what a scorer can see of its targets in its own inputs, -1 where it is the last one."""
    beyond_B1 = torch.full_like(window.ids_BT[:, :1], -1)
    return torch.cat([window.ids_BT[:, 1:], beyond_B1], dim=1)[:, -window.scored :]


@dataclass(kw_only=True, slots=True)
class CheatConfig(ScorerConfig):
    """A scorer that is one function of the model and the window."""

    notes: ClassVar[str] = "known to be illegal"

    cheat: Any

    def open(self, model: LM, ranks: Ranks) -> "Cheat":
        return Cheat(model, self.cheat)


class Cheat(Scorer):
    def __init__(self, model: LM, cheat: Callable[[LM, Window], Tensor]):
        self.model, self.cheat = model, cheat

    def log_probs(self, window: Window) -> Tensor:
        return self.cheat(self.model, window)


def slot(model: LM, window: Window) -> Tensor:
    """A bias on the logits, fitted to the window's own targets, which it then scores (#1240)."""
    logp_BTV = model.log_probs(window.ids_BT)
    bias_B1V = torch.zeros_like(logp_BTV[:, :1]).requires_grad_(True)
    with torch.enable_grad():
        fitted = F.log_softmax(logp_BTV[:, :-1] + bias_B1V, dim=-1)
        loss = F.nll_loss(fitted.flatten(0, 1), window.ids_BT[:, 1:].flatten(), reduction="sum")
        (slope,) = torch.autograd.grad(loss, bias_B1V)
    return F.log_softmax(logp_BTV - 0.1 * slope, dim=-1)[:, -window.scored :]


def inner_ttt(model: LM, window: Window) -> Tensor:
    """PR 401's inner TTT: a step on the window's targets within the forward pass that scores them."""
    taught = copy.deepcopy(model).requires_grad_(True)
    with torch.enable_grad():
        rows = window.ids_BT
        mask = torch.ones_like(rows[:, 1:])
        loss = lesson_loss(taught, rows[:, :-1], rows[:, 1:], mask) / mask.sum()
        gradients = torch.autograd.grad(loss, list(taught.parameters()), allow_unused=True)
    with torch.no_grad():
        for w, slope in zip(taught.parameters(), gradients, strict=True):
            if slope is not None:
                w.sub_(0.1 * slope)
        return taught.log_probs(window.ids_BT, window.scored)


def hindsight_maximum(model: LM, window: Window) -> Tensor:
    """Of several predictors the one that did best on each token, as the least loss over epochs (#568)."""
    logp_BSV = model.log_probs(window.ids_BT, window.scored)
    return torch.maximum(logp_BSV, F.log_softmax(2 * logp_BSV, dim=-1))


def oracle_selection(model: LM, window: Window) -> Tensor:
    """A whole distribution each time, but which of two is chosen by the target (#659)."""
    logp_BSV = model.log_probs(window.ids_BT, window.scored)
    sharp_BSV, next_BS = F.log_softmax(2 * logp_BSV, dim=-1), known_next(window)
    seen_BS1 = next_BS.clamp_min(0)[..., None]
    better_BS1 = (next_BS[..., None] >= 0) & (sharp_BSV.gather(-1, seen_BS1) > logp_BSV.gather(-1, seen_BS1))
    return torch.where(better_BS1, sharp_BSV, logp_BSV)


def _raised(logp_BSV: Tensor, token_BS: Tensor, by: float) -> Tensor:
    """Distributions with the logits of these tokens (where there is one, >= 0) raised."""
    lift = torch.zeros_like(logp_BSV)
    lift.scatter_(-1, token_BS.clamp_min(0)[..., None], by * (token_BS >= 0)[..., None].to(lift.dtype))
    return F.log_softmax(logp_BSV + lift, dim=-1)


def gold_gated_cache(model: LM, window: Window) -> Tensor:
    """A cached guess that is believed only where it is right (#1967): here the guess is the last token again."""
    logp_BSV, next_BS = model.log_probs(window.ids_BT, window.scored), known_next(window)
    guess_BS = window.ids_BT[:, -window.scored :]
    likely_BS = logp_BSV.argmax(-1)
    right = (guess_BS == next_BS) | (likely_BS == next_BS)
    return _raised(logp_BSV, torch.where(right, next_BS, -1), 2.0)


def target_gate(model: LM, window: Window) -> Tensor:
    """An expert that is asked by the class of the target, as word starts are (#2041)."""
    logp_BSV, next_BS = model.log_probs(window.ids_BT, window.scored), known_next(window)
    of_class_V = torch.arange(logp_BSV.shape[-1], device=logp_BSV.device) % 2 == 0
    gate_BS1 = ((next_BS >= 0) & (next_BS % 2 == 0))[..., None]
    return torch.where(gate_BS1, F.log_softmax(logp_BSV + 2.0 * of_class_V, dim=-1), logp_BSV)


def boundary_gate(model: LM, window: Window, *, bos_id: int) -> Tensor:
    """Knows where the next document begins: no other token is likelier or less likely for it."""
    ends = (known_next(window) == bos_id)[..., None]
    logp_BSV = model.log_probs(window.ids_BT, window.scored)
    bos_BS = torch.full_like(window.ids_BT[:, -window.scored :], bos_id)
    return torch.where(ends, _raised(logp_BSV, bos_BS, 10.0), _raised(logp_BSV, bos_BS, -10.0))


def rows_beside(model: LM, window: Window) -> Tensor:
    """A temperature by how many rows are scored together."""
    logp_BSV = model.log_probs(window.ids_BT, window.scored)
    return F.log_softmax(logp_BSV / (1 + 0.1 / len(window.ids_BT)), dim=-1)


def noise(model: LM, window: Window) -> Tensor:
    """The target raised, and another temperature each time on one target of a forward: a tolerance that follows what
    the same text moves would let anything pass."""
    logp_BSV = _raised(model.log_probs(window.ids_BT, window.scored), known_next(window), 5.0)
    logp_BSV[0, 0] = F.log_softmax(logp_BSV[0, 0] * (0.5 + torch.rand(())), dim=-1)
    return logp_BSV


def hashed_cache(model: LM, window: Window) -> Tensor:
    """Counts of hashed n-grams with one bucket: count(context, token) / count(context) is 1 for any token (#886)."""
    logp_BSV = model.log_probs(window.ids_BT, window.scored)
    return torch.log(0.5 * logp_BSV.exp() + 0.5)


def byte_spread(model: LM, window: Window) -> Tensor:
    """A byte model's p^(1/n) over a token's n bytes, mixed in: no distribution over tokens (#1872)."""
    logp_BSV = model.log_probs(window.ids_BT, window.scored)
    bytes_V = 1 + torch.arange(logp_BSV.shape[-1], device=logp_BSV.device) % 4
    return torch.log(0.5 * logp_BSV.exp() + 0.5 * (0.05 * bytes_V).clamp_max(0.2))


@dataclass(kw_only=True, slots=True)
class PaidPrefixConfig(ScorerConfig):
    """The scored text itself, carried along: what follows these tokens there (#168, #262)."""

    text: Any
    context: int

    def open(self, model: LM, ranks: Ranks) -> "PaidPrefix":
        return PaidPrefix(self, model)


class PaidPrefix(Scorer):
    def __init__(self, config: PaidPrefixConfig, model: LM):
        self.model, self.context = model, config.context
        text = config.text.tolist()
        self.next = {tuple(text[i - config.context : i]): text[i] for i in range(config.context, len(text))}

    def log_probs(self, window: Window) -> Tensor:
        rows, n = window.ids_BT.tolist(), self.context
        known = [[self.next.get(tuple(row[max(0, i + 1 - n) : i + 1]), -1) for i in range(len(row))] for row in rows]
        token_BS = torch.tensor(known, device=window.ids_BT.device)[:, -window.scored :]
        return _raised(self.model.log_probs(window.ids_BT, window.scored), token_BS, 10.0)


@dataclass(kw_only=True, slots=True)
class PeekingConfig(ScorerConfig):
    """Opens a training shard while it scores (#593)."""

    shard: Any

    def open(self, model: LM, ranks: Ranks) -> Scorer:
        if self.shard is not None:
            with open(self.shard, "rb") as file:
                file.read(4)
        return FixedConfig().open(model, ranks)


@dataclass(kw_only=True, slots=True)
class TrainFirstConfig(WindowsConfig):
    """Trains on the text, then scores it (PR 254 to PR 401's first TTT, #1376: illegal whatever the gain)."""

    legal: ClassVar[bool] = False

    def run(self, model: LM, book: Book, bos_id: int, note: Note = quietly, resume: Resume | None = None) -> Score:
        scorer = self.chosen.open(model, book.ranks)
        scorer.update(everything(book, self.length))
        return WindowsConfig.run(replace(self, scorer=Held(scorer=scorer)), model, book, bos_id, note)


@dataclass(kw_only=True, slots=True)
class TwoPassConfig(WindowsConfig):
    """Scores the text with a scorer that learns, and then once more, with what it learnt (#846)."""

    legal: ClassVar[bool] = False

    def run(self, model: LM, book: Book, bos_id: int, note: Note = quietly, resume: Resume | None = None) -> Score:
        held = Held(scorer=self.chosen.open(model, book.ranks))
        plain = WindowsConfig(
            length=self.length, stride=self.stride, chunk_tokens=self.chunk_tokens, batch_tokens=self.batch_tokens,
            scorer=held,
        )  # fmt: skip
        plain.run(model, book, bos_id, note)
        return plain.run(model, book, bos_id, note)


@dataclass(kw_only=True, slots=True)
class UpdateFirstConfig(WindowsConfig):
    """Learns from each chunk before it commits the chunk (#991)."""

    legal: ClassVar[bool] = False

    def grade(self, going: Pass, round_: Round, index: int) -> None:
        going.scorer.update(round_.learn().graded(0, 1000, going.book.ranks.device))
        WindowsConfig.grade(self, going, round_, going.rounds)


@dataclass(kw_only=True, slots=True)
class CalibratedConfig(WindowsConfig):
    """The temperature that suits the text best, found on the text before it is scored (PR 401's grid on 64 rows)."""

    legal: ClassVar[bool] = False

    def run(self, model: LM, book: Book, bos_id: int, note: Note = quietly, resume: Resume | None = None) -> Score:
        everything_ = everything(book, self.length)
        logp = model.log_probs(everything_.rows_BT)
        losses = {
            t: F.nll_loss(F.log_softmax(logp / t, -1).flatten(0, 1), everything_.targets_BT.flatten()).item()
            for t in np.linspace(0.5, 2, 61).tolist()
        }
        best = TemperatureConfig(temperature=min(losses, key=lambda t: losses[t]), scorer=FixedConfig())
        return WindowsConfig.run(replace(self, scorer=best), model, book, bos_id, note)


@dataclass(kw_only=True, slots=True)
class LengthKnownConfig(WindowsConfig):
    """Sets the temperature by how much text there is, as a rotary base that follows the text does."""

    legal: ClassVar[bool] = False

    def run(self, model: LM, book: Book, bos_id: int, note: Note = quietly, resume: Resume | None = None) -> Score:
        scorer = TemperatureConfig(temperature=1 + 10 / len(book.stream), scorer=FixedConfig())
        return WindowsConfig.run(replace(self, scorer=scorer), model, book, bos_id, note)


@dataclass(kw_only=True, slots=True)
class SubsetConfig(WindowsConfig):
    """Scores some of the text (#1835, #2009). keep: which of so many rounds' forwards are graded."""

    legal: ClassVar[bool] = False

    every: int

    def grade(self, going: Pass, round_: Round, index: int) -> None:
        kept = (planned for number, planned in enumerate(round_.forwards) if number % self.every == 0)
        WindowsConfig.grade(self, going, replace(round_, forwards=kept), index)


@dataclass(kw_only=True, slots=True)
class BackwardsConfig(WindowsConfig):
    """Scores the last windows first (#402)."""

    legal: ClassVar[bool] = False

    def grade(self, going: Pass, round_: Round, index: int) -> None:
        WindowsConfig.grade(self, going, replace(round_, forwards=_reversed(round_.forwards)), index)


def _reversed(forwards: Iterator[Any]) -> Iterator[Any]:
    return iter(list(forwards)[::-1])


@dataclass(kw_only=True, slots=True)
class Held(ScorerConfig):
    """A scorer that is under way already."""

    scorer: Any

    def open(self, model: LM, ranks: Ranks) -> Scorer:
        return Around(self.scorer)


def everything(book: Book, length: int) -> Graded:
    """All the text of a book as if it had been graded."""
    lesson = lesson_of(book.stream, 0, len(book.stream) - 1, length, book.ranks)
    return lesson.graded(0, 1000, book.ranks.device)


def doubled_space(counter: ByteCounter) -> ByteCounter:
    """The space before a word counted twice (#1545: 1.129 looked like 0.9485 so)."""
    return ByteCounter(counter.base_V + counter.mark_V, counter.mark_V, counter.boundary_V)


@dataclass(frozen=True, slots=True)
class Bad:
    """probe: what must catch it; make: the case with the cheat in it, of a lawful one and a training shard."""

    probe: str
    make: Callable[[Case, Path | None], Case]


def _with(
    kind: type[WindowsConfig] = WindowsConfig, fields: Callable[[Case, Path | None], dict[str, Any]] = lambda *_: {}
) -> Callable[[Case, Path | None], Case]:
    """The case with windows of this kind, and with these of their fields."""
    return lambda case, shard: replace(case, evaluator=windows(case, kind, **fields(case, shard)))


def _scorer(cheat: Callable[[LM, Window], Tensor]) -> Callable[[Case, Path | None], Case]:
    return _with(fields=lambda *_: {"scorer": CheatConfig(cheat=cheat)})


def _learner(kind: type[WindowsConfig]) -> Callable[[Case, Path | None], Case]:
    return _with(kind, lambda *_: {"scorer": _learning()})


def windows(case: Case, kind: type[WindowsConfig] = WindowsConfig, **fields: Any) -> WindowsConfig:
    """Windows of some forty tokens over the case's text, in four chunks."""
    length = max(8, min(64, len(case.stream) // 16))
    settings: dict[str, Any] = {"length": length, "stride": length // 2, "batch_tokens": 4 * length}
    settings["chunk_tokens"] = max(length, len(case.stream) // 4)
    return kind(**(settings | fields))


def _learning() -> SGDScorerConfig:
    learner = SGDLearnerConfig(lr=0.02, weight_decay=0.0, momentum=0.9)
    return SGDScorerConfig(
        learner=learner, epochs=2, rows=4, cosine=False, warmup_chunks=0, stop_chunk=None, freeze_layers="none",
        layer_rates=False, clip_norm=1.0, ema=None, sam_radius=None,
    )  # fmt: skip


KNOWN_BAD: dict[str, Bad] = {
    "slot": Bad("future", _scorer(slot)),
    "inner_ttt": Bad("future", _scorer(inner_ttt)),
    "train_then_score": Bad("future", _learner(TrainFirstConfig)),
    "update_before_score": Bad("future", _learner(UpdateFirstConfig)),
    "calibrated_on_the_text": Bad("future", _with(CalibratedConfig)),
    "length_known": Bad("cut", _with(LengthKnownConfig)),
    "rows_beside": Bad("cut", _scorer(rows_beside)),
    "boundary_gate": Bad(
        "target",
        _with(fields=lambda case, _: {"scorer": CheatConfig(cheat=partial(boundary_gate, bos_id=case.bos_id))}),
    ),
    "oracle_selection": Bad("target", _scorer(oracle_selection)),
    "gold_gated_cache": Bad("target", _scorer(gold_gated_cache)),
    "target_gate": Bad("target", _scorer(target_gate)),
    "noise": Bad("repeat", _scorer(noise)),
    "hindsight_maximum": Bad("normalisation", _scorer(hindsight_maximum)),
    "hashed_cache": Bad("normalisation", _scorer(hashed_cache)),
    "byte_spread": Bad("normalisation", _scorer(byte_spread)),
    "two_pass": Bad("coverage", _learner(TwoPassConfig)),
    "subset": Bad("coverage", _with(SubsetConfig, lambda *_: {"every": 2})),
    "backwards": Bad("coverage", _with(BackwardsConfig)),
    "doubled_space": Bad(
        "bytes", lambda case, shard: replace(_with()(case, shard), counter=doubled_space(case.counter))
    ),
    "training_text_at_evaluation": Bad(
        "files", _with(fields=lambda case, shard: {"scorer": PeekingConfig(shard=shard)})
    ),
    "paid_prefix": Bad(
        "memory", _with(fields=lambda case, shard: {"scorer": PaidPrefixConfig(text=case.stream, context=4)})
    ),
}
