"""What is printed: streams that outlive their readers, foreign words letter for letter, tables that fit."""

import fcntl
import io
import os
import pty
import re
import struct
import subprocess
import sys
import termios
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from golf import result, terminal
from golf.launcher import board, tables
from golf.launcher.cells import Cell
from golf.launcher.executor import Task
from golf.launcher.grid import Plan
from golf.reports import grids
from golf.rundir import RunDir
from golf.search import table as trials
from golf.sinks import ConsoleSink
from golf.terminal import Column, LastingStream, lasting_streams, show_table, words
from tests.helpers.parts import run_of_line
from tests.helpers.tracking import RECORD
from tests.reports.helpers import result as made_result

GOLF = Path(terminal.__file__).parent
HOSTILE = ("loss=[z_loss]", "[/x]", "[bold]b", "[link=https://a.b]c", ":smile:", "a|b", "<script>", "\\[x]")
WIDTHS = (60, 80, 100, 200)


# ---------------------------------------------------------------- streams


@pytest.mark.parametrize("how", ["pipe", "closed terminal"])
def test_what_cannot_be_printed_is_dropped(how: str) -> None:
    reader, writer = os.pipe() if how == "pipe" else pty.openpty()
    os.close(reader)
    with os.fdopen(writer, "w") as file:
        stream = LastingStream(file)
        for _ in range(3):
            assert stream.write("x" * 100_000) == 100_000
            stream.flush()
        child = subprocess.run([sys.executable, "-c", "print('x' * 100_000, flush=True)"], stdout=writer)
        assert child.returncode == 0, "a child process writes into nothing, too"


def test_streams_are_put_back_and_a_closed_one_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)
    before = sys.stdout, sys.stderr
    with lasting_streams():
        print("nobody reads this")
        with lasting_streams():
            assert isinstance(sys.stdout, LastingStream) and not isinstance(sys.stdout.stream, LastingStream)
    assert (sys.stdout, sys.stderr) == before


def test_other_errors_of_a_stream_are_not_hidden() -> None:
    class Odd(io.StringIO):
        def write(self, text: str) -> int:
            raise RuntimeError("not of the terminal")

    with pytest.raises(RuntimeError):
        LastingStream(Odd()).write("x")


def test_a_stream_of_ascii_shows_every_text(monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    monkeypatch.setattr("sys.stdout", io.TextIOWrapper(raw, encoding="ascii"))
    with lasting_streams():
        print("größer")
        show_table([words("wört"), Column("n")], [["日本", "1"]])
    text = raw.getvalue().decode("ascii")
    assert "gr\\xf6\\xdfer" in text and "+---" in text


# ---------------------------------------------------------------- control codes


@pytest.mark.parametrize("variables", [{"FORCE_COLOR": "1"}, {"TERM": "dumb"}, {"FORCE_COLOR": "3", "TERM": "xterm"}])
def test_there_are_no_control_codes_in_a_pipe(
    variables: dict[str, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    sink = ConsoleSink(10)
    sink.step(RECORD)
    sink.note("a note")
    sink.close(None, None)
    show_table([words("a")], [[terminal.in_style("b", terminal.ALARM)]], "title")
    out = capsys.readouterr().out
    assert "step     3  loss 2.5000" in out and "a note" in out and "\x1b" not in out


def on_terminal(width: int, action: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> str:
    """Do something on a terminal of this width, and return what it shows."""
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    with os.fdopen(inner, "w") as file, monkeypatch.context() as patch:
        patch.setattr("sys.stdout", file)
        patch.setattr("rich.console._STD_STREAMS", (inner,))
        action()
        file.flush()
        os.set_blocking(outer, False)
        shown = b""
        while chunk := _read(outer):
            shown += chunk
    os.close(outer)
    return shown.decode()


def _read(file: int) -> bytes:
    try:
        return os.read(file, 1 << 16)
    except BlockingIOError:
        return b""


@pytest.mark.parametrize("term, live", [("xterm-256color", True), ("dumb", False)])
def test_a_dumb_terminal_has_lines(term: str, live: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", term)

    def act() -> None:
        sink = ConsoleSink(10)
        assert (sink.live is not None) == live
        sink.step(RECORD)
        sink.close(None, None)

    shown = on_terminal(80, act, monkeypatch)
    assert ("\x1b" in shown) == live and (live or "step     3  loss 2.5000" in shown)


# ---------------------------------------------------------------- tables


def test_no_other_file_draws_for_itself() -> None:
    """What could read foreign words as markup, or send codes into a pipe, is made in one place."""
    odd = re.compile(r"\bConsole\(|rich\.markup|rich\.table import|from rich\.console|markup=True|rich\.print")
    for path in GOLF.rglob("*.py"):
        found = odd.findall(path.read_text())
        allowed = {"golf/terminal.py": None, "golf/launcher/board.py": ["rich.table import"]}
        name = str(path.relative_to(GOLF.parent))
        assert (name in allowed and allowed[name] in (None, found)) or not found, (name, found)


@pytest.mark.parametrize("width", WIDTHS)
@pytest.mark.parametrize("where", ["pipe", "terminal"])
def test_numbers_are_shown_whole_or_named_as_left_out(
    width: int, where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    columns = [words("row"), Column("seed"), words("state"), Column("BPB"), Column("bytes", spare=1)]
    columns += [Column(f"more {i}", spare=2) for i in range(4)] + [words("reason")]
    row = ["a-long-label-of-a-row" * 3, "1337", "interrupted", "1.2345", "15,999,999"]
    row += [f"{i}11,111.5" for i in range(4)] + ["because of something " * 9]

    def act() -> None:
        show_table(columns, [row, ["", "", "done", "", "", *[""] * 4, ""]], "a title")

    if where == "pipe":
        monkeypatch.setenv("COLUMNS", str(width))
        act()
        shown = capsys.readouterr().out
    else:
        shown = on_terminal(width, act, monkeypatch)
    lines = [re.sub(r"\x1b\[[\d;]*m", "", line).rstrip("\r") for line in shown.splitlines()]
    assert max(map(len, lines[:-1])) <= width
    assert all(number in shown for number in ("1337", "1.2345"))
    left_out = lines[-1].partition(": ")[2].split(", ") if lines[-1].startswith("no room") else []
    numbers = dict(zip((column.name for column in columns), row, strict=True))
    for column in columns:
        if not column.words:
            assert (numbers[column.name] in shown) != (column.name in left_out), column
    assert left_out == [] if width == 200 else left_out[-1:] == ["more 3"] or width == 100


def everything(tmp_path: Path, name: str) -> None:
    """Print every table of golf that shows words of others, with this one for all of them."""
    run = run_of_line("track=tiny", f"outputs={tmp_path}")
    run.label = name
    entry = made_result(1, 2.0, label=name, quant_seconds=0.1)
    prepared: Any = None
    cell = Cell(run, [f"label={name}", f"model.x={name}"])
    folder = RunDir(tmp_path / "single" / "folder")
    folder.path.mkdir(parents=True)
    task = Task(cell, [], prepared, folder, state="failed", attempts=1, reason=f"why {name}")  # type: ignore[arg-type]
    task.log_tail = f"log {name}"
    tables.show_end([task], folder.path)
    tables.show_cells([cell, cell], [None, None], f"title {name}")
    tables.show_standings([cell], [None], f"title {name}")
    shown = {"average": name, "raw_bpb": 2.1, "legality": [name], "evals": {name: {"val_bpb": 2.0}}, "eval_main": name}
    spent = {"train_tokens": 1, "train_seconds": 1.0, "tokens_per_second": 1.0, "in_time": True, "codes": []}
    result.show({"precision": "fp32", "data": {"corpus": name, "split": "val"}, **entry, **shown, **spent})
    grids.to_terminal(grids.Grid(title=name, header=["row", name], rows=[[name, name]], left=2, under=name))
    header = ["trial", name, "BPB", "state", "step", "reason", "folder"]
    lines = trials.Lines(header, [["0", name, "", name, "", name, name]], Counter())
    trials.show(lines, name)
    watch = board.Board(folder.path, Plan(name, None, (), {}), [task], 1)
    watch.note(f"note {name}")
    terminal.console().print(watch._running())
    terminal.show_facts({name: name})


@pytest.mark.parametrize("name", HOSTILE)
def test_every_table_shows_foreign_words_letter_for_letter(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    everything(tmp_path, name)
    out = capsys.readouterr().out
    everything(tmp_path / "plain", "QQ")
    expected = capsys.readouterr().out.count("QQ")
    assert out.count(name) == expected > 20
