"""The failure matrix: whatever one cell does is one failed row; the others stand, and only it runs again.

Cells are fake workers on a fake clock; a few tests have them as processes, and in the tier `slow` all do.
"""

import dataclasses
import errno
import io
import itertools
import json
import multiprocessing
import os
import signal
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import pytest

from golf import rundir
from golf.config import Run
from golf.errors import RunError, StoppedError, UserError
from golf.launcher import jobs, scheduler, sweep
from golf.launcher.cells import Cell
from golf.launcher.local import LocalAttempt
from golf.launcher.slots import Slot
from golf.terminal import lasting_streams
from tests.helpers.processes import processes_in, wait_until
from tests.helpers.sweeps import NO_PLAN, Sweep, cells_of, starts
from tests.helpers.tiers import slow
from tests.helpers.worlds import World

# label: (what the row says, launch settings)
MATRIX = {
    "raise": ("ended with exit code 1 and without a word", {}),
    "exit3": ("ended with exit code 3 and without a word", {}),
    "sigkill": ("killed by SIGKILL", {}),
    "oom": ("killed by SIGKILL (by the kernel, when memory runs out)", {}),
    "hang": ("timed out after 5 s (launch.timeout_seconds)", {"timeout_seconds": 5.0, "grace_seconds": 0.5}),
    "garbage": ("without a readable result.json", {}),
    "no_result": ("without a readable result.json", {}),
    "half_a_result": ("without a readable result.json", {}),
    "foreign_result": ("without a readable result.json", {}),
    "odd_metrics": ("ended with exit code 1", {}),
    "disk_full": ("disk full at step 3; free some space", {}),
    "rank_killed": ("rank 1 killed by SIGKILL", {"nproc": 2}),
    "rank_exits_7": ("rank 1 ended with exit code 7", {"nproc": 2}),
}

IN_PROCESSES = "raise"  # one case of the default tier


@pytest.fixture
def table(outputs: Path) -> Path:
    """The folder of the sweep."""
    return outputs / "table"


@pytest.fixture(scope="session")
def toy_local(toy: Callable[..., Run]) -> Run:
    return toy("sweep_label=table")


@pytest.fixture
def go(toy_local: Run, outputs: Path, world: World) -> Sweep:
    """go(*labels, **launch settings) -> outcomes of fake cells with these labels; seeds 1, 2 ..."""
    base = dataclasses.replace(toy_local, outputs=str(outputs))
    return lambda *labels, **settings: sweep.launch(cells_of(base, labels, settings), NO_PLAN)


@pytest.mark.parametrize(
    "world, label",
    [
        *(("clock", label) for label in MATRIX),
        ("processes", IN_PROCESSES),
        *(slow("processes", label) for label in MATRIX if label != IN_PROCESSES),
    ],
    indirect=["world"],
)
def test_one_cell_fails_the_others_stand(
    label: str, go: Sweep, outputs: Path, table: Path, world: World, capsys: pytest.CaptureFixture
) -> None:
    message, settings = MATRIX[label]
    before = go("ok-a", label, "ok-b", **settings)
    assert [outcome.val_bpb for outcome in before] == [2.001, None, 2.003]
    assert message in str(before[1].error)
    shown = capsys.readouterr().out
    assert f"{label}-s2 failed: " in shown and message in shown and f"{label} was here" in shown, "the tail of its log"
    status = (table / "STATUS.md").read_text()
    assert f"| {label} | 2 | failed |" in status and message in status and "| ok-b | 3 | done |" in status
    assert world.left(outputs) == []
    (table / "mended").touch()
    (table / "starts.txt").unlink()
    after = go("ok-a", label, "ok-b", **settings)
    assert [outcome.val_bpb for outcome in after] == [2.001, 2.002, 2.003]
    assert set(starts(table)) == {label}, "only what was missing runs again"


@pytest.mark.wide
@pytest.mark.parametrize("moment", ["imports", "trains"])
def test_torchrun_killed_leaves_no_rank(
    moment: str, toy: Callable[..., Run], outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With real workers: SIGKILL of torchrun itself is one failed row, its ranks die with it, and the rest goes on."""
    base = toy(f"outputs={outputs}", "sweep_label=table", "launch.slots=1", "budget.max_steps=100000", "launch.nproc=2")
    budget, launch = (dataclasses.replace(base.budget, max_steps=4), dataclasses.replace(base.launch, nproc=1))
    short = dataclasses.replace(base, label="short", seed=2, budget=budget, launch=launch)
    killed = []

    class Killer(scheduler.Scheduler):
        def _look_after(self, attempt: scheduler.Attempt) -> bool:
            assert isinstance(attempt, LocalAttempt)
            metrics = attempt.task.folder.metrics
            ranks = len([line for line in processes_in(outputs) if "torch.distributed" not in line])
            trains = metrics.exists() and '"step": 4,' in metrics.read_text()
            if not killed and attempt.task.run.launch.nproc == 2 and (trains if moment == "trains" else ranks == 2):
                killed.append(os.kill(attempt.process.child.pid, signal.SIGKILL))
            return super()._look_after(attempt)

    monkeypatch.setattr(sweep, "Scheduler", Killer)
    outcomes = sweep.launch([Cell(base, ["label=long"]), Cell(short, ["label=short"])], NO_PLAN)
    assert "killed by SIGKILL" in str(outcomes[0].error) and outcomes[1].val_bpb is not None
    wait_until(lambda: not processes_in(outputs), 10)


def test_a_disk_that_is_full_for_the_launcher_fails_that_cell(go: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    real = rundir.make_folder

    def full(folder: rundir.RunDir, *rest: object) -> None:
        if "unlucky" in folder.path.name:
            raise OSError(errno.ENOSPC, "No space left on device")
        real(folder, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(jobs, "make_folder", full)
    one, two = go("unlucky", "ok")
    assert "could not be started" in str(one.error) and "No space left" in str(one.error) and two.val_bpb == 2.002


def test_a_board_that_cannot_be_written_costs_no_run(
    go: Sweep, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(path: Path, text: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("golf.launcher.board.write_atomic", full)
    assert [outcome.val_bpb for outcome in go("ok-a", "ok-b")] == [2.001, 2.002]
    assert capsys.readouterr().out.count("cannot be written") == 1


def test_retries_try_what_may_mend_and_nothing_else(go: Sweep, table: Path) -> None:
    flaky, bad, hopeless = go("flaky", "bad_input", "exit3", retries=2)
    assert flaky.val_bpb == 2.001 and bad.error and hopeless.error
    assert {name: starts(table).count(name) for name in ("flaky", "bad_input", "exit3")} == {
        "flaky": 2,
        "bad_input": 1,
        "exit3": 3,
    }


def test_on_failure_stop_starts_nothing_more(go: Sweep, table: Path) -> None:
    outcomes = go("takes_a_while", "exit3", "ok-c", "ok-d", on_failure="stop", slots=2)
    assert outcomes[0].val_bpb == 2.001, "what ran went on to its end"
    assert "exit code 3" in str(outcomes[1].error) and "not started" in str(outcomes[3].error)
    assert "ok-d" not in starts(table)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize(
    "world, number",
    [
        *(("clock", number) for number in SIGNALS),
        ("processes", signal.SIGTERM),
        *(slow("processes", number) for number in SIGNALS if number != signal.SIGTERM),
    ],
    indirect=["world"],
)
def test_a_signal_stops_everything_and_leaves_nothing(
    number: signal.Signals, go: Sweep, outputs: Path, table: Path, world: World
) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # nohup, say, has it ignored
    world.interrupt(lambda: len(starts(table)) == 2, number)
    with pytest.raises(StoppedError) as stopped:
        go("slow", "slow2", "ok-c", slots=2, retries=3)
    assert stopped.value.code == 130 and world.left(outputs) == [] and "ok-c" not in starts(table)
    status = (table / "STATUS.md").read_text()
    assert "| slow | 1 | stopped |" in status and "| ok-c | 3 | waiting |" in status
    assert signal.signal(number, before) == signal.SIG_DFL, "handlers are given back"
    (table / "mended").touch()
    assert [outcome.val_bpb for outcome in go("slow", "slow2", "ok-c")] == [2.001, 2.002, 2.003]


@pytest.mark.parametrize("world", ["processes"], indirect=True)
def test_runs_save_and_stop_when_their_launcher_is_killed(go: Sweep, table: Path, world: World) -> None:
    def launch() -> None:
        world.when(lambda: any(table.rglob("ready")), partial(os.kill, os.getpid(), signal.SIGKILL))
        go("patient")

    child = multiprocessing.get_context("fork").Process(target=launch)
    child.start()
    child.join()
    wait_until(lambda: not world.left(table), 30)
    (status,) = (json.loads(path.read_text()) for path in table.rglob("status.json"))
    assert child.exitcode == -signal.SIGKILL and status["state"] == "stopped"


def test_a_second_signal_kills_what_will_not_stop(go: Sweep, outputs: Path, table: Path, world: World) -> None:
    world.interrupt(lambda: starts(table), signal.SIGTERM, signal.SIGTERM)
    begun = world.now()
    with pytest.raises(StoppedError):
        go("hang", grace_seconds=120.0)
    assert world.now() - begun < 60, "it was not the end of its grace"
    assert world.left(outputs) == []


def test_a_sweep_belongs_to_one_launcher(go: Sweep, table: Path) -> None:
    table.mkdir(parents=True)
    with sweep.held(table), pytest.raises(RunError, match="another launcher is at work here"):
        go("ok")
    assert starts(table) == []


def test_a_cell_at_work_elsewhere_fails_alone(go: Sweep, table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler, "BUSY_SECONDS", 0.1)
    go("exit3", "ok-b")
    (folder,) = table.glob("exit3-s1-*")
    with rundir.RunDir(folder).lock():
        one, _ = go("exit3", "ok-b", grace_seconds=0.5)
    assert "is at work here; wait for it or stop it" in str(one.error) and starts(table).count("exit3") == 1


def test_a_folder_that_a_dying_run_still_holds_is_waited_for(go: Sweep, table: Path, world: World) -> None:
    go("exit3")
    (folder,) = table.glob("exit3-s1-*")
    (table / "mended").touch()
    with ExitStack() as holder:
        holder.enter_context(rundir.RunDir(folder).lock())
        world.when(lambda: True, holder.close, after=1.5)
        assert go("exit3")[0].val_bpb == 2.001


def test_what_was_done_before_counts_also_when_a_sweep_stops_early(go: Sweep, capsys: pytest.CaptureFixture) -> None:
    go("ok-a", "exit3", "ok-c", slots=1)
    again = go("ok-a", "exit3", "ok-c", "ok-d", on_failure="stop", slots=1)
    assert [outcome.val_bpb for outcome in again] == [2.001, None, 2.003, None]
    assert "\n2 done before (skipped), 1 failed, 1 not finished\n" in capsys.readouterr().out
    go("ok-a")
    assert "all 1 runs were done before; nothing was started" in capsys.readouterr().out


@pytest.mark.parametrize("number", [errno.EIO, errno.EPIPE])
def test_a_terminal_that_is_gone_costs_no_run(number: int, go: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(number, os.strerror(number))

    monkeypatch.setattr("sys.stdout", Gone())
    with lasting_streams():
        assert [outcome.val_bpb for outcome in go("ok-a", "ok-b")] == [2.001, 2.002]


def test_bad_input_in_a_rank_is_not_tried_again(go: Sweep, table: Path) -> None:
    (one,) = go("bad_input", nproc=2, retries=2)
    assert one.error and len(starts(table)) <= 2, "two ranks, one attempt"


def test_seeds_stay_registered_as_they_were_before_any_result(go: Sweep, table: Path) -> None:
    path = table / "sweep.json"
    path.parent.mkdir(parents=True)
    go("exit3")
    first = json.loads(path.read_text())
    (table / "mended").touch()
    path.write_text(json.dumps(first | {"seeds": [1, 2]}))
    go("exit3")
    assert json.loads(path.read_text())["seeds"] == [], "nothing had a result yet"
    path.write_text(json.dumps(first | {"seeds": [1, 2]}))
    go("exit3")
    kept = json.loads(path.read_text())
    assert kept["seeds"] == [1, 2] and kept["registered"] == first["registered"]


def test_cells_get_devices_of_their_own(go: Sweep, outputs: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7")
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    for room in ("golf.launcher.slots", "golf.launcher.local"):
        monkeypatch.setattr(f"{room}.devices_needed", lambda run: run.launch.nproc)
    go("takes_a_while", "ok-b", "ok-c", nproc=2)
    taken = sorted(
        (found["devices"], found["from"], found["to"])
        for found in (json.loads(path.read_text())["environment"] for path in outputs.rglob("result.json"))
    )
    assert len(taken) == 3 and {devices for devices, _, _ in taken} <= {"4,5", "6,7"}
    for (ours, _, ends), (theirs, begins, _) in itertools.pairwise(taken):
        assert ours != theirs or ends <= begins, "one device, two runs at once"
    with pytest.raises(
        UserError, match=r"launch.slots=3: 4 devices hold 2 run\(s\) of launch.nproc=2; try launch.slots=2"
    ):
        go("ok-a", "ok-b", "ok-c", nproc=2, slots=3)


def test_slots_share_the_cores_and_stay_the_same_when_a_sweep_goes_on(
    go: Sweep, outputs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("golf.launcher.slots.whole_machine", lambda: Slot(12))
    go("ok-a", "exit3", "ok-c")
    (outputs / "table" / "mended").touch()
    go("ok-a", "exit3", "ok-c")
    threads = [json.loads(path.read_text())["environment"]["threads"] for path in outputs.rglob("result.json")]
    assert threads == ["4", "4", "4"], "12 cores for 3 cells, also when one alone is left"
