"""What calibration measures, and on whose text."""

import json
import re
import types
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from golf import calibrate as calibrate_module
from golf.calibrate import SLACK, calibrate, reserved
from golf.conf_files import load_part
from golf.config import Run
from golf.dist import ALONE, Ranks
from golf.ledger import Ledger
from golf.models.linear import Dense
from golf.models.lm import LM
from golf.quant.calibration import CalibrationConfig, Inputs, RandomTextConfig, SelfTextConfig, measure
from golf.rundir import RunDir
from golf.tokens.prepare import Prepared
from tests.helpers.quant import OTHER_LOSS_AND_CALIBRATION, Given, copy_of, ids, quant_of, shaken, source
from tests.helpers.runs import Job

Toy = Callable[..., Run]


def by_hand(model: LM, ids_BT: Tensor) -> dict[str, Tensor]:
    """Mean of x x^T of every Dense, each with a hook of its own; all visits."""
    seen: dict[str, list[Tensor]] = {}
    hooks = [
        module.register_forward_pre_hook(
            lambda module, inputs, name=f"{name}.weight": seen.setdefault(name, []).append(inputs[0].flatten(0, -2))
        )
        for name, module in model.named_modules()
        if isinstance(module, Dense)
    ]
    with torch.no_grad():
        model.log_probs(ids_BT)
    for hook in hooks:
        hook.remove()
    rows = {name: torch.cat(parts).double() for name, parts in seen.items()}
    return {name: x.T @ x / len(x) for name, x in rows.items()}


@pytest.mark.parametrize("choice", [None, "model/stack=recurrence", "model/head=mos", "model/mlp=swiglu"])
def test_every_matrix_gets_the_mean_of_its_inputs_over_all_visits(choice: str | None, toy: Toy) -> None:
    run = copy_of(toy)
    if choice is not None:
        slot, _, name = choice.removeprefix("model/").partition("=")
        run.model = replace(run.model, **{slot: load_part(f"model/{slot}/{name}")})
    model = shaken(run)
    found = measure(Given(ids(3), ids(2, seed=1)), source(model))
    expected = by_hand(model, torch.cat((ids(3), ids(2, seed=1))))
    assert set(expected) == set(found) - {"embed.table_VD"}
    for name, hessian in expected.items():
        torch.testing.assert_close(found[name].double(), hessian, atol=1e-4, rtol=1e-4)
    assert ("embed.table_VD" in found) == (choice != "model/head=mos")


def test_the_tied_table_meets_the_last_hidden_state(toy: Toy) -> None:
    model = shaken(copy_of(toy))
    x_ND = model.hidden(ids(2)).flatten(0, 1).detach()
    found = measure(Given(ids(2)), source(model))
    torch.testing.assert_close(found["embed.table_VD"], x_ND.T @ x_ND / len(x_ND), atol=1e-4, rtol=1e-4)
    untied = shaken(toy("model.head.tied=false"))
    assert "head.own_VD" in measure(Given(ids(2)), source(untied))


def test_shared_inputs_are_summed_once(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shaken(copy_of(toy))
    summed: list[str] = []
    add = Inputs.add
    monkeypatch.setattr(Inputs, "add", lambda self, name, x: (summed.append(name), add(self, name, x))[1])
    found = measure(Given(ids(2), ids(2, seed=1)), source(model))
    mixer = "stack.blocks.0.mixer."
    assert found[mixer + "query.weight"] is found[mixer + "key.weight"] is found[mixer + "values.weight"]
    assert sum(name.startswith(mixer) for name in summed) == 2 * 2, "a sum for queries, keys and values; one for out"


def test_ranks_add_up(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    model = shaken(copy_of(toy))
    whole = measure(Given(ids(4)), source(model))
    halves: list[Inputs] = []
    for rows in ids(4).split((3, 1)):
        monkeypatch.setattr(Inputs, "means", lambda self, ranks: halves.append(self) or {})
        measure(Given(rows), source(model))
    monkeypatch.undo()
    first, second = halves
    visited = [name for name, _ in model.named_parameters() if name in second.sums and name.startswith("stack.")]
    assert [*second.sums][: len(visited)] == visited, "every rank adds them up in one order"
    others = iter(
        [tensor for name in second.sums for tensor in (torch.tensor(float(second.counts[name])), second.sums[name])]
    )

    class Two(Ranks):
        def sum_(self, tensor: Tensor) -> Tensor:
            return tensor.add_(next(others))

    found = first.means(Two(0, 2, torch.device("cpu")))
    for name, hessian in whole.items():
        torch.testing.assert_close(found[name], hessian, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("config", [RandomTextConfig(tokens=26), SelfTextConfig(tokens=26, temperature=0.8)])
def test_text_without_training_text(config: CalibrationConfig, toy: Toy) -> None:
    model = shaken(copy_of(toy))
    passes = list(config.passes(source(model, length=6)))
    assert [tuple(p.shape) for p in passes] == [(2, 6), (2, 6), (1, 6)] and not config.reads_training
    again = torch.cat(list(config.passes(source(model, length=6))))
    assert torch.equal(again, torch.cat(passes))
    other_rank = torch.cat(list(config.passes(source(model, Ranks(1, 2, torch.device("cpu")), length=6))))
    assert len(other_rank) == 3 and not torch.equal(other_rank, again[:3])


def test_own_text_follows_the_model(toy: Toy) -> None:
    """Where the model is sure what comes next, that is what comes."""
    model = shaken(toy("model.head.softcap=null"))
    with torch.no_grad():
        model.embed.table_VD *= 200
    (drawn,) = SelfTextConfig(tokens=32, temperature=1e-3).passes(source(model))
    with torch.no_grad():
        likeliest = model.log_probs(drawn).argmax(-1)
    assert torch.equal(drawn[:, 1:], likeliest[:, :-1])


def calibrating(toy: Toy, text: str = "train", tokens: int = 512) -> tuple[Run, Prepared]:
    """A run whose quantiser wants a calibration on so many tokens of some text, and its prepared data."""
    run = replace(copy_of(toy), quant=quant_of("int6_gptq", calibration=text))
    run.quant.calibration.tokens = tokens
    return run, run.data.prepare(Path(run.data_dir), log=lambda line: None)


def test_training_text_counts_as_training_and_the_scored_text_is_not_read(finished: Callable[..., Path]) -> None:
    folder = RunDir(finished(*OTHER_LOSS_AND_CALIBRATION))
    assert "s of the budget are kept for calibration" in folder.log.read_text()
    result = json.loads(folder.result.read_text())
    phases = result["phases"]
    assert phases["calibrate"]["reads"] == ["train"] and phases["calibrate"]["seconds"] > 0
    assert result["counted_seconds"] == pytest.approx(phases["train"]["seconds"] + phases["calibrate"]["seconds"])


@pytest.mark.parametrize("text", ["train", "self", "random"])
def test_a_calibration_opens_the_training_text_or_none(text: str, toy: Toy) -> None:
    run, prepared = calibrating(toy, text, tokens=128)
    ledger = Ledger()
    ledger.add("train", 1.0, ("train",))
    with ledger.watching(prepared.files()):
        found = calibrate(run, prepared, shaken(run), ALONE, ledger)
    phase = ledger.phases["calibrate"]
    assert found.hessians and phase["reads"] == phase["opened"] == (["train"] if text == "train" else [])
    assert phase["seconds"] > 0 and ledger.counted() == 1.0 + (phase["seconds"] if text == "train" else 0)


@pytest.mark.slow
def test_text_that_a_model_draws_does_not_count_as_training(finished: Callable[..., Path]) -> None:
    for text, reads in (("train", ["train"]), ("self", [])):
        result = json.loads((finished("quant=int6_gptq", f"quant/calibration={text}") / "result.json").read_text())
        phases = result["phases"]
        assert phases["calibrate"]["reads"] == reads
        counted = phases["train"]["seconds"] + (phases["calibrate"]["seconds"] if reads else 0)
        assert result["counted_seconds"] == pytest.approx(counted)


@pytest.fixture
def second_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock by which a calibration's first pass takes ten seconds and the second takes one."""
    readings = iter([0.0, 10.0, 20.0, 21.0])
    monkeypatch.setattr(calibrate_module, "time", types.SimpleNamespace(perf_counter=lambda: next(readings)))


def test_seconds_are_kept_for_as_many_passes_as_there_will_be(toy: Toy, second_passes: None) -> None:
    run, prepared = calibrating(toy, tokens=1024)
    run.budget.max_seconds = 100.0
    budget, kept = reserved(run, prepared, shaken(run), ALONE)
    a_pass = run.batch.max_microbatch_sequences * run.batch.sequence_length
    assert kept == pytest.approx(SLACK * 1024 / a_pass) and budget == replace(run.budget, max_seconds=100.0 - kept)


def test_no_second_is_kept_for_what_does_not_count(toy: Toy) -> None:
    run, prepared = calibrating(toy)
    assert reserved(run, prepared, shaken(run), ALONE) == (run.budget, 0.0), "steps have no clock"
    run.budget.max_seconds = 100.0
    for changed in (
        {"calibration": load_part("quant/calibration/random")},
        {"rounding": load_part("quant/rounding/nearest")},
    ):
        other = replace(run, quant=replace(run.quant, **changed))
        assert reserved(other, prepared, shaken(run), ALONE) == (run.budget, 0.0)


@pytest.mark.slow
def test_time_is_kept_for_what_counts_and_all_of_it_ends_in_time(job: Callable[..., Job]) -> None:
    clock = ["budget.clock=seconds", "budget.max_steps=null", "budget.max_seconds=4", "quant=int6_gptq"]
    run = job(*clock, "quant.calibration.tokens=8192")
    printed = run.here()
    kept = float(re.search(r"([\d.]+) s of the budget are kept for calibration", printed)[1])
    result = run.result()
    phases = result["phases"]
    assert kept > 0.05 and phases["calibrate"]["seconds"] > kept / 10, "what was foretold is of the size of what came"
    assert phases["train"]["seconds"] < 4 - kept + 1 and result["counted_seconds"] > phases["train"]["seconds"]
    free = job(*clock, "quant/calibration=random", outputs="free")
    assert "kept for calibration" not in free.here()


def test_a_budget_that_calibration_would_eat_is_refused(job: Callable[..., Job]) -> None:
    run = job("budget.max_seconds=0.001", "quant=int6_gptq")
    assert "budget.max_seconds=0.001: the calibration alone takes" in run.here(code=1)
