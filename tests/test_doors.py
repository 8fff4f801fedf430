"""golf/train.py from the outside: bad input is one line and exit code 2, within the process and as a command."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.types import HydraContext

from golf import train
from golf.command_line import Line
from golf.compose import compose, compose_whole, composing
from golf.conf_files import CONF
from golf.config import Run
from golf.errors import UserError
from golf.launcher import sweep
from tests.helpers.runs import toy_overrides
from tests.helpers.tiers import slow

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
    "a key that is near another": (["modle=swiglu"], "prints every key there is; did you mean model?"),
    "the end of a key": (
        ["lr=1"],
        "there is no key lr; --cfg job prints every key there is; did you mean optimizer.groups.",
    ),
    "part of a key misspelt": (["optimizer.groups.matrces.lr=1"], "did you mean optimizer.groups.matrices.lr?"),
    "a slot that is near another": (["model/mpl=swiglu"], "did you mean model/mlp?"),
    "an option that is near another": (
        ["quant=int6_gqtq"],
        "int6_sdclip int7_embed int8 ternary waterfill; did you mean int6_gptq?",
    ),
    "one of several that is near another": (
        ["model/output=[xsaa]"],
        "Could not load 'model/output/xsaa'.; did you mean xsa?",
    ),
    "a number for an option": (["quant=6"], "quant=6: a group takes the name of one of its options"),
    "a choice that is near another": (
        ["launch.on_failure=stpo"],
        "'stpo' is not a choice; use one of continue, stop; did you mean stop?",
    ),
    "a group that is near another": (
        ["+swep=smoke"],
        "swep=smoke: there is no key swep; --cfg job prints every key there is; did you mean sweep?",
    ),
    "a number for a text": (["data.path=1e3"], "data.path=1000.0: is a number, and it takes a text; quote it"),
}

# Refused by what reads the arguments, before anything is composed.
ARGUMENTS = {
    "two tracks",
    "a key twice",
    "another launcher",
    "another sweeper",
    "not an override",
}
# Refused while Hydra composes: of a kind with another, each takes a composition of its own.
COMPOSED = {
    "part of a key misspelt",
    "a slot that is near another",
    "one of several that is near another",
    "a number for an option",
    "a choice that is near another",
}
# Refused by the sweeper or by what checks its cells; more of them with tests/launcher.
SWEEPS = {"two names for one run", "two sweep files", "a sweep with two policies"}
# Of a kind with another, or said by a function that has tests of its own.
MORE = {
    "a row that the command line makes another",
    "a control that is no row",
    "a row that is no overrides",
    "seeds that are none",
    "a row with several values",
    "a row with blanks",
    "one label for all rows",
    "nothing to list",
    "more tries than sense",
    "another launcher's word",
}
# One of each kind, through the whole door.
DOOR = {"unknown key", "a cell that is wrong", "an option among overrides", "row longer than the text"}


def sweep_of(arguments: list[str]) -> None:
    """Sweep as Hydra's main would, without its second composition."""
    config = compose_whole([argument for argument in arguments if "," not in argument])
    loader = ConfigLoaderImpl(create_config_search_path(str(CONF)))
    sweeper = Plugins.instance().instantiate_sweeper(
        hydra_context=HydraContext(config_loader=loader, callbacks=Callbacks()),
        task_function=lambda config: None,
        config=config,
    )
    sweeper.sweep([argument for argument in arguments if not argument.startswith("hydra.")])


@pytest.fixture
def door(
    toy_folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> Callable[..., tuple[int, str, str]]:
    """door(*arguments) -> (exit code, stdout, stderr) of main() in this process; becoming the worker is refused."""

    def run(*extra: str) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        kept = [o for o in toy_overrides(toy_folder, []) if o.split("=")[0] not in {e.split("=")[0] for e in extra}]
        arguments = [*kept, *extra]
        monkeypatch.setattr(sys, "argv", [str(ROOT / "golf" / "train.py"), *arguments])
        monkeypatch.setattr(os, "execve", lambda *a: pytest.fail("a worker was started"))
        return train.main(), *capfd.readouterr()

    return run


@pytest.mark.parametrize("name", [name if name in DOOR else slow(name) for name in WRONG])
def test_bad_input_is_one_line_and_code_2(name: str, door: Callable[..., tuple[int, str, str]]) -> None:
    overrides, message = WRONG[name]
    code, _, err = door(*overrides)
    lines = [line for line in err.splitlines() if line.strip()]
    assert code == 2 and len(lines) == 1, err
    assert lines[0].startswith("golf: ") and message in lines[0]


@pytest.mark.parametrize("name", [name for name in WRONG if name not in DOOR | SWEEPS | ARGUMENTS | MORE | COMPOSED])
def test_a_wrong_run_is_refused_before_it_starts(name: str, toy_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    overrides, message = WRONG[name]
    monkeypatch.setattr(os, "execve", lambda *a: pytest.fail("a worker was started"))
    with pytest.raises(UserError) as refused:
        train.start(compose(toy_overrides(toy_folder, overrides)))
    assert message in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("name", sorted(ARGUMENTS))
def test_wrong_arguments_are_refused_before_composition(name: str) -> None:
    overrides, message = WRONG[name]
    with pytest.raises(UserError) as refused, composing(overrides):
        train.check_arguments(overrides)
    assert message in str(refused.value)


@pytest.mark.parametrize("name", sorted(SWEEPS))
def test_a_wrong_sweep_is_refused_before_a_cell_starts(
    name: str, toy_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Through the sweeper and the launcher, without Hydra's main."""
    overrides, message = WRONG[name]
    monkeypatch.setattr(sweep, "launch", lambda *a: pytest.fail("cells were started"))
    with pytest.raises(UserError) as refused, composing(overrides):
        sweep_of(toy_overrides(toy_folder, overrides))
    assert message in str(refused.value)


@pytest.mark.parametrize("damage", ["truncated", "magic", "gone"])
def test_corrupt_shards_are_refused_before_a_worker_starts(
    damage: str, toy_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "execve", lambda *a: pytest.fail("a worker was started"))
    shutil.copytree(toy_folder / "data", tmp_path / "data")
    (shard, *_) = sorted((tmp_path / "data").rglob("*train*.bin"))
    blob = shard.read_bytes()
    if damage == "gone":
        shard.unlink()
    else:
        shard.write_bytes(blob[:-3] if damage == "truncated" else b"\0\0\0\0" + blob[4:])
    with pytest.raises(UserError, match=re.escape(shard.name)):
        train.start(compose(toy_overrides(toy_folder, [f"data_dir={tmp_path / 'data'}"])))


def test_a_missing_tracker_names_the_way_out(toy: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr("importlib.util.find_spec", lambda name, *a: None if name == "wandb" else real(name, *a))
    with pytest.raises(
        UserError, match="log=wandb: the package wandb is not installed; pip install wandb, or log=none"
    ):
        train.start(toy("log=wandb"))


def command(*arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess:
    line = [sys.executable, str(ROOT / "golf" / "train.py"), *arguments]
    return subprocess.run(line, capture_output=True, text=True, timeout=600, cwd=cwd)


def test_lone_runs_that_differ_are_called_so(tmp_path: Path) -> None:
    """By the door alone: compose() names a run as a sweep without rows does."""
    base = ["track=tiny", f"outputs={tmp_path}"]
    lines = [[*base, *more] for more in ([], ["model.dim=64"], ["model=swiglu"], ["experiment=pr675", "model.dim=64"])]
    runs = [train.run_of_line(Line([], line)) for line in lines]
    assert [run and run.label for run in runs] == [
        "baseline-int6-tiny",
        "baseline-int6-model.dim_64-tiny",
        "swiglu-int6-tiny",
        "pr675-model.dim_64-tiny",
    ]
    named = train.run_of_line(Line([], [*lines[1], "label=mine"]))
    assert named is not None and named.label == "mine"


def test_options_that_are_golfs(door: Callable[..., tuple[int, str, str]], capfd: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as end:
        door("--version")
    assert end.value.code == 0 and capfd.readouterr().out.startswith("golf ")


@pytest.mark.slow
def test_a_run_as_a_command(toy_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    """The whole command, as a user gives it; the same run again shows the result that it has."""
    overrides = toy_overrides(toy_folder, [f"outputs={tmp_path / 'outputs'}"])
    here = tmp_path / "here"
    here.mkdir()
    first = command(*overrides, cwd=here)
    assert first.returncode == 0 and "artifact, read back" in first.stdout, first.stderr
    assert not list(here.iterdir()), "nothing is left where the command was given"
    assert train.start(compose(overrides)) == 0
    again = capfd.readouterr().out
    assert "finished before" in again and "step " not in again.split("score")[0]


def test_a_finished_run_shows_its_result(
    finished: Callable[..., Path], toy_folder: Path, capfd: pytest.CaptureFixture
) -> None:
    outputs = finished().parents[1]
    assert train.start(compose(toy_overrides(toy_folder, [f"outputs={outputs}"]))) == 0
    again = capfd.readouterr().out
    assert "finished before" in again and "step " not in again.split("score")[0]


def test_a_plan_has_sizes_stages_and_a_picture(
    toy: Callable[..., Run], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    assert train.start(toy("plan=true", f"outputs={tmp_path}")) == 0
    shown = capfd.readouterr().out
    assert "bytes predicted of 500,000" in shown and "stages" in shown
    (picture,) = tmp_path.glob("**/*.png")
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.name in shown


@pytest.mark.parametrize("option", ["--help", "--cfg", "--run"])
def test_options_go_to_hydra(
    option: str, door: Callable[..., tuple[int, str, str]], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    """Help lists the choices, --cfg job shows the whole configuration, and --run is a run like any other."""
    try:
        code, out, err = door("plan=true", f"outputs={tmp_path}", option, *(["job"] if option == "--cfg" else []))
        assert code == 0, err
    except SystemExit as end:
        out = capfd.readouterr().out
        assert end.code == 0
    for words in {
        "--help": ["track: h100x1, h100x8, laptop, tiny", "plan=true"],
        "--cfg": ["kv_heads: 1", "tokens_per_step: 256"],
        "--run": ["bytes predicted of 500,000"],
    }[option]:
        assert words in out


@pytest.mark.slow
def test_commands_are_quiet_about_what_is_fine(toy_folder: Path, tmp_path: Path) -> None:
    """Bad input is one line on stderr, a plan nothing on it; neither leaves a file where the command was given."""
    base = toy_overrides(toy_folder, [f"outputs={tmp_path / 'outputs'}"])
    here = tmp_path / "here"
    here.mkdir()
    bad = command(*base, "model.dimm=3", cwd=here)
    assert (bad.returncode, bad.stdout) == (2, "") and len(bad.stderr.splitlines()) == 1
    plan = command(*base, "plan=true", cwd=here)
    assert plan.returncode == 0 and not plan.stderr and not list(here.iterdir())
