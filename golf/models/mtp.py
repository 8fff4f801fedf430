"""Multi-token prediction as a further loss. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, positive
from golf.models.head import softcapped
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
    """Each head is a matrix of its own that begins at zero; positions without a target so far ahead are left out."""

    def __init__(self, config: MultiTokenConfig, frame: Frame):
        super().__init__()
        self.weight, self.softcap = config.weight, config.softcap
        self.heads = nn.ModuleList(frame.matrix(frame.dim, frame.vocab_size, gain=0.0) for _ in range(config.heads))

    def forward(self, x_BTD: Tensor, targets_BT: Tensor) -> Tensor:
        losses = []
        for ahead, head in enumerate(self.heads, start=1):
            logits_BTV = softcapped(head(x_BTD[:, :-ahead]).float(), self.softcap)
            losses.append(F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT[:, ahead:].flatten()))
        return self.weight * torch.stack(losses).mean()
