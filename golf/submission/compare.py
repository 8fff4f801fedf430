"""A row against the reference that it claims to beat, by the challenge's rule (0.005 nats per token, p < 0.01;
openai/parameter-golf, README): published numbers of golf/reports/references.yaml, or runs of one's own."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golf.errors import UserError
from golf.files import path_of
from golf.reports.analysis import MARGIN_NATS
from golf.reports.load import load
from golf.reports.references import Reference, references
from golf.reports.stats import nats_to_bpb, one_sample, welch, welch_published
from golf.submission.entry import Entry

P_VALUE = 0.01


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """delta_bpb: ours minus theirs; p: of the test named, against a gain of less than margin_bpb; None: no test can be
    made, and `obstacle` says why; own: whether it is with runs of one's own."""

    name: str
    source: str
    their_bpb: float
    their_seeds: int
    delta_bpb: float
    margin_bpb: float
    test: str
    p: float | None
    obstacle: str | None = None
    own: bool = False

    @property
    def shown(self) -> bool:
        return self.obstacle is None and self.p is not None and self.p < P_VALUE

    def told(self) -> str:
        """In one line."""
        tail = self.obstacle or (f"{self.test}, p = {self.p:.2g}" if self.p is not None else "too few seeds for a test")
        gain = f"{self.delta_bpb:+.5f} BPB against {self.name} ({self.their_bpb:.4f}; {self.source})"
        return f"{gain}, {self.margin_bpb:.5f} wanted: {tail}"


def compare(entry: Entry, name: str | None) -> Comparison | None:
    """name: of a published reference, or a folder of runs (FOLDER or FOLDER:ROW); None: the best published one of the
    row's track, where there is one."""
    known = references(entry.run.track)
    if name is None:
        return _published(entry, known[0]) if known else None
    for reference in known:
        if reference.name == name:
            return _published(entry, reference)
    place, _, row = name.partition(":")
    if (folder := path_of(place)).is_dir():
        return _measured(entry, folder, row or None)
    listed = ", ".join(reference.name for reference in known) or "none"
    raise UserError(
        f"reference={name}: neither a folder of runs nor a published result on {entry.run.track} (there: {listed})"
    )


def _ours(entry: Entry) -> tuple[list[float], float]:
    """(scores, the rule's margin on the text that they are of)."""
    results = list(entry.results.values())
    main = results[0]["evals"][results[0]["eval_main"]]
    margin = nats_to_bpb(MARGIN_NATS, tokens=main["tokens"], text_bytes=main["bytes"])
    return [result["val_bpb"] for result in results], margin


def _published(entry: Entry, reference: Reference) -> Comparison:
    scores, margin = _ours(entry)
    if reference.sd is None:
        test, found = "one-sided t test", one_sample(scores, reference.bpb - margin)
        delta = found.delta - margin
    else:
        test = "Welch's one-sided test"
        found = welch_published(scores, mean=reference.bpb, sd=reference.sd, n=reference.n, margin=margin)
        delta = found.delta
    return Comparison(
        name=reference.name,
        source=reference.source,
        their_bpb=reference.bpb,
        their_seeds=reference.n,
        delta_bpb=delta,
        margin_bpb=margin,
        test=test,
        p=found.p,
    )


def _measured(entry: Entry, folder: Path, row: str | None) -> Comparison:
    sweep = load(folder)
    row = row or sweep.control or next(iter(sweep.rows))
    if row not in sweep.rows:
        raise UserError(f"reference={folder}:{row}: {folder} has {', '.join(sweep.rows)}")
    theirs = sweep.rows[row].results
    if not theirs:
        raise UserError(f"reference={folder}:{row}: no run of it is finished")
    scores, margin = _ours(entry)
    other = [result["val_bpb"] for result in theirs]
    found = welch(scores, other, margin=margin)
    return Comparison(
        name=f"{folder.name}:{row}",
        source=f"{len(other)} runs in {folder.name}",
        their_bpb=sum(other) / len(other),
        their_seeds=len(other),
        delta_bpb=found.delta,
        margin_bpb=margin,
        test="Welch's one-sided test",
        p=found.p_margin,
        obstacle=_obstacle(entry, theirs),
        own=True,
    )


def _obstacle(entry: Entry, theirs: Sequence[dict[str, Any]]) -> str | None:
    """Return why runs cannot be compared with ours; None where they can."""
    both = [*theirs, *entry.results.values()]
    if len({result["data"]["sha256"][result["data"]["split"]] for result in both}) > 1:
        return "scored on other text"
    tracks = {result["track"] for result in theirs} - {entry.run.track}
    return f"made on another track ({', '.join(sorted(tracks))})" if tracks else None
