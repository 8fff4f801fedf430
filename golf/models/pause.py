"""Learned positions within the text. Shapes: golf/models/slots.py; p: how many stand together."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.fields import between, one_of, positive
from golf.models.norms import Norm
from golf.models.slots import FeatureConfig, FeatureModule, Frame, Places


@dataclass(kw_only=True, slots=True)
class PauseConfig(FeatureConfig):
    """`count` learned vectors, the same everywhere, after every `every` tokens (pause tokens, arXiv 2310.02226; PR
    1589); an incomplete group at the end gets none. T tokens take T + count * floor(T / every) positions.

    read: where what follows the last token of a group is predicted. `memory`: at that token, so that pauses only keep
    things for later tokens (the PR); `delay`: at the last pause after it (the paper). Count 0 is the model without.
    A part that adds positions too and is listed before this one has its positions counted as tokens.
    """

    count: int
    every: int
    read: str
    init_std: float

    def __post_init__(self) -> None:
        between(0, 4096, count=self.count)
        between(1, 2**20, every=self.every)
        one_of("read", self.read, ("memory", "delay"))
        positive(init_std=self.init_std)

    def build(self, frame: Frame) -> "Pause":
        return Pause(self, frame.dim, frame.norm)


class Pause(FeatureModule):
    """x_BTD -> x_BND. The vectors are normed like the tokens that they join."""

    roles = {"vectors_pD": "scalar"}
    after_norm = True
    adds = True

    def __init__(self, config: PauseConfig, dim: int, norm: Norm):
        super().__init__()
        self.norm = norm
        self.every, self.delay = config.every, config.read == "delay"
        self.vectors_pD = nn.Parameter(torch.empty(config.count, dim).normal_(std=config.init_std))

    def places(self, length: int) -> Places:
        count = len(self.vectors_pD)
        tokens = [t + count * (t // self.every) for t in range(length)]
        reads = [t + count * ((t + 1) // self.every) for t in range(length)] if self.delay else tokens
        return Places(length + count * (length // self.every), tokens, reads)

    def forward(self, x_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        groups = x_BTD.shape[1] // self.every
        x_BgnD = x_BTD[:, : groups * self.every].unflatten(1, (groups, self.every))
        pauses_BgpD = self.norm(self.vectors_pD).to(x_BTD.dtype).expand(len(x_BTD), groups, -1, -1)
        grouped_BND = torch.cat((x_BgnD, pauses_BgpD), dim=2).flatten(1, 2)
        return torch.cat((grouped_BND, x_BTD[:, groups * self.every :]), dim=1)
