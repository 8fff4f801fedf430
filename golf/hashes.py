"""The sha256 of files that are large and seldom change: hashed once, and known again while the file is untouched.

What is known stands in this user's cache folder, never beside the file: whoever gives the file could write there.
"""

import contextlib
import json
import os
import time
from pathlib import Path
from typing import Any

from golf.files import MOST_TEXT, parse_json, read_bytes
from golf.rundir import write_atomic
from golf.tokens.shards import file_sha256

LARGE = 2**24  # bytes; what has fewer is hashed in some hundredths of a second
SETTLED_SECONDS = 2.0  # clocks of file systems are coarse: what changed just now may change again without a trace
MOST_KNOWN = 20_000  # files


def sha256_of(path: Path) -> str:
    """Return a file's sha256 (hex): the one that is known where neither its place, size nor times have changed.

    The time of the last change of its state (ctime) is among them: no program can set that back.
    """
    before = os.stat(path)
    if before.st_size < LARGE:
        return file_sha256(path)
    key, stamp = str(path.resolve()), _stamp(before)
    known = _read()
    if known.get(key, [None])[0] == stamp:
        return str(known[key][1])
    digest = file_sha256(path)
    if _stamp(os.stat(path)) == stamp and time.time() - before.st_ctime > SETTLED_SECONDS:
        _write(key, [stamp, digest])
    return digest


def _stamp(state: os.stat_result) -> list[int]:
    return [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns, state.st_ctime_ns]


def _file() -> Path | None:
    """Return where hashes are kept; None where this user has no folder for such things."""
    given = os.environ.get("XDG_CACHE_HOME")
    with contextlib.suppress(RuntimeError):  # nobody's home
        return Path(given) / "golf" / "sha256.json" if given else Path.home() / ".cache" / "golf" / "sha256.json"
    return None


def _read() -> dict[str, Any]:
    file = _file()
    with contextlib.suppress(OSError, ValueError):
        if file is not None and os.stat(file).st_uid == os.geteuid():
            known = parse_json(read_bytes(file, MOST_TEXT))
            if isinstance(known, dict):
                return {key: entry for key, entry in known.items() if isinstance(entry, list) and len(entry) == 2}
    return {}


def _write(key: str, entry: list[Any]) -> None:
    """Keep one more; the oldest are dropped. Where nothing can be written, hashes are taken again each time."""
    file = _file()
    if file is None:
        return
    known = _read()
    known.pop(key, None)
    kept = dict([*known.items(), (key, entry)][-MOST_KNOWN:])
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(file, json.dumps(kept))
