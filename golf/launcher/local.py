"""launch=local: every run in processes of this machine, each on a slot of its own."""

import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass

from golf.checks import check_machine
from golf.config import Launch, Run
from golf.launcher import jobs
from golf.launcher.executor import Attempt, Ended, Executor, Task
from golf.launcher.processes import Process
from golf.launcher.slots import Pool, Slot, devices_needed, pool_for
from golf.launcher.standing import StateOf, by_process

POLL_SECONDS = 0.1


@dataclass(kw_only=True, slots=True)
class LocalLaunch(Launch):
    """conf/launch/local.yaml. What a lone run is told to do, and what ends its launcher, ends it too."""

    def check(self, run: Run, *, lone: bool) -> None:
        check_machine(run)

    def executor(self, runs: Sequence[Run]) -> "LocalExecutor":
        return LocalExecutor(pool_for(runs))

    def standing(self) -> StateOf:
        return by_process


class LocalAttempt(Attempt):
    """Processes of this machine, in a slot of it."""

    def __init__(self, task: Task, slot: Slot):
        super().__init__(task, "running", time.monotonic())
        self.slot = slot
        line, environment = jobs.worker_command(task.run, task.folder, slot)
        self.process = Process(line, environment, task.console)

    def poll(self) -> Ended | None:
        code = self.process.poll()
        return None if code is None else Ended(code)

    def stop(self) -> None:
        self.process.signal(signal.SIGTERM)

    def kill(self) -> None:
        self.process.signal(signal.SIGKILL)


class LocalExecutor(Executor):
    """A pool's slots."""

    pause_seconds = POLL_SECONDS

    def __init__(self, pool: Pool):
        self.pool, self.slots = pool, pool.slots

    def has_room(self, run: Run) -> bool:
        return self.pool.holds(devices_needed(run))

    def start(self, task: Task) -> LocalAttempt:
        slot = self.pool.take(devices_needed(task.run))
        assert slot is not None, "the scheduler asked for room first"
        try:
            return LocalAttempt(task, slot)
        except OSError:
            self.pool.give(slot)
            raise

    def release(self, attempt: Attempt) -> None:
        assert isinstance(attempt, LocalAttempt)
        self.pool.give(attempt.slot)

    def abandon(self, attempts: Sequence[Attempt]) -> None:
        """No process outlives its launcher."""
        for attempt in attempts:
            attempt.stop()
