"""What a sweep prints when it is not running: its cells before, where each stands, what came of them."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from golf.config import Run, fingerprint
from golf.launcher import jobs
from golf.launcher.cells import Cell
from golf.launcher.executor import Task
from golf.launcher.grid import key_of, says_what
from golf.launcher.standing import Standing, read_standing
from golf.plan import outline
from golf.rundir import attempts_in, marks
from golf.sinks import clock
from golf.terminal import ALARM, Column, Content, console, in_style, show_table, words
from golf.tokens.prepare import Prepared

COLOURS = {"done": "green", "skipped": "green", "failed": "bold red", "refused": "bold red"}
COLOURS |= dict.fromkeys(("stopped", "interrupted", "silent", "pruned"), "yellow")


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
    rows: list[list[Content]] = []
    expected, stand = sizes([cell.run for cell in cells]), standings(cells, found)
    for cell, line, (parameters, predicted), (standing, digest) in zip(cells, lines, expected, stand, strict=True):
        run, share = cell.run, predicted / cell.run.cap_bytes
        rows.append(
            [
                run.label,
                str(run.seed),
                " ".join(override for override in line if override not in common),
                f"{parameters:,}",
                f"{predicted:,}",
                in_style(f"{share:.0%}", ALARM if share > 1 else ""),
                digest,
                _to_do(standing),
            ]
        )
    columns = [words("row"), Column("seed"), words("overrides", 1), Column("parameters", spare=2)]
    columns += [Column("predicted bytes"), Column("of cap", spare=3), Column("hash", spare=4), words("state")]
    show_table(columns, rows, title, under=" ".join(["all:", *common]) if common else "")


def _to_do(standing: Standing) -> str:
    words = {"waiting": "to do", "queued": "queued", "running": "running", "done": "done"}
    return words.get(standing.state) or f"to do (on from step {standing.step or 0})"


def show_standings(cells: Sequence[Cell], found: Sequence[Prepared | None], title: str) -> None:
    """Where a sweep stands, from its folders alone."""
    rows: list[list[Content]] = []
    count: Counter[str] = Counter()
    for cell, (standing, _) in zip(cells, standings(cells, found), strict=True):
        count[standing.state] += 1
        rows.append([cell.run.label, str(cell.run.seed), coloured(standing.state), *progress_of(cell.run, standing)])
    numbers = [Column("step", spare=1), Column("loss", spare=3), Column("BPB"), Column("bytes", spare=4)]
    show_table(
        [words("row"), Column("seed"), words("state"), *numbers, Column("left", spare=2), words("reason")], rows, title
    )
    print(", ".join(f"{number} {state}" for state, number in count.items()))


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
    rows: list[list[Content]] = []
    for task in tasks:
        numbers: list[Content] = [""] * 4
        if (result := task.result) is not None:
            share = result["total_bytes"] / result["cap_bytes"]
            numbers = [
                in_style(f"{result['val_bpb']:.4f}", "")
                + in_style("".join(f" {mark}" for mark in marks(result)), ALARM),
                f"{result['quant_gap_bpb']:+.4f}",
                f"{result['total_bytes']:,}",
                in_style(f"{share:.0%}", "" if result["fits"] else ALARM),
            ]
        time = clock(task.seconds) if task.attempts else ""
        state = "done before" if task.state == "skipped" else task.state
        said = task.reason or (task.folder.path.name if task.attempts or task.result else "")
        rows.append([task.run.label, str(task.run.seed), coloured(state), *numbers, time, said])
    columns = [words("row"), Column("seed"), words("state"), Column("BPB"), Column("quant gap", spare=1)]
    columns += [Column("bytes", spare=2), Column("of cap", spare=3), Column("time", spare=4), words("reason or folder")]
    show_table(columns, rows, str(folder))
    show_failures(tasks)


def show_failures(tasks: Sequence[Task]) -> None:
    """Why each failed, with the end of its log."""
    out = console()
    for task in tasks:
        if task.state == "failed":
            out.print(f"\n{task.name} failed: {task.reason}", style=ALARM, soft_wrap=True)
            if task.log_tail:
                out.print(f"the end of {task.console}:\n{task.log_tail}", soft_wrap=True)


def coloured(state: str) -> Content:
    """Return a state in its colour."""
    return in_style(state, COLOURS.get(state.split()[0], ""))
