"""Looks at processes of this machine, and waits for what they do."""

import os
import time
from collections.abc import Callable
from pathlib import Path


def processes_in(folder: Path) -> list[str]:
    """Command lines that name this folder, of processes that are alive (Linux)."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            line = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            state = (process / "stat").read_text().rsplit(")", 1)[1].split()[0]
        except (OSError, IndexError):
            continue
        if str(folder) in line and state != "Z" and int(process.name) != os.getpid():
            found.append(line)
    return found


def wait_until(true: Callable[[], object], seconds: float = 600.0) -> None:
    until = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < until, "it did not come"
        time.sleep(0.02)
