"""Experiments with scorers of their own: kept, and given way to others. That every experiment takes any evaluator is in
tests/test_experiments.py."""

import pytest

from tests.helpers.runs import composed

OWN = ["pr401_v7", "pr401_v2", "pr401_sota254_ttt"]


@pytest.mark.parametrize("experiment", OWN)
@pytest.mark.parametrize("choice", ["plain", "sliding", "ttt_sgd", "phased"])
def test_a_scorer_of_its_own_gives_way(experiment: str, choice: str) -> None:
    """eval=ttt_sgd is the scorer of conf/eval/ttt_sgd.yaml, whatever the experiment has."""
    base, run = (composed("track=tiny", f"experiment={name}", f"eval={choice}") for name in ("pr401", experiment))
    assert run.eval.main == choice and run.eval.evaluators[choice].scorer == base.eval.evaluators[choice].scorer


@pytest.mark.parametrize(
    "experiment, field, value", [("pr401_v7", "ema", 0.995), ("pr401_v2", "epochs", 5), (OWN[2], "epochs", 3)]
)
def test_experiments_keep_their_own_scorers(experiment: str, field: str, value: float) -> None:
    run = composed("track=tiny", f"experiment={experiment}")
    assert getattr(run.eval.evaluators[run.eval.main].scorer, field) == value
