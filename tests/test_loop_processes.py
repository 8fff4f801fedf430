"""Whole toy runs as processes: a real SIGKILL, real signals, two ranks under torchrun."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from golf.checkpoint import load_tensors
from golf.code_record import ROOT
from tests.helpers.runs import Job, assert_same_run, toy_overrides

RESUMED = ["average=ema", "loader=shuffled", "budget.max_steps=24", "checkpoint.every_steps=3", "log.every_steps=1"]


def test_a_process_that_is_killed_goes_on_bitwise(job: Callable[..., Job]) -> None:
    """SIGKILL in the middle; the next start, in another process, ends as if nothing had been."""
    whole, broken = job(*RESUMED, outputs="whole"), job(*RESUMED, outputs="broken")
    whole.here()
    worker = broken.start()
    broken.wait_for_step(worker, 5)
    os.killpg(worker.pid, signal.SIGKILL)
    worker.communicate()
    assert not broken.folder.result.exists() and "resumed at step" in broken.here()
    assert_same_run(whole, broken, steps=24)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP", "SIGUSR2"])
def test_a_signal_saves_and_stops_a_process(name: str, job: Callable[..., Job]) -> None:
    """Also where a cluster's scheduler and what passes its signals on send it twice."""
    one = job("budget.max_steps=3000", "log.every_steps=1")
    worker = one.start()
    one.wait_for_step(worker, 5)
    for _ in range(1 if name == "SIGINT" else 3):
        worker.send_signal(signal.Signals[name])
        time.sleep(0.02)
    _, err = worker.communicate(timeout=600)
    assert worker.returncode == 130 and f"stopped by {name}" in err and "Traceback" not in err
    assert json.loads(one.folder.status.read_text())["state"] == "stopped"
    _, meta = load_tensors(one.folder.checkpoint)
    assert f"saved: step {meta['step']}" in err and meta["step"] >= 5
    again = one.start()
    one.wait_for_step(again, meta["step"] + 1)
    os.killpg(again.pid, signal.SIGKILL)
    assert f"resumed at step {meta['step']}" in again.communicate()[0]


def test_two_ranks_under_a_command_train_as_one(job: Callable[..., Job], toy_folder: Path, tmp_path: Path) -> None:
    """The whole command, as a user gives it, with torchrun; also where parts have no gradient in some steps, and
    in an environment of another launcher's, with a terminal that has ASCII alone.

    Before the loop joins, its own scales and skips are unused.
    """
    here, model = tmp_path / "here", "model/stack=recurrence_untied"
    here.mkdir()
    line = toy_overrides(toy_folder, [model, "launch.nproc=2", "label=ranks", f"outputs={tmp_path / 'two'}"])
    around = os.environ | {"RANK": "1", "WORLD_SIZE": "3", "PYTHONIOENCODING": "ascii"}
    done = subprocess.run(
        [sys.executable, str(ROOT / "golf" / "train.py"), *line],
        capture_output=True,
        text=True,
        timeout=600,
        cwd=here,
        env=around,
    )
    assert done.returncode == 0 and "artifact, read back" in done.stdout, done.stderr
    assert not list(here.iterdir()), "nothing is left where the command was given"
    one = job(model, "label=ranks", outputs="one")
    one.here()
    two = job(model, "label=ranks", "launch.nproc=2", outputs="two")
    assert two.finished is not None and one.folder.path.name == two.folder.path.name
    assert_ranks_agree(one, two)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["model=baseline", "model/stack=recurrence_untied"])
def test_two_ranks_train_as_one(model: str, job: Callable[..., Job]) -> None:
    one, two = job(model, outputs="one"), job(model, "launch.nproc=2", outputs="two")
    assert one.folder.path.name == two.folder.path.name, "the number of ranks is no part of a run's identity"
    one.here()
    two.go()
    assert_ranks_agree(one, two)


def assert_ranks_agree(one: Job, two: Job) -> None:
    """Assert that a run on two ranks came to what it comes to on one."""
    first, second = one.result(), two.result()
    assert second["world_size"] == 2 and first["train_tokens"] == second["train_tokens"]
    assert first["val_bpb"] == pytest.approx(second["val_bpb"], abs=1e-4)
    ours, theirs = load_tensors(one.folder.weights)[0], load_tensors(two.folder.weights)[0]
    assert max((ours[name] - theirs[name]).abs().max().item() for name in ours) < 1e-3
    losses = [[json.loads(x)["loss"] for x in j.folder.metrics.read_text().splitlines()] for j in (one, two)]
    assert losses[0] == pytest.approx(losses[1], abs=1e-3), "what is logged is the mean over ranks"


@pytest.mark.slow
def test_two_ranks_stop_cleanly_as_a_command(toy_folder: Path, tmp_path: Path) -> None:
    """SIGTERM to the door of a run on two ranks: saved, one line, the run's own exit code, nobody left."""
    base = ["launch.nproc=2", "budget.max_steps=3000", "log.every_steps=1", f"outputs={tmp_path}"]
    command = [sys.executable, str(ROOT / "golf" / "train.py"), *toy_overrides(toy_folder, base)]
    door = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while door.poll() is None and not any('"step": 5,' in m.read_text() for m in tmp_path.rglob("metrics.jsonl")):
        time.sleep(0.05)
    door.send_signal(signal.SIGTERM)
    _, err = door.communicate(timeout=600)
    assert door.returncode == 130 and len(err.splitlines()) == 1 and "stopped by SIGTERM" in err, err
    with pytest.raises(ProcessLookupError):
        os.killpg(door.pid, 0)


@pytest.mark.slow
def test_a_process_repeats_a_run_bitwise(job: Callable[..., Job]) -> None:
    runs = [job("loader=shuffled", outputs=name) for name in ("a", "b")]
    runs[0].go()
    runs[1].here()
    assert runs[0].folder.artifact.read_bytes() == runs[1].folder.artifact.read_bytes()
