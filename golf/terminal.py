"""What golf prints: streams that outlive their readers, foreign words letter for letter, tables that fit.

No other file makes a Console, so that none can read somebody's words as markup or send control codes into a pipe.
"""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TextIO

from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

WIDE = 160  # characters of a line where nobody looks at a terminal
FEWEST = 10  # characters of a column of words, if it has more
DUMB = ("dumb", "unknown")  # values of TERM

ALARM = "bold red"  # the style of what must not be overlooked

Content = str | Text


# ---------------------------------------------------------------- streams


class LastingStream:
    """A text stream that drops what can't be written any more: its reader is gone, or its terminal is closed."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.lost = False
        if hasattr(stream, "reconfigure"):  # a terminal in ASCII shows \u2588 for what it has no sign for
            stream.reconfigure(errors="backslashreplace")

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)

    def write(self, text: str) -> int:
        self._try(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self.stream.flush)

    def _try(self, action: Callable[[], object]) -> None:
        """Do it, or drop it; then all that follows goes nowhere: child processes write to the same file."""
        if self.lost or self.stream.closed:
            return
        try:
            action()
        except OSError:
            self.lost = True
            with contextlib.suppress(OSError, ValueError), open(os.devnull, "w") as nowhere:
                os.dup2(nowhere.fileno(), self.stream.fileno())


def fill_descriptors() -> None:
    """Open what is closed of stdin, stdout and stderr to nothing: the next file opened would else be taken for it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.dup2(os.open(os.devnull, os.O_RDWR), number)
            os.set_inheritable(number, True)  # child processes have it too


@contextlib.contextmanager
def lasting_streams() -> Iterator[None]:
    """Within the context stdout and stderr outlive their readers."""
    fill_descriptors()
    before = sys.stdout, sys.stderr
    opened = [stream or open(os.devnull, "w") for stream in before]  # noqa: SIM115 (None: closed by who started us)
    sys.stdout, sys.stderr = lasting = [
        stream if isinstance(stream, LastingStream) else LastingStream(stream) for stream in opened
    ]
    try:
        yield
    finally:
        for stream in lasting:
            stream.flush()
        sys.stdout, sys.stderr = before


def interactive(stream: TextIO) -> bool:
    """Whether somebody looks at a terminal that can move its cursor and show colours."""
    return stream.isatty() and os.environ.get("TERM") not in DUMB


def console(*, to_stderr: bool = False) -> Console:
    """Return a Console for stdout or stderr: no markup is read, and there are no control codes but on a terminal."""
    stream = sys.stderr if to_stderr else sys.stdout
    width = None if stream.isatty() or "COLUMNS" in os.environ else WIDE
    shown = interactive(stream)
    return Console(
        stderr=to_stderr, markup=False, emoji=False, highlight=False, force_terminal=shown, width=width, soft_wrap=False
    )


# ---------------------------------------------------------------- tables


@dataclass(frozen=True, slots=True)
class Column:
    """A column of a table. words: it may be cut into lines, and stands on the left; a number is shown whole.

    spare: 0 for what is always shown; where there is no room the column of the largest goes first.
    """

    name: str
    words: bool = False
    spare: int = 0


def words(name: str, spare: int = 0) -> Column:
    """Return a column of words."""
    return Column(name, True, spare)


def show_table(
    columns: Sequence[Column], rows: Sequence[Sequence[Content]], title: str = "", under: str = "", last: bool = False
) -> None:
    """Print a table that fits, and what it leaves out. last: the last row is a sum of those above."""
    out = console()
    lengths = [max(_length(column.name), *(_length(row[i]) for row in rows), 1) for i, column in enumerate(columns)]
    least = [min(length, FEWEST) if column.words else length for column, length in zip(columns, lengths, strict=True)]
    shown = _that_fit(columns, least, out.width)
    table = Table(title=title or None, title_justify="left", caption=under or None, caption_justify="left")
    for i in shown:
        column = columns[i]
        table.add_column(
            Text(column.name),
            justify="left" if column.words else "right",
            overflow="fold",
            no_wrap=not column.words,
            min_width=min(least[i], max(1, out.width - 4)),
        )
    for number, row in enumerate(rows):
        if last and number == len(rows) - 1:
            table.add_section()
        table.add_row(*(row[i] for i in shown), style="bold" if last and number == len(rows) - 1 else None)
    out.print(table)
    left_out = [column.name for i, column in enumerate(columns) if i not in shown]
    if left_out:
        out.print(f"no room at {out.width} columns for: {', '.join(left_out)}", style="dim", soft_wrap=True)


def _length(cell: Content) -> int:
    text = cell.plain if isinstance(cell, Text) else cell
    return max(map(cell_len, text.split("\n")))


def _that_fit(columns: Sequence[Column], least: Sequence[int], width: int) -> list[int]:
    """Return the indices of the columns that fit side by side, each with its frame of three characters."""
    shown = list(range(len(columns)))
    while sum(least[i] + 3 for i in shown) + 1 > width and any(columns[i].spare for i in shown):
        shown.remove(max(shown, key=lambda i: (columns[i].spare, i)))
    return shown


def show_facts(facts: Mapping[str, Content]) -> None:
    """Print names and what is to be said of each."""
    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, said in facts.items():
        table.add_row(name, said)
    console().print(table)


def in_style(text: str, style: str) -> Text:
    """Return a text in a style of rich's, which is no style of what is added to it."""
    return Text().append(text, style)
