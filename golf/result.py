"""result.json, and the table that a run ends with. The keys are those of result schema 1; none is ever missing."""

from typing import Any

from golf.config import Run
from golf.terminal import ALARM, Column, Content, in_style, show_facts, show_table, words
from golf.tokens.prepare import Prepared

SCHEMA = 1


def assemble(
    run: Run, prepared: Prepared, *, fingerprint: str, config_hash: str, measured: dict[str, Any]
) -> dict[str, Any]:
    """The whole result of a finished run: its names, its data, and what was measured."""
    return {
        "schema": SCHEMA,
        "status": "done",
        "label": run.label,
        "fingerprint": fingerprint,
        "config_hash": config_hash,
        "seed": run.seed,
        "sweep": run.sweep_label,
        "row": run.label if run.sweep_label else None,
        "parent": None,
        "data": {
            "corpus": prepared.corpus,
            "tokenizer": prepared.tokenizer.name,
            "tokenizer_sha256": prepared.tokenizer_sha256,
            "vocab_size": prepared.vocab_size,
            "digest": prepared.digest,
            "split": run.eval.split,
            "sha256": {name: split.sha256 for name, split in prepared.splits.items()},
        },
        "track": run.track,
        **measured,
    }


def show(result: dict[str, Any]) -> None:
    """Print the score table: the ladder, bytes against the cap, steps and their time."""
    ladder = (("last", "raw_bpb"), (f"before quantisation: {result['average']}", "pre_quant_bpb"))
    scores: list[list[Content]] = [[name, "plain", f"{result[key]:.4f}"] for name, key in ladder]
    for name, entry in result["evals"].items():
        style = "bold" if name == result["eval_main"] else ""
        cells = ("artifact, read back", name, f"{entry['val_bpb']:.4f}")
        scores.append([in_style(cell, style) for cell in cells])
    title = f"{result['label']}, seed {result['seed']}, track {result['track']}"
    show_table([words("weights"), words("evaluator"), Column("BPB")], scores, title)
    share = result["total_bytes"] / result["cap_bytes"]
    size = f"{result['total_bytes']:,} of {result['cap_bytes']:,} bytes ({share:.0%}): "
    rows: dict[str, Content] = {
        "score": in_style(f"{result['val_bpb']:.4f}", "bold")
        + f" bits per byte on {result['data']['corpus']}/{result['data']['split']}",
        "quant gap": f"{result['quant_gap_bpb']:+.4f} BPB",
        "artifact": f"{result['artifact_bytes']:,} bytes, {result['bits_per_param']:.2f} bits a parameter",
        "size": size + "fits" if result["fits"] else in_style(size, "") + in_style("OVER THE CAP", ALARM),
        "training": f"{result['steps']:,} steps, {result['train_tokens']:,} tokens, {result['train_seconds']:.0f} s",
        "step": f"{result['step_ms']:.0f} ms, {result['tokens_per_second']:,.0f} tokens/s, {result['precision']}",
    }
    if not result["in_time"]:
        rows["OVER TIME"] = f"{result['counted_seconds']:.1f} s count as training"
    if result.get("never_begun"):
        rows["NEVER BEGUN"] = ", ".join(result["never_begun"])
    if len(result["codes"] or []) > 1:
        rows["CODES"] = f"made by {len(result['codes'])} codes, from steps " + ", ".join(
            str(code["from_step"]) for code in result["codes"]
        )
    if result["legality"]:
        rows["ILLEGAL"] = "; ".join(result["legality"])
    show_facts(rows)
