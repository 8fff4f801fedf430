"""What a result depends on is hashed when it is made and held against its hash when it is used again."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from golf import audit, evaluate, hashes, quantize, submit, worker
from golf.checkpoint import load_tensors, save_tensors
from golf.errors import RunError, UserError
from golf.tokens.prepare import Prepared
from golf.tokens.shards import HEADER_BYTES
from tests.helpers.runs import Job

Copy = Callable[..., Path]

DOORS: dict[str, Callable[[Path], int]] = {
    "evaluate": lambda run: evaluate.main([f"run={run}", "eval=sliding"]),
    "quantize": lambda run: quantize.main([f"run={run}", "quant=int8"]),
    "audit": lambda run: audit.main([f"run={run}"]),
    "submit": lambda run: submit.main([f"run={run}", "name=x", "track=record"]),
}


@pytest.fixture
def own_data(finished_copy: Copy, tmp_path: Path) -> Callable[[], tuple[Path, Prepared]]:
    """A finished run and its data, both copies that a test may change."""

    def make() -> tuple[Path, Prepared]:
        run = finished_copy()
        config = json.loads((run / "config.json").read_text())
        there = Path(config["prepared"]["folder"])
        config["prepared"]["folder"] = str(shutil.copytree(there, tmp_path / "data" / there.name))
        (run / "config.json").write_text(json.dumps(config))
        return run, Prepared.load(Path(config["prepared"]["folder"]))

    return make


def overwritten(path: Path) -> None:
    """Another text of equal size, at the same time: only its bytes tell."""
    state, blob = path.stat(), bytearray(path.read_bytes())
    blob[HEADER_BYTES:] = blob[HEADER_BYTES:][::-1]
    blob[HEADER_BYTES:] = np.frombuffer(bytes(blob[HEADER_BYTES:]), dtype="<u2").byteswap().tobytes()
    path.write_bytes(bytes(blob))
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize("split", ["val", "train"])
def test_text_that_was_exchanged_is_noticed_by_every_door(
    door: str, split: str, own_data: Callable, capsys: pytest.CaptureFixture
) -> None:
    run, prepared = own_data()
    overwritten(prepared.splits[split].shards[0])
    assert DOORS[door](run) == 2
    said = capsys.readouterr().err
    assert f"{split}_000000.bin: its bytes changed since it was prepared" in said and len(said.splitlines()) == 1


@pytest.mark.parametrize("door", DOORS)
def test_other_data_at_the_old_place_is_noticed_by_every_door(
    door: str, own_data: Callable, capsys: pytest.CaptureFixture
) -> None:
    run, _ = own_data()
    config = json.loads((run / "config.json").read_text())
    config["prepared"]["digest"] = "0" * 64
    (run / "config.json").write_text(json.dumps(config))
    assert DOORS[door](run) == 2
    assert "its fingerprint names" in capsys.readouterr().err


def test_a_worker_holds_its_text_against_the_hashes(own_data: Callable, capsys: pytest.CaptureFixture) -> None:
    run, prepared = own_data()
    (run / "result.json").unlink()
    overwritten(prepared.splits["train"].shards[0])
    assert worker.main(str(run)) == 2 and "its bytes changed" in capsys.readouterr().err


def test_training_begins_on_the_text_that_its_name_says(
    toy: Callable, toy_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    data = shutil.copytree(toy_folder / "data", tmp_path / "data")
    run = toy(f"data_dir={data}")
    prepared = run.data.prepare(data, log=lambda line: None)
    overwritten(prepared.splits["val"].shards[0])
    for again in (lambda: run.data.prepare(data, log=lambda line: None), lambda: run.data.find(data)):
        with pytest.raises(UserError, match="its bytes changed since it was prepared"):
            again()


@pytest.mark.parametrize("door", ["evaluate", "audit", "submit"])
def test_another_artifact_than_the_scored_one_is_noticed(
    door: str, finished_copy: Copy, capsys: pytest.CaptureFixture
) -> None:
    run, other = finished_copy(), finished_copy("quant=int8")
    shutil.copy(other / "artifact.golf", run / "artifact.golf")
    assert DOORS[door](run) == 2
    assert "artifact.golf is not the file that was scored" in capsys.readouterr().err


@pytest.mark.parametrize("door", DOORS)
def test_a_configuration_that_did_not_run_is_noticed(
    door: str, finished_copy: Copy, capsys: pytest.CaptureFixture
) -> None:
    run = finished_copy()
    config = json.loads((run / "config.json").read_text())
    config["run"]["optimizer"]["groups"]["matrices"]["lr"] *= 2
    (run / "config.json").write_text(json.dumps(config))
    assert DOORS[door](run) == 2
    assert "not the configuration that its fingerprint names" in capsys.readouterr().err


def test_weights_of_another_run_are_noticed(finished_copy: Copy, capsys: pytest.CaptureFixture) -> None:
    run, other = finished_copy(), finished_copy("seed=2")
    shutil.copy(other / "weights.safetensors", run)
    assert quantize.main([f"run={run}", "quant=int8"]) == 2
    assert "weights.safetensors are another run's" in capsys.readouterr().err


def test_every_flipped_bit_of_kept_tensors_is_noticed(tmp_path: Path, finished_copy: Copy) -> None:
    kept = finished_copy() / "weights.safetensors"
    blob = kept.read_bytes()
    places = np.random.default_rng(0).integers(0, len(blob), 60)
    for place in [8, 40, *places.tolist()]:
        changed = bytearray(blob)
        changed[place] ^= 1 << int(place) % 8
        (tmp_path / "x.safetensors").write_bytes(bytes(changed))
        with pytest.raises(RunError, match="cannot be read"):
            load_tensors(tmp_path / "x.safetensors")


def test_another_runs_checkpoint_is_not_gone_on_from(job: Callable[..., Job], capsys: pytest.CaptureFixture) -> None:
    one, two = job("checkpoint.every_steps=2", outputs="one"), job("seed=2", "checkpoint.every_steps=2", outputs="two")
    one.here()
    two.folder.checkpoint.parent.mkdir(exist_ok=True)
    shutil.copy(one.folder.checkpoint, two.folder.checkpoint)
    assert "is another run's checkpoint; delete it" in two.here(code=1)
    tensors, meta = load_tensors(one.folder.checkpoint)
    save_tensors(two.folder.checkpoint, tensors, {key: value for key, value in meta.items() if key != "owner"})
    two.here()  # one of before checkpoints had owners is taken


def test_hashes_are_known_while_a_file_is_untouched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "LARGE", 4)
    monkeypatch.setattr(hashes, "SETTLED_SECONDS", -1.0)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file, hashed = tmp_path / "large", []
    real = hashes.file_sha256
    monkeypatch.setattr(hashes, "file_sha256", lambda path: hashed.append(path) or real(path))
    file.write_bytes(b"12345")
    first = hashes.sha256_of(file)
    assert hashes.sha256_of(file) == first == real(file) and len(hashed) == 1
    state = file.stat()
    file.write_bytes(b"54321")
    os.utime(file, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert hashes.sha256_of(file) == real(file) != first and len(hashed) == 2
    for damage in ("[", "[1]", '{"' + str(file) + '": 5}'):
        (tmp_path / "cache" / "golf" / "sha256.json").write_text(damage)
        assert hashes.sha256_of(file) == real(file)
    shutil.rmtree(tmp_path / "cache")
    (tmp_path / "cache").write_text("no folder")
    assert hashes.sha256_of(file) == real(file), "nothing can be kept, and nothing is lost"


def test_what_has_just_changed_is_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may change again within one tick of the file system's clock."""
    monkeypatch.setattr(hashes, "LARGE", 4)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "large"
    file.write_bytes(b"12345")
    hashes.sha256_of(file)
    assert not (tmp_path / "cache").exists()
