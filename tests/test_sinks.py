"""Who watches: plain lines, metrics that survive a kill, a tracker that can't hurt."""

import json
import os
import resource
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from golf.code_record import ROOT
from golf.rundir import RunDir
from golf.sinks import FINAL_ONLY, ConsoleSink, JsonlSink, Sink, WandbSink, wandb_entity
from golf.worker import open_sinks
from tests.helpers.parts import run_of_line
from tests.helpers.tiers import wide
from tests.helpers.tracking import FACTS, RECORD, RESULT, SUMMARY, WANDB


def test_plain_lines_off_a_terminal(capsys: pytest.CaptureFixture) -> None:
    sink = ConsoleSink(10)
    sink.step(RECORD)
    sink.step({**RECORD, "step": 4, "val_bpb": 1.4})
    sink.step({key: value for key, value in RECORD.items() if key != "val_bpb"} | {"step": 5})
    sink.note("a [bracketed] note")
    sink.close(None, None)
    out = capsys.readouterr().out.splitlines()
    assert out[0].split() == ["step", "3", "loss", "2.5000", "12", "ms/step", "1:01", "left", "val", "1.5000", "bpb"]
    assert "val 1.4000 bpb" in out[1] and "val" not in out[2], "a score is shown with its own step alone"
    assert out[3] == "a [bracketed] note"


def test_a_live_line_names_the_step_of_a_score_that_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    sink = ConsoleSink(10)
    shown: list[str] = []
    sink.live = types.SimpleNamespace(update=lambda task, **fields: shown.append(fields["description"]))  # type: ignore[assignment]
    sink.task = 0  # type: ignore[assignment]
    sink.step({**RECORD, "step": 4, "val_bpb": 1.4})
    sink.step({key: value for key, value in RECORD.items() if key != "val_bpb"} | {"step": 5})
    assert all(line.endswith("val 1.4000 bpb at step 4") for line in shown) and len(shown) == 2


def test_metrics_are_cut_to_the_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    odd = '3\n[]\n{"step": "x"}\n{"step": true}\n'
    path.write_bytes(f'{{"step": 1}}\n{odd}{{"step": 2}}\n{{"step": 3}}\n{{"ste'.encode() + b"\xff\n")
    sink = JsonlSink(path, from_step=2)
    sink.step({"step": 3, "loss": 1.0})
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3]
    sink.close(None, None)


class FakeRun:
    """What WandbSink asks of a run; `fail` names the call that breaks."""

    def __init__(self, fail: str):
        self.fail, self.logged, self.summary, self.config, self.artifacts = fail, [], {}, {}, []
        self.tags: tuple[str, ...] = ()
        self.finished: int | None = None
        self.metrics: dict[str, dict] = {}

    def define_metric(self, name: str, **settings: object) -> None:
        self.metrics[name] = settings

    def log(self, record: dict) -> None:
        if self.fail == "log":
            raise ConnectionError("the service is gone")
        self.logged.append(record)

    def log_artifact(self, artifact: object) -> None:
        if self.fail == "artifact":
            raise OSError(28, "No space left on device")
        self.artifacts.append(artifact)

    def finish(self, exit_code: int) -> None:
        if self.fail == "finish":
            raise OSError(28, "No space left on device")
        self.finished = exit_code


class FakeConfig(dict):
    def update(self, more: dict, allow_val_change: bool = False) -> None:
        assert allow_val_change, "a resumed run has an environment already"
        super().update(more)


class FakeArtifact:
    def __init__(self, name: str, type: str, metadata: dict):
        self.name, self.type, self.metadata, self.files = name, type, metadata, []

    def add_file(self, path: str, policy: str, skip_cache: bool) -> None:
        self.files.append(path)


class FakeWandb(types.ModuleType):
    """The package: logged in where `key` is one."""

    def __init__(self, fail: str, key: str | None):
        super().__init__("wandb")
        self.fail, self.key = fail, key
        self.run, self.asked, self.ended = FakeRun(fail), {}, 0
        self.run.config = FakeConfig()
        self.Settings, self.Artifact = dict, FakeArtifact
        self.Api = lambda: types.SimpleNamespace(default_entity="me")

    def login(self, prompt: bool, verify: bool) -> bool:
        assert not prompt and not verify, "never a prompt, never a wait"
        return bool(self.key)

    def init(self, **kwargs: object) -> FakeRun:
        self.asked = kwargs
        if self.fail == "init":
            raise RuntimeError("no network")
        self.run.tags = tuple(kwargs["tags"])
        return self.run

    def teardown(self, exit_code: int) -> None:
        self.ended += 1
        raise SystemExit(exit_code)  # as wandb does where its service ended badly


@pytest.fixture
def artifact(tmp_path: Path) -> Path:
    path = tmp_path / "row+a-s1" / "artifact.golf"
    path.parent.mkdir()
    path.write_bytes(b"golf")
    return path


@pytest.mark.parametrize("fail", ["", "init", "log", "artifact", "finish"])
@pytest.mark.parametrize("key", [None, "k"])
def test_a_failing_tracker_never_fails_a_run(
    fail: str, key: str | None, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, notes = FakeWandb(fail, key), []
    monkeypatch.setitem(sys.modules, "wandb", fake)
    monkeypatch.delenv("WANDB_MODE")
    sink = WANDB.build(artifact.parent, FACTS, notes.append)
    sink.step(RECORD)
    sink.step(RECORD)
    sink.close(RESULT, artifact)
    assert fake.asked["mode"] == ("online" if key else "offline")
    assert fake.asked["resume"] == ("allow" if key else None)
    assert fake.asked["group"] == "table" and fake.asked["job_type"] == "row+a"
    assert fake.asked["config"] == FACTS["config"]
    fails = fail and not (fail == "artifact" and not key)  # offline there is no artifact to fail with
    troubles = [note for note in notes if "stopped tracking" in note]
    assert len(troubles) == fake.ended == (1 if fails else 0)
    if fails:
        return
    assert fake.run.logged == [RECORD, RECORD] and fake.run.finished == 0
    assert fake.run.summary == SUMMARY and fake.run.config == {"environment": {"python": "3.11"}}
    (*stored,) = fake.run.artifacts
    assert bool(stored) == bool(key), "the artifact is logged where there is a server to hold it"
    for one in stored:
        assert (one.name, one.type, one.files) == ("row-a-s1", "model", [str(artifact)])
        assert one.metadata == {"artifact_bytes": 9, "cap_bytes": 10, "val_bpb": 1.0, "fingerprint": "f00"}


@pytest.mark.parametrize(("legal", "tagged"), [(False, True), (None, False), (True, False)])
def test_only_a_broken_rule_is_tagged_illegal(
    legal: bool | None, tagged: bool, artifact: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake = FakeWandb("", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    WANDB.build(artifact.parent, FACTS, print).close({**RESULT, "legal": legal}, artifact)
    assert fake.run.tags == ("tiny", "table", "row+a", "x" * 64) + (("illegal",) if tagged else ())


def test_a_run_is_found_by_its_tags(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Track, sweep, row, the evaluator that gives the score, the format of the matrices."""
    fake = FakeWandb("", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    (tmp_path / "row-s1" / "log").mkdir(parents=True)
    run = run_of_line("track=tiny", "log=wandb", "label=row", "sweep_label=table", "eval=sliding", "quant=int8")
    open_sinks(run, RunDir(tmp_path / "row-s1"), {"run": {"seed": 1}}).close(None, None)
    assert fake.asked["tags"] == ["tiny", "table", "row", "sliding", "int8"]
    assert (fake.asked["name"], fake.asked["config"]) == ("row-s1", {"seed": 1})


def test_a_failed_run_is_finished_as_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeWandb("", "k")
    monkeypatch.setitem(sys.modules, "wandb", fake)
    WANDB.build(tmp_path, FACTS, print).close(None, None)
    assert fake.run.finished == 1 and not fake.run.summary and not fake.run.artifacts


def test_the_last_step_leaves_no_score_in_the_summary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is scored on the way is not the artifact: W&B is told not to take these names from the steps."""
    fake = FakeWandb("", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    WANDB.build(tmp_path, FACTS, print)
    assert {"val_bpb", "val_loss", "step_ms"} <= set(FINAL_ONLY)
    drawn_by_step = {name: {"step_metric": "step", "summary": "none"} for name in FINAL_ONLY}
    assert fake.run.metrics == {"step": {}, "*": {"step_metric": "step"}} | drawn_by_step


def test_an_id_belongs_to_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row with one seed has one folder name in every sweep; as W&B's id that would make two runs one."""
    fake = FakeWandb("", None)
    monkeypatch.setitem(sys.modules, "wandb", fake)
    ids = []
    for sweep in ("a", "b", "a"):
        folder = tmp_path / sweep / "row-s1"
        folder.mkdir(parents=True, exist_ok=True)
        WANDB.build(folder, FACTS, print)
        ids.append(fake.asked["id"])
    assert ids[0] == ids[2] != ids[1]


def test_whose_account(monkeypatch: pytest.MonkeyPatch) -> None:
    for key, given, found in ((None, "team", None), ("k", "team", "team"), ("k", None, "me")):
        monkeypatch.setitem(sys.modules, "wandb", FakeWandb("", key))
        assert wandb_entity(given) == found


# ---------------------------------------------------------------- the real package, without a network


def inspect(folder: Path, *options: str) -> str:
    """What wandb's own reader prints of the offline run in a folder."""
    (run,) = (folder / "wandb").glob("offline-run-*")
    command = [sys.executable, "-m", "wandb", "leet", "inspect", "--json", *options, str(run)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, check=True).stdout


def real(folder: Path, *, online: bool = False) -> Sink:
    """An offline run of two steps with a result; online: treated as a logged-in run is."""
    notes: list[str] = []
    sink = WANDB.build(folder, FACTS, notes.append)
    assert isinstance(sink, WandbSink) and notes == ["wandb: offline, project golf-test"]
    sink.online = online
    sink.step({**RECORD, "step": 2, "val_bpb": 1.6})
    sink.step(RECORD)
    sink.close({**RESULT, "legal": False}, folder / "artifact.golf")
    assert not sink.failed
    return sink


def test_a_real_offline_run_reads_back(artifact: Path) -> None:
    real(artifact.parent, online=True)
    records: dict[str, list[Any]] = {}
    for line in inspect(artifact.parent).splitlines():
        record = json.loads(line)
        records.setdefault(record["type"], []).append(record[record["type"]])

    run = records["run"][0]
    assert (run["run_group"], run["job_type"], run["display_name"]) == ("table", "row+a", "row+a-s1")
    assert run["project"] == "golf-test" and run["run_id"] == (artifact.parent / "wandb" / "id").read_text()
    steps = [record["item"] for record in records["history"]]
    assert [item["step"] for item in steps] == [2, 3]
    assert {key: steps[1][key] for key in RECORD} == RECORD
    axes = {metric.get("glob_name") or metric["name"]: metric for metric in records["metric"]}
    assert axes["*"]["step_metric"] == axes["val_bpb"]["step_metric"] == "step"
    (logged,) = records["artifact"]
    assert (logged["name"], logged["type"]) == ("row-a-s1", "model")

    end = json.loads(inspect(artifact.parent, "--summary"))
    assert end["config"] == {**FACTS["config"], "environment": {"python": "3.11"}}
    expected = {**SUMMARY, "legal": False, "step": 3, "loss": 2.5, "seconds_left": 61.0}
    assert {key: end["summary"].get(key) for key in expected} == expected
    assert end["tags"] == ["tiny", "table", "row+a", "x" * 64, "illegal"] and end["exit_code"] == 0


@pytest.mark.slow
def test_a_step_is_never_taken_for_the_result(tmp_path: Path) -> None:
    """Of a run that was cut off, the summary holds no score: what was scored on the way was not the artifact."""
    sink = WANDB.build(tmp_path, FACTS, print)
    sink.step(RECORD)
    sink.close(None, None)
    end = json.loads(inspect(tmp_path, "--summary"))
    assert end["summary"]["loss"] == 2.5 and not {"val_bpb", "step_ms"} & set(end["summary"])
    assert end["exit_code"] == 1


TROUBLE = """
import os, signal, sys
from pathlib import Path
from tests.helpers.tracking import FACTS, RECORD, RESULT, WANDB

trouble, folder = sys.argv[1], Path(sys.argv[2])
sink = WANDB.build(folder, FACTS, lambda line: print(line, flush=True))
sink.step(RECORD)
if trouble == "service":
    (pid,) = [pid for file in Path("/proc/self/task").glob("*/children") for pid in file.read_text().split()]
    assert "wandb-core" in Path(f"/proc/{pid}/cmdline").read_text()
    os.kill(int(pid), signal.SIGKILL)
for step in range(1000):
    sink.step({**RECORD, "step": step})
sink.close(RESULT, folder / "artifact.golf")
print("the run went on", flush=True)
"""


FULL = 16384


def tiny_files() -> None:
    """What a full disk does to whatever writes more: a write fails, in this process and in wandb's."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (FULL, FULL))


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/task").exists(), reason="looks for the service in /proc")
@pytest.mark.parametrize(("trouble", "told"), [("service", 1), wide("disk", 0)])
def test_wandb_in_real_trouble_hurts_nothing(trouble: str, told: int, artifact: Path) -> None:
    """A service that is killed, and files that take no more: the run ends well, in time, with at most one line."""
    done = subprocess.run(
        [sys.executable, "-c", TROUBLE, trouble, str(artifact.parent)],
        cwd=ROOT,
        env={key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"},  # not this process's
        preexec_fn=tiny_files if trouble == "disk" else None,
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0 and done.stderr == ""
    lines = done.stdout.splitlines()
    assert lines[0].startswith("wandb: offline") and lines[-1] == "the run went on"
    assert len(lines) == 2 + told and all("stopped tracking" in line for line in lines[1:-1])
    (written,) = artifact.parent.glob("wandb/offline-run-*/run-*.wandb")
    assert trouble != "disk" or written.stat().st_size == FULL, "there was no trouble to survive"
