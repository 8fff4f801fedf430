"""SLURM's commands: sbatch, squeue, scontrol and scancel, and what they print.

Jobs are known by names of our own, which a run's folder has before its job exists: so none is lost and none is
submitted twice, whenever a launcher dies.
"""

import contextlib
import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from golf.errors import RunError
from golf.rundir import RunDir, read_json, write_json

TICKET = "job.json"
COMMAND_SECONDS = 120.0  # a busy controller answers late
SIGNAL_SECONDS = 5.0
IDS_AT_ONCE = 500  # in one command line
FORMAT = "%j|%K|%F|%T"  # name, index in its array, id of the array, state
SHELL_SIGNALS = 128  # bash adds it to the number of a signal that killed the run,
STOPPED = 130  # but this is a worker's own code
QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
RUNNING = ("RUNNING", "COMPLETING", "SUSPENDED", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")


@dataclass(frozen=True, slots=True)
class Ticket:
    """Which job is a run's: the name of a submission, and the index in its array. id: SLURM's own, for people."""

    name: str
    index: int
    id: str | None = None

    def write(self, folder: RunDir) -> None:
        write_json(folder.path / TICKET, {"name": self.name, "index": self.index, "id": self.id})


def ticket_of(folder: RunDir) -> Ticket | None:
    """The last one; None where the run was never submitted."""
    found = read_json(folder.path / TICKET)
    if not isinstance(found, dict) or not {"name", "index"} <= set(found):
        return None
    return Ticket(found["name"], found["index"], found.get("id"))


@dataclass(frozen=True, slots=True)
class Job:
    """As squeue shows it. state: SLURM's word."""

    array: str
    index: int
    state: str

    @property
    def id(self) -> str:
        return f"{self.array}_{self.index}"


@dataclass(frozen=True, slots=True)
class View:
    """All our jobs at one moment (monotonic seconds), those that ended a short while ago among them."""

    taken: float = float("-inf")
    jobs: dict[tuple[str, int], Job] = field(default_factory=dict)

    def find(self, ticket: Ticket) -> Job | None:
        return self.jobs.get((ticket.name, ticket.index))

    def state_of(self, ticket: Ticket, status: dict[str, Any]) -> str:
        """The state of a run without a result: the queue's word before that of its status.json."""
        job = self.find(ticket)
        if job is not None and (word := state_word(job.state)):
            return word
        return "interrupted" if status["state"] in ("starting", "running") else str(status["state"])


def state_word(state: str) -> str | None:
    """queued or running; None of a job that has ended."""
    if state in QUEUED:
        return "queued"
    return "running" if state in RUNNING else None


def look() -> View:
    """Ask squeue. RunError where it gives no answer."""
    taken = time.monotonic()
    text = _call(["squeue", "--me", "--noheader", "--array", "--states=all", f"--format={FORMAT}"])
    return View(taken, parse(text))


def parse(text: str) -> dict[tuple[str, int], Job]:
    """squeue's lines; jobs that are in no array are none of ours."""
    jobs = {}
    for line in text.splitlines():
        name, index, array, state = line.strip().rsplit("|", 3)
        if index.isdigit():
            jobs[name, int(index)] = Job(array, int(index), state)
    return jobs


def submit(script: Path) -> str:
    """sbatch; the id of the job array. RunError with its words where it refuses."""
    return _call(["sbatch", "--parsable", str(script)]).strip().split(";")[0]  # id[;cluster]


def exit_code(job: Job) -> int | None:
    """The run's (minus a signal's number), by scontrol; None where SLURM has forgotten it."""
    try:
        text = _call(["scontrol", "--oneliner", "show", "job", job.id])
    except RunError:
        return None
    found = re.search(r"\bExitCode=(\d+):(\d+)", text)
    if found is None:
        return None
    code, signum = int(found[1]), int(found[2])
    if code > SHELL_SIGNALS and code != STOPPED:
        return SHELL_SIGNALS - code
    return -signum if signum else code


def cancel(ids: Sequence[str]) -> None:
    """End jobs, or take them out of the queue. RunError where that fails; what has ended meanwhile is no error."""
    for begin in range(0, len(ids), IDS_AT_ONCE):
        _call(["scancel", "--quiet", *ids[begin : begin + IDS_AT_ONCE]])


def interrupt(ids: Sequence[str]) -> None:
    """SIGINT to job.sh of running jobs.

    No answer is no error: while others of an array still wait, scancel (22.05) delivers the signal, is told that it
    could not, and tries again for minutes. What does not end by this is cancelled later.
    """
    for begin in range(0, len(ids), IDS_AT_ONCE):
        with contextlib.suppress(RunError):
            told = ["scancel", "--quiet", "--signal=INT", "--batch", *ids[begin : begin + IDS_AT_ONCE]]
            _call(told, SIGNAL_SECONDS)


def _call(command: list[str], seconds: float = COMMAND_SECONDS) -> str:
    try:
        # a session of its own: Ctrl-C is for the launcher
        done = subprocess.run(command, capture_output=True, text=True, timeout=seconds, start_new_session=True)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"{command[0]} gives no answer ({error})") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise RunError(said if said.startswith(command[0]) else f"{command[0]}: {said}")
    return done.stdout
