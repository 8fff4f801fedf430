"""SLURM's commands: sbatch, squeue, scontrol and scancel, and what they print.

Jobs are known by names of our own, which a run's folder has before its job exists: so none is lost and none is
submitted twice, whenever a launcher dies.
"""

import re
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from golf.errors import RunError
from golf.records import JobTicket, read_record
from golf.rundir import RunDir, write_json

TICKET = "job.json"
COMMAND_SECONDS = 120.0  # a busy controller answers late
SIGNAL_SECONDS = 5.0
IDS_AT_ONCE = 500  # in one command line
FORMAT = "%j|%K|%F|%T"  # name, index in its array, id of the array, state
SHELL_SIGNALS = 128  # bash adds it to the number of a signal that killed the run,
STOPPED = 130  # but this is a worker's own code
QUEUED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "SPECIAL_EXIT", "RESV_DEL_HOLD")
OVER = (
    *("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "OUT_OF_MEMORY", "NODE_FAIL", "BOOT_FAIL", "DEADLINE"),
    *("PREEMPTED", "REVOKED", "LAUNCH_FAILED", "RECONFIG_FAIL"),
)
LINE = re.compile(r"(?P<name>.*)\|(?P<index>\d+|N/A)\|(?P<array>\d+)\|(?P<state>[A-Z_]+)")
LOOK_TRIES, LOOK_PAUSE_SECONDS = 4, 1.0  # of look_surely(): the pause doubles each time
# What sbatch says of a submission that it will never take; other errors may pass.
REFUSALS = re.compile(
    r"invalid|unrecogni[sz]ed option|requested node configuration is not available|permission denied"
    r"|access denied|not permitted|unable to open file",
    re.IGNORECASE,
)


class RefusedError(RunError):
    """SLURM does not take a submission, and would not take it later."""


@dataclass(frozen=True, slots=True)
class Ticket:
    """Which job is a run's: the name of a submission, and the index in its array. id: SLURM's own, for people."""

    name: str
    index: int
    id: str | None = None

    def write(self, folder: RunDir) -> None:
        write_json(folder.path / TICKET, {"name": self.name, "index": self.index, "id": self.id})


def ticket_of(folder: RunDir) -> Ticket | None:
    """Return the last one; None where the run was never submitted, or what stands there is no ticket."""
    found = read_record(folder.path / TICKET, JobTicket)
    return None if found is None else Ticket(found["name"], found["index"], found.get("id"))


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
    """Return queued or running; None of a job that has ended. A state that golf does not know is none of an end."""
    if state in OVER:
        return None
    return "queued" if state in QUEUED else "running"


def look() -> View:
    """Ask squeue. RunError where it gives no answer."""
    taken = time.monotonic()
    text = _call(["squeue", "--me", "--noheader", "--array", "--states=all", f"--format={FORMAT}"])
    return View(taken, parse(text))


def look_surely() -> View:
    """Ask squeue until it has answered twice, and return what either answer shows: one that is empty or cut short hides
    no job. RunError where it answers less often in LOOK_TRIES."""
    views: list[View] = []
    for number in range(LOOK_TRIES):
        try:
            views.append(look())
        except RunError:
            if number - len(views) + 1 > LOOK_TRIES - 2:
                raise
        if len(views) == 2:
            break
        time.sleep(LOOK_PAUSE_SECONDS * 2**number)
    first, last = views
    return View(first.taken, first.jobs | last.jobs)


def parse(text: str) -> dict[tuple[str, int], Job]:
    """Read squeue's lines; jobs that are in no array are none of ours. RunError where a line is none of squeue's.

    Where a submission stands there twice (sbatch was slow to submit it), a job of it that goes on counts.
    """
    jobs: dict[tuple[str, int], Job] = {}
    for line in text.splitlines():
        found = LINE.fullmatch(line.strip())
        if found is None:
            raise RunError(f"squeue: its answer cannot be read ({line.strip()[:60]!r})")
        if found["index"].isdigit():
            key, job = (found["name"], int(found["index"])), Job(found["array"], int(found["index"]), found["state"])
            if key not in jobs or state_word(jobs[key].state) is None:
                jobs[key] = job
    return jobs


def submit(script: Path) -> str:
    """Call sbatch; returns the id of the job array. RefusedError where SLURM will not take it; RunError where it may
    have been submitted or not."""
    try:
        said = _call(["sbatch", "--parsable", str(script)]).strip()
    except RunError as error:
        if REFUSALS.search(str(error)):
            raise RefusedError(str(error)) from None
        raise
    found = re.fullmatch(r"(\d+)(;.*)?", said.splitlines()[-1] if said else "")  # id[;cluster]
    if found is None:
        raise RunError(f"sbatch: its answer is no job's number ({said[:60]!r})")
    return found[1]


def exit_code(job: Job) -> int | None:
    """Return the run's (minus a signal's number), by scontrol; None where it does not tell."""
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


def interrupt(ids: Sequence[str]) -> list[str]:
    """Send SIGINT to job.sh of running jobs; returns those that may not have been reached.

    No answer is no error: while others of an array still wait, scancel (22.05) delivers the signal, is told that it
    could not, and tries again for minutes. A run bears signals that come twice.
    """
    unsure: list[str] = []
    for begin in range(0, len(ids), IDS_AT_ONCE):
        some = ids[begin : begin + IDS_AT_ONCE]
        try:
            _call(["scancel", "--quiet", "--signal=INT", "--batch", *some], SIGNAL_SECONDS)
        except RunError:
            unsure += some
    return unsure


def _call(command: list[str], seconds: float = COMMAND_SECONDS) -> str:
    try:
        # a session of its own: Ctrl-C is for the launcher
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            start_new_session=True,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise RunError(f"{command[0]} gives no answer ({error})") from None
    if done.returncode:
        said = " ".join(done.stderr.split()) or f"exit code {done.returncode}"
        raise RunError(said if said.startswith(command[0]) else f"{command[0]}: {said}")
    return done.stdout
