"""Who watches a sweep run: STATUS.md in its folder, a live table on a terminal, plain lines elsewhere."""

import contextlib
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from rich.console import Console
from rich.live import Live
from rich.table import Table

from golf.launcher.grid import Plan
from golf.launcher.scheduler import Task
from golf.launcher.standing import Standing, read_standing, standing_of
from golf.launcher.tables import progress_of
from golf.rundir import illegal, write_atomic
from golf.sinks import clock

LOOK_SECONDS = 1.0  # between two looks at the folders of what runs
FILE_SECONDS = 10.0  # STATUS.md is written so often, and whenever a state changes
LINE_SECONDS = 60.0  # a plain line on each run so often


class Board:
    """A watcher of the scheduler. What cannot be written (disk full, terminal gone) is not seen; the sweep goes on."""

    def __init__(self, folder: Path, plan: Plan, tasks: Sequence[Task], slots: int):
        self.file, self.plan, self.tasks, self.slots = folder / "STATUS.md", plan, tasks, slots
        self.console = Console(highlight=False, soft_wrap=True)
        self.live = Live(console=self.console, auto_refresh=False, transient=True) if self.console.is_terminal else None
        self.looked = self.wrote = 0.0
        self.told = time.monotonic()
        self.broken = False
        self.to_come = 0  # cells that are in `tasks` only later

    def __enter__(self) -> Self:
        if self.live:
            self.live.start()
        return self

    def __exit__(self, *error: object) -> None:
        if self.live:
            self.live.stop()
        self._write()

    # ---------------------------------------------------------------- what the scheduler tells

    def changed(self, task: Task) -> None:
        if task.state != "waiting":
            ended = sum(other.state not in ("waiting", "running") for other in self.tasks)
            self.note(f"[{ended}/{len(self.tasks) + self.to_come}] {task.name}: {_news(task)}")
        self._write()

    def note(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self.console.print(text, markup=False)

    def hopeless(self, task: Task) -> str:
        return ""  # a sweep's cells all run to their end

    def tick(self) -> None:
        now = time.monotonic()
        if now - self.looked >= LOOK_SECONDS and self.live:
            self.looked = now
            with contextlib.suppress(OSError):
                self.live.update(self._running(), refresh=True)
        if now - self.told >= LINE_SECONDS and not self.live:
            self.told = now
            for task in self.tasks:
                if task.state == "running":
                    self.note(f"{task.name}: {_line(task, read_standing(task.folder))}")
        if now - self.wrote >= FILE_SECONDS:
            self._write()

    # ---------------------------------------------------------------- what people see

    def _running(self) -> Table:
        table = Table(box=None, padding=(0, 2, 0, 0))
        for column in ("running", "step", "loss", "BPB", "left"):
            table.add_column(column, no_wrap=True)
        for task in self.tasks:
            if task.state == "running":
                step, loss, bpb, _, left, _ = progress_of(task.run, read_standing(task.folder))
                table.add_row(task.name, step or "starting", loss, bpb, left)
        table.caption, table.caption_justify = self._count(), "left"
        return table

    def _count(self) -> str:
        count = Counter(task.state for task in self.tasks)
        words = [f"{number} {state}" for state, number in count.items()]
        left = self._seconds_left()
        return ", ".join(words) + (f"; about {clock(left)} left" if left else "")

    def _seconds_left(self) -> float | None:
        """By the mean time of the cells done so far; None before the first."""
        took = [task.seconds for task in self.tasks if task.state == "done"]
        if not took:
            return None
        waiting, running = (sum(task.state == state for task in self.tasks) for state in ("waiting", "running"))
        to_go = self.to_come + waiting + running / 2  # what runs is half-way, on average
        return to_go * sum(took) / len(took) / self.slots

    def text(self) -> str:
        """STATUS.md as it is now."""
        return status_text(self.file.parent.name, self.plan, self.tasks, self._count())

    def _write(self) -> None:
        self.wrote = time.monotonic()
        try:
            write_atomic(self.file, self.text())
            self.broken = False
        except OSError as error:
            if not self.broken:
                self.note(f"{self.file}: cannot be written ({error.strerror}); the sweep goes on")
            self.broken = True


def _news(task: Task) -> str:
    if task.state == "running":
        resumes = task.folder.checkpoint.exists() and task.run.resume == "auto"
        return "goes on from its checkpoint" if resumes else "started"
    if task.result is not None:
        before = "done before, " if task.state == "skipped" else ""
        cap = ("" if task.result["fits"] else ", OVER THE CAP") + (", ILLEGAL" if illegal(task.result) else "")
        return f"{before}{task.result['val_bpb']:.4f} BPB, {task.result['total_bytes']:,} bytes{cap}"
    return f"{task.state}: {task.reason}"


def _line(task: Task, standing: Standing) -> str:
    step, loss, bpb, _, left, _ = progress_of(task.run, standing)
    words = [f"step {step}" if step else "", f"loss {loss}" if loss else "", f"{bpb} BPB" if bpb else ""]
    return ", ".join([word for word in [*words, f"{left} left" if left else ""] if word]) or "starting"


def status_text(name: str, plan: Plan, tasks: Sequence[Task], count: str) -> str:
    """STATUS.md: the question, how far, and one line a cell."""
    lines = [f"# {name}", ""]
    lines += [plan.purpose, ""] if plan.purpose else []
    lines += [f"Control: {plan.control}. " if plan.control else ""]
    lines[-1] += f"Registered seeds: {', '.join(map(str, plan.seeds))}." if plan.seeds else ""
    lines += ["", f"{time.strftime('%Y-%m-%d %H:%M:%S')}: {count}.", ""]
    lines += ["| row | seed | state | step | loss | BPB | bytes | left | reason | folder |", "|" + "---|" * 10]
    for task in tasks:
        if task.result is not None:  # read once, not at every writing of this file
            standing = standing_of(task.result)
        else:
            standing = read_standing(task.folder) if task.state != "waiting" else Standing("waiting")
        state = "done before" if task.state == "skipped" else task.state
        *numbers, _ = progress_of(task.run, standing)
        reason = task.reason.replace("|", "/").replace("\n", " ")
        cells = [task.run.label, str(task.run.seed), state, *numbers, reason, task.folder.path.name]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"
