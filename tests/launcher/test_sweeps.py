"""Sweeps from the outside: every file in sweeps/, the dry run, status, a launcher that is killed and started again."""

import dataclasses
import itertools
import json
import os
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from golf import report
from golf.code_record import ROOT
from golf.compose import compose_whole, run_of_whole
from golf.conf_files import CONF, parse
from golf.config import Run
from golf.launcher import sweep
from golf.launcher.cells import Cell
from golf.launcher.grid import key_of
from golf.launcher.slots import Pool, Slot
from golf.launcher.standing import Standing, read_standing
from golf.launcher.tables import progress_of
from golf.rundir import RunDir
from golf.search.space import search_of
from hydra_plugins.golf_sweeper import plan_of
from tests.helpers.processes import processes_in, wait_until
from tests.helpers.runs import toy_overrides
from tests.helpers.sweeps import NO_PLAN, Door, logged, whole_lines
from tests.helpers.tiers import slow, wide

SWEEPS = sorted(path.stem for path in (ROOT / "sweeps").glob("*.yaml"))
DRY = ("smoke", "seeds3")  # tried in tiers other than `all`


def sweep_file(name: str) -> DictConfig:
    """The configuration of a sweep file with its `hydra.sweeper`: composed where the file changes what runs have in
    common, else read as it stands."""
    node = parse((ROOT / "sweeps" / f"{name}.yaml").read_text())
    if set(node) != {"hydra"}:
        return compose_whole([f"+sweep={name}"])
    assert set(node["hydra"]) == {"mode", "sweeper"} and node["hydra"]["mode"] == "MULTIRUN"
    default, told = parse((CONF / "hydra" / "sweeper" / "golf.yaml").read_text()), node["hydra"]["sweeper"]
    assert set(told) <= set(default)
    return OmegaConf.create({"hydra": {"sweeper": default | told}})


@pytest.mark.parametrize("name", SWEEPS)
def test_every_sweep_file_is_a_plan(name: str) -> None:
    """Its rows can be read and choose what is there; in the tier `all` every one of them is composed."""
    text = (ROOT / "sweeps" / f"{name}.yaml").read_text().splitlines()
    assert text[0] == "# @package _global_" and text[1].startswith("# ")
    config = sweep_file(name)
    plan = plan_of(config)
    assert plan.purpose
    for row, line in plan.rows.items():
        chosen = [override.lstrip("+").split("=") for override in line if "." not in key_of(override)]
        for group, options in chosen:
            files = [CONF / group.split("@")[0] / f"{option}.yaml" for option in options.strip("[]").split(",")]
            assert all(file.exists() for file in files if file.parent.is_dir()), row
    if config.hydra.sweeper.search is not None:
        search_of(OmegaConf.to_container(config.hydra.sweeper.search, resolve=True))
    if set(config) > {"hydra"}:
        assert run_of_whole(config).budget, "what its runs have in common is a run"


@pytest.mark.parametrize("name", ["smoke", slow("seeds3"), *(wide(name) for name in SWEEPS if name not in DRY)])
def test_every_sweep_file_composes_and_lists_its_cells(name: str, door: Door, tmp_path: Path) -> None:
    code, shown = door(f"+sweep={name}", "launch.dry_run=true", f"outputs={tmp_path}", f"data_dir={tmp_path}")
    assert code == 0 and "to do" in shown and not list(tmp_path.iterdir()), "nothing is made"


def quants(toy: Callable[..., Run], outputs: Path, **changes: Any) -> list[Cell]:
    """A cell for each of two quantisers and two seeds."""
    cells = []
    for seed, quant in itertools.product((1, 2), ("int6", "int8")):
        run = dataclasses.replace(toy(f"quant={quant}"), label=quant, seed=seed, outputs=str(outputs), **changes)
        cells.append(Cell(run, [f"quant={quant}"]))
    return cells


def test_the_dry_run_shows_sizes_states_and_what_is_over_the_cap(
    toy: Callable[..., Run], tmp_path: Path, capfd: pytest.CaptureFixture
) -> None:
    cells = quants(toy, tmp_path, cap_bytes=20000)[:2]
    for cell in cells:
        cell.run.launch.dry_run = True
    assert sweep.launch(cells, NO_PLAN) == [sweep.Outcome()] * 2 and not list(tmp_path.iterdir())
    rows = [line.split("│")[1:-1] for line in capfd.readouterr().out.splitlines() if "quant=int" in line]
    assert [row[0].strip() for row in rows] == ["int6", "int8"] and "to do" in rows[0][-1]
    predicted = [int(row[4].replace(",", "")) for row in rows]
    assert 0 < predicted[0] < predicted[1] and rows[1][5].strip() == f"{predicted[1] / 20000:.0%}"


def test_plans_are_shown_once_a_row(toy: Callable[..., Run], tmp_path: Path, capfd: pytest.CaptureFixture) -> None:
    assert sweep.launch(quants(toy, tmp_path, plan=True), NO_PLAN) == [sweep.Outcome()] * 4
    assert capfd.readouterr().out.count("parameters by part") == 2
    assert [path.name for path in tmp_path.iterdir()] == ["plans"] and not list(tmp_path.glob("**/*.json"))


def start(folder: Path, outputs: Path, *extra: str) -> subprocess.Popen:
    """A sweep of two toy seeds on two slots, as a command."""
    toy = toy_overrides(folder, [f"outputs={outputs}", "budget.max_steps=400", "checkpoint.every_steps=20", *extra])
    command = [sys.executable, str(ROOT / "golf" / "train.py"), "-m", *toy, "seed=1,2", "launch.slots=2"]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True)


def last_step(outputs: Path) -> int:
    steps = [json.loads(line)["step"] for path in outputs.rglob("metrics.jsonl") for line in whole_lines(path)]
    return max(steps, default=0)


@pytest.mark.wide
@pytest.mark.timeout(3000)
def test_a_killed_and_an_interrupted_launcher_end_as_an_undisturbed_one(
    toy_folder: Path, tmp_path: Path, door: Door, capfd: pytest.CaptureFixture
) -> None:
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    undisturbed = start(toy_folder, calm)
    assert undisturbed.wait(600) == 0, undisturbed.stdout and undisturbed.stdout.read()

    killed = start(toy_folder, rough)
    wait_until(lambda: logged(rough, 30))
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    wait_until(lambda: not processes_in(rough), 30)  # its runs save and end by themselves
    states = {json.loads(path.read_text())["state"] for path in rough.rglob("status.json")}
    assert states <= {"stopped", "done", "starting"}

    reached = last_step(rough)
    stopped = start(toy_folder, rough)
    wait_until(lambda: last_step(rough) >= reached + 10)
    stopped.send_signal(signal.SIGINT)
    said = stopped.communicate(timeout=600)[0]
    assert stopped.returncode == 130 and processes_in(rough) == [], said
    assert "goes on from its checkpoint" in said and "saves and stops" in said
    sweep = ["-m", *toy_overrides(toy_folder, [f"outputs={rough}", "budget.max_steps=400"]), "seed=1,2"]
    sweep += ["launch.slots=2", "checkpoint.every_steps=20"]
    code, shown = door(*sweep, "launch.status=true")
    assert code == 0 and "stopped" in shown and "of 400" in shown

    last = start(toy_folder, rough)
    said = last.communicate(timeout=600)[0]
    assert last.returncode == 0, said
    code, shown = door(*sweep)
    assert code == 0 and "all 2 runs were done before; nothing was started" in shown

    folders = sorted(path.parent.relative_to(calm) for path in calm.rglob("result.json"))
    same = sorted(path.parent.relative_to(rough) for path in rough.rglob("result.json"))
    assert len(folders) == 2 and folders == same
    for folder in folders:
        assert (calm / folder / "artifact.golf").read_bytes() == (rough / folder / "artifact.golf").read_bytes()
        scores = [json.loads((root / folder / "result.json").read_text())["val_bpb"] for root in (calm, rough)]
        assert scores[0] == scores[1]
    register = json.loads((calm / folders[0].parent / "sweep.json").read_text())
    assert set(register["cells"]) == {folder.name for folder in folders}
    assert report.main([str((calm / folders[0]).parent)]) == 0 and "2 counted of 2 started" in capfd.readouterr().out
    command = shlex.split((calm / folders[0] / "command.txt").read_text())
    rest = [sys.executable, str(ROOT / "golf" / "train.py"), *command[1:]]
    lone = subprocess.run(rest, capture_output=True, text=True, timeout=600)
    assert lone.returncode == 0 and "finished before" in lone.stdout, "command.txt names this very run"


def test_standings_are_read_from_folders_alone(tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    assert read_standing(folder).state == "waiting"
    folder.set_status("running", step=0)
    folder.metrics.write_text(
        '{"step": 2, "loss": 3.0, "seconds_left": 9, "val_bpb": 2.5}\n{"step": 4, "loss": 2.5}\n{"st'
    )
    now = read_standing(folder)
    assert (now.state, now.step, now.loss, now.bpb, now.bpb_step) == ("running", 4, 2.5, 2.5, 2)
    assert now.seconds_left is None, "a number of an earlier record is no number of now"
    gone = subprocess.Popen(["true"])
    gone.wait()
    folder.status.write_text(json.dumps({"state": "running", "pid": gone.pid}))
    assert read_standing(folder).state == "interrupted"
    folder.set_status("done", step=6)
    assert read_standing(folder).state == "failed", "done without a result is not done"
    folder.status.write_text("[1, 2")
    assert read_standing(folder).state == "waiting"


def test_a_score_of_an_earlier_step_names_it(toy: Callable) -> None:
    run = toy("budget.max_steps=6")
    assert progress_of(run, Standing("running", 4, 2.5, 2.5, 2))[2] == "2.5000 at step 2"
    assert progress_of(run, Standing("running", 4, 2.5, 2.5, 4))[2] == "2.5000"


def test_pools_give_no_device_twice() -> None:
    pool = Pool(2, 8, ["a", "b", "c", "d"])
    first, second = pool.take(2), pool.take(2)
    assert (first, second) == (Slot(4, ("a", "b")), Slot(4, ("c", "d"))) and pool.take(0) is None
    assert first is not None
    pool.give(first)
    assert pool.take(3) is None and pool.take(1) == Slot(4, ("a",))


def test_slots_name_their_devices_to_the_run(toy: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    run = toy("launch.nproc=2", "compute.device=cpu")
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    threads = {"OMP_NUM_THREADS": "4", "OMP_WAIT_POLICY": "PASSIVE"}
    assert Slot(8).environment(run) == threads | {"GLIBC_TUNABLES": "glibc.malloc.check=3"}, "the user's word stands"
    monkeypatch.delenv("GLIBC_TUNABLES")
    assert "mmap_threshold" in Slot(8).environment(run)["GLIBC_TUNABLES"]
    assert Slot(8, ("3", "5")).environment(run)["CUDA_VISIBLE_DEVICES"] == "3,5"
    assert Slot(8).environment(toy("launch.threads=7"))["OMP_NUM_THREADS"] == "7"
    assert os.environ.get("CUDA_VISIBLE_DEVICES") is None
