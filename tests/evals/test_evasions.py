"""Ways around the audit that a review found: noise, no numbers, few places, rare tokens, threads, and what little text
never meets."""

import os
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from golf.auditing import brought_forward
from golf.dist import Ranks
from golf.evals import probes, ttt_lora
from golf.evals.book import Book
from golf.evals.case import sample_text
from golf.evals.evaluator import EvaluatorConfig, WindowsConfig
from golf.evals.evaluator import windows as spans
from golf.evals.known_bad import CheatConfig, SubsetConfig, _raised, known_next, noise, windows
from golf.evals.probes import FAIL, PASS, UNKNOWN, candidate
from golf.evals.scorers import FixedConfig, Scorer, ScorerConfig, Window
from golf.models.lm import LM
from golf.nodes import plain
from tests.evals.helpers import Lawful, findings, windows_of
from tests.helpers.learners import LEARNERS, documents

Cheat = Callable[[LM, Window], Tensor]


def cheating(cheat: Cheat) -> WindowsConfig:
    return windows_of(32, 16, 128, chunk_tokens=150, scorer=CheatConfig(cheat=cheat))


def oracle(model: LM, window: Window) -> Tensor:
    """Raises the very target."""
    return _raised(model.log_probs(window.ids_BT, window.scored), known_next(window), 5.0)


def rare_gate(model: LM, window: Window) -> Tensor:
    """Raises the target where it is one of a few tokens."""
    next_BS = known_next(window)
    rare = torch.where(next_BS % 32 == 0, next_BS, -1)
    return _raised(model.log_probs(window.ids_BT, window.scored), rare, 5.0)


def where(kept: Callable[[Window], Tensor]) -> Cheat:
    """The oracle in some rows only: those whose flag in kept_B is up."""
    return lambda model, w: torch.where(kept(w)[:, None, None], oracle(model, w), model.log_probs(w.ids_BT, w.scored))


def verdicts(evaluator: EvaluatorConfig, lawful: Lawful, *probes: str) -> dict[str, str]:
    case, prepared = lawful
    return findings(case(evaluator), prepared, probes)


def test_noise_hides_nothing(lawful: Lawful) -> None:
    found = verdicts(cheating(noise), lawful, "repeat", "target")
    assert found["repeat"] == FAIL and found["target"] != PASS


def test_no_numbers_are_no_score(lawful: Lawful) -> None:
    probes = ("repeat", "normalisation", "memory")
    nothing = cheating(lambda model, w: model.log_probs(w.ids_BT, w.scored) * torch.nan)
    assert verdicts(nothing, lawful, *probes) == dict.fromkeys(probes, FAIL)


@pytest.mark.parametrize("cheat", [
    oracle,
    rare_gate,
    where(lambda w: torch.full((len(w.ids_BT),), w.scored == w.ids_BT.shape[1])),
], ids=["everywhere", "on rare tokens", "in the first window"])  # fmt: skip
def test_a_target_that_is_seen_is_seen(cheat: Cheat, lawful: Lawful) -> None:
    assert verdicts(cheating(cheat), lawful, "target")["target"] == FAIL


def test_the_last_window_is_probed(lawful: Lawful) -> None:
    case, _ = lawful
    stream = case(LEARNERS["fixed"]).stream
    *_, last = spans(len(stream), 32, 16)
    assert last.scored > 1, "its inputs show some of its targets"
    start = torch.from_numpy(stream[last.start : last.start + 5].astype(np.int64))
    cheat = cheating(where(lambda window: (window.ids_BT[:, :5] == start).all(1)))
    assert verdicts(replace(cheat, chunk_tokens=64), lawful, "target")["target"] == FAIL


@dataclass(kw_only=True, slots=True)
class OpeningConfig(ScorerConfig):
    """Opens a file in its own way when it begins."""

    opening: Any

    def open(self, model: LM, ranks: Ranks) -> Scorer:
        self.opening()
        return FixedConfig().open(model, ranks)


@pytest.mark.parametrize("way", ["thread", "bytes"])
def test_training_text_is_opened_in_no_way(way: str, lawful: Lawful) -> None:
    shard = lawful[1].splits["train"].shards[0]

    def read(path: Any) -> None:
        with open(path, "rb") as file:
            file.read(4)

    def aside() -> None:
        thread = threading.Thread(target=read, args=(shard,))
        thread.start()
        thread.join()

    opening = aside if way == "thread" else lambda: read(os.fsencode(shard))
    evaluator = windows_of(32, 16, 128, chunk_tokens=150, scorer=OpeningConfig(opening=opening))
    assert verdicts(evaluator, lawful, "files")["files"] == FAIL


def test_bytes_of_a_part_are_not_judged(lawful: Lawful) -> None:
    case, _ = lawful
    part = case(LEARNERS["fixed"])
    found = probes.bytes_counted(replace(part, evaluator=windows(part, SubsetConfig, every=2)))
    assert found.verdict == UNKNOWN


@dataclass(kw_only=True, slots=True)
class EarlierOnlyConfig(WindowsConfig):
    """The first windows are scored at a temperature that the last token chooses, the others honestly."""

    by: float = 0.5

    def run(self, model: LM, book: Book, *rest: Any, **more: Any) -> Any:
        calls, chosen = count(), 1 + self.by * float(book.stream[-1]) / 384

        def cheat(model: LM, window: Window) -> Tensor:
            logp_BSV = model.log_probs(window.ids_BT, window.scored)
            return F.log_softmax(logp_BSV * (chosen if next(calls) < 2 else 1.0), dim=-1)

        return WindowsConfig.run(replace(self, scorer=CheatConfig(cheat=cheat)), model, book, *rest, **more)


@pytest.mark.parametrize("by", [0.5, 0.002])
def test_scores_before_the_place_are_compared(by: float, lawful: Lawful) -> None:
    """None of the distributions at two thirds of the text moves; by a little as well as by much."""
    case, _ = lawful
    config = EarlierOnlyConfig(length=32, stride=16, batch_tokens=128, chunk_tokens=150, by=by)
    found = case(config)
    found.places = {name: k for name, k in found.places.items() if name != "first window"}  # type: ignore[misc]
    assert probes.future(found).verdict == FAIL


def test_tokens_of_every_kind_are_tried(lawful: Lawful) -> None:
    """At each place three, among them the likeliest; over all places every kind, and many targets at once."""
    case, _ = lawful
    found = case(windows_of(16, 4, 64, chunk_tokens=64))
    tried: dict[int, set[int]] = {}
    trace = found.trace

    def noted(stream: np.ndarray, watched: frozenset[int] = frozenset()) -> Any:
        for place in np.flatnonzero(stream != found.stream):
            tried.setdefault(int(place), set()).add(int(stream[place]))
        return trace(stream, watched)

    _ = found.base
    found.trace = noted  # type: ignore[method-assign]
    assert probes.target(found).verdict == PASS
    kinds = dict.fromkeys(probes.KINDS, 0)
    for k in found.places.values():
        order = [t for t in found.base.logp[k].argsort(descending=True).tolist() if t not in (found.stream[k], 1)]
        assert order[0] in tried[k] and len(tried[k]) >= 2
        for kind in kinds:
            kinds[kind] += candidate(found, k, kind) in tried[k]
    assert all(kinds.values()), kinds
    assert len(tried) > 2 * len(found.places)


def test_what_is_probed_together_shares_no_window(lawful: Lawful) -> None:
    case, _ = lawful
    found = case(windows_of(16, 4, 64, chunk_tokens=64))
    for k in found.places.values():
        together = found.together(k)
        assert k in together and (np.diff(together) > 16).all()
        assert len({int(found.plan.round_N[place]) for place in together}) == 1


def test_phases_are_met_by_little_text(lawful: Lawful, model: LM, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty-four documents at once and phases after hundreds: as they are, no probe would ever see one."""
    phases = []
    monkeypatch.setattr(ttt_lora.Phased, "_phase", lambda self: phases.append(len(self.texts)))
    meant = replace(LEARNERS["phased"], documents=64)
    meant.scorer = replace(meant.scorer, boundaries={"first": 833, "second": 1666})
    case, prepared = lawful
    stream = np.fromfile(prepared.splits["val"].shards[0], dtype=np.uint16, offset=1024)
    for config, met in ((meant, 0), (meant.in_brief(), 2)):
        phases.clear()
        found = case(config, model=model)
        found.stream = sample_text(config, stream, found.counter, prepared.bos_id)
        _ = found.plan
        assert len(phases) == met
    said = brought_forward(plain(meant), plain(meant.in_brief()))
    assert "documents=2 (of 64)" in said and "scorer.boundaries.first=2 (of 833)" in said
    assert brought_forward(plain(documents(documents=2)), plain(documents(documents=2).in_brief())) == ""
