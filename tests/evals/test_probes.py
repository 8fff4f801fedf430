"""The audit's probes: each known cheat is caught by the probe that it names, and every lawful scorer passes."""

import contextlib
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from golf.config import Run
from golf.evals import known_bad
from golf.evals.case import sample_text
from golf.evals.evaluator import EvaluatorConfig
from golf.evals.known_bad import KNOWN_BAD
from golf.evals.probes import FAIL, PASS, PROBES
from golf.ledger import Ledger
from golf.models.lm import LM
from golf.tokens.shards import open_shard
from tests.evals.helpers import Lawful, findings
from tests.helpers.learners import INSIDE, LEARNERS, documents, uneven_model
from tests.helpers.tiers import quick, tries_everything

Toy = Callable[..., Run]
EDGES = {"within a window", "window edge", "document edge", "last window"}


@pytest.mark.parametrize("name", ["fixed", "sgd"])
def test_lawful_windows_pass(name: str, lawful: Lawful) -> None:
    case, prepared = lawful
    chosen = case(LEARNERS[name], 160)
    assert set(chosen.places) >= EDGES
    assert findings(chosen, prepared) == dict.fromkeys(PROBES, PASS)


@pytest.mark.parametrize("name", quick(("ngram, keys kept",), LEARNERS))
def test_lawful_scorers_pass(name: str, lawful: Lawful, model: LM, request: pytest.FixtureRequest) -> None:
    case, prepared = lawful
    chosen = case(LEARNERS[name], 320 if tries_everything(request.config) else 96, model)
    assert set(chosen.places) >= EDGES
    assert findings(chosen, prepared) == dict.fromkeys(PROBES, PASS)


@pytest.mark.parametrize("name", list(KNOWN_BAD))
def test_known_cheats_are_caught(name: str, lawful: Lawful) -> None:
    case, prepared = lawful
    bad = KNOWN_BAD[name]
    innocent = {"normalisation", "bytes", "files", "memory"} - {bad.probe}
    made = bad.make(case(LEARNERS["fixed"]), prepared.splits["train"].shards[0])
    found = findings(made, prepared, [name for name in PROBES if name in {bad.probe, *innocent}])
    assert found.pop(bad.probe) == FAIL, found
    assert FAIL not in found.values(), found


def test_no_cheat_calls_itself_legal() -> None:
    classes = [found for found in vars(known_bad).values() if isinstance(found, type)]
    cheats = [cls for cls in classes if issubclass(cls, EvaluatorConfig) and cls.__module__ == known_bad.__name__]
    assert len(cheats) > 4 and not any(cheat.legal for cheat in cheats)


def test_places_are_where_they_say(lawful: Lawful) -> None:
    case, _ = lawful
    found = case(LEARNERS["sgd"], 600)
    k = found.places
    edges = {"window edge", "chunk edge", "document edge"}
    assert set(k) == {"within a window", "first window", "last window", *edges}
    assert k["first window"] < 16 and k["last window"] >= 597
    assert found.plan.round_N[k["chunk edge"]] == found.plan.round_N[k["chunk edge"] - 1] + 1
    assert found.stream[k["document edge"] - 1] == found.bos_id
    assert found.plan.row_N[k["window edge"]] != found.plan.row_N[k["window edge"] - 1]
    for place in k.values():
        past = found.past(place)
        assert not past[place:].any() and past[1:place].all(), "one text: all that stands before"


def test_a_changed_stream_keeps_its_documents(lawful: Lawful) -> None:
    case, _ = lawful
    found = case(LEARNERS["documents"], 600)
    which = np.arange(600) >= 300
    changed = found.changed(which)
    assert np.array_equal(changed[:300], found.stream[:300])
    bos = found.stream == found.bos_id
    assert np.array_equal(changed == found.bos_id, bos) and (changed != found.stream)[which & ~bos].all()
    one_text = case(LEARNERS["fixed"], 600)
    assert (one_text.changed(which) != one_text.stream)[which].all(), "a BOS like any other token"


def test_a_cut_stream_is_what_was_graded_before(lawful: Lawful) -> None:
    """Of one text all before k; of documents the beginnings, each as far as it was graded; a BOS where k was."""
    case, _ = lawful
    for name in ("fixed", "documents"):
        found = case(LEARNERS[name], 400)
        for k in found.places.values():
            stream, place_N = found.cut(k)
            past = np.flatnonzero(found.past(k))
            assert (place_N[past] > 0).all() and stream[place_N[k]] == found.bos_id != found.stream[k]
            assert np.array_equal(stream[place_N[past]], found.stream[past])
            if name == "fixed":
                assert np.array_equal(stream, np.append(found.stream[:k], found.bos_id))
            else:
                kept = np.isin(np.arange(400), [0, *past, k]) | (found.stream == found.bos_id)
                assert len(stream) <= kept.sum() + 1
                assert (stream == found.bos_id).sum() >= (found.stream == found.bos_id).sum()


@pytest.mark.parametrize("name", ["fixed", "documents"])
def test_a_text_that_ends_with_an_empty_document_is_cut(name: str, lawful: Lawful) -> None:
    """Its BOS is the last target of the document before, and stands behind whatever is left, that document's end too:
    here it is graded first of all."""
    case, prepared = lawful
    found = case(LEARNERS[name], 400)
    found.stream = np.append(found.stream[found.stream != prepared.bos_id], prepared.bos_id)
    found.stream[[0, 9, 30, 37, 45]] = prepared.bos_id
    for k in range(1, len(found.stream), 7):
        left, place_N = found.cut(k)
        past = np.flatnonzero(found.past(k))
        assert np.array_equal(left[place_N[past]], found.stream[past]) and left[place_N[k]] == found.bos_id


def test_a_base_that_follows_the_text_is_caught(lawful: Lawful, toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    """A document of 40 tokens turns otherwise than one of 20, where each is told its own length alone."""
    run = toy("model/rope=partial", "model.mixer.rope.reference_length=8", "model.layers=2")
    case, prepared = lawful
    chosen = case(documents(length=40, chunk_tokens=40, order="stream"), 200, uneven_model(run.model))
    assert findings(chosen, prepared, ["cut"]) == {"cut": PASS}
    monkeypatch.setattr("golf.evals.evaluator.declared_length", lambda model, length: contextlib.nullcontext())
    undeclared = replace(chosen, ledger=Ledger())
    assert findings(undeclared, prepared, ["cut", "future"]) == {"cut": FAIL, "future": PASS}


def test_sampled_text_has_chunks_and_documents(lawful: Lawful, model: LM) -> None:
    case, prepared = lawful
    stream = open_shard(prepared.splits["val"].shards[0])
    for name, evaluator in LEARNERS.items():
        found = case(evaluator, model=model if name in INSIDE else None)
        found.stream = sample_text(evaluator, stream, found.counter, prepared.bos_id)
        assert len(found.stream) < len(stream) and (found.stream == prepared.bos_id).sum() > 1
        assert len(found.places) >= (3 if found.plan.round_N.max() else 2)
        assert found.bytes_of is not None and found.bytes_of(found.stream) == found.plan.sums()[2]
