"""Signs of life of runs on other hosts, and what killed processes leave beside files."""

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from golf import alive, heartbeat
from golf.checkpoint import save_tensors
from golf.launcher.standing import read_standing
from golf.rundir import RunDir, require_writable, write_json
from golf.submission import archive
from golf.tokens.shards import write_shard
from tests.helpers.forks import in_a_fork
from tests.helpers.processes import wait_until

DAY = 86_400.0


@pytest.fixture
def dead() -> int:
    """The number of a process that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


# ---------------------------------------------------------------- runs

# (what status.json says, seconds since it was written, what heartbeat.json says or None) -> state
ELSEWHERE = {"host": "another", "machine": "00000000"}
BEAT = {"pid": 7, "ahead": 0.0}
STATES: dict[str, tuple[dict[str, Any], float, dict[str, Any] | None, str]] = {
    "silent for a day": (ELSEWHERE, DAY, None, "silent"),
    "wrote a minute ago": (ELSEWHERE, 60, None, "running"),
    "old status, beats": (ELSEWHERE, DAY, BEAT | {"time": -30.0}, "running"),
    "old status, old beat": (ELSEWHERE, DAY, BEAT | {"time": -3600.0}, "silent"),
    "beats of an attempt before": (ELSEWHERE, DAY, BEAT | {"pid": 8, "time": -30.0}, "silent"),
    "its clock is an hour slow": (ELSEWHERE, DAY, BEAT | {"time": -3630.0, "ahead": -3600.0}, "running"),
    "its clock is an hour fast, silent": (ELSEWHERE, DAY, BEAT | {"time": 1800.0, "ahead": 3600.0}, "silent"),
    "its clock is some minutes fast": (ELSEWHERE, -300, None, "running"),
    "a host of this name": ({"machine": "00000000"}, DAY, None, "silent"),
    "a heartbeat of another shape": (ELSEWHERE, DAY, BEAT | {"time": "now"}, "silent"),
    "it said its end": (ELSEWHERE | {"state": "stopped"}, DAY, None, "stopped"),
    "not begun yet": (ELSEWHERE | {"state": "starting"}, DAY, None, "silent"),
}


@pytest.mark.parametrize("case", STATES)
def test_a_run_elsewhere_runs_while_it_gives_signs_of_life(case: str, tmp_path: Path) -> None:
    said, ago, beat, state = STATES[case]
    folder, now = RunDir(tmp_path), time.time()
    write_json(folder.status, {"state": "running", "pid": 7, "time": now - ago} | said)
    if beat:
        moved = {"time": now + beat["time"]} if isinstance(beat["time"], float) else {}
        write_json(heartbeat.file_of(folder), beat | moved)
    standing = read_standing(folder)
    assert standing.state == state
    assert ("silent since 20" in standing.message and "(process 7 on " in standing.message) == (state == "silent")


def test_a_time_that_is_yet_to_come_is_none(tmp_path: Path) -> None:
    """The file's own stands for it, so that a clock that was wrong once does not keep a dead run alive."""
    folder = RunDir(tmp_path)
    write_json(folder.status, {"state": "running", "pid": 7, "time": time.time() + DAY} | ELSEWHERE)
    assert read_standing(folder).state == "running"
    os.utime(folder.status, (time.time() - DAY,) * 2)
    assert read_standing(folder).state == "silent"


def test_a_run_of_this_machine_is_known_by_its_process(tmp_path: Path, dead: int) -> None:
    folder = RunDir(tmp_path)
    folder.set_status("running", step=0)
    status = json.loads(folder.status.read_text())
    write_json(folder.status, status | {"time": 0.0})
    assert read_standing(folder).state == "running", "its process lives, however long it has said nothing"
    write_json(folder.status, status | {"process_began": status["process_began"] - 1})
    assert read_standing(folder).state == "interrupted", "another process has its number by now"
    write_json(folder.status, status | {"pid": dead})
    assert read_standing(folder).state == "interrupted"


def test_a_run_says_that_it_is_alive_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heartbeat, "BEAT_SECONDS", 0.01)
    folder = RunDir(tmp_path)
    folder.set_status("running", step=0)
    status = folder.get_status() | ELSEWHERE | {"time": 0.0}
    with heartbeat.Heartbeat(folder) as beating:
        wait_until(lambda: heartbeat.last_sign(folder, status) > 0, 60)
        first = heartbeat.last_sign(folder, status)
        wait_until(lambda: heartbeat.last_sign(folder, status) > first, 60)
    beating.thread.join(60)
    assert not beating.thread.is_alive() and folder.get_status()["state"] == "running"


# ---------------------------------------------------------------- temporary files


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def test_only_what_a_dead_process_left_is_swept(tmp_path: Path, dead: int) -> None:
    here, living, elsewhere = alive.machine(), os.getpid(), "00000000"
    swept = {f".a.json.{here}-{dead}.tmp", f".old.json.{elsewhere}-{living}.tmp", ".probe-x1", "artifact.golf.tmp"}
    stay = {f".b.json.{here}-{living}.tmp", "mine.tmp", ".hidden", "notes.txt", "latest.safetensors"}
    fresh = {f".c.json.{elsewhere}-{dead}.tmp", "latest.safetensors.tmp", f".d.json.{dead}.tmp"}
    for name in swept | stay | fresh:
        (tmp_path / name).touch()
        if name not in fresh:
            os.utime(tmp_path / name, (time.time() - 2 * DAY,) * 2)
    (tmp_path / f".folder.{here}-{dead}.tmp" / "inner").mkdir(parents=True)
    target = tmp_path / "notes.txt"
    link = tmp_path / f".link.{here}-{dead}.tmp"
    link.symlink_to(target)
    alive.sweep(tmp_path)
    assert names(tmp_path) == stay | fresh | {link.name} and target.exists()
    alive.sweep(tmp_path / "absent")


def test_where_other_programs_write_names_must_say_that_they_are_golfs(
    tmp_path: Path, dead: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path))
    ours, theirs = f".golf-x.{alive.machine()}-{dead}.tmp", {"weights.bin.tmp", ".a.7.tmp", "artifact.tmp"}
    for name in {ours, *theirs}:
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (time.time() - 2 * DAY,) * 2)
    alive.sweep(tmp_path)
    assert names(tmp_path) == theirs


def begin_folder(folder: Path) -> None:
    with alive.temporary_folder("download", folder):
        os.replace(folder, folder)  # killed while it is there


WRITERS: dict[str, Callable[[Path], object]] = {
    "small files": lambda folder: write_json(folder / "x.json", 1),
    "checkpoints": lambda folder: save_tensors(folder / "x.safetensors", {"a": torch.zeros(1)}, {}),
    "shards": lambda folder: write_shard(folder / "x.bin", np.zeros(4, dtype=np.uint16)),
    "a try whether it can be written": lambda folder: require_writable(folder, "outputs"),
    "downloads": begin_folder,
    "archives": lambda folder: archive._write_once(folder / "x.tar", b"1"),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_what_a_killed_writer_leaves_is_swept_by_the_next(writer: str, tmp_path: Path) -> None:
    def die(*given: object, **how: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    def write() -> None:
        os.replace = os.link = shutil.rmtree = die  # type: ignore[assignment]
        WRITERS[writer](tmp_path)

    with pytest.raises(AssertionError, match="the process died"):
        in_a_fork(write)
    (left,) = names(tmp_path)
    assert left.endswith(".tmp")
    alive.temporary_of(tmp_path / "anything")
    assert not names(tmp_path)


def test_a_writer_leaves_nothing_and_takes_nothing_away(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", 1)
    write_shard(tmp_path / "x.bin", np.zeros(4, dtype=np.uint16))
    require_writable(tmp_path, "outputs")
    with pytest.raises(ZeroDivisionError), alive.written_beside(tmp_path / "x.json") as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert names(tmp_path) == {"x.json", "x.bin"} and (tmp_path / "x.json").read_text() == "1\n"


def test_whoever_takes_a_run_up_sweeps_its_folder(tmp_path: Path, dead: int) -> None:
    folder = RunDir(tmp_path)
    folder.checkpoint.parent.mkdir()
    for path in (folder.checkpoint, folder.artifact):
        path.with_name(f".{path.name}.{alive.machine()}-{dead}.tmp").touch()
    with folder.lock():
        assert names(tmp_path) == {".lock", "checkpoint"} and not names(folder.checkpoint.parent)
