"""What a run asks of SLURM (https://slurm.schedmd.com/sbatch.html)."""

import functools
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from golf.config import Launch, Run
from golf.errors import UserError
from golf.fields import positive
from golf.launcher.slurm import queue
from golf.launcher.slurm.executor import SlurmExecutor
from golf.launcher.standing import StateOf, by_process
from golf.rundir import RunDir

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol")
TIME = r"\d+(:\d+){0,2}|\d+-\d+(:\d+){0,2}"  # minutes, [hours:]minutes:seconds, days-hours[:minutes[:seconds]]


@dataclass(kw_only=True, slots=True)
class SlurmLaunch(Launch):
    """conf/launch/slurm.yaml.

    nodes: of one run, which has nproc / nodes processes on each; gpus: of one run, on all its nodes (null: one for each
    process where compute.device=cuda); cpus: cores of a process; mem: memory of a node, as sbatch takes it; time: limit
    of one job (null: the partition's); options: further options of sbatch; setup: lines of shell before the run; slots:
    running at once; max_jobs: queued or running at once (null: all); array_size: at most so many runs a job array;
    poll_seconds: between two looks at the queue.
    """

    SHARED: ClassVar[tuple[str, ...]] = (*Launch.SHARED, "max_jobs", "array_size", "poll_seconds")

    nodes: int
    gpus: int | None
    cpus: int
    mem: str | None
    time: str | None
    partition: str | None
    account: str | None
    options: list[str]
    setup: list[str]
    max_jobs: int | None
    array_size: int
    poll_seconds: float

    def __post_init__(self) -> None:
        Launch.__post_init__(self)
        positive(nodes=self.nodes, cpus=self.cpus, max_jobs=self.max_jobs, array_size=self.array_size)
        positive(poll_seconds=self.poll_seconds)
        if self.nproc % self.nodes:
            near = -(-self.nproc // self.nodes) * self.nodes
            raise ValueError(f"nproc={self.nproc} must be a multiple of nodes={self.nodes}; try launch.nproc={near}")
        if self.gpus is not None and (self.gpus < 0 or self.gpus % self.nodes):
            near = -(-max(0, self.gpus) // self.nodes) * self.nodes
            raise ValueError(f"gpus={self.gpus} must be a multiple of nodes={self.nodes}; try launch.gpus={near}")
        if self.time is not None and not re.fullmatch(TIME, self.time):
            raise ValueError(f"time={self.time!r} is no time limit; write minutes, hours:minutes:seconds or days-hours")
        for option in self.options:
            if not re.fullmatch(r"--[a-z][a-z-]*(=.*)?", option):
                raise ValueError(f"options holds {option!r}, which is no option of sbatch; write --name=value")

    def gpus_of(self, run: Run) -> int:
        """GPUs that `run` asks for, on all its nodes."""
        if self.gpus is not None:
            return self.gpus
        return self.nproc if run.compute.device == "cuda" else 0

    def check(self, run: Run, *, lone: bool) -> None:
        """What the nodes have can't be seen from here."""
        if lone:
            raise UserError("launch=slurm: submits the runs of a sweep; add -m (a sweep of one run), or leave it out")
        if run.compute.device == "auto" and self.gpus is None:
            raise UserError(
                "compute.device=auto: launch=slurm can't tell from here what to ask for; set compute.device=cuda, "
                "compute.device=cpu or launch.gpus"
            )
        if missing := [command for command in COMMANDS if shutil.which(command) is None]:
            raise UserError(f"launch=slurm: there is no {missing[0]} here; start it where SLURM's commands are")

    def executor(self, runs: Sequence[Run]) -> SlurmExecutor:
        return SlurmExecutor(self)

    def standing(self) -> StateOf:
        look = functools.cache(queue.look_surely)  # at one moment, and only where something was submitted

        def state_of(folder: RunDir, status: dict[str, Any]) -> str:
            ticket = queue.ticket_of(folder)
            return by_process(folder, status) if ticket is None else look().state_of(ticket, status)

        return state_of
