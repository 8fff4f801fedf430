"""ids to vectors: a table and named features. Shapes: golf/models/slots.py."""

from dataclasses import dataclass, field
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, one_of, positive
from golf.models.init import power_law_spectrum_
from golf.models.slots import EmbedConfig, FeatureConfig, FeatureModule, Frame, Places, named_parts

TABLE_TYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


@dataclass(kw_only=True, slots=True)
class TableEmbedConfig(EmbedConfig):
    """One table, shared with a tied head; N(0, init_std^2) (upstream baseline).

    dtype: bf16 keeps no fp32 master, Adam's state included (the records' way; half the memory, coarser steps).
    spectrum: singular value k of the table begins proportional to k^-spectrum; 0 leaves the Gaussian ("overtone"
    init of the 1.1748 record: 0.5). features: named parts, null drops one.
    """

    init_std: float
    dtype: str
    spectrum: float
    features: dict[str, FeatureConfig | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive(init_std=self.init_std)
        one_of("dtype", self.dtype, tuple(TABLE_TYPES))
        between(0, 10, spectrum=self.spectrum)

    def build(self, frame: Frame) -> "TableEmbed":
        return TableEmbed(self, frame)


class TableEmbed(nn.Module):
    """ids_BT -> x_BND: table, features before the norm, norm, features after it; those that add positions last."""

    roles = {"table_VD": "embedding"}

    def __init__(self, config: TableEmbedConfig, frame: Frame):
        super().__init__()
        self.norm = frame.norm
        table_VD = torch.empty(frame.vocab_size, frame.dim).normal_(std=config.init_std)
        self.table_VD = nn.Parameter(power_law_spectrum_(table_VD, config.spectrum).to(TABLE_TYPES[config.dtype]))
        self.features = named_parts("model.embed.features", config.features, lambda part: part.build(frame))

    def forward(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        x_BTD = F.embedding(ids_BT, self.table_VD).to(dtype)
        for part in self.parts():
            if not part.after_norm:
                x_BTD = part(x_BTD, ids_BT)
        x_BTD = self.norm(x_BTD)
        for part in self.parts():
            if part.after_norm:
                x_BTD = part(x_BTD, ids_BT)
        return x_BTD

    def parts(self) -> list[FeatureModule]:
        """The features in their order, those that add positions last."""
        return sorted(cast(list[FeatureModule], list(self.features.values())), key=lambda part: part.adds)

    def places(self, length: int) -> Places:
        """Where a text of so many tokens stands among the positions."""
        found = Places.shifted(length)
        for part in self.parts():
            found = found.within(part.places(found.count))
        return found
