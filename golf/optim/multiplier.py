"""Learning rates of some layers, other than those of their groups."""

import re
from dataclasses import dataclass

from golf.errors import UserError
from golf.fields import positive
from golf.models.layers import check_layer_text, layer_set

# A block's parameters, and its own scales for its further visits.
BLOCK = re.compile(r"stack\.(?:inner\.)*(?:blocks\.|residuals\.block)(\d+)")


@dataclass(kw_only=True, slots=True)
class LRMultiplierConfig:
    """The learning rates of `groups` within the blocks `layers`, times `factor` (PR 401: decoder_lr_mult).

    Decay follows the learning rate. Where several multipliers fit a parameter, their product holds.
    """

    layers: str
    groups: list[str]
    factor: float

    def __post_init__(self) -> None:
        positive(factor=self.factor)
        check_layer_text(layers=self.layers)

    def fitting(self, owners: dict[str, str], path: str) -> list[str]:
        """The parameters it is for. owners: parameter name -> group. Raises UserError, with `path`, where none is."""
        blocks = {name: int(found[1]) for name in owners if (found := BLOCK.match(name))}
        chosen = layer_set(self.layers, 1 + max(blocks.values(), default=-1), f"{path}.layers")
        fitting = [name for name, layer in blocks.items() if layer in chosen and owners[name] in self.groups]
        if not fitting:
            raise UserError(
                f"{path}: fits no parameter; layers={self.layers!r} hold none of the groups {', '.join(self.groups)}"
            )
        return fitting
