"""Runs put together without Hydra are the runs that Hydra composes."""

import pytest

from golf.compose import compose
from golf.conf_files import CONF
from golf.errors import UserError
from tests.helpers.parts import run_of_line

LINES = {  # each kind of thing that conf/ and the tests write
    "overrides within overrides": "experiment=pr401_matrix_lr eval=mixture model.mlp.expand=2.5 scale.seq=0.125",
    "places of other files, several options": "model/stack=agents_mean model/stack@model.stack.inner=recurrence "
    "quant=waterfill model/features=[registers,bigram] model/value=[] optimizer=muon_polar",
}
KINDS = [pytest.param(line.split(), id=kind) for kind, line in LINES.items()]
CHOICES = sorted(f"{path.parent.relative_to(CONF)}={path.stem}" for path in CONF.glob("*/**/*.yaml"))
REST = [
    pytest.param([choice], id=choice, marks=pytest.mark.slow if choice.startswith("experiment") else pytest.mark.wide)
    for choice in CHOICES
    if not choice.startswith("hydra/")
]


@pytest.mark.parametrize("line", [*KINDS, *REST])
def test_a_run_put_together_is_the_run_composed(line: list[str]) -> None:
    line = ["track=tiny", "log=none", *line]
    try:
        composed = compose(line)
    except UserError:
        with pytest.raises(AssertionError):
            run_of_line(*line)
        return
    assert run_of_line(*line) == composed


def test_what_has_no_place_is_refused() -> None:
    for line in ("model.no_such=1", "eval/scorer=ngram", "+model.new=1", "~model.auxiliary"):
        with pytest.raises(AssertionError):
            run_of_line(line)


def test_a_run_may_be_changed_without_changing_the_next() -> None:
    run_of_line("track=tiny", "model/value=embedding").model.mixer.value.clear()
    assert run_of_line("track=tiny", "model/value=embedding").model.mixer.value
