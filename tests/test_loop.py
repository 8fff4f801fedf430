"""Whole toy runs in this process: the folder, the result, repeatability, kills, stops."""

import errno
import json
import math
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from golf import loop
from golf.artifact.file import read_artifact
from golf.checkpoint import load_tensors, save_tensors
from golf.config import Recipe, Run
from golf.dist import Ranks
from golf.errors import RunError, UserError
from golf.keeping import LoopState
from golf.loop import accumulate, warm_up
from golf.rundir import RunDir, choose_folder, marks
from golf.scoring import Scoring
from golf.worker import PREEMPTIONS, explain, main
from tests.helpers.runs import Job, assert_same_run
from tests.helpers.schema import FILES, SCHEMA_KEYS
from tests.helpers.tiers import slow

ALONE = Ranks(0, 1, torch.device("cpu"))


def test_a_run_leaves_a_whole_folder_and_a_sane_result(job: Callable[..., Job]) -> None:
    one = job("eval=sliding", "average=ema", "eval.every_steps=10", "budget.max_steps=30", "schedule.steps=10")
    printed = one.here()
    result = one.result()
    assert set(SCHEMA_KEYS) <= set(result) and result["status"] == "done"
    assert all((one.folder.path / name).exists() for name in FILES)
    assert f"{result['val_bpb']:.4f}" in printed and "of 500,000 bytes" in printed
    assert result["artifact_bytes"] == one.folder.artifact.stat().st_size
    assert result["val_bpb"] == result["evals"]["sliding"]["val_bpb"]
    assert result["post_quant_bpb"] == result["evals"]["plain"]["val_bpb"]
    assert result["quant_gap_bpb"] == pytest.approx(result["post_quant_bpb"] - result["pre_quant_bpb"])
    assert len({result["raw_bpb"], result["pre_quant_bpb"], result["post_quant_bpb"]}) == 3
    assert result["steps"] == 30 and result["train_tokens"] == 30 * 256 and result["deterministic"]
    loss = result["evals"]["plain"]["val_loss"]
    assert loss < math.log(384) - 0.5, "it learned"
    assert result["counted_seconds"] == result["phases"]["train"]["seconds"] and result["in_time"]
    assert result["legal"] is None and result["legality"] == [] and result["average"].startswith("EMA over")
    assert result["phases"]["train"]["reads"] == ["train"] and result["phases"]["eval"]["reads"] == ["val"]
    assert json.loads(one.folder.status.read_text())["state"] == "done"
    records = [json.loads(line) for line in one.folder.metrics.read_text().splitlines()]
    assert [r["step"] for r in records if "val_bpb" in r] == [10, 20]
    assert records[-1]["step"] == 30 and records[0]["step"] == 1
    averaged, _ = load_tensors(one.folder.weights)
    assert set(averaged) == {name for name, _ in one.run.model.build_on_meta().named_parameters()}
    artifact = read_artifact(one.folder.artifact)
    assert artifact.header["weights"] == result["evals"]["sliding"]["weights"] == result["average"]
    model = artifact.model
    again = Scoring(one.run.eval, one.prepared, ALONE).score(model, "sliding")
    assert again.bpb == pytest.approx(result["val_bpb"], abs=1e-6)


def test_training_on_the_scored_text_is_illegal_and_says_so(job: Callable[..., Job]) -> None:
    one = job("loader.split=val")
    printed = one.here()
    result = one.result()
    assert result["legal"] is False and "loader.split=val" in result["legality"][0] and "ILLEGAL" in printed
    assert result["phases"]["train"]["reads"] == ["val"]


def test_an_artifact_over_the_cap_does_not_fit(job: Callable[..., Job]) -> None:
    one = job("cap_bytes=2000", "budget.max_steps=2")
    assert "OVER THE CAP" in one.here()
    assert one.result()["fits"] is False and one.result()["artifact_bytes"] > 2000


def test_repeated_runs_are_bitwise_the_same(job: Callable[..., Job]) -> None:
    runs = [job("loader=shuffled", outputs=name) for name in ("a", "b")]
    for one in runs:
        one.here()
    assert runs[0].folder.artifact.read_bytes() == runs[1].folder.artifact.read_bytes()
    assert runs[0].result()["val_bpb"] == runs[1].result()["val_bpb"]


class Killed(BaseException):
    """Ends a run in this process as SIGKILL ends a process: nothing is saved on the way out."""


def at_step(step: int, act: Callable[[], None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a run in this process call `act` once, after this step and before anything is saved of it."""

    def describe(run: Recipe, state: LoopState, *rest: Any) -> dict[str, Any]:
        if state.step == step:
            monkeypatch.setattr(loop, "describe", real)
            act()
        return real(run, state, *rest)

    real = loop.describe
    monkeypatch.setattr(loop, "describe", describe)


def kill() -> None:
    raise Killed


CRAFT = {  # the first kill is before things change, the second after
    "recurrence": ["model/stack=recurrence", "average=ema"],
    "replay": [
        "average=ema_swa",
        "qat=early",
        "late=replay",
        "late.share=0.4",
        "late.count=5",
        "late.start.rate_below=1",
    ],
    "distill": ["average=lawa", "average.every_steps=4", "late=distill", "late.share=0.4"],
    "curriculum": ["curriculum=[length,batch]", "curriculum.length.share=0.4", "curriculum.batch.parts=2"],
}
RESUMED = ["loader=shuffled", "schedule.steps=20", "budget.max_steps=24", "checkpoint.every_steps=3"]


@pytest.mark.parametrize("craft", [CRAFT[k] if k == "replay" else slow(CRAFT[k]) for k in CRAFT], ids=CRAFT)
def test_killed_and_resumed_is_bitwise_the_same(
    craft: list[str], job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed in the middle, twice: averages, momenta, the position in the data and all else come back."""
    settings = [*craft, *RESUMED, "log.every_steps=1"]
    whole, broken = job(*settings, outputs="whole"), job(*settings, outputs="broken")
    whole.here()
    for step in (5, 17):
        at_step(step, kill, monkeypatch)
        with pytest.raises(Killed):
            broken.here()
        assert not broken.folder.result.exists()
    assert "resumed at step 15" in broken.here()
    assert_same_run(whole, broken, steps=24)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP"])
def test_a_signal_saves_and_stops_and_the_next_start_goes_on(
    name: str, job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a cluster's scheduler and what passes its signals on send it more than once."""
    one = job("budget.max_steps=12", "log.every_steps=1")
    at_step(5, lambda: [os.kill(os.getpid(), signal.Signals[name]) for _ in range(3)] and None, monkeypatch)
    printed = one.here(code=130)
    assert f"stopped by {name}" in printed and "saved: step 5" in printed and "Traceback" not in printed
    assert json.loads(one.folder.status.read_text())["state"] == "stopped"
    assert load_tensors(one.folder.checkpoint)[1]["step"] == 5
    assert "resumed at step 5" in one.here()


def test_a_signal_after_the_stop_is_ignored(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """One that came while Python ends would else be the exit code, in place of the run's own."""
    one, handlers = job("budget.max_steps=12"), {number: signal.getsignal(number) for number in PREEMPTIONS}
    at_step(2, lambda: os.kill(os.getpid(), signal.SIGTERM), monkeypatch)
    try:
        assert main(str(one.folder.path)) == 130
        assert all(signal.getsignal(number) == signal.SIG_IGN for number in PREEMPTIONS)
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def test_a_second_process_on_one_run_is_refused(job: Callable[..., Job]) -> None:
    """Whoever holds the folder's lock is at work there: no worker starts, and no door describes the run anew."""
    one = job("budget.max_steps=3000")
    with one.folder.lock():
        assert "is at work here; wait for it or stop it" in one.here(code=1)
        with pytest.raises(RunError, match="is at work here"):
            job("budget.max_steps=3000", "log.every_steps=5")
    assert json.loads(one.folder.config.read_text())["run"]["log"]["every_steps"] == 2


def test_gradients_do_not_depend_on_the_microbatch(toy: Callable[..., Run]) -> None:
    """Muon and Adam would hide a wrong scale, so the gradients themselves are compared."""
    run = toy()
    model = run.model.build()
    ids = torch.randint(run.model.vocab_size, (8, 17), generator=torch.Generator().manual_seed(0))
    found = []
    for micro in (8, 4, 1):
        model.zero_grad()
        nll = accumulate(model, ids[:, :-1], ids[:, 1:], micro, stage=0)
        found.append((nll.item(), model.embed.table_VD.grad.clone()))
    for nll, gradient in found[1:]:
        assert nll == pytest.approx(found[0][0], rel=1e-6)
        assert torch.allclose(gradient, found[0][1], atol=1e-7, rtol=1e-4)


def test_a_loss_that_is_no_number_stops_with_the_step(job: Callable[..., Job]) -> None:
    one = job("optimizer.groups.scalars.lr=1e37", "budget.max_steps=50", "checkpoint.every_steps=1")
    printed = one.here(code=1)
    assert "loss became" in printed and "at step" in printed and "saved: step" in printed
    assert "Traceback" not in printed and not one.folder.result.exists()
    assert json.loads(one.folder.status.read_text())["state"] == "failed"


@pytest.mark.parametrize(
    "error, code, words",
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, "disk full at step 7; free some space"),
        (
            torch.OutOfMemoryError("CUDA out of memory"),
            1,
            "out of memory at step 7; lower batch.max_microbatch_sequences",
        ),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: 9 bytes"), 1, "out of memory at step 7"),
        (UserError("data.path=x: gone"), 2, "data.path=x: gone"),
        (KeyboardInterrupt(), 130, "stopped by SIGINT"),
    ],
)
def test_troubles_are_told_in_one_line(error: BaseException, code: int, words: str) -> None:
    got, message, expected = explain(error, LoopState(step=7, saved_step=5))
    assert got == code and expected and words in message and "\n" not in message
    assert code == 2 or "saved: step 5; the same command goes on from there" in message
    assert not explain(KeyError("a bug"), LoopState())[2], "a bug keeps its traceback"


def test_a_full_disk_ends_with_one_clear_line(job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint of step 10 finds no room; that of step 5 is what remains."""

    def full(path: Path, tensors: dict, meta: dict) -> None:
        if meta.get("step") == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_tensors(path, tensors, meta)

    monkeypatch.setattr("golf.keeping.save_tensors", full)
    one = job("budget.max_steps=50", "checkpoint.every_steps=5")
    printed = one.here(code=1)
    assert "golf: disk full at step 10; free some space; saved: step 5" in printed and "Traceback" not in printed
    assert load_tensors(one.folder.checkpoint)[1]["step"] == 5


@pytest.mark.parametrize(
    "number, words",
    [
        (errno.ENOSPC, "disk full at step"),
        (errno.EDQUOT, "disk full (your quota) at step"),
        (errno.EMFILE, "too many open files at step"),
        (errno.EROFS, "the disk is read-only"),
    ],
)
def test_what_the_machine_lacks_is_said_while_nothing_can_be_written(
    number: int, words: str, job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the first file on, the status among them: it is written over in its place, and never left at `running`."""
    one = job()

    def lacking(path: Path, data: bytes) -> None:
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr("golf.rundir.write_bytes", lacking)
    printed = one.here(code=1)
    assert words in printed and "Traceback" not in printed
    status = one.folder.get_status()
    assert status["state"] == "failed" and words in status["message"]


def test_what_fails_while_a_failure_is_recorded_does_not_hide_it(
    job: Callable[..., Job], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    one = job()
    monkeypatch.setattr("golf.worker.train", lambda *_: (_ for _ in ()).throw(RunError("the loss is nan")))
    monkeypatch.setattr("golf.sinks.JsonlSink.close", refuse)
    monkeypatch.setattr("golf.worker.RunDir.set_status", refuse)
    printed = one.here(code=1)
    assert "disk full at step 0" in printed, "the first status could not be written"
    monkeypatch.setattr(
        "golf.worker.RunDir.set_status", lambda self, state, **_: refuse() if state == "failed" else None
    )
    printed = one.here(code=1)
    assert "golf: the loss is nan" in printed and "status.json: cannot be written (No space left on device)" in printed
    assert "Traceback" not in printed


def test_a_finished_folder_is_never_rewritten(job: Callable[..., Job]) -> None:
    """A worker that was started while another finished the run writes nothing."""
    one = job("budget.max_steps=2")
    one.here()
    before = {path.name: path.stat().st_mtime_ns for path in one.folder.path.iterdir() if path.name != ".lock"}
    assert "is finished already" in one.here()
    assert {p.name: p.stat().st_mtime_ns for p in one.folder.path.iterdir() if p.name != ".lock"} == before


def test_a_run_cut_by_the_clock_is_not_called_deterministic(job: Callable[..., Job]) -> None:
    one = job("budget.max_steps=100000", "budget.max_seconds=0.2")
    one.here()
    assert not one.result()["deterministic"]


def test_damaged_checkpoints_are_named(job: Callable[..., Job]) -> None:
    one = job()
    one.folder.checkpoint.parent.mkdir(parents=True)
    one.folder.checkpoint.write_bytes(b"nonsense")
    assert "delete it to start the run again" in one.here(code=1)


def test_wall_clock_runs_say_so_and_stop_in_time(job: Callable[..., Job]) -> None:
    one = job("budget.clock=seconds", "budget.max_steps=null", "budget.max_seconds=0.5")
    one.here()
    result = one.result()
    assert not result["deterministic"] and 0.5 <= result["train_seconds"] < 5


LONG = {"average.every_steps": "average.every_steps=100000", "curriculum.batch": "curriculum.batch.steps=100000"}
CLOCKS = {
    "seconds": ("budget.clock=seconds", "budget.max_steps=null", "budget.max_seconds=0.05"),
    "steps, cut off": ("budget.max_steps=1000000", "budget.max_seconds=0.05"),
}


@pytest.mark.parametrize("clock", CLOCKS.values(), ids=CLOCKS)
def test_what_never_began_is_said_and_marked(clock: tuple[str, ...], job: Callable[..., Job]) -> None:
    """Where the clock ends a run no check beforehand can know the number of steps."""
    start = ("average.start.progress=0.0", "average.start.rate_below=null")
    one = job(*clock, "average=swa", *start, "curriculum=batch", "curriculum.batch.parts=2", *LONG.values())
    assert "never begun, though asked for: curriculum.batch, average.every_steps" in one.here()
    result = one.result()
    assert result["never_begun"] == ["curriculum.batch", "average.every_steps"]
    assert marks(result) == ["NEVER BEGUN: curriculum.batch, average.every_steps"]
    late = job("budget.max_steps=1000000", "budget.max_seconds=0.05", "qat=late", "late=replay")
    late.here()
    assert late.result()["never_begun"] == ["late.start", "qat.strength.start", "late"]


def test_all_that_began_is_no_mark(job: Callable[..., Job]) -> None:
    start = ("qat.strength.start.progress=0.8", "qat.strength.start.rate_below=null")
    one = job("average=swa", "average.every_steps=1", "qat=late", *start, "schedule=cooldown")
    one.here()
    assert one.result()["never_begun"] == [] and marks(one.result()) == []


def test_finished_folders_and_reruns(job: Callable[..., Job]) -> None:
    one = job("budget.max_steps=2")
    one.here()
    before = {path.name: path.stat().st_mtime_ns for path in one.folder.path.iterdir()}
    again = job("budget.max_steps=2")
    assert again.finished is not None and again.folder == one.folder
    assert {path.name: path.stat().st_mtime_ns for path in one.folder.path.iterdir()} == before
    rerun = job("budget.max_steps=2", "rerun=true")
    assert rerun.finished is None and rerun.folder.path.name == one.folder.path.name + "-r2"
    rerun.here()
    assert job("budget.max_steps=2").folder == rerun.folder


def test_folder_names(tmp_path: Path) -> None:
    folder = choose_folder(tmp_path, "ablation", "row", 7, "abcdef0123", rerun=False)
    assert folder == RunDir(tmp_path / "ablation" / "row-s7-abcdef01")


def test_a_lone_run_keeps_its_folder_under_another_label(tmp_path: Path) -> None:
    """A label is no part of what a run is: another spelling of its command goes on with it, and trains nothing anew."""
    for name, digest in (("first-s7-abcdef01", "abcdef0123"), ("other-s7-abcdef01", "abcdef0199")):
        (tmp_path / "single" / name).mkdir(parents=True)
        (tmp_path / "single" / name / "config.json").write_text(json.dumps({"fingerprint": digest}))
    names = {
        label: choose_folder(tmp_path, None, label, seed, digest, rerun=False).path.name
        for label, seed, digest in (("a", 7, "abcdef0123"), ("b", 7, "abcdef0155"), ("c", 8, "abcdef0123"))
    }
    assert names == {"a": "first-s7-abcdef01", "b": "b-s7-abcdef01", "c": "c-s8-abcdef01"}
    assert choose_folder(tmp_path, "sweep", "a", 7, "abcdef0123", rerun=False).path.name == "a-s7-abcdef01"


def test_warm_up_moves_nothing(toy: Callable[..., Run]) -> None:
    run = toy()
    model = run.model.build()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    warm_up([model], run.optimizer.build(model, torch.float32), run.batches(1), run, torch.device("cpu"), stages=1)
    assert all(torch.equal(before[name], p) and p.grad is None for name, p in model.named_parameters())


def test_a_loop_joins_at_its_part_of_training(toy: Callable[..., Run], job: Callable[..., Job]) -> None:
    """Every stage is compiled before the clock, and the artifact has what scores need and nothing else."""
    run = toy("model/stack=recurrence_progressive")
    model, seen = run.model.build(), []
    forward = model.stack.forward
    model.stack.forward = lambda x, context: seen.append(context.stage) or forward(x, context)
    warm_up([model], run.optimizer.build(model, torch.float32), run.batches(1), run, torch.device("cpu"), stages=3)
    assert seen == [0, 0, 1, 1, 2, 2]
    one = job("model/stack=recurrence_progressive", "model/auxiliary=mtp")
    one.here()
    result = one.result()
    heads = 2 * run.model.dim * run.model.vocab_size
    assert result["params"] == result["params_stored"] + heads, "further heads are not in the artifact"
    assert (result["blocks_stored"], result["effective_depth"]) == (3, 5) and result["params_repeated"] > 0


GOLDEN = [5.947, 5.8619, 5.6232, 5.5102, 5.4447, 5.3726]


def test_golden_first_steps(job: Callable[..., Job]) -> None:
    """A change that moves these numbers changes what every earlier result meant: say so in LOG.md."""
    one = job("log.every_steps=1")
    one.here()
    losses = [json.loads(line)["loss"] for line in one.folder.metrics.read_text().splitlines()]
    assert losses == pytest.approx(GOLDEN, abs=2e-3)
