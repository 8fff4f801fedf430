"""What calibration measures, and on whose text."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from golf.config import Run
from golf.dist import ALONE, Ranks
from golf.models.linear import Dense
from golf.models.lm import LM
from golf.quant.calibration import CalibrationConfig, Inputs, RandomTextConfig, SelfTextConfig, Source, measure
from tests.helpers.runs import Job

Toy = Callable[..., Run]


class Given(CalibrationConfig):
    """These ids, whatever the source."""

    def __init__(self, *passes: Tensor):
        self.given = passes

    def passes(self, source: Source) -> Iterator[Tensor]:
        yield from self.given


def model_of(run: Run) -> LM:
    torch.manual_seed(0)
    model = run.model.build()
    for parameter in model.parameters():
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    return model


def never() -> Any:
    raise AssertionError("training text was opened")


def source(model: LM, ranks: Ranks = ALONE, rows: int = 2) -> Source:
    return Source(model=model, length=16, rows=rows, seed=5, ranks=ranks, open_training=never)


def ids(rows: int, seed: int = 0) -> Tensor:
    return torch.randint(384, (rows, 16), generator=torch.Generator().manual_seed(seed))


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


@pytest.mark.parametrize("choice", ["model=baseline", "model/stack=recurrence", "model/head=mos", "model/mlp=swiglu"])
def test_every_matrix_gets_the_mean_of_its_inputs_over_all_visits(choice: str, toy: Toy) -> None:
    model = model_of(toy(choice))
    found = measure(Given(ids(3), ids(2, seed=1)), source(model))
    expected = by_hand(model, torch.cat((ids(3), ids(2, seed=1))))
    assert set(expected) == set(found) - {"embed.table_VD"}
    for name, hessian in expected.items():
        torch.testing.assert_close(found[name].double(), hessian, atol=1e-4, rtol=1e-4)
    assert ("embed.table_VD" in found) == (choice != "model/head=mos")


def test_the_tied_table_meets_the_last_hidden_state(toy: Toy) -> None:
    model = model_of(toy())
    x_ND = model.hidden(ids(2)).flatten(0, 1).detach()
    found = measure(Given(ids(2)), source(model))
    torch.testing.assert_close(found["embed.table_VD"], x_ND.T @ x_ND / len(x_ND), atol=1e-4, rtol=1e-4)
    untied = model_of(toy("model.head.tied=false"))
    assert "head.own_VD" in measure(Given(ids(2)), source(untied))


def test_shared_inputs_are_summed_once(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(toy())
    summed: list[str] = []
    add = Inputs.add
    monkeypatch.setattr(Inputs, "add", lambda self, name, x: (summed.append(name), add(self, name, x))[1])
    found = measure(Given(ids(2), ids(2, seed=1)), source(model))
    mixer = "stack.blocks.0.mixer."
    assert found[mixer + "query.weight"] is found[mixer + "key.weight"] is found[mixer + "values.weight"]
    assert sum(name.startswith(mixer) for name in summed) == 2 * 2, "a sum for queries, keys and values; one for out"


def test_ranks_add_up(toy: Toy, monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of(toy())
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


@pytest.mark.parametrize("config", [RandomTextConfig(tokens=70), SelfTextConfig(tokens=70, temperature=0.8)])
def test_text_without_training_text(config: CalibrationConfig, toy: Toy) -> None:
    model = model_of(toy())
    passes = list(config.passes(source(model)))
    assert [tuple(p.shape) for p in passes] == [(2, 16), (2, 16), (1, 16)] and not config.reads_training
    again = torch.cat(list(config.passes(source(model))))
    assert torch.equal(again, torch.cat(passes))
    other_rank = torch.cat(list(config.passes(source(model, Ranks(1, 2, torch.device("cpu"))))))
    assert len(other_rank) == 3 and not torch.equal(other_rank, again[:3])


def test_own_text_follows_the_model(toy: Toy) -> None:
    """Where the model is sure what comes next, that is what comes."""
    model = model_of(toy("model.head.softcap=null"))
    with torch.no_grad():
        model.embed.table_VD *= 200
    (drawn,) = SelfTextConfig(tokens=32, temperature=1e-3).passes(source(model))
    with torch.no_grad():
        likeliest = model.log_probs(drawn).argmax(-1)
    assert torch.equal(drawn[:, 1:], likeliest[:, :-1])


def test_training_text_counts_as_training_and_the_scored_text_is_not_read(job: Callable[..., Job]) -> None:
    run = job("quant=int6_gptq")
    run.here()
    result = run.result()
    phases = result["phases"]
    assert phases["calibrate"]["reads"] == ["train"] and phases["calibrate"]["seconds"] > 0
    assert result["counted_seconds"] == pytest.approx(phases["train"]["seconds"] + phases["calibrate"]["seconds"])
    drawn = job("quant=int6_gptq", "quant/calibration=self", outputs="drawn")
    drawn.here()
    assert drawn.result()["phases"]["calibrate"]["reads"] == []
    assert drawn.result()["counted_seconds"] == pytest.approx(drawn.result()["phases"]["train"]["seconds"])


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
