"""Every door in every environment: the exit code, one clear line, and never a traceback.

A sweep trains one cell of two steps; the other doors look at a toy run that is finished.
"""

import fcntl
import os
import pty
import re
import shutil
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from golf.code_record import ROOT
from golf.command_line import quoted
from tests.helpers.runs import toy_overrides

NOBODY = "import pwd\n\n\ndef getpwuid(uid):\n    raise KeyError(uid)\n\n\npwd.getpwuid = getpwuid\n"
READ_ONLY = 'mount --bind "$0" "$0" && mount -o remount,ro,bind "$0" && exec "$@"'
CONTROL = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
WIDTH = 80


@dataclass(frozen=True)
class Environment:
    """variables: None takes one away, {place} is the folder of the test; shows: where a door prints to; folder: where
    the run and its data are; prefix: what the command is started by, {data} being the folder of the data."""

    variables: dict[str, str | None] = field(default_factory=dict)
    shows: str = "pipe"
    folder: str = "plain"
    prefix: tuple[str, ...] = ()


ENVIRONMENTS = {
    "no tty": Environment(shows="nothing to read from"),
    "pipe closed": Environment(shows="closed pipe"),
    "TERM=dumb": Environment({"TERM": "dumb"}, "terminal"),
    "FORCE_COLOR": Environment({"FORCE_COLOR": "1"}),
    "80 columns": Environment({"TERM": "xterm-256color"}, "terminal"),
    "LANG=C": Environment({"LC_ALL": "C", "LANG": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}, folder="größe"),
    "ascii stdout": Environment({"PYTHONIOENCODING": "ascii"}, folder="größe"),
    "no HOME": Environment({"HOME": None, "XDG_CACHE_HOME": None, "PYTHONPATH": "{place}/nobody"}),
    "read-only data": Environment(prefix=("unshare", "--mount", "sh", "-c", READ_ONLY, "{data}")),
    "other owner": Environment({"GIT_TEST_ASSUME_DIFFERENT_OWNER": "1"}),
    "odd paths": Environment(folder="an odd [name] (1), #2 & {more}"),
    "no git": Environment({"PATH": "{place}/empty"}),
}


@dataclass(frozen=True)
class Place:
    """folder: of everything; run: a finished toy run in it; overrides: of a run of two steps on the data in it."""

    folder: Path
    run: Path
    data: Path
    overrides: list[str]


@dataclass(frozen=True)
class Case:
    """A door's script and arguments, what the clear line matches, and the exit code."""

    arguments: Callable[[Place], list[str]]
    line: str
    code: int = 0


def status(place: Place) -> list[str]:
    """The standing of the finished run, as a sweep of one."""
    label = place.run.name.split("-s1337-")[0]
    whole = [override for override in place.overrides if not override.startswith("budget.max_steps=")]
    return ["train.py", "-m", *whole, "budget.max_steps=6", f"label={label}", "sweep_label=base", "launch.status=true"]


def submit(place: Place) -> list[str]:
    said = ["track=non_record", "name=x", "author=me", "force=true"]
    return ["submit.py", f"run={place.run}", f"into={place.folder / 'into'}", *said]


DOORS = {
    "lone run": Case(
        lambda place: ["train.py", *place.overrides, "label=lone"], r"artifact, read back .*plain .*\d\.\d{4}"
    ),
    "lone run, refused": Case(
        lambda place: ["train.py", *place.overrides, "model.dimm=3"],
        r"^golf: model.dimm=3: there is no key model.dimm; .*did you mean model.dim\?$",
        2,
    ),
    "sweep": Case(lambda place: ["train.py", "-m", *place.overrides, "sweep_label=two", "seed=1"], r"^1 done$"),
    "status": Case(status, r"^1 done$"),
    "report": Case(lambda place: ["report.py", str(place.run.parent)], r"^written: .*report\.html$"),
    "audit": Case(lambda place: ["audit.py", f"run={place.run}"], r"^legal as far as can be told, "),
    "submit": Case(submit, r"track_non_record_16mb/.*_x$"),
}


PAIRS = [(environment, door) for environment in ENVIRONMENTS for door in DOORS]  # one list: the tier slow has them all


@pytest.fixture
def place(pair: tuple[str, str], toy_folder: Path, finished_copy: Callable[..., Path], tmp_path: Path) -> Place:
    """A folder, called as the environment wants it, with data and a finished run."""
    folder = tmp_path / ENVIRONMENTS[pair[0]].folder
    (tmp_path / "nobody").mkdir()
    (tmp_path / "nobody" / "sitecustomize.py").write_text(NOBODY)
    (tmp_path / "empty").mkdir()
    shutil.copytree(toy_folder / "data", folder / "data" / "data")
    (text,) = toy_folder.glob("toy-*.jsonl")
    shutil.copy(text, folder / "data")
    run = finished_copy()
    shutil.copytree(run.parent, folder / "outputs" / "single")
    data = folder / "data"
    where = {"data.path": data / text.name, "data_dir": data / "data", "outputs": folder / "outputs"}
    extra = [quoted(key, str(path)) for key, path in where.items()]
    overrides = toy_overrides(toy_folder, [*extra, "budget.max_steps=2", "launch.threads=1"])
    return Place(folder, folder / "outputs" / "single" / run.name, data, overrides)


def said_by(command: list[str], shows: str, variables: dict[str, str], cwd: Path) -> tuple[int, str]:
    """Run a command in an environment; return its exit code and what was to be read of it."""
    started = {"env": variables, "cwd": cwd, "start_new_session": True}
    if shows == "closed pipe":
        reader, writer = os.pipe()
        os.close(reader)
        code = subprocess.call(command, stdout=writer, stderr=writer, **started)
        os.close(writer)
        return code, ""
    if shows != "terminal":
        stdin = subprocess.DEVNULL if shows == "nothing to read from" else None
        done = subprocess.run(command, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, **started)
        return done.returncode, done.stdout.decode(errors="replace")
    outer, inner = pty.openpty()
    fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("HHHH", 24, WIDTH, 0, 0))
    shown: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(outer, 1 << 16):
                shown.append(chunk)
        except OSError:  # the last who could write is gone
            pass

    child = subprocess.Popen(command, stdin=inner, stdout=inner, stderr=inner, **started)
    os.close(inner)
    thread = threading.Thread(target=read)
    thread.start()
    code = child.wait()
    thread.join()
    os.close(outer)
    return code, b"".join(shown).decode(errors="replace").replace("\r\n", "\n")


def variables_of(environment: Environment, place: Path) -> dict[str, str]:
    """The variables of this process, with those of an environment."""
    kept = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "PYTEST_CURRENT_TEST")}
    changed = {name: value and value.format(place=place) for name, value in environment.variables.items()}
    return {name: value for name, value in {**kept, **changed}.items() if value is not None}


@pytest.fixture
def prefix(pair: tuple[str, str], place: Place) -> list[str]:
    """What the command is started by; the test is skipped where this machine does not let it be."""
    words = [word.replace("{data}", str(place.data)) for word in ENVIRONMENTS[pair[0]].prefix]
    if words and subprocess.run([*words, "true"], capture_output=True).returncode != 0:
        pytest.skip("this machine lets nobody mount a folder read-only")
    return words


@pytest.mark.slow
@pytest.mark.parametrize("pair", PAIRS, ids=[" / ".join(pair) for pair in PAIRS])
def test_every_door_in_every_environment(
    pair: tuple[str, str], place: Place, prefix: list[str], tmp_path: Path
) -> None:
    environment, door = pair
    around, case = ENVIRONMENTS[environment], DOORS[door]
    script, *arguments = case.arguments(place)
    if door == "status":
        (place.folder / "outputs" / "single").rename(place.folder / "outputs" / "base")
    command = [*prefix, sys.executable, str(ROOT / "golf" / script), *arguments]
    here = tmp_path / "here"
    here.mkdir()
    code, said = said_by(command, around.shows, variables_of(around, tmp_path), here)
    lines = [line.rstrip() for line in CONTROL.sub("", said).splitlines()]
    assert code == case.code, said
    assert "Traceback" not in said and "Exception ignored" not in said, said
    assert around.shows == "closed pipe" or any(re.search(case.line, line) for line in lines), said
    assert case.code == 0 or around.shows == "closed pipe" or len(lines) == 1 or around.shows == "terminal", said
    assert not list(here.iterdir()), "nothing is left where the command was given"
    if door in ("lone run", "sweep"):
        group = place.folder / "outputs" / ("two" if door == "sweep" else "single")
        assert [path for path in group.glob("*/result.json") if path.parent.name != place.run.name]
