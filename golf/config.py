"""The typed run: what conf/ composes to, and the `fingerprint` that names it. golf/typed.py builds it from YAML."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar

from golf.artifact.codecs import CodecConfig
from golf.averaging import AverageConfig
from golf.curriculum import Batches, CurriculumConfig, Shape
from golf.errors import UserError
from golf.evals.evaluator import EvalConfig
from golf.fields import OPERATIONAL, between, one_of, positive
from golf.files import path_of
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
MOST_TOKENS = 2**28  # of a step
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
        between(1, MOST_TOKENS, **{item.name: getattr(self, item.name) for item in dataclasses.fields(self)})
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
        self.outputs, self.data_dir = str(path_of(self.outputs)), str(path_of(self.data_dir))
        for name in ("label", "sweep_label"):
            value = getattr(self, name)
            if value is not None and not re.fullmatch(r"\w[\w.+-]{0,99}", value):
                raise ValueError(f"{name}={value!r} names a folder; use at most 100 letters, digits and . _ + -")


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


def check_owner(run: Run, config: dict[str, Any], where: str) -> None:
    """Raise UserError where a run folder's config.json does not hold the run that its fingerprint names."""
    if fingerprint(run, config["prepared"]["digest"]) != config["fingerprint"]:
        raise UserError(
            f"{where}: config.json was changed, or made by another golf: it is not the configuration that its "
            "fingerprint names; train the run again"
        )


def fingerprint(run: Run, data_digest: str, *, with_seed: bool = True) -> str:
    """sha256 (hex) of the canonical task config; with_seed=False gives the hash that seeds of one row share."""
    node = identity(run, data_digest)
    if not with_seed:
        del node["seed"]
    return hashlib.sha256(json.dumps(node, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
