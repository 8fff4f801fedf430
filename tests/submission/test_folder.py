"""From runs to a record folder: what stands in it, what is refused, that it runs alone, and that it keeps."""

import json
import pickle
import random
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from golf import submit
from golf.auditing import settle
from golf.compose import compose
from golf.errors import UserError
from golf.reports.load import load
from golf.requantise import open_source
from golf.rundir import write_json
from golf.submission import entry, reproduce
from golf.submission.check import faults
from golf.submission.entry import gather
from golf.submission.folder import _seed_result
from golf.submission.logs import last_line, log_of
from golf.submission.record import read_submission
from tests.helpers.mutations import mutated_file
from tests.helpers.runs import Job, made_once, toy_overrides
from tests.helpers.tiers import slow
from tests.submission.conftest import Trained

ROW = ["sweep_label=rows", "label=mine", "optimizer.groups.matrices.lr=0.08"]
SAID = ["name=Hot matrices", "author=me", "github_id=me"]
SEEDS = (1, 2, 3)


def make_row(toy_folder: Path, place: Path) -> None:
    """Train a row of three seeds, registered and audited; make up its control; write and keep its record folder."""
    line = toy_overrides(toy_folder, [f"outputs={place / 'outputs'}", *ROW])
    run = compose(line)
    for seed in SEEDS:
        job = Job(replace(run, seed=seed))
        (job.folder.path / "command.txt").write_text(shlex.join(["golf/train.py", *line, f"seed={seed}"]))
        job.here()
        make_control(job.folder.path)
        source = open_source(job.folder.path, weights=False)
        settle(source, {"legal": True, "findings": [], "fingerprint": source.result["fingerprint"]})
    sweep, into = place / "outputs" / "rows", place / "into"
    rows: dict[str, list[str]] = {"control": [], "mine": []}
    write_json(sweep / "sweep.json", {"control": "control", "seeds": list(SEEDS), "rows": rows, "cells": {}})
    words = [f"run={sweep}", "row=mine", "track=record", f"reference={sweep}", f"into={into}", *SAID]
    assert submit.main(words) == 0
    (readable,) = into.glob("*/*/train_gpt_readable.py")
    source = readable.read_text()
    (place / "code.pickle").write_bytes(pickle.dumps((source, entry.packed(source))))


def make_control(run: Path) -> None:
    """Write down a run of the same seed under another configuration, which scored worse."""
    control = Path(shutil.copytree(run, run.with_name(run.name.replace("mine", "control"))))
    config, result = (json.loads((control / name).read_text()) for name in ("config.json", "result.json"))
    config["run"]["label"], config["config_hash"] = "control", "c" * 64
    write_json(control / "config.json", config)
    write_json(control / "result.json", result | {"label": "control", "val_bpb": result["val_bpb"] + 0.1})


@pytest.fixture(scope="session")
def row(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_once(tmp_path_factory, "submitted-row", partial(make_row, toy_folder))


@pytest.fixture
def runs(row: Path) -> list[Trained]:
    """The three seeds of the row."""
    return [Trained.of(*(row / "outputs" / "rows").glob(f"mine-s{seed}-*")) for seed in SEEDS]


@pytest.fixture
def folder(row: Path) -> Path:
    """The record folder of the row."""
    (found,) = row.glob("into/track_10min_16mb/*_Hot_matrices")
    return found


@pytest.fixture(autouse=True)
def bundled_once(row: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row's code, which takes seconds to bundle and pack, is that of make_row."""
    source, packed = pickle.loads((row / "code.pickle").read_bytes())
    monkeypatch.setattr(entry, "source_of", lambda run: {"mine": source}[run.label])
    monkeypatch.setattr(entry, "packed", {source: packed}.__getitem__)


def test_the_folder_is_whole(folder: Path, runs: list[Trained]) -> None:
    names = {path.name for path in folder.iterdir()}
    logs = {f"train_seed{seed}.log" for seed in (1, 2, 3)}
    files = {"train_gpt.py", "train_gpt_readable.py", "README.md", "submission.json", "requirements.txt"}
    assert names == files | logs | {"tokenizer.model"} and faults(folder) == []
    record = read_submission(folder)
    results = [one.result for one in runs]
    assert record.val_bpb == pytest.approx(sum(result["val_bpb"] for result in results) / 3)
    assert record.bytes_code == (folder / "train_gpt.py").stat().st_size == record.code_countings.shipped
    assert record.bytes_total == record.bytes_code + max(result["artifact_bytes"] for result in results)
    hashes = [found.artifact_sha256 for found in record.seed_results.values()]
    assert hashes == [sha256(one.folder.artifact.read_bytes()).hexdigest() for one in runs]
    assert record.seeds == [1, 2, 3] and record.forced == [] and all(record.compliance.values())
    assert record.comparison is not None and record.comparison.shown and record.deterministic
    text = (folder / "README.md").read_text()
    assert f"{record.val_bpb:.5f} BPB" in text and "SEED=1 DATA_PATH=data OMP_NUM_THREADS=1 python train_gpt.py" in text
    assert all(
        f"| {seed} | done | {result['val_bpb']:.6f}" in text for seed, result in zip((1, 2, 3), results, strict=True)
    )
    assert str(folder.parents[2]) not in text and "outputs=" not in text, "no path of this machine"
    assert "torch==" in (folder / "requirements.txt").read_text()


@pytest.mark.parametrize("bare", [False, slow(True)])
def test_the_packed_file_alone_gives_golfs_artifact_and_the_logs_lines(
    bare: bool, folder: Path, runs: list[Trained], tmp_path: Path
) -> None:
    artifact, said = runs[1].script((folder / "train_gpt.py").read_bytes(), tmp_path / "run", bare=bare)
    assert artifact == runs[1].folder.artifact.read_bytes()
    log = (folder / "train_seed2.log").read_text()
    told = last_line(log)
    assert told is not None and set(told) == set(said)
    assert all(
        told[key] == said[key] for key in ("seed", "steps", "val_bpb", "val_loss", "artifact_bytes", "total_bytes")
    )
    shapes = ("step:6/6 train_loss:", "Total submission size: ", "final_quantized_roundtrip_exact val_loss:")
    printed = (tmp_path / "run" / "log.txt").read_text()
    for shape in shapes:
        ours, theirs = ([line for line in text.splitlines() if line.startswith(shape)] for text in (log, printed))
        assert len(ours) == 1 and ours[0].split(" train_time")[0] == theirs[0].split(" train_time")[0]


def broken(folder: Path, place: Path, change: Callable[[dict[str, Any]], None] | None = None) -> Path:
    copy = shutil.copytree(folder, place / "copy")
    if change is not None:
        node = json.loads((copy / "submission.json").read_text())
        change(node)
        (copy / "submission.json").write_text(json.dumps(node))
    return copy


def set_in(*keys: str, to: Any) -> Callable[[dict[str, Any]], None]:
    def change(node: dict[str, Any]) -> None:
        for key in keys[:-1]:
            node = node[key]
        node[keys[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_in("seed_results", "2", "config_hash", to="0" * 64), "seeds ran 2 different configurations"),
        (set_in("cap_bytes", to=30_000), "over the cap of 30,000"),
        (set_in("val_bpb", to=1.0), "val_bpb=1.0: the seeds' mean is"),
        (set_in("bytes_code", to=5), "submission.json counts 5"),
        (set_in("code_sha256", to="0" * 64), "is not the file that submission.json names"),
        (set_in("seed_results", "1", "steps", to=9), "train_seed1.log: steps=6, submission.json says 9"),
        (set_in("seed_results", "1", "val_bpb", to=1.5), "plain gave"),
        (set_in("seeds", to=[1, 2, 3, 4]), "seed 4: listed in seeds, and has no result"),
        (set_in("surprise", to=1), "surprise: extra inputs"),
        (set_in("val_loss", to="low"), "val_loss: input should be a valid number"),
    ],
    ids=["mixed", "cap", "mean", "code size", "code", "log", "score", "seed", "key", "type"],
)
def test_a_folder_that_is_untrue_is_refused_in_a_line(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture, change: Callable, message: str
) -> None:
    assert submit.main([f"check={broken(folder, tmp_path, change)}"]) in (1, 2)
    out, err = capsys.readouterr()
    assert message in out + err and "Traceback" not in out + err


def test_files_that_lack_or_do_not_belong_are_named(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    copy = broken(folder, tmp_path)
    (copy / "train_seed3.log").unlink()
    (copy / "train_seed1.log").write_text("step:1/6\n")
    (copy / "helper.py").write_text("")
    assert submit.main([f"check={copy}"]) == 1
    printed = capsys.readouterr().out
    for line in ("train_seed3.log: missing", "train_seed1.log: has no RESULT line", "helper.py: does not belong"):
        assert line in printed


def test_a_refused_row_writes_nothing_and_force_writes_why(
    runs: list[Trained], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    one = [f"run={runs[0].folder.path}", "track=record", f"into={tmp_path}", *SAID]
    assert submit.main(one) == 1
    out = capsys.readouterr().out
    assert "against it: nothing is published on the track tiny" in out and not list(tmp_path.iterdir())
    assert submit.main([*one, "--force"]) == 0
    (found,) = tmp_path.glob("*/*")
    record = read_submission(found)
    assert record.forced and all(f"- {text}" in (found / "README.md").read_text() for text in record.forced)
    assert not record.compliance["gain_shown"] and record.seeds == [1, 2, 3], "all that were started, not one of three"
    assert submit.main([*one, "--force"]) == 2 and "exists already" in capsys.readouterr().err


def test_what_can_not_be_meant_is_one_line(runs: list[Trained], capsys: pytest.CaptureFixture) -> None:
    sweep, run = runs[0].folder.path.parent, runs[0].folder.path
    cases = {
        ("run=x", "check=y"): "check=y: does not go with run=",
        ("frob=1",): "frob=1: takes run, check",
        (f"run={sweep}", "track=record", *SAID): "row=(none)",
        (f"run={sweep}", "track=moon", *SAID): "track=moon: record or non_record",
        (f"run={run}", "row=mine", "track=record", *SAID): "row=mine: goes with the folder of a sweep",
        (f"run={run}", "track=record", "author=me"): "name=(none)",
        (f"run={run}", "track=record", "ship=raw", *SAID): "ship=raw: packed or plain",
        (f"reproduce={sweep}", "data=nowhere"): "no readable JSON object",
        (f"archive={sweep}",): "no finished run",
    }
    for words, message in cases.items():
        assert submit.main(list(words)) == 2
        assert message in capsys.readouterr().err


def test_readable_code_may_be_shipped_and_then_counts(runs: list[Trained]) -> None:
    made = gather([one.folder.path for one in runs], None, "plain")
    assert made.script.decode() == made.source and made.max_total_bytes > len(made.source)


@pytest.mark.slow
def test_it_runs_again_in_a_new_environment_without_network(folder: Path, runs: list[Trained]) -> None:
    try:
        reproduce.offline()
    except Exception as error:
        pytest.skip(str(error))
    found = reproduce.reproduce(folder, runs[0].prepared.folder, 3, "here", None, None)
    assert found.same and found.seed == 3 and "the same to the last digit and byte" in reproduce.told(found)


def test_a_repetition_far_off_says_so(folder: Path, runs: list[Trained]) -> None:
    record = read_submission(folder)
    score = record.seed_results["1"].val_bpb
    assert score is not None and record.val_bpb_std is not None
    for shift, near in ((0.0, True), (record.val_bpb_std, True), (4 * record.val_bpb_std, False)):
        said = {"val_bpb": {"plain": score + shift}, "artifact_bytes": record.seed_results["1"].artifact_bytes}
        found = reproduce._compared(record, 1, said, "0" * 64)
        assert found.near is near and ("OTHER" in reproduce.told(found)) is not near
        assert not found.same, "the artifact is another, whatever its score"
    exact = {"val_bpb": {"plain": score}, "artifact_bytes": record.seed_results["1"].artifact_bytes}
    found = reproduce._compared(record, 1, exact, str(record.seed_results["1"].artifact_sha256))
    assert found.same and "last digit and byte" in reproduce.told(found)
    record.seed_results["1"].artifact_sha256 = None
    found = reproduce._compared(record, 1, exact, "0" * 64)
    assert not found.same and "bytes were not compared" in reproduce.told(found)


def test_a_repetition_takes_what_is_recorded(folder: Path, capsys: pytest.CaptureFixture) -> None:
    """Its threads above all: with others sums are of other parts, and the file is another."""
    ran = read_submission(folder).seed_results["1"].ran
    assert ran is not None and (ran.threads, ran.processes, ran.device, ran.precision) == (1, 1, "cpu", "fp32")
    hostile = ran.model_copy(
        update={"threads": 3, "processes": 2, "variables": {"MKL_CBWR": "AVX2", "LD_PRELOAD": "x"}}
    )
    set_up = reproduce.set_up_of(hostile, None, None)
    assert (set_up.nproc, set_up.threads) == (2, 3)
    assert set_up.variables == {"MKL_CBWR": "AVX2", "OMP_NUM_THREADS": "3", "CUDA_VISIBLE_DEVICES": ""}
    asked = reproduce.set_up_of(hostile, 1, 4)
    assert (asked.nproc, asked.variables["OMP_NUM_THREADS"]) == (1, "4")
    printed = "attention: tiled (the fastest kernel for a CPU); precision: bfloat16\n"
    assert set(reproduce.differences(hostile, asked, printed, "install")) == {
        "processes 1, there 2", "threads 4, there 3", "precision bf16, there fp32",
    }  # fmt: skip
    mine = reproduce.set_up_of(ran, None, None)
    assert not reproduce.differences(ran, mine, printed.replace("bfloat16", "float32"), "here")
    assert "does not record" in reproduce.differences(None, reproduce.set_up_of(None, None, None), "", "here")[0]
    gpu = ran.model_copy(update={"device": "NVIDIA H100"})
    with pytest.raises(UserError, match="trained on NVIDIA H100, and no CUDA device is visible here"):
        reproduce.set_up_of(gpu, None, None)
    assert submit.main(["--help"]) == 0 and "It runs the folder's train_gpt.py as you" in capsys.readouterr().out
    assert "It is this folder's own code: read it before." in (folder / "README.md").read_text()


def test_an_artifact_other_than_the_scored_is_refused(runs: list[Trained], monkeypatch: pytest.MonkeyPatch) -> None:
    one = gather([runs[0].folder.path.parent], "mine", "packed").counted[0]
    assert one.result is not None
    monkeypatch.setitem(one.result, "artifact_bytes", one.result["artifact_bytes"] + 1)
    with pytest.raises(UserError, match=r"run=.*artifact\.golf is not the one that was scored"):
        _seed_result(one, 0)


def test_an_archive_names_its_checksum_and_is_never_overwritten(
    runs: list[Trained], tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    words = [f"archive={runs[0].folder.path}", f"into={tmp_path}"]
    assert submit.main(words) == 0
    (file,) = tmp_path.glob("*.tar.xz")
    assert submit.main([f"verify={file}"]) == 0 and "files, all as they were" in capsys.readouterr().out
    assert submit.main(words) == 2 and "never overwritten" in capsys.readouterr().err
    assert file.stat().st_mode & 0o222 == 0
    damaged = tmp_path / "d" / file.name
    damaged.parent.mkdir()
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    assert submit.main([f"verify={damaged}"]) == 1 and "is damaged" in capsys.readouterr().err


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("count", [10, slow(300)])
def test_a_changed_submission_is_checked_or_refused_in_a_line(
    count: int, folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    rng, copy, codes = random.Random(4), tmp_path / "copy", list[int]()
    names = ("submission.json", "submission.json", "train_seed1.log", "requirements.txt", "train_gpt.py")
    for index in range(count):
        shutil.rmtree(copy, ignore_errors=True)
        shutil.copytree(folder, copy)
        name = names[index % len(names)]
        as_text = copy / f"{name}.txt"  # bytes are changed, as of any text
        path = copy / name if name.endswith(".json") else (copy / name).rename(as_text)
        changed = mutated_file(path, rng)
        as_text.unlink(missing_ok=True)
        (copy / name).write_bytes(changed)
        codes.append(submit.main([f"check={copy}"]))
    said = capfd.readouterr()
    assert "Traceback" not in said.out + said.err and set(codes) <= {0, 1, 2} and codes.count(0) < count / 2


@pytest.mark.parametrize("line", ["3", "{}", '{"step": 0, "train_seconds": 1.0, "loss": 1.0}', "\x00", "[" * 99_999])
def test_a_log_of_odd_metrics_is_refused_by_the_line(line: str, runs: list[Trained], tmp_path: Path) -> None:
    (one, *_) = load(runs[0].folder.path.parent).rows["mine"].runs
    copy = shutil.copytree(one.folder, tmp_path / "run")
    metrics = copy / "metrics.jsonl"
    metrics.write_text(metrics.read_text() + line + "\n")
    with pytest.raises(UserError, match=r"metrics\.jsonl: line \d+ is no step of a run"):
        log_of(replace(one, folder=copy), 1)
