"""Reads files that somebody else may have made: regular ones alone, up to a size, with JSON that is not too deep."""

import errno
import json
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import Any

from golf.errors import UserError

MOST_TEXT = 2**26  # bytes of a JSON or text file; golf's own are a hundredth of that
MOST_METRICS = 2**30  # bytes of a metrics.jsonl
DEEPEST = 64  # levels of JSON; a run's configuration has some ten


def path_of(text: str) -> Path:
    """Return the path that somebody typed: ~ and ~NAME are home folders. Raises UserError where there is none such.

    A shell does not expand them behind `key=`.
    """
    try:
        return Path(text).expanduser()
    except RuntimeError:
        raise UserError(f"{text}: nobody's home folder is known for {text.split('/')[0]}; write the path out") from None


def paths_of(text: str) -> list[Path]:
    """Return the paths of a list with commas. A comma is part of a name where something of that name is there."""
    words, found = text.split(","), []
    while words:
        names = [",".join(words[:count]) for count in range(len(words), 0, -1)]
        name = next((name for name in names if path_of(name).exists()), words[0])
        found.append(path_of(name))
        words = words[name.count(",") + 1 :]
    return found


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """Open a regular file for reading. A pipe or a device, which may never end, raises OSError."""
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK)  # a named pipe would wait here for somebody to write
    with os.fdopen(number, "rb") as file:
        if not stat.S_ISREG(os.fstat(number).st_mode):
            raise OSError(errno.EINVAL, "Not a regular file", str(path))
        yield file


def read_bytes(path: Path, most: int) -> bytes:
    """Return a file's bytes. Raises OSError where it has more than `most`, or is no regular file."""
    with opened(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size <= most:
            return file.read(size)  # `most` would be allocated before a byte is read
    raise OSError(errno.EFBIG, f"Has more than {most:,} bytes", str(path))


def read_text(path: Path, most: int = MOST_TEXT) -> str:
    """Return a text file, whatever is no UTF-8 in it replaced. Raises OSError as read_bytes() does."""
    return read_bytes(path, most).decode(errors="replace")


def parse_json(text: str | bytes) -> Any:
    """Return what a JSON text holds. Raises ValueError where it is none, or nested deeper than DEEPEST."""
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("nested too deep") from None
    level = [value]
    for _ in range(DEEPEST):
        parts = [item for item in level if isinstance(item, dict | list)]
        level = [inner for item in parts for inner in (item.values() if isinstance(item, dict) else item)]
        if not level:
            return value
    raise ValueError(f"nested deeper than {DEEPEST} levels")
