"""A search on slots: it prunes, it survives a kill of its launcher, and one trial's end is never another's.

Its trials live on a fake clock; one test has them as processes, and in the tier `slow` all do.
"""

import copy
import dataclasses
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from golf.config import Run
from golf.errors import RunError, StoppedError, UserError
from golf.launcher.cells import Cell
from golf.launcher.grid import Plan
from golf.search import drive
from golf.search.book import JOURNAL, Book, Trial
from golf.search.confirm import Found
from golf.search.space import search_of
from tests.helpers.processes import wait_until
from tests.helpers.sweeps import starts
from tests.helpers.worlds import World

LR = "optimizer.groups.matrices.lr"
PLAN = Plan("which rate", None, (5, 6), {})
SEARCH = {"trials": 7, "seed": 1, "startup": 2, "space": {LR: {"low": 0.0004, "high": 4.0, "log": True}}}

Go = Callable[..., Found | None]


@pytest.fixture
def folder(outputs: Path) -> Path:
    made = outputs / "found"
    made.mkdir(parents=True)
    return made


@pytest.fixture(scope="session")
def toy_trial(toy: Callable[..., Run]) -> Run:
    return toy("budget.max_steps=8", "eval.split=tune", "eval.every_steps=1", "launch.slots=2")


@pytest.fixture
def go(toy_trial: Run, outputs: Path, world: World, monkeypatch: pytest.MonkeyPatch) -> Go:
    """go(changes of the search, **launch settings) -> what a search with fake workers found."""
    monkeypatch.setattr(drive, "LOOK_SECONDS", 0.05)

    def search(changes: dict[str, Any] | None = None, edit: Callable[[Run], None] | None = None) -> Found | None:
        def compose(overrides: list[str]) -> Cell:
            values = dict(override.split("=", 1) for override in overrides)
            own = {key: copy.deepcopy(getattr(toy_trial, key)) for key in ("optimizer", "eval", "launch")}
            run = dataclasses.replace(toy_trial, **own)
            run.outputs, run.label, run.sweep_label = str(outputs), values["label"], values["sweep_label"]
            run.seed, run.optimizer.groups["matrices"].lr = int(values["seed"]), float(values.get(LR, 0.04))
            if edit is not None:
                edit(run)
            return Cell(run, overrides)

        return drive.launch(search_of(SEARCH | (changes or {})), PLAN, [], "found", compose)

    return search


def trials_in(folder: Path) -> list[Trial]:
    return Book(folder / JOURNAL, search_of(SEARCH)).trials()


def test_a_search_finds_stops_and_tells(go: Go, folder: Path, world: World, capsys: pytest.CaptureFixture) -> None:
    (folder / "wait").write_text("100")
    found = go()
    assert found is not None and found.failed == 0 and found.registered == (5, 6)
    trials = trials_in(folder)
    states = [trial.state for trial in trials]
    assert len(trials) == 7 and set(states) == {"done", "pruned"}
    done = [trial for trial in trials if trial.state == "done"]
    assert found.best == min(done, key=lambda trial: trial.bpb or 9)
    for trial in trials:
        if trial.state == "pruned":
            assert 2 <= (trial.step or 0) <= 4, "not before a quarter of its budget"
            status = json.loads((folder / str(trial.folder) / "status.json").read_text())
            assert status["state"] == "stopped", "it was asked to save and stop"
    text, shown = (folder / "STATUS.md").read_text(), capsys.readouterr().out
    for trial in trials:
        line = f"| {trial.number} | {trial.values[LR]:.4g} | {trial.bpb:.4f} | {trial.state} | {trial.step} |"
        assert line in text and f"{trial.bpb:.4f}" in shown
    assert "7 trials with seed 1, scored on tune" in text and "the best is confirmed with seeds 5, 6" in text
    register = json.loads((folder / "sweep.json").read_text())
    assert len(register["cells"]) == 7 and register["seeds"] == [1]
    assert not (folder.parent / "validation_passes.jsonl").exists() and world.left(folder) == []
    before = starts(folder)
    again = go()
    assert again == found and starts(folder) == before, "nothing that was told runs again"
    more = go({"trials": 8})
    assert more is not None and len(starts(folder)) == len(before) + 1, "a larger search goes on"


def test_nobody_is_stopped_before_the_warmup_is_over(go: Go, folder: Path) -> None:
    (folder / "wait").write_text("4")
    go({"warmup": 0.6})
    trials = trials_in(folder)
    assert any((trial.bpb or 0) > 3 for trial in trials), "some deserve it"
    assert all(trial.state == "done" or (trial.step or 0) >= 5 for trial in trials), "and wait at step 4 for long"


@pytest.mark.parametrize("world", ["clock", "processes"], indirect=True)
def test_a_killed_launcher_loses_no_trial(go: Go, folder: Path, world: World) -> None:
    def search() -> None:
        world.when(lambda: len(starts(folder)) >= 3, partial(os.kill, os.getpid(), signal.SIGKILL))
        go({"trials": 5})

    child = multiprocessing.get_context("fork").Process(target=search)
    child.start()
    child.join()
    assert child.exitcode == -signal.SIGKILL
    wait_until(lambda: not world.left(folder), 30)
    before = {trial.number: trial for trial in trials_in(folder)}
    left = {trial.name for trial in before.values() if trial.state == "open"}
    assert left, "something was under way"
    ended = {
        trial.name for trial in before.values() if trial.folder and (folder / trial.folder / "result.json").exists()
    }
    started = len(starts(folder))
    assert go({"trials": 5}) is not None
    after = trials_in(folder)
    assert [trial.number for trial in after] == list(range(5)) and all(trial.state != "open" for trial in after)
    for number, trial in before.items():
        assert after[number].values == trial.values
        assert trial.state == "open" or after[number] == trial
    again = starts(folder)[started:]
    assert left - ended <= set(again), "what was left runs again"
    assert not {trial.name for trial in before.values() if trial.state != "open"} & set(again), "and nothing else does"


def test_a_trial_that_fails_is_tried_again_by_the_same_command(go: Go, folder: Path) -> None:
    (folder / "breaks").touch()
    found = go({"keep": None})
    assert found is not None and found.failed >= 1
    failed = {trial.name for trial in trials_in(folder) if trial.state == "open"}
    assert len(failed) == found.failed and len(trials_in(folder)) == 7
    (folder / "breaks").unlink()
    started = len(starts(folder))
    again = go({"keep": None})
    assert again is not None and again.failed == 0 and set(starts(folder)[started:]) == failed


@pytest.mark.parametrize("look_seconds", [0.05, 1000.0])
def test_a_score_that_is_no_number_ends_a_trial(
    look_seconds: float, go: Go, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the launcher sees it in time, or the run has failed of it before."""
    monkeypatch.setattr(drive, "LOOK_SECONDS", look_seconds)
    (folder / "diverges").touch()
    found = go({"keep": None})
    assert found is not None and found.failed == 0
    for trial in trials_in(folder):
        assert (trial.state == "pruned") == (trial.values[LR] > 1.0)
        assert trial.state == "done" or "is no number" in trial.reason
    assert any(trial.state == "pruned" for trial in trials_in(folder))


def test_a_trial_that_cannot_be_run_costs_only_itself(go: Go, folder: Path) -> None:
    def refuse(run: Run) -> None:
        if run.label.startswith("trial") and run.optimizer.groups["matrices"].lr > 1.0:
            raise UserError("too fast for this model")

    found = go({"keep": None}, refuse)
    trials = trials_in(folder)
    assert found is not None and found.failed == 0 and len(trials) == 7
    for trial in trials:
        assert (trial.state == "refused") == (trial.values[LR] > 1.0)
        assert trial.state == "done" or trial.reason == "too fast for this model"
    assert any(trial.state == "refused" for trial in trials)


def test_a_signal_stops_a_search_and_nothing_is_lost(go: Go, folder: Path, world: World) -> None:
    world.interrupt(lambda: len(starts(folder)) >= 2, signal.SIGTERM, apart=0.2)
    with pytest.raises(StoppedError, match="the same command goes on with it"):
        go()
    assert world.left(folder) == [] and any(trial.state == "open" for trial in trials_in(folder))
    assert go() is not None and all(trial.state != "open" for trial in trials_in(folder))


def test_nothing_scored_is_no_best(go: Go, folder: Path) -> None:
    (folder / "breaks").touch()
    with pytest.raises(RunError, match="no trial has a score that counts"):
        go({"trials": 2, "space": {LR: {"low": 2.0, "high": 4.0}}})


def test_the_control_itself_may_be_the_best(go: Go, folder: Path) -> None:
    found = go({"trials": 4, "space": {LR: {"choices": [0.04, 0.5]}}})
    assert found is not None and found.untuned == (found.best.values[LR] == 0.04)
    assert len(starts(folder)) <= 3, "two values: at most one is run twice, while its twin runs"


@pytest.mark.parametrize(
    "edit, message",
    [
        ({"eval": {"split": "val"}}, "eval.split=val: a search would choose by scores on the validation text"),
        ({"eval": {"every_steps": None}}, "eval.every_steps=None: trials are stopped by scores on the way"),
        ({"eval": {"every_steps": 8}}, "eval.every_steps=8: trials are stopped by scores on the way"),
        ({"rerun": True}, "rerun=true: a search trains no trial twice"),
    ],
)
def test_what_must_not_guide_a_search_is_refused(edit: dict, message: str, go: Go, outputs: Path) -> None:
    def change(run: Run) -> None:
        for key, value in edit.items():
            if isinstance(value, dict):
                for inner, item in value.items():
                    setattr(getattr(run, key), inner, item)
            else:
                setattr(run, key, value)

    with pytest.raises(UserError) as told:
        go(None, change)
    assert str(told.value).startswith(message) and not outputs.exists()


def test_showing_a_search_touches_nothing(go: Go, folder: Path, capsys: pytest.CaptureFixture) -> None:
    def show(run: Run) -> None:
        run.launch.status = True

    go(None, show)
    assert "no trial yet" in capsys.readouterr().out and list(folder.iterdir()) == []
    go({"trials": 2})
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    capsys.readouterr()
    go({"trials": 2}, show)
    assert "2 done" in capsys.readouterr().out
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before
