"""A trained run through another quantiser, codec or evaluator: no training, a result like any other."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from golf import rundir
from golf.alive import written_beside
from golf.calibrate import calibrate
from golf.checkpoint import load_tensors
from golf.code_record import brief, joined
from golf.config import Run, check_owner, fingerprint
from golf.dist import Ranks, pick_device, pick_precision
from golf.errors import UserError
from golf.export import quant_seconds, score_artifact, store, told
from golf.keeping import Kept
from golf.launcher import jobs
from golf.ledger import Ledger
from golf.legality import broken_rules
from golf.models.kernels import choose_backend
from golf.models.lm import LM
from golf.records import Trained, Whole, missing, read_record
from golf.result import assemble
from golf.rundir import RunDir, write_json
from golf.scoring import Scoring
from golf.sinks import Sink
from golf.suggestions import hint, names_in
from golf.tokens.prepare import Prepared
from golf.tokens.shards import file_sha256
from golf.typed import typed

TRAINED = ("steps", "train_tokens", "train_seconds", "step_ms", "step_ms_mean", "tokens_per_second", "raw_bpb")
OF_TRAINING = ("phases", "pre_quant_bpb", "legality", "device", "attention", "precision")
KEPT = (*TRAINED, "average", "peak_memory_bytes", "deterministic", "world_size", "threads")
PHASES = ("train", "calibrate", "quantise", "encode", "eval")
NEEDED = (*TRAINED, "phases", "pre_quant_bpb", "legality", "device", "attention", "precision", "average", "evals")


@dataclass(frozen=True, slots=True)
class Source:
    """A trained run: its folder, typed configuration and data. result: of a finished one; of one whose export failed,
    what was measured in training (RunDir.trained), with its fingerprint."""

    folder: RunDir
    run: Run
    prepared: Prepared
    result: dict[str, Any]


def open_source(path: Path, *, weights: bool = True, artifact: bool = True) -> Source:
    """Return the run in a folder. weights: whether its kept weights are asked for; artifact: whether its result is.

    Raises UserError where no such run stands there.
    """
    folder = RunDir(path.resolve())
    config, result = read_record(folder.config, Whole), folder.finished()
    if not artifact and result is None and config is not None:
        result = _of_training(folder, config)
    if config is None or result is None or (weights and not folder.weights.exists()):
        what = "no finished run with weights.safetensors" if weights else "no finished run"
        near = "" if path.exists() else hint(path.name, names_in(path.parent))
        raise UserError(f"run={path}: {what}; name a folder that golf/train.py made{near}")
    try:
        run: Run = typed(config["run"], "", Run)
    except UserError as error:
        raise UserError(f"run={path}: made by a golf whose configurations were others ({error})") from None
    check_owner(run, config, f"run={path}")
    source = Source(folder, run, Prepared.of_run(config["prepared"]), result)
    if artifact:
        lacks = missing(result, NEEDED, ("seconds", "tokens", "bytes", "val_loss"))
        if lacks := [*lacks, *(f"phases.{name}" for name in PHASES if name not in result.get("phases", {}))]:
            raise UserError(f"run={path}: its result.json does not say {', '.join(lacks)}; train the run again")
        check_artifact(folder, result)
    return source


def check_artifact(folder: RunDir, result: dict[str, Any]) -> None:
    """Raise UserError where a run's artifact is not the file that its result was scored with."""
    there = file_sha256(folder.artifact) if folder.artifact.is_file() else "gone"
    if there != result.get("artifact_sha256", there):  # results of before did not keep it
        raise UserError(f"run={folder.path}: artifact.golf is not the file that was scored; train or quantise it again")


def _of_training(folder: RunDir, config: dict[str, Any]) -> dict[str, Any] | None:
    """Return what was measured in a training whose export failed, named as a result names it; None without one."""
    trained = read_record(folder.trained, Trained)
    if trained is None or not {*KEPT, *OF_TRAINING} <= set(trained):
        return None
    return {**trained, "fingerprint": config["fingerprint"]}


Make = Callable[[LM, RunDir, Ranks, Ledger], dict[str, Any]]  # writes the artifact; what a fit chose, else nothing


def requantise(source: Source, run: Run, sinks: Sink, command: list[str]) -> tuple[RunDir, dict[str, Any]]:
    """Quantise, write, read back and score; run: the source's, with another quant, codec or eval. (folder, result)"""

    def make(model: LM, folder: RunDir, ranks: Ranks, ledger: Ledger) -> dict[str, Any]:
        weights = {name: parameter.detach().cpu() for name, parameter in model.named_parameters()}
        average, roles = source.result["average"], model.stored_roles()
        found = calibrate(run, source.prepared, model, ranks, ledger)
        return store(run, source.prepared, weights, average, roles, folder.artifact, ledger, found)

    return derive(source, run, sinks, command, make)


def rescore(source: Source, run: Run, sinks: Sink, command: list[str]) -> tuple[RunDir, dict[str, Any]]:
    """Score the source's own artifact; run: the source's, with another eval. (folder, result)"""

    def make(model: LM, folder: RunDir, ranks: Ranks, ledger: Ledger) -> dict[str, Any]:
        for name in ("calibrate", "quantise", "encode"):
            ledger.phases[name] = dict(source.result["phases"][name])
        with written_beside(folder.artifact) as temporary:
            shutil.copyfile(source.folder.artifact, temporary)
        return source.result.get("fit") or {}

    return derive(source, run, sinks, command, make)


def derive(source: Source, run: Run, sinks: Sink, command: list[str], make: Make) -> tuple[RunDir, dict[str, Any]]:
    """A run folder beside the source's, without training. A cell that has its result is not made again."""
    prepared, digest = source.prepared, fingerprint(run, source.prepared.digest)
    folder, finished = jobs.open_run(run, prepared, command)
    if finished is not None:
        return folder, finished
    with folder.lock(), Ledger().watching(prepared.files()) as ledger:
        began_as = rundir.environment()
        ranks = Ranks(0, 1, pick_device(run.compute.device))
        model = load_model(source, ranks)
        keeping = Kept(folder, run.checkpoint, run.resume, digest)
        train = source.result["phases"]["train"]
        ledger.add("train", source.result["train_seconds"], tuple(train["reads"]))
        fitted = make(model, folder, ranks, ledger)
        if fitted:
            sinks.note(told(fitted, run.cap_bytes))
        ledger.phases["train"]["opened"] = train.get("opened", [])
        pre_quant_bpb = source.result["pre_quant_bpb"]
        scoring = Scoring(run.eval, prepared, ranks, keeping)
        was = source.run.eval
        if (run.eval.split, run.eval.evaluators["plain"]) != (was.split, was.evaluators["plain"]):
            with ledger.phase("eval", run.eval.split):
                pre_quant_bpb = scoring.score(model).bpb
        broken = [*broken_rules(run), *of_training(source.result["legality"])]
        average, counted, limit = source.result["average"], ledger.counted(), run.budget.max_seconds
        measured = {key: source.result.get(key) for key in (*KEPT, "never_begun")} | {
            **score_artifact(run, keeping, model, average, scoring, pre_quant_bpb, ranks, sinks, ledger),
            "phases": ledger.phases,
            "counted_seconds": counted,
            "in_time": limit is None or counted <= limit + source.result["step_ms_mean"] / 1000,
            "quant_seconds": quant_seconds(ledger),
            "fit": fitted or None,
            "eval_seconds": ledger.phases["eval"]["seconds"],
            "wall_seconds": sum(phase["seconds"] for phase in ledger.phases.values()),
            "device": source.result["device"] if ranks.device.type == "cuda" else "cpu",
            "attention": source.result["attention"],
            "precision": source.result["precision"],
            "legal": False if broken else None,
            "legality": broken,
            "environment": began_as,
            "codes": joined(source.result.get("codes", []), [brief(began_as, source.result["steps"])]),
        }
        rows = fingerprint(run, prepared.digest, with_seed=False)
        result = assemble(run, prepared, fingerprint=digest, config_hash=rows, measured=measured)
        result["parent"] = source.result["fingerprint"]
        write_json(folder.result, result)
        folder.set_status("done", step=result["steps"], val_bpb=result["val_bpb"])
    return folder, result


def of_training(legality: list[str]) -> list[str]:
    """What an audit found of a run's training, true of whatever is made of its weights; what it found of the evaluator
    is not, and what the configuration breaks by itself is known anew."""
    return [reason for reason in legality if reason.startswith(("phases: ", "overlap: "))]


def load_model(source: Source, ranks: Ranks) -> LM:
    """The model with the weights that the run kept: averaged, before quantisation."""
    run = source.run
    model = run.model.build_on_meta()
    weights, meta = load_tensors(source.folder.weights)
    if meta.get("owner", source.result["fingerprint"]) != source.result["fingerprint"]:
        raise UserError(f"run={source.folder.path}: weights.safetensors are another run's; train the run again")
    model.load_state_dict(weights, assign=True, strict=True)
    model = model.to(ranks.device).requires_grad_(False)
    model.compute_dtype = pick_precision(run.compute.precision, ranks.device)
    channels = run.model.mixer.kernel_channels(run.model.dim)
    model.attend = choose_backend(run.compute.attention, ranks.device, channels).attend
    return model


def changed(source: Source, composed: Run, label: str, sweep: str) -> Run:
    """The source's run with what may change without training taken from a composition."""
    return replace(
        source.run,
        label=label,
        sweep_label=sweep,
        outputs=str(source.folder.path.parents[1]),
        quant=composed.quant,
        codec=composed.codec,
        eval=composed.eval,
        resume="auto",
        rerun=composed.rerun,
    )
