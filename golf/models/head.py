"""From the last hidden state to scores. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import positive
from golf.models.slots import HeadConfig


@dataclass(kw_only=True, slots=True)
class TiedHeadConfig(HeadConfig):
    """Logits from the embedding table, softcapped: cap * tanh(z / cap) (Gemma 2, arXiv 2408.00118; null: no cap)."""

    softcap: float | None

    def __post_init__(self) -> None:
        positive(softcap=self.softcap)

    def build(self, vocab_size: int, dim: int) -> "TiedHead":
        return TiedHead(self.softcap)


class TiedHead(nn.Module):
    """Holds no parameters; the cap, the softmax and the loss run in fp32 whatever the activations' type."""

    def __init__(self, softcap: float | None):
        super().__init__()
        self.softcap = softcap

    def logits(self, x_BTD: Tensor, table_VD: Tensor) -> Tensor:
        z_BTV = F.linear(x_BTD, table_VD.to(x_BTD.dtype)).float()
        return z_BTV if self.softcap is None else self.softcap * torch.tanh(z_BTV / self.softcap)

    def losses(self, x_BTD: Tensor, targets_BT: Tensor, table_VD: Tensor) -> dict[str, Tensor]:
        logits_BTV = self.logits(x_BTD, table_VD)
        return {"nll": F.cross_entropy(logits_BTV.flatten(0, 1), targets_BT.flatten())}

    def log_probs(self, x_BTD: Tensor, table_VD: Tensor) -> Tensor:
        return F.log_softmax(self.logits(x_BTD, table_VD), dim=-1)
