"""Mixture of softmaxes. Shapes: golf/models/slots.py; E: experts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, one_of, positive
from golf.models.head import softcapped
from golf.models.norms import norm
from golf.models.slots import Frame, HeadConfig


@dataclass(kw_only=True, slots=True)
class MixtureHeadConfig(HeadConfig):
    """p = sum_e pi_e softmax(capped(table c_e)), pi = softmax(W_m x), uniform at first (arXiv 1711.03953).

    form: `tanh` is c_e = tanh(W_e x) (PR 584, ablation 5), whose bounded c halves the logits at the start; `residual`
    is c_e = norm(x + W_e x) with a small W_e, so that each expert begins near the plain head.
    """

    softcap: float | None
    experts: int
    form: str

    def __post_init__(self) -> None:
        positive(softcap=self.softcap)
        between(2, 64, experts=self.experts)
        one_of("form", self.form, ("tanh", "residual"))

    def build(self, frame: Frame) -> "MixtureHead":
        return MixtureHead(self, frame)


class MixtureHead(nn.Module):
    """The mixture is taken in log space, in fp32."""

    roles = {"mix_ED": "matrix"}

    def __init__(self, config: MixtureHeadConfig, frame: Frame):
        super().__init__()
        self.softcap, self.experts, self.residual = config.softcap, config.experts, config.form == "residual"
        self.table_uses = config.experts
        gain = 1 / math.sqrt(2 * frame.layers) if self.residual else 1.0
        self.project = frame.matrix(frame.dim, config.experts * frame.dim, gain=gain)
        self.mix_ED = nn.Parameter(torch.zeros(config.experts, frame.dim))

    def log_joint(self, x_BTD: Tensor, table_VD: Tensor) -> Tensor:
        """log pi_e + log softmax_e, (B, T, E, V)."""
        c_BTED = self.project(x_BTD).unflatten(-1, (self.experts, -1))
        c_BTED = norm(x_BTD.unsqueeze(-2) + c_BTED) if self.residual else torch.tanh(c_BTED)
        z_BTEV = F.linear(c_BTED, table_VD.to(x_BTD.dtype)).float()
        log_pi_BTE = F.log_softmax(F.linear(x_BTD, self.mix_ED.to(x_BTD.dtype)).float(), dim=-1)
        return log_pi_BTE.unsqueeze(-1) + F.log_softmax(softcapped(z_BTEV, self.softcap), dim=-1)

    def losses(self, x_BTD: Tensor, targets_BT: Tensor, table_VD: Tensor) -> dict[str, Tensor]:
        joint_BTEV = self.log_joint(x_BTD, table_VD)
        index_BTE1 = targets_BT[..., None, None].expand(-1, -1, self.experts, 1)
        return {"nll": -joint_BTEV.gather(-1, index_BTE1).squeeze(-1).logsumexp(dim=-1).mean()}

    def log_probs(self, x_BTD: Tensor, table_VD: Tensor) -> Tensor:
        return self.log_joint(x_BTD, table_VD).logsumexp(dim=-2)
