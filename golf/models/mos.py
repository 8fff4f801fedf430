"""Mixture of softmaxes. Shapes: golf/models/slots.py; E: experts."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from golf.fields import between, one_of, positive
from golf.losses import Loss
from golf.models.cross_entropy import chunk_rows, softcapped
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
        self.norm = frame.norm
        self.softcap, self.experts, self.residual = config.softcap, config.experts, config.form == "residual"
        self.table_uses, self.output = config.experts, None
        gain = 1 / math.sqrt(2 * frame.layers) if self.residual else 1.0
        self.project = frame.matrix(frame.dim, config.experts * frame.dim, gain=gain)
        self.mix_ED = nn.Parameter(torch.zeros(config.experts, frame.dim))

    def experts_of(self, x_XD: Tensor, table_VD: Tensor) -> tuple[Tensor, Tensor]:
        """log pi_XE and the capped logits c_XEV, both fp32; X: any leading axes."""
        h_XED = self.project(x_XD).unflatten(-1, (self.experts, -1))
        h_XED = self.norm(x_XD.unsqueeze(-2) + h_XED) if self.residual else torch.tanh(h_XED)
        c_XEV = softcapped(F.linear(h_XED, table_VD.to(x_XD.dtype)).float(), self.softcap)
        return F.log_softmax(F.linear(x_XD, self.mix_ED.to(x_XD.dtype)).float(), dim=-1), c_XEV

    def log_probs(self, x_BTD: Tensor, table_VD: Tensor) -> Tensor:
        return mixed(*self.experts_of(x_BTD, table_VD))

    def statistics(self, x_nD: Tensor, targets_n: Tensor, table_VD: Tensor, entropy: bool) -> tuple[Tensor, ...]:
        """nll_n, lse_nE of each expert, and the mixture's entropy_n without a gradient (else zeros)."""
        log_pi_nE, c_nEV = self.experts_of(x_nD, table_VD)
        lse_nE = c_nEV.logsumexp(dim=-1)
        index_nE1 = targets_n[:, None, None].expand(-1, self.experts, 1)
        nll_n = -(log_pi_nE + c_nEV.gather(-1, index_nE1)[..., 0] - lse_nE).logsumexp(dim=-1)
        with torch.no_grad():
            entropy_n = torch.zeros_like(nll_n)
            if entropy:
                log_p_nV = mixed(log_pi_nE, c_nEV)
                entropy_n = -(log_p_nV.exp() * log_p_nV).sum(dim=-1)
        return nll_n, lse_nE, entropy_n

    def losses(self, x_BTD: Tensor, targets_BT: Tensor, table_VD: Tensor, loss: Loss) -> dict[str, Tensor]:
        """Chunks of tokens, whose logits the backward pass computes anew, since an expert's gradient needs the others.

        A token is weighed by the mixture's entropy; a penalty is the mean over the experts' own softmaxes.
        """
        rows = chunk_rows(self.experts * len(table_VD), x_BTD.device)
        chunks = zip(x_BTD.flatten(0, 1).split(rows), targets_BT.flatten().split(rows), strict=True)
        found = [
            checkpoint(self.statistics, *chunk, table_VD, loss.weighs, use_reentrant=False, preserve_rng_state=False)
            for chunk in chunks
        ]
        nll_N, lse_NE, entropy_N = (torch.cat(parts) for parts in zip(*found, strict=True))
        objective = (loss.weights(entropy_N) * nll_N).mean() + loss.penalty(lse_NE)[0].mean()
        return loss.named(objective, nll_N.detach().mean())


def mixed(log_pi_XE: Tensor, c_XEV: Tensor) -> Tensor:
    """log sum_e pi_e softmax(c_e), fp32, (..., V)."""
    return (log_pi_XE.unsqueeze(-1) + F.log_softmax(c_XEV, dim=-1)).logsumexp(dim=-2)
