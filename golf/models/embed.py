"""ids to vectors. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import positive
from golf.models.slots import EmbedConfig


@dataclass(kw_only=True, slots=True)
class TableEmbedConfig(EmbedConfig):
    """One table, shared with a tied head; N(0, init_std^2) (upstream baseline)."""

    init_std: float

    def __post_init__(self) -> None:
        positive(init_std=self.init_std)

    def build(self, vocab_size: int, dim: int) -> "TableEmbed":
        return TableEmbed(vocab_size, dim, self.init_std)


class TableEmbed(nn.Module):
    """ids_BT -> x_BTD."""

    roles = {"table_VD": "embedding"}

    def __init__(self, vocab_size: int, dim: int, init_std: float):
        super().__init__()
        self.table_VD = nn.Parameter(torch.empty(vocab_size, dim).normal_(std=init_std))

    def forward(self, ids_BT: Tensor) -> Tensor:
        return F.embedding(ids_BT, self.table_VD)
