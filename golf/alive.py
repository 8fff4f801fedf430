"""Which process is meant, and whether it is alive; files beside others while they are written, and what killed
processes left of these."""

import contextlib
import functools
import hashlib
import os
import re
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

OLD_SECONDS = 86_400.0  # what no process of this machine owns may be another machine's, which writes no file so long
OWNED = re.compile(r"\..+\.([0-9a-f]{8})-(\d+)\.tmp", re.DOTALL)
# Names that older versions gave: they do not say whose they are.
UNOWNED = re.compile(r"\..+\.\d+\.tmp|.+\.(safetensors|golf|bin)\.tmp|artifact\.tmp|\.probe-\w+", re.DOTALL)


@functools.cache
def machine() -> str:
    """Return 8 hex digits that tell apart where process numbers mean something else: hosts, boots, containers."""
    words = [socket.gethostname()]
    with contextlib.suppress(OSError):
        words.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
    with contextlib.suppress(OSError):
        words.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.sha256("\0".join(words).encode()).hexdigest()[:8]


def began(pid: int) -> int | None:
    """Return when a process of this machine began (clock ticks since boot); None where that is not known (Linux)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
        return int(text.rpartition(")")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return None


def is_alive(pid: int, since: int | None = None) -> bool:
    """Whether this machine has such a process. since: its began(), which another one with its number has not."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return since is None or began(pid) in (since, None)


# ---------------------------------------------------------------- temporary files


def temporary_of(path: Path) -> Path:
    """Return a name beside `path` that says whose it is. The first time in a folder, sweep() it."""
    _sweep_once(path.parent)
    return path.with_name(f".{path.name}.{machine()}-{os.getpid()}.tmp")


@contextlib.contextmanager
def written_beside(path: Path) -> Iterator[Path]:
    """Give a temporary name; what stands there takes the place of `path` if the block ends well, else it is removed."""
    temporary = temporary_of(path)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def temporary_folder(name: str, parent: Path | None = None) -> Iterator[Path]:
    """Make a folder for the time of the block. parent: None for the system's place of temporary files."""
    folder = temporary_of((parent or Path(tempfile.gettempdir())) / f"golf-{name}-{secrets.token_hex(4)}")
    folder.mkdir(mode=0o700)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@functools.cache
def _sweep_once(folder: Path) -> None:
    sweep(folder)


def sweep(folder: Path) -> None:
    """Remove what killed processes were writing in a folder. What cannot be removed stays.

    In the system's place of temporary files, where other programs write, names must say that they are golf's.
    """
    shared = folder.resolve() == Path(tempfile.gettempdir()).resolve()
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            with contextlib.suppress(OSError):
                if _is_left(entry, shared):
                    remove = shutil.rmtree if entry.is_dir(follow_symlinks=False) else os.unlink
                    remove(entry.path)


def _is_left(entry: os.DirEntry, shared: bool) -> bool:
    """Whether it is a temporary file or folder of ours whose owner is gone: a process of this machine that is dead, or
    an unknown one that has not written for OLD_SECONDS."""
    owned = OWNED.fullmatch(entry.name)
    if not owned and (shared or not UNOWNED.fullmatch(entry.name)):
        return False
    found = entry.stat(follow_symlinks=False)
    if found.st_uid != os.geteuid() or not (stat.S_ISREG(found.st_mode) or stat.S_ISDIR(found.st_mode)):
        return False
    if owned and owned[1] == machine():
        return not is_alive(int(owned[2]))
    return time.time() - found.st_mtime > OLD_SECONDS
