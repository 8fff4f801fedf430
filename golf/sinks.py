"""Who watches a run: the terminal, metrics.jsonl and a tracker. The only file that knows wandb."""

import contextlib
import importlib.util
import json
import logging
import os
import re
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import BarColumn, Progress, TextColumn

from golf.errors import UserError
from golf.fields import one_of, positive
from golf.files import MOST_METRICS, parse_json, read_bytes
from golf.records import Logged, fits
from golf.rundir import illegal, write_atomic, write_bytes
from golf.terminal import console

WANDB_INIT_SECONDS = 20
WANDB_FINISH_SECONDS = 60
WANDB_TAG_LENGTH = 64
# Names of a step's record that mean something else in the result: W&B may not take the last step's for the result's.
FINAL_ONLY = ("val_bpb", "val_loss", "step_ms")


class Sink:
    """Receives what a run measures, on rank 0 only; the base class drops it. every_steps: how often it wants a step."""

    every_steps = 1

    def step(self, record: dict[str, Any]) -> None:
        """One logged step: step, loss, step_ms, seconds_left, and val_bpb where it was scored."""

    def note(self, text: str) -> None:
        """One line for people."""

    def close(self, result: dict[str, Any] | None, artifact: Path | None) -> None:
        """The end: the result of a run that finished, or None."""


class Sinks(Sink):
    """Several sinks as one. A tracker never raises; a full disk does, and ends the run with what was saved."""

    def __init__(self, members: list[Sink], every_steps: int = 1):
        self.members, self.every_steps = members, every_steps

    def step(self, record: dict[str, Any]) -> None:
        for member in self.members:
            member.step(record)

    def note(self, text: str) -> None:
        for member in self.members:
            member.note(text)

    def close(self, result: dict[str, Any] | None, artifact: Path | None) -> None:
        for member in self.members:
            member.close(result, artifact)


class JsonlSink(Sink):
    """One JSON object a line, flushed at once; a resumed run cuts what came after its checkpoint."""

    def __init__(self, path: Path, from_step: int):
        kept: list[bytes] = []
        for line in read_bytes(path, MOST_METRICS).splitlines() if path.exists() else ():
            with contextlib.suppress(ValueError):  # a line that a kill cut short
                record = parse_json(line)
                kept += [line] if fits(record, Logged) and record["step"] <= from_step else []
        write_bytes(path, b"".join(line + b"\n" for line in kept))
        self.file = open(path, "a")  # noqa: SIM115 (held until close)

    def step(self, record: dict[str, Any]) -> None:
        self.file.write(json.dumps(record) + "\n")
        self.file.flush()

    def close(self, result: dict[str, Any] | None, artifact: Path | None) -> None:
        self.file.close()


class LogFileSink(Sink):
    """The notes, with their time, in log/rank0.txt."""

    def __init__(self, path: Path):
        self.path = path

    def note(self, text: str) -> None:
        with open(self.path, "a") as file:
            file.write(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {text}\n")


class ConsoleSink(Sink):
    """A live line on a terminal, plain lines elsewhere."""

    def __init__(self, total_steps: int | None):
        self.console = console()
        self.live: Progress | None = None
        if self.console.is_terminal:
            columns = (BarColumn(bar_width=10), TextColumn("{task.description}", markup=False))
            self.live = Progress(*columns, console=self.console, transient=True)
            self.task = self.live.add_task("starting", total=total_steps)
            self.live.start()
        self.scored = ""  # the last score, for a live line that stays: it names the step that it is of

    def step(self, record: dict[str, Any]) -> None:
        line = f"step {record['step']:>5}  loss {record['loss']:.4f}  {record['step_ms']:.0f} ms/step"
        line += f"  {clock(record['seconds_left'])} left"
        score = f"  val {record['val_bpb']:.4f} bpb" if "val_bpb" in record else ""
        if self.live:
            self.scored = f"{score} at step {record['step']}" if score else self.scored
            self.live.update(self.task, completed=record["step"], description=line + self.scored)
        else:
            print(line + score, flush=True)

    def note(self, text: str) -> None:
        if self.live:
            self.console.print(text, soft_wrap=True)
        else:
            print(text, flush=True)

    def close(self, result: dict[str, Any] | None, artifact: Path | None) -> None:
        if self.live:
            self.live.stop()


def clock(seconds: float) -> str:
    """75.2 -> 1:15, 3700 -> 1:01:40."""
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"


# ---------------------------------------------------------------- trackers


@dataclass(kw_only=True, slots=True)
class LogConfig:
    """The slot. every_steps: how often a step is logged, everywhere."""

    every_steps: int

    def __post_init__(self) -> None:
        positive(every_steps=self.every_steps)

    def check(self) -> None:
        """Raise UserError where the tracker's package is not installed."""

    def build(self, folder: Path, facts: dict[str, Any], note: Callable[[str], None]) -> Sink:
        """facts: name, label, sweep, tags and config of the run; note: where a tracker may say that it failed."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class NoTrackerConfig(LogConfig):
    """Only the run folder and the terminal."""

    def build(self, folder: Path, facts: dict[str, Any], note: Callable[[str], None]) -> Sink:
        return Sink()


@dataclass(kw_only=True, slots=True)
class WandbConfig(LogConfig):
    """Weights & Biases. It never asks and never fails a run.

    mode=auto is what WANDB_MODE says; without that it is online where a key is found, else offline.
    """

    project: str
    entity: str | None
    mode: str

    def __post_init__(self) -> None:
        LogConfig.__post_init__(self)
        one_of("mode", self.mode, ("auto", "online", "offline"))

    def check(self) -> None:
        if importlib.util.find_spec("wandb") is None:
            raise UserError("log=wandb: the package wandb is not installed; pip install wandb, or log=none")

    def build(self, folder: Path, facts: dict[str, Any], note: Callable[[str], None]) -> Sink:
        if self.chosen_mode() == "disabled":
            note("wandb: disabled (WANDB_MODE), so nothing is tracked")
            return Sink()
        return WandbSink(self, folder, facts, note)

    def chosen_mode(self) -> str:
        """Return auto, online, offline or disabled: what `mode` says, else W&B's own WANDB_MODE."""
        told = os.environ.get("WANDB_MODE", "")
        if self.mode != "auto" or not told:
            return self.mode
        return {"dryrun": "offline", "run": "online"}.get(told, told)


class WandbSink(Sink):
    """BPB, step time, artifact size, config and summary. The first failure is noted and ends the tracking."""

    def __init__(self, config: WandbConfig, folder: Path, facts: dict[str, Any], note: Callable[[str], None]):
        self.config = config
        self.tell = note
        self.run: Any = None
        self.online = False
        self.failed = False
        self._guard(lambda: self._start(folder, facts))

    def _start(self, folder: Path, facts: dict[str, Any]) -> None:
        wandb, mode = _wandb(), self.config.chosen_mode()
        if mode == "auto":
            mode = "online" if _has_key() else "offline"
        self.online = mode == "online"
        self.run = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            mode=mode,
            dir=str(folder),
            id=_run_id(folder),
            resume="allow" if self.online else None,
            name=facts["name"],
            group=facts["sweep"],
            job_type=facts["label"],
            tags=_tags(facts["tags"]),
            config=facts["config"],
            settings=wandb.Settings(
                init_timeout=WANDB_INIT_SECONDS, console="off", silent=True, finish_timeout=WANDB_FINISH_SECONDS
            ),
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        for name in FINAL_ONLY:
            self.run.define_metric(name, step_metric="step", summary="none")
        self.tell(f"wandb: {mode}, project {self.config.project}")

    def step(self, record: dict[str, Any]) -> None:
        self._guard(lambda: self.run.log(record))

    def close(self, result: dict[str, Any] | None, artifact: Path | None) -> None:
        if result is not None:
            self._guard(lambda: self._conclude(result, artifact))
        self._guard(lambda: self.run.finish(exit_code=0 if result is not None else 1))

    def _conclude(self, result: dict[str, Any], artifact: Path | None) -> None:
        """The result as summary (W&B names what is nested evals.plain.val_bpb ...), the artifact as an Artifact."""
        self.run.config.update({"environment": result["environment"]}, allow_val_change=True)
        self.run.summary.update({key: value for key, value in result.items() if key != "environment"})
        if illegal(result):
            self.run.tags += ("illegal",)
        if self.online and artifact is not None:
            name = re.sub(r"[^A-Za-z0-9_.-]", "-", artifact.parent.name)
            metadata = {key: result[key] for key in ("artifact_bytes", "cap_bytes", "val_bpb", "fingerprint")}
            stored = _wandb().Artifact(name, type="model", metadata=metadata)
            stored.add_file(str(artifact), policy="immutable", skip_cache=True)  # uploaded from where it lies
            self.run.log_artifact(stored)

    def _guard(self, action: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            action()
        except Exception as error:  # whatever a tracker does, the run goes on
            self.failed = True
            self.tell(f"wandb: stopped tracking ({one_line(error)}); the run goes on")
            # Otherwise wandb's own hook at the process's end would meet the same trouble, and print a traceback.
            with contextlib.suppress(Exception, SystemExit):
                _wandb().teardown(exit_code=1)


def wandb_entity(given: str | None) -> str | None:
    """The W&B account to write to: `given`, else the logged-in user's own (asks the network); None: not logged in.

    Raises what wandb raises where the network or the key is no good.
    """
    if not _has_key():
        return None
    return given or _wandb().Api().default_entity


def one_line(error: BaseException) -> str:
    """Its type and the first line of its message."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])


def _wandb() -> Any:
    """The package, imported where it is needed, and told to keep off the terminal."""
    os.environ.setdefault("WANDB_SILENT", "true")
    logging.getLogger("wandb").setLevel(logging.ERROR)
    import wandb

    return wandb


def _has_key() -> bool:
    return bool(_wandb().login(prompt=False, verify=False))


def _run_id(folder: Path) -> str:
    """The same for every attempt in this folder; drawn, as one row of two sweeps or machines has one name."""
    path = folder / "wandb" / "id"
    if not path.exists():
        path.parent.mkdir(exist_ok=True)
        write_atomic(path, secrets.token_hex(8))
    return path.read_text()


def _tags(names: list[str | None]) -> list[str]:
    """Each once, at the length that W&B takes."""
    return list(dict.fromkeys(name[:WANDB_TAG_LENGTH] for name in names if name))
