"""What a sweep says: each row against the control, with the noise between seeds, and in words what that allows."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

from golf.reports import stats
from golf.reports.load import Row, Started, Sweep, differences, environment_of
from golf.reports.stats import BarTest, Difference, PooledSd, RankAgreement, Summary
from golf.rundir import illegal, marks

ALPHA = 0.01  # the level of every test (upstream's rule)
MARGIN_NATS = 0.005  # what a record must gain, in nats per token (upstream's rule)


@dataclass(frozen=True, kw_only=True, slots=True)
class Line:
    """A row in the table. score, gap (BPB), step_ms: over seeds; max_bytes: code and artifact of the largest seed.

    difference: against the control, None for the control itself and where nothing can be compared; p_holm: p_zero,
    adjusted for the number of tests; needed: seeds a side to show a true difference of this size at p < 0.01 with a
    power of 80 %; changes: configuration against the control's; faults: what stands against a claim; verdict, notes:
    words.
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
    faults: list[str] = field(default_factory=list)
    verdict: str = ""
    notes: list[str] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The row's, with the marks of its scores."""
        return " ".join([self.row.name, *(f"({mark})" for mark in _marks(self.row))])


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
        tracks = {result["track"] for line in self.lines for result in line.row.results}
        return " and ".join(sorted(tracks)) or "no"

    @property
    def counts_code(self) -> bool:
        """Whether any size includes counted code."""
        return any(result["code_bytes"] for line in self.lines for result in line.row.results)


def analyse(sweep: Sweep, *, margin_nats: float = MARGIN_NATS, bar: float | None = None) -> Analysis:
    """Compare every row with the control. bar: a fixed published score (BPB) for a one-sample test beside it."""
    control = sweep.rows.get(sweep.control) if sweep.control else None
    notes = _sweep_notes(sweep, control)
    if control is not None and (control.mixed or not control.results):
        control = None
    margin_bpb = _margin(control, margin_nats) if control else None
    bare = [_line(row, control, margin_bpb, bar, sweep.seeds) for row in sweep.rows.values()]
    tests = [line.difference or Difference(delta=0.0) for line in bare]
    better = stats.holm([test.p_zero for test in tests])
    beyond = stats.holm([test.p_margin for test in tests])
    worse = stats.holm([None if test.p_zero is None else 1 - test.p_zero for test in tests])
    lines = []
    for line, *adjusted in zip(bare, better, beyond, worse, strict=True):
        verdict = _verdict(line, control, *adjusted)
        lines.append(replace(line, p_holm=adjusted[0], verdict=verdict))
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
    if sweep.control is None and len(sweep.rows) > 1:
        notes.append("No control is named (in the sweep file, or --control ROW): rows are shown and not compared.")
    elif sweep.control is not None and control is None:
        notes.append(f"The control {sweep.control} has no run in this folder: no row is compared.")
    elif control is not None and control.mixed:
        notes.append(f"The control {sweep.control} ran with different {_listed(control.mixed)}: no row is compared.")
    elif control is not None and not control.results:
        notes.append(f"The control {sweep.control} has no finished run: no row is compared.")
    if absent := [name for name in sweep.asked if name not in sweep.rows]:
        notes.append(f"Rows that were asked for and never started: {_listed(absent)}.")
    if sweep.unreadable:
        notes.append(f"Cannot be read, and counts nowhere: {_listed(sweep.unreadable)}.")
    return notes


def _margin(control: Row, margin_nats: float) -> float:
    """The margin in BPB on the text that the control was scored on."""
    tokens, text_bytes = _text(control)
    return stats.nats_to_bpb(margin_nats, tokens=tokens, text_bytes=text_bytes)


def _text(row: Row) -> tuple[int, int]:
    """(tokens, bytes) of the text that the row's main evaluator scored."""
    result = row.results[0]
    entry = result["evals"][result["eval_main"]]
    return entry["tokens"], entry["bytes"]


def _texts(row: Row) -> set[tuple[object, ...]]:
    """What each run was scored on: corpus, split, bytes."""
    return {
        (result["data"]["corpus"], result["data"]["split"], result["evals"][result["eval_main"]]["bytes"])
        for result in row.results
    }


def _line(row: Row, control: Row | None, margin_bpb: float | None, bar: float | None, seeds: Sequence[int]) -> Line:
    """One row with all but what the other rows decide (Holm's adjustment, the verdict)."""
    notes = _row_notes(row, control, seeds)
    if row.mixed or not row.results:
        return Line(row=row, notes=notes)
    scores = row.values("val_bpb")
    difference = needed = None
    if control is not None and row is not control and _texts(row) == _texts(control):
        theirs = control.values("val_bpb")
        difference = stats.welch(scores, theirs, margin=margin_bpb or 0.0)
        noise = stats.pooled_sd([scores, theirs])
        needed = stats.seeds_needed(difference.delta, noise.sd, alpha=ALPHA) if noise and noise.sd > 0 else None
    times = row.values("step_ms")
    return Line(
        row=row,
        score=stats.summarize(scores),
        gap=stats.summarize(row.values("quant_gap_bpb")),
        step_ms=stats.summarize(times) if times else None,
        max_bytes=int(max(row.values("total_bytes"))),
        cap_bytes=int(min(row.values("cap_bytes"))),
        difference=difference,
        needed=needed,
        bar=stats.one_sample(scores, bar) if bar is not None else None,
        changes=differences(row, control) if control is not None and row is not control else [],
        faults=_faults(row, seeds),
        notes=notes,
    )


def _faults(row: Row, seeds: Sequence[int]) -> list[str]:
    """What stands against any claim on this row."""
    faults = {
        **{name: bool(found) for name, found in _disqualified(row).items()},
        "failed seeds": len(row.counted) < len({run.seed for run in row.runs}),
        "other seeds than registered": bool(seeds) and {run.seed for run in row.counted} != set(seeds),
    }
    return [name for name, found in faults.items() if found]


def _disqualified(row: Row) -> dict[str, list[int]]:
    """Why a score may not count -> the counted seeds that it holds for."""
    scored = [(run.seed, run.result) for run in row.counted if run.result is not None]
    return {
        "over the cap": [seed for seed, result in scored if not result["fits"]],
        "over time": [seed for seed, result in scored if result.get("in_time") is False],
        "illegal": [seed for seed, result in scored if illegal(result)],
    }


def _marks(row: Row) -> dict[str, list[int]]:
    """Return the marks of its scores (golf/rundir.py) -> the counted seeds that have them."""
    found: dict[str, list[int]] = {}
    for run in row.counted:
        for mark in marks(run.result or {}):
            found.setdefault(mark, []).append(run.seed)
    return found


def _row_notes(row: Row, control: Row | None, seeds: Sequence[int]) -> list[str]:
    done = [run.seed for run in row.counted]
    notes = [f"seed {run.seed} {run.state}: {run.reason or 'no word'}" for run in row.runs if run.result is None]
    for run in (run for run in row.runs if run.state == "superseded"):
        assert run.result is not None
        score = f"{run.result['val_bpb']:.4f}"
        notes.append(f"seed {run.seed} was trained again; {run.folder.name} ({score}) counts no more")
    by_mark = {mark.lower(): found for mark, found in _marks(row).items()}
    by_words = {
        **{f"{name} on seed": found for name, found in (_disqualified(row) | by_mark).items()},
        "not registered in the sweep file: seed": [seed for seed in done if seeds and seed not in seeds],
        "no result yet for registered seed": [seed for seed in seeds if seed not in done],
    }
    notes += [f"{words} {_listed(found)}" for words, found in by_words.items() if found]
    if any(not result["deterministic"] for result in row.results):
        notes.append("the wall clock shaped it: a repeat differs")
    if differing := _differing(row.counted):
        notes.append(f"its seeds ran in different environments ({_listed(differing)})")
    elif control is not None and row is not control and control.results and row.results:
        if differing := _differing([row.counted[0], *control.counted]):
            notes.append(f"another environment than the control's ({_listed(differing)})")
        if _texts(row) != _texts(control):
            notes.append("scored on other text than the control: not compared")
    return notes


def _differing(runs: Sequence[Started]) -> list[str]:
    found = [environment_of(run) for run in runs]
    return [key for key in (found[0] if found else {}) if len({facts[key] for facts in found}) > 1]


def _verdict(line: Line, control: Row | None, better: float | None, beyond: float | None, worse: float | None) -> str:
    """What may be said; better, beyond (the margin), worse: p-values, each adjusted for the number of tests."""
    row, difference = line.row, line.difference
    if row.mixed:
        return f"refused: its seeds ran with different {_listed(row.mixed)}"
    if not row.results:
        return "no finished run"
    if row is control:
        return "control"
    if difference is None or control is None:
        return "not compared"
    if better is None or beyond is None or worse is None:
        few = [name for name, of in (("it", row), ("the control", control)) if len(of.results) < 2]
        if few:
            return f"no test: {' and '.join(few)} ha{'s' if len(few) == 1 else 've'} one seed"
        return "tie, without any spread" if difference.delta == 0 else "no test: no spread between seeds"
    if better < ALPHA:
        claim = "better by the margin" if beyond < ALPHA else "better"
        return ", but ".join([claim, *([", ".join(line.faults)] if line.faults else [])])
    return "worse" if worse < ALPHA else "not shown"


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
