"""Multi-token prediction as a further loss. Shapes: golf/models/slots.py."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from golf.fields import between, positive
from golf.models.cross_entropy import softmax_loss
from golf.models.linear import Dense
from golf.models.slots import AuxiliaryConfig, Frame


@dataclass(kw_only=True, slots=True)
class MultiTokenConfig(AuxiliaryConfig):
    """Head k = 0, 1, ... predicts the token k + 2 ahead; weight * mean of their losses (arXiv 2404.19737; PR 401 a)."""

    heads: int
    weight: float
    softcap: float | None

    def __post_init__(self) -> None:
        between(1, 64, heads=self.heads)
        positive(weight=self.weight, softcap=self.softcap)

    def build(self, frame: Frame) -> "MultiToken":
        return MultiToken(self, frame)

    def shortest(self) -> int:
        return self.heads + 1


class MultiToken(nn.Module):
    """Each head is a matrix of its own that begins at zero; positions without a target so far ahead are left out.

    Its loss is plain cross entropy, whatever the loss of the main head is.
    """

    def __init__(self, config: MultiTokenConfig, frame: Frame):
        super().__init__()
        self.weight, self.softcap = config.weight, config.softcap
        heads = [Dense(frame.dim, frame.vocab_size) for _ in range(config.heads)]
        for head in heads:
            nn.init.zeros_(head.weight)
        self.heads = nn.ModuleList(heads)

    def forward(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        losses = []
        for ahead, head in enumerate(cast(list[Dense], list(self.heads)), start=1):
            x_ND, targets_N = x_BTD[:, :-ahead].flatten(0, 1), targets_BT[:, ahead:].flatten()
            losses.append(softmax_loss(x_ND, head.weight, targets_N, softcap=self.softcap)[0])
        return self.weight * torch.stack(losses).mean()
