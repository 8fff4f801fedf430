"""A run's evaluators on its split: one object that opens the stream when it scores, with any model and any of them."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from golf.checkpoint import load_tensors, pack, save_tensors, unpack
from golf.dist import Ranks
from golf.evals.book import Book, Score, TraceLine
from golf.evals.evaluator import EvalConfig, Note, Pass, Resume, quietly
from golf.models.lm import LM
from golf.nodes import plain
from golf.rundir import write_atomic
from golf.tokens.prepare import Prepared
from golf.tokens.shards import open_shard
from golf.tokens.tokenizer import ByteCounter

SAVE_SECONDS, TELL_SECONDS = 60.0, 20.0
PASSES = "validation_passes.jsonl"


class Scoring:
    """plain and named scores of a model on `eval.split`. folder: of the run, beside whose sweep each pass over the
    validation text is entered, whatever it is for; None: it is nobody's, and none is."""

    def __init__(self, config: EvalConfig, prepared: Prepared, ranks: Ranks, folder: Path | None = None):
        self.config, self.prepared, self.ranks, self.folder = config, prepared, ranks, folder
        self.counter = ByteCounter.from_tokenizer(prepared.tokenizer)

    def stream(self) -> np.ndarray:
        """The split's tokens, opened now."""
        shards = [open_shard(path) for path in self.prepared.splits[self.config.split].shards]
        return shards[0] if len(shards) == 1 else np.concatenate(shards)

    def score(self, model: LM, evaluator: str = "plain", files: "EvalFiles | None" = None) -> Score:
        """Score with a named evaluator; all ranks take part and get the same sums. Leaves no gradients.

        files: where its trace is written and where it goes on if it is cut off; None: neither.
        """
        book = Book(self.stream(), self.counter, self.ranks)
        chosen, bos_id = self.config.evaluators[evaluator], self.prepared.bos_id
        note: Note = quietly
        resume: FileResume | None = None
        if files is not None:
            what = [plain(chosen, operational=False), self.prepared.digest, self.config.split, files.of]
            identity = hashlib.sha256(json.dumps([*what, self.ranks.world]).encode()).hexdigest()
            resume = files.resume(evaluator, identity, self.ranks)
            note = files.note(evaluator, chosen.chosen.learns) if self.ranks.first else quietly
        score = chosen.run(model, book, bos_id, note, resume)
        if resume is not None:
            resume.done()
        if self.folder is not None and self.ranks.first and self.config.split == "val":
            enter_pass(self.folder, evaluator, score)
        return score


class EvalFiles:
    """Files of a run's evaluations. of: what is scored (a hash of it), so that a pass of something else is not taken
    up; tell: for a line now and then."""

    def __init__(self, folder: Path, of: str, tell: Callable[[str], None]):
        self.folder, self.of, self.tell = folder, of, tell

    def resume(self, name: str, identity: str, ranks: Ranks) -> "FileResume":
        return FileResume(self.folder / "checkpoint" / f"eval-{name}-{ranks.rank}.safetensors", identity, ranks)

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


def enter_pass(folder: Path, evaluator: str, score: Score) -> None:
    """Enter a pass over the validation text in the ledger beside all runs: choosing by such scores is tuning on it."""
    entry = {"time": time.time(), "run": folder.name, "sweep": folder.parent.name, "evaluator": evaluator}
    with open(folder.parents[1] / PASSES, "a") as file:
        file.write(json.dumps(entry | {"tokens": score.tokens, "bpb": score.bpb}) + "\n")


class FileResume(Resume):
    """A file for each rank, written every SAVE_SECONDS, gone when the pass is done. All ranks go on from one round;
    what more ranks or fewer kept is begun anew (their number is in `identity`)."""

    def __init__(self, path: Path, identity: str, ranks: Ranks):
        self.path, self.identity, self.ranks = path, identity, ranks
        self.saved = time.monotonic()

    def load(self, going: Pass) -> float:
        tensors, meta = load_tensors(self.path) if self.path.exists() else ({}, {})
        done = meta["done"] if meta.get("identity") == self.identity else 0
        dones = self.ranks.gather(torch.tensor([done], device=self.ranks.device))()
        if done == 0 or (dones != done).any():
            return 0.0
        going.done, going.trace = done, [TraceLine(*line) for line in meta["trace"]]
        going.book.load(unpack(tensors, "book"))
        going.scorer.load(unpack(tensors, "scorer"))
        return meta["seconds"]

    def save(self, going: Pass, seconds: float) -> None:
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
