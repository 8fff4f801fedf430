"""What starts and watches the attempts of a sweep's cells: the slot that conf/launch fills. The scheduler knows no more
of where runs are than what stands here."""

import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from golf.config import Run
from golf.launcher.cells import Cell
from golf.rundir import RunDir
from golf.tokens.prepare import Prepared

BAD_INPUT = 2  # the worker's exit code for what no retry mends


@dataclass(slots=True, eq=False)
class Task:
    """One cell on its way. state: waiting, queued (with a cluster's scheduler), running, done, skipped (finished
    before), failed, stopped or pruned (stopped by its watcher's judgement).

    digest: its fingerprint; seconds: wall time of all its attempts here; result: its result.json, once it has one;
    not_before, busy_since: when its folder, held by another process, is tried again, and was first found so (monotonic
    seconds).
    """

    cell: Cell
    prepared: Prepared
    digest: str
    folder: RunDir
    state: str = "waiting"
    reason: str = ""
    log_tail: str = ""
    attempts: int = 0
    seconds: float = 0.0
    result: dict[str, Any] | None = None
    not_before: float = 0.0
    busy_since: float | None = None

    @property
    def run(self) -> Run:
        return self.cell.run

    @property
    def name(self) -> str:
        return self.cell.name

    @property
    def console(self) -> Path:
        """What its processes print."""
        return self.folder.path / "log" / "console.txt"


@dataclass(frozen=True, slots=True)
class Ended:
    """The end of an attempt: its exit code (minus a signal's number), and the words of whoever ran it, if any."""

    code: int
    words: str = ""


class Attempt:
    """A task's processes. state: queued, running or ended; started: when they began (monotonic), None while queued;
    stopping: why they have been told to end, kill_at: when they will be killed; withdrawn: for no fault of theirs;
    pruned: because the watcher found them hopeless."""

    def __init__(self, task: Task, state: str, started: float | None):
        self.task, self.state, self.started = task, state, started
        self.stopping, self.kill_at = "", float("inf")
        self.withdrawn = self.pruned = False

    def poll(self) -> Ended | None:
        """None while it is queued or runs."""
        raise NotImplementedError

    def stop(self) -> None:
        """Have the run save and end."""
        raise NotImplementedError

    def kill(self) -> None:
        """End it now; called again until it has."""
        raise NotImplementedError


class Executor:
    """Where attempts run. slots: how many at once, None where that is not known; pause_seconds: between two looks at
    them; leaves_on: signals at which the launcher goes and what it started stays."""

    slots: int | None
    pause_seconds: float
    leaves_on: frozenset[signal.Signals] = frozenset()

    def under_way(self, tasks: Sequence[Task]) -> list[Attempt]:
        """Attempts at these tasks that another launcher began, and that go on without it."""
        return []

    def has_room(self, run: Run) -> bool:
        """Whether start() would find a place for it now."""
        raise NotImplementedError

    def start(self, task: Task) -> Attempt:
        """Start it in its folder, which stands open. OSError where that can't be."""
        raise NotImplementedError

    def turn(self) -> list[str]:
        """Do what is done for many attempts at once; the scheduler calls it before it polls them. Lines for people."""
        return []

    def release(self, attempt: Attempt) -> None:
        """Its place is free: it has ended."""

    def abandon(self, attempts: Sequence[Attempt]) -> None:
        """The launcher goes while these are under way, because something raised."""
