"""What a sweep says: each row against the control, with the noise between seeds, and in words what that allows."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from golf.reports import stats
from golf.reports.load import Row, Sweep, differences
from golf.reports.stats import BarTest, Difference, PooledSd, RankAgreement, Summary

ALPHA = 0.01  # the level of every test (upstream's rule)
MARGIN_NATS = 0.005  # what a record must gain, in nats per token (upstream's rule)
# A difference in one of these makes two results hard to compare; the rest (platform string, wandb ...) does not.
ENVIRONMENT = ("git_commit", "git_dirty", "python", "torch", "cuda", "cpu", "gpus", "flash-attn")


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A row in the table. score, gap (BPB), step_ms: over seeds; max_bytes: code and artifact of the largest seed.

    difference: against the control, None for the control itself and where nothing can be compared; p_holm: p_zero,
    adjusted for the number of rows; needed: seeds a side to show a true difference of this size at p < 0.01 with a
    power of 80 %; changes: configuration against the control's; verdict and notes: words.
    """

    row: Row
    score: Summary | None = None
    gap: Summary | None = None
    step_ms: Summary | None = None
    max_bytes: int | None = None
    cap_bytes: int | None = None
    difference: Difference | None = None
    p_holm: float | None = None
    needed: int | None = None
    bar: BarTest | None = None
    changes: list[str] = field(default_factory=list)
    verdict: str = ""
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True, slots=True)
class Analysis:
    """A sweep, row by row. margin_bpb: the margin on this text; pooled: the noise that the rows share."""

    sweep: Sweep
    lines: list[Line]
    margin_nats: float
    margin_bpb: float | None
    pooled: PooledSd | None
    bar: float | None
    notes: list[str]

    @property
    def track(self) -> str:
        tracks = {result["track"] for line in self.lines for result in line.row.results.values()}
        return " and ".join(sorted(tracks)) or "no"


def analyse(sweep: Sweep, *, margin_nats: float = MARGIN_NATS, bar: float | None = None) -> Analysis:
    """Compare every row with the control. bar: a fixed published score (BPB) for a one-sample test beside it."""
    control = sweep.rows.get(sweep.control) if sweep.control else None
    notes = _sweep_notes(sweep, control)
    if control is not None and (control.mixed or not control.results):
        control = None
    margin_bpb = _margin(control, margin_nats) if control else None
    bare = [_line(row, control, margin_bpb, bar) for row in sweep.rows.values()]
    adjusted = stats.holm([line.difference.p_zero if line.difference else None for line in bare])
    lines = []
    for line, p_holm in zip(bare, adjusted, strict=True):
        fields = {name: getattr(line, name) for name in Line.__slots__}
        verdict = _verdict(line, control, p_holm)
        lines.append(Line(**fields | {"p_holm": p_holm, "verdict": verdict}))
    whole = [row.values("val_bpb") for row in sweep.rows.values() if not row.mixed]
    return Analysis(
        sweep=sweep,
        lines=lines,
        margin_nats=margin_nats,
        margin_bpb=margin_bpb,
        pooled=stats.pooled_sd(whole),
        bar=bar,
        notes=notes,
    )


def _sweep_notes(sweep: Sweep, control: Row | None) -> list[str]:
    notes = []
    if sweep.control is None:
        notes.append("No control is named (in the sweep file, or --control ROW): rows are shown and not compared.")
    elif control is None:
        notes.append(f"The control {sweep.control} has no run in this folder: no row is compared.")
    elif control.mixed:
        notes.append(f"The control {sweep.control} ran with different {_listed(control.mixed)}: no row is compared.")
    elif not control.results:
        notes.append(f"The control {sweep.control} has no finished run: no row is compared.")
    for row in sweep.rows.values():
        extra = sorted(set(row.results) - set(sweep.seeds)) if sweep.seeds else []
        missing = [seed for seed in sweep.seeds if seed not in row.results]
        notes += [f"{row.name}: seeds {_listed(extra)} were not registered in the sweep file."] if extra else []
        notes += [f"{row.name}: registered seeds {_listed(missing)} have no result."] if missing else []
    return notes


def _margin(control: Row, margin_nats: float) -> float:
    """The margin in BPB on the text that the control was scored on."""
    tokens, text_bytes = _text(control)
    return stats.nats_to_bpb(margin_nats, tokens=tokens, text_bytes=text_bytes)


def _text(row: Row) -> tuple[int, int]:
    """(tokens, bytes) of the text that the row's main evaluator scored."""
    result = next(iter(row.results.values()))
    entry = result["evals"][result["eval_main"]]
    return entry["tokens"], entry["bytes"]


def _line(row: Row, control: Row | None, margin_bpb: float | None, bar: float | None) -> Line:
    """One row with all but what the other rows decide (Holm's adjustment, the verdict)."""
    notes = _row_notes(row, control)
    if row.mixed or not row.results:
        return Line(row=row, notes=notes)
    scores = row.values("val_bpb")
    compared = control is not None and row is not control and _text(row)[1] == _text(control)[1]
    difference = needed = None
    if control is not None and compared:
        theirs = control.values("val_bpb")
        difference = stats.welch(scores, theirs, margin=margin_bpb or 0.0)
        noise = stats.pooled_sd([scores, theirs])
        needed = stats.seeds_needed(difference.delta, noise.sd, alpha=ALPHA) if noise else None
    return Line(
        row=row,
        score=stats.summarize(scores),
        gap=stats.summarize(row.values("quant_gap_bpb")),
        step_ms=stats.summarize(row.values("step_ms")),
        max_bytes=int(max(row.values("total_bytes"))),
        cap_bytes=int(min(row.values("cap_bytes"))),
        difference=difference,
        needed=needed,
        bar=stats.one_sample(scores, bar) if bar is not None else None,
        changes=differences(row, control) if control is not None and row is not control else [],
        notes=notes,
    )


def _row_notes(row: Row, control: Row | None) -> list[str]:
    notes = [f"seed {lost.seed} {lost.state}: {lost.reason or 'no word'}" for lost in row.lost]
    over = [seed for seed, result in row.results.items() if not result["fits"]]
    notes += [f"over the cap on seed {_listed(over)}"] if over else []
    illegal = [seed for seed, result in row.results.items() if result["legal"] is False]
    notes += [f"illegal on seed {_listed(illegal)}"] if illegal else []
    notes += [f"seed {_listed(row.repeated)} trained more than once; the newest counts"] if row.repeated else []
    if row.results and any(not result["deterministic"] for result in row.results.values()):
        notes.append("the wall clock shaped it: a repeat differs")
    environments = [result["environment"] for result in row.results.values()]
    if differing := _differing(environments):
        notes.append(f"its seeds ran in different environments ({_listed(differing)})")
    elif control is not None and row is not control and control.results and environments:
        theirs = [result["environment"] for result in control.results.values()]
        if differing := _differing([environments[0], *theirs]):
            notes.append(f"another environment than the control's ({_listed(differing)})")
    if control is not None and row.results and control.results and _text(row)[1] != _text(control)[1]:
        notes.append("scored on other text than the control: not compared")
    return notes


def _differing(environments: Sequence[dict[str, Any]]) -> list[str]:
    return [key for key in ENVIRONMENT if len({str(environment.get(key)) for environment in environments}) > 1]


def _verdict(line: Line, control: Row | None, p_holm: float | None) -> str:
    """What may be said. Better needs the adjusted p below 0.01; worse, an interval of 95 % above zero."""
    row, difference = line.row, line.difference
    if row.mixed:
        return f"refused: its seeds ran with different {_listed(row.mixed)}"
    if not row.results:
        return "no finished run"
    if row is control:
        return "control"
    if difference is None:
        return "not compared"
    if difference.p_zero is None or difference.p_margin is None:
        return "tie" if difference.delta == 0 else "no test: one seed, or no spread"
    if difference.p_margin < ALPHA:
        return "better by the margin"
    if p_holm is not None and p_holm < ALPHA:
        return "better"
    if difference.low is not None and difference.low > 0:
        return "worse"
    return "not shown"


def _listed(items: Sequence[object], most: int = 3) -> str:
    shown = ", ".join(map(str, items[:most]))
    return shown + (f" and {len(items) - most} more" if len(items) > most else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Agreement:
    """Two sweeps with the same rows, each with its control: do they tell the same? deltas: row -> (first, second)."""

    first: str
    second: str
    deltas: dict[str, tuple[float, float]]
    ranks: RankAgreement


def agreement(first: Analysis, second: Analysis) -> Agreement | None:
    """Rank correlation and agreement of signs over the rows that both compare with a control; None without any."""
    ours = {line.row.name: line.difference.delta for line in first.lines if line.difference}
    theirs = {line.row.name: line.difference.delta for line in second.lines if line.difference}
    shared = [name for name in ours if name in theirs]
    if not shared:
        return None
    ranks = stats.rank_agreement([ours[name] for name in shared], [theirs[name] for name in shared])
    deltas = {name: (ours[name], theirs[name]) for name in shared}
    return Agreement(first=first.sweep.label, second=second.sweep.label, deltas=deltas, ranks=ranks)
