"""From the last hidden state to scores. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import positive
from golf.losses import Loss
from golf.models.cross_entropy import scaled_logits, softcapped, softmax_loss
from golf.models.slots import Frame, HeadConfig


@dataclass(kw_only=True, slots=True)
class SoftmaxHeadConfig(HeadConfig):
    """Logits z = W x, softcapped: cap * tanh(z / cap) (Gemma 2, arXiv 2408.00118; null: no cap).

    tied: W is the embedding table, else a matrix of its own that begins at zero (upstream baseline has both).
    temperature: z is multiplied by a learned number first, 1 at the start.
    """

    softcap: float | None
    tied: bool
    temperature: bool

    def __post_init__(self) -> None:
        positive(softcap=self.softcap)

    def build(self, frame: Frame) -> "SoftmaxHead":
        return SoftmaxHead(self, frame)


class SoftmaxHead(nn.Module):
    """The cap, the softmax and the loss run in fp32 whatever the activations' type."""

    roles = {"own_VD": "head", "log_gain": "scalar"}

    def __init__(self, config: SoftmaxHeadConfig, frame: Frame):
        super().__init__()
        self.softcap, self.table_uses = config.softcap, int(config.tied)
        self.output = "embed.table_VD" if config.tied else "head.own_VD"
        self.own_VD = None if config.tied else nn.Parameter(torch.zeros(frame.vocab_size, frame.dim))
        self.log_gain = nn.Parameter(torch.zeros(())) if config.temperature else None

    def weight(self, table_VD: Tensor) -> Tensor:
        return table_VD if self.own_VD is None else self.own_VD

    def logits(self, x_BTD: Tensor, table_VD: Tensor) -> Tensor:
        z_BTV = scaled_logits(x_BTD, self.weight(table_VD).to(x_BTD.dtype), self.log_gain)
        return softcapped(z_BTV, self.softcap)

    def losses(self, x_BTD: Tensor, targets_BT: Tensor, table_VD: Tensor, loss: Loss) -> dict[str, Tensor]:
        x_ND, targets_N = x_BTD.flatten(0, 1), targets_BT.flatten()
        weight_VD = self.weight(table_VD)
        found = softmax_loss(x_ND, weight_VD, targets_N, softcap=self.softcap, log_gain=self.log_gain, loss=loss)
        return loss.named(*found)

    def log_probs(self, x_BTD: Tensor, table_VD: Tensor) -> Tensor:
        return F.log_softmax(self.logits(x_BTD, table_VD), dim=-1)
