"""What a report says of sweeps that went well, badly, and oddly; and its three files."""

import csv
import io
import itertools
import json
import random
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from golf import report
from golf.errors import UserError
from golf.reports import figures as figures_module
from golf.reports import page, stats
from golf.reports.analysis import Analysis, Line, agreement, analyse
from golf.reports.figures import figures, front
from golf.reports.grids import models_grid, notes_of
from golf.reports.load import differences, load
from golf.reports.references import references
from tests.helpers.tiers import slow, wide
from tests.reports.helpers import BYTES, ENVIRONMENT, TOKENS, run, sketch, sweep

GOOD = {
    "base": {1: 2.000, 2: 2.002, 3: 2.001},
    "better": {1: 1.990, 2: 1.992, 3: 1.991},
    "same": {1: 2.0005, 2: 2.0025, 3: 2.000},
    "worse": {1: 2.020, 2: 2.022, 3: 2.021},
}


def read(folder: Path, **options: object) -> tuple[Analysis, dict[str, Line]]:
    found = analyse(load(folder), **options)  # type: ignore[arg-type]
    return found, {line.row.name: line for line in found.lines}


@pytest.fixture
def no_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """How many seeds a row would need is not worked out: no verdict follows from it."""
    monkeypatch.setattr(stats, "seeds_needed", lambda *_, **__: None)


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


@pytest.mark.usefixtures("no_counts")
def test_verdicts_are_adjusted_for_many_rows(tmp_path: Path) -> None:
    rows = {"base": GOOD["base"], "a": {1: 1.9965, 2: 1.9967, 3: 1.9963, 4: 1.9964}}
    one, _ = read(sweep(tmp_path / "one", rows, "base"))
    p, beyond = one.lines[1].difference.p_zero, one.lines[1].difference.p_margin  # type: ignore[union-attr]
    assert p is not None and beyond is not None and p < 0.01 < beyond and one.lines[1].verdict == "better"
    loose, _ = read(tmp_path / "one", margin_nats=0.0)
    assert loose.lines[1].difference.p_margin == pytest.approx(p)  # type: ignore[union-attr]
    assert loose.lines[1].verdict == "better by the margin"
    six = {seed: 2.0 + offset for seed, offset in enumerate((0.0, 0.002, 0.001, 0.0005, 0.0015, 0.001))}
    clear = {"base": six, "a": {seed: score - 0.004 for seed, score in six.items()}}
    ten = clear | {f"x{index}": six for index in range(9)}
    sweeps = [sweep(tmp_path / "few", clear, "base"), sweep(tmp_path / "ten", ten, "base")]
    verdicts = [read(folder)[0].lines[1].verdict for folder in sweeps]
    assert verdicts == ["better by the margin", "better"], "the margin's test is adjusted too"
    many = rows | {f"x{index}": {1: 2.0, 2: 2.002, 3: 2.001} for index in range(40)}
    two, _ = read(sweep(tmp_path / "two", many, "base"), margin_nats=0.0)
    assert two.lines[1].p_holm == pytest.approx(min(1.0, 41 * p)) and two.lines[1].verdict == "not shown"


@pytest.mark.usefixtures("no_counts")
@pytest.mark.parametrize("sweeps", [8, wide(40)])
def test_no_row_is_called_anything_too_often_when_none_differs(sweeps: int, tmp_path: Path) -> None:
    """Sweeps of eight equal rows: at most a few verdicts of any kind (both families are held at 1 %)."""
    rng = random.Random(4)
    folder = sweep(tmp_path / "t", {f"r{index}": {1: 2.0, 2: 2.0, 3: 2.0} for index in range(9)}, "r0")
    loaded, calls = load(folder), 0
    for _ in range(sweeps):
        for row in loaded.rows.values():
            for run_ in row.runs:
                assert run_.result is not None
                run_.result["val_bpb"] = rng.gauss(2.0, 0.001)
        calls += sum(line.verdict.startswith(("better", "worse")) for line in analyse(loaded).lines)
    assert calls <= 3


@pytest.mark.parametrize(
    "fault, changes",
    [
        ("over the cap", {"fits": False}),
        ("over time", {"in_time": False}),
        ("illegal", {"legal": False}),
        ("illegal", {"evals": {"plain": {"val_bpb": 1.5, "tokens": TOKENS, "bytes": BYTES, "legal": False}}}),
    ],
)
def test_a_better_row_that_may_not_count_says_so(tmp_path: Path, fault: str, changes: dict) -> None:
    folder = sweep(tmp_path / "t", {"base": GOOD["base"]}, "base", (1, 2, 3))
    for seed in (1, 2, 3):
        run(folder, "a", seed, 1.5 + seed / 1000, model={"_target_": "x.LMConfig", "dim": 1}, **changes)
    found, lines = read(folder)
    assert lines["a"].verdict == f"better by the margin, but {fault}"
    assert f"a: {fault} on seed 1, 2, 3." in notes_of(found)


def test_lost_and_unregistered_seeds_stand_beside_a_claim(tmp_path: Path) -> None:
    rows = {"base": GOOD["base"], "a": {1: 1.5, 2: 1.501, 3: "raised"}, "b": {7: 1.5, 8: 1.501, 9: 1.502}}
    _, lines = read(sweep(tmp_path / "t", rows, "base", (1, 2, 3)))
    assert lines["a"].verdict.endswith("but failed seeds, other seeds than registered")
    assert lines["b"].verdict.endswith("but other seeds than registered")


def test_failed_seeds_are_counted_and_named(tmp_path: Path) -> None:
    rows = GOOD | {"better": {1: 1.99, 2: "out of memory at step 7", 3: 1.991}, "gone": {1: "killed by SIGKILL"}}
    found, lines = read(sweep(tmp_path / "t", rows, "base", (1, 2, 3)))
    assert (len(lines["better"].row.runs), len(lines["better"].row.counted)) == (3, 2)
    assert lines["gone"].verdict == "no finished run"
    notes = notes_of(found)
    assert "better: seed 2 failed: out of memory at step 7." in notes
    assert "better: no result yet for registered seed 2." in notes
    text = page.to_markdown([found], [])
    assert "| better |" in text and "2 of 3" in text and "| better | 2 | failed |" in text


@pytest.mark.usefixtures("sketches")
def test_rows_of_mixed_configurations_are_refused(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "t", GOOD, "base")
    run(folder, "better", 4, 1.5, model={"_target_": "golf.models.lm.LMConfig", "dim": 640})
    found, lines = read(folder)
    assert lines["better"].verdict == "refused: its seeds ran with different model.dim"
    assert lines["better"].score is None and lines["better"].difference is None and lines["same"].difference is not None
    page.to_html([found], [])
    again = analyse(load(folder, "better"))
    assert all(line.difference is None for line in again.lines)
    assert "The control better ran with different model.dim: no row is compared." in again.notes
    assert len(list(csv.reader(io.StringIO(page.to_csv([again]))))) == 14, "every run that was started has its line"


@pytest.mark.usefixtures("sketches")
def test_one_seed_ties_and_no_spread_have_words(tmp_path: Path) -> None:
    rows = {
        "base": {1: 2.0, 2: 2.0},
        "tie": {1: 2.0, 2: 2.0},
        "flat": {1: 1.5, 2: 1.5},
        "one": {1: 1.0},
    }
    found, lines = read(sweep(tmp_path / "t", rows, "base"))
    assert [line.verdict for line in found.lines] == [
        "control",
        "tie, without any spread",
        "no test: no spread between seeds",
        "no test: it has one seed",
    ]
    assert lines["flat"].needed is None
    assert lines["one"].score is not None and lines["one"].score.sd is None
    for text in (page.to_markdown([found], []), page.to_html([found], []), page.to_csv([found])):
        assert "nan" not in text.lower().replace("nats", "")


@pytest.mark.usefixtures("sketches")
def test_without_a_control_nothing_is_compared_and_it_says_so(tmp_path: Path) -> None:
    named, _ = read(sweep(tmp_path / "named", GOOD, "absent"))
    assert named.notes == ["The control absent has no run in this folder: no row is compared."]
    bare = tmp_path / "bare"
    run(bare, "a", 1, 2.0)
    run(bare, "b", 1, 2.0)
    unnamed, lines = read(bare)
    assert "No control is named" in unnamed.notes[0] and lines["a"].verdict == "not compared"
    lost, _ = read(sweep(tmp_path / "lost", {"base": {1: "raised"}, "a": {1: 2.0, 2: 2.1}}, "base"))
    assert "The control base has no finished run: no row is compared." in lost.notes
    page.to_html([named, unnamed, lost], [])
    alone = run(tmp_path / "alone", "a", 1, 2.0).parent
    assert read(alone)[0].notes == [], "one row needs no control"
    with pytest.raises(UserError, match=r"--control x: no such row in .*; it has base, better"):
        load(tmp_path / "named", "x")


def test_what_makes_two_results_hard_to_compare_is_marked(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "t", GOOD, "base", (1, 2, 3))
    dim = {"_target_": "golf.models.lm.LMConfig"}
    other = ENVIRONMENT | {"torch": "2.14.0"}
    elsewhere = {"corpus": "enmix", "split": "val"}
    text = {"plain": {"val_bpb": 1.0, "tokens": TOKENS, "bytes": BYTES + 1, "legal": True}}
    run(folder, "new_torch", 1, 2.0, model=dim | {"dim": 1}, environment=other)
    run(folder, "two_torches", 1, 2.0, model=dim | {"dim": 2}, environment=other)
    run(folder, "two_torches", 2, 2.1, model=dim | {"dim": 2})
    run(folder, "over", 9, 2.0, model=dim | {"dim": 3}, fits=False, total_bytes=600_000)
    run(folder, "illegal", 1, 2.0, model=dim | {"dim": 4}, legal=False)
    run(folder, "by_clock", 1, 2.0, model=dim | {"dim": 5}, deterministic=False)
    run(folder, "other_text", 1, 1.0, model=dim | {"dim": 6}, evals=text)
    run(folder, "other_corpus", 1, 1.0, model=dim | {"dim": 7}, data=elsewhere)
    run(folder, "on_gpus", 1, 2.0, model=dim | {"dim": 8}, device="H100", world_size=8, precision="bf16")
    (run(folder, "edited", 1, 2.0, model=dim | {"dim": 9}) / "diff.patch").write_text("+ a line")
    found, lines = read(folder)
    notes = "\n".join(notes_of(found))
    for words in (
        "new_torch: another environment than the control's (torch).",
        "two_torches: its seeds ran in different environments (torch).",
        "over: over the cap on seed 9.",
        "over: not registered in the sweep file: seed 9.",
        "other_corpus: scored on other text than the control: not compared.",
        "on_gpus: another environment than the control's (device, world_size, precision).",
        "edited: another environment than the control's (uncommitted changes).",
        "illegal: illegal on seed 1.",
        "by_clock: the wall clock shaped it: a repeat differs.",
        "other_text: scored on other text than the control: not compared.",
    ):
        assert words in notes
    assert lines["other_text"].verdict == "not compared" and lines["over"].max_bytes == 600_000


def test_of_several_runs_of_one_seed_the_newest_counts_and_the_others_are_shown(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "t", {"base": {1: 2.0}})
    (first,) = folder.glob("base-s1*")
    for number, score in ((10, 2.5), (2, 1.9)):  # by number, not by name or age
        run(folder, "base", 1, score, name=f"{first.name}-r{number}")
    found, lines = read(folder)
    assert lines["base"].row.values("val_bpb") == [2.5] and len(lines["base"].row.runs) == 3
    assert f"base: seed 1 was trained again; {first.name}-r2 (1.9000) counts no more." in notes_of(found)
    assert [row["state"] for row in csv.DictReader(io.StringIO(page.to_csv([found])))].count("superseded") == 2
    assert "1 of 3" in page.to_markdown([found], [])


def test_what_was_asked_for_and_is_not_there_is_named(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "t", GOOD | {"never": {}}, "base")
    (folder / "broken").mkdir()
    (folder / "broken" / "config.json").write_text("{")
    found, _ = read(folder)
    assert "Rows that were asked for and never started: never." in found.notes
    assert "Cannot be read, and counts nowhere: broken." in found.notes


@pytest.mark.usefixtures("sketches")
def test_odd_texts_and_files_break_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = sweep(tmp_path / "t", {"base": GOOD["base"]}, "base")
    odd = {"_target_": "x.LMConfig", "name": "[/x] <script> a|b"}
    for seed in (1, 2, 3):
        path = run(folder, "odd", seed, 6.0 + seed, model=odd)
        (path / "metrics.jsonl").write_bytes(b'\xff\n{"step": 1, "train_seconds": 1, "loss": Infinity}\n7\n')
    node = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(node | {"purpose": "is [/] <b> it", "rows": None}))
    assert report.main([str(folder)]) == 0
    shown = capsys.readouterr().out
    assert "is [/] <b> it" in shown and "[/x] <script> a|b" in shown
    assert "<script>" not in (folder / "report.html").read_text() and "a\\|b" in (folder / "report.md").read_text()


@pytest.mark.parametrize("many, laid_out", [(12, {0, 7}), slow(30, set(range(8)))])
def test_many_rows_and_far_rows_stay_legible(
    many: int,
    laid_out: set[int],
    no_counts: None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
) -> None:
    """laid_out: which plots are drawn to the end, and not only filled."""
    in_full, count = figures_module._svg, itertools.count()
    one = lambda fill, height: (in_full if next(count) in laid_out else sketch)(fill, height)  # noqa: E731
    monkeypatch.setattr(figures_module, "_svg", one)
    rows = {f"windows_on_early_layers_with_size_{index}": {1: 2 + index / 1e4, 2: 2.0} for index in range(many)}
    rows["diverged"] = {1: 6.0, 2: 6.1}
    drawn = figures(read(sweep(tmp_path / "t", rows, "windows_on_early_layers_with_size_0"))[0])
    scores = next(svg for caption, svg in drawn.items() if caption.startswith("Score"))
    assert "6.05 →" in scores and f"ith_size_{many - 1}" in scores and not list(recwarn)
    assert next(count) == 8


def test_models_say_what_visiting_again_saves(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "s", {"flat": {1: 2.0}, "old": {1: 2.0}})
    loop = {"params": 900, "params_stored": 800, "params_repeated": 400, "blocks_stored": 3, "effective_depth": 5}
    run(folder, "looped", 1, 2.0, model={"deep": True}, bits_per_param=6.0, **loop)
    old = next(folder.glob("old-*")) / "result.json"
    node = json.loads(old.read_text())
    for key in ("params_repeated", "blocks_stored", "effective_depth"):
        del node[key]
    old.write_text(json.dumps(node))
    grid = models_grid(read(folder)[0])
    per_token = f"{BYTES / TOKENS:.3f}"
    assert {row[0]: row[1:] for row in grid.rows} == {
        "flat": ["228,208", "228,208", "2", "2", "0", "-", per_token],
        "looped": ["900", "800", "3", "5", "300", "150", per_token],
        "old": ["228,208", "228,208", "-", "-", "-", "-", per_token],
    }


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


def test_in_swapped_parts_what_both_have_is_still_compared(tmp_path: Path) -> None:
    base = {"mlp": {"_target_": "golf.models.mlp.Relu2Config", "expand": 2.0, "slope": 1}, "dim": 96}
    ours = {"mlp": {"_target_": "golf.models.mlp.SwiGLUConfig", "expand": 3.0, "multiple": 64}, "dim": 96}
    run(tmp_path, "base", 1, 2.0, model=base)
    run(tmp_path, "swiglu", 1, 2.0, model=ours)
    rows = load(tmp_path).rows
    assert differences(rows["swiglu"], rows["base"]) == ["model.mlp: Relu2 -> SwiGLU", "model.mlp.expand: 2.0 -> 3.0"]
    assert differences(rows["base"], rows["base"]) == ["nothing: the control's own configuration"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The plots of a sweep of four rows."""
    return figures(read(sweep(tmp_path_factory.mktemp("drawn") / "t", GOOD, "base"))[0])


def test_the_door_writes_three_files_that_agree(
    drawn: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    folder = sweep(tmp_path / "t", GOOD, "base", (1, 2, 3))
    monkeypatch.setattr(page, "figures", lambda analysis: drawn)
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


def test_every_plot_has_units_and_n(drawn: dict[str, str]) -> None:
    assert len(drawn) == 8 and all("n = 3" in caption for caption in drawn)
    units = ("bits per byte", "BPB", "million bytes", "milliseconds", "nats per token")
    for caption, svg in drawn.items():
        ElementTree.fromstring(svg)
        assert any(unit in svg for unit in units), caption
    assert "better" in next(iter(drawn.values()))


@pytest.mark.usefixtures("sketches")
def test_curves_mark_the_cap_of_a_wall_clock_budget(tmp_path: Path) -> None:
    folder = run(tmp_path, "a", 1, 2.0)
    node = json.loads((folder / "config.json").read_text())
    node["identity"]["budget"] = {"max_seconds": 25.0}
    (folder / "config.json").write_text(json.dumps(node))
    drawn = figures(read(tmp_path)[0])
    assert "cap 25 s" in drawn["Training loss by seconds of training: a line a seed, smoothed (n = 1)"]
    assert "cap 25 s" not in drawn["Training loss by step: a line a seed, smoothed (n = 1)"]


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


@pytest.mark.usefixtures("sketches")
def test_the_dashboard_needs_tracked_runs(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = sweep(tmp_path / "t", GOOD, "base")
    assert report.main([str(folder), "--wandb"]) == 2 and "were all tracked (log=wandb)" in capsys.readouterr().err
    for path in folder.rglob("config.json"):
        node = json.loads(path.read_text())
        node["run"]["log"] |= {"project": "golf", "entity": None}
        path.write_text(json.dumps(node))
    assert load(folder).tracker == ("golf", None)


def test_a_result_of_another_schema_is_a_marked_row(tmp_path: Path) -> None:
    run(tmp_path, "a", 1, 2.0, schema=2)
    (found,) = load(tmp_path).rows["a"].runs
    assert found.result is None and found.state == "failed" and "schema 1, which this golf reads, but 2" in found.reason
