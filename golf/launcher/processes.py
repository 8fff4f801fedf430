"""The processes of one run: a session of their own, output in a file, and none left when whoever started them dies."""

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path

ATTEMPT = "=== "  # begins the line that an attempt begins with in its log
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def obeyed(signals: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Return those of some signals that whoever started this process did not take from it, as nohup takes SIGHUP."""
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in signals if number != signal.SIGHUP or not nohup]


def die_with_parent(signum: int) -> None:
    """Have the kernel send `signum` to this process when its parent dies, however it dies. Linux; elsewhere nothing."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signum)


def die_with_torchrun(run_folder: str) -> None:
    """In a rank, first of all: be killed when torchrun dies, and go at once where it is dead already (Linux).

    torchrun's own command line ends with the worker's arguments, so a parent without run_folder is another process.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ or _LIBC is None:
        return
    die_with_parent(signal.SIGKILL)
    try:
        line = Path(f"/proc/{os.getppid()}/cmdline").read_bytes()
    except OSError:
        line = b""
    if os.fsencode(run_folder) not in line.split(b"\0"):
        os._exit(1)


def bound_to(parent: int) -> Callable[[], None]:
    """What a child does between fork and exec: SIGTERM (save and stop) when process `parent` dies."""

    def bind() -> None:
        die_with_parent(signal.SIGTERM)
        if os.getppid() != parent:  # it died in between
            os._exit(1)

    return bind


class Process:
    """A run's command (a worker, or torchrun with its ranks) under way.

    torchrun gives each rank a session of its own, and ranks ask the kernel to be killed with it (golf/worker.py).
    """

    def __init__(self, command: list[str], environment: dict[str, str], log: Path):
        with open(log, "ab") as file:
            file.write(f"{ATTEMPT}{time.strftime('%Y-%m-%d %H:%M:%S')}: {shlex.join(command)}\n".encode())
            file.flush()
            self.child = subprocess.Popen(
                command,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                preexec_fn=bound_to(os.getpid()),
            )

    def poll(self) -> int | None:
        """None while it runs, else its exit code (minus a signal's number). What it left in its session is killed."""
        code = self.child.poll()
        if code is not None:
            self.signal(signal.SIGKILL)
        return code

    def signal(self, signum: int) -> None:
        """To every process of the session; torchrun passes SIGTERM on to its ranks."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.child.pid, signum)
