"""One call of one SLURM command goes wrong, at any moment and in any way: no run is lost and none is run twice.

In the default tier the commands are functions and time is a fake clock; in the tier `slow` both are real.
"""

import contextlib
import dataclasses
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from golf.config import Run
from golf.errors import RunError, StoppedError
from golf.launcher import sweep
from golf.launcher.slurm import executor, queue, script
from golf.launcher.slurm.config import SlurmLaunch
from golf.rundir import RunDir, write_json
from tests.helpers.processes import wait_until
from tests.helpers.sweeps import NO_PLAN, cells_of, starts
from tests.helpers.worlds import ClockWorld, World, clock_cluster, process_cluster

TOY_SLURM = ["launch=slurm", "compute.device=cpu", "launch.cpus=1", "sweep_label=table"]
MOST_CALLS = 60
Command = Callable[..., subprocess.CompletedProcess]


def times_out(run: Command, command: list[str], how: dict[str, Any]) -> subprocess.CompletedProcess:
    raise subprocess.TimeoutExpired(command, 120)


def times_out_after(run: Command, command: list[str], how: dict[str, Any]) -> subprocess.CompletedProcess:
    run(command, **how)
    raise subprocess.TimeoutExpired(command, 120)


def fails(run: Command, command: list[str], how: dict[str, Any]) -> subprocess.CompletedProcess:
    return subprocess.CompletedProcess(command, 1, "", "")


def fails_after(run: Command, command: list[str], how: dict[str, Any]) -> subprocess.CompletedProcess:
    run(command, **how)
    said = f"{command[0]}: error: Socket timed out on send/recv operation"
    return subprocess.CompletedProcess(command, 1, "", said)


def says_nothing(run: Command, command: list[str], how: dict[str, Any]) -> subprocess.CompletedProcess:
    run(command, **how)
    return subprocess.CompletedProcess(command, 0, "", "")


def says_rubbish(run: Command, command: list[str], how: dict[str, Any]) -> subprocess.CompletedProcess:
    run(command, **how)
    return subprocess.CompletedProcess(command, 0, "slurm_load: \ufffd|x\n<html>|||\n", "")


def is_cut_short(run: Command, command: list[str], how: dict[str, Any]) -> subprocess.CompletedProcess:
    done = run(command, **how)
    return subprocess.CompletedProcess(command, 0, done.stdout[: len(done.stdout) // 2], "")


def cannot_start(run: Command, command: list[str], how: dict[str, Any]) -> subprocess.CompletedProcess:
    raise BlockingIOError(11, "Resource temporarily unavailable")


FAULTS = [times_out, times_out_after, fails, fails_after, says_nothing, says_rubbish, is_cut_short, cannot_start]


class Faulty:
    """Stands in for golf.launcher.slurm.queue.subprocess: call number `broken` (from 1) goes wrong, from then on all
    calls of the commands `down` do."""

    TimeoutExpired = subprocess.TimeoutExpired

    def __init__(self, run: Command, fault: Callable[..., subprocess.CompletedProcess], broken: int = 0):
        self.real, self.fault, self.broken, self.calls = run, fault, broken, 0
        self.down: set[str] = set()

    def run(self, command: list[str], **how: Any) -> subprocess.CompletedProcess:
        self.calls += 1
        if self.calls == self.broken or command[0] in self.down:
            return self.fault(self.real, command, how)
        return self.real(command, **how)


@dataclasses.dataclass
class Bench:
    """One sweep on one fake cluster."""

    base: Run
    world: World
    faulty: Faulty

    def go(self, *labels: str, **settings: object) -> list[sweep.Outcome]:
        cells = cells_of(self.base, labels, {"poll_seconds": 0.2, "grace_seconds": 5.0} | settings)
        return sweep.launch(cells, NO_PLAN)

    @property
    def table(self) -> Path:
        return Path(self.base.outputs) / "table"


@pytest.fixture
def bench(
    world: World, toy: Callable[..., Run], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Bench]:
    """bench(fault, n) -> a new sweep on a new cluster whose n-th call goes wrong."""
    base, number = toy(*TOY_SLURM), 0

    def make(fault: Callable[..., subprocess.CompletedProcess] = fails, broken: int = 0) -> Bench:
        nonlocal number
        number += 1
        here = tmp_path / str(number)
        place = here / "cluster"
        place.mkdir(parents=True)
        monkeypatch.setattr(queue, "subprocess", subprocess)
        if isinstance(world, ClockWorld):
            clock_cluster(place, world.clock, monkeypatch)
        else:
            process_cluster(place, here / "bin", monkeypatch)
        faulty = Faulty(queue.subprocess.run, fault, broken)
        monkeypatch.setattr(queue, "subprocess", faulty)
        monkeypatch.setattr(executor, "SETTLE_SECONDS", 0.5)
        return Bench(dataclasses.replace(base, outputs=str(here / "outputs")), world, faulty)

    return make


@pytest.mark.parametrize("fault", FAULTS)
def test_no_single_failure_loses_a_run_or_fails_a_row(fault: Callable, bench: Callable[..., Bench]) -> None:
    for one in each_call(bench, fault):
        outcomes = one.go("ok-a", "flaky", "exit3", retries=1)
        assert [outcome.val_bpb for outcome in outcomes] == [2.001, 2.002, None], one.faulty.broken
        assert sorted(starts(one.table)) == ["exit3", "exit3", "flaky", "flaky", "ok-a"], one.faulty.broken
        assert "exit code 3" in str(outcomes[2].error), one.faulty.broken


def each_call(bench: Callable[..., Bench], fault: Callable[..., subprocess.CompletedProcess]) -> Iterator[Bench]:
    """A new sweep for each call that there is, which goes wrong in it; the last has no such call."""
    for broken in range(1, MOST_CALLS):
        one = bench(fault, broken)
        yield one
        one.world.settle(Path(one.base.outputs).parent)
        if one.faulty.calls < broken:
            assert broken > 3, "some went wrong"
            return
    raise AssertionError("it takes more calls than that")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_launcher_that_comes_back_submits_nothing_twice(fault: Callable, bench: Callable[..., Bench]) -> None:
    """Its first calls are those that look for what another launcher left under way."""
    for broken in range(1, 4):
        one = bench(fault)
        place = Path(one.base.outputs).parent / "cluster"
        (place / "held").touch()
        before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
        one.world.interrupt(lambda place=place: any(place.glob("*.line")), signal.SIGTERM)
        with pytest.raises(StoppedError):
            one.go("ok-a", "ok-b")
        signal.signal(signal.SIGTERM, before)
        (place / "held").unlink()
        one.faulty.broken = one.faulty.calls + broken
        assert [outcome.val_bpb for outcome in one.go("ok-a", "ok-b")] == [2.001, 2.002], broken
        assert len((place / "sbatch.txt").read_text().splitlines()) == 1 and len(starts(one.table)) == 2, broken
        one.world.settle(place.parent)


@pytest.mark.parametrize("fault", FAULTS)
def test_ctrl_c_reaches_every_run_though_one_call_fails(fault: Callable, bench: Callable[..., Bench]) -> None:
    for one in each_call(bench, fault):
        one.world.interrupt(lambda one=one: any(one.table.rglob("ready")), signal.SIGINT)
        with pytest.raises(StoppedError, match="the sweep was stopped"):
            one.go("patient", "ok-b", slots=1)
        folder = next(path for path in one.table.glob("patient-*"))
        assert RunDir(folder).get_status()["state"] == "stopped", one.faulty.broken
        assert starts(one.table) == ["patient"], one.faulty.broken


def test_an_outage_of_minutes_fails_no_row(bench: Callable[..., Bench]) -> None:
    """Neither is anything submitted while the queue cannot be seen: it may have been submitted."""
    one = bench(times_out_after)
    one.faulty.down = {"sbatch", "squeue"}
    one.world.when(lambda: one.faulty.calls > 12, one.faulty.down.clear)
    assert [outcome.val_bpb for outcome in one.go("ok-a", "ok-b")] == [2.001, 2.002]
    place = Path(one.base.outputs).parent / "cluster"
    assert len((place / "sbatch.txt").read_text().splitlines()) == 1 and len(starts(one.table)) == 2


def test_sbatch_that_fails_for_good_fails_its_rows_in_words(bench: Callable[..., Bench]) -> None:
    one = bench(fails_after_nothing)
    one.faulty.down = {"sbatch"}
    (outcome,) = one.go("ok-a")
    assert "it was not submitted: sbatch: error: Socket timed out" in str(outcome.error)


def fails_after_nothing(run: Command, command: list[str], how: dict[str, Any]) -> subprocess.CompletedProcess:
    return subprocess.CompletedProcess(command, 1, "", "sbatch: error: Socket timed out on send/recv operation")


# ---------------------------------------------------------------- what is read


ODD_TICKETS = {
    "a list": [1],
    "no name": {"index": 0},
    "a name of another type": {"name": ["table-1"], "index": 0, "id": None},
    "an index of another type": {"name": "table-1", "index": {"a": 1}, "id": None},
    "an index that is a text": {"name": "table-1", "index": "0", "id": None},
    "a negative index": {"name": "table-1", "index": -1, "id": None},
    "true": {"name": "table-1", "index": True, "id": None},
    "an id of another type": {"name": "table-1", "index": 0, "id": [101]},
}


@pytest.mark.parametrize("case", ODD_TICKETS)
def test_a_ticket_of_another_shape_is_none(case: str, tmp_path: Path) -> None:
    folder = RunDir(tmp_path)
    write_json(tmp_path / queue.TICKET, ODD_TICKETS[case])
    assert queue.ticket_of(folder) is None
    queue.Ticket("table-1", 0, "101_0").write(folder)
    assert queue.ticket_of(folder) == queue.Ticket("table-1", 0, "101_0")


@pytest.mark.parametrize(
    "text", ["<html>", "a|b|c|d", "table-1|0|101|", "table-1|0|10", "table-1|x|101|RUNNING", "|||"]
)
def test_an_answer_that_is_none_of_squeue_is_refused(text: str) -> None:
    with pytest.raises(RunError, match="squeue: its answer cannot be read"):
        queue.parse(f"table-1|0|101|RUNNING\n{text}\n")


def test_of_a_job_that_stands_there_twice_the_one_that_goes_on_counts() -> None:
    for lines in (["101|FAILED", "102|RUNNING"], ["102|RUNNING", "101|FAILED"]):
        found = queue.parse("\n".join(f"table-1|0|{line}" for line in lines))
        assert found["table-1", 0] == queue.Job("102", 0, "RUNNING")
    assert queue.state_word("POWER_UP_NODE") == "running", "no state that golf does not know is an end"


# ---------------------------------------------------------------- job.sh

# A command that fails as often as `broken` beside it says, and then does what it should.
SHAKY = """\
#!/bin/bash
left=$(cat {place}/{name}.broken 2>/dev/null || echo 0)
echo "$@" >> {place}/{name}.txt
if [ "$left" -gt 0 ]; then echo $((left - 1)) > {place}/{name}.broken; echo "error: timed out" >&2; exit 1; fi
{does}
"""


@pytest.mark.parametrize("name", ["none", "squeue", "scontrol", "srun"])
def test_a_job_bears_one_failure_of_a_command(name: str, toy: Callable[..., Run], tmp_path: Path) -> None:
    """A job on two nodes is told that its time is up: its run saves, and the job is queued again."""
    folder = RunDir(tmp_path / "run")
    (folder.path / "log").mkdir(parents=True)
    folder.set_status("starting")
    run = f"echo '{{}}' > {folder.status}; touch {tmp_path}/ready; trap 'exit 130' TERM; while :; do sleep 0.05; done"
    does = {"squeue": "echo RUNNING", "srun": run}
    does["scontrol"] = 'if [ "$1" = show ]; then echo localhost; fi'
    for command, what in does.items():
        (tmp_path / command).write_text(SHAKY.format(place=tmp_path, name=command, does=what))
        (tmp_path / command).chmod(0o755)
    (tmp_path / f"{name}.broken").write_text("1")
    launch = toy("launch=slurm", "launch.nproc=2", "launch.nodes=2", "compute.device=cpu")
    assert isinstance(launch.launch, SlurmLaunch)
    (tmp_path / "job.sh").write_text(script.job(launch.launch, launch, folder))
    variables = {"SLURM_JOB_ID": "8", "SLURM_ARRAY_JOB_ID": "7", "SLURM_ARRAY_TASK_ID": "3", "SLURM_JOB_NODELIST": "n"}
    environment = os.environ | variables | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    job = subprocess.Popen(["bash", str(tmp_path / "job.sh")], env=environment, start_new_session=True)
    try:
        wait_until(lambda: (tmp_path / "ready").exists(), 60)
        job.send_signal(signal.SIGUSR2)
        assert job.wait(60) == 130
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(job.pid, signal.SIGKILL)
    asked = (tmp_path / "scontrol.txt").read_text().splitlines()
    assert asked[-1] == "requeue 8" and "--rdzv-endpoint=localhost:" in (tmp_path / "srun.txt").read_text()
