"""A running process says every minute that it is alive, since nobody can look at its process from another host."""

import contextlib
import os
import threading
import time
from pathlib import Path
from typing import Any, Self

from golf.records import Beat, read_record
from golf.rundir import RunDir, write_json

BEAT_SECONDS = 60.0
# A run that was silent for so long is told as silent. Clocks of two hosts may differ by some minutes, and a file server
# may show late what was written.
SILENT_SECONDS = 600.0


def file_of(folder: RunDir) -> Path:
    return folder.path / "heartbeat.json"


class Heartbeat:
    """A thread that writes heartbeat.json. A beat that cannot be written (disk full) is left out."""

    def __init__(self, folder: RunDir):
        self.file, self.over = file_of(folder), threading.Event()
        self.thread = threading.Thread(target=self._beat, name="heartbeat", daemon=True)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()

    def _beat(self) -> None:
        ahead = 0.0
        while not self.over.wait(BEAT_SECONDS):
            with contextlib.suppress(OSError):
                now = time.time()
                write_json(self.file, {"pid": os.getpid(), "time": now, "ahead": ahead})
                ahead = now - self.file.stat().st_mtime


def last_sign(folder: RunDir, status: dict[str, Any]) -> float:
    """Return when a run last said something (seconds since 1970), by status.json and its heartbeat.

    The heartbeat says how far its host's clock is ahead of the file server's; that is taken off. A time that is yet to
    come by more than SILENT_SECONDS is no time: the file's own stands for it.
    """
    beat = read_record(file_of(folder), Beat)
    if beat is not None and beat["pid"] != status["pid"]:
        beat = None  # of an earlier attempt
    ahead = 0.0 if beat is None else beat["ahead"]
    times = [status.get("time"), None if beat is None else beat["time"]]
    last = max((moment - ahead for moment in times if moment is not None), default=None)
    if last is not None and last - time.time() <= SILENT_SECONDS:
        return last
    try:
        return folder.status.stat().st_mtime
    except OSError:
        return 0.0


def is_silent(folder: RunDir, status: dict[str, Any]) -> bool:
    return time.time() - last_sign(folder, status) > SILENT_SECONDS


def silence(folder: RunDir, status: dict[str, Any]) -> str:
    """Say since when a run is silent."""
    since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(last_sign(folder, status)))
    where = status.get("host") or "an unknown host"
    return f"silent since {since} (process {status['pid']} on {where}); start it again if it is gone"
