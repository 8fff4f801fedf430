"""A value embedding that some layers share. Shapes: golf/models/slots.py; E: its width."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, positive
from golf.models.layers import check_layer_text, layer_set
from golf.models.slots import Context, Frame, Heads, ValuePartConfig


@dataclass(kw_only=True, slots=True)
class ValueEmbeddingConfig(ValuePartConfig):
    """v + b * a * P U[id] in `layers`: one table U (V x dim) and one projection P for all of them (PR 374, "VE128").

    a: one scalar, b: one a layer. P begins like a matrix that writes to the residual stream (scaled), never at zero.
    """

    dim: int
    layers: str
    table_std: float
    scale: float

    def __post_init__(self) -> None:
        between(1, 2**16, dim=self.dim)
        positive(table_std=self.table_std, scale=self.scale)
        check_layer_text(layers=self.layers)

    def build(self, frame: Frame, shape: Heads) -> "ValueEmbedding | None":
        if frame.layer not in layer_set(self.layers, frame.layers):
            return None
        width = shape.kv_heads * shape.head_dim
        return ValueEmbedding(frame.share("value_embedding", str(self), lambda: ValueTable(self, frame, width)))


class ValueTable(nn.Module):
    """ids_BT -> a * P U[id], (B, T, K * C)."""

    roles = {"table_VE": "embedding", "scale": "scalar"}

    def __init__(self, config: ValueEmbeddingConfig, frame: Frame, width: int):
        super().__init__()
        self.table_VE = nn.Parameter(torch.empty(frame.vocab_size, config.dim).normal_(std=config.table_std))
        self.project = frame.at_model().matrix(config.dim, width, gain=1 / math.sqrt(2 * frame.layers))
        self.scale = nn.Parameter(torch.tensor(config.scale))

    def forward(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        return self.scale.to(dtype) * self.project(F.embedding(ids_BT, self.table_VE).to(dtype))


class ValueEmbedding(nn.Module):
    """One layer's use of a ValueTable."""

    roles = {"scale": "scalar"}

    def __init__(self, name: str):
        super().__init__()
        self.name = name
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, v_BTKC: Tensor, h_BTD: Tensor, context: Context) -> Tensor:
        table = context.shared[self.name]
        added = context.once(self.name, lambda: table(context.padded_ids(), v_BTKC.dtype))
        return v_BTKC + self.scale.to(v_BTKC.dtype) * added.view_as(v_BTKC)
