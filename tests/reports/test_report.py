"""What a report says of sweeps that went well, badly, and oddly; and its three files."""

import csv
import io
import json
import os
import re
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path

import pytest

from golf import report
from golf.errors import UserError
from golf.reports import page, stats
from golf.reports.analysis import Analysis, Line, agreement, analyse
from golf.reports.figures import figures, front
from golf.reports.grids import notes_of
from golf.reports.load import differences, load
from golf.reports.references import references
from tests.reports.helpers import BYTES, ENVIRONMENT, TOKENS, run, sweep

GOOD = {
    "base": {1: 2.000, 2: 2.002, 3: 2.001},
    "better": {1: 1.990, 2: 1.992, 3: 1.991},
    "same": {1: 2.0005, 2: 2.0025, 3: 2.000},
    "worse": {1: 2.020, 2: 2.022, 3: 2.021},
}

Say = Callable[..., tuple[Analysis, dict[str, Line]]]


def read(folder: Path, **options: object) -> tuple[Analysis, dict[str, Line]]:
    found = analyse(load(folder), **options)  # type: ignore[arg-type]
    return found, {line.row.name: line for line in found.lines}


def test_each_row_gets_the_words_that_its_numbers_allow(tmp_path: Path) -> None:
    found, lines = read(sweep(tmp_path / "t", GOOD, "base", (1, 2, 3)))
    assert [line.verdict for line in found.lines] == ["control", "better by the margin", "not shown", "worse"]
    assert found.margin_bpb == pytest.approx(stats.nats_to_bpb(0.005, tokens=TOKENS, text_bytes=BYTES))
    better = lines["better"]
    expected = stats.welch([1.990, 1.992, 1.991], [2.000, 2.002, 2.001], margin=found.margin_bpb or 0)
    assert better.difference == expected and better.p_holm == pytest.approx(3 * (expected.p_zero or 0))
    assert better.score == stats.summarize([1.990, 1.992, 1.991]) and better.max_bytes == 400_003
    assert better.needed == stats.seeds_needed(-0.01, 0.001) and lines["base"].difference is None
    assert found.pooled is not None and found.pooled.df == 8 and notes_of(found) == []
    assert better.changes == ["model.dim: 96 -> 112"]


def test_better_without_the_margin_and_adjusted_for_many_rows(tmp_path: Path) -> None:
    rows = {"base": GOOD["base"], "a": {1: 1.998, 2: 1.9981, 3: 1.9979, 4: 1.998}}
    one, _ = read(sweep(tmp_path / "one", rows, "base"))
    p = one.lines[1].difference.p_zero  # type: ignore[union-attr]
    many = rows | {f"x{index}": {1: 2.0, 2: 2.002, 3: 2.001} for index in range(40)}
    two, _ = read(sweep(tmp_path / "two", many, "base"))
    assert p is not None and 0.001 < p < 0.05
    assert two.lines[1].p_holm == pytest.approx(min(1.0, 41 * p)) and two.lines[1].verdict == "not shown"
    strict, _ = read(tmp_path / "one", margin_nats=0.0)
    assert strict.lines[1].difference.p_margin == pytest.approx(p)  # type: ignore[union-attr]


def test_failed_seeds_are_counted_and_named(tmp_path: Path) -> None:
    rows = GOOD | {"better": {1: 1.99, 2: "out of memory at step 7", 3: 1.991}, "gone": {1: "killed by SIGKILL"}}
    found, lines = read(sweep(tmp_path / "t", rows, "base", (1, 2, 3)))
    assert (lines["better"].row.started, len(lines["better"].row.results)) == (3, 2)
    assert lines["gone"].verdict == "no finished run"
    notes = notes_of(found)
    assert "better: seed 2 failed: out of memory at step 7." in notes
    assert "better: registered seeds 2 have no result." in notes
    text = page.to_markdown([found], [])
    assert "| better |" in text and "2 of 3" in text and "| better | 2 | failed |" in text


def test_rows_of_mixed_configurations_are_refused(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "t", GOOD, "base")
    run(folder, "better", 4, 1.5, model={"_target_": "golf.models.lm.LMConfig", "dim": 640})
    found, lines = read(folder)
    assert lines["better"].verdict == "refused: its seeds ran with different model.dim"
    assert lines["better"].score is None and lines["better"].difference is None and lines["same"].difference is not None
    page.to_html([found], [])
    mixed, _ = read(folder, margin_nats=0.1)
    again = analyse(load(folder, "better"))
    assert all(line.difference is None for line in again.lines)
    assert "The control better ran with different model.dim: no row is compared." in again.notes and mixed.notes == []


def test_one_seed_ties_and_no_spread_have_words(tmp_path: Path) -> None:
    rows = {
        "base": {1: 2.0, 2: 2.0},
        "tie": {1: 2.0, 2: 2.0},
        "flat": {1: 1.5, 2: 1.5},
        "one": {1: 1.0},
    }
    found, lines = read(sweep(tmp_path / "t", rows, "base"))
    no_test = "no test: one seed, or no spread"
    assert [line.verdict for line in found.lines] == ["control", "tie", no_test, no_test]
    assert lines["one"].score is not None and lines["one"].score.sd is None
    for text in (page.to_markdown([found], []), page.to_html([found], []), page.to_csv([found])):
        assert "nan" not in text.lower().replace("nats", "")


def test_without_a_control_nothing_is_compared_and_it_says_so(tmp_path: Path) -> None:
    named, _ = read(sweep(tmp_path / "named", GOOD, "absent"))
    assert named.notes == ["The control absent has no run in this folder: no row is compared."]
    bare = tmp_path / "bare"
    run(bare, "a", 1, 2.0)
    unnamed, lines = read(bare)
    assert "No control is named" in unnamed.notes[0] and lines["a"].verdict == "not compared"
    lost, _ = read(sweep(tmp_path / "lost", {"base": {1: "raised"}, "a": {1: 2.0, 2: 2.1}}, "base"))
    assert "The control base has no finished run: no row is compared." in lost.notes
    page.to_html([named, unnamed, lost], [])
    with pytest.raises(UserError, match=r"--control x: no such row in .*; it has base, better"):
        load(tmp_path / "named", "x")


def test_what_makes_two_results_hard_to_compare_is_marked(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "t", GOOD, "base", (1, 2, 3))
    dim = {"_target_": "golf.models.lm.LMConfig"}
    other = ENVIRONMENT | {"torch": "2.14.0"}
    text = {"plain": {"val_bpb": 1.0, "tokens": TOKENS, "bytes": BYTES + 1, "legal": True}}
    run(folder, "new_torch", 1, 2.0, model=dim | {"dim": 1}, environment=other)
    run(folder, "two_torches", 1, 2.0, model=dim | {"dim": 2}, environment=other)
    run(folder, "two_torches", 2, 2.1, model=dim | {"dim": 2})
    run(folder, "over", 9, 2.0, model=dim | {"dim": 3}, fits=False, total_bytes=600_000)
    run(folder, "illegal", 1, 2.0, model=dim | {"dim": 4}, legal=False)
    run(folder, "by_clock", 1, 2.0, model=dim | {"dim": 5}, deterministic=False)
    run(folder, "other_text", 1, 1.0, model=dim | {"dim": 6}, evals=text)
    found, lines = read(folder)
    notes = "\n".join(notes_of(found))
    for words in (
        "new_torch: another environment than the control's (torch).",
        "two_torches: its seeds ran in different environments (torch).",
        "over: over the cap on seed 9.",
        "over: seeds 9 were not registered in the sweep file.",
        "illegal: illegal on seed 1.",
        "by_clock: the wall clock shaped it: a repeat differs.",
        "other_text: scored on other text than the control: not compared.",
    ):
        assert words in notes
    assert lines["other_text"].verdict == "not compared" and lines["over"].max_bytes == 600_000


def test_of_several_runs_of_one_seed_the_newest_counts(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "t", {"base": {1: 2.0}})
    again = run(folder, "base", 1, 2.5, name="base-s1-again-r2")
    (first,) = (path for path in folder.glob("base-s1*") if path != again)
    os.utime(first / "config.json", (1, 1))
    found, lines = read(folder)
    assert lines["base"].row.values("val_bpb") == [2.5]
    assert "base: seed 1 trained more than once; the newest counts." in notes_of(found)


def test_a_fixed_bar_is_a_one_sample_test(tmp_path: Path) -> None:
    found, lines = read(sweep(tmp_path / "t", GOOD, "base"), bar=2.0)
    assert lines["better"].bar == stats.one_sample([1.990, 1.992, 1.991], 2.0)
    assert "p below 2" in page.to_markdown([found], [])


def test_the_same_rows_on_two_tracks(tmp_path: Path) -> None:
    first, _ = read(sweep(tmp_path / "a", GOOD, "base"))
    turned = {"base": GOOD["base"], "better": GOOD["worse"], "worse": GOOD["better"], "other": GOOD["same"]}
    second, _ = read(sweep(tmp_path / "b", turned, "base"))
    found = agreement(first, second)
    assert found is not None and set(found.deltas) == {"better", "worse"} and found.ranks.signs == 0.0
    same = agreement(first, first)
    assert same is not None and same.ranks.kendall == pytest.approx(1.0) and same.ranks.signs == 1.0
    alone, _ = read(sweep(tmp_path / "c", {"base": GOOD["base"]}, "base"))
    assert agreement(first, alone) is None


def test_swapped_parts_are_one_change(tmp_path: Path) -> None:
    base = {"mlp": {"_target_": "golf.models.mlp.Relu2Config", "expand": 2.0}, "dim": 96}
    ours = {"mlp": {"_target_": "golf.models.mlp.SwiGLUConfig", "expand": 3.0, "multiple": 64}, "dim": 96}
    run(tmp_path, "base", 1, 2.0, model=base)
    run(tmp_path, "swiglu", 1, 2.0, model=ours)
    rows = load(tmp_path).rows
    assert differences(rows["swiglu"], rows["base"]) == ["model.mlp: Relu2 -> SwiGLU"]


def test_the_door_writes_three_files_that_agree(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = sweep(tmp_path / "t", GOOD, "base", (1, 2, 3))
    assert report.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "better by the margin" in shown and "Noise between seeds" in shown
    rows = list(csv.DictReader(io.StringIO((folder / "report.csv").read_text())))
    assert len(rows) == 12 and {row["state"] for row in rows} == {"done"}
    assert float(rows[3]["val_bpb"]) == 1.990
    text = (folder / "report.md").read_text()
    assert text.startswith("# t\n") and "| better | better by the margin | 3 of 3 | 1.9910 |" in text
    body = (folder / "report.html").read_text()
    assert not re.search(r"(src|href)\s*=\s*[\"']?https?:|@import|url\(http", body), "it opens offline"
    assert "prefers-color-scheme: dark" in body and "#010203" not in body and "var(--ink)" in body


def test_every_plot_has_units_and_n(tmp_path: Path) -> None:
    found, _ = read(sweep(tmp_path / "t", GOOD, "base"))
    drawn = figures(found)
    assert len(drawn) == 8 and sum("n = 3" in caption for caption in drawn) == 6
    units = ("bits per byte", "BPB", "million bytes", "milliseconds", "nats per token")
    for caption, svg in drawn.items():
        ElementTree.fromstring(svg)
        assert any(unit in svg for unit in units), caption
    assert "better" in next(iter(drawn.values()))


def test_curves_mark_the_cap_of_a_wall_clock_budget(tmp_path: Path) -> None:
    folder = run(tmp_path, "a", 1, 2.0)
    node = json.loads((folder / "config.json").read_text())
    node["run"]["budget"] = {"max_seconds": 25.0}
    (folder / "config.json").write_text(json.dumps(node))
    drawn = figures(read(tmp_path)[0])
    assert "cap 25 s" in drawn["Training loss by seconds of training: a line a seed, smoothed"]
    assert "cap 25 s" not in drawn["Training loss by step: a line a seed, smoothed"]


def test_the_front_is_what_nothing_beats_in_both() -> None:
    assert front([(3, 1), (1, 3), (2, 2), (3, 3), (2, 2.5)]) == [(1, 3), (2, 2), (3, 1)]


def test_published_numbers_are_shown_on_their_own_track_only(tmp_path: Path) -> None:
    assert references("tiny") == [] and references("h100x8")[-1].bpb == 1.2244
    assert all(entry.source and entry.max_bytes <= 16_000_000 for entry in references("h100x8"))
    folder = sweep(tmp_path / "t", {"base": {1: 2.0}})
    for path in folder.rglob("result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"track": "h100x8"}))
    found, _ = read(folder)
    assert "PR 1855" in page.to_markdown([found], []) and len(found.lines) == 1


@pytest.mark.parametrize(
    "line, message",
    [
        (["/absent"], "/absent: no such folder"),
        (["."], "holds no run folders"),
        ([".", "--margin", "-1"], "--margin -1"),
    ],
)
def test_bad_input_is_one_line(
    line: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.chdir(tmp_path)
    assert report.main(line) == 2
    err = capsys.readouterr().err
    assert message in err and len(err.splitlines()) == 1


def test_the_dashboard_needs_tracked_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = sweep(tmp_path / "t", GOOD, "base")
    assert report.main([str(folder), "--wandb"]) == 2 and "were all tracked (log=wandb)" in capsys.readouterr().err
    for path in folder.rglob("config.json"):
        node = json.loads(path.read_text())
        node["run"]["log"] |= {"project": "golf", "entity": None}
        path.write_text(json.dumps(node))
    assert load(folder).tracker == ("golf", None)


def test_another_schema_is_refused(tmp_path: Path) -> None:
    run(tmp_path, "a", 1, 2.0, schema=2)
    with pytest.raises(UserError, match="schema 2, this golf reads 1"):
        load(tmp_path)
