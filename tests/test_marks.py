"""A score that breaks a rule is marked in every table that shows it; tests/reports has those of reports and plots."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from golf import evaluate, quantize
from golf.launcher import board, tables
from golf.launcher.cells import Cell
from golf.launcher.executor import Task
from golf.launcher.grid import Plan
from golf.rundir import RunDir, write_json
from tests.helpers.parts import run_of_line
from tests.reports.helpers import result

EVALS = {"plain": {"val_bpb": 2.0, "tokens": 1000, "bytes": 3000, "seconds": 1.0, "legal": True}}
BREAKS = {"the run": {"legal": False}, "its evaluator": {"evals": {"plain": EVALS["plain"] | {"legal": False}}}}


@pytest.fixture(params=[*BREAKS, "nothing"])
def found(request: pytest.FixtureRequest) -> tuple[dict[str, Any], bool]:
    """A result, and whether it breaks a rule."""
    entry = result(1, 2.0, evals=EVALS, label="base-cheat", quant_seconds=0.1)
    return entry | BREAKS.get(request.param, {}), request.param in BREAKS


def test_a_sweep_marks_it(found: tuple[dict[str, Any], bool], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    """STATUS.md, the line that tells that it is done, the table at the end, and the one of a sweep begun again."""
    entry, marked = found
    run = run_of_line("track=tiny", "label=cheat", f"outputs={tmp_path}")
    folder = RunDir(tmp_path / "table" / "cheat")
    folder.path.mkdir(parents=True)
    prepared: Any = None
    task = Task(Cell(run, []), prepared, entry.setdefault("fingerprint", "x" * 64), folder, state="done",
                attempts=1, result=entry)  # fmt: skip
    status = board.Board(folder.path.parent, Plan(None, None, (), {}), [task], 1).text()
    assert ("| 2.0000 ILLEGAL |" in status) == marked and ("| 2.0000 |" in status) != marked
    assert ("ILLEGAL" in board._news(task)) == marked
    tables.show_end([task], folder.path)
    assert ("2.0000 ILLEGAL" in capsys.readouterr().out) == marked
    write_json(folder.result, entry)
    again = tables.progress_of(run, tables.read_standing(folder))
    assert again[2] == ("2.0000 ILLEGAL" if marked else "2.0000")


@pytest.mark.parametrize("door", [evaluate.DOOR, quantize.DOOR], ids=["evaluate", "quantize"])
def test_doors_mark_it(door: Any, found: tuple[dict[str, Any], bool], capsys: pytest.CaptureFixture) -> None:
    entry, marked = found
    source: Any = SimpleNamespace(
        folder=SimpleNamespace(path=Path("base")), run=SimpleNamespace(label="base"), result={"pre_quant_bpb": 1.9}
    )
    door.show_table(source, [entry])
    assert ("cheat (ILLEGAL)" in capsys.readouterr().out) == marked
