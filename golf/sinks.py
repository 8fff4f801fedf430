"""Who watches a run: the terminal, metrics.jsonl and a tracker. The only file that knows wandb."""

import importlib.util
import json
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn

from golf.errors import UserError
from golf.fields import one_of, positive
from golf.rundir import write_atomic

WANDB_INIT_SECONDS = 20
WANDB_FINISH_SECONDS = 60


class Sink:
    """Receives what a run measures, on rank 0 only; the base class drops it."""

    def step(self, record: dict[str, Any]) -> None:
        """One logged step: step, loss, step_ms, seconds_left, and val_bpb where it was scored."""

    def note(self, text: str) -> None:
        """One line for people."""

    def close(self, result: dict[str, Any] | None, artifact: Path | None) -> None:
        """The end: the result of a run that finished, or None."""


class Sinks(Sink):
    """Several sinks as one. A tracker never raises; a full disk does, and ends the run with what was saved."""

    def __init__(self, members: list[Sink]):
        self.members = members

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
        kept = []
        if path.exists():
            for line in path.read_text().splitlines():
                try:
                    kept += [line] if json.loads(line)["step"] <= from_step else []
                except (ValueError, KeyError):
                    continue  # a line that a kill cut short
        write_atomic(path, "".join(line + "\n" for line in kept))
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
        self.console = Console(highlight=False, soft_wrap=True)
        self.live: Progress | None = None
        if self.console.is_terminal:
            columns = (BarColumn(bar_width=10), TextColumn("{task.description}"))
            self.live = Progress(*columns, console=self.console, transient=True)
            self.task = self.live.add_task("starting", total=total_steps)
            self.live.start()
        self.bpb: float | None = None

    def step(self, record: dict[str, Any]) -> None:
        self.bpb = record.get("val_bpb", self.bpb)
        line = f"step {record['step']:>5}  loss {record['loss']:.4f}  {record['step_ms']:.0f} ms/step"
        line += f"  {_clock(record['seconds_left'])} left" + (f"  val {self.bpb:.4f} bpb" if self.bpb else "")
        if self.live:
            self.live.update(self.task, completed=record["step"], description=line)
        else:
            print(line, flush=True)

    def note(self, text: str) -> None:
        if self.live:
            self.console.print(text, markup=False)
        else:
            print(text, flush=True)

    def close(self, result: dict[str, Any] | None, artifact: Path | None) -> None:
        if self.live:
            self.live.stop()


def _clock(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d}"


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
        """facts: label, sweep, config ... of the run; note: where a tracker may say that it failed."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class NoTrackerConfig(LogConfig):
    """Only the run folder and the terminal."""

    def build(self, folder: Path, facts: dict[str, Any], note: Callable[[str], None]) -> Sink:
        return Sink()


@dataclass(kw_only=True, slots=True)
class WandbConfig(LogConfig):
    """Weights & Biases. mode=auto is online where a key is found, else offline; it never asks and never fails a run."""

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
        return WandbSink(self, folder, facts, note)


class WandbSink(Sink):
    """BPB, step time, artifact size, config and summary. The first failure is noted and ends the tracking."""

    def __init__(self, config: WandbConfig, folder: Path, facts: dict[str, Any], note: Callable[[str], None]):
        self.config = config
        self.tell = note
        self.run: Any = None
        self.failed = False
        self._guard(lambda: self._start(folder, facts))

    def _start(self, folder: Path, facts: dict[str, Any]) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        logging.getLogger("wandb").setLevel(logging.ERROR)
        import wandb

        mode: Any = self.config.mode
        if mode == "auto":
            mode = "online" if wandb.login(prompt=False, verify=False) else "offline"
        self.run = wandb.init(
            project=self.config.project,
            entity=self.config.entity,
            mode=mode,
            dir=str(folder),
            id=facts["run_id"],
            resume="allow" if mode == "online" else None,
            name=facts["name"],
            group=facts["sweep"],
            job_type=facts["label"],
            config=facts["config"],
            settings=wandb.Settings(
                init_timeout=WANDB_INIT_SECONDS, console="off", silent=True, finish_timeout=WANDB_FINISH_SECONDS
            ),
        )
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")
        self.run.define_metric("val_bpb", step_metric="step", summary="min")
        self.tell(f"wandb: {mode}, project {self.config.project}")

    def step(self, record: dict[str, Any]) -> None:
        self._guard(lambda: self.run.log(record))

    def close(self, result: dict[str, Any] | None, artifact: Path | None) -> None:
        def end() -> None:
            if result is not None:
                self.run.summary.update({key: value for key, value in result.items() if key != "environment"})
            self.run.finish(exit_code=0 if result is not None else 1)

        self._guard(end)

    def _guard(self, action: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            action()
        except Exception as error:  # whatever a tracker does, the run goes on
            self.failed = True
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            self.tell(f"wandb: stopped tracking ({type(error).__name__}: {reason}); the run goes on")
