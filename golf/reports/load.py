"""Sweeps as their folders hold them: rows, and every run that was ever started in them."""

import contextlib
import hashlib
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from golf.errors import UserError
from golf.files import MOST_TEXT, parse_json, read_bytes, read_text
from golf.launcher.standing import Standing, logged, read_standing, standing_of
from golf.records import Chunk, Configuration, fits, missing, read_record
from golf.records import Sweep as SweepFile
from golf.result import SCHEMA
from golf.rundir import RunDir
from golf.suggestions import hint, names_in

NEEDED = ("evals", "eval_main", "data", "track", "code_bytes", "deterministic")  # of a result, beside what all need


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """One run folder. state: done, superseded (done, but trained again later), failed, stopped, interrupted, running or
    waiting (opened only). result: its result.json; config: what its fingerprint names, dotted key -> value, no seed."""

    folder: Path
    seed: int
    state: str
    reason: str
    result: dict[str, Any] | None
    config: dict[str, Any]
    config_hash: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """The runs of one label, by seed. mixed: the keys in which their configurations differ, empty where in none."""

    name: str
    runs: list[Started]
    mixed: list[str]

    @property
    def counted(self) -> list[Started]:
        """What scores are taken from: one finished run a seed, the newest."""
        return [run for run in self.runs if run.state == "done"]

    @property
    def results(self) -> list[dict[str, Any]]:
        return [run.result for run in self.counted if run.result is not None]

    @property
    def config(self) -> dict[str, Any]:
        return self.runs[0].config

    def values(self, key: str) -> list[float]:
        """One number a counted run, in the order of the seeds; null ones left out."""
        return [result[key] for result in self.results if result[key] is not None]


@dataclass(frozen=True, kw_only=True, slots=True)
class Sweep:
    """A folder of runs. purpose, control, seeds (registered), asked (all its rows): what sweep.json says, if any.

    tracker: W&B's (project, entity) where every run was tracked there, and in one place; unreadable: folders, and
    the sweep.json, that no report can read.
    """

    folder: Path
    purpose: str | None
    control: str | None
    seeds: list[int]
    asked: list[str]
    rows: dict[str, Row]
    tracker: tuple[str, str | None] | None
    unreadable: list[str]

    @property
    def label(self) -> str:
        return self.folder.name


def load(folder: Path, control: str | None = None) -> Sweep:
    """Read a sweep's folder, or any folder of run folders. control: the row to compare with, else the sweep file's.

    A result of another schema is none. Raises UserError where there is no run, and where the control is named on
    purpose and is no row.
    """
    if not folder.is_dir():
        near = hint(folder.name, names_in(folder.parent))
        raise UserError(f"{folder}: no such folder; give the folder of a sweep, such as outputs/smoke{near}")
    said = read_record(folder / "sweep.json", SweepFile) or {}
    by_label: dict[str, list[Started]] = defaultdict(list)
    trackers, unreadable = set(), [] if said or not (folder / "sweep.json").exists() else ["sweep.json"]
    for path in sorted(path for path in folder.iterdir() if (path / "config.json").exists()):
        node = read_record(path / "config.json", Configuration)
        if node is None:
            unreadable.append(path.name)
            continue
        by_label[node["run"]["label"]].append(_started(RunDir(path), node))
        trackers.add(_tracker(node["run"].get("log", {})))
    if not by_label:
        raise UserError(f"{folder}: holds no run folders; give the folder of a sweep, such as outputs/smoke")
    if not said:  # lone runs: what was called alike need not be alike
        by_label = one_configuration_each(by_label)
    asked = list(said.get("rows") or {})
    order = [*(name for name in asked if name in by_label), *(name for name in by_label if name not in asked)]
    if control is not None and control not in by_label:
        near = hint(control, order)
        raise UserError(f"--control {control}: no such row in {folder}; it has {', '.join(order)}{near}")
    return Sweep(
        folder=folder,
        purpose=said.get("purpose"),
        control=control or said.get("control"),
        seeds=list(said.get("seeds") or []),
        asked=asked,
        rows={name: row_of(name, by_label[name]) for name in order},
        tracker=trackers.pop() if len(trackers) == 1 else None,
        unreadable=unreadable,
    )


def _tracker(log: dict[str, Any]) -> tuple[str, str | None] | None:
    project, entity = log.get("project"), log.get("entity")
    return (project, entity) if isinstance(project, str) and isinstance(entity, str | None) else None


def one_configuration_each(by_label: dict[str, list[Started]]) -> dict[str, list[Started]]:
    """Return rows of one configuration each: a label that several have gets the beginning of each one's hash."""
    rows: dict[str, list[Started]] = defaultdict(list)
    for label, runs in by_label.items():
        several = len({run.config_hash for run in runs}) > 1
        for run in runs:
            rows[f"{label}-{run.config_hash[:8]}" if several else label].append(run)
    return rows


def _started(folder: RunDir, node: dict[str, Any]) -> Started:
    result = folder.finished()
    standing = read_standing(folder) if result is None else standing_of(result)
    if result is not None and (lacks := _lacks(result)):
        result, standing = None, Standing("failed", message=f"its result.json has not {lacks}")
    config = {key: item for key, item in node["identity"].items() if key != "seed"}
    return Started(
        folder=folder.path,
        seed=node["run"]["seed"],
        state=standing.state,
        reason=standing.message,
        result=result,
        config=dict(_flat(config)),
        config_hash=node["config_hash"],
    )


def _lacks(result: dict[str, Any]) -> str:
    """Name what a report needs and a result does not say; empty where it says all."""
    if result.get("schema") != SCHEMA:
        return f"schema {SCHEMA}, which this golf reads, but {str(result.get('schema'))[:20]}; train it again"
    return ", ".join(missing(result, NEEDED, ("tokens", "bytes")))


def row_of(name: str, runs: list[Started]) -> Row:
    """Of finished runs of one seed and configuration (rerun=true) the newest counts, whatever it says."""
    runs = sorted(runs, key=lambda run: (run.seed, run.config_hash, _attempt(run)))
    newest = {(run.seed, run.config_hash): run.folder for run in runs if run.state == "done"}
    told = [
        replace(run, state="superseded")
        if run.state == "done" and newest[run.seed, run.config_hash] != run.folder
        else run
        for run in runs
    ]
    keys = sorted({key for run in runs for key in run.config})
    differing = [key for key in keys if len({json.dumps(run.config.get(key)) for run in runs}) > 1]
    return Row(name=name, runs=told, mixed=differing)


def _attempt(run: Started) -> tuple[int, float]:
    """-r2, -r3 ... as golf.rundir names them; then by age."""
    again = re.search(r"-r(\d+)$", run.folder.name)
    return int(again[1]) if again else 1, RunDir(run.folder).config.stat().st_mtime


def _flat(node: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of the leaves; `_target_` is the key of its node, with the class's name."""
    if not isinstance(node, dict):
        yield path, node
        return
    for key, item in node.items():
        if key == "_target_":
            yield path, str(item).rsplit(".", 1)[-1]
        else:
            yield from _flat(item, f"{path}.{key}" if path else key)


def differences(row: Row, control: Row) -> list[str]:
    """`key: control's -> the row's` where they differ; in a swapped part, what only one side has is left out."""
    lines: list[str] = []
    swapped: list[str] = []
    for key in sorted(row.config.keys() | control.config.keys()):
        ours, theirs = row.config.get(key), control.config.get(key)
        one_sided = ours is None or theirs is None
        if ours == theirs or (one_sided and any(key.startswith(f"{part}.") for part in swapped)):
            continue
        if any(isinstance(value, str) and value.endswith("Config") for value in (ours, theirs)):
            swapped.append(key)
        lines.append(f"{key}: {_shown(theirs)} -> {_shown(ours)}")
    return lines or ["nothing: the control's own configuration"]


def _shown(value: Any) -> str:
    text = "none" if value is None else str(value)
    text = text[:12] if re.fullmatch(r"[0-9a-f]{64}", text) else text
    return text.removesuffix("Config") or text


def environment_of(run: Started) -> dict[str, str]:
    """What makes two results hard to compare: the code, what it ran on, and how."""
    assert run.result is not None
    packages = ("python", "torch", "cuda", "zstandard", "flash-attn")
    versions = {key: run.result["environment"].get(key) for key in packages}
    patch = run.folder / "diff.patch"
    changes = read_bytes(patch, MOST_TEXT) if patch.is_file() else b""
    facts = {
        "commit": run.result["environment"].get("git_commit"),
        "uncommitted changes": hashlib.sha256(changes).hexdigest() if changes.strip() else None,
        "cpu": run.result["environment"].get("cpu"),
        "attention": (run.result.get("attention") or {}).get("backend"),
        **versions,
        **{key: run.result.get(key) for key in ("device", "world_size", "precision")},
    }
    return {key: str(value) for key, value in facts.items()}


def traces(folder: Path) -> dict[str, list[dict[str, Any]]]:
    """evaluator -> a line for each round of its pass: tokens graded, BPB up to there, the loss that it learnt with."""
    found = {}
    for path in sorted((folder / "trace").glob("*.jsonl")):
        with contextlib.suppress(OSError, ValueError):
            lines = [parse_json(line) for line in read_text(path).splitlines()]
            if all(fits(line, Chunk) for line in lines):
                found[path.stem] = lines
    return found


def curve(folder: Path, key: str) -> list[tuple[int, float, float]]:
    """(step, seconds of training, value) of each logged step with a finite value; a line cut by a kill is left out."""
    return [point for point in logged(RunDir(folder), key) if all(map(math.isfinite, point))]
