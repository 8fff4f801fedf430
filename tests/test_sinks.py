"""Who watches: plain lines, metrics that survive a kill, a tracker that can't hurt."""

import json
import sys
import types
from pathlib import Path

import pytest

from golf.sinks import ConsoleSink, JsonlSink, WandbConfig

RECORD = {"step": 3, "loss": 2.5, "step_ms": 12.0, "seconds_left": 61.0, "val_bpb": 1.5}
FACTS = {"run_id": "r1", "name": "row-s1", "label": "row", "sweep": "table", "config": {"seed": 1}}
WANDB = WandbConfig(every_steps=1, project="golf-test", entity=None, mode="auto")


def test_plain_lines_off_a_terminal(capsys: pytest.CaptureFixture) -> None:
    sink = ConsoleSink(10)
    sink.step(RECORD)
    sink.step({**RECORD, "step": 4, "val_bpb": 1.4})
    sink.note("a [bracketed] note")
    sink.close(None, None)
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["step", "3", "loss", "2.5000", "12", "ms/step", "1:01", "left", "val", "1.5000", "bpb"]
    assert out[2] == "a [bracketed] note"


def test_metrics_are_cut_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3}\n{"ste')
    sink = JsonlSink(path, from_step=2)
    sink.step({"step": 3, "loss": 1.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    sink.close(None, None)


class FakeRun:
    def __init__(self, fail: str):
        self.fail, self.logged, self.summary, self.finished = fail, [], {}, None

    def define_metric(self, *args: object, **kwargs: object) -> None:
        pass

    def log(self, record: dict) -> None:
        if self.fail == "log":
            raise ConnectionError("the service is gone")
        self.logged.append(record)

    def finish(self, exit_code: int) -> None:
        if self.fail == "finish":
            raise OSError(28, "No space left on device")
        self.finished = exit_code


@pytest.mark.parametrize("fail", ["", "init", "log", "finish"])
@pytest.mark.parametrize("key", [None, "k"])
def test_a_failing_tracker_never_fails_a_run(
    fail: str, key: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, asked, notes = FakeRun(fail), {}, []

    def init(**kwargs: object) -> FakeRun:
        asked.update(kwargs)
        if fail == "init":
            raise RuntimeError("no network")
        return run

    fake = types.ModuleType("wandb")
    fake.init, fake.Settings, fake.login = init, lambda **k: k, lambda prompt, verify: bool(key) and not prompt
    monkeypatch.setitem(sys.modules, "wandb", fake)
    sink = WANDB.build(tmp_path, FACTS, notes.append)
    sink.step(RECORD)
    sink.step(RECORD)
    sink.close({"val_bpb": 1.0, "environment": {}}, None)
    assert asked["mode"] == ("online" if key else "offline"), "never a prompt"
    assert asked["group"] == "table" and asked["job_type"] == "row" and asked["config"] == {"seed": 1}
    troubles = [note for note in notes if "stopped tracking" in note]
    assert len(troubles) == (1 if fail else 0)
    if not fail:
        assert run.logged == [RECORD, RECORD] and run.summary == {"val_bpb": 1.0} and run.finished == 0


def test_real_wandb_offline_writes_into_the_run_folder(tmp_path: Path) -> None:
    notes: list[str] = []
    sink = WANDB.build(tmp_path, FACTS, notes.append)
    sink.step(RECORD)
    sink.close({"val_bpb": 1.0}, None)
    assert notes == ["wandb: offline, project golf-test"]
    assert list((tmp_path / "wandb").glob("offline-run-*/run-*.wandb"))
