"""Learned positions in front of the text. Shapes: golf/models/slots.py; n: their number."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.fields import between, positive
from golf.models.slots import FeatureConfig, FeatureModule, Frame, Places


@dataclass(kw_only=True, slots=True)
class RegistersConfig(FeatureConfig):
    """`count` learned vectors before every text, N(0, init_std^2): sinks that all tokens see, as far as an attention
    window reaches (arXiv 2309.16588; PR 584, ablation 3). They are never scored; the text's rotary positions shift."""

    count: int
    init_std: float

    def __post_init__(self) -> None:
        between(1, 4096, count=self.count)
        positive(init_std=self.init_std)

    def build(self, frame: Frame) -> "Registers":
        return Registers(self, frame.dim)


class Registers(FeatureModule):
    roles = {"vectors_nD": "scalar"}
    after_norm = True
    adds = True

    def __init__(self, config: RegistersConfig, dim: int):
        super().__init__()
        self.vectors_nD = nn.Parameter(torch.empty(config.count, dim).normal_(std=config.init_std))

    def places(self, length: int) -> Places:
        return Places.shifted(length, by=len(self.vectors_nD))

    def forward(self, x_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        return torch.cat((self.vectors_nD.to(x_BTD.dtype).expand(len(x_BTD), -1, -1), x_BTD), dim=1)
