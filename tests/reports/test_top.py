"""What a report says first, what it leaves out, and that it is not led by what it did not write."""

import csv
import html
import io
import json
import math
import re
from pathlib import Path

import pytest

from golf import report
from golf.reports import figures as figures_module
from golf.reports import page
from golf.reports.analysis import Analysis, analyse
from golf.reports.figures import figures
from golf.reports.grids import Grid, says_nothing, to_html, without_blanks
from golf.reports.load import load
from golf.reports.series import broken, gaps, smooth
from golf.reports.text import as_paragraph, in_cell, in_markdown
from golf.reports.verdict import verdict_of
from tests.reports.helpers import run, sweep

BASE = {1: 2.000, 2: 2.002, 3: 2.001}
LOWER = {1: 1.990, 2: 1.992, 3: 1.991}
HIGHER = {1: 2.020, 2: 2.022, 3: 2.021}
SAME = {1: 2.0005, 2: 2.0025, 3: 2.000}


def analysed(folder: Path, rows: dict, control: str | None = "base", **changes: object) -> Analysis:
    made = sweep(folder, rows, control)
    for path in made.glob("*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return analyse(load(made))


SPAN = r"BPB \(95 % interval [+-]0\.\d{4} \.\. [+-]0\.\d{4}; p [01]\.\d{4}\)"
ANSWERS = {
    "better": (
        {"base": BASE, "low": LOWER, "high": HIGHER},
        rf"low beats base by the margin: -0\.0100 {SPAN}\.",
    ),
    "two better": (
        {"base": BASE, "low": LOWER, "lower": {1: 1.9, 2: 1.902, 3: 1.901}},
        r"lower beats base by the margin: -0\.1000 BPB .*; so does low\.",
    ),
    "none": (
        {"base": BASE, "same": SAME, "high": HIGHER},
        rf"No row is shown to be better than base; the nearest is same: \+0\.0000 {SPAN}\.",
    ),
    "all worse": (
        {"base": BASE, "high": HIGHER},
        rf"Every row is worse than base; the nearest is high: \+0\.0200 {SPAN}\.",
    ),
    "one seed": ({"base": {1: 2.0}, "low": {1: 1.9}},
                 r"Nothing can be said of a difference from base: it and the control have one seed\."),
    "no result": ({"base": {1: "failed"}}, r"There is no finished run to speak of\."),
    "alone": ({"base": BASE}, r"base has 2\.0010 BPB, and nothing beside it to compare with\."),
}  # fmt: skip


@pytest.mark.parametrize(("rows", "answer"), ANSWERS.values(), ids=ANSWERS)
def test_the_first_sentence_is_the_answer(rows: dict, answer: str, tmp_path: Path) -> None:
    assert re.fullmatch(answer, verdict_of(analysed(tmp_path / "t", rows)))


def test_what_may_not_count_beats_nothing(tmp_path: Path) -> None:
    folder = sweep(tmp_path / "t", {"base": BASE, "low": LOWER}, "base")
    for path in folder.glob("low-*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"fits": False}))
    said = verdict_of(analyse(load(folder)))
    assert said.startswith("low scored below base (-0.0100 BPB") and said.endswith("over the cap: it may not count.")
    unnamed = verdict_of(analysed(tmp_path / "u", {"base": BASE, "low": LOWER}, None))
    assert unnamed == "No row is compared with another; low has 1.9910 BPB, the lowest of 2."


@pytest.mark.usefixtures("sketches")
def test_verdict_and_provenance_stand_on_top_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = sweep(tmp_path / "t", {"base": BASE, "low": LOWER}, "base")
    for path in folder.glob("*/result.json"):
        node = json.loads(path.read_text())
        path.write_text(json.dumps(node | {"data": node["data"] | {"sha256": {"val": "0123456789abcdef"}}}))
    assert report.main([str(folder), "--margin", "0.001"]) == 0
    facts = [
        r"report.*20\d\d-\d\d-\d\d \d\d:\d\d \+?-?\d{4}, golf \d.*, commit [0-9a-f]+",
        rf"command.*python golf/report\.py {re.escape(str(folder))} --margin 0\.001",
        r"text.*sotu/val \(sha256 0123456789ab\), 1,000 tokens, 3,000 bytes",
        r"code of the runs.*abc",
        rf"folders.*{re.escape(str(folder))}",
    ]
    shown = {
        "terminal": capsys.readouterr().out.replace("\n", " "),
        "md": (folder / "report.md").read_text().split("## Rows")[0],
        "html": html.unescape((folder / "report.html").read_text().split("<section>")[0]),
    }
    for place, text in shown.items():
        assert "low beats base" in text, place
        assert all(re.search(fact, text) for fact in facts), place
    assert shown["md"].startswith("# t\n\n**low beats base")


def test_columns_that_say_nothing_are_left_out(tmp_path: Path) -> None:
    grid = Grid(
        title="x", header=["row", "a", "b", "c"], rows=[["-", "-", "0.0%", "1"], ["y", "", "+0.0000", "-"]], left=2
    )
    kept = without_blanks(grid)
    assert (kept.header, kept.rows, kept.left) == (["row", "c"], [["-", "1"], ["y", "-"]], 1)
    assert not any(map(says_nothing, ["0.1", "-1", "a", "0 of 1", "none"]))
    alone = page.to_markdown([analysed(tmp_path / "t", {"base": {1: 2.0}, "x": {1: 2.0}}, None, quant_gap_bpb=0.0)], [])
    for column in ("delta", "95 % interval", "p margin", "seeds needed", "quant gap, BPB", "| sd", "a further visit"):
        assert f"| {column.lstrip('| ')} |" not in alone, column
    assert "p margin" not in alone.split("## Size")[0], "nor are they explained"


def test_a_phone_shows_the_difference_first(tmp_path: Path) -> None:
    found = analysed(tmp_path / "t", {"base": BASE, "low": LOWER})
    rows = to_html(page.grids_of(found)[0])
    assert re.findall(r"<th(?: class=n)?>(.*?)</th>", rows)[:4] == ["row", "delta", "95 % interval", "verdict"]
    cells = re.findall(r"<td(?: class=n)?>(.*?)</td>", rows.split("<tr>")[3])
    assert cells[0] == "low" and cells[1] == "-0.0100" and cells[3] == "better by the margin"
    assert "@media (max-width: 40rem)" in page.STYLE.read_text()


EVIL = '=HYPERLINK("x") <script>alert(1)</script> [a](javascript:b) `c` # d | **e** $x$ https://f.g'


@pytest.mark.usefixtures("sketches")
def test_what_golf_did_not_write_is_shown_letter_for_letter(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = sweep(tmp_path / "t", {"base": BASE}, "base")
    for seed, score in LOWER.items():
        run(folder, EVIL, seed, score, model={"_target_": "x.LMConfig", EVIL: EVIL}, name=f"evil-s{seed}-1234567{seed}")
    said = json.loads((folder / "sweep.json").read_text())
    (folder / "sweep.json").write_text(json.dumps(said | {"purpose": f"# {EVIL}\n\n---\n- x"}))
    assert report.main([str(folder)]) == 0
    assert EVIL in capsys.readouterr().out.replace("\n", " ")
    text = (folder / "report.md").read_text()
    bare = re.sub(r"\\.", "", text)  # what is escaped is a letter like any other
    assert "<script>" not in text and "](" not in bare and "`" not in bare and "$" not in bare
    assert not re.search(r"^(# =|---$|- x)", text, re.MULTILINE) and "https://f" not in text
    widths = {line.count("|") for line in bare.split("## Rows")[1].split("##")[0].splitlines() if line.startswith("|")}
    assert len(widths) == 1, "no cell of its own"
    assert "<script>" not in (folder / "report.html").read_text()
    rows = list(csv.DictReader(io.StringIO((folder / "report.csv").read_text())))
    assert {row["label"] for row in rows} == {"base", f"'{EVIL}"}


@pytest.mark.parametrize("text", ["=1", "+1", "-1", "@x", "\t=1", "\r=1"])
def test_no_text_is_a_formula(text: str) -> None:
    assert in_cell(text) == f"'{text}"
    assert [in_cell(value) for value in (-1.5, 3, None, True, "a=1")] == [-1.5, 3, None, True, "a=1"]


def test_markdown_of_foreign_words() -> None:
    assert in_markdown("a_b") == "a_b" and in_markdown("_a_") == "\\_a\\_"
    assert in_markdown("a\n\nb  c") == "a b c" and in_markdown("&lt;") == "&amp;lt;"
    assert [as_paragraph(text) for text in ("# a", "- a", "1. a", "+ a", "===")] == [
        "\\# a", "\\- a", "1\\. a", "\\+ a", "\\===",
    ]  # fmt: skip


def test_a_line_ends_where_points_are_missing() -> None:
    steps = [1, 10, 20, 30, 60, 70]
    assert gaps(steps) == [4] and gaps([1]) == [] and gaps([]) == [] and gaps([1, 2, 3]) == []
    cut = broken(steps, [4])
    assert cut[:4] == [1, 10, 20, 30] and math.isnan(cut[4]) and cut[5:] == [60, 70]
    assert smooth([4.0, 4.0, 1.0, 1.0], [2]) == pytest.approx([4.0, 4.0, 1.0, 1.0])
    assert smooth([4.0, 4.0, 1.0])[2] > 1.5


def test_scales_do_not_make_an_effect_of_noise(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Milliseconds begin at zero; the gap's axis holds zero and the margin, however small all gaps are."""
    limits: dict[str, tuple[float, float]] = {}

    def kept(fill, height: float) -> str:  # type: ignore[no-untyped-def]
        axes = figures_module.Figure(figsize=(5, height)).subplots()
        fill(axes)
        limits[axes.get_xlabel()] = axes.get_xlim()
        return ""

    monkeypatch.setattr(figures_module, "_svg", kept)
    found = analysed(tmp_path / "t", {"base": BASE, "low": LOWER}, quant_gap_bpb=1e-5, step_ms=100.0)
    drawn = figures(found)
    assert limits["milliseconds, median"][0] == 0 and limits["milliseconds, median"][1] == pytest.approx(110.0)
    low, high = limits["BPB after minus before"]
    assert found.margin_bpb is not None and low <= -found.margin_bpb and high >= found.margin_bpb
    assert "the line joins" not in list(drawn)[-1], "one row is best in both: there is no line"
    for path in found.sweep.folder.glob("low-*/result.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"total_bytes": 450_000}))
    assert "the line joins" in list(figures(analyse(load(found.sweep.folder))))[-1]


@pytest.mark.parametrize("name", ["a$b$", "$\\frac$", "_x", "名前", "a\x00b\x1b[0m", "<b>"])
def test_any_name_can_be_drawn(name: str, tmp_path: Path) -> None:
    """Words of Matplotlib's own (a formula between $, a leading _) are letters here."""
    for seed, score in BASE.items():
        run(tmp_path, name, seed, score, name=f"r-s{seed}-1234567{seed}")
    drawn = figures(analyse(load(tmp_path)))
    letters = html.unescape("".join(drawn.values()))
    assert name.split("\x00")[0] in letters


def test_lone_runs_of_one_name_are_a_row_each(tmp_path: Path) -> None:
    """Where no sweep says what belongs together, a label is no claim that it does."""
    for dim in (64, 96):
        made = run(tmp_path, "baseline-int6", 1, 2.0, model={"_target_": "x.LMConfig", "dim": dim})
        config = json.loads((made / "config.json").read_text())
        (made / "config.json").write_text(json.dumps(config | {"config_hash": f"{dim}" * 32}))
    run(tmp_path, "other", 1, 2.0)
    found = analyse(load(tmp_path))
    names = [line.row.name for line in found.lines]
    assert len(names) == 3 and "other" in names and all(line.score is not None for line in found.lines)
    assert sum(re.fullmatch(r"baseline-int6-(64646464|96969696)", name) is not None for name in names) == 2
