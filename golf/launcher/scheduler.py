"""Runs the cells of a sweep on the slots of a pool, each in processes of its own. One cell's end is never another's."""

import signal
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from golf.config import Launch, Run
from golf.errors import BusyError, RunError
from golf.launcher import jobs
from golf.launcher.cells import Cell
from golf.launcher.processes import Process
from golf.launcher.slots import Pool, Slot
from golf.rundir import RunDir
from golf.tokens.prepare import Prepared

POLL_SECONDS = 0.1
BUSY_SECONDS = 1.0  # until a folder that another process holds is tried again
BAD_INPUT = 2  # the worker's exit code for what no retry mends
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@dataclass(slots=True)
class Task:
    """One cell on its way. state: waiting, running, done, skipped (finished before), failed, stopped or
    pruned.

    digest: its fingerprint; devices: how many CUDA devices it needs; seconds: wall time of all its attempts here;
    result: its result.json, once it has one; not_before, busy_since: when its folder, held by another process, is tried
    again, and was first found so (monotonic seconds).
    """

    cell: Cell
    prepared: Prepared
    digest: str
    folder: RunDir
    devices: int
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


@dataclass(slots=True)
class Attempt:
    """A task's processes in their slot. stopping: why they have been told to end, and when they will be killed; pruned:
    whether the watcher had them told."""

    task: Task
    process: Process
    slot: Slot
    started: float = field(default_factory=time.monotonic)
    stopping: str = ""
    kill_at: float = float("inf")
    pruned: bool = False


class Watcher(Protocol):
    """Who is told, and may judge."""

    def changed(self, task: Task) -> None:
        """The task's state is another one."""

    def tick(self) -> None:
        """Some time has passed."""

    def note(self, text: str) -> None:
        """One line for people."""

    def hopeless(self, task: Task) -> str:
        """Why a task that runs need not reach its end; empty where it should."""


class Scheduler:
    """Starts what waits, in order, as slots come free; ends when nothing waits and nothing runs."""

    def __init__(self, tasks: list[Task], pool: Pool, launch: Launch, watcher: Watcher):
        self.pool, self.launch, self.watcher = pool, launch, watcher
        self.waiting = deque(tasks)
        self.attempts: list[Attempt] = []
        self.signals = 0  # how many times we were told to stop
        self.halted = False  # no further task is started

    def run(self) -> bool:
        """Returns whether a signal cut it short; then what never started is left waiting."""
        with self._listening():
            while self.attempts or (self.waiting and not self.halted):
                self._start_what_fits()
                self._obey_signals()
                for attempt in list(self.attempts):
                    self._look_after(attempt)
                self.watcher.tick()
                time.sleep(POLL_SECONDS if self.attempts or self.waiting else 0)
        return self.signals > 0

    # ---------------------------------------------------------------- starting

    def _start_what_fits(self) -> None:
        """In order: a task that needs many devices is not overtaken for ever by those that need few."""
        while not self.halted and (task := self._next()) is not None:
            slot = self.pool.take(task.devices)
            if slot is None:
                return
            self.waiting.remove(task)
            try:
                started = self._start(task, slot)
            except BusyError as error:
                started = False
                self._wait_for_folder(task, str(error))
            except (RunError, OSError) as error:  # disk full ...
                started = False
                self._fail(task, f"could not be started: {error}", again=False)
            if not started:
                self.pool.give(slot)

    def _next(self) -> Task | None:
        now = time.monotonic()
        return next((task for task in self.waiting if task.not_before <= now), None)

    def _wait_for_folder(self, task: Task, reason: str) -> None:
        """A launcher that was killed leaves runs that still save: a held folder is tried again for grace_seconds."""
        now = time.monotonic()
        task.busy_since = task.busy_since or now
        if now - task.busy_since > self.launch.grace_seconds:
            self._fail(task, f"could not be started: {reason}", again=False)
            return
        task.not_before = now + BUSY_SECONDS
        self.waiting.append(task)
        if task.reason != reason:
            self.watcher.note(f"{task.name}: waits, {reason}")
            self._change(task, "waiting", reason)

    def _start(self, task: Task, slot: Slot) -> bool:
        """Open the folder and start the processes there; False where the run is finished already."""
        command = ["golf/train.py", "hydra.mode=RUN", *task.cell.overrides]
        task.folder, finished = jobs.open_run(task.run, task.prepared, command)
        if finished is not None:
            task.result = finished
            self._change(task, "skipped")
            return False
        line, environment = jobs.worker_command(task.run, task.folder, slot)
        self.attempts.append(Attempt(task, Process(line, environment, task.console), slot))
        task.attempts += 1
        self._change(task, "running")
        return True

    # ---------------------------------------------------------------- what runs

    def _look_after(self, attempt: Attempt) -> None:
        code, now = attempt.process.poll(), time.monotonic()
        limit = self.launch.timeout_seconds
        if code is not None:
            self.attempts.remove(attempt)
            self.pool.give(attempt.slot)
            attempt.task.seconds += now - attempt.started
            self._conclude(attempt, code)
        elif now >= attempt.kill_at:
            attempt.process.signal(signal.SIGKILL)
        elif limit is not None and now - attempt.started > limit and not attempt.stopping:
            self._stop(attempt, f"timed out after {limit:g} s (launch.timeout_seconds)")
        elif not attempt.stopping and (why := self.watcher.hopeless(attempt.task)):
            attempt.pruned = True
            self._stop(attempt, why)

    def _stop(self, attempt: Attempt, why: str) -> None:
        """Ask it to save and end; it is killed when it has not within launch.grace_seconds."""
        attempt.stopping = why
        attempt.kill_at = time.monotonic() + self.launch.grace_seconds
        attempt.process.signal(signal.SIGTERM)

    def _conclude(self, attempt: Attempt, code: int) -> None:
        """What came of an attempt whose processes have ended, by what stands in its folder."""
        task = attempt.task
        task.result = task.folder.finished()
        if task.result is not None:
            self._change(task, "done")
            return
        if attempt.pruned:
            self._change(task, "pruned", attempt.stopping)
            return
        reason, code = reason_of(task, code)
        if self.signals and attempt.stopping:
            self._change(task, "stopped", reason)
        else:
            self._fail(task, attempt.stopping or reason, again=code != BAD_INPUT)

    def _fail(self, task: Task, reason: str, *, again: bool) -> None:
        task.log_tail = jobs.tail(task.console)
        if again and task.attempts <= self.launch.retries and not self.halted:
            self.watcher.note(f"{task.name}: {reason}; tried again ({task.attempts} of {self.launch.retries})")
            self.waiting.append(task)
            self._change(task, "waiting", reason)
            return
        self._change(task, "failed", reason)
        if self.launch.on_failure == "stop" and not self.halted:
            self.halted = True
            self.watcher.note("launch.on_failure=stop: nothing more is started; what runs goes on to its end")

    def _change(self, task: Task, state: str, reason: str = "") -> None:
        task.state, task.reason = state, reason
        self.watcher.changed(task)

    # ---------------------------------------------------------------- signals

    @contextmanager
    def _listening(self) -> Iterator[None]:
        def count(signum: int, frame: Any) -> None:
            self.signals += 1

        heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores one
        old = {number: signal.signal(number, count) for number in heard}
        try:
            yield
        finally:
            for attempt in self.attempts:  # only when something raised: no process outlives its launcher
                attempt.process.signal(signal.SIGTERM)
            for number, handler in old.items():
                signal.signal(number, handler)

    def _obey_signals(self) -> None:
        """The first: everything saves and stops. The second: everything is killed."""
        if not self.signals:
            return
        self.halted = True
        for attempt in self.attempts:
            if not attempt.stopping:
                self.watcher.note(f"{attempt.task.name}: saves and stops; signal once more to kill it")
                self._stop(attempt, "stopped with the sweep")
            if self.signals > 1:
                attempt.kill_at = 0.0


def _meaning(code: int) -> str:
    if code < 0:
        name = signal.Signals(-code).name
        return f"killed by {name}" + (" (by the kernel, when memory runs out)" if name == "SIGKILL" else "")
    return f"ended with exit code {code} and without a word; the end of its log may tell"


def reason_of(task: Task, code: int) -> tuple[str, int]:
    """(one line on why an attempt left no result, its rank's own exit code): by the worker's word, else by the code.

    Where the worker had no time for a word, its status.json gets this one.
    """
    status = task.folder.get_status()
    if status.get("state") in ("failed", "stopped"):
        return str(status.get("message", status["state"])), int(status.get("code", code))
    died = jobs.rank_that_died(task.console) if code > 0 and task.run.launch.nproc > 1 else None
    if died:
        rank, code = died
        reason = f"rank {rank} {_meaning(code)}"
    elif code == 0:
        reason = "ended without an error and without a readable result.json"
    else:
        reason = _meaning(code)
    try:
        task.folder.set_status("failed", step=status.get("step"), code=code, message=reason)
    except OSError as error:
        reason += f" (status.json cannot be written: {error.strerror})"
    return reason, code
