"""The audit's probes: each known cheat is caught by the probe that it names, and every lawful scorer passes."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import pytest
import torch

from golf.compose import compose
from golf.config import Run
from golf.evals.case import Case, sample_text
from golf.evals.evaluator import EvaluatorConfig
from golf.evals.known_bad import KNOWN_BAD
from golf.evals.probes import FAIL, PASS, PROBES
from golf.ledger import Ledger
from golf.tokens.prepare import Prepared
from golf.tokens.shards import open_shard
from golf.tokens.tokenizer import ByteCounter
from golf.tokens.verify import decoded_bytes
from tests.evals.test_scorers import LEARNERS
from tests.helpers.runs import toy_overrides
from tests.helpers.tiers import quick


@pytest.fixture(scope="module")
def lawful(toy_folder: Path) -> tuple[Callable[[EvaluatorConfig], Case], Prepared]:
    """A case of the toy text for any evaluator, with a model that has seen a little of it."""
    run: Run = compose(toy_overrides(toy_folder, []))
    prepared = run.data.prepare(toy_folder / "data", log=lambda line: None)
    torch.manual_seed(0)
    model = run.model.build()
    train = torch.from_numpy(open_shard(prepared.splits["train"].shards[0])[: 64 * 60].astype(np.int64))
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    for rows in train.view(60, 64).split(4):
        optimizer.zero_grad()
        model(rows[:, :-1], rows[:, 1:])["nll"].backward()
        optimizer.step()

    def case(evaluator: EvaluatorConfig) -> Case:
        stream, other = (open_shard(prepared.splits[name].shards[0])[:600] for name in ("val", "tune"))
        return Case(
            evaluator=evaluator,
            model=model,
            stream=np.asarray(stream),
            counter=ByteCounter.from_tokenizer(prepared.tokenizer),
            bos_id=prepared.bos_id,
            bytes_of=lambda tokens: decoded_bytes(prepared.tokenizer, prepared.bos_id, tokens),
            other=np.asarray(other),
        )

    return case, prepared


def findings(case: Case, prepared: Prepared, probes: Iterable[str] = PROBES) -> dict[str, str]:
    with Ledger().watching(prepared.files()) as ledger, torch.no_grad():
        case.ledger = ledger
        return {name: PROBES[name](case).verdict for name in probes}


FEW = ("fixed", "ngram, keys kept")


@pytest.mark.parametrize("name", quick(FEW, LEARNERS))
def test_lawful_scorers_pass(name: str, lawful: tuple[Callable[[EvaluatorConfig], Case], Prepared]) -> None:
    case, prepared = lawful
    chosen = case(LEARNERS[name])
    chosen.stream, chosen.other = chosen.stream[:320], chosen.other[:320]
    assert {"within a window", "window edge", "document edge", "last window"} <= set(chosen.places)
    assert findings(chosen, prepared) == dict.fromkeys(PROBES, PASS)


@pytest.mark.parametrize("name", list(KNOWN_BAD))
def test_known_cheats_are_caught(name: str, lawful: tuple[Callable[[EvaluatorConfig], Case], Prepared]) -> None:
    case, prepared = lawful
    bad = KNOWN_BAD[name]
    innocent = {"normalisation", "bytes", "files", "memory"} - {bad.probe}
    made = bad.make(case(LEARNERS["fixed"]), prepared.splits["train"].shards[0])
    found = findings(made, prepared, [name for name in PROBES if name in {bad.probe, *innocent}])
    assert found.pop(bad.probe) == FAIL, found
    assert FAIL not in found.values(), found


def test_places_are_where_they_say(lawful: tuple[Callable[[EvaluatorConfig], Case], Prepared]) -> None:
    case, _ = lawful
    found = case(LEARNERS["sgd"])
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


def test_a_changed_stream_keeps_its_documents(lawful: tuple[Callable[[EvaluatorConfig], Case], Prepared]) -> None:
    case, _ = lawful
    found = case(LEARNERS["fixed"])
    which = np.arange(600) >= 300
    changed = found.changed(which)
    assert np.array_equal(changed[:300], found.stream[:300])
    bos = found.stream == found.bos_id
    assert np.array_equal(changed == found.bos_id, bos) and (changed != found.stream)[which & ~bos].all()


def test_sampled_text_has_chunks_and_documents(lawful: tuple[Callable[[EvaluatorConfig], Case], Prepared]) -> None:
    case, prepared = lawful
    stream = open_shard(prepared.splits["val"].shards[0])
    for evaluator in LEARNERS.values():
        found = case(evaluator)
        found.stream = sample_text(evaluator, stream, found.counter, prepared.bos_id)
        assert len(found.stream) < len(stream) and (found.stream == prepared.bos_id).sum() > 1
        assert len(found.places) >= (3 if found.plan.round_N.max() else 2)
        assert found.bytes_of is not None and found.bytes_of(found.stream) == found.plan.sums()[2]
