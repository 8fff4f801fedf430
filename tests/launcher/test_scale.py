"""What a cell costs does not grow with the number of cells."""

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.types import HydraContext
from omegaconf import OmegaConf

from golf.compose import _composer, compose
from golf.config import Run
from golf.errors import UserError
from golf.launcher import board
from golf.launcher.cells import Cell
from golf.launcher.executor import Task
from golf.launcher.grid import Plan
from golf.rundir import RunDir, attempts_in, choose_folder
from hydra_plugins.golf_launcher import GolfLauncher
from tests.helpers.clocks import FakeClock


@pytest.fixture
def launcher() -> GolfLauncher:
    """As Hydra sets it up for a command without `hydra.` overrides."""
    config = OmegaConf.create({"hydra": {"job": {"config_name": "config"}, "overrides": {"hydra": []}}})
    made = GolfLauncher()
    context = HydraContext(_composer().loader, None)  # type: ignore[arg-type]
    made.setup(hydra_context=context, task_function=None, config=config)  # type: ignore[arg-type]
    return made


def test_seeds_of_a_row_are_composed_once_and_each_is_its_own_run(
    launcher: GolfLauncher, monkeypatch: pytest.MonkeyPatch
) -> None:
    composed = []
    real = launcher.composer.compose
    monkeypatch.setattr(launcher.composer, "compose", lambda *a: composed.append(a) or real(*a))
    runs = [launcher._run_of(["track=tiny", "model.layers=2", f"seed={seed}"]) for seed in (1, 2, 3)]
    first = compose(["track=tiny", "model.layers=2", "seed=1"])
    assert runs == [dataclasses.replace(first, seed=seed) for seed in (1, 2, 3)]
    assert len(composed) == 1
    hangs = [launcher._run_of(["track=tiny", "cap_bytes=${seed}", f"seed={seed}"]) for seed in (500, 600)]
    assert [run.cap_bytes for run in hangs] == [500, 600], "what is told from the seed is told anew"
    for seed in ("-1", "3.5", "abc"):
        with pytest.raises(UserError, match=f"seed={seed}|seed='{seed}'"):
            launcher._run_of(["track=tiny", "model.layers=2", f"seed={seed}"])


def test_the_folders_of_many_runs_are_chosen_by_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    group = tmp_path / "table"
    for name in (
        "a-s1-abcdef01",
        "a-s1-abcdef01-r2",
        "a-s1-abcdef01-r11",
        "a-s1-abcdef01-r2x",
        "slurm",
        "b-s1-abcdef01",
    ):
        (group / name).mkdir(parents=True)
    there = attempts_in(group)
    assert {name: sorted(numbers) for name, numbers in there.items()} == {
        "a-s1-abcdef01": [1, 2, 11],
        "b-s1-abcdef01": [1],
    }
    chosen = choose_folder(tmp_path, "table", "a", 1, "abcdef0123", rerun=False)
    assert chosen == RunDir(group / "a-s1-abcdef01-r11")
    monkeypatch.setattr(os, "listdir", lambda path: pytest.fail("a second look"))
    assert choose_folder(tmp_path, "table", "a", 1, "abcdef0123", rerun=False, there=there) == chosen
    assert choose_folder(tmp_path, "table", "c", 1, "abcdef0123", rerun=False, there=there).path.name == "c-s1-abcdef01"


def test_the_board_writes_no_oftener_than_it_can_afford(
    toy: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts, clock = [], FakeClock()
    clock.put_in(monkeypatch, board)

    def slow(path: Path, text: str) -> None:
        texts.append(text)
        clock.sleep(0.05)

    monkeypatch.setattr(board, "write_atomic", slow)
    run = toy()
    tasks = [
        Task(Cell(dataclasses.replace(run, seed=seed), []), None, "", RunDir(tmp_path / f"{seed}"))  # type: ignore[arg-type]
        for seed in range(300)
    ]
    with board.Board(tmp_path, Plan(None, None, (), {}), tasks, None) as shown:
        monkeypatch.setattr(shown, "note", lambda text: None)
        for state in ("queued", "running", "failed"):
            for task in tasks:
                task.state = state
                shown.changed(task)
        assert len(texts) < 30, "900 changes"
    assert texts[-1].count("| failed |") == 300 and "300 failed." in texts[-1], "the last word is the truth"
