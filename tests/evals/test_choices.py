"""Experiments with scorers of their own: kept, and given way to others. That every experiment takes any evaluator is in
tests/test_experiments.py."""

from itertools import product

import pytest

from tests.helpers.runs import composed
from tests.helpers.tiers import slow, wide

OWN = ["pr401_v7", "pr401_v2", "pr401_sota254_ttt"]
CHOICES = ["plain", "sliding", "ttt_sgd", "phased"]
FEW = [("pr401_v7", "ttt_sgd"), ("pr401_v2", "phased"), ("pr401_sota254_ttt", "sliding")]
OTHERS = [pair for pair in product(OWN, CHOICES) if pair not in FEW]


@pytest.mark.parametrize(
    "experiment, choice", [FEW[0], slow(*FEW[1]), slow(*FEW[2]), *(wide(*pair) for pair in OTHERS)]
)
def test_a_scorer_of_its_own_gives_way(experiment: str, choice: str) -> None:
    """eval=ttt_sgd is the scorer of conf/eval/ttt_sgd.yaml, whatever the experiment has."""
    base, run = (composed("track=tiny", f"experiment={name}", f"eval={choice}") for name in ("pr401", experiment))
    assert run.eval.main == choice and run.eval.evaluators[choice].scorer == base.eval.evaluators[choice].scorer


@pytest.mark.parametrize(
    "experiment, field, value",
    [("pr401_v7", "ema", 0.995), slow("pr401_v2", "epochs", 5), slow("pr401_sota254_ttt", "epochs", 3)],
)
def test_experiments_keep_their_own_scorers(experiment: str, field: str, value: float) -> None:
    run = composed("track=tiny", f"experiment={experiment}")
    assert getattr(run.eval.evaluators[run.eval.main].scorer, field) == value
