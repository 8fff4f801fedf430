"""Submits attempts as job arrays, and sees in the queue what becomes of them."""

import contextlib
import secrets
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, cast

from golf.config import Run
from golf.errors import RunError
from golf.launcher.executor import BAD_INPUT, Attempt, Ended, Executor, Task
from golf.launcher.slurm import queue, script
from golf.launcher.slurm.queue import Job, Ticket, View
from golf.rundir import write_atomic

if TYPE_CHECKING:
    from golf.launcher.slurm.config import SlurmLaunch

SUBMISSIONS = "slurm"  # the folder of a sweep that its job arrays are written in
SETTLE_SECONDS = 20.0  # what a node has written, a file server may show elsewhere so much later
HASTE_SECONDS = 1.0  # between two looks, once jobs have been told to end
GONE_LOOKS = 2  # so many answers in a row must not show a job
ASKED_AGAIN = 3  # times that a command is asked what it did not do or tell
SUBMIT_WAITS = (1.0, 4.0, 16.0, 64.0)  # seconds before a submission is tried once more
WORDS = {
    "CANCELLED": "its job was cancelled (scancel)",
    "TIMEOUT": "its job ran into its time limit (launch.time)",
    "OUT_OF_MEMORY": "its job ran out of memory (launch.mem)",
    "NODE_FAIL": "its node failed",
}


class SlurmAttempt(Attempt):
    """A job. ticket: its names, once they are written; job: as last seen; ended: where it never became a job."""

    def __init__(self, task: Task, executor: "SlurmExecutor", ticket: Ticket | None = None, job: Job | None = None):
        state = (job and queue.state_word(job.state)) or "queued"
        super().__init__(task, state, time.monotonic() if state == "running" else None)
        self.executor, self.ticket, self.job = executor, ticket, job
        self.submitted, self.over_since = time.monotonic(), float("inf")
        self.looked, self.misses = float("-inf"), 0  # the last view that was judged, and how many did not show it
        self.asked = self.interrupts = 0
        self.ended: Ended | None = None
        self.told = ""

    @property
    def id(self) -> str:
        """SLURM's, of a job that there is."""
        if self.job is not None:
            return self.job.id
        assert self.ticket is not None and self.ticket.id is not None
        return self.ticket.id

    @property
    def array(self) -> str:
        return self.id.split("_")[0]

    def poll(self) -> Ended | None:
        view = self.executor.view
        if self.ended is not None or self.ticket is None or view.taken < self.submitted:
            return self.ended
        if view.taken > self.looked:
            self.looked, job = view.taken, view.find(self.ticket)
            self.misses = 0 if job else self.misses + 1
            self.job = job or self.job
        state = queue.state_word(self.job.state) if self.job and not self.misses else None
        if state is None:
            return self._end()
        self.over_since = float("inf")
        if state == "running" and self.started is None:
            self.started = time.monotonic()
        self.state = state
        return None

    def _end(self) -> Ended | None:
        """Return what SLURM says of a job that has ended; None where it must be asked again."""
        state = self.job.state if self.job and not self.misses else ""
        if state in WORDS:
            return Ended(-signal.SIGTERM, WORDS[state])
        if self.job and state == "FAILED":
            code = queue.exit_code(self.job)
            self.asked += 1
            if code is None and self.asked < ASKED_AGAIN:
                return None
            return Ended(1 if code is None else code)
        if state not in ("COMPLETED", ""):
            return Ended(1, f"SLURM says {state} of its job")
        self.over_since = min(self.over_since, time.monotonic())
        early = time.monotonic() - self.over_since < SETTLE_SECONDS or 0 < self.misses < GONE_LOOKS
        if early and self.task.folder.finished() is None:
            return None
        return Ended(0) if state else Ended(1, "its job is gone from SLURM's queue")

    def stop(self) -> None:
        """The run saves, and is not queued again; what still waits in the queue is taken out of it."""
        self._tell("stop" if self.state == "running" else "cancel")

    def kill(self) -> None:
        self._tell("cancel")

    def _tell(self, what: str) -> None:
        if self.told != what:
            self.told = what
            self.executor.telling[what].append(self)


@dataclass(slots=True, eq=False)
class Submission:
    """Attempts that go to SLURM in one array, under one name however often sbatch is called. tries: calls so far, each
    of which may have submitted it; due: when the next may be (monotonic seconds); said: why the last one failed."""

    name: str
    attempts: list[SlurmAttempt]
    options: tuple[str, ...]
    tries: int = 0
    due: float = 0.0
    said: str = ""

    @property
    def place(self) -> Path:
        """Return the folder of its scripts, in the sweep's."""
        return self.attempts[0].task.folder.path.parent / SUBMISSIONS / self.name

    def submitted(self, array: str) -> str:
        """Write the tickets; returns a line for people."""
        for index, attempt in enumerate(self.attempts):
            attempt.ticket, attempt.submitted = Ticket(self.name, index, f"{array}_{index}"), time.monotonic()
            with contextlib.suppress(OSError):  # the id is for people
                attempt.ticket.write(attempt.task.folder)
        return f"{len(self.attempts)} runs submitted as job array {array}"


class SlurmExecutor(Executor):
    """Job arrays, each of runs that ask for the same. SIGTERM and SIGHUP end the launcher alone: its jobs go on."""

    leaves_on = frozenset({signal.SIGTERM, signal.SIGHUP})

    def __init__(self, launch: "SlurmLaunch"):
        self.launch, self.slots = launch, launch.slots
        self.view, self.trouble = View(), ""
        self.live: set[SlurmAttempt] = set()
        self.fresh: list[SlurmAttempt] = []  # to be submitted
        self.pending: list[Submission] = []  # which sbatch has not confirmed
        self.telling: dict[str, list[SlurmAttempt]] = {"cancel": [], "stop": []}

    @property
    def pause_seconds(self) -> float:  # type: ignore[override]
        hasty = bool(self.pending) or any(attempt.told for attempt in self.live)
        return min(self.launch.poll_seconds, HASTE_SECONDS) if hasty else self.launch.poll_seconds

    def under_way(self, tasks: Sequence[Task]) -> list[Attempt]:
        """By the tickets in their folders. RunError where the queue can't be seen: they might be submitted twice."""
        tickets = [(task, ticket) for task in tasks if (ticket := queue.ticket_of(task.folder))]
        if tickets:
            self.view = queue.look_surely()
        found: list[SlurmAttempt] = []
        for task, ticket in tickets:
            job = self.view.find(ticket)
            if job is not None and queue.state_word(job.state):
                found.append(SlurmAttempt(task, self, Ticket(ticket.name, ticket.index, job.id), job))
        self.live.update(found)
        return [*found]

    def has_room(self, run: Run) -> bool:
        limit = self.launch.max_jobs
        return len(self.fresh) < self.launch.array_size and (limit is None or len(self.live) < limit)

    def start(self, task: Task) -> SlurmAttempt:
        write_atomic(task.folder.path / script.JOB, script.job(_launch(task), task.run, task.folder))
        attempt = SlurmAttempt(task, self)
        self.fresh.append(attempt)
        self.live.add(attempt)
        return attempt

    def release(self, attempt: Attempt) -> None:
        assert isinstance(attempt, SlurmAttempt)
        self.live.remove(attempt)

    # ---------------------------------------------------------------- what is done for many at once

    def turn(self) -> list[str]:
        return [*self._submit_all(), *self._tell_all(), *self._look()]

    def _submit_all(self) -> list[str]:
        alike: dict[tuple[str, ...], list[SlurmAttempt]] = defaultdict(list)
        for attempt in self.fresh:
            alike[script.options_of(_launch(attempt.task), attempt.task.run)].append(attempt)
        self.fresh = []
        for options, attempts in alike.items():
            sweep = attempts[0].task.folder.path.parent.name
            self.pending.append(Submission(f"{sweep}-{secrets.token_hex(4)}", attempts, options))
        due = [one for one in self.pending if time.monotonic() >= one.due]
        return [line for submission in due for line in self._advance(submission)]

    def _advance(self, submission: Submission) -> list[str]:
        """Submit it, or find out that it is; lines for people."""
        try:
            array = self._array_of(submission)
        except (queue.RefusedError, OSError) as error:
            return self._give_up(submission, BAD_INPUT, error)
        except RunError as error:
            if submission.tries > len(SUBMIT_WAITS) or all(attempt.told for attempt in submission.attempts):
                return self._give_up(submission, 1, error)
            submission.due = time.monotonic() + SUBMIT_WAITS[max(0, submission.tries - 1)]
            before, submission.said = submission.said, str(error)
            line = f"{len(submission.attempts)} runs are not known to be submitted: {error}; tried again"
            return [line] if submission.said != before else []
        self.pending.remove(submission)
        return [submission.submitted(array)] if array else []

    def _array_of(self, submission: Submission) -> str | None:
        """Return the id of its array, maybe of an earlier call of sbatch; None where nobody wants it now."""
        if submission.tries and (array := self._found(submission)):
            return array
        self._leave_out_the_told(submission)
        return self._sbatch(submission) if submission.attempts else None

    def _give_up(self, submission: Submission, code: int, error: Exception) -> list[str]:
        for attempt in submission.attempts:
            attempt.ended = Ended(code, f"it was not submitted: {error}")
        self.pending.remove(submission)
        return [f"{len(submission.attempts)} runs were not submitted: {error}"]

    def _found(self, submission: Submission) -> str | None:
        """Return the array that a call of sbatch submitted without saying so. RunError where that can't be known."""
        job = queue.look_surely().find(Ticket(submission.name, 0))
        return None if job is None else job.array

    def _leave_out_the_told(self, submission: Submission) -> None:
        for attempt in submission.attempts:
            if attempt.told:
                attempt.ended = Ended(-signal.SIGTERM, "it was not submitted any more")
        submission.attempts = [attempt for attempt in submission.attempts if not attempt.told]

    def _sbatch(self, submission: Submission) -> str:
        """Submit one array; returns its id. The names of its jobs stand in their folders before any of them can run."""
        place, options = submission.place, submission.options
        if self.launch.slots is not None:  # arrays after one another: together they would be more at once
            earlier = sorted({attempt.array for attempt in self.live if attempt.ticket})
            options += (f"--dependency=afterany:{':'.join(earlier)}",) if earlier else ()
        place.mkdir(parents=True, exist_ok=True)
        folders = "".join(f"{attempt.task.folder.path}\n" for attempt in submission.attempts)
        write_atomic(place / script.FOLDERS, folders)
        text = script.batch(self.launch, options, name=submission.name, count=len(submission.attempts), place=place)
        write_atomic(place / script.BATCH, text)
        for index, attempt in enumerate(submission.attempts):
            Ticket(submission.name, index).write(attempt.task.folder)
        submission.tries += 1
        try:
            return queue.submit(place / script.BATCH)
        except queue.RefusedError:
            raise
        except RunError:
            if (array := self._found(submission)) is None:
                raise
            return array

    def _tell_all(self) -> list[str]:
        """First those that wait: scancel signals those that run the sooner, and a place that becomes free goes to none.
        Who was not reached is told again in the next turn."""
        told = {what: [a for a in attempts if a.ended is None] for what, attempts in self.telling.items()}
        there = {what: [a for a in attempts if a.ticket] for what, attempts in told.items()}
        self.telling = {what: [a for a in attempts if not a.ticket] for what, attempts in told.items()}
        try:
            queue.cancel([attempt.id for attempt in there["cancel"]])
        except RunError as error:
            for what, attempts in there.items():
                self.telling[what] += attempts
            return [str(error)]
        unsure = set(queue.interrupt([attempt.id for attempt in there["stop"]]))
        for attempt in there["stop"]:
            attempt.interrupts += 1
            if attempt.id in unsure and attempt.interrupts < ASKED_AGAIN:
                self.telling["stop"].append(attempt)
        return []

    def _look(self) -> list[str]:
        """Every pause_seconds. What was seen last stands where squeue gives no answer."""
        if not self.live or time.monotonic() - self.view.taken < self.pause_seconds:
            return []
        try:
            self.view, trouble = queue.look(), ""
        except RunError as error:
            trouble = f"{error}; what runs is looked at again in {self.pause_seconds:g} s"
        self.trouble, before = trouble, self.trouble
        return [trouble] if trouble and trouble != before else []


def _launch(task: Task) -> "SlurmLaunch":
    return cast("SlurmLaunch", task.run.launch)
