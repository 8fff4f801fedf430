"""What a submission's file does: train, quantise, write the artifact, read it back, score it, and say so in the lines
that the challenge's own script prints (openai/parameter-golf, train_gpt.py).

SEED, DATA_PATH (a folder with *train_*.bin, *val_*.bin and tokenizer.model), TOKENIZER_PATH and OUT (a folder for
artifact.golf) are read from the environment; nothing else is.
"""

import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from golf import dist
from golf.config import Recipe
from golf.errors import UserError
from golf.export import export
from golf.keeping import Keeping, LoopState
from golf.ledger import Ledger
from golf.loop import train
from golf.sinks import Sink
from golf.tokens.prepare import Prepared, Split
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
        step, seconds = record["step"], record["train_seconds"]
        times = f"train_time:{1000 * seconds:.0f}ms step_avg:{1000 * seconds / step:.2f}ms"
        print(f"step:{step}/{self.total} train_loss:{record['loss']:.4f} {times}", flush=True)
        if "val_bpb" in record:
            scores = f"val_loss:{record['val_loss']:.4f} val_bpb:{record['val_bpb']:.4f}"
            print(f"step:{step}/{self.total} {scores} {times}", flush=True)

    def note(self, text: str) -> None:
        print(text, flush=True)


def find_text(run: Recipe) -> Prepared:
    """The shards and the tokenizer that the environment names."""
    folder = Path(os.environ.get("DATA_PATH", "data"))
    tokenizer = Path(os.environ.get("TOKENIZER_PATH", folder / "tokenizer.model"))
    splits = {}
    for name in sorted({run.loader.split, run.eval.split}):
        shards = sorted(folder.glob(f"*{name}_*.bin"))
        if not shards:
            raise UserError(f"DATA_PATH={folder}: has no *{name}_*.bin; name a folder of token shards")
        splits[name] = Split(shards=shards, tokens=0, documents=None, bytes=None, shard_sha256=[])
    return Prepared(
        corpus=folder.name,
        folder=folder,
        tokenizer=tokenizer,
        vocab_size=run.model.vocab_size,
        bos_id=load_tokenizer(tokenizer).bos_id(),
        splits=splits,
        tokenizer_sha256=file_sha256(tokenizer),
        text_sha256=None,
        settings={},
    )


def conclude(run: Recipe, measured: dict[str, Any], code_bytes: int) -> None:
    """The size and the score as the challenge's script prints them, then all of it as one line of JSON."""
    total = code_bytes + measured["artifact_bytes"]
    print(f"peak memory allocated: {measured['peak_memory_bytes'] // MIB} MiB")
    print(f"Serialized model quantized: {measured['artifact_bytes']} bytes")
    print(f"Code size: {code_bytes} bytes")
    print(f"Total submission size: {total} bytes")
    for name, entry in measured["evals"].items():
        label = "final_quantized_roundtrip" if name == "plain" else f"final_quantized_{name}"
        spent = f"eval_time:{1000 * entry['seconds']:.0f}ms"
        print(f"{label} val_loss:{entry['val_loss']:.4f} val_bpb:{entry['val_bpb']:.4f} {spent}")
        print(f"{label}_exact val_loss:{entry['val_loss']:.8f} val_bpb:{entry['val_bpb']:.8f}")
    sizes = {"code_bytes": code_bytes, "total_bytes": total, "fits": total <= run.cap_bytes}
    del measured["code_bytes_note"]
    print("RESULT " + json.dumps({"seed": run.seed, **measured, **sizes}), flush=True)


def main() -> None:
    """One run, alone or as a rank of torchrun."""
    run = replace(RECIPE, seed=int(os.environ.get("SEED", RECIPE.seed)))
    ranks = dist.start(run.compute.device)
    prepared = find_text(run)
    sinks = LogLines(run) if ranks.first else Sink()
    sinks.note(f"seed:{run.seed} world_size:{ranks.world}")
    state, ledger = LoopState(), Ledger()
    keeping = Keeping(Path(os.environ.get("OUT", ".")) / "artifact.golf")
    trained = train(run, prepared, keeping, ranks, sinks, state, ledger)
    sinks.note(f"model_params:{sum(parameter.numel() for parameter in trained.model.parameters())}")
    measured = export(run, prepared, keeping, ranks, sinks, state, ledger, trained)
    if ranks.first:
        conclude(run, measured, len(Path(__file__).read_bytes()))
    dist.finish(ranks)
