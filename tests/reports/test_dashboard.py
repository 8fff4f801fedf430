"""The W&B workspace: what it draws and of which runs, and that no trouble with W&B reaches the report."""

import json
import subprocess
import sys
import threading
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import wandb

from golf.keeping import LoopState
from golf.loop import describe
from golf.reports import dashboard
from tests.helpers.parts import run_of_line
from tests.helpers.schema import SCHEMA_KEYS

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:wandb_workspaces")  # about pydantic
SWEEPS, ROWS = ["table", "lr.a+b-1"], ["baseline", "swiglu"]
BAR, LINE = "Bar Chart", "Run History Line Plot"


def create(folder: Path, labels: list[str] = SWEEPS) -> list[str]:
    return dashboard.create(folder, labels, ROWS, "golf", None)


def section(spec: dict) -> dict[str, Any]:
    return spec["spec"]["section"]


def panels(spec: dict) -> list[tuple[str, dict]]:
    """(kind, config) of each panel."""
    drawn = section(spec)["panelBankConfig"]["sections"]
    return [(panel["viewType"], panel["config"]) for one in drawn for panel in one["panels"]]


@pytest.fixture
def spec() -> dict:
    return dashboard.spec_of(dashboard.define(SWEEPS, ROWS, "golf", "team"))


# ---------------------------------------------------------------- what it draws


def test_it_draws_what_the_sink_logs(spec: dict) -> None:
    """Bars are keys of result.json, which is the summary; curves are keys of a step's record, which is the history."""
    logged = {*describe(run_of_line("track=tiny"), LoopState(step=1, step_seconds=[0.1]), 1.0, 1.0), "val_bpb"}
    bars = [config["metrics"] for kind, config in panels(spec) if kind == BAR]
    curves = [(config["xAxis"], config["metrics"]) for kind, config in panels(spec) if kind == LINE]
    assert len(bars) + len(curves) == len(panels(spec))
    assert bars == [["val_bpb"], ["step_ms"], ["artifact_bytes"]]
    assert {name for metrics in bars for name in metrics} <= set(SCHEMA_KEYS)
    assert {("step", "loss"), ("step", "val_bpb"), ("train_seconds", "loss")} <= {(x, *y) for x, y in curves}
    assert {name for x, y in curves for name in (x, *y)} <= logged
    assert section(spec)["settings"]["xAxis"] == "step"


def test_seeds_of_a_row_are_one_group(spec: dict) -> None:
    (runs,) = section(spec)["runSets"]
    assert runs["sort"]["keys"] == [{"key": {"section": "summary", "name": "val_bpb"}, "ascending": True}]
    assert runs["runFeed"]["columnOrder"] == ["run:displayName", *(f"summary:{name}" for name in dashboard.BARS)]
    assert [(key["section"], key["name"]) for key in runs["grouping"]] == [("run", "group"), ("run", "jobType")]
    for _, config in panels(spec):
        assert (config["groupAgg"], config["groupArea"]) == ("mean", "minmax")
        assert config["limit"] >= 50, "W&B's own limit is 10"
    settings = section(spec)["settings"]
    assert settings["useRunsTableGroupingInPanels"] and settings["maxRuns"] >= 50


def test_only_these_sweeps_and_rows(spec: dict) -> None:
    def filters(spec: dict) -> list[tuple]:
        parts = section(spec)["runSets"][0]["filters"]["filters"]
        return [(part["key"]["name"], part["op"], part["value"], part.get("connector", "AND")) for part in parts]

    assert filters(spec) == [("group", "IN", SWEEPS, "AND"), ("jobType", "IN", ROWS, "AND")]
    every_row = dashboard.spec_of(dashboard.define(["table"], [], "golf", "team"))
    assert filters(every_row) == [("group", "IN", ["table"], "AND")]


def test_it_belongs_to_the_project(spec: dict) -> None:
    assert (spec["entity"], spec["project"], spec["displayName"]) == ("team", "golf", "golf table, lr.a-b-1")
    assert dashboard.define(["x" * 90, "y" * 90], [], "golf", "team").name.startswith("golf xxx")


# ---------------------------------------------------------------- without a login


def offline_run(folder: Path, *, synced: bool = False) -> Path:
    """An empty offline run in a run folder."""
    run = folder / "wandb" / "offline-run-20261122_000000-abc"
    run.mkdir(parents=True)
    (run / "run-abc.wandb").touch()
    if synced:
        (run / "run-abc.wandb.synced").touch()
    return run


def test_without_a_login_the_definition_is_written(tmp_path: Path) -> None:
    lines = create(tmp_path)
    path = tmp_path / "wandb_workspace.json"
    assert lines[0] == f"wandb: not logged in; the workspace it would be is in {path}"
    assert lines[2:] == ["  wandb login", "  and this command again"], "there is nothing to upload"
    written = json.loads(path.read_text())
    assert (written["entity"], written["project"]) == ("", "golf")
    kinds = [kind for kind, _ in panels(written)]
    assert kinds == [BAR] * len(dashboard.BARS) + [LINE] * len(dashboard.CURVES)


@pytest.fixture
def to_upload(tmp_path: Path) -> tuple[Path, Path]:
    """(outputs with three offline runs, the one that is to be uploaded)."""
    outputs = tmp_path / "my outputs"
    wanted = offline_run(outputs / "table" / "row-s1")
    offline_run(outputs / "other" / "row-s1")
    offline_run(outputs / "lr.a+b-1" / "row-s1", synced=True)
    return outputs, wanted


def test_the_line_that_uploads_names_the_sweeps_with_runs_to_upload(to_upload: tuple[Path, Path]) -> None:
    outputs, wanted = to_upload
    (command,) = [line.strip() for line in create(outputs) if "wandb sync" in line]
    assert command == f"wandb sync '{outputs}/table'/*/wandb"
    assert create(outputs / "table")[3].strip() == command, "a sweep's own folder does as well"
    (place,) = outputs.glob("table/*/wandb")
    assert wanted.parent == place


@pytest.mark.slow
def test_wandb_itself_finds_the_runs_by_the_line(to_upload: tuple[Path, Path]) -> None:
    outputs, wanted = to_upload
    (command,) = [line.strip() for line in create(outputs) if "wandb sync" in line]
    dry = f"{sys.executable} -m {command} --dry-run"
    told = subprocess.run(dry, shell=True, capture_output=True, text=True, timeout=600, check=True)
    assert "Would sync 1 run(s)" in told.stderr and str(wanted) in told.stderr


# ---------------------------------------------------------------- with a login (a fake one)


class Server:
    """What W&B's server does for a workspace: it keeps the view, and names it; `answer` may be replaced."""

    def __init__(self) -> None:
        self.saved: list[dict] = []
        self.answer: Callable[[], Any] = lambda: {"upsertView": {"view": {"name": "nw-xyz-v", "id": "1"}}}

    def keep(self, view: Any) -> Any:
        self.saved.append(json.loads(view.model_dump_json(by_alias=True)))
        return self.answer()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    """A server, and an account that is logged in."""
    from wandb_workspaces.workspaces import interface

    server, api = Server(), types.SimpleNamespace(default_entity="me")
    monkeypatch.setattr(wandb, "login", lambda prompt, verify: True)
    monkeypatch.setattr(wandb, "Api", lambda: api)
    monkeypatch.setattr(interface, "get_app_url", lambda api: "https://wandb.example")
    monkeypatch.setattr(interface.internal, "upsert_view2", server.keep)
    return server


def test_logged_in_it_is_saved_and_its_url_told(server: Server, tmp_path: Path) -> None:
    assert create(tmp_path) == ["wandb: workspace https://wandb.example/me/golf?nw=xyz"]
    dashboard.create(tmp_path, SWEEPS, ROWS, "golf", "team")
    assert [view["entity"] for view in server.saved] == ["me", "team"], "the account's own where none is given"
    assert [kind for kind, _ in panels(server.saved[0])].count(BAR) == len(dashboard.BARS)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- trouble


@pytest.mark.parametrize("error", [ConnectionError("no route\nto host"), SystemExit(3), KeyError("upsertView")])
def test_trouble_is_a_line(error: BaseException, server: Server, tmp_path: Path) -> None:
    def fail() -> None:
        raise error

    server.answer = fail
    lines = create(tmp_path)
    assert lines[0].startswith(f"wandb: no workspace was created ({type(error).__name__}: ")
    assert all("\n" not in line for line in lines)
    assert panels(json.loads((tmp_path / dashboard.FILE).read_text()))


def test_a_server_that_never_answers_is_not_waited_for(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    over, before = threading.Event(), set(threading.enumerate())
    server.answer = lambda: over.wait(60)
    monkeypatch.setattr(dashboard, "NETWORK_SECONDS", 0.2)
    first = create(tmp_path)[0]
    left = set(threading.enumerate()) - before
    over.set()
    assert left and all(thread.daemon for thread in left), "nor does the process wait for it at its end"
    assert first.startswith("wandb: no workspace was created (TimeoutError: no answer in 0.2 s)")


def test_without_the_package_it_is_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "wandb_workspaces.workspaces", None)
    (line,) = create(tmp_path)
    assert line.startswith("wandb: not logged in, nor was its definition written (ModuleNotFoundError: ")


def test_a_folder_that_cannot_be_written_is_a_line(tmp_path: Path) -> None:
    (line,) = create(tmp_path / "absent")
    assert "nor was its definition written (FileNotFoundError" in line
