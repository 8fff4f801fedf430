"""The report's tables, once as cells of text, and drawn three ways: terminal, Markdown, HTML."""

import html
from collections.abc import Sequence
from dataclasses import dataclass, replace

from golf.reports.analysis import ALPHA, Agreement, Analysis, Line
from golf.reports.references import Reference
from golf.reports.stats import MAX_SEEDS, summarize
from golf.reports.text import in_markdown, interval, number, p_text
from golf.terminal import Column, console, show_table


@dataclass(frozen=True, kw_only=True, slots=True)
class Grid:
    """A table of texts. left: how many columns hold words; under: a line that explains the columns; first: columns that
    stand beside the first one where there is little room."""

    title: str
    header: list[str]
    rows: list[list[str]]
    left: int
    under: str = ""
    first: tuple[str, ...] = ()

    @property
    def words(self) -> list[bool]:
        """Whether each column holds words."""
        return [index < self.left for index in range(len(self.header))]


def says_nothing(cell: str) -> bool:
    """Whether a cell is empty, a dash or a zero."""
    return not cell.strip("-+0.,% ")


def without_blanks(grid: Grid) -> Grid:
    """Return the table without the columns that say nothing in any row; the first one stays."""
    columns = range(1, len(grid.header))
    kept = [0, *(index for index in columns if not all(says_nothing(row[index]) for row in grid.rows))]
    header = [grid.header[index] for index in kept]
    rows = [[row[index] for index in kept] for row in grid.rows]
    return replace(grid, header=header, rows=rows, left=sum(index < grid.left for index in kept))


def rows_grid(analysis: Analysis) -> Grid:
    """One line a row: score, noise, difference, tests."""
    bar = [] if analysis.bar is None else [f"p below {analysis.bar:g}"]
    header = ["row", "verdict", "seeds", "BPB", "sd", "delta", "95 % interval", "p", "p margin", *bar, "seeds needed"]
    rows = [_row_cells(line, analysis) for line in analysis.lines]
    return Grid(
        title="Rows", header=header, rows=rows, left=2, under=_legend(analysis), first=("delta", "95 % interval")
    )


def _legend(analysis: Analysis) -> str:
    """How to read the rows."""
    scores = (
        "BPB: bits per byte of the artifact as read back, mean over seeds; sd: of the sample; seeds: counted of "
        "started."
    )
    if not any(line.difference for line in analysis.lines):
        return scores
    margin = "" if analysis.margin_bpb is None else f" (= {analysis.margin_bpb:.5f} BPB by the control's tokens)"
    bar = "" if analysis.bar is None else f" p below {analysis.bar:g}: one-sided t test of the row alone, not adjusted."
    alpha = f"{ALPHA:g}"
    return (
        f"{scores} delta: mean minus the control's, negative is better; interval and p by Welch's test. p: one-sided, "
        "against no gain, adjusted for the number of tests (Holm). p margin: one-sided, against a gain below "
        f"{analysis.margin_nats:g} nats per token{margin}, not adjusted.{bar} seeds needed: a side, to show a true "
        f"difference of this size at p < {alpha} with a power of 80 %. Verdicts: better, p < {alpha}; by the margin, "
        f"p margin below {alpha} too, adjusted likewise; worse, the opposite test below {alpha}, adjusted; else not "
        "shown, which is no proof of equality."
    )


def _row_cells(line: Line, analysis: Analysis) -> list[str]:
    score, difference = line.score, line.difference
    cells = [
        line.name,
        line.verdict,
        f"{len(line.row.counted)} of {len(line.row.runs)}",
        number(score.mean if score else None),
        number(score.sd if score else None),
        number(difference.delta if difference else None, sign=True),
        interval(difference.low, difference.high, sign=True) if difference else "-",
        p_text(line.p_holm),
        p_text(difference.p_margin if difference else None),
    ]
    bar = [] if analysis.bar is None else [p_text(line.bar.p if line.bar else None)]
    tested = difference is not None and difference.p_zero is not None and difference.delta != 0
    beyond = f"> {MAX_SEEDS:,}" if tested else "-"
    return [*cells, *bar, beyond if line.needed is None else f"{line.needed:,}"]


def what_counts(analysis: Analysis) -> str:
    """What the bytes are of."""
    return "code and artifact" if analysis.counts_code else "artifact; code not counted yet"


def sizes_grid(analysis: Analysis) -> Grid:
    """One line a row: what the artifact costs, in score and in bytes, and what a step costs."""
    header = ["row", "quant gap, BPB", "bytes, largest", "left under the cap", "of cap", "step, ms", "steps"]
    rows = []
    for line in analysis.lines:
        if line.max_bytes is None or line.cap_bytes is None or line.gap is None:
            continue
        left, share = line.cap_bytes - line.max_bytes, line.max_bytes / line.cap_bytes
        counts = line.row.values("steps")
        steps = " .. ".join(f"{count:,}" for count in sorted({min(counts), max(counts)}))
        cells = [number(line.gap.mean, sign=True), f"{line.max_bytes:,}", f"{left:,}", f"{share:.1%}"]
        rows.append([line.name, *cells, number(line.step_ms.mean if line.step_ms else None, 1), steps])
    what = what_counts(analysis)
    under = f"bytes: {what}; decimal, of the seed with the most. step: median of a seed, mean over seeds."
    return Grid(title="Size and time", header=header, rows=rows, left=1, under=under)


def models_grid(analysis: Analysis) -> Grid:
    """One line a row: what is stored, how deep it is when visited, what visiting again saves, and the text's tokens."""
    header = ["row", "parameters", "stored", "blocks", "deep", "saved bytes", "a further visit", "bytes a token"]
    rows = []
    for line in analysis.lines:
        if line.score is None:
            continue
        result = line.row.results[0]
        blocks, deep, repeated = (result.get(key) for key in ("blocks_stored", "effective_depth", "params_repeated"))
        saved = None if repeated is None else repeated * result["bits_per_param"] / 8
        again = None if deep is None or blocks is None or deep == blocks else deep - blocks
        main = result["evals"][result["eval_main"]]
        cells = [_count(result["params"]), _count(result["params_stored"]), _count(blocks), _count(deep)]
        cells += [_count(saved), _count(saved / again if saved is not None and again else None)]
        rows.append([line.name, *cells, number(main["bytes"] / main["tokens"], 3)])
    under = (
        "stored: numbers in the artifact, without what only training uses. deep: blocks that a token passes. saved "
        "bytes: what the matrices used again would take at this artifact's bits a parameter; a further visit: its "
        "share. Of a row's first seed."
    )
    return Grid(title="Models", header=header, rows=rows, left=1, under=under)


def _count(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def seeds_grid(analysis: Analysis) -> Grid:
    """The table of the public threads: a line a started run, then best, mean and sd of what counts."""
    header = ["row", "seed", "steps", "BPB", "before quantisation", "quant gap", "artifact bytes"]
    keys = ("val_bpb", "pre_quant_bpb", "quant_gap_bpb", "artifact_bytes")
    rows = []
    for line in analysis.lines:
        row = line.row
        for run in row.runs:
            result, state = run.result, "" if run.state in ("done", "superseded") else run.state
            if result is None:
                rows.append([line.name, str(run.seed), state, *["-"] * 4])
                continue
            cells = [number(result["val_bpb"]), number(result["pre_quant_bpb"])]
            cells += [number(result["quant_gap_bpb"], sign=True), f"{result['artifact_bytes']:,}"]
            seed = f"{run.seed}" + (" (counts no more)" if run.state == "superseded" else "")
            rows.append([line.name, seed, f"{result['steps']:,}", *cells])
        if len(row.counted) > 1 and not row.mixed:
            scores, before, gaps, size = (summarize(row.values(key)) for key in keys)
            rows.append([line.name, "best", "", number(min(row.values("val_bpb"))), "", "", ""])
            mean = [number(scores.mean), number(before.mean), number(gaps.mean, sign=True), f"{size.mean:,.0f}"]
            spread = [number(scores.sd), number(before.sd), number(gaps.sd), f"{size.sd:,.0f}"]
            rows += [[line.name, "mean", "", *mean], [line.name, "sd", "", *spread]]
    return Grid(title="Seeds", header=header, rows=rows, left=1)


def changes_grid(analysis: Analysis) -> Grid | None:
    """What each row changes against the control; None where no row is compared."""
    rows = [[line.name, change] for line in analysis.lines for change in line.changes]
    return Grid(title="Changes against the control", header=["row", "change"], rows=rows, left=2) if rows else None


def notes_of(analysis: Analysis) -> list[str]:
    """Everything that a reader must know before believing a number."""
    return [*analysis.notes, *(f"{line.row.name}: {note}." for line in analysis.lines for note in line.notes)]


def agreement_grid(found: Agreement) -> Grid:
    """The same rows on two tracks."""
    ranks = found.ranks
    under = (
        f"Same side of the control: {_share(ranks.signs)} of rows; same order: {_share(ranks.pairs)} of pairs; rank "
        f"correlation: Spearman {number(ranks.spearman, 2)}, Kendall {number(ranks.kendall, 2)} (one-sided p "
        f"{p_text(ranks.p)}), over {ranks.n} rows."
    )
    rows = [[name, number(one, sign=True), number(two, sign=True)] for name, (one, two) in found.deltas.items()]
    header = ["row", f"delta in {found.first}", f"delta in {found.second}"]
    return Grid(title=f"{found.first} against {found.second}", header=header, rows=rows, left=1, under=under)


def references_grid(references: Sequence[Reference]) -> Grid:
    """Published numbers: shown, never tested against."""
    rows = [
        [ref.name, number(ref.bpb), number(ref.sd), str(ref.n), f"{ref.max_bytes:,}", ref.source] for ref in references
    ]
    header = ["published", "BPB", "sd", "seeds", "bytes, largest", "source"]
    return Grid(title="Published numbers", header=header, rows=rows, left=1, under="Never part of a test above.")


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.0%}"


# ---------------------------------------------------------------- three ways to draw one


def to_terminal(grid: Grid) -> None:
    """Print the table; where there is little room, what stands on the right goes first."""
    kept = (grid.header[0], "verdict", "BPB", *grid.first)
    columns = [
        Column(name, words, 0 if name in kept else index)
        for index, (name, words) in enumerate(zip(grid.header, grid.words, strict=True))
    ]
    show_table(columns, grid.rows, grid.title)
    if grid.under:
        console().print(grid.under, style="dim", soft_wrap=True)


def to_markdown(grid: Grid) -> str:
    rule = ["---" if words else "---:" for words in grid.words]
    header, *rows = [[in_markdown(cell) for cell in line] for line in (grid.header, *grid.rows)]
    body = "\n".join("| " + " | ".join(line) + " |" for line in (header, rule, *rows))
    return f"## {in_markdown(grid.title)}\n\n{body}\n" + (f"\n{in_markdown(grid.under)}\n" if grid.under else "")


def to_html(grid: Grid) -> str:
    """Return the table with the columns of `first` beside its first one: a phone shows these."""
    chosen = [grid.header.index(name) for name in grid.first if name in grid.header]
    order = [0, *chosen, *(index for index in range(1, len(grid.header)) if index not in chosen)]

    def line(cells: Sequence[str], tag: str) -> str:
        drawn = [f"<{tag}{'' if grid.words[i] else ' class=n'}>{html.escape(cells[i])}</{tag}>" for i in order]
        return f"<tr>{''.join(drawn)}</tr>"

    body = "".join(line(row, "td") for row in grid.rows)
    under = f"<p class=under>{html.escape(grid.under)}</p>" if grid.under else ""
    head = f"<thead>{line(grid.header, 'th')}</thead>"
    table = f"<div class=scroll><table>{head}<tbody>{body}</tbody></table></div>"
    return f"<section><h2>{html.escape(grid.title)}</h2>{table}{under}</section>"
