"""One odd folder is a marked row or a line: files that somebody damaged, or made up, in a sweep, a search, a run."""

import json
import os
import random
import resource
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from golf import audit, evaluate, quantize, report, submit
from golf.errors import UserError
from golf.launcher.standing import read_standing
from golf.launcher.tables import progress_of
from golf.reports.load import load
from golf.rundir import RunDir
from golf.search import table
from golf.search.book import Book, mend
from golf.search.space import Search, search_of
from tests.helpers.forks import in_a_fork
from tests.helpers.mutations import mutated_file
from tests.helpers.tiers import slow
from tests.reports.helpers import sweep

MORE_BYTES = 2**30  # that reading odd files may take beside what the process has
ROWS: dict[str, dict[int, float | str]] = {"base": {1: 2.0, 2: 2.01}, "odd": {1: 1.9, 2: 1.92}, "bad": {1: "broke"}}

# file -> changes: of a value at a dotted place; GONE takes it out
GONE = object()
CONFIG: dict[str, list[Any]] = {
    "run": [3, None, GONE],
    "run.label": [GONE, 1, [1]],
    "run.seed": [GONE, "x", None, True],
    "run.log": [3, {"project": "x"}, {"project": [1], "entity": {}}],
    "identity": [[1], GONE],
    "identity.model._target_": [3],
    "identity.budget.max_seconds": ["x", [1]],
    "config_hash": [3, None],
}
RESULT: dict[str, list[Any]] = {
    "schema": [2, GONE],
    "evals": [None, GONE, 3, {}],
    "evals.plain": [3, {}],
    "evals.plain.bytes": [0, "x"],
    "eval_main": [["plain"], "other"],
    "data": [3, {"corpus": [1], "split": {}}],
    "environment": [{"git_commit": [1]}, 3],
    "pre_quant_bpb": ["x"],
    "val_bpb": [1e308, True, float("nan")],
    "cap_bytes": [0, -1],
    "total_bytes": [-1, 10**400],
    "steps": [10**30, 1.5],
    "codes": [[1, 2], 3],
    "attention": [3],
    "track": [[1], GONE],
    "deterministic": [GONE, "x"],
}
SWEEP: dict[str, list[Any]] = {
    "seeds": [3, ["a"], [[1]], GONE],
    "rows": [3, ["base"], {"base": 3}],
    "purpose": [3],
    "control": [3, ["base"]],
}


def put(path: Path, place: str, value: Any) -> None:
    """Change one value of a JSON file."""
    node = json.loads(path.read_text())
    inner = node
    *outer, last = place.split(".")
    for key in outer:
        inner = inner[key]
    if value is GONE:
        del inner[last]
    else:
        inner[last] = value
    path.write_text(json.dumps(node))


def odd_run(folder: Path) -> Path:
    return next(folder.glob("odd-s1-*"))


def reported(folder: Path, capsys: pytest.CaptureFixture) -> str:
    assert report.main([str(folder)]) == 0
    return capsys.readouterr().out


@pytest.mark.usefixtures("sketches")
@pytest.mark.parametrize("place", [*CONFIG, *(f"result {place}" for place in RESULT)])
def test_an_odd_run_takes_no_other_row_down(place: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    name, _, key = place.rpartition(" ")
    file, values = ("result.json", RESULT[key]) if name else ("config.json", CONFIG[key])
    folder = sweep(tmp_path / "s", ROWS, "base")
    whole = (odd_run(folder) / file).read_text()
    for value in values:
        (odd_run(folder) / file).write_text(whole)
        put(odd_run(folder) / file, key, value)
        said = reported(folder, capsys)
        assert "base" in said and "2.0050" in said, "the other row stands"
        if name:
            (odd,) = [run for run in load(folder).rows["odd"].runs if run.seed == 1]
            assert odd.result is None and odd.state != "done", (place, value)
        read_standing(RunDir(odd_run(folder)))


@pytest.mark.usefixtures("sketches")
@pytest.mark.parametrize("place", SWEEP)
def test_an_odd_sweep_file_is_said_and_the_rows_stand(
    place: str, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    folder = sweep(tmp_path / "s", ROWS, "base", seeds=(1, 2))
    whole = (folder / "sweep.json").read_text()
    for value in SWEEP[place]:
        (folder / "sweep.json").write_text(whole)
        put(folder / "sweep.json", place, value)
        said = reported(folder, capsys)
        assert "2.0050" in said and (value is GONE or "Cannot be read, and counts nowhere: sweep.json." in said)


@pytest.mark.usefixtures("sketches")
def test_odd_files_beside_a_result_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder = sweep(tmp_path / "s", ROWS, "base")
    run = odd_run(folder)
    (run / "trace").mkdir()
    for lines in ('3\n[]\n{"x": 1}\n', '{"tokens": "x", "bytes": 1, "bpb": [], "learning_loss": 1}\n', "[" * 9999):
        (run / "trace" / "plain.jsonl").write_text(lines)
        reported(folder, capsys)
    for line in (
        '{"step": 1e400, "train_seconds": 1, "loss": 1}',
        '{"step": 1, "train_seconds": 1e308, "loss": 1e308}',
    ):
        (run / "metrics.jsonl").write_text(f"{line}\n" * 5)
        reported(folder, capsys)
    for make in (os.mkdir, os.mkfifo, lambda path: os.symlink(path, path)):
        shutil.rmtree(run)
        run.mkdir()
        make(run / "config.json")
        reported(folder, capsys)


@pytest.mark.parametrize("fields", [
    {"state": ["x"]}, {"pid": "y"}, {"pid": 10**30}, {"pid": -1}, {"message": 3}, {"step": "x"}, {"host": 3},
])  # fmt: skip
def test_an_odd_status_is_none(fields: dict[str, Any], tmp_path: Path, toy: Callable[..., Any]) -> None:
    folder = RunDir(tmp_path)
    folder.status.write_text(json.dumps({"state": "running", "pid": 1} | fields))
    standing = read_standing(folder)
    assert standing.state == "waiting" and progress_of(toy(), standing)


# ---------------------------------------------------------------- searches


def a_search() -> Search:
    return search_of({"trials": 9, "seed": 1, "startup": 3, "space": {"a.lr": {"low": 0.001, "high": 10, "log": True}}})


def journal(folder: Path) -> Path:
    """A journal with a trial of each state."""
    file = folder / "search.journal"
    book = Book(file, a_search())
    book.define("abc", (5, 6))
    for _ in range(4):
        book.ask()
    book.report(0, [(2, 5.0), (4, 3.0)])
    book.done(0, {"val_bpb": 2.0, "steps": 8, "total_bytes": 9, "cap_bytes": 10, "legal": None})
    book.report(1, [(2, 9.0)])
    book.pruned(1, "far behind")
    book.refused(3, "does not fit")
    return file


def go_on(file: Path) -> None:
    """Do with a book what a search that goes on does."""
    mend(file)
    book = Book(file, a_search())
    table.lines_of(book, file.parent, "tune")
    book.define("abc", (5, 6))
    assert book.registered == (5, 6) or all(type(seed) is int for seed in book.registered)
    book.best(), book.open()
    trial = book.ask()
    book.settle(trial)
    book.behind(trial.number)


@pytest.mark.parametrize("data", [b"\xff\xfe\n", b"3\n", b"[]\n", b'{"op_code": 99}\n', b"[" * 99_999 + b"\n", b"{}\n"])
def test_a_damaged_journal_is_one_line(data: bytes, tmp_path: Path) -> None:
    file = journal(tmp_path)
    file.write_bytes(file.read_bytes() + data)
    with pytest.raises(UserError, match=r"search\.journal: is damaged \(\w+\); move it away"):
        go_on(file)


@pytest.mark.parametrize("count", [20, slow(300)])
def test_changed_journals_go_on_or_are_one_line(count: int, tmp_path: Path) -> None:
    file, rng = journal(tmp_path), random.Random(1)
    whole, refused = file.read_bytes(), 0
    lines = tmp_path / "search.jsonl"
    lines.write_bytes(whole)
    for _ in range(count):
        file.write_bytes(mutated_file(lines, rng))
        try:
            go_on(file)
        except UserError:
            refused += 1
    assert refused > count / 4


# ---------------------------------------------------------------- all files, all doors

OF_A_RUN = (
    "config.json",
    "result.json",
    "status.json",
    "trained.json",
    "metrics.jsonl",
    "command.txt",
    "attempts.jsonl",
)
DOORS: dict[str, Callable[[Path], object]] = {
    "report": lambda run: report.main([str(run.parent)]),
    "standing": lambda run: read_standing(RunDir(run)),
    "submit": lambda run: submit.main([f"run={run}", "name=x", "track=non_record", f"into={run.parent}/into"]),
    "audit": lambda run: audit.main([f"run={run}"]),
    "quantize": lambda run: quantize.main([f"run={run}", "quant=int8"]),
    "evaluate": lambda run: evaluate.main([f"run={run}", "eval=plain"]),
}
CHEAP = ("report", "standing")


def go_through(run: Path, name: str, count: int, doors: tuple[str, ...]) -> int:
    """Change a file of a run so many times, each in a copy, and go through doors; memory is limited."""
    rng, copies = random.Random(name), run.parent.parent / "changed"
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (now + MORE_BYTES, now + MORE_BYTES))
    for index in range(count):
        shutil.rmtree(copies, ignore_errors=True)
        copy = shutil.copytree(run, copies / run.name)
        (copy / name).write_bytes(mutated_file(run / name, rng))
        DOORS[doors[index % len(doors)]](copy)
    return count


@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("sketches")
@pytest.mark.parametrize("name", OF_A_RUN)
@pytest.mark.parametrize(("count", "doors"), [(4, CHEAP), slow(300, tuple(DOORS))])
def test_changed_files_end_in_a_line(
    name: str, count: int, doors: tuple[str, ...], finished_copy: Callable[..., Path], capfd: pytest.CaptureFixture
) -> None:
    """No traceback, no hang, bounded memory, whatever stands in a file of a run."""
    run = finished_copy()
    assert in_a_fork(lambda: go_through(run, name, count, doors)) == count
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.timeout(3600)
@pytest.mark.usefixtures("sketches")
@pytest.mark.parametrize("count", [6, slow(300)])
def test_changed_sweep_files_are_reported(count: int, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    folder, rng = sweep(tmp_path / "s", ROWS, "base", seeds=(1, 2)), random.Random(2)
    whole = shutil.copy(folder / "sweep.json", tmp_path / "whole.json")
    for _ in range(count):
        (folder / "sweep.json").write_bytes(mutated_file(Path(whole), rng))
        assert "2.0050" in reported(folder, capsys)
