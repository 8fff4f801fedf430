"""May this be submitted? Each reason against it, in one line (openai/parameter-golf: README, what was sent back)."""

import shlex
from collections.abc import Iterator
from dataclasses import dataclass

from golf.rundir import RunDir, illegal, read_json
from golf.submission.compare import P_VALUE, Comparison
from golf.submission.entry import Entry, Track

LEAST_SEEDS = 3
MAX_SECONDS = 600.0  # to train, and again to score
RECORD_TRACKS = ("h100x8",)
CHALLENGE_TEXT = "fineweb"  # how golf calls its corpora begins so


@dataclass(frozen=True, slots=True)
class Reason:
    """key: which rule; text: what is wrong, with the numbers, fit for a README; fix: what to type here."""

    key: str
    text: str
    fix: str = ""

    def told(self) -> str:
        """In one line, at the terminal."""
        return f"{self.text}; {self.fix}" if self.fix else self.text


ALWAYS = (
    "over_cap",
    "over_time",
    "audit",
    "mixed_code",
    "mixed_config",
)  # any track wants these; a record also wants the rest


def against(entry: Entry, track: Track, comparison: Comparison | None) -> list[Reason]:
    """Everything that stands against it, whether or not this track asks for it."""
    found = [*_over_cap(entry, track), *_over_time(entry, track), *_audit(entry), *_codes(entry), *_configs(entry)]
    return [*found, *_seeds(entry), *_registered(entry), *_significance(entry, comparison, track)]


def refusing(found: list[Reason], track: Track) -> list[Reason]:
    """Those that this track refuses for."""
    return [reason for reason in found if track.record or reason.key in ALWAYS]


def _over_cap(entry: Entry, track: Track) -> Iterator[Reason]:
    cap, code = min(track.cap_bytes, entry.run.cap_bytes), len(entry.script)
    for seed, result in entry.results.items():
        total = code + result["artifact_bytes"]
        if total > cap:
            text = f"seed {seed}: {result['artifact_bytes']:,} bytes of artifact and {code:,} of code are {total:,}"
            yield Reason("over_cap", f"{text}, over the cap of {cap:,}")


def _over_time(entry: Entry, track: Track) -> Iterator[Reason]:
    """A run may overshoot its own limit by the step that crossed it; its result says whether it did no more."""
    own = entry.run.budget.max_seconds
    limit = MAX_SECONDS if track.record else own
    for seed, result in entry.results.items():
        trained, scored = result["counted_seconds"], result["evals"][result["eval_main"]]["seconds"]
        if not result["in_time"]:
            yield Reason("over_time", f"seed {seed}: {trained:.1f} s count as training, over its limit of {own} s")
        elif limit is not None and limit != own and trained > limit:
            yield Reason("over_time", f"seed {seed}: {trained:.1f} s count as training, over {limit:g} s")
        if limit is not None and scored > limit:
            yield Reason("over_time", f"seed {seed}: scoring took {scored:.1f} s, over {limit:g} s")


def _audit(entry: Entry) -> Iterator[Reason]:
    for run in entry.counted:
        assert run.result is not None
        report = read_json(RunDir(run.folder).path / "audit.json")
        if illegal(run.result):
            said = "; ".join(run.result["legality"]) or "its evaluator breaks a rule"
            yield Reason("audit", f"seed {run.seed}: illegal: {said}")
        elif run.result["legal"] is None or not isinstance(report, dict):
            fix = f"python golf/audit.py {shlex.quote(f'run={run.folder}')}"
            yield Reason("audit", f"seed {run.seed}: not audited", fix)
        elif report.get("fingerprint") != run.result["fingerprint"]:
            yield Reason("audit", f"seed {run.seed}: its audit.json is of another run; audit it again")


def _codes(entry: Entry) -> Iterator[Reason]:
    for run in entry.counted:
        codes = (run.result or {}).get("codes") or []
        if len(codes) > 1:
            yield Reason("mixed_code", f"seed {run.seed}: made by {len(codes)} codes; train it again in one")


def _configs(entry: Entry) -> Iterator[Reason]:
    if entry.row.mixed:
        keys = ", ".join(entry.row.mixed[:3]) + (" ..." if len(entry.row.mixed) > 3 else "")
        yield Reason("mixed_config", f"seeds ran different configurations: {keys}")


def _seeds(entry: Entry) -> Iterator[Reason]:
    count = len(entry.results)
    if count < LEAST_SEEDS:
        yield Reason("few_seeds", f"{count} finished seed{'s' * (count != 1)}, {LEAST_SEEDS} wanted")


def _registered(entry: Entry) -> Iterator[Reason]:
    finished = set(entry.results)
    if late := sorted(finished - set(entry.registered)):
        yield Reason("unregistered", f"seeds {_listed(late)} were not written down before the first result")
    if missing := sorted(set(entry.registered) - finished):
        yield Reason("unregistered", f"seeds {_listed(missing)} were registered and have no result")


def other_than_the_records(entry: Entry, track: Track) -> list[str]:
    """Return in what these runs differ from the challenge's: each a line that names the track, or the text."""
    found = []
    if entry.run.track not in RECORD_TRACKS:
        wanted = " or ".join(RECORD_TRACKS)
        found.append(f"made on track={entry.run.track}, which is not the challenge's; {track.title} wants {wanted}")
    texts = {(result["data"]["corpus"], result["data"]["split"]) for result in entry.results.values()}
    for corpus, split in sorted(texts):
        if not corpus.startswith(CHALLENGE_TEXT) or split != "val":
            found.append(f"scored on {corpus}/{split}, and not on FineWeb's val split, which is the challenge's text")
    return found


def _significance(entry: Entry, comparison: Comparison | None, track: Track) -> Iterator[Reason]:
    """A gain over runs of one's own on the same track and text may be shown anywhere; a published one is of its own."""
    if comparison is None or not comparison.own:
        yield from (Reason("not_shown", text) for text in other_than_the_records(entry, track))
    if comparison is None:
        text = f"nothing is published on the track {entry.run.track}; name what it beats: reference=FOLDER or a name"
        yield Reason("not_shown", text)
    elif not comparison.shown:
        yield Reason("not_shown", f"{comparison.told()} (p < {P_VALUE:g} is the rule)")


def _listed(seeds: list[int]) -> str:
    return ", ".join(map(str, seeds))
