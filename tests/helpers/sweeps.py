"""What tests of sweeps and searches share: fixtures for conftest.py, and looks at what a sweep left."""

import dataclasses
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from golf import train
from golf.code_record import ROOT
from golf.config import Run
from golf.launcher import sweep
from golf.launcher.cells import Cell
from golf.launcher.grid import Plan
from tests.helpers.tiers import slow
from tests.helpers.worlds import ClockWorld, ProcessWorld, World

NO_PLAN = Plan(None, None, (), {})
WORLDS = {"clock": ClockWorld, "processes": ProcessWorld}

Door = Callable[..., tuple[int, str]]
Sweep = Callable[..., list[sweep.Outcome]]


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture(params=["clock", slow("processes")])
def world(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[World]:
    """Where fake workers run; the tier `slow` has them as processes."""
    made = WORLDS[request.param](monkeypatch)
    yield made
    made.settle(tmp_path)


@pytest.fixture
def door(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture) -> Door:
    """door(*overrides) -> (exit code, stdout) of train.main() in this process."""

    def run(*arguments: str) -> tuple[int, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", [str(ROOT / "golf" / "train.py"), *arguments])
        code = train.main()
        said = capfd.readouterr()
        assert code == 0 or said.err, "an error says something"
        return code, said.out + said.err

    return run


def cells_of(base: Run, labels: tuple[str, ...], settings: dict[str, object]) -> list[Cell]:
    """A cell for each label, with seeds 1, 2 ... settings: of launch."""
    launch = dataclasses.replace(base.launch, **settings)  # type: ignore[arg-type]
    return [
        Cell(dataclasses.replace(base, label=label, seed=seed, launch=launch), [f"label={label}", f"seed={seed}"])
        for seed, label in enumerate(labels, 1)
    ]


def starts(group: Path) -> list[str]:
    """The labels of the runs that fake workers began in a sweep's folder, in order."""
    path = group / "starts.txt"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


def logged(outputs: Path, step: int) -> bool:
    """Whether any run has logged this step."""
    return any(f'"step": {step},' in path.read_text() for path in outputs.rglob("metrics.jsonl"))


def whole_lines(path: Path) -> list[str]:
    return path.read_text().split("\n")[:-1]
