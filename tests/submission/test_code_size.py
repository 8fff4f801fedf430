"""The sizes of a run's code are measured once, and anew whenever they could be others."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import golf
from golf.config import Run
from golf.submission import code_size as sizes
from golf.submission.code_size import FILE, CodeSize, code_size
from golf.submission.pack import Packed
from tests.helpers.runs import composed

TOLD = CodeSize(packed=20, minified=50, source=100)


class Measured:
    """Counts how often code is packed; each file that it gives is a byte longer than the one before."""

    def __init__(self) -> None:
        self.times = 0

    def __call__(self, run: Run) -> Packed:
        self.times += 1
        return Packed(b"x" * (19 + self.times), "brotli", 100, 50, {})


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Measured:
    measured = Measured()
    monkeypatch.setattr(sizes, "code_of", measured)
    return measured


@pytest.fixture(scope="module")
def run() -> Run:
    return composed("track=tiny", "eval=sliding")


def test_a_size_is_measured_once(run: Run, measured: Measured, tmp_path: Path) -> None:
    """Seeds, and what a script does not hold, share it; it is written down, and read from there alone."""
    assert code_size(run, tmp_path) == TOLD == code_size(replace(run, seed=5, outputs="elsewhere"), tmp_path)
    assert measured.times == 1
    node = json.loads((tmp_path / FILE).read_text())
    (recipe,) = node["sizes"]
    node["sizes"][recipe]["packed"] = 33
    (tmp_path / FILE).write_text(json.dumps(node))
    assert code_size(run, tmp_path).packed == 33 and measured.times == 1
    assert [path.name for path in tmp_path.iterdir()] == [FILE]


@pytest.mark.parametrize(
    "change",
    [
        lambda run: replace(run, label="other"),
        lambda run: replace(run, codec=run.quant.codec),
        lambda run: replace(run, model=replace(run.model, layers=run.model.layers + 1)),
        lambda run: replace(run, eval=replace(run.eval, evaluators=dict(reversed(run.eval.evaluators.items())))),
    ],
    ids=["title", "part", "number", "order"],
)
def test_another_script_has_a_size_of_its_own(
    change: Callable[[Run], Run], run: Run, measured: Measured, tmp_path: Path
) -> None:
    assert code_size(run, tmp_path) == TOLD
    assert code_size(change(run), tmp_path).packed == 21
    assert code_size(run, tmp_path) == TOLD and measured.times == 2


@pytest.mark.parametrize("place", ["models/lm.py", "new.py", "moved.py"])
def test_a_change_of_a_source_file_measures_anew(
    place: str, run: Run, measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file that is changed, is new, or has moved; what was known of the old source is dropped."""
    assert Path(golf.__file__).parent == sizes.SOURCES
    copy = shutil.copytree(sizes.SOURCES, tmp_path / "golf", ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(sizes, "SOURCES", copy)
    assert code_size(run, tmp_path) == TOLD == code_size(run, tmp_path)
    if place == "moved.py":
        (copy / "models" / "lm.py").rename(copy / place)
    else:
        with open(copy / place, "a") as file:
            file.write("# one line more\n")
    assert code_size(run, tmp_path).packed == 21 and code_size(run, tmp_path).packed == 21
    assert measured.times == 2 and len(json.loads((tmp_path / FILE).read_text())["sizes"]) == 1


def test_another_packer_measures_anew(
    run: Run, measured: Measured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes, version in enumerate(("1", "2"), 1):
        monkeypatch.setattr(sizes, "version", lambda name, version=version: version)
        code_size(run, tmp_path)
        assert measured.times == changes


BROKEN: dict[str, Callable[[Any], Any]] = {
    "another source": lambda node: node | {"sources": "0" * 64},
    "no source": lambda node: {"sizes": node["sizes"]},
    "no sizes": lambda node: node | {"sizes": []},
    "a list": lambda node: [node],
    "a number that is none": lambda node: edited(node, packed=True),
    "a negative number": lambda node: edited(node, minified=-1),
    "a number too many": lambda node: edited(node, other=1),
    "text": lambda node: edited(node, source="100"),
    "no entry": lambda node: node | {"sizes": dict.fromkeys(node["sizes"])},
}


def edited(node: dict[str, Any], **changes: Any) -> dict[str, Any]:
    return node | {"sizes": {recipe: entry | changes for recipe, entry in node["sizes"].items()}}


@pytest.mark.parametrize("what", [*BROKEN, "half a file", "no text"])
def test_a_malformed_file_is_not_believed(what: str, run: Run, measured: Measured, tmp_path: Path) -> None:
    code_size(run, tmp_path)
    path = tmp_path / FILE
    if what in BROKEN:
        path.write_text(json.dumps(BROKEN[what](json.loads(path.read_text()))))
    else:
        path.write_bytes(path.read_bytes()[:-9] if what == "half a file" else b"\xff\xfe")
    assert code_size(run, tmp_path).packed == 21
    assert code_size(run, tmp_path).packed == 21 and measured.times == 2, "and is written anew"


def test_a_folder_that_can_not_be_written_keeps_no_size(run: Run, measured: Measured, tmp_path: Path) -> None:
    assert code_size(run, tmp_path / "absent") == TOLD and not (tmp_path / "absent").exists()
