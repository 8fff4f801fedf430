"""The quantiser: a table that maps parameter roles to storage formats. Pure: weights in, parts out."""

from dataclasses import dataclass

from torch import Tensor

from golf.artifact.codecs import CodecConfig
from golf.quant.formats import FormatConfig, Parts
from golf.roles import assign, check_table


@dataclass(frozen=True, slots=True)
class Stored:
    """One tensor as it will be written: the name of its format and the parts."""

    format: str
    parts: Parts


@dataclass(kw_only=True, slots=True)
class QuantConfig:
    """formats by name; roles and names (patterns) map parameters to formats; the codec that suits them."""

    formats: dict[str, FormatConfig]
    roles: dict[str, str]
    names: dict[str, str]
    default: str | None
    codec: CodecConfig

    def __post_init__(self) -> None:
        check_table(self.roles, self.names, self.default, self.formats)

    def assign(self, roles: dict[str, str]) -> dict[str, str]:
        """parameter name -> format name, every parameter once."""
        return assign(roles, roles=self.roles, names=self.names, default=self.default, path="quant")

    def quantize(self, weights: dict[str, Tensor], roles: dict[str, str]) -> dict[str, Stored]:
        """Store every weight by its role's format. weights, roles: by parameter name; nothing is changed in place."""
        claimed = self.assign(roles)
        return {
            name: Stored(claimed[name], self.formats[claimed[name]].encode(weight.detach().cpu()))
            for name, weight in weights.items()
        }

    def predict_bytes(self, shapes: dict[str, tuple[int, ...]], roles: dict[str, str], codec: CodecConfig) -> int:
        """Artifact bytes expected from shapes alone (Gaussian weights), before a weight is trained."""
        claimed = self.assign(roles)
        bits = sum(self.formats[claimed[name]].predict_bits(shape) for name, shape in shapes.items())
        return round(bits / 8 * codec.overhead)
