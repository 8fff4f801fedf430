"""From trained weights to the score that counts: average, quantise, write, read back, evaluate."""

import statistics
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from golf.artifact.file import read_artifact, write_artifact
from golf.averaging import weights_of
from golf.calibrate import Measured, calibrate
from golf.config import Recipe
from golf.dist import Ranks
from golf.evals.book import Score
from golf.keeping import Keeping, LoopState
from golf.ledger import Ledger
from golf.legality import broken_rules
from golf.loop import Trained
from golf.models.lm import LM
from golf.quant.allocation import fit
from golf.scoring import Scoring
from golf.sinks import Sink
from golf.tokens.prepare import Prepared
from golf.tokens.shards import file_sha256

WARM_UP_STEPS = 5  # left out of step_ms: caches and allocators settle


def export(
    run: Recipe,
    prepared: Prepared,
    keeping: Keeping,
    ranks: Ranks,
    sinks: Sink,
    state: LoopState,
    ledger: Ledger,
    trained: Trained,
) -> dict[str, Any]:
    """The ladder (raw, averaged, quantised, main) and everything of result.json but the run's own names."""
    model, averager, scoring = trained.model, trained.averager, trained.scoring

    # ---------------------------------------------------------------- raw and averaged weights
    with ledger.phase("eval", run.eval.split):
        raw = scoring.score(model)
    weights = averager.averages(weights_of(model))
    if ranks.first:
        keeping.weights(weights, state.step)
    pre_quant = raw
    if not averager.identity:
        with ledger.phase("eval", run.eval.split), averager.applied(model):
            pre_quant = scoring.score(model)
    raw_too = "" if averager.identity else f" (last weights {raw.bpb:.4f})"
    sinks.note(f"before quantisation: {pre_quant.bpb:.4f} bpb of the {averager.name()}{raw_too}")
    facts = {"raw_bpb": raw.bpb, "pre_quant_bpb": pre_quant.bpb, **_setting_part(run, state, ranks, trained)}
    if ranks.first:
        keeping.trained({**facts, **_time_part(run, state, ledger), "peak_memory_bytes": _peak_memory(ranks.device)})

    # ---------------------------------------------------------------- the artifact, written, read back and scored
    with keeping.exporting():
        with averager.applied(model):
            measured = calibrate(run, prepared, model, ranks, ledger)
        fitted: dict[str, Any] = {}
        if ranks.first:
            roles = model.stored_roles()
            fitted = store(run, prepared, weights, averager.name(), roles, keeping.artifact, ledger, measured)
            if fitted:
                sinks.note(told(fitted, run.cap_bytes))
        ranks.barrier()
        scored = score_artifact(run, keeping, model, averager.name(), scoring, pre_quant.bpb, ranks, sinks, ledger)
    return {
        **facts,
        **scored,
        **_time_part(run, state, ledger),
        "quant_seconds": quant_seconds(ledger),
        "fit": fitted or None,
        "peak_memory_bytes": _peak_memory(ranks.device),
    }


def score_artifact(
    run: Recipe,
    keeping: Keeping,
    model: LM,
    weights: str,
    scoring: Scoring,
    pre_quant_bpb: float,
    ranks: Ranks,
    sinks: Sink,
    ledger: Ledger,
) -> dict[str, Any]:
    """Read the file into a fresh model and score that; model: what was trained; weights: which of its weights."""
    artifact = read_artifact(keeping.artifact)
    fresh = artifact.model.to(ranks.device)
    fresh.compute_dtype, fresh.attend = model.compute_dtype, model.attend
    scores: dict[str, Score] = {}
    digest = file_sha256(keeping.artifact)
    files = keeping.evaluation(digest, sinks.note)
    for name in run.eval.evaluators:
        with ledger.phase("eval", run.eval.split):
            scores[name] = scoring.score(fresh, name, files)
        sinks.note(
            f"{name}: {scores[name].bpb:.4f} bpb on {scores[name].tokens:,} tokens in {scores[name].seconds:.1f} s"
        )
    return {
        **_score_part(run, weights, pre_quant_bpb, scores),
        **_size_part(run, artifact.size_bytes, model, fresh),
        "artifact_sha256": digest,
    }


def store(
    run: Recipe,
    prepared: Prepared,
    weights: dict[str, Tensor],
    name: str,
    roles: dict[str, str],
    path: Path,
    ledger: Ledger,
    measured: Measured,
) -> dict[str, Any]:
    """Quantise and write the artifact file: the weights that `roles` names. name: of their average.

    With quant.fit the widths of steps are searched; what that came to is returned, else nothing.
    """
    kept = {key: weights[key] for key in roles}
    dialled = {key: kept[key] for key in run.quant.dialled({key: tuple(w.shape) for key, w in kept.items()}, roles)}
    with ledger.phase("quantise"):
        shares = run.quant.allocation.factors(dialled, measured.power)

    written = 0.0

    def write(factor: float) -> int:
        nonlocal written
        written = factor
        with ledger.phase("quantise"):
            widths = {key: share * factor for key, share in shares.items()}
            stored = run.quant.quantize(kept, roles, measured.hessians, widths)
        with ledger.phase("encode"):
            return write_artifact(
                path,
                model=run.model.exported(),
                stored=stored,
                weights=name,
                quant=run.quant,
                codec=run.chosen_codec,
                tokenizer=prepared.tokenizer_sha256,
            )

    if not run.quant.fit:
        write(1.0)
        return {}
    found = fit(write, run.cap_bytes, run.quant.fit_margin, sum(w.numel() for w in dialled.values()))
    if written != found.factor:
        write(found.factor)
    return asdict(found)


def told(fitted: dict[str, Any], cap_bytes: int) -> str:
    """What a fit chose, in a line."""
    size, factor = fitted["size_bytes"], fitted["factor"]
    reason = "" if fitted["full"] else "; no width of steps comes nearer"
    return f"fit: steps times {factor:.3f} make {size:,} of {cap_bytes:,} bytes ({fitted['tries']} files tried{reason})"


def _score_part(run: Recipe, weights: str, pre_quant_bpb: float, scores: dict[str, Score]) -> dict[str, Any]:
    main, post_quant = scores[run.eval.main], scores["plain"]
    evals = {
        name: {
            "val_bpb": score.bpb,
            "val_loss": score.loss,
            "tokens": score.tokens,
            "bytes": score.bytes,
            "seconds": score.seconds,
            "legal": run.eval.evaluators[name].legal,
            "notes": run.eval.evaluators[name].describe(),
            "weights": weights,
        }
        for name, score in scores.items()
    }
    return {
        "eval_main": run.eval.main,
        "val_bpb": main.bpb,
        "val_loss": main.loss,
        "evals": evals,
        "pre_quant_bpb": pre_quant_bpb,
        "post_quant_bpb": post_quant.bpb,
        "quant_gap_bpb": post_quant.bpb - pre_quant_bpb,
    }


def _size_part(run: Recipe, artifact_bytes: int, model: LM, fresh: LM) -> dict[str, Any]:
    stored = sum(parameter.numel() for parameter in fresh.parameters())
    return {
        "artifact_bytes": artifact_bytes,
        "code_bytes": 0,
        "code_bytes_note": "0 until a counted submission is built",
        "total_bytes": artifact_bytes,
        "cap_bytes": run.cap_bytes,
        "fits": artifact_bytes <= run.cap_bytes,
        "bits_per_param": 8 * artifact_bytes / stored,
        "params": sum(parameter.numel() for parameter in model.parameters()),
        "params_stored": stored,
        "params_repeated": fresh.repeated_params(),
        "blocks_stored": fresh.stack.stored_depth(),
        "effective_depth": fresh.stack.effective_depth(),
    }


def quant_seconds(ledger: Ledger) -> float:
    """What it took from trained weights to the file."""
    return sum(ledger.phases[name]["seconds"] for name in ("calibrate", "quantise", "encode"))


def _setting_part(run: Recipe, state: LoopState, ranks: Ranks, trained: Trained) -> dict[str, Any]:
    """Return with what and under which rules a run was trained."""
    broken = broken_rules(run)
    return {
        "average": trained.averager.name(),
        "never_begun": trained.never_begun,
        "deterministic": run.budget.clock == "steps" and state.step == run.budget.max_steps,
        "world_size": ranks.world,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(ranks.device) if ranks.device.type == "cuda" else "cpu",
        "attention": {"backend": trained.backend.name, "reason": trained.backend.reason},
        "precision": {torch.bfloat16: "bf16", torch.float32: "fp32"}[trained.model.compute_dtype],
        "legal": False if broken else None,  # what breaks no rule by itself is yet to be audited
        "legality": broken,
    }


def _time_part(run: Recipe, state: LoopState, ledger: Ledger) -> dict[str, Any]:
    phases, counted = ledger.phases, ledger.counted()
    settled = state.step_seconds[WARM_UP_STEPS:] or state.step_seconds
    return {
        "phases": phases,
        "steps": state.step,
        "train_tokens": state.train_tokens,
        "train_seconds": state.train_seconds,
        "counted_seconds": counted,
        # the loop notices a limit once the step that crossed it is done
        "in_time": run.budget.max_seconds is None or counted <= run.budget.max_seconds + state.step_seconds[-1],
        "eval_seconds": phases["eval"]["seconds"],
        "wall_seconds": state.wall_seconds(),
        "step_ms": 1000 * statistics.median(settled),
        "step_ms_mean": 1000 * statistics.mean(settled),
        "tokens_per_second": state.train_tokens / state.train_seconds,
    }


def _peak_memory(device: torch.device) -> int:
    """Peak device memory, or the process's peak resident size on a CPU, in bytes."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
