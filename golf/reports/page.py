"""report.html: one file that opens offline, light or dark, desk or phone. Beside it report.md and report.csv."""

import csv
import html
import io
from collections.abc import Sequence
from pathlib import Path

from golf.reports import grids
from golf.reports.analysis import Agreement, Analysis
from golf.reports.factors import factors_grid
from golf.reports.figures import figures
from golf.reports.grids import Grid
from golf.reports.references import references
from golf.reports.text import as_paragraph, in_cell, in_markdown
from golf.reports.verdict import Facts, verdict_of

STYLE = Path(__file__).with_name("page.css")

RUN_COLUMNS = (
    "label", "seed", "track", "val_bpb", "val_loss", "raw_bpb", "pre_quant_bpb", "post_quant_bpb", "quant_gap_bpb",
    "artifact_bytes", "code_bytes", "total_bytes", "cap_bytes", "fits", "legal", "steps", "train_tokens",
    "train_seconds", "step_ms", "wall_seconds", "params", "params_stored", "params_repeated", "blocks_stored",
    "effective_depth", "bits_per_param", "deterministic", "fingerprint", "config_hash",
)  # fmt: skip


def grids_of(analysis: Analysis) -> list[Grid]:
    """The tables of one sweep, in their order."""
    changes = grids.changes_grid(analysis)
    published = references(analysis.track)
    found = [grids.rows_grid(analysis), grids.sizes_grid(analysis), grids.models_grid(analysis), changes]
    found += [factors_grid(analysis), grids.seeds_grid(analysis)]
    found += [grids.references_grid(published)] if published else []
    return [grids.without_blanks(grid) for grid in found if grid and grid.rows]


def summary_of(analysis: Analysis) -> str:
    """One sentence on what stands here."""
    runs = sum(len(line.row.counted) for line in analysis.lines)
    started = sum(len(line.row.runs) for line in analysis.lines)
    rows = len(analysis.lines)
    text = f"{rows} row{'s' * (rows != 1)}, {runs} counted of {started} started runs, {analysis.track} track."
    if analysis.pooled is not None:
        text += (
            f" Noise between seeds: sd {analysis.pooled.sd:.5f} BPB (pooled, {analysis.pooled.df} degrees of freedom)."
        )
    return text


def to_markdown(analyses: Sequence[Analysis], agreements: Sequence[Agreement], about: Facts = ()) -> str:
    """about: what the report is made of, as golf.reports.verdict.provenance_of() says it."""
    parts = []
    for analysis in analyses:
        sweep = analysis.sweep
        lead = [f"# {in_markdown(sweep.label)}", f"**{in_markdown(verdict_of(analysis))}**"]
        lead += [as_paragraph(sweep.purpose)] if sweep.purpose else []
        lead.append(as_paragraph(summary_of(analysis)))
        if analysis is analyses[0] and about:
            lead.append("\n".join(f"- {name}: {in_markdown(said)}" for name, said in about))
        if notes := grids.notes_of(analysis):
            lead.append("\n".join(f"- {as_paragraph(note)}" for note in notes))
        parts += ["\n\n".join(lead) + "\n", *map(grids.to_markdown, grids_of(analysis))]
    parts += [grids.to_markdown(grids.agreement_grid(found)) for found in agreements]
    return "\n".join(parts)


def to_csv(analyses: Sequence[Analysis]) -> str:
    """One line a run folder, all numbers unrounded; state says which of them count (done), and why others do not."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["sweep", "state", *RUN_COLUMNS])
    for analysis in analyses:
        for row, run in ((line.row, run) for line in analysis.lines for run in line.row.runs):
            numbers = run.result or {"label": row.name, "seed": run.seed, "config_hash": run.config_hash}
            cells = [analysis.sweep.label, run.state, *(numbers.get(key) for key in RUN_COLUMNS)]
            writer.writerow(map(in_cell, cells))
    return text.getvalue()


def to_html(analyses: Sequence[Analysis], agreements: Sequence[Agreement], about: Facts = ()) -> str:
    """about: as for to_markdown()."""
    body = "".join(_section(analysis, about if analysis is analyses[0] else ()) for analysis in analyses)
    body += "".join(grids.to_html(grids.agreement_grid(found)) for found in agreements)
    title = html.escape(" and ".join(analysis.sweep.label for analysis in analyses))
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
    head += f"<title>{title}</title><style>{STYLE.read_text()}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n"


def _section(analysis: Analysis, about: Facts) -> str:
    sweep = analysis.sweep
    lead = html.escape(" ".join(filter(None, [f"{sweep.purpose}." if sweep.purpose else "", summary_of(analysis)])))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in grids.notes_of(analysis))
    made = "".join(f"<dt>{html.escape(name)}</dt><dd>{html.escape(said)}</dd>" for name, said in about)
    first, *others = grids_of(analysis)
    plots = "".join(
        f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}</figure>"
        for caption, svg in figures(analysis).items()
    )
    return (
        f"<h1>{html.escape(sweep.label)}</h1><p class=verdict>{html.escape(verdict_of(analysis))}</p>"
        + f"<p class=lead>{lead}</p>"
        + (f"<dl class=about>{made}</dl>" if made else "")
        + (f"<ul class=notes>{notes}</ul>" if notes else "")
        + grids.to_html(first)
        + f"<section><h2>Plots</h2><div class=plots>{plots}</div></section>" * bool(plots)
        + "".join(grids.to_html(grid) for grid in others)
    )
