"""launch=slurm without SLURM: what is submitted, what is read of the queue, and sweeps on fake commands."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from golf.config import Run
from golf.errors import RunError, StoppedError, UserError
from golf.launcher import jobs, sweep
from golf.launcher.cells import Cell, find
from golf.launcher.slurm import executor, queue, script
from golf.launcher.slurm.config import SlurmLaunch
from golf.launcher.tables import standings
from golf.rundir import RunDir
from tests.helpers.processes import processes_in, wait_until
from tests.helpers.tiers import wide
from tests.launcher.test_failures import FAKE, NO_PLAN, Sweep, starts

COMMANDS = ("sbatch", "squeue", "scancel", "scontrol", "srun")
TOY_SLURM = ["launch=slurm", "compute.device=cpu", "launch.cpus=1", "launch.poll_seconds=0.1", "sweep_label=table"]


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of a fake SLURM, whose commands come first on PATH."""
    place, bin_ = tmp_path / "cluster", tmp_path / "bin"
    place.mkdir(), bin_.mkdir()
    for name in COMMANDS:
        fake = Path(__file__).with_name("fake_slurm.py")
        (bin_ / name).write_text(f'#!/bin/sh\nexec {sys.executable} {fake} {name} "$@"\n')
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    monkeypatch.setenv("FAKE_SLURM", str(place))
    monkeypatch.setattr(executor, "SETTLE_SECONDS", 0.0)
    yield place
    (place / "held").touch()
    (place / "deaf").unlink(missing_ok=True)
    subprocess.run(["scancel", *(job.id for job in queue.look().jobs.values())], check=True)
    wait_until(lambda: not processes_in(tmp_path))


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def go(toy: Callable[..., Run], outputs: Path, cluster: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """go(*labels, **launch settings) -> outcomes of fake cells on the fake cluster; seeds 1, 2 ..."""
    base = toy(f"outputs={outputs}", *TOY_SLURM)
    monkeypatch.setattr(jobs, "worker_line", lambda folder: [FAKE, str(folder.path)])
    return lambda *labels, **settings: sweep.launch(cells_of(base, labels, settings), NO_PLAN)


def cells_of(base: Run, labels: tuple[str, ...], settings: dict) -> list[Cell]:
    launch = dataclasses.replace(base.launch, **settings)
    return [
        Cell(dataclasses.replace(base, label=label, seed=seed, launch=launch), [f"label={label}", f"seed={seed}"])
        for seed, label in enumerate(labels, 1)
    ]


def submissions(cluster: Path) -> list[Path]:
    """Scripts that were given to sbatch."""
    path = cluster / "sbatch.txt"
    return [Path(line) for line in path.read_text().splitlines()] if path.exists() else []


def options(batch: Path) -> set[str]:
    lines = batch.read_text().splitlines()
    return {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}


def when(true: Callable[[], object], act: Callable[[], object]) -> threading.Thread:
    """Act as soon as it is true, beside the launcher."""

    def wait() -> None:
        wait_until(true)
        act()

    thread = threading.Thread(target=wait)
    thread.start()
    return thread


def requeued(cluster: Path) -> bool:
    path = cluster / "scontrol.txt"
    return path.exists() and "requeue" in path.read_text()


def ready(outputs: Path) -> bool:
    return any(outputs.rglob("ready"))


# ---------------------------------------------------------------- texts


def test_a_run_asks_for_what_it_needs(toy: Callable[..., Run]) -> None:
    def asked(*overrides: str) -> tuple[str, ...]:
        run = toy("launch=slurm", *overrides)
        assert isinstance(run.launch, SlurmLaunch)
        return script.options_of(run.launch, run)

    assert asked("compute.device=cpu") == (
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=4",
        "--signal=B:USR2@60",
        "--open-mode=append",
        "--requeue",
    )
    assert "--gres=gpu:1" in asked("compute.device=cuda"), "one GPU a process"
    assert "--gres=gpu:1" in asked("compute.device=cpu", "launch.gpus=1")
    assert "--gres=gpu:4" in asked("compute.device=cuda", "launch.nproc=8", "launch.nodes=2")
    assert "--cpus-per-task=12" in asked("compute.device=cpu", "launch.nproc=8", "launch.nodes=2", "launch.cpus=3")
    named = asked("compute.device=cpu", "launch.time=1-12:00", "launch.partition=fast", "launch.account=me")
    assert {"--time=1-12:00", "--partition=fast", "--account=me"} <= set(named)
    assert asked("compute.device=cpu", "launch.options=['--constraint=[a100|h100]']")[-1] == "--constraint=[a100|h100]"


def test_scripts_are_shell_also_for_folders_with_blanks(toy: Callable[..., Run], tmp_path: Path) -> None:
    place, folder = tmp_path / "a sweep", RunDir(tmp_path / "a run")
    place.mkdir()
    run = toy("launch=slurm", "launch.slots=3", "launch.setup=['module load cuda']")
    assert isinstance(run.launch, SlurmLaunch)
    text = script.batch(run.launch, ("--mem=8G",), name="table-1", count=12, place=place)
    (tmp_path / "batch.sh").write_text(text)
    assert options(tmp_path / "batch.sh") == {
        "--job-name=table-1",
        "--array=0-11%3",
        f'--output="{place}/%a.txt"',
        "--mem=8G",
    }
    for more in ([], ["launch.nproc=2"], ["launch.nproc=4", "launch.nodes=2"]):
        run = toy("launch=slurm", "launch.setup=['module load cuda']", "compute.device=cpu", *more)
        assert isinstance(run.launch, SlurmLaunch)
        text = script.job(run.launch, run, folder)
        subprocess.run(["bash", "-n"], input=text, text=True, check=True)
        assert "\nmodule load cuda\n" in text and f"'{folder.path}'" in text and "OMP_NUM_THREADS=4" in text
    assert "srun --nodes=2 --ntasks-per-node=1 --cpus-per-task=8" in text and "--nproc-per-node=2 --nnodes=2" in text


def test_the_queue_is_read_line_by_line() -> None:
    found = queue.parse("a|b-1f|3|107|RUNNING\ntable-1f|12|108|PENDING\nother|N/A|109|RUNNING\n")
    assert set(found) == {("a|b-1f", 3), ("table-1f", 12)} and found["table-1f", 12].id == "108_12"
    assert [queue.state_word(state) for state in ("PENDING", "COMPLETING", "TIMEOUT")] == ["queued", "running", None]


WRONG = {
    "processes over nodes": (["launch.nproc=3", "launch.nodes=2"], "launch.nproc=3 must be a multiple of nodes=2"),
    "gpus over nodes": (["launch.nproc=4", "launch.nodes=2", "launch.gpus=3"], "try launch.gpus=4"),
    "time": (["launch.time=tomorrow"], "launch.time='tomorrow' is no time limit"),
    "option": (["launch.options=['-p debug']"], "launch.options holds '-p debug', which is no option of sbatch"),
}


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_told_in_one_line(case: str, toy: Callable[..., Run]) -> None:
    overrides, message = WRONG[case]
    with pytest.raises(UserError) as error:
        toy("launch=slurm", *overrides)
    assert message in str(error.value)


def test_what_can_not_be_submitted_from_here(toy: Callable[..., Run], monkeypatch: pytest.MonkeyPatch) -> None:
    run = toy("launch=slurm", "compute.device=cpu")
    with pytest.raises(UserError, match="add -m"):
        run.launch.check(run, lone=True)
    auto = toy("launch=slurm", "compute.device=auto")
    with pytest.raises(UserError, match=r"compute\.device=auto: launch=slurm can't tell from here"):
        auto.launch.check(auto, lone=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(UserError, match="there is no sbatch here"):
        run.launch.check(run, lone=False)


# ---------------------------------------------------------------- sweeps


def test_cells_become_arrays_and_each_its_result_or_its_reason(go: Sweep, cluster: Path, outputs: Path) -> None:
    outcomes = go("ok-a", "exit3", "sigkill", "ok-b", "garbage")
    assert [outcome.val_bpb for outcome in outcomes] == [2.001, None, None, 2.004, None]
    words = ("exit code 3", "killed by SIGKILL", "", "without a readable result.json")
    for outcome, word in zip(outcomes[1:], words, strict=True):
        assert word in str(outcome.error)
    (batch,) = submissions(cluster)
    folders = (batch.parent / script.FOLDERS).read_text().splitlines()
    assert [Path(folder).name.split("-s")[0] for folder in folders] == ["ok-a", "exit3", "sigkill", "ok-b", "garbage"]
    ticket = queue.ticket_of(RunDir(Path(folders[3])))
    assert ticket == queue.Ticket(batch.parent.name, 3, "101_3")
    console = (Path(folders[1]) / "log" / "console.txt").read_text()
    assert console.startswith("=== ") and "SLURM job 101_1 on localhost" in console and "exit3 was here" in console
    (outputs / "table" / "mended").touch()
    assert [outcome.val_bpb for outcome in go("ok-a", "exit3", "sigkill", "ok-b", "garbage")][1] == 2.002
    assert starts(outputs).count("ok-a") == 1 and len(submissions(cluster)) == 2, "only what was missing runs again"


def test_cells_that_ask_for_the_same_share_an_array(
    toy: Callable[..., Run], go: Sweep, cluster: Path, outputs: Path
) -> None:
    base = toy(f"outputs={outputs}", *TOY_SLURM, "launch.slots=2")
    small, big = cells_of(base, ("ok-a", "ok-b", "ok-c"), {}), cells_of(base, ("ok-d",), {"mem": "64G"})
    outcomes = sweep.launch([*small[:2], *big, small[2]], NO_PLAN)
    assert all(outcome.val_bpb for outcome in outcomes)
    first, second = map(options, submissions(cluster))
    assert "--array=0-2%2" in first and "--array=0-0%2" in second and "--mem=64G" in second
    assert "--dependency=afterany:101" in second, "one after another: together they would be more than launch.slots"


def test_array_size_and_max_jobs_bound_what_is_submitted(go: Sweep, cluster: Path) -> None:
    outcomes = go("ok-a", "ok-b", "ok-c", "ok-d", "ok-e", array_size=2, max_jobs=3)
    assert all(outcome.val_bpb for outcome in outcomes)
    sizes = [len((batch.parent / script.FOLDERS).read_text().splitlines()) for batch in submissions(cluster)]
    assert sizes[:2] == [2, 1] and sum(sizes) == 5


def test_retries_and_bad_input(go: Sweep, outputs: Path) -> None:
    flaky, bad = go("flaky", "bad_input", retries=2)
    assert flaky.val_bpb == 2.001 and bad.error
    assert starts(outputs).count("flaky") == 2 and starts(outputs).count("bad_input") == 1


def test_what_sbatch_refuses_is_told_in_its_words(go: Sweep, cluster: Path, outputs: Path) -> None:
    (cluster / "refuse").touch()
    (one,) = go("ok-a", retries=3)
    assert "sbatch: error: invalid partition specified: nowhere" in str(one.error)
    assert len(submissions(cluster)) == 1 and "| failed |" in (outputs / "table" / "STATUS.md").read_text()


@pytest.mark.wide
def test_a_submission_whose_answer_was_lost_is_found_by_its_name(go: Sweep, cluster: Path, outputs: Path) -> None:
    (cluster / "mute").touch()
    assert [outcome.val_bpb for outcome in go("ok-a", "ok-b")] == [2.001, 2.002]
    assert len(submissions(cluster)) == 1 and len(starts(outputs)) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, wide(signal.SIGHUP)])
def test_jobs_outlive_their_launcher_and_are_watched_again(
    number: signal.Signals, go: Sweep, cluster: Path, outputs: Path, toy: Callable[..., Run]
) -> None:
    (cluster / "held").touch()
    before = signal.signal(number, signal.SIG_DFL)
    sender = when(lambda: queue.look().jobs, lambda: os.kill(os.getpid(), number))
    with pytest.raises(StoppedError, match="what it started goes on, and the same command watches it again"):
        go("ok-a", "ok-b")
    sender.join()
    signal.signal(number, before)
    cells = cells_of(toy(f"outputs={outputs}", *TOY_SLURM), ("ok-a", "ok-b"), {})
    assert [standing.state for standing, _ in standings(cells, find(cells))] == ["queued", "queued"]
    assert "| queued |" in (outputs / "table" / "STATUS.md").read_text()
    for folder in (outputs / "table").glob("ok-*"):  # as if it had died before sbatch answered
        ticket = queue.ticket_of(RunDir(folder))
        assert ticket is not None
        dataclasses.replace(ticket, id=None).write(RunDir(folder))
    (cluster / "held").unlink()
    assert [outcome.val_bpb for outcome in go("ok-a", "ok-b")] == [2.001, 2.002]
    assert len(submissions(cluster)) == 1 and len(starts(outputs)) == 2, "nothing was submitted twice"


def test_without_the_queue_nothing_is_submitted_twice(go: Sweep, cluster: Path, outputs: Path) -> None:
    go("exit3")
    (outputs / "table" / "mended").touch()
    (cluster / "deaf").touch()
    with pytest.raises(RunError, match="Unable to contact slurm controller"):
        go("exit3")
    assert len(submissions(cluster)) == 1


def test_a_queue_that_does_not_answer_for_a_while_ends_nothing(
    go: Sweep, cluster: Path, outputs: Path, capsys: pytest.CaptureFixture
) -> None:
    def deaf() -> None:
        (cluster / "deaf").touch()
        time.sleep(1.5)
        (cluster / "deaf").unlink()
        (outputs / "table" / "mended").touch()
        subprocess.run(["scancel", "--signal=TERM", "--batch", "101_0"], check=True)

    other = when(lambda: ready(outputs), deaf)
    assert go("patient")[0].val_bpb == 2.001
    other.join()
    assert capsys.readouterr().out.count("Unable to contact slurm controller") == 1


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("name", ["USR2", wide("TERM")])
def test_a_preempted_job_saves_and_is_queued_again(name: str, go: Sweep, cluster: Path, outputs: Path) -> None:
    preempt = ["scancel", f"--signal={name}", "--batch", "101_0"]
    sender = when(lambda: ready(outputs), lambda: subprocess.run(preempt, check=True))
    assert [outcome.val_bpb for outcome in go("patient", "ok-b")] == [2.001, 2.002]
    sender.join()
    restarts = [json.loads(path.read_text())["restarts"] for path in sorted(cluster.glob("101_*.json"))]
    assert restarts == [1, 0] and starts(outputs).count("patient") == 2 and len(submissions(cluster)) == 1


@pytest.mark.wide
def test_the_last_of_an_array_is_queued_again_alone(go: Sweep, cluster: Path, outputs: Path) -> None:
    """Its number is the array's, which to SLURM means all of it."""
    preempt = ["scancel", "--signal=USR2", "--batch", "101_1"]
    sender = when(lambda: ready(outputs), lambda: subprocess.run(preempt, check=True))
    assert [outcome.val_bpb for outcome in go("ok-a", "patient")] == [2.001, 2.002]
    sender.join()
    restarts = [json.loads(path.read_text())["restarts"] for path in sorted(cluster.glob("101_*.json"))]
    assert restarts == [0, 1] and (cluster / "scontrol.txt").read_text() == "requeue 101_1\n"


def test_a_cancelled_job_is_not_queued_again(go: Sweep, cluster: Path, outputs: Path) -> None:
    sender = when(lambda: ready(outputs), lambda: subprocess.run(["scancel", "101_0"], check=True))
    patient, other = go("patient", "ok-b")
    sender.join()
    assert "its job was cancelled (scancel); stopped by SIGTERM at step 3; saved" in str(patient.error)
    assert other.val_bpb == 2.002
    assert not requeued(cluster)
    assert go("patient", "ok-b")[0].val_bpb == 2.001


def test_ctrl_c_has_runs_save_and_takes_the_rest_from_the_queue(go: Sweep, cluster: Path, outputs: Path) -> None:
    sender = when(lambda: ready(outputs), lambda: os.kill(os.getpid(), signal.SIGINT))
    with pytest.raises(StoppedError, match="the sweep was stopped; the same command goes on with it"):
        go("patient", "ok-b", slots=1)
    sender.join()
    states = [json.loads(path.read_text())["state"] for path in sorted(cluster.glob("101_*.json"))]
    assert states == ["FAILED", "CANCELLED"] and starts(outputs) == ["patient"]
    assert (cluster / "scancel.txt").read_text().splitlines() == [
        "--quiet 101_1",
        "--quiet --signal=INT --batch 101_0",
    ]
    assert "| patient | 1 | stopped |" in (outputs / "table" / "STATUS.md").read_text()
    assert not requeued(cluster)
    assert [outcome.val_bpb for outcome in go("patient", "ok-b")] == [2.001, 2.002]


@pytest.mark.wide
def test_on_failure_stop_takes_what_waits_from_the_queue(go: Sweep, cluster: Path, outputs: Path) -> None:
    keeper = when(lambda: starts(outputs), (cluster / "held").touch)
    outcomes = go("exit3", "ok-b", "ok-c", on_failure="stop", slots=1)
    keeper.join()
    assert "exit code 3" in str(outcomes[0].error) and starts(outputs) == ["exit3"]
    assert (outputs / "table" / "STATUS.md").read_text().count("| stopped |") == 2
    assert (cluster / "scancel.txt").read_text() == "--quiet 101_1 101_2\n"


@pytest.mark.wide
def test_ranks_on_two_nodes_meet_and_train_as_one(toy: Callable[..., Run], cluster: Path, outputs: Path) -> None:
    """With real workers: srun starts a torchrun on each node, here both on this machine."""
    run = toy(f"outputs={outputs}", *TOY_SLURM, "launch.nproc=2", "launch.nodes=2", "budget.max_steps=4")
    (outcome,) = sweep.launch([Cell(run, ["label=wide"])], NO_PLAN)
    (result,) = (json.loads(path.read_text()) for path in outputs.rglob("result.json"))
    assert outcome.val_bpb == result["val_bpb"] and result["world_size"] == 2
