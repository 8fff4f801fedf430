"""Submits attempts as job arrays, and sees in the queue what becomes of them."""

import contextlib
import secrets
import signal
import time
from collections import defaultdict
from collections.abc import Sequence
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
        self.job = view.find(self.ticket)
        state = queue.state_word(self.job.state) if self.job else None
        if state is None:
            return self._end()
        if state == "running" and self.started is None:
            self.started = time.monotonic()
        self.state = state
        return None

    def _end(self) -> Ended | None:
        """What SLURM says of a job that has ended."""
        state = self.job.state if self.job else ""
        if state in WORDS:
            return Ended(-signal.SIGTERM, WORDS[state])
        if self.job and state == "FAILED":
            code = queue.exit_code(self.job)
            return Ended(1 if code is None else code)
        if state not in ("COMPLETED", ""):
            return Ended(1, f"SLURM says {state} of its job")
        self.over_since = min(self.over_since, time.monotonic())
        if self.task.folder.finished() is None and time.monotonic() - self.over_since < SETTLE_SECONDS:
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


class SlurmExecutor(Executor):
    """Job arrays, each of runs that ask for the same. SIGTERM and SIGHUP end the launcher alone: its jobs go on."""

    leaves_on = frozenset({signal.SIGTERM, signal.SIGHUP})

    def __init__(self, launch: "SlurmLaunch"):
        self.launch, self.slots = launch, launch.slots
        self.view, self.trouble = View(), ""
        self.live: set[SlurmAttempt] = set()
        self.fresh: list[SlurmAttempt] = []  # to be submitted
        self.telling: dict[str, list[SlurmAttempt]] = {"cancel": [], "stop": []}

    @property
    def pause_seconds(self) -> float:  # type: ignore[override]
        hasty = any(attempt.told for attempt in self.live)
        return min(self.launch.poll_seconds, HASTE_SECONDS) if hasty else self.launch.poll_seconds

    def under_way(self, tasks: Sequence[Task]) -> list[Attempt]:
        """By the tickets in their folders. RunError where the queue can't be seen: they might be submitted twice."""
        tickets = [(task, ticket) for task in tasks if (ticket := queue.ticket_of(task.folder))]
        if tickets:
            self.view = queue.look()
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
            if attempt.told:
                attempt.ended = Ended(-signal.SIGTERM, "it was not submitted any more")
            else:
                alike[script.options_of(_launch(attempt.task), attempt.task.run)].append(attempt)
        self.fresh = []
        return [self._submit(attempts, options) for options, attempts in alike.items()]

    def _submit(self, attempts: list[SlurmAttempt], options: tuple[str, ...]) -> str:
        """One array. The names of its jobs stand in their folders before any of them can run."""
        sweep = attempts[0].task.folder.path.parent
        name = f"{sweep.name}-{secrets.token_hex(4)}"
        place = sweep / SUBMISSIONS / name
        if self.launch.slots is not None:  # arrays after one another: together they would be more at once
            earlier = sorted({attempt.array for attempt in self.live if attempt.ticket})
            options += (f"--dependency=afterany:{':'.join(earlier)}",) if earlier else ()
        try:
            place.mkdir(parents=True)
            write_atomic(place / script.FOLDERS, "".join(f"{attempt.task.folder.path}\n" for attempt in attempts))
            text = script.batch(self.launch, options, name=name, count=len(attempts), place=place)
            write_atomic(place / script.BATCH, text)
            for index, attempt in enumerate(attempts):
                Ticket(name, index).write(attempt.task.folder)
            array = self._sbatch(name, place)
        except (RunError, OSError) as error:
            for attempt in attempts:
                attempt.ended = Ended(BAD_INPUT, f"it was not submitted: {error}")
            return f"{len(attempts)} runs were not submitted: {error}"
        for index, attempt in enumerate(attempts):
            attempt.ticket, attempt.submitted = Ticket(name, index, f"{array}_{index}"), time.monotonic()
            with contextlib.suppress(OSError):  # the id is for people
                attempt.ticket.write(attempt.task.folder)
        return f"{len(attempts)} runs submitted as job array {array}"

    def _sbatch(self, name: str, place: Path) -> str:
        """The array's id, also where sbatch did not get to hear it."""
        try:
            return queue.submit(place / script.BATCH)
        except RunError:
            job = queue.look().find(Ticket(name, 0))
            if job is None:
                raise
            return job.array

    def _tell_all(self) -> list[str]:
        """First those that wait: scancel signals those that run the sooner."""
        told, self.telling = self.telling, {"cancel": [], "stop": []}
        there = {what: [a for a in attempts if a.ended is None and a.ticket] for what, attempts in told.items()}
        try:
            queue.cancel([attempt.id for attempt in there["cancel"]])
        except RunError as error:
            for attempt in there["cancel"]:
                attempt.told = ""  # the scheduler asks again
            return [str(error)]
        finally:
            queue.interrupt([attempt.id for attempt in there["stop"]])
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
