"""The first block's output in what later attention reads. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.fields import between
from golf.models.norms import norm
from golf.models.slots import Context, Frame, InputPartConfig


@dataclass(kw_only=True, slots=True)
class FirstBlockMixConfig(InputPartConfig):
    """g h + (1 - g) norm(stopgrad(first block's output)), g = sigmoid of a learned number a layer (PR 401's "VRL").

    It mixes what queries, keys and values are made of, so it is no value residual; golf/models/value_residual.py has
    those. Two things differ from the PR: the output is normed, like the h that it joins, and the first layer has no
    mix (the PR's has one that never gets a gradient).
    """

    start: float

    def __post_init__(self) -> None:
        between(-20, 20, start=self.start)

    def build(self, frame: Frame) -> "FirstBlockMix | None":
        return None if frame.layer == 0 else FirstBlockMix(self.start)


class FirstBlockMix(nn.Module):
    roles = {"gate": "scalar"}

    def __init__(self, start: float):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(start))

    def forward(self, h_BTD: Tensor, context: Context) -> Tensor:
        assert context.first_BND is not None
        return torch.lerp(norm(context.first_BND.detach()), h_BTD, self.gate.sigmoid().to(h_BTD.dtype))
