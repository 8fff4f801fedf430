"""Where the fake workers of a sweep run: on a fake clock, in no time, or as processes of this machine."""

import contextlib
import io
import os
import re
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from golf import code_record, rundir
from golf.code_record import ROOT
from golf.launcher import board, jobs, local, scheduler
from golf.launcher.processes import ATTEMPT
from golf.launcher.slurm import executor, queue, script
from golf.search import drive
from tests.helpers import fake_slurm, fake_workers
from tests.helpers.clocks import Acts, FakeClock, Life
from tests.helpers.fake_slurm import Slurm
from tests.helpers.fake_workers import Worker, work
from tests.helpers.processes import processes_in, wait_until

WORKER = str(ROOT / "golf" / "worker.py")
# torchrun's account of ranks of which one failed, as it stands in a run's log.
TORCHRUN = """\
W1201 03:35:13.871000 27119 torch/distributed/elastic/multiprocessing/api.py:1028] Sending closing signal SIGTERM
E1201 03:35:13.874000 27119 torch/distributed/elastic/multiprocessing/api.py:1002] failed (exitcode: {code}) local_rank
Traceback (most recent call last):
torch.distributed.elastic.multiprocessing.errors.ChildFailedError:
-------------------------------------------------------
Failures:
[1]:
  rank      : {other} (local_rank: {other})
  exitcode  : -15 (pid: 27147)  (SIGTERM)
-------------------------------------------------------
Root Cause (first observed failure):
[0]:
  time      : 2026-12-01_03:35:13
  host      : localhost
  rank      : {rank} (local_rank: {rank})
  exitcode  : {code} (pid: 27148)
=======================================================
"""


class World:
    """What a test says of time and processes, wherever they are."""

    def now(self) -> float:
        """Seconds on the clock that the launcher has."""
        raise NotImplementedError

    def when(self, true: Callable[[], object], act: Callable[[], object], after: float = 0.0) -> None:
        """Act so many seconds after it is true, beside the launcher."""
        raise NotImplementedError

    def left(self, folder: Path) -> list[str]:
        """Processes alive that name this folder."""
        raise NotImplementedError

    def settle(self, folder: Path) -> None:
        """Wait until all acts are done and no process is left."""
        raise NotImplementedError

    def interrupt(self, when: Callable[[], object], *numbers: int, apart: float = 0.5) -> None:
        """Signal the launcher, which is this process, so many seconds apart."""
        for place, number in enumerate(numbers, 1):
            self.when(when, partial(os.kill, os.getpid(), number), place * apart)


class ClockWorld(World):
    """The product's modules wait on a fake clock, on which fake workers live."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.clock = FakeClock()
        self.clock.put_in(monkeypatch, board, drive, executor, local, queue, scheduler)
        # of no use here: what git says, what outlives a crash of the machine
        monkeypatch.setattr(os, "fsync", lambda file: None)
        monkeypatch.setattr(rundir, "environment", lambda patch=None: {"git_commit": "abc", "git_dirty": False})
        monkeypatch.setattr(code_record, "changes", lambda: b"")
        monkeypatch.setattr(local, "Process", partial(ClockProcess, self.clock))

    def now(self) -> float:
        return self.clock.now

    def when(self, true: Callable[[], object], act: Callable[[], object], after: float = 0.0) -> None:
        def begin() -> None:
            due = self.clock.now + after
            self.clock.when(lambda: self.clock.now >= due, act)

        self.clock.when(true, begin if after else act)

    def left(self, folder: Path) -> list[str]:
        return [life.name for life in self.clock.lives if str(folder) in life.name]

    def settle(self, folder: Path) -> None:
        while self.clock.watches or self.left(folder):
            self.clock.sleep(0.1)


class ProcessWorld(World):
    """Fake workers are processes, and time is real."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.threads: list[threading.Thread] = []
        monkeypatch.setattr(jobs, "worker_line", lambda folder: [fake_workers.__file__, str(folder.path)])

    def now(self) -> float:
        return time.monotonic()

    def when(self, true: Callable[[], object], act: Callable[[], object], after: float = 0.0) -> None:
        def wait() -> None:
            wait_until(true)
            time.sleep(after)
            act()

        self.threads.append(threading.Thread(target=wait))
        self.threads[-1].start()

    def left(self, folder: Path) -> list[str]:
        return processes_in(folder)

    def settle(self, folder: Path) -> None:
        for thread in self.threads:
            thread.join()
        wait_until(lambda: not processes_in(folder), 60)


class ClockProcess:
    """Stands in for golf.launcher.processes.Process: a worker, or torchrun with its ranks."""

    def __init__(self, clock: FakeClock, command: list[str], environment: dict[str, str], log: Path):
        assert command[-2] == WORKER
        self.log, self.told, name = log, False, shlex.join(command)
        say(log, f"{ATTEMPT}{clock.strftime('%Y-%m-%d %H:%M:%S')}: {name}")
        ranks = re.search(r"--nproc-per-node=(\d+)", name)
        environments = [environment | {"RANK": str(rank)} for rank in range(int(ranks[1]))] if ranks else [environment]
        self.under_torchrun = ranks is not None
        self.ranks = [begin(clock, name, Path(command[-1]), each, log) for each in environments]

    def poll(self) -> int | None:
        codes = [life.code for life in self.ranks]
        if not self.under_torchrun:
            return codes[0]
        failed = next((rank for rank, code in enumerate(codes) if code), None)
        if failed is None:
            return None if None in codes else 0
        if not self.told:
            say(self.log, TORCHRUN.format(rank=failed, code=codes[failed], other=1 - failed))
            self.signal(signal.SIGTERM)
        return 1

    def signal(self, signum: int) -> None:
        self.told = True
        for life in self.ranks:
            life.signal(signum)


def say(log: Path, text: str) -> None:
    """What a process prints."""
    with open(log, "a") as file:
        file.write(f"{text}\n")


def begin(clock: FakeClock, name: str, folder: Path, environment: dict[str, str], log: Path) -> Life:
    """Start a fake worker on a fake clock."""
    tell = partial(say, log)
    return clock.start(name, work(Worker(folder, environment, clock.monotonic, tell)), tell)


# ---------------------------------------------------------------- clusters


class Cluster:
    """A fake SLURM. place: the folder of its state, with the files `held`, `refuse`, `mute` and `deaf` of a test."""

    def __init__(self, place: Path, run: Callable[..., Any]):
        self.place, self.run = place, run

    def command(self, *line: str) -> None:
        """Call one of SLURM's commands, as a person would."""
        self.run([*line], capture_output=True, text=True).check_returncode()

    def has(self, word: str) -> bool:
        return (self.place / word).exists()

    def say(self, word: str) -> None:
        (self.place / word).touch()

    def unsay(self, word: str) -> None:
        (self.place / word).unlink(missing_ok=True)

    def told(self, command: str) -> str:
        """The arguments that a command was given, a line each time; empty where it never was."""
        path = self.place / f"{command}.txt"
        return path.read_text() if path.exists() else ""

    def jobs(self, fact: str) -> list[Any]:
        """A fact of each job of the first array: state, restarts."""
        return [job[fact] for job in Slurm(self.place, None).read() if job["array"] == 101]  # type: ignore[arg-type]


def process_cluster(place: Path, bin_: Path, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """SLURM's commands, first on PATH; jobs are processes."""
    bin_.mkdir()
    fake_slurm.write_programs(bin_, place)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(place))
    monkeypatch.setattr(executor, "SETTLE_SECONDS", 0.0)
    return Cluster(place, subprocess.run)


def clock_cluster(place: Path, clock: FakeClock, monkeypatch: pytest.MonkeyPatch) -> Cluster:
    """SLURM's commands in this process; jobs live on the clock."""
    slurm = Slurm(place, machine := ClockMachine(clock))
    machine.slurm = slurm

    def run(command: list[str], *, text: bool, **how: object) -> subprocess.CompletedProcess:
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = slurm.call(command[0], command[1:])
        said = [stream.getvalue() if text else stream.getvalue().encode() for stream in (out, err)]
        return subprocess.CompletedProcess(command, code, *said)

    instead = SimpleNamespace(run=run, TimeoutExpired=subprocess.TimeoutExpired)
    monkeypatch.setattr(queue, "subprocess", instead)
    return Cluster(place, run)


class ClockMachine:
    """Runs jobs on a fake clock."""

    slurm: Slurm

    def __init__(self, clock: FakeClock):
        self.clock = clock
        self.going: dict[tuple[int, int], ClockJob] = {}

    def serve(self, batch: str, array: int, at_once: int) -> None:
        def rounds() -> Acts:
            going: dict[int, fake_slurm.Child] = {}
            while self.slurm.round(batch, array, at_once, going):
                yield fake_slurm.ROUND_SECONDS
            return 0

        self.clock.start(f"serve {batch}", rounds())

    def start(self, batch: str, job: fake_slurm.Job) -> "ClockJob":
        child = ClockJob(self.clock, self.slurm, batch, job)
        self.going[job["array"], job["index"]] = child
        return child

    def signal(self, job: fake_slurm.Job, number: int, *, whole: bool) -> None:
        self.going[job["array"], job["index"]].signal(number)


class ClockJob:
    """Does as batch.sh and job.sh do, to one worker. What they are in shell is tried with processes."""

    def __init__(self, clock: FakeClock, slurm: Slurm, batch: str, job: fake_slurm.Job):
        self.slurm, self.id, self.again = slurm, f"{job['array']}_{job['index']}", ""
        folder = Path(Path(batch).with_name(script.FOLDERS).read_text().splitlines()[job["index"]])
        text = (folder / script.JOB).read_text()
        exports = re.findall(r"^export (\w+)=(.*)$", text, re.MULTILINE)
        log = folder / "log" / "console.txt"
        assert f"exec >> {shlex.quote(str(log))} 2>&1" in text and WORKER in text
        say(log, f"{ATTEMPT}{clock.strftime('%F %T')}: SLURM job {self.id} on localhost")
        self.life = begin(clock, str(folder), folder, {name: shlex.split(value)[0] for name, value in exports}, log)

    def signal(self, number: int) -> None:
        self.again = "no" if number == signal.SIGINT else self.again or "yes"
        self.life.signal(signal.SIGTERM)

    def poll(self) -> int | None:
        code = self.life.code
        if code is None:
            return None
        (job,) = [job for job in self.slurm.read() if fake_slurm.meant(job, [self.id])]
        if self.again == "yes" and code and job["state"] == "RUNNING":
            self.slurm.call("scontrol", ["requeue", self.id])
        return code if code >= 0 else queue.SHELL_SIGNALS - code
