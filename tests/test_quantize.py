"""golf/quantize.py: other artifacts of a finished run, and what an artifact holds."""

import json
import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from golf import evaluate, quantize
from golf.compose import compose
from golf.config import Run, fingerprint, identity
from golf.errors import ExportError, RunError
from golf.requantise import Source, open_source
from golf.rundir import RunDir
from tests.helpers.runs import Job, toy_overrides


@pytest.fixture
def made(finished_copy: Callable[..., Path]) -> Path:
    """The folder of a finished toy run, GPTQ and all."""
    return finished_copy("quant=int6_gptq", "quant.rounding.damping=0.05")


def results_beside(made: Path) -> dict[str, dict]:
    """label -> result of every re-quantised cell."""
    found = made.parents[1].glob("*/*/result.json")
    read = [json.loads(path.read_text()) | {"folder": path.parent} for path in found if path.parent != made]
    return {result["label"].removeprefix("baseline-int6_gptq-"): result for result in read}


def test_the_same_settings_make_the_same_bytes(made: Path, capsys: pytest.CaptureFixture) -> None:
    assert quantize.main([f"run={made}", "quant.rounding.block=16"]) == 0
    again = results_beside(made)["quant.rounding.block_16"]
    first = json.loads((made / "result.json").read_text())
    assert (again["folder"] / "artifact.golf").read_bytes() == (made / "artifact.golf").read_bytes()
    assert again["parent"] == first["fingerprint"] and again["fingerprint"] != first["fingerprint"]
    assert set(first) <= set(again)
    for key in ("val_bpb", "raw_bpb", "pre_quant_bpb", "quant_gap_bpb", "steps", "cap_bytes", "params"):
        assert again[key] == first[key], key
    assert again["phases"]["calibrate"]["reads"] == ["train"]
    assert again["counted_seconds"] > first["train_seconds"]
    assert "quant gap" in capsys.readouterr().out


def test_another_quantiser_is_the_run_that_would_have_trained_with_it(made: Path, toy_folder: Path) -> None:
    assert quantize.main([f"run={made}", "quant=int8", "codec=entropy"]) == 0
    found = results_beside(made)["int8-entropy"]
    trained = compose(toy_overrides(toy_folder, ["quant=int8", "codec=entropy"]))
    source = open_source(made)
    assert found["fingerprint"] == fingerprint(trained, source.prepared.digest)
    assert found["artifact_bytes"] == (found["folder"] / "artifact.golf").stat().st_size
    assert found["phases"]["calibrate"]["seconds"] == 0
    before = (found["folder"] / "result.json").stat().st_mtime_ns
    assert quantize.main([f"run={made}", "quant=int8", "codec=entropy"]) == 0
    assert (found["folder"] / "result.json").stat().st_mtime_ns == before, "a finished cell is not made again"


HOPELESS = ("quant=int6_gptq", "quant.rounding.damping=1e-8", "quant.calibration.tokens=1")


def test_weights_whose_export_failed_are_taken_up_by_another_quantiser(
    job: Callable[..., Job], finished: Callable[..., Path], toy_folder: Path, capsys: pytest.CaptureFixture
) -> None:
    one = job(*HOPELESS)
    (one.folder.path / "command.txt").write_text(shlex.join(["train.py", *toy_overrides(toy_folder, HOPELESS)]))
    printed = one.here(code=1)
    assert "quant.rounding.damping=1e-08" in printed and "Traceback" not in printed
    assert "golf/quantize.py run=" in printed and "same command" not in printed, "it would fail there again"
    assert one.folder.get_status()["state"] == "failed" and one.folder.finished() is None
    assert quantize.main([f"run={one.folder.path}", "quant=int8"]) == 0
    (made,) = results_beside(one.folder.path).values()
    whole = json.loads((finished("quant=int8") / "result.json").read_text())
    for key in ("val_bpb", "raw_bpb", "artifact_bytes", "steps", "train_tokens", "legality", "fingerprint"):
        assert made[key] == whole[key], key
    assert set(whole) <= set(made)
    assert quantize.main([f"run={one.folder.path}", *HOPELESS[1:2], "quant.rounding.block=16"]) == 1
    assert "damping" in capsys.readouterr().err


def test_other_doors_want_a_whole_run(job: Callable[..., Job], capsys: pytest.CaptureFixture) -> None:
    one = job(*HOPELESS)
    one.here(code=1)
    assert evaluate.main([f"run={one.folder.path}", "eval=plain"]) == 2
    assert "no finished run" in capsys.readouterr().err


@pytest.mark.parametrize("error", [RuntimeError("a bug"), MemoryError(), RunError("the score is nan")])
def test_whatever_fails_after_training_names_the_weights(
    error: Exception, job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In scoring as in quantising; a bug keeps its traceback."""

    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr("golf.export.read_artifact", fail)
    one = job()
    if str(error) == "a bug":
        with pytest.raises(ExportError, match=r"a bug; .* weights are kept"):
            one.here(code=1)
    else:
        assert "weights are kept" in one.here(code=1)
    message = one.folder.get_status()["message"]
    assert "golf/quantize.py run=" in message and "same command" not in message


@pytest.mark.wide
def test_a_grid_has_a_line_for_each_cell(made: Path, capsys: pytest.CaptureFixture) -> None:
    assert quantize.main(["-m", f"run={made}", "quant=fp16,int6", "codec=zlib,brotli"]) == 0
    printed = capsys.readouterr().out
    for label in ("fp16-zlib", "fp16-brotli", "int6-zlib", "int6-brotli"):
        assert label in printed and label in results_beside(made)
    half, int6 = (results_beside(made)[label] for label in ("fp16-zlib", "int6-zlib"))
    assert abs(half["quant_gap_bpb"]) < abs(int6["quant_gap_bpb"]) and int6["artifact_bytes"] < half["artifact_bytes"]


def test_a_part_chosen_anew_drops_what_was_set_in_it(made: Path) -> None:
    """The run was started with a damping, which rounding to nearest has not."""
    assert quantize.main([f"run={made}", "quant/rounding=nearest"]) == 0
    (folder,) = (found["folder"] for label, found in results_beside(made).items() if "nearest" in label)
    found = json.loads((folder / "config.json").read_text())
    assert found["run"]["quant"]["rounding"]["_target_"].endswith("NearestConfig")


def test_contents_have_a_line_for_each_tensor(made: Path, capsys: pytest.CaptureFixture) -> None:
    assert quantize.main([f"inspect={made / 'artifact.golf'}"]) == 0
    printed = capsys.readouterr().out
    weights = set(open_source(made).run.model.build_on_meta().state_dict())
    assert all(name in printed for name in weights)
    line = next(line for line in printed.splitlines() if "blocks.0.mlp.up.weight" in line)
    cells = [cell.strip() for cell in line.strip("│ ").split("│")]
    assert cells[1:3] == ["64 x 32", "int6"] and 2 < float(cells[4]) < 6 and 1e-5 < float(cells[7]) < 0.1


@pytest.mark.parametrize(
    "arguments,message",
    [
        (["quant=int8"], "run=(none): name the folder"),
        (["run=MADE", "model.dim=64"], "model.dim=64: only quant, codec, eval can change"),
        (["run=MADE", "quant=int8,int6"], "quant: several values; add -m"),
        (["run=MADE", "quant=nope"], "quant/nope"),
        (["run=MADE", "quant.rounding.damping=0"], "quant.rounding.damping=0"),
        (["run=/absent", "quant=int8"], "run=/absent: no finished run"),
        (["inspect=/absent"], "cannot be read"),
        (["run=MADE", "quant=[1"], "quant=[1: cannot be read"),
    ],
)
def test_bad_input_is_one_line(arguments: list[str], message: str, made: Path, capsys: pytest.CaptureFixture) -> None:
    before = sorted(made.parents[1].rglob("result.json"))
    assert quantize.main([argument.replace("MADE", str(made)) for argument in arguments]) == 2
    captured = capsys.readouterr()
    assert message in captured.err and len(captured.err.strip().splitlines()) == 1
    assert sorted(made.parents[1].rglob("result.json")) == before


def test_each_cell_keeps_the_command_that_makes_it_alone(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    """Pasted into a shell it composes the very run of the cell, though the cells were made by one command with -m."""
    kept: list[tuple[Run, list[str]]] = []

    def act(source: Source, run: Run, sinks: object, command: list[str]) -> tuple[RunDir, dict]:
        kept.append((run, command))
        return source.folder, source.result

    monkeypatch.setattr(quantize, "DOOR", replace(quantize.DOOR, act=act))
    assert quantize.main(["-m", f"run={made}", "quant=int8", "codec=null,zstd"]) == 0
    several, commands = [run for run, _ in kept], [command for _, command in kept]
    kept.clear()
    for command in commands:
        assert quantize.main(shlex.split(shlex.join(command))[1:]) == 0
    assert several[0].codec is None and several[1].codec is not None
    assert [identity(run, "") for run, _ in kept] == [identity(run, "") for run in several]
    assert quantize.main([f"run={made}", "quant=int8", "quant=int6"]) == 2
    assert "quant is given twice" in capsys.readouterr().err
