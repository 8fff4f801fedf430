"""Train logs in the lines that the challenge's own script prints, from what a run folder holds."""

import json
from typing import Any

from golf.reports.load import Started
from golf.rundir import RunDir
from golf.submission.script import final_lines, size_lines, step_lines


def log_name(seed: int) -> str:
    return f"train_seed{seed}.log"


def log_of(run: Started, code_bytes: int) -> str:
    """The log of a finished run: its steps, sizes, scores, and a line of JSON, as its script prints them."""
    result = run.result
    assert result is not None
    lines = [
        "golf's own run of the configuration that train_gpt.py was made from",
        f"seed:{run.seed} world_size:{result['world_size']} config:{run.config_hash}",
    ]
    for line in RunDir(run.folder).metrics.read_text().splitlines():
        lines += step_lines(json.loads(line), result["steps"])
    lines += [f"model_params:{result['params']}", *size_lines(result["artifact_bytes"], code_bytes)]
    for name, entry in result["evals"].items():
        lines += final_lines(name, entry["val_loss"], entry["val_bpb"], entry["seconds"])
    return "\n".join([*lines, "RESULT " + json.dumps(measured(result, code_bytes))]) + "\n"


def measured(result: dict[str, Any], code_bytes: int) -> dict[str, Any]:
    """What the script's last line says, of a golf run."""
    evals = result["evals"]
    return {
        "seed": result["seed"],
        "steps": result["steps"],
        "train_seconds": result["train_seconds"],
        "counted_seconds": result["counted_seconds"],
        "eval_seconds": {name: entry["seconds"] for name, entry in evals.items()},
        "val_bpb": {name: entry["val_bpb"] for name, entry in evals.items()},
        "val_loss": {name: entry["val_loss"] for name, entry in evals.items()},
        "artifact_bytes": result["artifact_bytes"],
        "code_bytes": code_bytes,
        "total_bytes": result["artifact_bytes"] + code_bytes,
    }


def last_line(log: str) -> dict[str, Any] | None:
    """The RESULT of a log; None where it has none."""
    lines = [line for line in log.splitlines() if line.startswith("RESULT ")]
    try:
        found = json.loads(lines[-1].removeprefix("RESULT ")) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
