"""A sweep from typed cells to what came of each: skip what is done, run the rest on slots. Knows nothing of Hydra."""

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from golf import plan as plans
from golf import rundir
from golf.code_record import same_code
from golf.config import fingerprint
from golf.errors import RunError
from golf.launcher import jobs, tables
from golf.launcher.board import Board
from golf.launcher.cells import Cell, find, prepare
from golf.launcher.executor import Task
from golf.launcher.grid import Plan
from golf.launcher.scheduler import Scheduler
from golf.records import Sweep as SweepFile
from golf.records import read_record
from golf.rundir import RunDir, attempts_in, write_json
from golf.tokens.prepare import Prepared

SCHEMA = 1


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a cell: its score (bits per byte), or why there is none; neither where nothing was to be run."""

    val_bpb: float | None = None
    error: RunError | None = None


def launch(cells: Sequence[Cell], plan: Plan) -> list[Outcome]:
    """Run what is missing, or only show the cells (launch.dry_run, launch.status, plan).

    Raises UserError for bad input before anything starts, RunError where another launcher is at work on this sweep,
    and StoppedError after SIGINT, SIGTERM or SIGHUP, with every run saved or, on a cluster, going on by itself.
    """
    run = cells[0].run
    folder = sweep_folder(cells)
    title = f"{folder.name}: {plan.purpose}" if plan.purpose else folder.name
    if run.launch.status or run.launch.dry_run or run.plan:
        found = find(cells)
        if run.launch.status:
            tables.show_standings(cells, found, title)
        elif run.launch.dry_run:
            run.launch.executor([cell.run for cell in cells])  # it checks launch.slots
            tables.show_cells(cells, found, title)
        else:
            show_plans(cells, found)
        return [Outcome() for _ in cells]
    executor = run.launch.executor([cell.run for cell in cells])
    ready = ready_data(cells)
    folder.mkdir(parents=True, exist_ok=True)
    with held(folder):
        there = attempts_in(folder)
        tasks = [task_of(cell, prepared, there) for cell, prepared in zip(cells, ready, strict=True)]
        register(folder, plan, tasks)
        for task in tasks:
            task.result = task.folder.finished()
            task.state = "waiting" if task.result is None else "skipped"
        to_do = [task for task in tasks if task.state == "waiting"]
        with Board(folder, plan, tasks, executor.slots) as board:
            scheduler = Scheduler(to_do, executor, run.launch, board)
            scheduler.run()
        tables.show_end(tasks, folder)
    print(_last_line(tasks))
    if other := _other_code(tasks):
        print(f"note: {other} of them made by other code (git commit or diff) than what stands here")
    scheduler.raise_if_stopped("sweep", "the same command without rerun=true" if run.rerun else "the same command")
    return [_outcome(task) for task in tasks]


def sweep_folder(cells: Sequence[Cell]) -> Path:
    return jobs.group_of(cells[0].run)


def ready_data(cells: Sequence[Cell]) -> list[Prepared]:
    """The data of every cell, prepared. Raises UserError where it or the outputs cannot be written."""
    rundir.require_writable(Path(cells[0].run.outputs).resolve(), "outputs")
    return prepare(cells)


def show_plans(cells: Sequence[Cell], found: Sequence[Prepared | None]) -> None:
    rows = {fingerprint(cell.run, "", with_seed=False): (cell, data) for cell, data in zip(cells, found, strict=True)}
    for cell, prepared in rows.values():
        print(f"\n{cell.run.label}")
        plans.show(cell.run, prepared)


def task_of(cell: Cell, prepared: Prepared, there: Mapping[str, list[int]]) -> Task:
    """A cell that waits. there: the sweep's folders, by golf.rundir.attempts_in."""
    digest = fingerprint(cell.run, prepared.digest)
    return Task(cell, prepared, digest, jobs.folder_of(cell.run, digest, there))


def register(folder: Path, plan: Plan, tasks: Sequence[Task]) -> None:
    """sweep.json: the question, control, registered seeds, and every cell that this folder was ever asked for.

    Seeds stay as they were first written once any run here has a result: seeds added later are not registered ones, nor
    are those of a sweep.json that nobody can read any more.
    """
    path = folder / "sweep.json"
    before = read_record(path, SweepFile) or {}
    seeds = list(plan.seeds)
    since: str | None = time.strftime("%Y-%m-%d %H:%M:%S")
    cells = before.get("cells", {})
    if any(RunDir(run).finished() for run in folder.iterdir()):  # whether or not a sweep.json says so
        seeds, since = before.get("seeds", []), before.get("registered")
    for task in tasks:
        cells[task.folder.path.name] = {
            "row": task.run.label,
            "seed": task.run.seed,
            "overrides": task.cell.overrides,
            "fingerprint": task.digest,
            "config_hash": fingerprint(task.run, task.prepared.digest, with_seed=False),
        }
    said = {"purpose": plan.purpose, "control": plan.control, "seeds": seeds, "registered": since}
    rows = {name: list(line) for name, line in plan.rows.items()}
    write_json(path, {"schema": SCHEMA, "label": folder.name, **said, "rows": rows, "cells": cells})


def held(folder: Path) -> AbstractContextManager[None]:
    """One launcher a sweep."""
    return rundir.hold(folder, lambda: "another launcher is at work here; launch.status=true shows it")


def _last_line(tasks: Sequence[Task]) -> str:
    skipped = sum(task.state == "skipped" for task in tasks)
    if skipped == len(tasks):
        return f"all {skipped} runs were done before; nothing was started (rerun=true trains them again)"
    done, failed = (sum(task.state == state for task in tasks) for state in ("done", "failed"))
    counts = {
        "done": done,
        "done before (skipped)": skipped,
        "failed": failed,
        "not finished": len(tasks) - done - skipped - failed,
    }
    return ", ".join(f"{count} {word}" for word, count in counts.items() if count)


def _other_code(tasks: Sequence[Task]) -> int:
    """How many runs that were done before were made by other code than what stands here."""
    before = [task.result["environment"] for task in tasks if task.state == "skipped" and task.result]
    now = rundir.environment() if before else {}
    return sum(not same_code(then, now) for then in before)


def _outcome(task: Task) -> Outcome:
    if task.result is not None:
        return Outcome(val_bpb=task.result["val_bpb"])
    return Outcome(error=RunError(f"{task.name}: {task.reason or 'not started'}"))
