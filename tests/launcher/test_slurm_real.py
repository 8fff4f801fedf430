"""launch=slurm on a real SLURM of one node with two fake GPUs: smoke, a kill, preemptions, a launcher that dies."""

import contextlib
import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from golf import report
from golf.code_record import ROOT
from golf.launcher.slurm import queue
from golf.rundir import RunDir
from tests.helpers.processes import wait_until
from tests.helpers.runs import toy_overrides
from tests.helpers.sweeps import whole_lines
from tests.launcher.cluster import cluster, why_not

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(3000)]
PATIENCE = 600.0
SLURM = ["launch=slurm", "launch.gpus=1", "launch.cpus=1", "launch.poll_seconds=1"]
# What a report says of scores and sizes, whatever a run took.
COLUMNS = ("label", "seed", "val_bpb", "pre_quant_bpb", "quant_gap_bpb", "artifact_bytes", "steps", "fingerprint")


@pytest.fixture(scope="module", autouse=True)
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    if reason := why_not():
        pytest.skip(reason)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(cluster(tmp_path_factory.mktemp("slurm") / "cluster"))
        except (OSError, RuntimeError) as error:
            pytest.skip(f"no cluster starts here: {error}")
        yield


def start(folder: Path, outputs: Path, *extra: str, sweep: str = "+sweep=smoke") -> subprocess.Popen:
    """A sweep on the toy text, as a command."""
    places = [f"outputs={outputs}", "budget.max_steps=60", "checkpoint.every_steps=10", "log.every_steps=1"]
    toy = toy_overrides(folder, [*places, "compute.device=cpu", "launch.threads=1", *extra])
    command = [sys.executable, str(ROOT / "golf" / "train.py"), sweep, *toy]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=subprocess.STDOUT, text=True, start_new_session=True)


@pytest.fixture(scope="module")
def local(toy_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sweep's folder, as launch=local makes it."""
    outputs = tmp_path_factory.mktemp("local")
    sweep = start(toy_folder, outputs, "launch.slots=2")
    said = sweep.communicate(timeout=PATIENCE)[0]
    assert sweep.returncode == 0, said
    (register,) = outputs.rglob("sweep.json")
    return register.parent


def step_of(folder: RunDir) -> int:
    lines = whole_lines(folder.metrics) if folder.metrics.exists() else []
    return json.loads(lines[-1])["step"] if lines else 0


def folders(outputs: Path) -> dict[str, RunDir]:
    """label-seed -> folder of each run that has been opened."""
    return {path.parent.name.rsplit("-", 1)[0]: RunDir(path.parent) for path in outputs.rglob("config.json")}


def states(outputs: Path) -> dict[str, str]:
    """label-seed -> SLURM's state of its job."""
    view, found = queue.look(), {}
    for name, folder in folders(outputs).items():
        ticket = queue.ticket_of(folder)
        job = view.find(ticket) if ticket else None
        found[name] = job.state if job else ""
    return found


def job_of(folder: RunDir) -> str:
    ticket = queue.ticket_of(folder)
    assert ticket is not None and ticket.id is not None
    return ticket.id


def preempt(folder: RunDir, name: str) -> None:
    """As SLURM does before it takes a job's node away. scancel tries on where others of the array wait."""
    with contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(["scancel", f"--signal={name}", "--batch", job_of(folder)], timeout=5)


def devices_of(folder: RunDir) -> str:
    """What SLURM told the worker of this run to use."""
    pid = folder.get_status()["pid"]
    variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    return dict(variable.decode().split("=", 1) for variable in variables if variable)["CUDA_VISIBLE_DEVICES"]


def told(folder: Path) -> list[tuple]:
    """The lines of its report, as far as they must agree."""
    assert report.main([str(folder)]) == 0
    header, *lines = (line.split(",") for line in (folder / "report.csv").read_text().splitlines())
    return sorted(tuple(dict(zip(header, line, strict=True))[key] for key in COLUMNS) for line in lines)


def same_artifacts(ours: Path, theirs: Path) -> bool:
    pairs = [(path, theirs / path.relative_to(ours)) for path in sorted(ours.rglob("artifact.golf"))]
    return len(pairs) == 4 and all(one.read_bytes() == two.read_bytes() for one, two in pairs)


def test_smoke_survives_its_launcher_and_a_killed_cell_and_equals_the_local_sweep(
    toy_folder: Path, tmp_path: Path, local: Path
) -> None:
    first = start(toy_folder, tmp_path, *SLURM)
    wait_until(lambda: list(states(tmp_path).values()).count("RUNNING") == 2, PATIENCE)
    first.send_signal(signal.SIGKILL)
    first.wait()
    second = start(toy_folder, tmp_path, *SLURM)

    def training() -> list[str]:
        return [name for name, folder in folders(tmp_path).items() if step_of(folder) and not folder.finished()]

    assert second.stdout is not None
    heard = next(line for line in second.stdout if "under way already" in line)  # it has seen the jobs: one may go
    wait_until(lambda: len(training()) == 2, PATIENCE)
    running = [folders(tmp_path)[name] for name in training()]
    assert {devices_of(folder) for folder in running} == {"0", "1"}, "each has its own"
    killed = running[0]
    subprocess.run(["scancel", job_of(killed)], check=True)
    said = heard + second.stdout.read()
    assert second.wait(PATIENCE) == 1 and "4 runs are under way already; they are watched" in said, said
    assert "its job was cancelled (scancel); stopped by SIGTERM at step" in said and "3 done, 1 failed" in said, said

    third = start(toy_folder, tmp_path, *SLURM)
    said = third.communicate(timeout=PATIENCE)[0]
    assert third.returncode == 0 and "1 runs submitted" in said and "goes on from its checkpoint" in said, said
    sweep = tmp_path / local.name
    assert len(list((sweep / "slurm").iterdir())) == 2, "two arrays: four runs, then the one that was killed"
    assert told(sweep) == told(local) and same_artifacts(sweep, local)


def test_preempted_cells_equal_undisturbed_ones(toy_folder: Path, tmp_path: Path, local: Path) -> None:
    sweep = start(toy_folder, tmp_path, *SLURM)
    wait_until(lambda: len(folders(tmp_path)) == 4, PATIENCE)
    preempted = {name: folders(tmp_path)[name] for name in ("int6-s1337", "int8-s42")}
    for (name, folder), signal_ in zip(preempted.items(), ("USR2", "TERM"), strict=True):
        wait_until(lambda folder=folder: step_of(folder) >= 15, PATIENCE)
        preempt(folder, signal_)
        wait_until(lambda name=name: states(tmp_path)[name] == "PENDING", PATIENCE)
        assert folder.get_status()["state"] == "stopped"
        subprocess.run(["scontrol", "update", f"jobid={job_of(folder)}", "starttime=now"], check=False)
    said = sweep.communicate(timeout=PATIENCE)[0]
    assert sweep.returncode == 0, said
    for name, folder in folders(tmp_path).items():
        again = name in preempted
        console = (folder.path / "log" / "console.txt").read_text()
        assert console.count("SLURM job") == 1 + again and console.count("resumed at step") == again, console
    assert len(list((tmp_path / local.name / "slurm").iterdir())) == 1, "nothing was submitted again"
    assert told(tmp_path / local.name) == told(local) and same_artifacts(tmp_path / local.name, local)


@pytest.mark.parametrize("how", ["scancel", "USR2"])
def test_two_ranks_save_when_their_job_ends(how: str, toy_folder: Path, tmp_path: Path) -> None:
    """SLURM signals torchrun and its ranks all at once, or job.sh alone."""
    more = ["launch.nproc=2", "launch.gpus=2", "budget.max_steps=3000", "seed=7"]
    sweep = start(toy_folder, tmp_path, *SLURM, *more, sweep="-m")
    wait_until(lambda: any(step_of(folder) >= 5 for folder in folders(tmp_path).values()), PATIENCE)
    (folder,) = folders(tmp_path).values()
    if how == "USR2":
        preempt(folder, "USR2")
        wait_until(lambda: "PENDING" in states(tmp_path).values(), PATIENCE)
    subprocess.run(["scancel", job_of(folder)], check=True)
    said = sweep.communicate(timeout=PATIENCE)[0]
    assert sweep.returncode == 1, said
    status = folder.get_status()
    assert status["state"] == "stopped" and "saved: step" in status["message"], (status, said)
