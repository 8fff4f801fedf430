"""The slots of a model: one narrow interface each, so that an idea is one file and one YAML.

Legend for golf/models: B batch rows, T tokens, N positions (T and what parts of the embedding add), D model width, H
query heads, K key/value heads, C channels of a head, M hidden width of an MLP, V vocabulary, I and O the input and
output width of a matrix, R the rank of a pair of factors. Where no part adds tokens N is T, and blocks are written
with T.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol, cast

import torch
from torch import Tensor, nn

from golf.errors import UserError
from golf.models.norms import Norm, norm


class Attend(Protocol):
    """An attention kernel: q_BTHC, k_BTKC, v_BTKC -> y_BTHC, causal, scale 1/sqrt(C).

    window: a query sees so many keys before its own, and its own; None sees all before it.
    """

    def __call__(self, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, window: int | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Frame:
    """What a part may know while it is built. layer: the block that it belongs to (None outside of blocks); part: of
    the block, mixer or mlp; kind: what tells a matrix from others of its layer, the same in every layer that has it.

    shared: modules that the model owns once and parts reach through Context.shared; memo: whatever builders of several
    layers must agree on. Both are the same objects for all layers of one model. most_weights: of all matrices together,
    those that are made of something smaller among them; None: as many as there is memory for. read_scale: what the
    layer's residual multiplies the normed stream by before mixer and MLP read it. norm: the model's, of activations.
    """

    vocab_size: int
    dim: int
    layers: int
    linear: "LinearConfig"
    layer: int | None = None
    part: str = ""
    kind: str = ""
    shared: dict[str, nn.Module] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)
    most_weights: int | None = None
    read_scale: float = 1.0
    norm: Norm = norm

    def at(self, layer: int, part: str = "") -> "Frame":
        return replace(self, layer=layer, part=part)

    def at_model(self) -> "Frame":
        """The frame of what belongs to no layer."""
        return replace(self, layer=None, part="")

    def matrix(self, inputs: int, outputs: int, *, residual: bool = False, gain: float = 1.0) -> nn.Module:
        """A module x_..I -> y_..O from the `linear` slot. residual: it writes to the residual stream.

        Raises UserError where the matrices so far come to more than most_weights.
        """
        weights = self.memo["weights"] = self.memo.get("weights", 0) + inputs * outputs
        if self.most_weights is not None and weights > self.most_weights:
            raise UserError(f"model.dim: the matrices have {weights:,} weights or more, over {self.most_weights:,}")
        kind = f"{self.part} {outputs}x{inputs}{' residual' * residual}{f' times {gain:g}' * (gain != 1.0)}"
        number = self.memo[self.layer, kind] = self.memo.get((self.layer, kind), -1) + 1
        frame = replace(self, kind=f"{kind} {number}")
        return self.linear.build(frame, inputs, outputs, residual=residual, gain=gain)

    def share(self, kind: str, key: Any, make: Callable[[], nn.Module]) -> str:
        """Have the model own one make() for all who give the same kind and key; returns its name in Context.shared."""
        known = ("shared", kind, key)
        if known not in self.memo:
            count = sum(name.startswith(kind) for name in self.shared)
            self.memo[known] = f"{kind}_{count}" if count else kind
            self.shared[self.memo[known]] = make()
        name: str = self.memo[known]
        return name


@dataclass(frozen=True, slots=True)
class Places:
    """Which of the N = count positions hold the T tokens, and which ones' outputs predict what follows each token."""

    count: int
    tokens: Sequence[int]
    reads: Sequence[int]

    @classmethod
    def shifted(cls, length: int, by: int = 0) -> "Places":
        """So many positions behind `by` others."""
        return cls(length + by, range(by, length + by), range(by, length + by))

    def within(self, outer: "Places") -> "Places":
        """The same after another part has moved these positions."""
        return Places(outer.count, picked(outer.tokens, self.tokens), picked(outer.reads, self.reads))


def picked(values: Sequence[int], index: Sequence[int]) -> Sequence[int]:
    """values[i] for each i; a range where both are."""
    if isinstance(values, range) and isinstance(index, range):
        return values[index.start : index.stop]
    return [values[i] for i in index]


def take(x_BN: Tensor, index: Sequence[int]) -> Tensor:
    """These places of dimension 1; a view where they are neighbours."""
    if isinstance(index, range):
        return x_BN[:, index.start : index.stop]
    return x_BN.index_select(1, torch.tensor(index, device=x_BN.device))


@dataclass(slots=True)
class Context:
    """What one forward pass shares between blocks.

    x0_BND: the embedded input; places: of the tokens among its positions; stage: which of the stack's stages runs
    (None: the last, which every score uses); first_BND: what the first block gave; start: where a stack passes the
    text in pieces of N positions, the first of this one; text_length: how many tokens a text of this use may have, of
    which this pass may hold fewer; read: x_BND -> the model's log-probabilities from there, of all positions; losses:
    named further losses that parts of the model put here, which only training uses.
    """

    ids_BT: Tensor
    x0_BND: Tensor
    places: Places
    attend: Attend
    shared: nn.ModuleDict
    text_length: int
    stage: int | None = None
    first_BND: Tensor | None = None
    start: int = 0
    read: Callable[[Tensor], Tensor] | None = None
    losses: dict[str, Tensor] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of make(), computed once per forward pass (rotary tables, the first layer's values, ...)."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def padded_ids(self) -> Tensor:
        """ids_BN: an id for every position; those that hold no token have id 0."""
        ids_BN = self.ids_BT.new_zeros(self.x0_BND.shape[:2])
        ids_BN[:, torch.tensor(self.places.tokens, dtype=torch.long, device=ids_BN.device)] = self.ids_BT
        return ids_BN


def named_parts(path: str, configs: Mapping[str, Any], build: Callable[[Any], nn.Module | None]) -> nn.ModuleDict:
    """The parts that are there, by name.

    Raises UserError for a name that torch keeps for itself, and what a part refuses, with its key in front.
    """
    parts = nn.ModuleDict()
    for name, config in configs.items():
        if config is None:
            continue
        try:
            part = build(config)
        except UserError as error:
            raise UserError(f"{path}.{name}.{error}") from None
        if hasattr(parts, name) or "." in name:
            raise UserError(
                f"{path}.{name}: torch modules have no room for this name; try {name.replace('.', '_')}_part"
            )
        if part is not None:
            parts[name] = part
    return parts


@dataclass(kw_only=True, slots=True)
class LinearConfig:
    """Where a weight matrix comes from."""

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        """A module x_..I -> y_..O. residual: the matrix writes to the residual stream; gain: times its usual init."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class EmbedConfig:
    """module(ids_BT, dtype) -> x_BND, normed. It offers `table_VD` for a tied head, `features`, `places(T)`."""

    def build(self, frame: Frame) -> nn.Module:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class FeatureConfig:
    """A part of the embedding: module(x_BTD, ids_BT) -> x_BTD, before or after the norm (its `after_norm`).

    A module that `adds` positions comes after all others, and says in places() what has become of those before.
    hashes_ids: it computes with the numbers of tokens, so that other numbers for the same tokens make another model.
    """

    hashes_ids: ClassVar[bool] = False

    def build(self, frame: Frame) -> "FeatureModule":
        raise NotImplementedError


class FeatureModule(nn.Module):
    """A module of FeatureConfig."""

    after_norm = False
    adds = False

    def places(self, length: int) -> Places:
        """Where so many positions stand after this part."""
        return Places.shifted(length)


@dataclass(frozen=True, slots=True)
class Heads:
    """The shape of an attention layer."""

    heads: int
    kv_heads: int
    head_dim: int


@dataclass(kw_only=True, slots=True)
class InputPartConfig:
    """A part of attention that changes what it reads: module(h_BTD, context) -> h_BTD."""

    def build(self, frame: Frame) -> nn.Module | None:
        """None: the part is absent from this layer."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class ValuePartConfig:
    """A part of attention that changes the values: module(v_BTKC, h_BTD, context) -> v_BTKC."""

    def build(self, frame: Frame, shape: Heads) -> nn.Module | None:
        """None: the part is absent from this layer."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class OutputPartConfig:
    """A part of attention that changes its output before the projection: module(y_BTHC, v_BTKC, h_BTD) -> y_BTHC."""

    def build(self, frame: Frame, shape: Heads) -> nn.Module | None:
        """None: the part is absent from this layer."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class MixerConfig:
    """How tokens mix: module(h_BTD, context) -> y_BTD, causal."""

    def build(self, frame: Frame) -> "MixerModule":
        raise NotImplementedError

    def kernel_channels(self, dim: int) -> int | None:
        """Channels of a head as the attention kernel sees them; None: it uses no kernel."""
        return None

    def cached_numbers(self, dim: int) -> int | None:
        """Numbers that a decoder has to keep of each token in each visit of a layer; None: that is not known."""
        return None


class MixerModule(nn.Module):
    """A module of MixerConfig."""

    def why_whole(self, length: int) -> str:
        """Why texts of up to so many tokens must be passed whole, with a way out; empty: where they go on, keys and
        values that `attend` was given before are all that is known of them (golf/models/recall.py)."""
        return f"model.mixer keeps more of a text than those ({type(self).__name__}); try model/mixer=gqa"


@dataclass(kw_only=True, slots=True)
class MLPConfig:
    """How channels mix: module(h_BTD) -> y_BTD."""

    def build(self, frame: Frame) -> nn.Module:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class ResidualConfig:
    """How a block adds back: module(x_BTD, context, mixer, mlp) -> x_BTD."""

    def read_scale(self, layer: int) -> float:
        """Return what the normed stream is multiplied by before mixer and MLP of this layer read it."""
        return 1.0

    def build(self, frame: Frame) -> "ResidualModule":
        raise NotImplementedError


class ResidualModule(nn.Module):
    """A module of ResidualConfig."""

    def enter(self, x_BTD: Tensor, context: Context) -> None:
        """Take note of the stream as the blocks before gave it, before a skip or a position vector joins it."""


@dataclass(kw_only=True, slots=True)
class StackConfig:
    """How blocks are visited. It builds the blocks that it needs, and owns them."""

    def build(self, frame: Frame, make_block: Callable[[int], nn.Module], residual: ResidualConfig) -> "StackModule":
        """residual: for a stack whose repeated visits have scales of their own."""
        raise NotImplementedError


class StackModule(nn.Module):
    """module(x_BTD, context) -> x_BTD."""

    starts: tuple[float, ...] = ()  # the parts of training after which another stage of the stack runs, ascending
    reads_input = True  # False: x_BTD gives it shape and type alone, so that features of the embedding would be lost

    def stored_depth(self) -> int:
        """How many blocks it holds."""
        raise NotImplementedError

    def effective_depth(self) -> int:
        """How many blocks a token passes in the last stage."""
        raise NotImplementedError

    def repeated_params(self) -> int:
        """What a stack that visits nothing twice would hold in addition."""
        raise NotImplementedError

    def why_whole(self, length: int) -> str:
        """As of MixerModule, of the whole stack."""
        return f"model.stack keeps more of a text than those ({type(self).__name__}); try model/stack=unet"


def first_reason(blocks: nn.ModuleList, length: int) -> str:
    """The first that one of these blocks' mixers has for MixerModule.why_whole()."""
    return next((reason for block in blocks if (reason := cast(Any, block).mixer.why_whole(length))), "")


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    """x_BTD to scores: module.losses(x_BTD, targets_BT, table_VD, loss) and module.log_probs(x_BTD, table_VD).

    module.table_uses: how often it multiplies with the embedding table, for the arithmetic of plans.
    module.output: the parameter of the model that x_BTD itself is multiplied by, None where it is changed before.
    """

    def build(self, frame: Frame) -> nn.Module:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class AuxiliaryConfig:
    """A further loss while training: module(x_BTD, targets_BT) -> scalar, weighted. It is left out of the artifact."""

    def build(self, frame: Frame) -> nn.Module:
        raise NotImplementedError

    def shortest(self) -> int:
        """The shortest sequence that it has a loss for."""
        return 1
