"""launch=slurm without SLURM: what is submitted, what is read of the queue, and sweeps on a fake cluster.

Its jobs live on a fake clock; two tests have them as processes, and in the tier `slow` all do.
"""

import contextlib
import dataclasses
import json
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from golf.config import Run
from golf.errors import RunError, StoppedError, UserError
from golf.launcher import jobs, sweep
from golf.launcher.cells import Cell, find
from golf.launcher.slurm import queue, script
from golf.launcher.slurm.config import SlurmLaunch
from golf.launcher.tables import standings
from golf.rundir import RunDir, write_json
from tests.helpers.processes import wait_until
from tests.helpers.sweeps import NO_PLAN, Sweep, cells_of, starts
from tests.helpers.worlds import ClockWorld, Cluster, World, clock_cluster, process_cluster

TOY_SLURM = ["launch=slurm", "compute.device=cpu", "launch.cpus=1", "launch.poll_seconds=0.1", "sweep_label=table"]

real_worker_line = jobs.worker_line


@pytest.fixture
def cluster(world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Cluster]:
    """A fake SLURM whose jobs are where the world's workers are."""
    place = tmp_path / "cluster"
    place.mkdir()
    if isinstance(world, ClockWorld):
        yield clock_cluster(place, world.clock, monkeypatch)
        return
    made = process_cluster(place, tmp_path / "bin", monkeypatch)
    yield made
    made.say("held")
    made.unsay("deaf")
    made.command("scancel", *(job.id for job in queue.look().jobs.values()))
    world.settle(tmp_path)  # while its commands are on PATH


@pytest.fixture
def table(outputs: Path) -> Path:
    """The folder of the sweep."""
    return outputs / "table"


@pytest.fixture(scope="session")
def toy_slurm(toy: Callable[..., Run]) -> Run:
    return toy(*TOY_SLURM)


@pytest.fixture
def base(toy_slurm: Run, outputs: Path) -> Run:
    """What the cells of a sweep have in common."""
    return dataclasses.replace(toy_slurm, outputs=str(outputs))


@pytest.fixture
def go(base: Run, cluster: Cluster) -> Sweep:
    """go(*labels, **launch settings) -> outcomes of fake cells on the fake cluster; seeds 1, 2 ..."""
    return lambda *labels, **settings: sweep.launch(cells_of(base, labels, settings), NO_PLAN)


def submissions(cluster: Cluster) -> list[Path]:
    """Scripts that were given to sbatch."""
    return [Path(line) for line in cluster.told("sbatch").splitlines()]


def options(batch: Path) -> set[str]:
    lines = batch.read_text().splitlines()
    return {line.removeprefix("#SBATCH ") for line in lines if line.startswith("#SBATCH ")}


def requeued(cluster: Cluster) -> bool:
    return "requeue" in cluster.told("scontrol")


def ready(table: Path) -> bool:
    """Whether a patient run waits for its end."""
    return any(table.rglob("ready"))


# ---------------------------------------------------------------- texts


def test_a_run_asks_for_what_it_needs(toy: Callable[..., Run]) -> None:
    run = toy("launch=slurm")

    def asked(device: str, **settings: object) -> tuple[str, ...]:
        launch: Any = dataclasses.replace(run.launch, **settings)  # type: ignore[arg-type]
        compute = dataclasses.replace(run.compute, device=device)
        return script.options_of(launch, dataclasses.replace(run, launch=launch, compute=compute))

    assert asked("cpu") == (
        "--nodes=1",
        "--ntasks-per-node=1",
        "--cpus-per-task=4",
        "--signal=B:USR2@60",
        "--open-mode=append",
        "--requeue",
    )
    assert "--gres=gpu:1" in asked("cuda"), "one GPU a process"
    assert "--gres=gpu:1" in asked("cpu", gpus=1)
    assert "--gres=gpu:1" not in asked("cuda", gpus=0)
    assert "--gres=gpu:4" in asked("cuda", nproc=8, nodes=2)
    assert "--cpus-per-task=12" in asked("cpu", nproc=8, nodes=2, cpus=3)
    named = asked("cpu", time="1-12:00", partition="fast", account="me")
    assert {"--time=1-12:00", "--partition=fast", "--account=me"} <= set(named)
    assert asked("cpu", options=["--constraint=[a100|h100]"])[-1] == "--constraint=[a100|h100]"


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
        assert ("export TORCH_ELASTIC_SHUTDOWN_TIMEOUT=" in text) == bool(more), "ranks have all of the grace"
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


# ---------------------------------------------------------------- job.sh


@dataclass(frozen=True)
class Case:
    """A job whose run is told `tell` once it is ready, while SLURM says `state` of it: its exit code, and whether it
    asks to be queued again."""

    label: str
    tell: signal.Signals | None
    state: str
    code: int
    again: bool


JOBS = [
    Case("ok", None, "RUNNING", 0, False),
    Case("exit3", None, "RUNNING", 3, False),
    Case("sigkill", None, "RUNNING", 137, False),
    Case("patient", signal.SIGUSR2, "RUNNING", 130, True),
    Case("patient", signal.SIGTERM, "RUNNING", 130, True),
    Case("patient", signal.SIGTERM, "CANCELLED", 130, False),
    Case("patient", signal.SIGINT, "RUNNING", 130, False),
]


@pytest.mark.parametrize("world", ["processes"], indirect=True)
def test_a_job_asks_to_be_queued_again_only_where_slurm_takes_its_place_away(
    world: World, toy_slurm: Run, tmp_path: Path
) -> None:
    for number, case in enumerate(JOBS):
        place = tmp_path / str(number)
        job = start_job(dataclasses.replace(toy_slurm, label=case.label), place, case.state)
        try:
            if case.tell:
                wait_until(lambda place=place: ready(place), 60)
                job.send_signal(case.tell)
            assert job.wait(60) == case.code, case
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(job.pid, signal.SIGKILL)
        asked = (place / "asked.txt").read_text() if (place / "asked.txt").exists() else ""
        assert asked == ("requeue 7_3\n" if case.again else ""), case


def start_job(run: Run, place: Path, state: str) -> subprocess.Popen:
    """A run's job.sh, started as the last of an array whose number is the array's. state: what squeue says of it."""
    folder = RunDir(place / "table" / "run")
    (folder.path / "log").mkdir(parents=True)
    write_json(folder.config, {"run": {"label": run.label, "seed": 1}, "fingerprint": "x"})
    for name, does in (("squeue", f"echo {state}"), ("scontrol", f'echo "$@" >> {place}/asked.txt')):
        (place / name).write_text(f"#!/bin/sh\n{does}\n")
        (place / name).chmod(0o755)
    assert isinstance(run.launch, SlurmLaunch)
    (place / script.JOB).write_text(script.job(run.launch, run, folder))
    variables = {"SLURM_JOB_ID": "7", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NODELIST": "n"}
    environment = os.environ | variables | {"PATH": f"{place}:{os.environ['PATH']}"}
    return subprocess.Popen(["bash", str(place / script.JOB)], env=environment, start_new_session=True)


# ---------------------------------------------------------------- sweeps


def test_cells_become_arrays_and_each_its_result_or_its_reason(go: Sweep, cluster: Cluster, table: Path) -> None:
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
    (table / "mended").touch()
    assert [outcome.val_bpb for outcome in go("ok-a", "exit3", "sigkill", "ok-b", "garbage")][1] == 2.002
    assert starts(table).count("ok-a") == 1 and starts(table).count("exit3") == 2
    assert len(submissions(cluster)) == 2, "only what was missing runs again"


def test_cells_that_ask_for_the_same_share_an_array(base: Run, cluster: Cluster) -> None:
    small = cells_of(base, ("ok-a", "ok-b", "ok-c"), {"slots": 2})
    big = cells_of(base, ("ok-d",), {"slots": 2, "mem": "64G"})
    outcomes = sweep.launch([*small[:2], *big, small[2]], NO_PLAN)
    assert all(outcome.val_bpb for outcome in outcomes)
    first, second = map(options, submissions(cluster))
    assert "--array=0-2%2" in first and "--array=0-0%2" in second and "--mem=64G" in second
    assert "--dependency=afterany:101" in second, "one after another: together they would be more than launch.slots"


def test_array_size_and_max_jobs_bound_what_is_submitted(go: Sweep, cluster: Cluster) -> None:
    outcomes = go("ok-a", "ok-b", "ok-c", "ok-d", "ok-e", array_size=2, max_jobs=3)
    assert all(outcome.val_bpb for outcome in outcomes)
    sizes = [len((batch.parent / script.FOLDERS).read_text().splitlines()) for batch in submissions(cluster)]
    assert sizes[:2] == [2, 1] and sum(sizes) == 5


def test_retries_and_bad_input(go: Sweep, table: Path) -> None:
    flaky, bad = go("flaky", "bad_input", retries=2)
    assert flaky.val_bpb == 2.001 and bad.error
    assert starts(table).count("flaky") == 2 and starts(table).count("bad_input") == 1


def test_what_sbatch_refuses_is_told_in_its_words(go: Sweep, cluster: Cluster, table: Path) -> None:
    cluster.say("refuse")
    (one,) = go("ok-a", retries=3)
    assert "sbatch: error: invalid partition specified: nowhere" in str(one.error)
    assert len(submissions(cluster)) == 1 and "| failed |" in (table / "STATUS.md").read_text()


def test_a_submission_whose_answer_was_lost_is_found_by_its_name(go: Sweep, cluster: Cluster, table: Path) -> None:
    cluster.say("mute")
    assert [outcome.val_bpb for outcome in go("ok-a", "ok-b")] == [2.001, 2.002]
    assert len(submissions(cluster)) == 1 and len(starts(table)) == 2


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_jobs_outlive_their_launcher_and_are_watched_again(
    number: signal.Signals,
    go: Sweep,
    cluster: Cluster,
    table: Path,
    world: World,
    base: Run,
) -> None:
    cluster.say("held")
    before = signal.signal(number, signal.SIG_DFL)
    world.interrupt(lambda: queue.look().jobs, number)
    with pytest.raises(StoppedError, match="what it started goes on, and the same command watches it again"):
        go("ok-a", "ok-b")
    signal.signal(number, before)
    cells = cells_of(base, ("ok-a", "ok-b"), {})
    assert [standing.state for standing, _ in standings(cells, find(cells))] == ["queued", "queued"]
    assert "| queued |" in (table / "STATUS.md").read_text()
    for folder in table.glob("ok-*"):  # as if it had died before sbatch answered
        ticket = queue.ticket_of(RunDir(folder))
        assert ticket is not None
        dataclasses.replace(ticket, id=None).write(RunDir(folder))
    cluster.unsay("held")
    assert [outcome.val_bpb for outcome in go("ok-a", "ok-b")] == [2.001, 2.002]
    assert len(submissions(cluster)) == 1 and len(starts(table)) == 2, "nothing was submitted twice"


def test_without_the_queue_nothing_is_submitted_twice(go: Sweep, cluster: Cluster, table: Path) -> None:
    go("exit3")
    (table / "mended").touch()
    cluster.say("deaf")
    with pytest.raises(RunError, match="Unable to contact slurm controller"):
        go("exit3")
    assert len(submissions(cluster)) == 1


def test_a_queue_that_does_not_answer_for_a_while_ends_nothing(
    go: Sweep, cluster: Cluster, table: Path, world: World, capsys: pytest.CaptureFixture
) -> None:
    def hear_again() -> None:
        cluster.unsay("deaf")
        (table / "mended").touch()
        cluster.command("scancel", "--signal=TERM", "--batch", "101_0")

    world.when(lambda: ready(table), lambda: cluster.say("deaf"))
    world.when(lambda: cluster.has("deaf"), hear_again, after=1.5)
    assert go("patient")[0].val_bpb == 2.001
    assert capsys.readouterr().out.count("Unable to contact slurm controller") == 1


# ---------------------------------------------------------------- signals


@pytest.mark.parametrize("name", ["USR2", "TERM"])
def test_a_preempted_job_saves_and_is_queued_again(
    name: str, go: Sweep, cluster: Cluster, table: Path, world: World
) -> None:
    world.when(lambda: ready(table), lambda: cluster.command("scancel", f"--signal={name}", "--batch", "101_0"))
    assert [outcome.val_bpb for outcome in go("patient", "ok-b")] == [2.001, 2.002]
    assert cluster.jobs("restarts") == [1, 0] and starts(table).count("patient") == 2
    assert len(submissions(cluster)) == 1


def test_the_last_of_an_array_is_queued_again_alone(go: Sweep, cluster: Cluster, table: Path, world: World) -> None:
    """Its number is the array's, which to SLURM means all of it."""
    world.when(lambda: ready(table), lambda: cluster.command("scancel", "--signal=USR2", "--batch", "101_1"))
    assert [outcome.val_bpb for outcome in go("ok-a", "patient")] == [2.001, 2.002]
    assert cluster.jobs("restarts") == [0, 1] and cluster.told("scontrol") == "requeue 101_1\n"


def test_a_cancelled_job_is_not_queued_again(go: Sweep, cluster: Cluster, table: Path, world: World) -> None:
    world.when(lambda: ready(table), lambda: cluster.command("scancel", "101_0"))
    patient, other = go("patient", "ok-b")
    assert "its job was cancelled (scancel); stopped by SIGTERM at step 3; saved" in str(patient.error)
    assert other.val_bpb == 2.002
    assert not requeued(cluster)
    assert go("patient", "ok-b")[0].val_bpb == 2.001


@pytest.mark.parametrize("world", ["clock", "processes"], indirect=True)
def test_ctrl_c_has_runs_save_and_takes_the_rest_from_the_queue(
    go: Sweep, cluster: Cluster, table: Path, world: World
) -> None:
    world.interrupt(lambda: ready(table), signal.SIGINT)
    with pytest.raises(StoppedError, match="the sweep was stopped; the same command goes on with it"):
        go("patient", "ok-b", slots=1)
    assert cluster.jobs("state") == ["FAILED", "CANCELLED"] and starts(table) == ["patient"]
    assert cluster.told("scancel").splitlines() == ["--quiet 101_1", "--quiet --signal=INT --batch 101_0"]
    assert "| patient | 1 | stopped |" in (table / "STATUS.md").read_text()
    assert not requeued(cluster)
    assert [outcome.val_bpb for outcome in go("patient", "ok-b")] == [2.001, 2.002]


def test_on_failure_stop_takes_what_waits_from_the_queue(
    go: Sweep, cluster: Cluster, table: Path, world: World
) -> None:
    world.when(lambda: starts(table), lambda: cluster.say("held"))
    outcomes = go("exit3", "ok-b", "ok-c", on_failure="stop", slots=1)
    assert "exit code 3" in str(outcomes[0].error) and starts(table) == ["exit3"]
    assert (table / "STATUS.md").read_text().count("| stopped |") == 2
    assert cluster.told("scancel") == "--quiet 101_1 101_2\n"


@pytest.mark.wide
@pytest.mark.parametrize("world", ["processes"], indirect=True)
def test_ranks_on_two_nodes_meet_and_train_as_one(
    toy: Callable[..., Run], cluster: Cluster, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With real workers: srun starts a torchrun on each node, here both on this machine."""
    monkeypatch.setattr(jobs, "worker_line", real_worker_line)
    run = toy(f"outputs={outputs}", *TOY_SLURM, "launch.nproc=2", "launch.nodes=2", "budget.max_steps=4")
    (outcome,) = sweep.launch([Cell(run, ["label=wide"])], NO_PLAN)
    (result,) = (json.loads(path.read_text()) for path in outputs.rglob("result.json"))
    assert outcome.val_bpb == result["val_bpb"] and result["world_size"] == 2
