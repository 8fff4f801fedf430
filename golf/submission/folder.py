"""The record folder: train_gpt.py, README.md, submission.json, logs, requirements, a tokenizer of one's own."""

import ast
import importlib.metadata
import os
import re
import shlex
import shutil
import sys
import time
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from golf.alive import temporary_of
from golf.code_record import same_code
from golf.errors import UserError
from golf.reports.load import Started
from golf.reports.stats import summarize
from golf.rundir import RunDir, environment
from golf.submission.compare import Comparison
from golf.submission.entry import Entry, Track
from golf.submission.gate import LEAST_SEEDS, Reason, other_than_the_records, refusing
from golf.submission.logs import log_name, log_of
from golf.submission.page import readme
from golf.submission.record import FILE, Compared, Countings, Ran, SeedResult, Submission
from golf.tokens.shards import file_sha256

SCRIPT, READABLE, REQUIREMENTS, TOKENIZER = (
    "train_gpt.py",
    "train_gpt_readable.py",
    "requirements.txt",
    "tokenizer.model",
)
# Keys that are no part of the recipe, or name a place on somebody's machine.
OF_GOLF = ("hydra.", "seed", "outputs", "data_dir", "data.path", "launch", "log", "label", "sweep_label", "rerun")


@dataclass(frozen=True, kw_only=True, slots=True)
class Said:
    """What only a person can say of a submission."""

    name: str
    author: str
    github_id: str
    blurb: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Proposal:
    """against: all that stands against it on any track; comparison: with what it claims to beat."""

    entry: Entry
    track: Track
    said: Said
    against: list[Reason]
    comparison: Comparison | None


def write_folder(proposal: Proposal, into: Path) -> Path:
    """Write the folder beside its place and rename it; returns where it is. UserError where the place is taken."""
    entry, date = proposal.entry, time.strftime("%Y-%m-%d")
    name = re.sub(r"[^A-Za-z0-9]+", "_", proposal.said.name).strip("_")
    target = into / proposal.track.folder / f"{date}_{name}"
    if target.exists():
        raise UserError(f"name={proposal.said.name}: {target} exists already; remove it or choose another name")
    record = describe(proposal, date)
    temporary = temporary_of(target)
    temporary.mkdir(parents=True)
    try:
        (temporary / SCRIPT).write_bytes(entry.script)
        if entry.ship == "packed":
            (temporary / READABLE).write_text(entry.source)
        for run in entry.counted:
            (temporary / log_name(run.seed)).write_text(log_of(run, len(entry.script)))
        (temporary / REQUIREMENTS).write_text(requirements(entry))
        if not entry.run.data.stock_tokenizer:
            shutil.copyfile(entry.prepared.tokenizer, temporary / TOKENIZER)
        (temporary / FILE).write_text(record.model_dump_json(indent=2) + "\n")
        own = proposal.comparison is not None and proposal.comparison.own  # else it is among the reasons against it
        notes = [*notes_of(entry), *(other_than_the_records(entry, proposal.track) if own else [])]
        text = readme(entry, record, command_of(entry), overrides_of(entry.counted[0]), notes)
        (temporary / "README.md").write_text(text)
        os.rename(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return target


def describe(proposal: Proposal, date: str) -> Submission:
    """submission.json, of what the runs say."""
    entry, track, said = proposal.entry, proposal.track, proposal.said
    results = list(entry.results.values())
    first, keys = results[0], {reason.key for reason in proposal.against}
    scores = summarize([result["val_bpb"] for result in results])
    artifact = max(result["artifact_bytes"] for result in results)
    split = first["data"]["split"]
    return Submission(
        author=said.author,
        github_id=said.github_id,
        name=said.name,
        blurb=said.blurb,
        date=date,
        track=track.title,
        val_bpb=scores.mean,
        val_loss=summarize([result["val_loss"] for result in results]).mean,
        val_bpb_std=scores.sd,
        bytes_total=entry.max_total_bytes,
        bytes_code=len(entry.script),
        bytes_model=artifact,
        cap_bytes=min(track.cap_bytes, entry.run.cap_bytes),
        seeds=sorted(entry.results),
        seed_results=_seed_results(entry),
        hardware=_hardware(first),
        pytorch_version=str(first["environment"].get("torch")),
        deterministic=all(result["deterministic"] for result in results),
        evaluator=entry.run.eval.main,
        eval_method=entry.run.eval.evaluators[entry.run.eval.main].describe(),
        config_hash=entry.counted[0].config_hash,
        code_sha256=sha256(entry.script).hexdigest(),
        code_countings=Countings(
            source=entry.packed.raw_bytes, shipped=len(entry.script), packed=len(entry.packed.file)
        ),
        data_sha256=first["data"]["sha256"][split],
        tokenizer_sha256=first["data"]["tokenizer_sha256"],
        compliance={
            "artifact_under_cap": "over_cap" not in keys,
            "train_and_eval_in_time": "over_time" not in keys,
            "audit_passed": "audit" not in keys,
            "one_configuration": "mixed_config" not in keys,
            "three_seeds": len(results) >= LEAST_SEEDS,
            "seeds_registered": "unregistered" not in keys,
            "gain_shown": "not_shown" not in keys,
        },
        forced=[reason.text for reason in refusing(proposal.against, track)],
        comparison=_compared(proposal.comparison),
        golf_commit=first["environment"].get("git_commit"),
    )


def _seed_results(entry: Entry) -> dict[str, SeedResult]:
    """Every started run; a second one of a seed goes by its folder's name."""
    found: dict[str, SeedResult] = {}
    for run in sorted(entry.row.runs, key=lambda run: (run.seed, run.state != "done")):
        name = str(run.seed) if str(run.seed) not in found else run.folder.name
        found[name] = _seed_result(run, len(entry.script))
    return found


def _seed_result(run: Started, code_bytes: int) -> SeedResult:
    result = run.result
    if result is None:
        return SeedResult(state=run.state, config_hash=run.config_hash, log=None)
    main = result["evals"][result["eval_main"]]
    artifact = RunDir(run.folder).artifact
    if not artifact.exists() or artifact.stat().st_size != result["artifact_bytes"]:
        raise UserError(f"run={run.folder}: its {artifact.name} is not the one that was scored; run it again")
    return SeedResult(
        state=run.state,
        config_hash=run.config_hash,
        log=log_name(run.seed) if run.state == "done" else None,
        val_bpb=result["val_bpb"],
        val_loss=result["val_loss"],
        pre_quant_val_bpb=result["pre_quant_bpb"],
        steps=result["steps"],
        train_time_s=result["counted_seconds"],
        eval_time_s=main["seconds"],
        artifact_bytes=result["artifact_bytes"],
        artifact_sha256=file_sha256(artifact),
        bytes_total=result["artifact_bytes"] + code_bytes,
        ran=_ran(result),
    )


def _ran(result: dict[str, Any]) -> Ran:
    made = result["environment"]
    return Ran(
        processes=result["world_size"],
        threads=result.get("threads"),
        device=result["device"],
        cpu=made.get("cpu"),
        precision=result["precision"],
        attention=result["attention"]["backend"],
        torch=made.get("torch"),
        variables=made.get("variables") or {},
    )


def _compared(found: Comparison | None) -> Compared | None:
    if found is None:
        return None
    return Compared(
        name=found.name,
        source=found.source,
        val_bpb=found.their_bpb,
        seeds=found.their_seeds,
        delta_bpb=found.delta_bpb,
        margin_bpb=found.margin_bpb,
        test=found.test,
        p_value=found.p,
        shown=found.shown,
    )


def _hardware(result: dict[str, object]) -> str:
    environment_: dict[str, object] = result["environment"]  # type: ignore[assignment]
    device = environment_.get("cpu") if result["device"] == "cpu" else result["device"]
    return f"{result['world_size']} x {device}"


def command_of(entry: Entry) -> str:
    """What a person types in the folder to repeat the first seed."""
    result, nproc = entry.counted[0].result, entry.run.launch.nproc
    assert result is not None
    words = [f"SEED={entry.counted[0].seed}", "DATA_PATH=data"]
    if result["device"] == "cpu" and result.get("threads"):
        words.append(f"OMP_NUM_THREADS={result['threads']}")  # sums are of as many parts
    variables = result["environment"].get("variables") or {}
    words += [f"{name}={shlex.quote(value)}" for name, value in variables.items() if name != "OMP_NUM_THREADS"]
    runner = "python" if nproc == 1 else f"torchrun --standalone --nproc_per_node={nproc}"
    return " ".join([*words, runner, SCRIPT])


def overrides_of(run: Started) -> str:
    """golf's command line of a run, without what is no part of the recipe."""
    words = RunDir(run.folder).command()[1:]
    kept = [word for word in words if not word.lstrip("+~").startswith(OF_GOLF) and not word.startswith("-")]
    return shlex.join(kept)


def notes_of(entry: Entry) -> list[str]:
    """What a reader should know, and no rule asks."""
    here = environment()
    notes = ["the logs are golf's own runs of this configuration; train_gpt.py is made from the code that they used"]
    if any(not same_code(result["environment"], here) for result in entry.results.values()):
        notes.append("some runs were made by another commit of golf, or by one with changes, than train_gpt.py")
    return notes


def requirements(entry: Entry) -> str:
    """The packages that the script imports, at the versions of this environment."""
    names = modules_of(entry.source) | modules_of(entry.script)
    homes = importlib.metadata.packages_distributions()
    packages = {homes[name][0] for name in names - set(sys.stdlib_module_names)}
    return "".join(f"{name}=={importlib.metadata.version(name).split('+')[0]}\n" for name in sorted(packages))


def modules_of(script: str | bytes) -> set[str]:
    """Top-level names of the modules that a script imports. SyntaxError or ValueError where it is no Python."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(script)):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[0] for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module.split(".")[0])
    return found
