"""Where a run stands, read from its folder alone: nothing in it is touched, no process is asked."""

import contextlib
import os
import socket
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from golf import alive, heartbeat
from golf.files import MOST_METRICS, opened, parse_json, read_bytes
from golf.records import Logged, fits
from golf.rundir import RunDir, marks

# The state of a run that has no result, from its folder and status.json.
StateOf = Callable[[RunDir, dict[str, Any]], str]
TAIL_BYTES = 1 << 16  # of metrics.jsonl: enough for the last step and, usually, the last score


@dataclass(frozen=True, slots=True)
class Standing:
    """state: waiting, queued, running, interrupted (its process is gone), silent (a process
    of another host, without a sign of life for a while), stopped, failed or done. loss: nats per token
    of the last logged step; bpb: bits per byte, the final score where done, else the last one on the way, at bpb_step;
    seconds_left: of training, as last logged; marks: those of golf/rundir.py."""

    state: str
    step: int | None = None
    loss: float | None = None
    bpb: float | None = None
    bpb_step: int | None = None
    seconds_left: float | None = None
    artifact_bytes: int | None = None
    message: str = ""
    marks: tuple[str, ...] = ()


def standing_of(result: dict[str, Any]) -> Standing:
    """Of a run that has its result."""
    numbers = result["val_bpb"], result["steps"], 0.0, result["artifact_bytes"]
    return Standing("done", result["steps"], None, *numbers, marks=tuple(marks(result)))


def by_process(folder: RunDir, status: dict[str, Any]) -> str:
    """Judge by the process that wrote status.json; where it is on another machine, by its last sign of life."""
    if status["state"] not in ("starting", "running"):
        return str(status["state"])
    host, here = status.get("host", socket.gethostname()), status.get("machine", alive.machine())
    if host == socket.gethostname() and here == alive.machine():
        return "running" if alive.is_alive(status["pid"], status.get("process_began")) else "interrupted"
    return "silent" if heartbeat.is_silent(folder, status) else "running"


def read_standing(folder: RunDir, state_of: StateOf = by_process) -> Standing:
    """Read result.json, else status.json and the end of metrics.jsonl."""
    finished = folder.finished()
    if finished is not None:
        return standing_of(finished)
    status = folder.get_status()
    if not status:
        return Standing("waiting")
    if status["state"] == "done":
        return Standing("failed", message="status.json says done, but result.json is missing or not whole")
    logged, scored = _last_logged(folder)
    state = state_of(folder, status)
    return Standing(
        state,
        logged.get("step", status.get("step")),
        logged.get("loss"),
        scored.get("val_bpb"),
        scored.get("step"),
        logged.get("seconds_left"),
        message=heartbeat.silence(folder, status) if state == "silent" else status.get("message", ""),
    )


def _last_logged(folder: RunDir) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the last record of metrics.jsonl, and the last one that holds a score; each empty where there is none."""
    try:
        with opened(folder.metrics) as file:
            file.seek(max(0, os.fstat(file.fileno()).st_size - TAIL_BYTES))
            lines = file.read().splitlines()
    except OSError:
        return {}, {}
    last: dict[str, Any] = {}
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # a line that a kill or the seek cut
            record = parse_json(line)
            if fits(record, Logged):
                last = last or record
                if "val_bpb" in record:
                    return last, record
    return last, {}


def logged(folder: RunDir, key: str) -> list[tuple[int, float, float]]:
    """(step, seconds of training, value) of each step that was logged with a value of this key; NaN where a run
    diverged."""
    try:
        lines = read_bytes(folder.metrics, MOST_METRICS).splitlines()
    except OSError:
        return []
    values = []
    for line in lines:
        with contextlib.suppress(ValueError, KeyError, TypeError):  # a line that a kill cut, a step without a value
            record = parse_json(line)
            if fits(record, Logged):
                values.append((record["step"], float(record["train_seconds"]), float(record[key])))
    return values
