"""What a run keeps beside its artifact, and where it goes on from: checkpoints, weights, passes over the text."""

import contextlib
import hashlib
import json
import shlex
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from golf.averaging import Averager
from golf.checkpoint import load_tensors, pack, save_tensors, unpack
from golf.code_record import joined
from golf.config import Checkpoint
from golf.dist import Ranks
from golf.errors import ExportError, RunError, UserError
from golf.evals.book import Score, TraceLine
from golf.evals.evaluator import EvaluatorConfig, Note, Pass, Resume
from golf.late import Late
from golf.ledger import Ledger
from golf.models.lm import LM
from golf.nodes import plain
from golf.optim.optimizer import Optimizer
from golf.records import Standstill, fits
from golf.rundir import RunDir, write_atomic, write_json
from golf.tokens.loader import Loader

SAVE_SECONDS, TELL_SECONDS = 60.0, 20.0
PASSES = "validation_passes.jsonl"


@dataclass(slots=True)
class LoopState:
    """What must survive a restart, beside tensors and the loader's position.

    codes: what made it so far (golf/code_record.py); step_seconds: one entry a step; earlier_seconds: what processes
    before this one took, up to the last save; progress, decay: of the last step's tick.
    """

    step: int = 0
    earlier_seconds: float = 0.0
    train_seconds: float = 0.0
    train_tokens: int = 0
    saved_step: int | None = None
    progress: float = 0.0
    decay: float = 1.0
    phases: dict[str, Any] = field(default_factory=dict)
    codes: list[dict[str, Any]] = field(default_factory=list)
    step_seconds: list[float] = field(default_factory=list)
    started: float = field(default_factory=time.perf_counter)

    def wall_seconds(self) -> float:
        """Since the run began, this process and those before it."""
        return self.earlier_seconds + time.perf_counter() - self.started


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything of the loop that has a state of its own."""

    model: LM
    optimizer: Optimizer
    averager: Averager
    late: Late
    loader: Loader


class Keeping:
    """Where the artifact goes. The base class keeps nothing else: a run of it begins anew if it is cut off."""

    def __init__(self, artifact: Path):
        self.artifact = artifact

    def restore(self, parts: Parts, state: LoopState, ledger: Ledger) -> str:
        """Take up a run where it was left, and say so in a line; the empty string where nothing was."""
        return ""

    def due(self, state: LoopState) -> bool:
        """Whether it is time to save, by this rank's clock."""
        return False

    def save(self, parts: Parts, state: LoopState, ledger: Ledger, ranks: Ranks) -> None:
        """Save everything; all ranks call it."""

    def weights(self, weights: dict[str, Tensor], step: int) -> None:
        """Keep the averaged weights, before quantisation."""

    def trained(self, measured: dict[str, Any]) -> None:
        """Keep what was measured up to there, so that the weights can be quantised by another process."""

    @contextlib.contextmanager
    def exporting(self) -> Iterator[None]:
        """Add to an error raised in here what the kept weights can still be used for."""
        yield

    def evaluation(self, of: str, tell: Callable[[str], None]) -> "EvalFiles | None":
        """Where an evaluation goes on and leaves its trace. of: sha256 of what is scored."""
        return None

    def scored(self, split: str, evaluator: str, score: Score) -> None:
        """A pass over a split has been made."""


class Kept(Keeping):
    """All of it, in the run's folder. owner: the run's fingerprint, which its checkpoint and its weights name."""

    def __init__(self, folder: RunDir, checkpoint: Checkpoint, resume: str, owner: str):
        super().__init__(folder.artifact)
        self.folder, self.checkpoint, self.resume, self.owner = folder, checkpoint, resume, owner
        self.saved_at = time.monotonic()

    def restore(self, parts: Parts, state: LoopState, ledger: Ledger) -> str:
        if self.resume != "auto" or not self.folder.checkpoint.exists():
            return ""
        tensors, meta = load_tensors(self.folder.checkpoint)
        if not fits(meta, Standstill) or meta.pop("owner", self.owner) != self.owner:
            raise RunError(f"{self.folder.checkpoint}: is another run's checkpoint; delete it to start this run again")
        try:
            self._take_up(tensors, meta, parts, state)
        except (RuntimeError, ValueError, LookupError, TypeError, AttributeError) as error:  # of torch, of parts
            reason = reason_of(error).splitlines()[0]
            raise RunError(
                f"{self.folder.checkpoint}: does not fit this run ({reason}); delete it to start this run again"
            ) from None
        ledger.phases.update(state.phases)
        return f"resumed at step {state.step} from {self.folder.checkpoint.name}"

    def _take_up(self, tensors: dict[str, Tensor], meta: dict[str, Any], parts: Parts, state: LoopState) -> None:
        """Give every part what a checkpoint holds of it."""
        parts.model.load_state_dict(unpack(tensors, "model"))
        parts.optimizer.load(unpack(tensors, "optimizer"))
        device = next(parts.model.parameters()).device
        parts.averager.load({name: tensor.to(device) for name, tensor in unpack(tensors, "average").items()})
        parts.late.load(meta.pop("late"), unpack(tensors, "late"))
        torch.set_rng_state(unpack(tensors, "loop")["rng"])
        parts.loader.seek(meta.pop("loader"))
        now = state.codes
        for name in {item.name for item in fields(LoopState)} & meta.keys():
            setattr(state, name, meta[name])
        state.codes = joined(meta.get("codes", []), [code | {"from_step": state.step} for code in now])

    def due(self, state: LoopState) -> bool:
        steps, seconds = self.checkpoint.every_steps, self.checkpoint.every_seconds
        overdue = seconds is not None and time.monotonic() - self.saved_at > seconds
        return overdue or (steps is not None and state.step > 0 and state.step % steps == 0)

    def save(self, parts: Parts, state: LoopState, ledger: Ledger, ranks: Ranks) -> None:
        """Rank 0 writes the checkpoint; the others give what they hold of it and wait until it stands."""
        fresh = state.saved_step != state.step
        moments = parts.optimizer.state() if fresh else {}
        if ranks.first and fresh:
            if not all(parameter.isfinite().all() for parameter in parts.model.parameters()):
                raise RunError(f"weights are no numbers any more at step {state.step}; lower the learning rates")
            state.phases = ledger.phases
            meta = asdict(state) | {"saved_step": state.step, "earlier_seconds": state.wall_seconds()}
            meta |= {"loader": parts.loader.state(), "late": parts.late.state(), "owner": self.owner}
            del meta["started"]
            tensors: dict[str, dict[str, Tensor]] = {
                "model": dict(parts.model.named_parameters()),
                "optimizer": moments,
                "average": parts.averager.state(),
                "late": parts.late.tensors(),
                "loop": {"rng": torch.get_rng_state()},
            }
            save_tensors(self.folder.checkpoint, pack(tensors), meta)
            self.folder.set_status("running", step=state.step)
        state.saved_step = state.step
        ranks.barrier()
        self.saved_at = time.monotonic()

    def weights(self, weights: dict[str, Tensor], step: int) -> None:
        save_tensors(self.folder.weights, weights, {"step": step, "owner": self.owner})

    def trained(self, measured: dict[str, Any]) -> None:
        write_json(self.folder.trained, measured)

    @contextlib.contextmanager
    def exporting(self) -> Iterator[None]:
        """Raise ExportError for whatever fails but the disk: the same command would fail there again."""
        try:
            yield
        except OSError:
            raise
        except Exception as error:
            command = f"python golf/quantize.py run={shlex.quote(str(self.folder.path))}"
            raise ExportError(
                f"{reason_of(error)}; training is done and its weights are kept: to make an artifact of them with "
                f"other settings, {command} quant=... (or quant.rounding.damping=..., codec=..., eval=...)"
            ) from error

    def evaluation(self, of: str, tell: Callable[[str], None]) -> "EvalFiles | None":
        return EvalFiles(self.folder.path, of, tell)

    def scored(self, split: str, evaluator: str, score: Score) -> None:
        """Enter a pass over the validation text in the ledger beside all runs: choosing by such scores is tuning on
        it."""
        if split == "val":
            path = self.folder.path
            entry = {"time": time.time(), "run": path.name, "sweep": path.parent.name, "evaluator": evaluator}
            with open(path.parents[1] / PASSES, "a") as file:
                file.write(json.dumps(entry | {"tokens": score.tokens, "bpb": score.bpb}) + "\n")


def out_of_memory(error: BaseException) -> bool:
    """Return whether Python, torch or the device had no memory left."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or "can't allocate memory" in str(error)


def reason_of(error: Exception) -> str:
    """Return an error's own words where it has some for people, else its type and message."""
    if out_of_memory(error):
        return "out of memory"
    return str(error) if isinstance(error, UserError | RunError) else f"{type(error).__name__}: {error}"


class EvalFiles:
    """Files of a run's evaluations. of: what is scored (a hash of it), so that a pass of something else is not taken
    up; tell: for a line now and then."""

    def __init__(self, folder: Path, of: str, tell: Callable[[str], None]):
        self.folder, self.of, self.tell = folder, of, tell

    def open(
        self, name: str, chosen: EvaluatorConfig, text: tuple[str, str], ranks: Ranks
    ) -> tuple[Note | None, "FileResume"]:
        """(who is told of each round, on the first rank; where it goes on). text: the data's digest and the split."""
        what = [plain(chosen, operational=False), *text, self.of, ranks.world]
        identity = hashlib.sha256(json.dumps(what).encode()).hexdigest()
        resume = FileResume(self.folder / "checkpoint" / f"eval-{name}-{ranks.rank}.safetensors", identity, ranks)
        return self.note(name, chosen.chosen.learns) if ranks.first else None, resume

    def note(self, name: str, learns: bool) -> Note:
        """Tell how far it is, and write the trace at the end; learns: whether its scorer is to learn between rounds."""
        told = time.monotonic()

        def note(going: Pass) -> None:
            nonlocal told
            line = going.trace[-1]
            if time.monotonic() - told > TELL_SECONDS:
                told, share = time.monotonic(), line.tokens / going.book.targets
                self.tell(f"{name}: {share:.0%}, {line.as_dict()['bpb']:.4f} bpb so far")
            if learns and going.rounds == 1:
                size = f"its {going.book.targets:,} targets are one round; take fewer chunk_tokens"
                self.tell(f"{name}: nothing was learnt from this text: {size}")
            if going.done == going.rounds > 1:
                lines = "".join(json.dumps(line.as_dict()) + "\n" for line in going.trace)
                (self.folder / "trace").mkdir(exist_ok=True)
                write_atomic(self.folder / "trace" / f"{name}.jsonl", lines)

        return note


class FileResume(Resume):
    """A file for each rank, written every SAVE_SECONDS, gone when the pass is done. All ranks go on from one round;
    what more ranks or fewer kept is begun anew (their number is in `identity`)."""

    def __init__(self, path: Path, identity: str, ranks: Ranks):
        self.path, self.identity, self.ranks = path, identity, ranks
        self.saved = time.monotonic()

    def take_up(self, going: Pass) -> float:
        tensors, meta = load_tensors(self.path) if self.path.exists() else ({}, {})
        done = meta["done"] if meta.get("identity") == self.identity else 0
        dones = self.ranks.gather(torch.tensor([done], device=self.ranks.device))()
        if done == 0 or (dones != done).any():
            return 0.0
        going.done, going.trace = done, [TraceLine(*line) for line in meta["trace"]]
        going.book.load(unpack(tensors, "book"))
        going.scorer.load(unpack(tensors, "scorer"))
        return meta["seconds"]

    def keep(self, going: Pass, seconds: float) -> None:
        (due,) = self.ranks.any_of(time.monotonic() - self.saved > SAVE_SECONDS)
        if not due or going.done == going.rounds:
            return
        tensors = pack({"book": going.book.state(), "scorer": going.scorer.state()})
        trace = [[line.tokens, line.nats, line.bytes, line.learning_loss] for line in going.trace]
        meta = {"identity": self.identity, "done": going.done, "seconds": seconds, "trace": trace}
        save_tensors(self.path, tensors, meta)
        self.saved = time.monotonic()

    def done(self) -> None:
        """Drop every rank's file, those of a pass that more ranks began among them."""
        if self.ranks.first:
            for path in self.path.parent.glob(f"{self.path.stem.removesuffix('-0')}-[0-9]*{self.path.suffix}"):
                path.unlink()
