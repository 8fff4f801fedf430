"""Prepared data and checkpoints that somebody damaged or made up: one line, within bounds. (tests/reports: a run's.)"""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from golf import data, heartbeat, submit
from golf.checkpoint import load_tensors, save_tensors
from golf.errors import UserError
from golf.launcher.slurm.queue import ticket_of
from golf.rundir import RunDir
from golf.tokens.prepare import Prepared
from golf.tokens.verify import verify_prepared
from tests.helpers.mutations import change, mutated_file
from tests.helpers.runs import Job
from tests.helpers.tiers import slow


@pytest.fixture
def prepared(toy: Callable[..., Any]) -> Path:
    run = toy()
    return run.data.prepare(Path(run.data_dir), log=lambda line: None).folder


def changed(path: Path, rng: random.Random) -> bytes:
    """Return other contents for a file of JSON or of bytes."""
    if path.suffix == ".json":
        return mutated_file(path, rng)
    whole = bytearray(path.read_bytes())
    for _ in range(rng.choice((1, 5))):
        whole[rng.randrange(min(len(whole), rng.choice((64, len(whole)))))] ^= 1 << rng.randrange(8)
    return rng.choice((bytes(whole), bytes(whole[: rng.randrange(len(whole))]), b"", bytes(whole) + b"\1\2"))


@pytest.mark.parametrize("count", [12, slow(300)])
@pytest.mark.parametrize("name", ["manifest.json", "tokenizer.model", "val_000000.bin"])
def test_changed_data_is_taken_whole_or_refused_in_a_line(
    name: str, count: int, prepared: Path, tmp_path: Path
) -> None:
    rng, copy, refused = random.Random(name), tmp_path / "copy", 0
    for _ in range(count):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(prepared, copy)
        (copy / name).write_bytes(changed(prepared / name, rng))
        try:
            found = Prepared.load(copy)
            found.verify()
            verify_prepared(found, log=lambda line: None)
        except UserError as error:
            assert len(str(error).splitlines()) == 1
            refused += 1
    assert refused > count / 2


@pytest.mark.parametrize(
    "place, value",
    [
        (("vocab_size",), "384"), (("vocab_size",), 2**40), (("bos_id",), None), (("corpus",), [1]),
        (("splits", "val", "tokens"), "x"), (("splits", "val", "bytes"), -1), (("splits", "val", "shards"), [3]),
        (("splits",), []), (("settings",), 3),
    ],
)  # fmt: skip
def test_a_manifest_of_another_shape_is_refused(place: tuple[str, ...], value: Any, prepared: Path, tmp_path: Path,
                                                capsys: pytest.CaptureFixture) -> None:  # fmt: skip
    copy = shutil.copytree(prepared, tmp_path / "data" / "prepared" / "copy")
    node = json.loads((copy / "manifest.json").read_text())
    inner = node
    for key in place[:-1]:
        inner = inner[key]
    inner[place[-1]] = value
    (copy / "manifest.json").write_text(json.dumps(node))
    assert data.main(["check", str(copy)]) == 2
    assert "manifest.json: damaged (ValueError: is of another shape)" in capsys.readouterr().err


@pytest.mark.parametrize("count", [6, slow(300)])
def test_a_changed_checkpoint_is_resumed_or_refused_in_a_line(count: int, job: Callable[..., Job]) -> None:
    """Its checksum is right, as an adversary would make it."""
    one = job("budget.max_steps=4", "checkpoint.every_steps=2", "eval.every_steps=null")
    one.here()
    for path in (one.folder.result, one.folder.artifact):
        path.unlink()
    tensors, meta = load_tensors(one.folder.checkpoint)
    whole, rng, refused = one.folder.checkpoint.read_bytes(), random.Random(3), 0
    for index in range(count):
        odd, said = dict(tensors), json.loads(json.dumps(meta))
        if index % 2:
            change(said, rng)
        else:
            name = rng.choice(sorted(odd))
            odd[name] = rng.choice((odd[name].flatten()[:1], odd[name].double().flatten(), torch.zeros(0)))
        save_tensors(one.folder.checkpoint, odd, said)
        printed = one.here(code=None)
        refused += not one.folder.result.exists()
        assert "Traceback" not in printed and (one.folder.result.exists() or "checkpoint" in printed), printed
        one.folder.result.unlink(missing_ok=True)
    assert refused
    one.folder.checkpoint.write_bytes(whole)
    assert "resumed at step 4" in one.here()


@pytest.mark.parametrize("count", [20, slow(300)])
def test_changed_archives_are_refused_in_a_line(
    count: int, finished: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    assert submit.main([f"archive={finished()}", f"into={tmp_path / 'kept'}"]) == 0
    (whole,) = (tmp_path / "kept").iterdir()
    copy, rng, data = tmp_path / whole.name, random.Random(5), whole.read_bytes()
    shutil.copyfile(whole, copy)
    assert submit.main([f"verify={copy}"]) == 0
    for _ in range(count):
        cut, other = rng.randrange(len(data)), rng.randrange(len(data))
        flipped = bytearray(data)
        flipped[min(cut, rng.choice((64, len(data) - 1)))] ^= 1 << rng.randrange(8)
        copy.write_bytes(rng.choice((data[:cut], data[:cut] + data[other:], bytes(flipped), data + data[:64])))
        capsys.readouterr()
        code = submit.main([f"verify={copy}"])
        said = capsys.readouterr()
        assert code in (1, 2) and len(said.err.strip().splitlines()) == 1, said


@pytest.mark.parametrize("count", [20, slow(300)])
@pytest.mark.parametrize("name, node, read", [
    ("job.json", {"name": "x", "index": 3, "id": "7"}, ticket_of),
    ("heartbeat.json", {"pid": 7, "time": 5.0, "ahead": 0.0}, lambda run: heartbeat.is_silent(run, {"pid": 7})),
])  # fmt: skip
def test_changed_notes_of_a_run_are_read_or_none(
    name: str, node: dict[str, Any], read: Callable[[RunDir], object], count: int, tmp_path: Path
) -> None:
    whole, rng = tmp_path / "whole.json", random.Random(name)
    whole.write_text(json.dumps(node))
    for _ in range(count):
        (tmp_path / name).write_bytes(mutated_file(whole, rng))
        read(RunDir(tmp_path))
