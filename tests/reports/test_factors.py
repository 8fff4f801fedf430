"""Main effects of a full grid, against sums by hand; what learning at evaluation does as it goes."""

import json
import math
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from golf.reports.analysis import analyse
from golf.reports.factors import factors_of
from golf.reports.figures import INK, MUTED, _adaptations, figures
from golf.reports.load import load
from golf.reports.page import grids_of
from golf.rundir import illegal
from tests.reports.helpers import sweep


def test_shares_of_a_grid_add_up() -> None:
    """epochs move the score by 3, stride by 1, and one cell by 0.4 more."""
    rows = [
        ({"epochs": epochs, "stride": stride, "label": f"{epochs}{stride}", "seed": 1}, score)
        for epochs, stride, score in ((3, 64, 1.0), (3, 32, 2.0), (8, 64, 4.0), (8, 32, 5.4))
    ]
    epochs, stride, together = factors_of(rows)
    assert epochs.key == "epochs" and epochs.means == pytest.approx({"3": 1.5, "8": 4.7})
    assert stride.means == pytest.approx({"64": 2.5, "32": 3.7})
    whole = sum((score - 3.1) ** 2 for score in (1.0, 2.0, 4.0, 5.4))
    assert epochs.share == pytest.approx(4 * 1.6**2 / whole) and stride.share == pytest.approx(4 * 0.6**2 / whole)
    assert together.key == "together" and together.share == pytest.approx(4 * 0.1**2 / whole)


def test_settings_that_vary_as_one_are_one() -> None:
    rows = [({"a": a, "b": b, "c": 10 * b}, float(a + 2 * b)) for a in (0, 1) for b in (0, 1)]
    assert [factor.key for factor in factors_of(rows)] == ["a", "b, c", "together"]
    assert factors_of(rows)[1].share == pytest.approx(0.8)


def test_a_score_that_is_no_number_has_no_share() -> None:
    rows = [({"a": a, "b": b}, math.nan if a == b == 1 else float(a + b)) for a in (0, 1) for b in (0, 1)]
    assert factors_of(rows) == []


@pytest.mark.parametrize("rows", [[], [({"a": 1, "b": 1}, 1.0), ({"a": 2, "b": 1}, 2.0), ({"a": 1, "b": 2}, 1.5)]])
def test_rows_that_are_no_grid_have_no_factors(rows: list) -> None:
    assert factors_of(rows) == factors_of([*rows, ({"a": 3, "b": 3}, 1.0)]) == []


@pytest.mark.usefixtures("sketches")
def test_traces_are_drawn_where_a_pass_learnt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = sweep(tmp_path / "s", {"one": {1: 2.0}, "two": {1: 2.1}})
    assert not any("Learning" in caption for caption in figures(analyse(load(folder))))
    run = next(folder.glob("one-*"))
    (run / "trace").mkdir()
    for name, losses in (("plain", [3.0, 2.0, None]), ("sliding", [None] * 3)):
        lines = [{"tokens": 10 * i, "bytes": 30 * i, "bpb": 2.0, "learning_loss": x} for i, x in enumerate(losses, 1)]
        (run / "trace" / f"{name}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = analyse(load(folder))
    drawn = {caption: svg for caption, svg in figures(found).items() if "Learning" in caption}
    assert len(drawn) == 2 and all("tokens graded" in svg and "one" in svg for svg in drawn.values())
    monkeypatch.undo()
    for svg in _adaptations(found.lines, {"one": INK, "two": MUTED}).values():
        ElementTree.fromstring(svg)


def test_a_score_is_illegal_by_its_run_or_its_evaluator() -> None:
    entry = {"eval_main": "a", "evals": {"a": {"legal": True}, "b": {"legal": False}}}
    assert not illegal(entry | {"legal": None}) and illegal(entry | {"legal": False})
    assert illegal(entry | {"legal": True, "eval_main": "b"})


@pytest.mark.usefixtures("sketches")
def test_an_illegal_row_is_marked_wherever_it_is_named(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "s", {"fair": {1: 2.0}, "cheat": {1: 1.5}}, control="fair")
    path = next(folder.glob("cheat-*")) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"legal": False}))
    analysis = analyse(load(folder))
    drawn = figures(analysis)
    assert all("cheat (ILLEGAL)" in svg for caption, svg in drawn.items() if "cheat" in svg) and "cheat" in str(drawn)
    for grid in grids_of(analysis):
        assert all(row[0] in ("fair", "cheat (ILLEGAL)") for row in grid.rows), grid.title
