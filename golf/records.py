"""The shapes of golf's own JSON files. A file of another shape counts as unreadable: anybody may have written it.

What a model here does not name may stand there too, as newer and older golf write it; a reader looks for it with care.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from golf.files import MOST_TEXT, parse_json, read_bytes

# Bounds that no run comes near: sums and squares of such numbers are finite.
Number = Annotated[float, Field(gt=-1e15, lt=1e15)]
Count = Annotated[int, Field(ge=0, lt=2**53)]
Positive = Annotated[int, Field(gt=0, lt=2**53)]
Score = Annotated[float, Field(gt=-1e6, lt=1e6)]  # bits per byte, nats per token


def _of_a_size(value: float) -> float:
    if math.isfinite(value) and abs(value) >= 1e15:
        raise ValueError("is no number that a run measures")
    return value


Diverging = Annotated[float, AfterValidator(_of_a_size)]  # NaN and infinities too
Process = Annotated[int, Field(gt=0, lt=2**31)]


class Record(BaseModel):
    """A JSON object. A number is no text and true is no number."""

    model_config = ConfigDict(extra="allow", strict=True)


class Pass(Record):
    """What one evaluator found."""

    val_bpb: Score
    val_loss: Score | None = None
    tokens: Positive | None = None
    bytes: Positive | None = None
    seconds: Number | None = None
    legal: bool | None = None


class Scored(Record):
    """The text that was scored."""

    corpus: str
    split: str
    sha256: dict[str, str] = {}


class Attention(Record):
    backend: str | None = None


class Made(Record):
    """The code and the machine; versions and the like are texts or null."""

    git_commit: str | None = None
    variables: dict[str, str] | None = None
    cpu: str | None = None
    torch: str | None = None


class Phase(Record):
    """A phase of a run, and the splits that it was to read and that it opened."""

    seconds: Number
    reads: list[str] = []
    opened: list[str] = []


class Code(Record):
    """The code that made a run from some step on."""

    from_step: Count
    git_commit: str | None = None
    git_dirty: bool | None = None
    code_sha256: str | None = None


class Fit(Record):
    """What widened or narrowed a quantiser's steps, so that the artifact fits."""

    size_bytes: Count
    factor: Number
    full: bool
    tries: Count


class Trained(Record):
    """trained.json, of a run whose export failed: what was measured up to there. None of it need be there."""

    phases: dict[str, Phase] = {}
    steps: Count | None = None
    train_tokens: Count | None = None
    train_seconds: Number | None = None
    step_ms: Number | None = None
    step_ms_mean: Number | None = None
    tokens_per_second: Number | None = None
    raw_bpb: Diverging | None = None
    pre_quant_bpb: Diverging | None = None
    average: str | None = None
    peak_memory_bytes: Count | None = None
    attention: Attention | None = None
    codes: list[Code] | None = None
    never_begun: list[str] | None = None
    deterministic: bool | None = None
    device: str | None = None
    precision: str | None = None
    world_size: Positive | None = None
    threads: Positive | None = None
    legal: bool | None = None
    legality: list[str] | None = None


class Result(Trained):
    """result.json. The first ones must be there."""

    fingerprint: str
    val_bpb: Score
    quant_gap_bpb: Score
    artifact_bytes: Count
    total_bytes: Count
    cap_bytes: Positive
    steps: Count
    fits: bool
    environment: Made
    val_loss: Score | None = None
    eval_main: str | None = None
    evals: dict[str, Pass] = {}
    data: Scored | None = None
    track: str = ""
    seed: Count | None = None
    code_bytes: Count = 0
    counted_seconds: Number | None = None
    quant_seconds: Number | None = None
    eval_seconds: Number | None = None
    wall_seconds: Number | None = None
    label: str | None = None
    sweep: str | None = None
    row: str | None = None
    parent: str | None = None
    fit: Fit | None = None
    bits_per_param: Number | None = None
    params: Count | None = None
    params_stored: Count | None = None
    params_repeated: Count | None = None
    blocks_stored: Count | None = None
    effective_depth: Count | None = None
    artifact_sha256: str | None = None
    in_time: bool | None = None


class Status(Record):
    """status.json."""

    state: str
    pid: Process
    host: str | None = None
    time: Number | None = None
    machine: str | None = None
    process_began: Count | None = None
    step: Count | None = None
    rank: Count | None = None
    code: Annotated[int, Field(gt=-1000, lt=1000)] | None = None
    message: str = ""


class Beat(Record):
    """heartbeat.json: which process was alive when. ahead: seconds that its clock is ahead of the file server's."""

    pid: Process
    time: Number
    ahead: Number


class JobTicket(Record):
    """job.json, of a run that was submitted to a cluster."""

    name: Annotated[str, Field(min_length=1)]
    index: Count
    id: str | None = None


class Named(Record):
    """What every reader needs of a run's configuration before it is typed."""

    label: str
    seed: Count
    log: dict[str, Any] = {}


class Configuration(Record):
    """config.json."""

    run: Named
    identity: dict[str, Any]
    config_hash: str


class Data(Record):
    """Where a run's data was prepared, and the hash of what it held then."""

    folder: str
    digest: str


class Whole(Configuration):
    """config.json, for who takes a run up again: its run is then typed."""

    fingerprint: str
    prepared: Data


class Sweep(Record):
    """sweep.json. What is missing is empty: no seed is registered that does not stand there."""

    purpose: str | None = None
    control: str | None = None
    seeds: list[Count] = []
    registered: str | None = None
    rows: dict[str, list[str]] | None = None
    cells: dict[str, dict[str, Any]] = {}


class Part(Record):
    """A split in the manifest of prepared data."""

    shards: list[str]
    tokens: Count
    documents: Count | None
    bytes: Count | None
    shard_sha256: list[str]
    sha256: str


class Manifest(Record):
    """manifest.json of prepared data."""

    corpus: str
    tokenizer: str
    vocab_size: Annotated[int, Field(gt=0, le=2**16)]
    bos_id: Annotated[int, Field(ge=0, lt=2**16)]
    splits: dict[str, Part]
    tokenizer_sha256: str
    text_sha256: str | None
    settings: dict[str, Any]
    digest: str


class Standstill(Record):
    """What a checkpoint says beside its tensors."""

    step: Count
    saved_step: Count | None
    earlier_seconds: Number
    train_seconds: Number
    train_tokens: Count
    step_seconds: list[Number]
    phases: dict[str, Phase]
    loader: dict[str, Count]
    late: dict[str, Any]
    codes: list[Code] = []
    progress: Number = 0.0
    decay: Number = 1.0


class Logged(Record):
    """A line of metrics.jsonl; a run that diverged logs NaN."""

    step: Count
    train_seconds: Diverging | None = None
    loss: Diverging | None = None
    val_bpb: Diverging | None = None
    seconds_left: Number | None = None


class Step(Record):
    """A line of metrics.jsonl of a finished run, with all that the log of a submission says of a step."""

    step: Positive
    train_seconds: Number
    loss: Diverging
    val_bpb: Diverging = 0.0
    val_loss: Diverging = 0.0


class Chunk(Record):
    """A line of an evaluator's trace."""

    tokens: Count
    bytes: Count
    bpb: Diverging
    learning_loss: Diverging | None


def fits(value: Any, shape: type[Record]) -> bool:
    """Whether a JSON value is of this shape."""
    try:
        shape.model_validate(value)
    except (ValidationError, OverflowError):
        return False
    return True


def missing(result: dict[str, Any], keys: Sequence[str], of_pass: Sequence[str]) -> list[str]:
    """Name what a result does not say. of_pass: keys that each evaluator has, the one of its score among them."""
    evals = result.get("evals", {})
    lacking = [f"evals.{name}.{key}" for name, found in evals.items() for key in of_pass if found.get(key) is None]
    main = [] if result.get("eval_main") in evals else ["the evaluator of its score"]
    return [*(key for key in keys if result.get(key) is None), *main, *lacking]


def read_record(path: Path, shape: type[Record]) -> dict[str, Any] | None:
    """Return the object in a JSON file; None where there is none, or one of another shape."""
    try:
        value = parse_json(read_bytes(path, MOST_TEXT))
    except (OSError, ValueError):
        return None
    return value if fits(value, shape) else None
