"""Brings the cells of a sweep to their ends, on whatever executes them. One cell's end is never another's."""

import functools
import signal
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol

from golf.config import Launch
from golf.errors import BusyError, RunError, StoppedError
from golf.launcher import jobs
from golf.launcher.executor import BAD_INPUT, Attempt, Ended, Executor, Task
from golf.rundir import made_now

SIGNAL_SECONDS = 0.1  # a signal waits no longer
NAMED = 8  # runs that a line on all of them names
BUSY_SECONDS = 1.0  # until a folder that another process holds is tried again
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
    """Starts what waits, in order, as there is room; ends when nothing waits and nothing runs."""

    def __init__(self, tasks: list[Task], executor: Executor, launch: Launch, watcher: Watcher):
        """RunError where it can't be known what another launcher has left under way."""
        self.executor, self.launch, self.watcher = executor, launch, watcher
        self.attempts: list[Attempt] = []
        self.waiting: deque[Task] = deque()
        self.heard: list[int] = []  # the signals that told us to stop
        self.halted = False  # no further task is started
        self.left = False  # a signal ended the launcher alone
        self.take(tasks)

    def take(self, tasks: Sequence[Task]) -> None:
        """Bring these to their ends too: what another launcher left under way is watched, the rest waits. RunError
        where that can't be known."""
        found = self.executor.under_way(tasks)
        begun = {id(attempt.task) for attempt in found}
        self.waiting.extend(task for task in tasks if id(task) not in begun)
        self.attempts += found
        if found:
            self.watcher.note(f"{len(found)} runs are under way already; they are watched")
        for attempt in found:
            attempt.task.attempts += 1
            self._change(attempt.task, attempt.state)

    def run(self) -> None:
        """To the end, or until a signal cuts it short; then what never started is left waiting."""
        with self._listening():
            while self.attempts or (self.waiting and not self.halted):
                started = self._start_what_fits()
                self._obey_signals()
                if self.left:
                    return
                for line in self.executor.turn():
                    self.watcher.note(line)
                self.attempts = [attempt for attempt in self.attempts if self._look_after(attempt)]
                self.watcher.tick()
                if not started:
                    self._pause()

    def raise_if_stopped(self, what: str, again: str) -> None:
        """Raise StoppedError where a signal ended it. what: which is run; again: the command that goes on with it."""
        if self.left:
            raise StoppedError(f"the launcher was told to go; what it started goes on, and {again} watches it again")
        if self.heard:
            raise StoppedError(f"the {what} was stopped; {again} goes on with it")

    def _pause(self) -> None:
        """Until it is time to look again, or a signal comes."""
        until, heard = time.monotonic() + self.executor.pause_seconds, len(self.heard)
        while (self.attempts or self.waiting) and len(self.heard) == heard and (left := until - time.monotonic()) > 0:
            time.sleep(min(left, SIGNAL_SECONDS))

    # ---------------------------------------------------------------- starting

    def _start_what_fits(self) -> int:
        """In order: a task that needs many devices is not overtaken for ever by those that need few. Returns how many
        were started."""
        started, made = 0, functools.cache(made_now)  # what starts together is made with one state of the code
        while not self.halted and (task := self._next()) is not None and self.executor.has_room(task.run):
            self.waiting.remove(task)
            try:
                command = ["golf/train.py", "hydra.mode=RUN", *task.cell.overrides]
                task.folder, task.result = jobs.open_run(task.run, task.prepared, command, task.folder, made)
                if task.result is not None:  # another launcher's
                    self._change(task, "skipped")
                    continue
                attempt = self.executor.start(task)
            except BusyError as error:
                self._wait_for_folder(task, str(error))
                continue
            except (RunError, OSError) as error:  # disk full ...
                self._fail(task, f"could not be started: {error}", again=False)
                continue
            self.attempts.append(attempt)
            task.attempts += 1
            started += 1
            self._change(task, attempt.state)
        return started

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

    # ---------------------------------------------------------------- what runs

    def _look_after(self, attempt: Attempt) -> bool:
        """Returns whether it is still under way."""
        ended, now = attempt.poll(), time.monotonic()
        limit, began = self.launch.timeout_seconds, attempt.started
        if ended is not None:
            attempt.state = "ended"
            self.executor.release(attempt)
            attempt.task.seconds += now - (began or now)
            self._conclude(attempt, ended)
            return False
        if attempt.state != attempt.task.state:
            self._change(attempt.task, attempt.state)
        if now >= attempt.kill_at:
            attempt.kill()
        elif limit is not None and began is not None and now - began > limit and not attempt.stopping:
            self._stop(attempt, f"timed out after {limit:g} s (launch.timeout_seconds)")
        elif not attempt.stopping and (why := self.watcher.hopeless(attempt.task)):
            attempt.pruned = True
            self._stop(attempt, why)
        return True

    def _stop(self, attempt: Attempt, why: str) -> None:
        """Ask it to save and end; it is killed when it has not within launch.grace_seconds."""
        attempt.stopping = why
        attempt.kill_at = time.monotonic() + self.launch.grace_seconds
        attempt.stop()

    def _conclude(self, attempt: Attempt, ended: Ended) -> None:
        """What came of an attempt whose processes have ended, by what stands in its folder."""
        task = attempt.task
        task.result = task.folder.finished()
        if task.result is not None:
            self._change(task, "done")
            return
        if attempt.pruned:
            self._change(task, "pruned", attempt.stopping)
            return
        reason, code = reason_of(task, ended)
        if attempt.withdrawn:
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
            for attempt in self.attempts:
                if attempt.state == "queued" and not attempt.stopping:
                    self._stop(attempt, "taken out of the queue")
                    attempt.withdrawn = True

    def _change(self, task: Task, state: str, reason: str = "") -> None:
        task.state, task.reason = state, reason
        self.watcher.changed(task)

    # ---------------------------------------------------------------- signals

    @contextmanager
    def _listening(self) -> Iterator[None]:
        def hear(signum: int, frame: Any) -> None:
            self.heard.append(signum)

        heard = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]  # nohup ignores one
        old = {number: signal.signal(number, hear) for number in heard}
        try:
            yield
        except BaseException:
            self.executor.abandon(self.attempts)
            raise
        finally:
            for number, handler in old.items():
                signal.signal(number, handler)

    def _obey_signals(self) -> None:
        """The first: everything saves and stops. The second: everything is killed. But what outlives its launcher is
        left alone at signals that mean the launcher alone."""
        if not self.heard:
            return
        self.halted = True
        if not self.executor.leaves_on.isdisjoint(self.heard):
            self.left = True
            return
        going = [attempt for attempt in self.attempts if not attempt.stopping]
        if going:
            names = ", ".join(attempt.task.name for attempt in going[:NAMED])
            more = f" and {len(going) - NAMED} more" if len(going) > NAMED else ""
            self.watcher.note(f"{names}{more}: saves and stops; signal once more to kill it")
        for attempt in self.attempts:
            if not attempt.stopping:
                self._stop(attempt, "stopped with the sweep")
                attempt.withdrawn = True
            if len(self.heard) > 1:
                attempt.kill_at = 0.0


def reason_of(task: Task, ended: Ended) -> tuple[str, int]:
    """(one line on why an attempt left no result, its rank's own exit code): by the words of whoever ran it and the
    worker's, else by the code.

    Where the worker had no time for a word, its status.json gets this one.
    """
    status, code = task.folder.get_status(), ended.code
    killed = jobs.killed_rank(task.console, status) if task.run.launch.nproc > 1 else ""
    if status.get("state") in ("failed", "stopped") and not killed:
        said = str(status.get("message", status["state"]))
        return (f"{ended.words}; {said}" if ended.words else said), int(status.get("code", code))
    died = jobs.rank_that_died(task.console) if code > 0 and task.run.launch.nproc > 1 else None
    if ended.words:
        reason = ended.words
    elif died:
        rank, code = died
        reason = f"rank {rank} {jobs.meaning(code)}"
    elif code == 0:
        reason = "ended without an error and without a readable result.json"
    else:
        reason = jobs.meaning(code)
    try:
        task.folder.set_status("failed", step=status.get("step"), code=code, message=reason)
    except OSError as error:
        reason += f" (status.json cannot be written: {error.strerror})"
    return reason, code
