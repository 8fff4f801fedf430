"""The processes of one run: a session of their own, output in a file, and none left when whoever started them dies."""

import contextlib
import ctypes
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

# What torchrun tells its ranks, and takes its own options from (PET_): left over, they would be taken for this run's.
TORCHRUN_NAMES = (
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "GROUP_WORLD_SIZE", "ROLE_RANK"),
    *("ROLE_NAME", "ROLE_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
)
TORCHRUN_PREFIXES = ("TORCHELASTIC_", "PET_")
ATTEMPT = "=== "  # begins the line that an attempt begins with in its log
PR_SET_PDEATHSIG = 1
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None


def signals_to_obey(signals: Iterable[signal.Signals]) -> list[signal.Signals]:
    """Return those of some signals that whoever started this process did not take from it, as nohup takes SIGHUP."""
    nohup = signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    return [number for number in signals if number != signal.SIGHUP or not nohup]


def die_with_parent(signum: int) -> None:
    """Have the kernel send `signum` to this process when its parent dies, however it dies. Linux; elsewhere nothing."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signum)


def without_torchrun(environment: Mapping[str, str]) -> dict[str, str]:
    """Return variables without those by which torchrun tells a process which rank it is."""
    kept = (name for name in environment if name not in TORCHRUN_NAMES and not name.startswith(TORCHRUN_PREFIXES))
    return {name: environment[name] for name in kept}


def is_rank(arguments: Sequence[str]) -> bool:
    """Return whether torchrun has started this process, whose command line is `arguments`, as a rank.

    Its variables alone may be left over from further up. On Linux the parent's own command line has to end likewise.
    """
    if "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    if _LIBC is None:
        return True
    try:
        words = Path(f"/proc/{os.getppid()}/cmdline").read_bytes().split(b"\0")[:-1]
    except OSError:
        return False
    return words[-len(arguments) :] == [os.fsencode(argument) for argument in arguments]


def die_with_torchrun(arguments: Sequence[str]) -> None:
    """In a rank, first of all: be killed when torchrun dies, and go at once where it is dead already (Linux)."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or _LIBC is None:
        return
    die_with_parent(signal.SIGKILL)
    if not is_rank(arguments):
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
