"""submission.json: the keys that nearly every record has, and golf's own; one schema, written and read by it.

Names are those of the challenge's records (openai/parameter-golf, records/*/submission.json).
"""

from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from golf.errors import UserError
from golf.rundir import read_json

FILE = "submission.json"
Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Text = Annotated[str, Field(min_length=1)]
FileName = Annotated[str, Field(pattern=r"^\w[\w.+-]*$")]  # in the folder itself
Bytes = Annotated[int, Field(ge=0, lt=2**53)]


class Strict(BaseModel):
    """No key is missing, none is unknown, no number is a string."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class Ran(Strict):
    """With what a seed was trained: all that its digits depend on beyond the code, the data and the seed.

    device: cpu, or a GPU's name; variables: of the environment, those that choose how sums are taken.
    """

    processes: int
    threads: int | None
    device: Text
    cpu: str | None
    precision: Text
    attention: Text
    torch: str | None
    variables: dict[str, str]


class SeedResult(Strict):
    """One started seed. All but config_hash, state and log is null where it has no result."""

    state: Text
    config_hash: Hash
    log: FileName | None
    val_bpb: float | None = None
    val_loss: float | None = None
    pre_quant_val_bpb: float | None = None
    steps: int | None = None
    train_time_s: float | None = None
    eval_time_s: float | None = None
    artifact_bytes: Bytes | None = None
    artifact_sha256: Hash | None = None
    bytes_total: Bytes | None = None
    ran: Ran | None = None


class Countings(Strict):
    """Code in bytes: as source; as the file that is shipped; as if it were minified and compressed into a wrapper."""

    source: int
    shipped: int
    packed: int


class Compared(Strict):
    """A gain against a reference, in BPB, and how sure it is."""

    name: Text
    source: Text
    val_bpb: float
    seeds: int
    delta_bpb: float
    margin_bpb: float
    test: Text
    p_value: float | None
    shown: bool


class Submission(Strict):
    """One record. val_bpb, val_loss: means over seeds; *_std: of the sample; bytes_*: of the largest seed."""

    schema_version: int = 1
    author: Text
    github_id: Text
    name: Text
    blurb: Text
    date: Annotated[str, Field(pattern=r"^\d{4}-\d{2}-\d{2}$")]
    track: Text
    val_bpb: float
    val_loss: float
    val_bpb_std: float | None
    bytes_total: Bytes
    bytes_code: Bytes
    bytes_model: Bytes
    cap_bytes: Bytes
    seeds: Annotated[list[int], Field(min_length=1)]
    seed_results: dict[str, SeedResult]
    hardware: Text
    pytorch_version: Text
    deterministic: bool
    evaluator: Text
    eval_method: Text
    config_hash: Hash
    code_sha256: Hash
    code_countings: Countings
    data_sha256: Hash
    tokenizer_sha256: Hash
    compliance: dict[str, bool]
    forced: list[str]
    comparison: Compared | None
    golf_commit: str | None


def read_submission(folder: Path) -> Submission:
    """Raises UserError that names the file and the first key that is wrong."""
    node: Any = read_json(folder / FILE)
    if not isinstance(node, dict):
        raise UserError(f"{folder / FILE}: no readable JSON object; name a folder that golf/submit.py wrote")
    try:
        return Submission.model_validate(node)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        key = ".".join(map(str, first["loc"]))
        raise UserError(f"{folder / FILE}: {key}: {first['msg'].lower()}") from None
