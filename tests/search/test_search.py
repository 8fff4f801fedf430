"""A search as a command, with real workers: killed, begun again, its best confirmed, the validation text never read."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from golf import report
from golf.code_record import ROOT
from golf.launcher.processes import ATTEMPT
from golf.rundir import RunDir
from tests.helpers.processes import processes_in, wait_until
from tests.helpers.runs import toy_overrides
from tests.helpers.sweeps import Door, logged

LR = "optimizer.groups.matrices.lr"
SPACE = f"{{optimizer.groups.embeddings.lr:null,{LR}:{{low:0.02,high:5,log:true}}}}"


def command(folder: Path, outputs: Path) -> list[str]:
    """Two trials, one after the other: at these draws the second is the worse by far."""
    steps = ["budget.max_steps=40", "eval.every_steps=10", "checkpoint.every_steps=10", "log.every_steps=10"]
    search = {"trials": 2, "seed": 12, "startup": 1, "space": SPACE}
    line = [f"hydra.sweeper.search.{key}={value}" for key, value in search.items()]
    names = [f"outputs={outputs}", "sweep_label=found", "launch.slots=1"]
    return ["+sweep=tune_lr", *toy_overrides(folder, [*names, *steps]), *line, "seed=5"]


@pytest.mark.wide  # a minute; test_drive.py does all this with trials that only pretend
@pytest.mark.timeout(1800)
def test_a_killed_search_goes_on_prunes_and_confirms_its_best(
    toy_folder: Path,
    tmp_path: Path,
    door: Door,
    capfd: pytest.CaptureFixture,
) -> None:
    line = command(toy_folder, tmp_path)
    whole = [sys.executable, str(ROOT / "golf" / "train.py"), *line]
    killed = subprocess.Popen(whole, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    wait_until(lambda: logged(tmp_path, 20) or killed.poll() is not None, 300)
    killed.send_signal(signal.SIGKILL)
    said = killed.communicate()[0]
    assert killed.returncode == -signal.SIGKILL and logged(tmp_path, 20), said
    wait_until(lambda: not processes_in(tmp_path), 60)

    ended = subprocess.run(whole, capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    found, confirmed = tmp_path / "found", tmp_path / "found-confirm"
    first, second = (RunDir(next(found.glob(f"trial-00{number}-*"))) for number in (0, 1))
    assert (first.path / "log" / "console.txt").read_text().count(ATTEMPT) == 2, "the same trial, taken up again"
    assert "resumed at step" in first.log.read_text() and first.finished() is not None
    assert second.get_status()["state"] == "stopped" and second.finished() is None
    assert len(list(found.glob("trial-*"))) == 2
    assert "| pruned |" in (found / "STATUS.md").read_text() and "pruned: " in ended.stdout

    assert sorted(path.name.rsplit("-", 1)[0] for path in confirmed.glob("*-s5-*")) == ["best-000-s5", "control-s5"]
    capfd.readouterr()
    assert report.main([str(confirmed)]) == 0 and "2 counted of 2 started" in capfd.readouterr().out
    results = [json.loads(path.read_text()) for path in tmp_path.rglob("result.json")]
    assert len(results) == 3 and not (tmp_path / "validation_passes.jsonl").exists()
    opened = {split for result in results for phase in result["phases"].values() for split in phase["opened"]}
    assert opened == {"train", "tune"}, "no file of the validation text was opened"

    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")}
    code, shown = door(*line)
    assert code == 0 and "1 done, 1 pruned" in shown and "all 2 runs were done before; nothing was started" in shown
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("metrics.jsonl")} == before


def test_a_search_of_keys_that_do_not_exist_is_refused_in_one_line(
    door: Door,
    toy_folder: Path,
    tmp_path: Path,
) -> None:
    line = command(toy_folder, tmp_path / "none")
    code, said = door(*line, "++hydra.sweeper.search.space.optimizer_lr={low:1,high:2}")
    assert code == 2 and "golf: optimizer_lr=1.0: there is no key optimizer_lr" in said
    assert said.count("\n") == 1 and not (tmp_path / "none").exists()
