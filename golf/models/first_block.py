"""The first block's output in what later attention reads. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.fields import between
from golf.models.slots import Context, Frame, InputPartConfig


@dataclass(kw_only=True, slots=True)
class FirstBlockMixConfig(InputPartConfig):
    """g h + (1 - g) s norm(stopgrad(first block's output)), g = sigmoid of a learned number a layer (PR 401's "VRL"); s
    the layer's own scale, which h has too.

    It mixes what queries, keys and values are made of, so it is no value residual; golf/models/value_residual.py has
    those. Two things differ from the PR: it mixes the stream with the output before it norms them, here both are normed
    first; and the first layer has no mix (the PR's has one that never gets a gradient).
    """

    start: float

    def __post_init__(self) -> None:
        between(-20, 20, start=self.start)

    def build(self, frame: Frame) -> "FirstBlockMix | None":
        return None if frame.layer == 0 else FirstBlockMix(self.start, frame)


class FirstBlockMix(nn.Module):
    roles = {"gate": "scalar"}

    def __init__(self, start: float, frame: Frame):
        super().__init__()
        self.scale, self.norm = frame.read_scale, frame.norm
        self.gate = nn.Parameter(torch.tensor(start))

    def forward(self, h_BTD: Tensor, context: Context) -> Tensor:
        assert context.first_BND is not None
        first_BTD = self.scale * self.norm(context.first_BND.detach())
        return torch.lerp(first_BTD, h_BTD, self.gate.sigmoid().to(h_BTD.dtype))
