"""What a submission's file does: train, quantise, write the artifact, read it back, score it, and say so in the lines
that the challenge's own script prints (openai/parameter-golf, train_gpt.py).

SEED, DATA_PATH (a folder with *train_*.bin, *val_*.bin and tokenizer.model), TOKENIZER_PATH (else tokenizer.model
beside the script, if there is one) and OUT (a folder for artifact.golf) are read from the environment; nothing else is.
"""

import hashlib
import json
import os
import zlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch

from golf import dist
from golf.artifact.file import PREFIX
from golf.artifact.sections import Section
from golf.averaging import weights_of
from golf.calibrate import calibrate
from golf.config import Recipe
from golf.dist import Ranks
from golf.errors import RunError, UserError
from golf.evals.book import Score
from golf.export import store
from golf.keeping import Keeping, LoopState
from golf.ledger import Ledger
from golf.loop import Trained, train
from golf.models.lm import LM
from golf.nodes import plain
from golf.quant.formats import decode_one
from golf.sinks import Sink
from golf.tokens.prepare import Prepared
from golf.tokens.shards import file_sha256
from golf.tokens.tokenizer import load_tokenizer

MIB = 1 << 20
RECIPE = cast(Recipe, None)  # what is trained: written by the bundler


class LogLines(Sink):
    """The lines of the challenge's script, on stdout."""

    every_steps = 50

    def __init__(self, run: Recipe):
        self.total = run.budget.max_steps or 0

    def step(self, record: dict[str, Any]) -> None:
        print("\n".join(step_lines(record, self.total)), flush=True)

    def note(self, text: str) -> None:
        print(text, flush=True)


def step_lines(record: dict[str, Any], total: int) -> list[str]:
    """A step's loss, and its score where it was scored."""
    step, seconds = record["step"], record["train_seconds"]
    times = f"train_time:{1000 * seconds:.0f}ms step_avg:{1000 * seconds / step:.2f}ms"
    lines = [f"step:{step}/{total} train_loss:{record['loss']:.4f} {times}"]
    if "val_bpb" in record:
        lines.append(f"step:{step}/{total} val_loss:{record['val_loss']:.4f} val_bpb:{record['val_bpb']:.4f} {times}")
    return lines


def final_lines(name: str, loss: float, bpb: float, seconds: float) -> list[str]:
    """The score of what was read back, by one evaluator."""
    label = "final_quantized_roundtrip" if name == "plain" else f"final_quantized_{name}"
    rounded = f"{label} val_loss:{loss:.4f} val_bpb:{bpb:.4f} eval_time:{1000 * seconds:.0f}ms"
    return [rounded, f"{label}_exact val_loss:{loss:.8f} val_bpb:{bpb:.8f}"]


def last_lines(facts: dict[str, Any], scores: dict[str, tuple[float, float, float]]) -> list[str]:
    """Sizes and scores, then all of it as one line of JSON. facts: seed, steps, seconds, bytes of artifact and code;
    scores: (loss, BPB, seconds) by each evaluator."""
    artifact_bytes, code_bytes = facts["artifact_bytes"], facts["code_bytes"]
    total_bytes = artifact_bytes + code_bytes
    lines = [f"Serialized model quantized: {artifact_bytes} bytes", f"Code size: {code_bytes} bytes"]
    lines.append(f"Total submission size: {total_bytes} bytes")
    for name, score in scores.items():
        lines += final_lines(name, *score)
    by_name = {
        key: {name: score[index] for name, score in scores.items()}
        for index, key in enumerate(("val_loss", "val_bpb", "eval_seconds"))
    }
    return [*lines, "RESULT " + json.dumps({**facts, "total_bytes": total_bytes, **by_name})]


@dataclass(frozen=True, slots=True)
class Shards:
    """Files of one split."""

    shards: list[Path]


@dataclass(frozen=True, slots=True)
class Text:
    """As much of golf's Prepared as a run reads."""

    tokenizer: Path
    tokenizer_sha256: str
    bos_id: int
    splits: dict[str, Shards]


def find_text(run: Recipe) -> Prepared:
    """The shards and the tokenizer that the environment names."""
    folder = Path(os.environ.get("DATA_PATH", "data"))
    beside = Path(__file__).with_name("tokenizer.model")
    tokenizer = Path(os.environ.get("TOKENIZER_PATH", beside if beside.exists() else folder / "tokenizer.model"))
    splits = {name: Shards(sorted(folder.glob(f"*{name}_*.bin"))) for name in (run.loader.split, run.eval.split)}
    for name, found in splits.items():
        if not found.shards:
            raise UserError(f"DATA_PATH={folder}: has no *{name}_*.bin; name a folder of token shards")
    bos_id = load_tokenizer(tokenizer).bos_id()
    return cast(Prepared, Text(tokenizer, file_sha256(tokenizer), bos_id, splits))


def read_back(path: Path, run: Recipe) -> LM:
    """The model that the file holds."""
    blob, exported = path.read_bytes(), run.model.exported()
    _, digest, size = PREFIX.unpack_from(blob)
    head = PREFIX.size + size
    header = json.loads(zlib.decompress(blob[PREFIX.size : head]))
    if hashlib.sha256(blob[PREFIX.size - 4 :]).digest() != digest or header["model"] != plain(exported):
        raise RunError(f"{path}: is not what was written")
    model = exported.build_on_meta()
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    formats = {name: run.quant.formats[chosen] for name, chosen, _ in header["tensors"]}
    layouts = {name: chosen.layout(shapes[name]) for name, chosen in formats.items()}
    sections = [Section(f"{name}/{part}", *spec) for name, layout in layouts.items() for part, spec in layout.items()]
    values = iter(run.chosen_codec.decode(blob[head:], sections))
    parts = {name: {part: next(values) for part in layout} for name, layout in layouts.items()}
    weights = {name: decode_one(chosen, parts[name], shapes[name]) for name, chosen in formats.items()}
    model.load_state_dict(weights, assign=True)
    return model.requires_grad_(False)


def export(run: Recipe, prepared: Prepared, path: Path, ranks: Ranks, ledger: Ledger, trained: Trained) -> LM:
    """Average, quantise, write the artifact, read it back."""
    model, averager = trained.model, trained.averager
    weights = averager.averages(weights_of(model))
    with averager.applied(model):
        measured = calibrate(run, prepared, model, ranks, ledger)
    if ranks.first:
        store(run, prepared, weights, averager.name(), model.stored_roles(), path, ledger, measured)
    ranks.barrier()
    fresh = read_back(path, run).to(ranks.device)
    fresh.compute_dtype, fresh.attend = model.compute_dtype, model.attend
    return fresh


def conclude(run: Recipe, scores: dict[str, Score], artifact_bytes: int, state: LoopState, ledger: Ledger) -> None:
    """Say what came of it."""
    facts = {
        "seed": run.seed,
        "steps": state.step,
        "train_seconds": state.train_seconds,
        "counted_seconds": ledger.counted(),
        "artifact_bytes": artifact_bytes,
        "code_bytes": len(Path(__file__).read_bytes()),
    }
    found = {name: (score.loss, score.bpb, score.seconds) for name, score in scores.items()}
    print("\n".join(last_lines(facts, found)), flush=True)


def main() -> None:
    """One run, alone or as a rank of torchrun."""
    run = replace(RECIPE, seed=int(os.environ.get("SEED", RECIPE.seed)))
    path = Path(os.environ.get("OUT", ".")) / "artifact.golf"
    ranks = dist.start(run.compute.device)
    prepared = find_text(run)
    sinks = LogLines(run) if ranks.first else Sink()
    sinks.note(f"seed:{run.seed} world_size:{ranks.world}")
    state, ledger = LoopState(), Ledger()
    trained = train(run, prepared, Keeping(path), ranks, sinks, state, ledger)
    sinks.note(f"model_params:{sum(parameter.numel() for parameter in trained.model.parameters())}")
    if ranks.device.type == "cuda":
        sinks.note(f"peak memory allocated: {torch.cuda.max_memory_allocated() // MIB} MiB")
    fresh = export(run, prepared, path, ranks, ledger, trained)
    scores = {name: trained.scoring.score(fresh, name) for name in run.eval.evaluators}
    if ranks.first:
        conclude(run, scores, path.stat().st_size, state, ledger)
    dist.finish(ranks)
