"""Sweeps as their folders hold them: rows, their finished runs, and every run that was started and has no result."""

import contextlib
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golf.config import NOT_IDENTITY
from golf.errors import UserError
from golf.launcher.standing import read_standing
from golf.nodes import without_nulls
from golf.rundir import RunDir, read_json

SCHEMA = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Lost:
    """A run that was started and has no result. state: failed, stopped, interrupted or running."""

    seed: int
    state: str
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The runs of one label. results: result.json by seed, ascending; folders: where each is; lost: those without.

    config: dotted key -> value of what makes the row what it is (no seed, name or place); mixed: the keys in which its
    runs differ, empty where they are of one configuration; repeated: seeds that were trained more than once.
    """

    name: str
    results: dict[int, dict[str, Any]]
    folders: dict[int, Path]
    lost: list[Lost]
    config: dict[str, Any]
    mixed: list[str]
    repeated: list[int]

    def values(self, key: str) -> list[float]:
        """One number a finished seed, in the order of the seeds."""
        return [result[key] for result in self.results.values()]

    @property
    def started(self) -> int:
        return len(self.results) + len(self.lost)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A folder of runs. purpose, control, seeds (registered): from sweep.json, empty where there is none.

    tracker: W&B's (project, entity) where every run was tracked there, and in one place.
    """

    folder: Path
    purpose: str | None
    control: str | None
    seeds: list[int]
    rows: dict[str, Row]
    tracker: tuple[str, str | None] | None

    @property
    def label(self) -> str:
        return self.folder.name


def load(folder: Path, control: str | None = None) -> Sweep:
    """Read a sweep's folder, or any folder of run folders. control: the row to compare with, else the sweep file's.

    Raises UserError where there is no run, where the control is named on purpose and is no row, and where a result is
    of another schema.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a sweep, such as outputs/smoke")
    found = read_json(folder / "sweep.json")
    said: dict[str, Any] = found if isinstance(found, dict) else {}
    by_label: dict[str, list[RunDir]] = defaultdict(list)
    trackers = set()
    for path in sorted(folder.iterdir()):
        node = read_json(path / "config.json") if path.is_dir() else None
        if isinstance(node, dict) and "run" in node:
            by_label[node["run"]["label"]].append(RunDir(path))
            log = node["run"]["log"]
            trackers.add((log["project"], log["entity"]) if "project" in log else None)
    if not by_label:
        raise UserError(f"{folder}: holds no run folders; give the folder of a sweep, such as outputs/smoke")
    order = [name for name in said.get("rows", {}) if name in by_label]
    rows = {name: _row(name, by_label[name]) for name in [*order, *(n for n in by_label if n not in order)]}
    if control is not None and control not in rows:
        raise UserError(f"--control {control}: no such row in {folder}; it has {', '.join(rows)}")
    return Sweep(
        folder=folder,
        purpose=said.get("purpose"),
        control=control or said.get("control"),
        seeds=list(said.get("seeds", [])),
        rows=rows,
        tracker=trackers.pop() if len(trackers) == 1 else None,
    )


def _row(name: str, runs: list[RunDir]) -> Row:
    """Of several runs of one seed and configuration (rerun=true) the newest counts, whatever it says."""
    configs: dict[Path, Any] = {run.path: read_json(run.config) for run in runs}
    by_seed: dict[tuple[int, str], list[RunDir]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.config.stat().st_mtime):
        by_seed[configs[run.path]["run"]["seed"], configs[run.path]["config_hash"]].append(run)
    results: dict[int, dict[str, Any]] = {}
    folders: dict[int, Path] = {}
    lost = []
    for (seed, _), attempts in sorted(by_seed.items()):
        run = attempts[-1]
        result = run.finished()
        if result is None:
            standing = read_standing(run)
            lost.append(Lost(seed=seed, state=standing.state, reason=standing.message))
            continue
        if result.get("schema") != SCHEMA:
            raise UserError(f"{run.result}: schema {result.get('schema')}, this golf reads {SCHEMA}; train it again")
        results[seed], folders[seed] = result, run.path
    flat = [dict(_flat(_task(config["run"]))) for config in configs.values()]
    keys = {key for config in flat for key in config}
    differing = sorted(key for key in keys if len({json.dumps(config.get(key)) for config in flat}) > 1)
    hashes = {config["config_hash"] for config in configs.values()}
    return Row(
        name=name,
        results=results,
        folders=folders,
        lost=lost,
        config=flat[0],
        mixed=(differing or ["data"]) if len(hashes) > 1 else [],
        repeated=sorted(seed for (seed, _), attempts in by_seed.items() if len(attempts) > 1),
    )


def _task(node: dict[str, Any]) -> dict[str, Any]:
    """A typed run, as config.json holds it, without its seed and without what is no part of a fingerprint."""
    return without_nulls({key: item for key, item in node.items() if key not in NOT_IDENTITY | {"seed"}})


def _flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of the leaves; `_target_` is the key of its node, with the class's name."""
    if not isinstance(node, dict):
        yield path, node
        return
    for key, item in node.items():
        if key == "_target_":
            yield path, item.rsplit(".", 1)[-1]
        else:
            yield from _flat(item, f"{path}.{key}" if path else key)


def differences(row: Row, control: Row) -> list[str]:
    """`key: control's -> the row's`, where they differ; keys inside a part that only one of them has are left out."""
    lines: list[str] = []
    swapped: list[str] = []
    for key in sorted(row.config.keys() | control.config.keys()):
        ours, theirs = row.config.get(key), control.config.get(key)
        if ours == theirs or any(key.startswith(f"{part}.") for part in swapped):
            continue
        if isinstance(ours, str) and isinstance(theirs, str) and ours.endswith("Config"):
            swapped.append(key)
        lines.append(f"{key}: {_shown(theirs)} -> {_shown(ours)}")
    return lines


def _shown(value: Any) -> str:
    return "none" if value is None else str(value).removesuffix("Config") or str(value)


def curve(folder: Path, key: str) -> list[tuple[int, float, float]]:
    """(step, seconds of training, value) of each logged step that has the key; a line cut by a kill is left out."""
    points = []
    with contextlib.suppress(OSError):
        for line in RunDir(folder).metrics.read_text().splitlines():
            with contextlib.suppress(ValueError, KeyError, TypeError):
                record = json.loads(line)
                points.append((int(record["step"]), float(record["train_seconds"]), float(record[key])))
    return points
