"""The audit of a run: the probes on its own evaluator and artifact, and what its records, its data and its file say."""

import contextlib
import math
import time
from dataclasses import asdict, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import torch

from golf.artifact.file import read_artifact
from golf.compose import compose
from golf.conf_files import CONF
from golf.config import Run
from golf.errors import UserError
from golf.evals.case import Case, sample_text
from golf.evals.known_bad import KNOWN_BAD
from golf.evals.probes import FAIL, PASS, PROBES, UNKNOWN, Finding, probe
from golf.files import parse_json, read_text
from golf.keeping import PASSES
from golf.ledger import Ledger
from golf.legality import broken_rules
from golf.nodes import plain
from golf.requantise import Source, open_source
from golf.rundir import environment, write_json
from golf.submission.code_size import code_size
from golf.suggestions import hint
from golf.tokens.prepare import Prepared
from golf.tokens.shards import open_shard
from golf.tokens.tokenizer import ByteCounter
from golf.tokens.verify import decoded_bytes, documents_of

OVERLAP = 0.001  # of the scored documents: so many may stand in the training text by chance (empty ones, boilerplate)


def audit_folder(folder: Path, evaluator: str | None = None) -> dict[str, Any]:
    """Audit a finished run; what is said of the evaluator that gave the score (None) is written down."""
    source = open_source(folder, weights=False)
    report = audit(source, evaluator)
    if report["evaluator"] == source.run.eval.main:
        settle(source, report)
    return report


def audit(source: Source, evaluator: str | None = None) -> dict[str, Any]:
    """All findings on a run, as audit.json has them; evaluator: None for the one that gave the score."""
    started = time.perf_counter()
    name = evaluator or source.run.eval.main
    case = case_of(source, name)
    with Ledger().watching(source.prepared.files()) as ledger:
        case.ledger = ledger
        found = [declared(source.run), code(source), *probe(case)]
    found += [recorded(source, name), phases(source), overlap(source.prepared, source.run.eval.split)]
    found += [size(source), clock(source, name), tuning(source)]
    legal = all(finding.verdict != FAIL for finding in found)
    return {
        "schema": 1,
        "evaluator": name,
        "fingerprint": source.result["fingerprint"],
        "probed_tokens": len(case.stream),
        "legal": legal,
        "findings": [asdict(finding) for finding in found],
        "seconds": time.perf_counter() - started,
        "environment": environment(),
    }


def settle(source: Source, report: dict[str, Any]) -> None:
    """Write audit.json, and what it comes to into result.json, whose `legal` every report reads."""
    write_json(source.folder.path / "audit.json", report)
    failed = [f"{found['probe']}: {found['text']}" for found in report["findings"] if found["verdict"] == FAIL]
    verdict = {"legal": report["legal"], "legality": failed}
    write_json(source.folder.result, source.result | verdict)


def case_of(source: Source, evaluator: str) -> Case:
    """The run's artifact, in fp32, with one of its evaluators and pieces of the text that it was scored on."""
    run, prepared = source.run, source.prepared
    if evaluator not in run.eval.evaluators:
        near = hint(evaluator, run.eval.evaluators)
        raise UserError(f"evaluator={evaluator}: the run has {', '.join(run.eval.evaluators)}{near}")
    meant = run.eval.evaluators[evaluator]
    chosen = meant.in_brief()
    counter = ByteCounter.from_tokenizer(prepared.tokenizer)
    scored, other = ("val", "tune") if run.eval.split == "val" else ("tune", "val")
    stream, beside = (
        sample_text(chosen, open_shard(prepared.splits[split].shards[0]), counter, prepared.bos_id)
        for split in (scored, other)
    )
    return Case(
        evaluator=chosen,
        model=read_artifact(source.folder.artifact).model,
        stream=stream,
        counter=counter,
        bos_id=prepared.bos_id,
        bytes_of=lambda tokens: decoded_bytes(prepared.tokenizer, prepared.bos_id, tokens),
        other=beside,
        note=brought_forward(plain(meant), plain(chosen)),
    )


def brought_forward(meant: dict[str, Any], chosen: dict[str, Any]) -> str:
    """In words, what was changed to meet all of an evaluator on little text."""
    was, now = flat(meant), flat(chosen)
    changed = ", ".join(f"{key}={now[key]} (of {was[key]})" for key in now if now[key] != was.get(key))
    return changed and f"; probed with {changed}"


def flat(node: dict[str, Any], path: str = "") -> dict[str, Any]:
    """{"scorer": {"rank": 4}} -> {"scorer.rank": 4}."""
    found: dict[str, Any] = {}
    for key, value in node.items():
        found |= flat(value, f"{path}{key}.") if isinstance(value, dict) else {path + key: value}
    return found


def known_bad(source: Source) -> list[tuple[str, str, list[Finding]]]:
    """(cheat, the probe that must catch it, what all probes say) on the run's model and text."""
    found = []
    shard, lawful = source.prepared.splits["train"].shards[0], case_of(source, "plain")
    for name, bad in KNOWN_BAD.items():
        with Ledger().watching(source.prepared.files()) as ledger:
            case = bad.make(replace(lawful, ledger=ledger), shard)
            found.append((name, bad.probe, list(probe(case))))
    return found


def declared(run: Run) -> Finding:
    """What the configuration breaks by itself."""
    rule = "what is scored is not trained on (#152, #262; class 5)"
    broken = broken_rules(run)
    return Finding("declared", FAIL if broken else PASS, "; ".join(broken) or "nothing against the rules", rule)


def code(source: Source) -> Finding:
    """The run was made by one code, from its first step to its score."""
    rule = "a score is of one script, which is submitted (rules 1.1)"
    codes = source.result.get("codes")
    if not codes:
        return Finding("code", UNKNOWN, "this run was made before its code was kept with each attempt", rule)
    if len(codes) > 1:
        steps = ", ".join(f"from step {one['from_step']}" for one in codes)
        return Finding("code", FAIL, f"made by {len(codes)} codes: {steps}", rule)
    return Finding("code", PASS, f"one code, sha256 {str(codes[0]['code_sha256'])[:12]}", rule)


def recorded(source: Source, evaluator: str) -> Finding:
    """The pass that the result reports was one over the whole split, and its numbers agree."""
    rule = "the whole validation text is scored (#1835, #2009; class 18)"
    main = source.run.eval.main
    entry, split = source.result["evals"][evaluator], source.prepared.splits[source.run.eval.split]
    expected = {"tokens": split.tokens - 1, "bytes": split.bytes}
    wrong = [key for key, value in expected.items() if value is not None and entry[key] != value]
    if wrong:
        return Finding("recorded", FAIL, ", ".join(f"{entry[k]:,} {k} of {expected[k]:,}" for k in wrong), rule)
    bpb = entry["val_loss"] * entry["tokens"] / math.log(2) / entry["bytes"]
    said = {"evals": entry["val_bpb"]} | ({"val_bpb": source.result["val_bpb"]} if evaluator == main else {})
    if untrue := [name for name, value in said.items() if not math.isclose(value, bpb, rel_tol=1e-9)]:
        text = f"{untrue[0]} says {said[untrue[0]]:.6g} BPB; the loss, tokens and bytes recorded make {bpb:.6g}"
        return Finding("recorded", FAIL, text, rule)
    return Finding("recorded", PASS, f"{entry['tokens']:,} targets, {entry['bytes']:,} bytes: all there are", rule)


def phases(source: Source) -> Finding:
    """Each phase of the run opened only what it may; what is measured on training text counted as training."""
    rule = "no scored text before scoring, no training text after training (#593, #728; classes 5, 13, 14)"
    ledger, scored = source.result["phases"], source.run.eval.split
    if not any(phase.get("opened") for phase in ledger.values()):
        return Finding("phases", UNKNOWN, "this run was made before files were watched", rule)
    wrong = [name for name, phase in ledger.items() if name != "eval" and scored in phase.get("opened", [])]
    if "train" in ledger["eval"].get("opened", []):
        wrong.append("eval")
    opened = "; ".join(f"{name}: {', '.join(phase['opened'])}" for name, phase in ledger.items() if phase.get("opened"))
    return Finding("phases", FAIL if wrong else PASS, opened, rule)


def overlap(prepared: Prepared, scored: str) -> Finding:
    """Documents of the scored split that stand in the training text as well, by hash of their tokens."""
    rule = "no scored document is trained on (#2127, #2018; class 16)"
    known, trained = (
        {sha256(document.tobytes()).digest() for document in documents_of(prepared.splits[name], prepared.bos_id)}
        for name in (scored, "train")
    )
    shared = known & trained
    share = len(shared) / max(1, len(known))
    text = f"{len(shared):,} of {len(known):,} scored documents are in the training text"
    return Finding("overlap", FAIL if share > OVERLAP else PASS, text, rule)


def size(source: Source) -> Finding:
    """Artifact and code against the cap, counted in the three ways that records count code; what is shipped decides."""
    rule = "code and artifact within the cap, by the file that is shipped (rules 1.1; class 19)"
    result, there = source.result, source.folder.artifact.stat().st_size
    if there != result["artifact_bytes"]:
        return Finding(
            "size", FAIL, f"the file has {there:,} bytes, the result says {result['artifact_bytes']:,}", rule
        )
    cap, code = result["cap_bytes"], code_size(source.run, source.folder.path.parents[1])
    ways = {"packed": code.packed, "minified": code.minified, "as source": code.source}
    totals = ", ".join(f"{there + count:,} {way}" for way, count in ways.items())
    verdict = PASS if there + code.packed <= cap else FAIL
    return Finding("size", verdict, f"with code {totals}, of {cap:,} bytes", rule)


def clock(source: Source, evaluator: str) -> Finding:
    """Training, and scoring by itself, each within the limit."""
    rule = "600 s to train and 600 s to score, nothing untimed (rules 1.2; class 20)"
    limit, result = source.run.budget.max_seconds, source.result
    if limit is None:
        return Finding("clock", PASS, "this track has no limit of time", rule)
    scored = result["evals"][evaluator]["seconds"]
    text = f"{result['counted_seconds']:.1f} s counted as training, {scored:.1f} s to score, of {limit:.0f} s each"
    return Finding("clock", PASS if result["in_time"] and scored <= limit else FAIL, text, rule)


def tuning(source: Source) -> Finding:
    """How often this folder's runs were scored on validation text: choosing by that is tuning on it."""
    rule = "settings are not chosen by validation scores (#1991, #2098; class 24)"
    ledger = source.folder.path.parents[1] / PASSES
    passes = sweeps_scored(ledger)
    mine = passes.count(source.folder.path.parent.name)
    text = f"{mine:,} passes over validation text in this sweep, {len(passes):,} in all; no program sees intentions"
    return Finding("tuning", UNKNOWN, text, rule)


def sweeps_scored(ledger: Path) -> list[str]:
    """Return the sweep of each pass that is entered there; a line that is none is left out."""
    sweeps = []
    with contextlib.suppress(OSError):
        for line in read_text(ledger).splitlines():
            with contextlib.suppress(ValueError, LookupError, TypeError):
                sweeps.append(parse_json(line)["sweep"])
    return sweeps


MADE_UP = ("repeat", "future", "cut", "target", "normalisation", "coverage")
LENGTH = 64  # of a window


def audit_experiment(name: str) -> list[Finding]:
    """On an experiment's configuration: its evaluator, in shorter windows, on made-up text, with fresh weights of its
    model on the tiny track."""
    run = compose([f"experiment={name}", "track=tiny"])
    generator = np.random.default_rng(0)
    vocab, bos_id = run.model.vocab_size, 1
    lengths = generator.integers(20, 400, 40)
    documents = [np.append(bos_id, generator.integers(4, vocab, length)) for length in lengths]
    counter = ByteCounter(torch.ones(vocab, dtype=torch.int64), torch.ones(vocab, dtype=torch.bool),
                          torch.zeros(vocab, dtype=torch.bool))  # fmt: skip
    torch.manual_seed(0)
    evaluator = run.eval.evaluators[run.eval.main].shortened(LENGTH).in_brief()
    model = run.model.exported().build()
    for parameter in model.parameters():
        parameter.data.add_(torch.randn_like(parameter) * 0.02)
    stream = sample_text(evaluator, np.concatenate(documents).astype(np.uint16), counter, bos_id)
    case = Case(evaluator, model, stream, counter, bos_id)
    return [declared(run), *(PROBES[probe_name](case) for probe_name in MADE_UP)]


def experiments() -> list[str]:
    return sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))
