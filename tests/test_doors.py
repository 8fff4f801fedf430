"""golf/train.py from the outside: bad input is one line and exit code 2, within the process and as a command."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.global_hydra import GlobalHydra

from golf import train
from golf.conf_files import CONF
from tests.helpers.runs import toy_overrides
from tests.helpers.tiers import wide

ROOT = CONF.parent

WRONG = {
    "unknown key": (["model.dimm=3"], "model.dimm=3: there is no key model.dimm"),
    "unknown key, appended": (["+model.dimm=3"], "model.dimm=3: LMConfig has no such key; did you mean dim?"),
    "wrong type": (["model.dim=abc"], "model.dim='abc'"),
    "unknown option": (["model=nope"], "model/nope"),
    "unknown slot option": (["model/mlp=nope"], "model/mlp/nope"),
    "heads do not divide": (["model.dim=30", "model.mixer.heads=4"], "model.dim=30 must give each of"),
    "two tracks": (["track=tiny", "track=laptop"], "track is given twice (track=tiny and track=laptop); keep one"),
    "a key twice": (["seed=1", "seed=2"], "seed is given twice"),
    "cap of zero": (["cap_bytes=0"], "cap_bytes=0 is not positive"),
    "missing data": (["data.path=/absent"], "data.path=/absent"),
    "vocabulary mismatch": (["model.vocab_size=999"], "model.vocab_size=999: the tokenizer of data="),
    "vocabulary out of reach": (["data.vocab_size=60000"], "data.vocab_size=60000"),
    "too many processes": (["launch.nproc=3"], "launch.nproc=3 must divide the 8 sequences of a step"),
    "no such device": (["compute.device=cuda"], "compute.device=cuda: no CUDA device is visible"),
    "no such kernel": (["compute.attention=flash3"], "compute.attention=flash3: not usable"),
    "unclaimed role": (["~optimizer.roles.scalar"], "optimizer.roles: nothing claims"),
    "codec setting": (["codec=zlib", "codec.level=0"], "codec.level=0 must lie in 1 .. 9; try level=1"),
    "layers for skips": (
        ["model.layers=1"],
        "model.layers=1 leaves U-Net skips nothing to join; try model/stack=plain",
    ),
    "outputs not writable": (["outputs=/proc/golf"], "outputs=/proc/golf: cannot be written"),
    "several values": (["seed=1,2"], "seed=1,2: several values; add -m to sweep over them"),
    "a lone run told to list cells": (
        ["launch.dry_run=true"],
        "launch.dry_run=true: lists the cells of a sweep; add -m",
    ),
    "a cell that is wrong": (
        ["hydra.mode=MULTIRUN", "model.dim=32,30,64"],
        "try model.dim=32 (in 1 of 3 cells: label='model.dim_30')",
    ),
    "an option among overrides": (["-m", "seed=1"], "seed=1: stands behind an option"),
    "a sweep file that is not there": (["+sweep=nope"], "sweep/nope"),
    "a row that the command line makes another": (
        ["+sweep=smoke", "quant=int8"],
        "int6-s1337 and int8-s1337 are the same run: nothing that is left of their overrides makes a difference",
    ),
    "a control that is no row": (
        ["+sweep=smoke", "hydra.sweeper.control=int4"],
        "hydra.sweeper.control=int4: not a row; use one of int6, int8",
    ),
    "a row that is no overrides": (
        ["+sweep=smoke", "hydra.sweeper.rows.int8=3"],
        "hydra.sweeper.rows.int8=3: must be overrides",
    ),
    "seeds that are none": (
        ["+sweep=seeds3", "hydra.sweeper.seeds=[1,1]"],
        "hydra.sweeper.seeds=[1, 1]: must be different",
    ),
    "two names for one run": (["hydra.mode=MULTIRUN", "launch.threads=1,2"], "are the same run"),
    "two sweep files": (["hydra.mode=MULTIRUN", "+sweep=smoke,seeds3"], "one command runs one sweep file"),
    "a sweep without plus": (["sweep=smoke"], "sweep has no default to change; add it, with +sweep=smoke"),
    "another launcher": (
        ["hydra.mode=MULTIRUN", "hydra/launcher=basic"],
        "hydra/launcher=basic: cannot run these cells",
    ),
    "another sweeper": (["hydra.mode=MULTIRUN", "hydra/sweeper=basic"], "hydra/sweeper=basic: cannot run these cells"),
    "a row with several values": (
        ["+sweep=smoke", "hydra.sweeper.rows.int8=['model.dim=32,64']"],
        "model.dim=32,64 has several values, and a row is one cell",
    ),
    "a row with blanks": (
        ["+sweep=smoke", "hydra.sweeper.rows.int8=\"data.path='a b'\""],
        "write a list where values hold blanks",
    ),
    "one label for all rows": (["+sweep=smoke", "label=x"], "label=x: the rows of a sweep name its runs; leave it out"),
    "a sweep with two policies": (
        ["hydra.mode=MULTIRUN", "launch.retries=0,1"],
        "launch.retries=1: one sweep has one; the first cell has 0",
    ),
    "nothing to list": (["hydra.mode=MULTIRUN", "seed=interval(1,3)"], "seed=interval(1,3): cannot be listed"),
    "more tries than sense": (["hydra.mode=MULTIRUN", "launch.retries=-1"], "launch.retries=-1 must lie in 0 .. 100"),
    "another launcher's word": (
        ["hydra.mode=MULTIRUN", "launch.on_failure=ignore"],
        "launch.on_failure='ignore' is not a choice",
    ),
    "row longer than the text": (
        ["batch.sequence_length=500000", "batch.tokens_per_step=500000"],
        "batch.sequence_length=500000: a batch needs 500,001 tokens, the train split of",
    ),
    "not an override": (["model"], "model"),
}

# Of a kind with another, or said by a function that has tests of its own.
MORE = {
    "wrong type",
    "cap of zero",
    "a key twice",
    "vocabulary out of reach",
    "unknown slot option",
    "codec setting",
    "a row that the command line makes another",
    "a control that is no row",
    "a row that is no overrides",
    "seeds that are none",
    "another sweeper",
    "a row with several values",
    "a row with blanks",
    "one label for all rows",
    "nothing to list",
    "more tries than sense",
    "another launcher's word",
}


@pytest.fixture
def door(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Callable[..., tuple[int, str]]:
    """door(*overrides) -> (exit code, stderr) of main() in this process; becoming the worker is refused."""

    def run(*extra: str) -> tuple[int, str]:
        GlobalHydra.instance().clear()
        kept = [o for o in toy_overrides(toy_folder, []) if o.split("=")[0] not in {e.split("=")[0] for e in extra}]
        arguments = [*kept, *extra]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "golf" / "train.py"), *arguments])
        monkeypatch.setattr(os, "execve", lambda *a: pytest.fail("a worker was started"))
        code = train.main()
        return code, capfd.readouterr().err

    return run


@pytest.mark.parametrize("overrides, message", [wide(*WRONG[k]) if k in MORE else WRONG[k] for k in WRONG], ids=WRONG)
def test_bad_input_is_one_line_and_code_2(
    overrides: list[str], message: str, door: Callable[..., tuple[int, str]]
) -> None:
    code, err = door(*overrides)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2 and len(lines) == 1, err
    assert lines[0].startswith("golf: ") and message in lines[0]


@pytest.mark.parametrize("damage", ["truncated", "magic", "gone"])
def test_corrupt_shards_are_refused_before_a_worker_starts(
    damage: str, door: Callable[..., tuple[int, str]], toy_folder: Path, tmp_path: Path
) -> None:
    import shutil

    shutil.copytree(toy_folder / "data", tmp_path / "data")
    (shard, *_) = sorted((tmp_path / "data").rglob("*train*.bin"))
    blob = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(blob[:-3] if damage == "truncated" else b"\0\0\0\0" + blob[4:])
    code, err = door(f"data_dir={tmp_path / 'data'}")
    assert code == 2 and shard.name in err and "Traceback" not in err


def test_a_missing_tracker_names_the_way_out(
    door: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = __import__("importlib").util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "wandb" else real(name, *a))
    code, err = door("log=wandb")
    assert code == 2 and "log=wandb: the package wandb is not installed; pip install wandb, or log=none" in err


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    line = [sys.executable, str(ROOT / "golf" / "train.py"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, cwd=cwd)


def test_as_a_command(toy_folder: Path, tmp_path: Path) -> None:
    """Bad input, a plan, a run, the same run again: what a user sees."""
    base = toy_overrides(toy_folder, [f"outputs={tmp_path / 'outputs'}"])
    here = tmp_path / "here"
    here.mkdir()
    bad = command(*base, "model.dimm=3", cwd=here)
    assert (bad.returncode, bad.stdout) == (2, "") and len(bad.stderr.splitlines()) == 1
    plan = command(*base, "plan=true", cwd=here)
    assert not list(here.iterdir()), "nothing is left where the command was given"
    assert plan.returncode == 0 and "bytes predicted of 500,000" in plan.stdout and "stages" in plan.stdout
    (picture,) = (tmp_path / "outputs").glob("**/*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.name in plan.stdout
    first = command(*base)
    assert first.returncode == 0 and "artifact, read back" in first.stdout, first.stderr
    second = command(*base)
    assert (
        second.returncode == 0 and "finished before" in second.stdout and "step " not in second.stdout.split("score")[0]
    )


def test_help_and_cfg_are_readable() -> None:
    shown = command("--help")
    assert (
        shown.returncode == 0 and "track: h100x1, h100x8, laptop, tiny" in shown.stdout and "plan=true" in shown.stdout
    )
    composed = command("--cfg", "job")
    assert composed.returncode == 0 and "kv_heads: 4" in composed.stdout
