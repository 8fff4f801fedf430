"""What is submitted: every started seed of one configuration, as run folders hold them, and the file of its code."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from golf.arguments import one_of
from golf.config import Run, check_owner
from golf.errors import UserError
from golf.records import Whole, read_record
from golf.reports.load import Row, Started, Sweep, load, row_of
from golf.requantise import check_artifact
from golf.rundir import RunDir
from golf.submission.bundle import bundle
from golf.submission.pack import Packed, pack
from golf.suggestions import hint
from golf.tokens.prepare import Prepared
from golf.typed import typed

SHIPS = ("packed", "plain")
packed = cache(pack)  # seconds each time


@dataclass(frozen=True, kw_only=True, slots=True)
class Track:
    """A track of the challenge. folder, title: as its repository has them; cap_bytes: of code and artifact."""

    folder: str
    title: str
    cap_bytes: int
    record: bool


# openai/parameter-golf, records/: the two tracks that pull requests go to.
TRACKS = {
    "record": Track(folder="track_10min_16mb", title="10min_16mb", cap_bytes=16_000_000, record=True),
    "non_record": Track(folder="track_non_record_16mb", title="non_record_16mb", cap_bytes=16_000_000, record=False),
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Entry:
    """row: every started run of it; registered: the seeds written down before any had a result; source, packed: the
    readable script and the small one; ship: which of the two is train_gpt.py, and counts."""

    row: Row
    registered: list[int]
    run: Run
    prepared: Prepared
    source: str
    packed: Packed
    ship: str

    @property
    def counted(self) -> list[Started]:
        return self.row.counted

    @property
    def results(self) -> dict[int, dict[str, Any]]:
        """seed -> result.json."""
        return {run.seed: run.result for run in self.counted if run.result is not None}

    @property
    def script(self) -> bytes:
        """The file that is shipped as train_gpt.py."""
        return self.packed.file if self.ship == "packed" else self.source.encode()

    @property
    def max_total_bytes(self) -> int:
        """Code and artifact of the largest seed: what is held against the cap."""
        return len(self.script) + max(result["artifact_bytes"] for result in self.results.values())


def gather(paths: Sequence[Path], row: str | None, ship: str) -> Entry:
    """The row of a sweep's folder, or run folders and all that were started of their configuration beside them.

    Raises UserError where there is none, several that could be meant, or none that is finished.
    """
    one_of("ship", ship, SHIPS)
    runs = [path for path in paths if RunDir(path).config.exists()]
    if runs and len(runs) < len(paths):
        raise UserError(f"run={paths[0]}: is one thing and another; name one sweep, or run folders only")
    found, registered = _of_runs(paths, row) if runs else _of_sweep(paths, row)
    if not found.counted:
        raise UserError(f"run={paths[0]}: no run of {found.name} is finished; train it first")
    first = found.counted[0].folder
    node = _configuration(first)
    run: Run = typed(node["run"], "", Run)
    for counted in found.counted:
        _check_claims(counted)
    prepared = Prepared.of_run(node["prepared"])
    source = source_of(run)
    return Entry(
        row=found, registered=registered, run=run, prepared=prepared, source=source, packed=packed(source), ship=ship
    )


def _check_claims(counted: Started) -> None:
    """Raise UserError where a run's configuration or artifact is not the one that was scored."""
    folder = RunDir(counted.folder)
    assert counted.result is not None
    node = _configuration(counted.folder)
    check_owner(typed(node["run"], "", Run), node, f"run={folder.path}")
    check_artifact(folder, counted.result)


def _configuration(folder: Path) -> dict[str, Any]:
    node = read_record(RunDir(folder).config, Whole)
    if node is None:
        raise UserError(f"run={folder}: its config.json is not whole; train the run again")
    return node


def source_of(run: Run) -> str:
    """The readable script of a run, the same for each of its seeds."""
    return bundle(replace(run, seed=0), f"{run.label}: written by golf from one typed configuration.")


def code_of(run: Run) -> Packed:
    """The run's code as it would be shipped."""
    return packed(source_of(run))


def _of_sweep(paths: Sequence[Path], row: str | None) -> tuple[Row, list[int]]:
    if len(paths) > 1:
        raise UserError(f"run={paths[0]}: one sweep at a time; name its folder alone, or run folders only")
    sweep = load(paths[0])
    if row is None and len(sweep.rows) == 1:
        row = next(iter(sweep.rows))
    if row not in sweep.rows:
        named = "(none)" if row is None else row
        near = hint(named, sweep.rows)
        raise UserError(f"row={named}: {paths[0]} has {', '.join(sweep.rows)}; name the row to submit{near}")
    return sweep.rows[row], sweep.seeds


def _of_runs(paths: Sequence[Path], row: str | None) -> tuple[Row, list[int]]:
    """The runs that are named, and whatever else was started of their configurations in the same folders."""
    if row is not None:
        raise UserError(f"row={row}: goes with the folder of a sweep; the runs that are named are the row")
    named = {path.resolve() for path in paths}
    sweeps: list[Sweep] = [load(folder) for folder in sorted({path.parent for path in named})]
    beside = [run for sweep in sweeps for part in sweep.rows.values() for run in part.runs]
    hashes = {run.config_hash for run in beside if run.folder.resolve() in named}
    chosen = [run for run in beside if run.config_hash in hashes]
    if not chosen:
        raise UserError(f"run={paths[0]}: has no readable config.json; name a folder that golf/train.py made")
    rows = {part.name for sweep in sweeps for part in sweep.rows.values() for run in part.runs if run in chosen}
    seeds = [seed for sweep in sweeps for seed in sweep.seeds]
    return row_of(min(rows), chosen), seeds
