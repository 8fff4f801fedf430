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
    return [grid for grid in found if grid] + ([grids.references_grid(published)] if published else [])


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


def to_markdown(analyses: Sequence[Analysis], agreements: Sequence[Agreement]) -> str:
    parts = []
    for analysis in analyses:
        sweep = analysis.sweep
        notes = "".join(f"- {note}\n" for note in grids.notes_of(analysis))
        lead = f"{sweep.purpose}\n\n" if sweep.purpose else ""
        parts.append(f"# {sweep.label}\n\n{lead}{summary_of(analysis)}\n" + (f"\n{notes}" if notes else ""))
        parts += [grids.to_markdown(grid) for grid in grids_of(analysis)]
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
            writer.writerow([analysis.sweep.label, run.state, *(numbers.get(key) for key in RUN_COLUMNS)])
    return text.getvalue()


def to_html(analyses: Sequence[Analysis], agreements: Sequence[Agreement]) -> str:
    body = "".join(_section(analysis) for analysis in analyses)
    body += "".join(grids.to_html(grids.agreement_grid(found)) for found in agreements)
    title = html.escape(" and ".join(analysis.sweep.label for analysis in analyses))
    head = "<meta charset=utf-8><meta name=viewport content='width=device-width, initial-scale=1'>"
    head += f"<title>{title}</title><style>{STYLE.read_text()}</style>"
    return f"<!doctype html><html lang=en><head>{head}</head><body>{body}</body></html>\n"


def _section(analysis: Analysis) -> str:
    sweep = analysis.sweep
    lead = html.escape(" ".join(filter(None, [f"{sweep.purpose}." if sweep.purpose else "", summary_of(analysis)])))
    notes = "".join(f"<li>{html.escape(note)}</li>" for note in grids.notes_of(analysis))
    first, *others = grids_of(analysis)
    plots = "".join(
        f"<figure><figcaption>{html.escape(caption)}</figcaption>{svg}</figure>"
        for caption, svg in figures(analysis).items()
    )
    return (
        f"<h1>{html.escape(sweep.label)}</h1><p class=lead>{lead}</p>"
        + (f"<ul class=notes>{notes}</ul>" if notes else "")
        + grids.to_html(first)
        + f"<section><h2>Plots</h2><div class=plots>{plots}</div></section>" * bool(plots)
        + "".join(grids.to_html(grid) for grid in others)
    )
