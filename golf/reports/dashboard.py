"""A W&B workspace that compares the rows of sweeps, their seeds grouped. The only file that knows wandb_workspaces.

Where nobody is logged in, the workspace's definition is written as JSON, and the way to create it is told.
"""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from threading import Thread
from typing import TYPE_CHECKING, Any, TypeVar

from golf.rundir import write_atomic
from golf.sinks import one_line, wandb_entity

if TYPE_CHECKING:
    from wandb_workspaces.workspaces import Workspace

FILE = "wandb_workspace.json"
NETWORK_SECONDS = 25
MOST_GROUPS = 100  # drawn in one panel; W&B's own limit is 10
NAME_LENGTH = 100
# Names of W&B's summary (result.json) and history (metrics.jsonl), as the sink logs them.
BARS = {"val_bpb": "BPB by row", "step_ms": "step time by row, ms", "artifact_bytes": "artifact bytes by row"}
CURVES = {
    "training loss, nats per token": ("step", "loss"),
    "BPB on the way": ("step", "val_bpb"),
    "training loss by time, s": ("train_seconds", "loss"),
    "step time, ms": ("step", "step_ms"),
}
# Seeds of a row are one bar or line: their mean, and the range from the lowest to the highest.
SEEDS: dict[str, Any] = {"groupby_aggfunc": "mean", "groupby_rangefunc": "minmax", "max_runs_to_show": MOST_GROUPS}

T = TypeVar("T")


def create(folder: Path, labels: Sequence[str], rows: Sequence[str], project: str, entity: str | None) -> list[str]:
    """Create the workspace on the W&B server, or write its definition into `folder`; returns lines to print.

    labels: the sweeps; rows: row labels, all of the sweeps' where empty; folder: holds the sweeps' folders, or is one;
    project, entity: as the runs were logged with. Raises nothing for W&B's troubles: they are among the lines.
    """
    try:
        url = within(NETWORK_SECONDS, lambda: save(labels, rows, project, entity))
        if url is not None:
            return [f"wandb: workspace {url}"]
        reason = "not logged in"
    except (Exception, SystemExit) as error:  # whatever W&B does, the report goes on
        reason = f"no workspace was created ({one_line(error)})"
    try:
        write_atomic(folder / FILE, json.dumps(spec_of(define(labels, rows, project, entity or "")), indent=2) + "\n")
    except Exception as error:
        return [f"wandb: {reason}, nor was its definition written ({one_line(error)})"]
    return [f"wandb: {reason}; the workspace it would be is in {folder / FILE}", *how_to_go_on(folder, labels)]


def save(labels: Sequence[str], rows: Sequence[str], project: str, entity: str | None) -> str | None:
    """Create the workspace and return its URL; None where nobody is logged in."""
    owner = wandb_entity(entity)
    return None if owner is None else define(labels, rows, project, owner).save().url


def define(labels: Sequence[str], rows: Sequence[str], project: str, entity: str) -> "Workspace":
    """The workspace, in memory: nothing asks the network."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    sweep, row = ws.Metric("Group"), ws.Metric("JobType")  # what the sink calls a sweep and a row
    filters = [metric.isin(list(names)) for metric, names in ((sweep, labels), (row, rows)) if names]
    bars: list[Any] = [
        wr.BarPlot(title=title, metrics=[name], max_bars_to_show=MOST_GROUPS, **SEEDS) for name, title in BARS.items()
    ]
    curves: list[Any] = [wr.LinePlot(title=title, x=x, y=[y], **SEEDS) for title, (x, y) in CURVES.items()]
    return ws.Workspace(
        entity=entity,
        project=project,
        name=re.sub(r"[^\w., -]", "-", f"golf {', '.join(labels)}")[:NAME_LENGTH],  # W&B takes + for an emoji
        sections=[
            ws.Section(name="Rows", panels=bars, is_open=True),
            ws.Section(name="Training curves", panels=curves, is_open=True),
        ],
        settings=ws.WorkspaceSettings(x_axis="step", max_runs=MOST_GROUPS),
        runset_settings=ws.RunsetSettings(
            filters=ws.And(*filters),
            groupby=[sweep, row],
            order=[ws.Ordering(ws.Summary("val_bpb"), ascending=True)],
            pinned_columns=[f"summary:{name}" for name in BARS],
        ),
    )


def spec_of(workspace: "Workspace") -> dict[str, Any]:
    """What W&B stores of a workspace, as JSON."""
    return workspace._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)


def how_to_go_on(folder: Path, labels: Sequence[str]) -> list[str]:
    """Lines that say how the workspace comes about, and how the offline runs get to the server before."""
    sweeps = {run.parents[2] for run in folder.glob("**/wandb/offline-run-*") if not any(run.glob("*.synced"))}
    wanted = [path for path in sorted(sweeps) if not labels or path.resolve().name in labels]
    upload = [f"  wandb sync {' '.join(f'{shlex.quote(str(path))}/*/wandb' for path in wanted)}"] if wanted else []
    return ["wandb: to create it:", "  wandb login", *upload, "  and this command again"]


def within(seconds: float, action: Callable[[], T]) -> T:
    """What the action gives; TimeoutError where it takes longer (its thread then ends with the process)."""
    outcome: Future[T] = Future()

    def work() -> None:
        try:
            outcome.set_result(action())
        except BaseException as error:
            outcome.set_exception(error)

    Thread(target=work, daemon=True).start()
    try:
        return outcome.result(timeout=seconds)
    except TimeoutError:
        raise TimeoutError(f"no answer in {seconds:g} s") from None
