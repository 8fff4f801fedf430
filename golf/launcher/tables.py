"""What a sweep prints when it is not running: its cells before, where each stands, what came of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from golf.config import Run, fingerprint
from golf.launcher import jobs
from golf.launcher.cells import Cell
from golf.launcher.executor import Task
from golf.launcher.grid import key_of, says_what
from golf.launcher.standing import Standing, read_standing
from golf.plan import outline
from golf.rundir import attempts_in, marks
from golf.sinks import clock
from golf.tokens.prepare import Prepared

COLOURS = {"done": "green", "skipped": "green", "failed": "bold red", "refused": "bold red"}
COLOURS |= dict.fromkeys(("stopped", "interrupted", "pruned"), "yellow")


def console() -> Console:
    """Wide enough for a table where nobody looks at a terminal: a file or a pipe."""
    made = Console(highlight=False)
    return made if made.is_terminal else Console(highlight=False, width=160)


def sizes(runs: Sequence[Run]) -> Iterator[tuple[int, int]]:
    """(parameters, predicted bytes) in the order of the runs; each model is built (on the meta device) once, not once a
    seed, and let go."""
    known: dict[str, tuple[int, int]] = {}
    for run in runs:
        key = fingerprint(run, "", with_seed=False)
        if key not in known:
            found = outline(run)
            known[key] = found.parameters, found.artifact_bytes
        yield known[key]


def standings(cells: Sequence[Cell], found: Sequence[Prepared | None]) -> list[tuple[Standing, str]]:
    """(where it stands, its hash) of each cell; where its data is not prepared yet it waits and has no hash."""
    table, state_of = [], cells[0].run.launch.standing()
    there = attempts_in(jobs.group_of(cells[0].run))
    for cell, prepared in zip(cells, found, strict=True):
        if prepared is None:
            table.append((Standing("waiting"), "no data yet"))
            continue
        digest = fingerprint(cell.run, prepared.digest)
        table.append((read_standing(jobs.folder_of(cell.run, digest, there), state_of), digest[:8]))
    return table


def show_cells(cells: Sequence[Cell], found: Sequence[Prepared | None], title: str) -> None:
    """The dry run: what each cell would be, and whether it is to be done."""
    lines = [[o for o in cell.overrides if says_what(key_of(o)) and key_of(o) != "label"] for cell in cells]
    common = [override for override in lines[0] if all(override in line for line in lines)]
    table = Table(title=title, title_justify="left", caption=" ".join(["all:", *common]) if common else None)
    table.caption_justify = "left"
    for column in ("row", "seed", "overrides"):
        table.add_column(column, overflow="fold")
    for column in ("parameters", "predicted bytes", "of cap"):
        table.add_column(column, justify="right", no_wrap=True)
    for column in ("hash", "state"):
        table.add_column(column, no_wrap=True)
    expected, stand = sizes([cell.run for cell in cells]), standings(cells, found)
    for cell, line, (parameters, predicted), (standing, digest) in zip(cells, lines, expected, stand, strict=True):
        run, share = cell.run, predicted / cell.run.cap_bytes
        table.add_row(
            run.label,
            str(run.seed),
            " ".join(override for override in line if override not in common),
            f"{parameters:,}",
            f"{predicted:,}",
            f"[bold red]{share:.0%}[/]" if share > 1 else f"{share:.0%}",
            digest,
            _to_do(standing),
        )
    console().print(table)


def _to_do(standing: Standing) -> str:
    words = {"waiting": "to do", "queued": "queued", "running": "running", "done": "done"}
    return words.get(standing.state) or f"to do (on from step {standing.step or 0})"


def show_standings(cells: Sequence[Cell], found: Sequence[Prepared | None], title: str) -> None:
    """Where a sweep stands, from its folders alone."""
    table = Table(title=title, title_justify="left")
    for column in ("row", "seed", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("step", "loss", "BPB", "bytes", "left"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("reason", overflow="fold")
    count: Counter[str] = Counter()
    for cell, (standing, _) in zip(cells, standings(cells, found), strict=True):
        count[standing.state] += 1
        table.add_row(cell.run.label, str(cell.run.seed), coloured(standing.state), *progress_of(cell.run, standing))
    console().print(table)
    console().print(", ".join(f"{number} {state}" for state, number in count.items()))


def progress_of(run: Run, standing: Standing) -> tuple[str, str, str, str, str, str]:
    """step k of n, loss, BPB, artifact bytes, time left, reason: as texts, empty where unknown.

    A score of an earlier step than the last one names its step.
    """
    step = "" if standing.step is None else f"{standing.step:,}"
    if step and run.budget.max_steps is not None:
        step += f" of {run.budget.max_steps:,}"
    bpb = "" if standing.bpb is None else f"{standing.bpb:.4f}" + "".join(f" {mark}" for mark in standing.marks)
    if bpb and standing.bpb_step != standing.step:
        bpb += f" at step {standing.bpb_step:,}"
    return (
        step,
        "" if standing.loss is None else f"{standing.loss:.4f}",
        bpb,
        "" if standing.artifact_bytes is None else f"{standing.artifact_bytes:,}",
        clock(standing.seconds_left) if standing.state == "running" and standing.seconds_left is not None else "",
        standing.message,
    )


def show_end(tasks: Sequence[Task], folder: Path) -> None:
    """Every cell with what came of it, then each failure with the end of its log."""
    table = Table(title=str(folder), title_justify="left")
    for column in ("row", "seed", "state"):
        table.add_column(column, no_wrap=True)
    for column in ("BPB", "quant gap", "bytes", "of cap", "time"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("reason or folder", overflow="fold")
    for task in tasks:
        numbers = [""] * 4
        if (result := task.result) is not None:
            share = result["total_bytes"] / result["cap_bytes"]
            numbers = [
                f"{result['val_bpb']:.4f}" + "".join(f" [bold red]{mark}[/]" for mark in marks(result)),
                f"{result['quant_gap_bpb']:+.4f}",
                f"{result['total_bytes']:,}",
                f"{share:.0%}" if result["fits"] else f"[bold red]{share:.0%}[/]",
            ]
        time = clock(task.seconds) if task.attempts else ""
        state = "done before" if task.state == "skipped" else task.state
        words = task.reason or (task.folder.path.name if task.attempts or task.result else "")
        table.add_row(task.run.label, str(task.run.seed), coloured(state), *numbers, time, words)
    console().print(table)
    show_failures(tasks)


def show_failures(tasks: Sequence[Task]) -> None:
    """Why each failed, with the end of its log."""
    out = console()
    for task in tasks:
        if task.state == "failed":
            out.print(f"\n{task.name} failed: {task.reason}", style="bold red", markup=False)
            if task.log_tail:
                out.print(f"the end of {task.console}:\n{task.log_tail}", markup=False)


def coloured(state: str) -> str:
    """As the tables show it, in rich's markup."""
    colour = COLOURS.get(state.split()[0])
    return f"[{colour}]{state}[/]" if colour else state
