"""The typed run: YAML names dataclasses, `typed` builds them with full key paths in every error, `fingerprint` names
the result. This file and golf/compose.py are the only ones that know omegaconf; all else gets plain dataclasses.
"""

import dataclasses
import difflib
import hashlib
import inspect
import json
import re
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from hydra.utils import get_class
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from golf.artifact.codecs import CodecConfig
from golf.averaging import AverageConfig
from golf.curriculum import Batches, CurriculumConfig, Shape
from golf.errors import UserError
from golf.evals.evaluator import EvalConfig
from golf.fields import OPERATIONAL, between, one_of, positive
from golf.late import LateConfig
from golf.losses import LossPartConfig
from golf.models.kernels import ATTENTION_BACKENDS
from golf.models.lm import LMConfig
from golf.nodes import plain, without_nulls
from golf.optim.optimizer import OptimizerConfig
from golf.qat import QATConfig
from golf.quant.quantizer import QuantConfig
from golf.schedules import Schedule
from golf.sinks import LogConfig
from golf.tokens.loader import LoaderConfig
from golf.tokens.prepare import DataConfig

if TYPE_CHECKING:
    from golf.launcher.executor import Executor
    from golf.launcher.standing import StateOf

LARGEST_SEED = 2**31 - 1
CLOCKS = ("steps", "seconds")
DEVICES = ("auto", "cpu", "cuda")
PRECISIONS = ("auto", "bf16", "fp32")
RESUMES = ("auto", "never")
ON_FAILURE = ("continue", "stop")

# Fields of Run that say where, how watched and under which name, not what: two runs that differ only here are one run.
NOT_IDENTITY = frozenset(
    {
        "label",
        "sweep_label",
        "track",
        "scale",
        "log",
        "launch",
        "checkpoint",
        "plan",
        "resume",
        "rerun",
        "outputs",
        "data_dir",
    }
)


@dataclass(kw_only=True, slots=True)
class Scale:
    """What a track multiplies full-size numbers by; the resolvers ${width:N} ... apply them."""

    width: float
    depth: float
    batch: float
    steps: float
    seq: float

    def __post_init__(self) -> None:
        positive(**{item.name: getattr(self, item.name) for item in dataclasses.fields(self)})


@dataclass(kw_only=True, slots=True)
class Budget:
    """When training stops: the first limit to come. `clock` names the limit that drives progress and schedules."""

    max_steps: int | None
    max_seconds: float | None
    clock: str

    def __post_init__(self) -> None:
        one_of("clock", self.clock, CLOCKS)
        positive(max_steps=self.max_steps, max_seconds=self.max_seconds)
        if self.clock == "steps" and self.max_steps is None:
            raise ValueError("max_steps=null while clock=steps; set budget.max_steps or budget.clock=seconds")
        if self.clock == "seconds" and self.max_seconds is None:
            raise ValueError("max_seconds=null while clock=seconds; set budget.max_seconds or budget.clock=steps")


@dataclass(kw_only=True, slots=True)
class Batch:
    """The global batch of one optimizer step, the same on any number of ranks."""

    tokens_per_step: int
    sequence_length: int
    # at most this many rows a rank in one forward: memory, not mathematics
    max_microbatch_sequences: int = field(metadata=OPERATIONAL)

    def __post_init__(self) -> None:
        positive(**{item.name: getattr(self, item.name) for item in dataclasses.fields(self)})
        if self.tokens_per_step % self.sequence_length:
            near = max(1, round(self.tokens_per_step / self.sequence_length)) * self.sequence_length
            raise ValueError(
                f"tokens_per_step={self.tokens_per_step} must be a multiple of "
                f"sequence_length={self.sequence_length}; try {near}"
            )

    @property
    def sequences(self) -> int:
        return self.tokens_per_step // self.sequence_length


@dataclass(kw_only=True, slots=True)
class Compute:
    """Device and number format. precision=auto is bf16 where the hardware has it, else fp32."""

    device: str
    precision: str
    compile: bool
    attention: str

    def __post_init__(self) -> None:
        one_of("attention", self.attention, ATTENTION_BACKENDS)
        one_of("device", self.device, DEVICES)
        one_of("precision", self.precision, PRECISIONS)


@dataclass(kw_only=True, slots=True)
class Checkpoint:
    """How often the full state is saved; the stop of a run always saves. Null switches a rule off."""

    every_steps: int | None
    every_seconds: float | None

    def __post_init__(self) -> None:
        positive(every_steps=self.every_steps, every_seconds=self.every_seconds)


@dataclass(kw_only=True, slots=True)
class Launch:
    """The slot: processes of one run, and where and how the runs of a sweep are started.

    nproc: processes a run; threads: OpenMP threads of each (null: its share of the cores); wait_policy: OpenMP's.
    Sweeps: slots: runs at once (null: what there is room for); timeout_seconds, retries: a run's wall time and how
    often one that failed is tried again; on_failure: go on or start nothing more; grace_seconds: what a run that is
    told to stop has for saving; dry_run: print the cells; status: print where each stands.
    """

    SHARED: ClassVar[tuple[str, ...]] = (  # what one sweep has one of; its cells may differ in the rest
        "slots",
        "on_failure",
        "retries",
        "timeout_seconds",
        "grace_seconds",
        "dry_run",
        "status",
    )

    nproc: int
    threads: int | None
    wait_policy: str
    slots: int | None
    on_failure: str
    retries: int
    timeout_seconds: float | None
    grace_seconds: float
    dry_run: bool
    status: bool

    def __post_init__(self) -> None:
        positive(nproc=self.nproc, threads=self.threads, slots=self.slots)
        positive(timeout_seconds=self.timeout_seconds, grace_seconds=self.grace_seconds)
        between(0, 100, retries=self.retries)
        one_of("wait_policy", self.wait_policy, ("passive", "active"))
        one_of("on_failure", self.on_failure, ON_FAILURE)

    def check(self, run: "Run", *, lone: bool) -> None:
        """Raise UserError where `run` can't be started from this machine. lone: by itself, in no sweep."""
        raise NotImplementedError

    def executor(self, runs: Sequence["Run"]) -> "Executor":
        """What starts and watches the runs of a sweep, done ones included. UserError where slots are too many."""
        raise NotImplementedError

    def standing(self) -> "StateOf":
        """What tells the state of runs without a result, as it is now."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class Recipe:
    """What decides what comes of a run, but its data: all that a submission is made of."""

    seed: int
    cap_bytes: int
    budget: Budget
    batch: Batch
    compute: Compute
    loader: LoaderConfig
    curriculum: dict[str, CurriculumConfig | None]
    model: LMConfig
    loss: dict[str, LossPartConfig | None] = field(default_factory=dict)
    optimizer: OptimizerConfig
    schedule: Schedule
    average: AverageConfig
    late: LateConfig | None
    qat: QATConfig | None
    quant: QuantConfig
    codec: CodecConfig | None
    eval: EvalConfig

    def __post_init__(self) -> None:
        positive(cap_bytes=self.cap_bytes)
        between(0, LARGEST_SEED, seed=self.seed)

    @property
    def chosen_codec(self) -> CodecConfig:
        """The codec named by `codec=`, else the one that the quantiser names."""
        return self.codec if self.codec is not None else self.quant.codec

    @property
    def depends_on_cut(self) -> bool:
        """Whether what comes of a step depends on how its batch is shared out and cut, which is else only memory."""
        return self.optimizer.clip == "local" or any(part is not None and part.weighs for part in self.loss.values())

    def batches(self, world: int) -> Batches:
        """The batches of this run on so many ranks. Raises UserError where they can't be cut so."""
        full = Shape(self.batch.sequences, self.batch.sequence_length)
        return Batches(full, self.curriculum, self.batch.max_microbatch_sequences, world)


@dataclass(kw_only=True, slots=True)
class Run(Recipe):
    """One run, wholly: what conf/ composes to, what a worker reads, what a fingerprint names."""

    label: str
    sweep_label: str | None
    track: str
    scale: Scale
    data: DataConfig
    log: LogConfig
    launch: Launch
    checkpoint: Checkpoint
    plan: bool
    resume: str
    rerun: bool
    outputs: str
    data_dir: str

    def __post_init__(self) -> None:
        Recipe.__post_init__(self)
        one_of("resume", self.resume, RESUMES)
        for name in ("label", "sweep_label"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"\w[\w.+-]{0,99}", value):
                raise ValueError(f"{name}={value!r} names a folder; use at most 100 letters, digits and . _ + -")


# ---------------------------------------------------------------- typed


def typed(node: Any, path: str = "", cls: type | None = None) -> Any:
    """Turn a resolved container into the dataclasses it names.

    node: nested dicts, lists and primitives; a dict with `_target_` names its dataclass by import path.
    Raises UserError that begins with the full key for an unknown or missing key, a wrong type, a wrong kind of object
    in a slot, and whatever a dataclass's own __post_init__ refuses (its messages begin with `field=value`).
    """
    if isinstance(node, list):
        return [typed(item, f"{path}[{i}]") for i, item in enumerate(node)]
    if not isinstance(node, dict):
        return node
    items = {key: value for key, value in node.items() if key != "_target_"}
    if "_target_" in node:
        cls = _config_class(node["_target_"], path)
    elif cls is not None and cls.__subclasses__():
        raise UserError(
            f"{path}: names no _target_; choose a {cls.__name__}, e.g. one of conf/{path.replace('.', '/')}/"
        )
    if cls is None:
        return {key: typed(value, _join(path, key)) for key, value in items.items() if value is not None}
    _check_keys(cls, items, path)
    return _build(cls, items, path)


def _build(cls: type, items: dict[str, Any], path: str) -> Any:
    """An object of `cls`. omegaconf converts and checks its primitives alone: it would build each part once more at
    every level above."""
    hints = typing.get_type_hints(cls)
    schema, own = OmegaConf.structured(cls), inspect.get_annotations(cls)
    present = [item.name for item in dataclasses.fields(cls) if item.name in items]
    parts: dict[str, Any] = {}
    # its own fields before inherited ones: the data of a run before the model, whose vocabulary is the data's
    for key in sorted(present, key=lambda name: name not in own):
        where, value = _join(path, key), items[key]
        if value == MISSING:
            raise UserError(f"{where}={MISSING}: is not set; give a value, or choose an option of its group")
        inner, member = _slot(hints[key])
        value = typed(value, where, inner)
        if inner is not None and dataclasses.is_dataclass(value):
            _check_kind(value, inner, where)
            parts[key] = value
            continue
        if member is not None and isinstance(value, dict):
            for name, part in value.items():
                if not isinstance(name, str):
                    raise UserError(f"{where}.{name}={_short(part)}: a name is text; put it in quotes")
                _check_kind(part, member, f"{where}.{name}")
            parts[key] = value
            continue
        if (hints[key] is bool) != isinstance(value, bool):  # omegaconf would turn one into the other
            raise UserError(f"{where}={_short(value)}: it takes {_type_name(hints[key])}")
        try:
            schema[key] = value
        except (OmegaConfBaseException, TypeError, ValueError) as error:
            reason = str(error).splitlines()[0]
            raise UserError(f"{where}={_short(value)}: {reason}; it takes {_type_name(hints[key])}") from None
    try:
        converted = OmegaConf.masked_copy(schema, [key for key in present if key not in parts])
        primitives = OmegaConf.to_container(converted, resolve=True)
        return cls(**parts, **typing.cast(dict[str, Any], primitives))
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise UserError(_join(path, str(error).splitlines()[0])) from None


def _check_kind(part: Any, cls: type, where: str) -> None:
    if not isinstance(part, cls):
        raise UserError(f"{where}={_short(part)}: must be a {cls.__name__}; name one as its _target_")


def _config_class(target: Any, path: str) -> type:
    try:
        cls = get_class(target)
    except Exception as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(f"{path}._target_={target}: cannot be imported ({reason}); name a config dataclass") from None
    if not dataclasses.is_dataclass(cls):
        raise UserError(f"{path}._target_={target}: not a config dataclass; name one, such as golf.models.lm.LMConfig")
    return cls


def _check_keys(cls: type, items: dict[str, Any], path: str) -> None:
    fields = {item.name: item for item in dataclasses.fields(cls)}
    for key in items:
        if key not in fields:
            close = difflib.get_close_matches(key, fields, n=1)
            hint = f"did you mean {close[0]}? " if close else ""
            given = f"{_join(path, key)}={_short(items[key])}"
            raise UserError(f"{given}: {cls.__name__} has no such key; {hint}it has {', '.join(fields)}")
    for key, item in fields.items():
        required = item.default is dataclasses.MISSING and item.default_factory is dataclasses.MISSING
        if required and key not in items:
            raise UserError(f"{_join(path, key)}: missing; {cls.__name__} needs it")


def _slot(hint: Any) -> tuple[type | None, type | None]:
    """(dataclass of a nested node, dataclass of the members of a named dict) of a field's type."""
    if typing.get_origin(hint) is dict:
        return None, _slot(typing.get_args(hint)[1])[0]
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    classes = [option for option in options if isinstance(option, type) and dataclasses.is_dataclass(option)]
    return (classes[0] if classes else None), None


def _type_name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _short(value: Any) -> str:
    if dataclasses.is_dataclass(value):
        return type(value).__name__
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _join(path: str, key: str) -> str:
    return f"{path}.{key}" if path else key


# ---------------------------------------------------------------- identity


def identity(run: Run, data_digest: str) -> dict[str, Any]:
    """What makes this run this run: the typed task config, data named by the hash of what was prepared.

    Fields that are OPERATIONAL and nulls are left out; the codec is the one that will be used, wherever it was named.
    """
    node = {key: item for key, item in plain(run, operational=False).items() if key not in NOT_IDENTITY}
    node |= {"data": data_digest, "codec": plain(run.chosen_codec)}
    del node["quant"]["codec"]
    if run.depends_on_cut:
        batches = run.batches(run.launch.nproc)
        node["cut"] = [run.launch.nproc, batches.rows(batches.full)]
    return without_nulls(node)


def fingerprint(run: Run, data_digest: str, *, with_seed: bool = True) -> str:
    """sha256 (hex) of the canonical task config; with_seed=False gives the hash that seeds of one row share."""
    node = identity(run, data_digest)
    if not with_seed:
        del node["seed"]
    return hashlib.sha256(json.dumps(node, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
