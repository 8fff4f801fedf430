"""Train logs in the lines that the challenge's own script prints, from what a run folder holds."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from golf.errors import UserError
from golf.files import MOST_METRICS, parse_json, read_bytes
from golf.records import Step, fits
from golf.reports.load import Started
from golf.rundir import RunDir
from golf.submission.script import last_lines, step_lines


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
    lines += [line for record in _steps(RunDir(run.folder).metrics) for line in step_lines(record, result["steps"])]
    facts = {key: result[key] for key in ("seed", "steps", "train_seconds", "counted_seconds", "artifact_bytes")}
    scores = {name: (e["val_loss"], e["val_bpb"], e["seconds"]) for name, e in result["evals"].items()}
    lines += [f"model_params:{result['params']}", *last_lines(facts | {"code_bytes": code_bytes}, scores)]
    return "\n".join(lines) + "\n"


def _steps(metrics: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a run's steps. Raises UserError for a line that is none."""
    for number, line in enumerate(read_bytes(metrics, MOST_METRICS).splitlines(), 1):
        try:
            record = parse_json(line)
        except ValueError:
            record = None
        if not fits(record, Step):
            raise UserError(f"{metrics}: line {number} is no step of a run; train the run again")
        yield record


def last_line(log: str) -> dict[str, Any] | None:
    """The RESULT of a log; None where it has none."""
    lines = [line for line in log.splitlines() if line.startswith("RESULT ")]
    try:
        found = parse_json(lines[-1].removeprefix("RESULT ")) if lines else None
    except ValueError:
        return None
    return found if isinstance(found, dict) else None
