"""Workers that do as their label says: the same folder, files and exit codes as the real one's, and no training.

On a fake clock they are generators that yield their sleeps; `python fake_workers.py RUN_DIR` is one as a process.
"""

import contextlib
import json
import math
import os
import signal
import sys
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

GOOD = 0.04  # the best learning rate
ODD = {
    "garbage": '{"status": "done", "val_b',
    "no_result": '{"status": "done", "val_bpb": NaN, "fingerprint": "?"}',
    "half_a_result": '{"status": "done", "val_bpb": 1.5, "fingerprint": "x"}',
}

Acts = Generator[float, None, int]


class Signalled(BaseException):
    """A signal that comes while a worker sleeps; it dies of one that it does not catch."""

    def __init__(self, number: int):
        self.number = int(number)


@dataclass(frozen=True)
class Worker:
    """One rank: its run's folder, environment, clock, and what takes the lines that it prints."""

    folder: Path
    environment: Mapping[str, str]
    now: Callable[[], float]
    say: Callable[[str], object]

    @property
    def config(self) -> dict[str, Any]:
        return json.loads((self.folder / "config.json").read_text())

    @property
    def rank(self) -> str:
        return self.environment.get("RANK", "0")

    @property
    def group(self) -> Path:
        return self.folder.parent

    def starts(self, label: str) -> int:
        """How often runs of this label were started."""
        return (self.group / "starts.txt").read_text().count(label)

    def status(self, state: str, **facts: object) -> None:
        (self.folder / "status.json").write_text(json.dumps({"state": state, "pid": os.getpid(), **facts}))

    def result(self, **facts: object) -> None:
        result = {"schema": 1, "status": "done", "fingerprint": self.config["fingerprint"], "fits": True}
        (self.folder / "result.json").write_text(json.dumps(result | facts))


def work(worker: Worker) -> Acts:
    """A trial of a search, or a cell of the failure matrix."""
    label = worker.config["run"]["label"]
    return try_rate(worker) if label.startswith("trial-") else do_as_told(worker, label)


# ---------------------------------------------------------------- the failure matrix


def do_as_told(worker: Worker, label: str) -> Acts:
    """End as the label says; well where a file `mended` stands beside the folder."""
    begun = worker.now()
    with open(worker.group / "starts.txt", "a") as file:
        file.write(f"{label} {worker.rank} {begun}\n")
    behaviour = "ok" if (worker.group / "mended").exists() else label
    worker.say(f"{behaviour} was here")
    if behaviour == "hang":
        yield from _hang()
    if behaviour == "raise":
        raise ValueError("a bug in an idea")
    if behaviour in ("sigkill", "oom") or (behaviour == "rank_killed" and worker.rank == "1"):
        raise Signalled(signal.SIGKILL)
    if behaviour in ("slow", "slow2", "rank_killed") or (behaviour == "rank_exits_7" and worker.rank == "0"):
        yield 1000.0
    if behaviour == "patient" and worker.starts("patient") == 1:
        (worker.folder / "ready").touch()
        try:
            yield 1000.0
        except Signalled:
            worker.status("stopped", code=130, message="stopped by SIGTERM at step 3; saved")
            return 130
    if behaviour == "disk_full":
        worker.status("failed", code=1, message="disk full at step 3; free some space")
    if behaviour == "foreign_result":
        _score(worker, begun, fingerprint="of another run")
    if behaviour in ODD:
        (worker.folder / "result.json").write_text(ODD[behaviour])
    if behaviour == "odd_metrics":
        (worker.folder / "metrics.jsonl").write_text('7\n[1]\n{"step": 3}\nnull\n')
        (worker.folder / "status.json").write_text('{"state": "running"}')
        yield 1.5
    codes = {"exit3": 3, "rank_exits_7": 7, "disk_full": 1, "bad_input": 2, "odd_metrics": 1, "foreign_result": 0}
    if behaviour in codes or behaviour in ODD:
        return codes.get(behaviour, 0)
    if behaviour == "flaky" and worker.starts("flaky") == 1:
        return 1
    yield 0.3 if behaviour == "takes_a_while" else 0.0
    if worker.rank == "0":
        _score(worker, begun)
    return 0


def _hang() -> Acts:
    while True:
        with contextlib.suppress(Signalled):
            yield 1000.0


def _score(worker: Worker, begun: float, **facts: object) -> None:
    environment = {
        "devices": worker.environment.get("CUDA_VISIBLE_DEVICES"),
        "threads": worker.environment["OMP_NUM_THREADS"],
        "from": begun,
        "to": worker.now(),
    }
    numbers = {"quant_gap_bpb": 0.001, "total_bytes": 1000, "artifact_bytes": 1000, "cap_bytes": 2000, "steps": 6}
    score = 2.0 + worker.config["run"]["seed"] / 1000
    worker.result(**{"val_bpb": score, **numbers, "environment": environment, **facts})


# ---------------------------------------------------------------- the trials of a search


def try_rate(worker: Worker) -> Acts:
    """Log, save and stop as the real one does, with a score that depends on the learning rate alone."""
    run = worker.config["run"]
    with open(worker.group / "starts.txt", "a") as file:
        file.write(f"{run['label']}\n")
    try:
        return (yield from _steps(worker, run["optimizer"]["groups"]["matrices"]["lr"], run["budget"]["max_steps"]))
    except Signalled:
        worker.status("stopped", code=130, message="stopped by SIGTERM")
        return 130


def _steps(worker: Worker, lr: float, steps: int) -> Acts:
    away, saved, group = abs(math.log10(lr / GOOD)), worker.folder / "saved", worker.group
    worker.status("running")
    if lr > 1.0 and (group / "breaks").exists():
        return 1
    diverges = lr > 1.0 and (group / "diverges").exists()
    for step in range(int(saved.read_text()) + 1 if saved.exists() else 1, steps + 1):
        yield 0.1
        score = math.nan if diverges else 2.0 + away + 1 / step
        with open(worker.folder / "metrics.jsonl", "a") as file:
            file.write(json.dumps({"step": step, "train_seconds": step / 10, "val_bpb": score}) + "\n")
        (worker.folder / "saving").write_text(str(step))
        os.replace(worker.folder / "saving", saved)
        if step == 4 and away > 1.0 and (wait := group / "wait").exists():
            yield float(wait.read_text())  # however late the launcher looks
    if diverges:
        return 1
    numbers = {"quant_gap_bpb": 0.0, "artifact_bytes": 1, "total_bytes": 1, "cap_bytes": 2, "steps": steps}
    worker.result(val_bpb=2.0 + away, **numbers, environment={})
    return 0


# ---------------------------------------------------------------- as a process


def live(acts: Acts) -> int:
    """Sleep as the worker says, and give it the SIGTERM that comes meanwhile."""
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    step: Callable[[], float] = partial(next, acts)
    while True:
        try:
            pause = step()
        except StopIteration as end:
            return end.value
        except Signalled as told:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
            os.kill(os.getpid(), told.number)
            raise
        heard = signal.sigtimedwait({signal.SIGTERM}, pause)
        step = partial(next, acts) if heard is None else partial(acts.throw, Signalled(heard.si_signo))


if __name__ == "__main__":
    sys.exit(live(work(Worker(Path(sys.argv[1]), os.environ, time.time, partial(print, flush=True)))))
