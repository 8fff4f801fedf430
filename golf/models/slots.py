"""The slots of a model: one narrow interface each, so that an idea is one file and one YAML.

Legend for golf/models: B batch rows, T tokens, D model width, H query heads, K key/value heads, C channels of a head,
M hidden width of an MLP, V vocabulary, I and O the input and output width of a matrix.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from golf.errors import UserError

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]  # q_BTHC, k_BTKC, v_BTKC -> y_BTHC, causal


@dataclass(slots=True)
class Context:
    """What one forward pass shares between blocks: the ids, the embedded input, the attention kernel, a memo."""

    ids_BT: Tensor
    x0_BTD: Tensor
    attend: Attend
    memo: dict[Any, Any] = field(default_factory=dict)

    def once(self, key: Any, make: Callable[[], Any]) -> Any:
        """The value of make(), computed once per forward pass (rotary tables, the first layer's values, ...)."""
        if key not in self.memo:
            self.memo[key] = make()
        return self.memo[key]


def named_parts(path: str, configs: Mapping[str, Any], build: Callable[[Any], nn.Module | None]) -> nn.ModuleDict:
    """The parts that are there, by name. Raises UserError for a name that torch keeps for itself."""
    built = {name: build(config) for name, config in configs.items() if config is not None}
    parts = nn.ModuleDict()
    for name, part in built.items():
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

    def build(self, inputs: int, outputs: int, *, residual: bool = False) -> nn.Module:
        """A module x_..I -> y_..O. residual: the matrix writes to the residual stream."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class EmbedConfig:
    """ids_BT -> x_BTD. The module offers `table_VD` for a tied head."""

    def build(self, vocab_size: int, dim: int) -> nn.Module:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class ValuePartConfig:
    """A part of attention that changes the values: module(v_BTKC, h_BTD, context) -> v_BTKC."""

    def build(self, dim: int, kv_heads: int, head_dim: int, layer: int, layers: int) -> nn.Module | None:
        """None: the part is absent from this layer."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class OutputPartConfig:
    """A part of attention that changes its output before the projection: module(y_BTHC, v_BTKC, h_BTD) -> y_BTHC."""

    def build(self, dim: int, heads: int, kv_heads: int, layer: int, layers: int) -> nn.Module | None:
        """None: the part is absent from this layer."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class MixerConfig:
    """How tokens mix: module(h_BTD, context) -> y_BTD, causal."""

    def build(self, dim: int, linear: LinearConfig, layer: int, layers: int) -> nn.Module:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class MLPConfig:
    """How channels mix: module(h_BTD) -> y_BTD."""

    def build(self, dim: int, linear: LinearConfig) -> nn.Module:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class ResidualConfig:
    """How a block adds back: module(x_BTD, context, mixer, mlp) -> x_BTD."""

    def build(self, dim: int, layer: int, layers: int) -> nn.Module:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class StackConfig:
    """How blocks are visited: module(x_BTD, context) -> x_BTD. It builds the blocks that it needs, and owns them."""

    def build(self, dim: int, layers: int, make_block: Callable[[int], nn.Module]) -> nn.Module:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class HeadConfig:
    """x_BTD to scores: module.losses(x_BTD, targets_BT, table_VD) and module.log_probs(x_BTD, table_VD)."""

    def build(self, vocab_size: int, dim: int) -> nn.Module:
        raise NotImplementedError
