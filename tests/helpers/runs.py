"""Toy runs: a two-layer model on a few hundred made-up documents, small enough to train in a second."""

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from golf.checkpoint import load_tensors
from golf.compose import compose
from golf.config import Run
from golf.launcher import jobs
from golf.launcher.slots import whole_machine
from golf.worker import PREEMPTIONS, main

TOY = [
    "track=tiny",
    "data=text",
    "data.vocab_size=384",
    "model.dim=32",
    "model.layers=3",
    "model.mixer.heads=2",
    "model.mixer.kv_heads=1",
    "batch.sequence_length=32",
    "batch.tokens_per_step=256",
    "batch.max_microbatch_sequences=4",
    "budget.max_steps=6",
    "compute.precision=fp32",
    "log=none",
    "log.every_steps=2",
    "checkpoint.every_seconds=null",
]


def merged(base: list[str], extra: list[str]) -> list[str]:
    """Return these overrides, the later of two for one key."""
    by_key = {override.split("=", 1)[0]: override for override in [*base, *extra]}
    return list(by_key.values())


def toy_overrides(folder: Path, extra: list[str]) -> list[str]:
    """Return the command line of a toy run on the text in `folder`."""
    (text,) = folder.glob("toy-*.jsonl")
    places = [f"data.path={text}", f"data_dir={folder / 'data'}", f"outputs={folder / 'outputs'}"]
    return merged([*TOY, *places, "data.val_one_in=8", "data.tune_one_in=8"], extra)


def composed(*overrides: str) -> Run:
    """Return the run of these overrides, without Hydra where its groups are read so (tests/helpers/parts.py).

    A call of its own makes an object of its own.
    """
    from tests.helpers.parts import run_of_line  # it builds on this module

    try:
        return run_of_line(*overrides)
    except AssertionError:
        return compose(overrides)


class Job:
    """A run's folder and its worker command, as the door makes them."""

    def __init__(self, run: Run):
        data = Path(run.data_dir)
        self.run = run
        self.prepared = run.data.prepare(data, log=lambda line: None)
        self.folder, self.finished = jobs.open_run(run, self.prepared, ["train.py"])
        self.command, self.environment = jobs.worker_command(run, self.folder, whole_machine())
        self.environment |= {"OMP_NUM_THREADS": "1"}

    def start(self) -> subprocess.Popen:
        pipe = subprocess.PIPE
        return subprocess.Popen(
            self.command, env=self.environment, stdout=pipe, stderr=pipe, text=True, start_new_session=True
        )

    def go(self, code: int = 0) -> str:
        """Run to the end in a process; returns what it printed."""
        worker = self.start()
        out, err = worker.communicate(timeout=600)
        assert worker.returncode == code, out + err
        return out + err

    def here(self, code: int | None = 0) -> str:
        """Run to the end on one rank in this process, without the seconds that a process takes to import torch.

        code: the exit code that there must be; None: any.
        """
        assert self.run.launch.nproc == 1
        printed, handlers = io.StringIO(), {number: signal.getsignal(number) for number in PREEMPTIONS}
        try:
            with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(printed):
                found = main(str(self.folder.path))
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        assert code is None or found == code, printed.getvalue()
        return printed.getvalue()

    def result(self) -> dict:
        return json.loads(self.folder.result.read_text())

    def wait_for_step(self, worker: subprocess.Popen, step: int) -> None:
        while worker.poll() is None:
            if self.folder.metrics.exists() and f'"step": {step},' in self.folder.metrics.read_text():
                return
            time.sleep(0.01)
        raise AssertionError(worker.communicate())


def assert_same_run(whole: Job, broken: Job, steps: int) -> None:
    """Assert that a run that was cut off and resumed left what the run in one go left."""
    assert whole.folder.artifact.read_bytes() == broken.folder.artifact.read_bytes()
    records = [json.loads(line) for line in broken.folder.metrics.read_text().splitlines()]
    assert [record["step"] for record in records] == list(range(1, steps + 1)), "metrics have each step once"
    result = broken.result()
    assert result["train_tokens"] == whole.result()["train_tokens"] and result["steps"] == steps
    assert result["phases"]["train"]["seconds"] == pytest.approx(result["train_seconds"])
    _, meta = load_tensors(broken.folder.checkpoint)
    assert len(meta["step_seconds"]) == steps and sum(meta["step_seconds"]) == pytest.approx(result["train_seconds"])
    assert result["wall_seconds"] > result["train_seconds"]


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Any]) -> Path:
    """Return a folder that one test process makes with make(folder) and all processes of this test session read."""
    base = factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    folder, ready = shared / name, shared / f"{name}.ready"
    with FileLock(shared / f"{name}.lock"):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)  # a test process died while it made it
            folder.mkdir()
            make(folder)
            ready.touch()
    return folder


def finished_run(factory: pytest.TempPathFactory, toy_folder: Path, overrides: tuple[str, ...]) -> Path:
    """Return the folder of a finished toy run, trained once in a session for each line of overrides.

    Its command.txt is as the door writes it. A test that writes there takes a copy.
    """
    digest = sha256("\n".join(overrides).encode()).hexdigest()[:12]

    def train(place: Path) -> None:
        line = toy_overrides(toy_folder, [f"outputs={place / 'outputs'}", *overrides])
        job = Job(composed(*line))
        (job.folder.path / "command.txt").write_text(shlex.join(["golf/train.py", *line]))
        job.here()

    (result,) = made_once(factory, f"finished-{digest}", train).glob("outputs/*/*/result.json")
    return result.parent
