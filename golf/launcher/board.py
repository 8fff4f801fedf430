"""Who watches a sweep run: STATUS.md in its folder, a live table on a terminal, plain lines elsewhere."""

import itertools
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Self

from rich.live import Live
from rich.table import Table

from golf.launcher.executor import Task
from golf.launcher.grid import Plan
from golf.launcher.standing import Standing, read_standing, standing_of
from golf.launcher.tables import progress_of
from golf.reports.text import as_paragraph, in_markdown
from golf.rundir import marks, write_atomic
from golf.sinks import clock
from golf.terminal import console

LOOK_SECONDS = 1.0  # between two looks at the folders of what runs
FILE_SECONDS = 10.0  # STATUS.md is written so often, and whenever a state changes,
FILE_SHARE = 0.05  # unless that would take more than this share of the launcher's time
LINE_SECONDS = 60.0  # plain lines on what runs so often
LINES = 50  # so many at most
UNDER_WAY = ("waiting", "queued", "running")


class Board:
    """A watcher of the scheduler. A STATUS.md that can't be written (disk full) is not seen; the sweep goes on.

    slots: runs at once, None where that is not known. What a change costs does not grow with the number of cells.
    """

    def __init__(self, folder: Path, plan: Plan, tasks: Sequence[Task], slots: int | None):
        self.file, self.plan, self.tasks, self.slots = folder / "STATUS.md", plan, tasks, slots
        self.console = console()
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self.looked = self.wrote = self.took = 0.0
        self.told = time.monotonic()
        self.broken = self.stale = False
        self.states: dict[int, str] = {}
        self.count: Counter[str] = Counter()
        self.running: dict[int, Task] = {}
        for task in tasks:
            self.enter(task)
        self.lines: dict[int, str] = {}  # of STATUS.md, for what does not change by itself
        self.seconds: list[float] = []  # of each cell done so far
        self.to_come = 0  # cells that are in `tasks` only later

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()
        self._write()

    def enter(self, task: Task) -> None:
        """Count a task by its state."""
        self.states[id(task)] = task.state
        self.count[task.state] += 1
        if task.state == "running":
            self.running[id(task)] = task

    # ---------------------------------------------------------------- what the scheduler tells

    def changed(self, task: Task) -> None:
        self.count[self.states[id(task)]] -= 1
        self.lines.pop(id(task), None)
        self.running.pop(id(task), None)
        self.enter(task)
        if task.state == "done":
            self.seconds.append(task.seconds)
        if task.state not in ("waiting", "queued"):
            ended = len(self.tasks) - sum(self.count[state] for state in UNDER_WAY)
            self.note(f"[{ended}/{len(self.tasks) + self.to_come}] {task.name}: {_news(task)}")
        self.stale = True
        self._write_in_time()

    def note(self, text: str) -> None:
        self.console.print(text, soft_wrap=True)

    def hopeless(self, task: Task) -> str:
        return ""  # a sweep's cells all run to their end

    def tick(self) -> None:
        now = time.monotonic()
        if now - self.looked >= LOOK_SECONDS and self.live:
            self.looked = now
            self.live.update(self._running(), refresh=True)
        if now - self.told >= LINE_SECONDS and not self.live:
            self.told = now
            for task in itertools.islice(self.running.values(), LINES):
                self.note(f"{task.name}: {_line(task, read_standing(task.folder))}")
            if len(self.running) > LINES:
                self.note(f"... {self._counted()}")
        self._write_in_time()

    # ---------------------------------------------------------------- what people see

    def _running(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("running", "step", "loss", "BPB", "left"):
            table.add_column(column, no_wrap=True)
        for task in itertools.islice(self.running.values(), LINES):
            step, loss, bpb, _, left, _ = progress_of(task.run, read_standing(task.folder))
            table.add_row(task.name, step or "starting", loss, bpb, left)
        table.caption, table.caption_justify = self._counted(), "left"
        return table

    def _counted(self) -> str:
        words = [f"{number} {state}" for state, number in self.count.items() if number]
        left = self._seconds_left()
        return ", ".join(words) + (f"; about {clock(left)} left" if left else "")

    def _seconds_left(self) -> float | None:
        """By the mean time of the cells done so far; None before the first."""
        if not self.seconds:
            return None
        running = self.count["running"]
        half = running / 2  # what runs is half-way, on average
        to_go = self.to_come + self.count["waiting"] + self.count["queued"] + half
        return to_go * sum(self.seconds) / len(self.seconds) / (self.slots or max(1, running))

    def _write_in_time(self) -> None:
        since = time.monotonic() - self.wrote
        if since * FILE_SHARE >= self.took and (self.stale or since >= FILE_SECONDS):
            self._write()

    def text(self) -> str:
        """STATUS.md as it is now."""
        return status_text(self.file.parent.name, self.plan, self._counted(), map(self._row, self.tasks))

    def _write(self) -> None:
        begun = time.monotonic()
        text = self.text()
        try:
            write_atomic(self.file, text)
            self.broken = False
        except OSError as error:
            if not self.broken:
                self.note(f"{self.file}: cannot be written ({error.strerror}); the sweep goes on")
            self.broken = True
        self.wrote, self.stale = time.monotonic(), False
        self.took = self.wrote - begun

    def _row(self, task: Task) -> str:
        """Its line of STATUS.md; only that of a run under way is made anew each time."""
        if task.state == "running":
            return _row(task)
        if id(task) not in self.lines:
            self.lines[id(task)] = _row(task)
        return self.lines[id(task)]


def _news(task: Task) -> str:
    if task.state == "running":
        resumes = task.folder.checkpoint.exists() and task.run.resume == "auto"
        return "goes on from its checkpoint" if resumes else "started"
    if task.result is not None:
        before = "done before, " if task.state == "skipped" else ""
        cap = ("" if task.result["fits"] else ", OVER THE CAP") + "".join(f", {mark}" for mark in marks(task.result))
        return f"{before}{task.result['val_bpb']:.4f} BPB, {task.result['total_bytes']:,} bytes{cap}"
    return f"{task.state}: {task.reason}"


def _line(task: Task, standing: Standing) -> str:
    step, loss, bpb, _, left, _ = progress_of(task.run, standing)
    words = [f"step {step}" if step else "", f"loss {loss}" if loss else "", f"{bpb} BPB" if bpb else ""]
    return ", ".join([word for word in [*words, f"{left} left" if left else ""] if word]) or "starting"


def status_text(name: str, plan: Plan, count: str, rows: Iterable[str]) -> str:
    """STATUS.md: the question, how far, and one line a cell."""
    lines = [f"# {name}", ""]
    lines += [as_paragraph(plan.purpose), ""] if plan.purpose else []
    lines += [f"Control: {plan.control}. " if plan.control else ""]
    lines[-1] += f"Registered seeds: {', '.join(map(str, plan.seeds))}." if plan.seeds else ""
    lines += ["", f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {count}.", ""]
    lines += ["| row | seed | state | step | loss | BPB | bytes | left | reason | folder |", "|" + "---|" * 10]
    return "\n".join([*lines, *rows]) + "\n"


def _row(task: Task) -> str:
    if task.result is not None:
        standing = standing_of(task.result)
    else:
        standing = Standing("waiting") if task.state in ("waiting", "queued") else read_standing(task.folder)
    state = "done before" if task.state == "skipped" else task.state
    *numbers, _ = progress_of(task.run, standing)
    reason = in_markdown(task.reason or (standing.message if standing.state == "silent" else ""))
    cells = [task.run.label, str(task.run.seed), state, *numbers, reason, task.folder.path.name]
    return "| " + " | ".join(cells) + " |"
