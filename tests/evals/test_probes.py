"""The audit's probes: each known cheat is caught by the probe that it names, and every lawful scorer passes."""

import numpy as np
import pytest

from golf.evals import known_bad
from golf.evals.case import sample_text
from golf.evals.evaluator import EvaluatorConfig
from golf.evals.known_bad import KNOWN_BAD
from golf.evals.probes import FAIL, PASS, PROBES
from golf.models.lm import LM
from golf.tokens.shards import open_shard
from tests.evals.helpers import Lawful, findings
from tests.helpers.learners import INSIDE, LEARNERS
from tests.helpers.tiers import quick, tries_everything

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
    found = case(LEARNERS["fixed"], 600)
    which = np.arange(600) >= 300
    changed = found.changed(which)
    assert np.array_equal(changed[:300], found.stream[:300])
    bos = found.stream == found.bos_id
    assert np.array_equal(changed == found.bos_id, bos) and (changed != found.stream)[which & ~bos].all()


def test_sampled_text_has_chunks_and_documents(lawful: Lawful, model: LM) -> None:
    case, prepared = lawful
    stream = open_shard(prepared.splits["val"].shards[0])
    for name, evaluator in LEARNERS.items():
        found = case(evaluator, model=model if name in INSIDE else None)
        found.stream = sample_text(evaluator, stream, found.counter, prepared.bos_id)
        assert len(found.stream) < len(stream) and (found.stream == prepared.bos_id).sum() > 1
        assert len(found.places) >= (3 if found.plan.round_N.max() else 2)
        assert found.bytes_of is not None and found.bytes_of(found.stream) == found.plan.sums()[2]
