"""The failure matrix: whatever one cell does is one failed row; the others stand, and only it runs again."""

import dataclasses
import errno
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from golf import rundir
from golf.config import Run
from golf.errors import RunError, StoppedError, UserError
from golf.launcher import board, jobs, scheduler, sweep
from golf.launcher.cells import Cell
from golf.launcher.grid import Plan
from golf.launcher.local import LocalAttempt
from golf.launcher.slots import Slot
from tests.helpers.processes import processes_in, wait_until
from tests.helpers.tiers import quick

FAKE = str(Path(__file__).with_name("fake_worker.py"))
NO_PLAN = Plan(None, None, (), {})

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

# Of a kind with another.
MORE = {
    "exit3",
    "disk_full",
    "sigkill",
    "hang",
    "garbage",
    "no_result",
    "foreign_result",
    "odd_metrics",
    "rank_exits_7",
}

Sweep = Callable[..., list[sweep.Outcome]]


@pytest.fixture
def outputs(tmp_path: Path) -> Path:
    return tmp_path / "outputs"


@pytest.fixture
def go(toy: Callable[..., Run], outputs: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """go(*labels, **launch settings) -> outcomes of fake cells with these labels; seeds 1, 2 ..."""
    base = toy(f"outputs={outputs}", "sweep_label=table")
    real = jobs.worker_command

    def command(run: Run, folder: rundir.RunDir, slot: Slot) -> tuple[list[str], dict[str, str]]:
        line, environment = real(run, folder, slot)
        return [FAKE if part.endswith("golf/worker.py") else part for part in line], environment

    monkeypatch.setattr(jobs, "worker_command", command)

    def run(*labels: str, **settings: object) -> list[sweep.Outcome]:
        launch = dataclasses.replace(base.launch, **settings)
        cells = [
            Cell(dataclasses.replace(base, label=label, seed=seed, launch=launch), [f"label={label}", f"seed={seed}"])
            for seed, label in enumerate(labels, 1)
        ]
        return sweep.launch(cells, NO_PLAN)

    return run


def starts(outputs: Path) -> list[str]:
    path = outputs / "table" / "starts.txt"
    return [line.split()[0] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.mark.parametrize("label", quick(MATRIX.keys() - MORE, MATRIX))
def test_one_cell_fails_the_others_stand(label: str, go: Sweep, outputs: Path, capsys: pytest.CaptureFixture) -> None:
    message, settings = MATRIX[label]
    before = go("ok-a", label, "ok-b", **settings)
    assert [outcome.val_bpb for outcome in before] == [2.001, None, 2.003]
    assert message in str(before[1].error)
    shown = capsys.readouterr().out
    assert f"{label}-s2 failed: " in shown and message in shown and f"{label} was here" in shown, "the tail of its log"
    status = (outputs / "table" / "STATUS.md").read_text()
    assert f"| {label} | 2 | failed |" in status and message in status and "| ok-b | 3 | done |" in status
    assert processes_in(outputs) == []
    (outputs / "table" / "mended").touch()
    (outputs / "table" / "starts.txt").unlink()
    after = go("ok-a", label, "ok-b", **settings)
    assert [outcome.val_bpb for outcome in after] == [2.001, 2.002, 2.003]
    assert set(starts(outputs)) == {label}, "only what was missing runs again"


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


def test_retries_try_what_may_mend_and_nothing_else(go: Sweep, outputs: Path) -> None:
    flaky, bad, hopeless = go("flaky", "bad_input", "exit3", retries=2)
    assert flaky.val_bpb == 2.001 and bad.error and hopeless.error
    assert {name: starts(outputs).count(name) for name in ("flaky", "bad_input", "exit3")} == {
        "flaky": 2,
        "bad_input": 1,
        "exit3": 3,
    }


def test_on_failure_stop_starts_nothing_more(go: Sweep, outputs: Path) -> None:
    outcomes = go("takes_a_while", "exit3", "ok-c", "ok-d", on_failure="stop", slots=2)
    assert outcomes[0].val_bpb == 2.001, "what ran went on to its end"
    assert "exit code 3" in str(outcomes[1].error) and "not started" in str(outcomes[3].error)
    assert "ok-d" not in starts(outputs)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_stops_everything_and_leaves_nothing(number: signal.Signals, go: Sweep, outputs: Path) -> None:
    before = signal.signal(number, signal.SIG_DFL)  # nohup, say, has it ignored
    sender = f"import os, pathlib, time\nwhile not pathlib.Path({str(outputs / 'table' / 'starts.txt')!r}).exists():"
    sender += f" time.sleep(0.05)\ntime.sleep(0.5); os.kill({os.getpid()}, {int(number)})"
    helper = subprocess.Popen([sys.executable, "-c", sender])
    with pytest.raises(StoppedError) as stopped:
        go("slow", "slow2", "ok-c", slots=2, retries=3)
    helper.wait()
    assert stopped.value.code == 130 and processes_in(outputs) == [] and "ok-c" not in starts(outputs)
    status = (outputs / "table" / "STATUS.md").read_text()
    assert "| slow | 1 | stopped |" in status and "| ok-c | 3 | waiting |" in status
    assert signal.signal(number, before) == signal.SIG_DFL, "handlers are given back"
    (outputs / "table" / "mended").touch()
    assert [outcome.val_bpb for outcome in go("slow", "slow2", "ok-c")] == [2.001, 2.002, 2.003]


def test_a_second_signal_kills_what_will_not_stop(go: Sweep, outputs: Path) -> None:
    sender = f"import os, pathlib, time\nwhile not pathlib.Path({str(outputs / 'table' / 'starts.txt')!r}).exists():"
    sender += f" time.sleep(0.05)\ntime.sleep(0.5)\nfor i in range(2): os.kill({os.getpid()}, 15); time.sleep(0.5)"
    helper = subprocess.Popen([sys.executable, "-c", sender])
    begun = time.monotonic()
    with pytest.raises(StoppedError):
        go("hang", grace_seconds=120.0)
    assert time.monotonic() - begun < 60, "it was not the end of its grace"
    helper.wait()
    assert processes_in(outputs) == []


def test_a_sweep_belongs_to_one_launcher(go: Sweep, outputs: Path) -> None:
    (outputs / "table").mkdir(parents=True)
    with sweep.held(outputs / "table"), pytest.raises(RunError, match="another launcher is at work here"):
        go("ok")
    assert starts(outputs) == []


def test_a_cell_at_work_elsewhere_fails_alone(
    go: Sweep, outputs: Path, monkeypatch: pytest.MonkeyPatch, toy: Callable[..., Run]
) -> None:
    monkeypatch.setattr(scheduler, "BUSY_SECONDS", 0.1)
    go("exit3", "ok-b")
    (folder,) = (outputs / "table").glob("exit3-s1-*")
    with rundir.RunDir(folder).lock():
        one, _ = go("exit3", "ok-b", grace_seconds=0.5)
    assert "is at work here; wait for it or stop it" in str(one.error) and starts(outputs).count("exit3") == 1


def test_a_folder_that_a_dying_run_still_holds_is_waited_for(go: Sweep, outputs: Path) -> None:
    go("exit3")
    (folder,) = (outputs / "table").glob("exit3-s1-*")
    (outputs / "table" / "mended").touch()
    hold = "import fcntl, sys, time; f = open(sys.argv[1], 'a'); fcntl.flock(f, fcntl.LOCK_EX); print(1, flush=True)"
    command = [sys.executable, "-c", f"{hold}; time.sleep(1.5)", str(folder / ".lock")]
    holder = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert holder.stdout is not None and holder.stdout.readline()
    assert go("exit3")[0].val_bpb == 2.001
    holder.wait()


def test_what_was_done_before_counts_also_when_a_sweep_stops_early(go: Sweep) -> None:
    go("ok-a", "exit3", "ok-c", slots=1)
    again = go("ok-a", "exit3", "ok-c", "ok-d", on_failure="stop", slots=1)
    assert [outcome.val_bpb for outcome in again] == [2.001, None, 2.003, None]


def test_a_terminal_that_is_gone_costs_no_run(go: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def gone(*what: object, **how: object) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(board.Console, "print", gone)
    monkeypatch.setattr(sweep.tables, "show_end", lambda *a: None)
    assert [outcome.val_bpb for outcome in go("ok-a", "ok-b")] == [2.001, 2.002]


@pytest.mark.wide
def test_bad_input_in_a_rank_is_not_tried_again(go: Sweep, outputs: Path) -> None:
    (one,) = go("bad_input", nproc=2, retries=2)
    assert one.error and len(starts(outputs)) <= 2, "two ranks, one attempt"


def test_seeds_stay_registered_as_they_were_before_any_result(go: Sweep, outputs: Path) -> None:
    path = outputs / "table" / "sweep.json"
    path.parent.mkdir(parents=True)
    go("exit3")
    first = json.loads(path.read_text())
    (outputs / "table" / "mended").touch()
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
