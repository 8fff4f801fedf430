"""The slots of a model: one narrow interface each, so that an idea is one file and one YAML.

Legend for golf/models: B batch rows, T tokens, N positions (extra tokens in front, then T), D model width, H query
heads, K key/value heads, C channels of a head, M hidden width of an MLP, V vocabulary, I and O the input and output
width of a matrix, R the rank of a pair of factors. Where no part adds tokens N is T, and blocks are written with T.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from torch import Tensor, nn
from torch.nn import functional as F

from golf.errors import UserError


class Attend(Protocol):
    """An attention kernel: q_BTHC, k_BTKC, v_BTKC -> y_BTHC, causal, scale 1/sqrt(C).

    window: a query sees so many keys before its own, and its own; None sees all before it.
    """

    def __call__(self, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, window: int | None = None) -> Tensor: ...


@dataclass(frozen=True, slots=True)
class Frame:
    """What a part may know while it is built. layer: the block that it belongs to (None outside of blocks).

    shared: modules that the model owns once and parts reach through Context.shared; memo: whatever builders of several
    layers must agree on. Both are the same objects for all layers of one model.
    """

    vocab_size: int
    dim: int
    layers: int
    linear: "LinearConfig"
    layer: int | None = None
    shared: dict[str, nn.Module] = field(default_factory=dict)
    memo: dict[Any, Any] = field(default_factory=dict)

    def at(self, layer: int) -> "Frame":
        return replace(self, layer=layer)

    def at_model(self) -> "Frame":
        """The frame of what belongs to no layer."""
        return replace(self, layer=None)

    def matrix(self, inputs: int, outputs: int, *, residual: bool = False, gain: float = 1.0) -> nn.Module:
        """A module x_..I -> y_..O from the `linear` slot. residual: it writes to the residual stream."""
        return self.linear.build(self, inputs, outputs, residual=residual, gain=gain)

    def share(self, kind: str, key: Any, make: Callable[[], nn.Module]) -> str:
        """Have the model own one make() for all who give the same kind and key; returns its name in Context.shared."""
        known = ("shared", kind, key)
        if known not in self.memo:
            count = sum(name.startswith(kind) for name in self.shared)
            self.memo[known] = f"{kind}_{count}" if count else kind
            self.shared[self.memo[known]] = make()
        name: str = self.memo[known]
        return name


@dataclass(slots=True)
class Context:
    """What one forward pass shares between blocks.

    x0_BND: the embedded input; extra: how many of the N positions stand in front of the tokens; stage: which of the
    stack's stages runs (None: the last, which every score uses); first_BND: what the first block gave.
    """

    ids_BT: Tensor
    x0_BND: Tensor
    extra: int
    attend: Attend
    shared: nn.ModuleDict
    stage: int | None = None
    first_BND: Tensor | None = None
    memo: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of make(), computed once per forward pass (rotary tables, the first layer's values, ...)."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]

    def padded_ids(self) -> Tensor:
        """ids_BN: an id for every position; extra tokens have id 0."""
        return F.pad(self.ids_BT, (self.extra, 0))


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
    """module(ids_BT, dtype) -> x_BND, normed. It offers `table_VD` for a tied head and `extra`, N - T."""

    def build(self, frame: Frame) -> nn.Module:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class FeatureConfig:
    """A part of the embedding: module(x_BTD, ids_BT) -> x_BTD, before or after the norm (its `after_norm`).

    A module whose `extra` is not zero puts so many positions in front; it comes after all others.
    """

    def build(self, frame: Frame) -> "FeatureModule":
        raise NotImplementedError


class FeatureModule(nn.Module):
    """A module of FeatureConfig."""

    after_norm = False
    extra = 0


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

    def build(self, frame: Frame) -> nn.Module:
        raise NotImplementedError

    def kernel_channels(self, dim: int) -> int | None:
        """Channels of a head as the attention kernel sees them; None: it uses no kernel."""
        return None


@dataclass(kw_only=True, slots=True)
class MLPConfig:
    """How channels mix: module(h_BTD) -> y_BTD."""

    def build(self, frame: Frame) -> nn.Module:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class ResidualConfig:
    """How a block adds back: module(x_BTD, context, mixer, mlp) -> x_BTD."""

    def build(self, frame: Frame) -> nn.Module:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class StackConfig:
    """How blocks are visited. It builds the blocks that it needs, and owns them."""

    def build(self, frame: Frame, make_block: Callable[[int], nn.Module], residual: ResidualConfig) -> "StackModule":
        """residual: for a stack whose repeated visits have scales of their own."""
        raise NotImplementedError


class StackModule(nn.Module):
    """module(x_BTD, context) -> x_BTD."""

    starts: tuple[float, ...] = ()  # the parts of training after which another stage of the stack runs, ascending

    def stored_depth(self) -> int:
        """How many blocks it holds."""
        raise NotImplementedError

    def effective_depth(self) -> int:
        """How many blocks a token passes in the last stage."""
        raise NotImplementedError

    def repeated_params(self) -> int:
        """What a stack that visits nothing twice would hold in addition."""
        raise NotImplementedError


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
