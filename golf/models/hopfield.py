"""Heads that refine the state before the softmax: an attractor MLP, a modern Hopfield retrieval. Shapes:
golf/models/slots.py; n: tokens of a chunk, X: any leading axes, W: the width of what is multiplied.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from golf.fields import between, positive
from golf.losses import Loss
from golf.models.cross_entropy import chunk_rows, scaled_logits, softcapped, softmax_loss
from golf.models.init import orthogonal_
from golf.models.linear import Dense
from golf.models.slots import Frame, HeadConfig


class RefiningHead(nn.Module):
    """Logits softcapped(query(x) keys^T exp(log_gain)): a softmax whose state is changed first."""

    output = None

    def __init__(self, softcap: float | None, frame: Frame, log_gain: nn.Parameter | None = None):
        super().__init__()
        self.softcap, self.log_gain = softcap, log_gain
        self.map = Dense(frame.dim, frame.dim)
        orthogonal_(self.map.weight)

    def query(self, x_XD: Tensor, table_VD: Tensor) -> Tensor:
        """The refined state, query_XW."""
        raise NotImplementedError

    def keys(self, table_VD: Tensor) -> Tensor:
        """What it is multiplied by, keys_VW."""
        return table_VD

    def losses(self, x_BTD: Tensor, targets_BT: Tensor, table_VD: Tensor, loss: Loss) -> dict[str, Tensor]:
        query_NW, targets_N = self.query(x_BTD.flatten(0, 1), table_VD), targets_BT.flatten()
        keys_VW = self.keys(table_VD)
        found = softmax_loss(query_NW, keys_VW, targets_N, softcap=self.softcap, log_gain=self.log_gain, loss=loss)
        return loss.named(*found)

    def log_probs(self, x_BTD: Tensor, table_VD: Tensor) -> Tensor:
        query_BTW = self.query(x_BTD, table_VD)
        z_BTV = scaled_logits(query_BTW, self.keys(table_VD).to(query_BTW.dtype), self.log_gain)
        return F.log_softmax(softcapped(z_BTV, self.softcap), dim=-1)


@dataclass(kw_only=True, slots=True)
class AttractorHeadConfig(HeadConfig):
    """h <- h - alpha F2 gelu(F1 [h ; c]), `steps` times, c the h from before without its gradient; then logits
    s (h A e_i - |e_i|^2), softcapped, e_i a row of the embedding table (PR 1589's attractor energy model).

    F2 begins at zero, A orthogonal, s at 1; s and alpha are learned. bias: the |e_i|^2.
    """

    softcap: float | None
    steps: int
    alpha: float
    bias: bool

    def __post_init__(self) -> None:
        positive(softcap=self.softcap, alpha=self.alpha)
        between(1, 64, steps=self.steps)

    def build(self, frame: Frame) -> "AttractorHead":
        return AttractorHead(self, frame)


class AttractorHead(RefiningHead):
    """The bias is one more column of the keys, with -1 in the query."""

    roles = {"alpha": "scalar", "log_gain": "scalar"}
    COLUMNS = 8  # with zeros in the others: GPUs multiply widths of a multiple of 8 fastest

    def __init__(self, config: AttractorHeadConfig, frame: Frame):
        super().__init__(config.softcap, frame, nn.Parameter(torch.zeros(())))
        self.steps, self.bias, self.table_uses = config.steps, config.bias, 1
        self.first = frame.matrix(2 * frame.dim, 2 * frame.dim)
        self.second = frame.matrix(2 * frame.dim, frame.dim, gain=0.0)
        self.alpha = nn.Parameter(torch.tensor(config.alpha))

    def query(self, x_XD: Tensor, table_VD: Tensor) -> Tensor:
        h_XD, start_XD, alpha = x_XD, x_XD.detach(), self.alpha.to(x_XD.dtype)
        for _ in range(self.steps):
            h_XD = h_XD - alpha * self.second(F.gelu(self.first(torch.cat((h_XD, start_XD), dim=-1))))
        query_XD: Tensor = self.map(h_XD)
        return F.pad(query_XD, (0, self.COLUMNS), value=-1.0) if self.bias else query_XD

    def keys(self, table_VD: Tensor) -> Tensor:
        if not self.bias:
            return table_VD
        squares_V1 = table_VD.square().sum(dim=-1, keepdim=True)
        return torch.cat((table_VD, F.pad(squares_V1, (0, self.COLUMNS - 1))), dim=-1)


@dataclass(kw_only=True, slots=True)
class RetrievalHeadConfig(HeadConfig):
    """h <- (1 - alpha) h + alpha norm(E^T softmax(beta E A h)), `steps` times; then the tied softmax (modern Hopfield
    retrieval, arXiv 2008.02217). The stored patterns are the rows of the embedding table E.

    A begins orthogonal; alpha and beta are learned.
    """

    softcap: float | None
    steps: int
    alpha: float
    beta: float

    def __post_init__(self) -> None:
        positive(softcap=self.softcap, alpha=self.alpha, beta=self.beta)
        between(1, 64, steps=self.steps)

    def build(self, frame: Frame) -> "RetrievalHead":
        return RetrievalHead(self, frame)


class RetrievalHead(RefiningHead):
    """Each step multiplies twice with the table, the logits once."""

    roles = {"alpha": "scalar", "log_beta": "scalar"}

    def __init__(self, config: RetrievalHeadConfig, frame: Frame):
        super().__init__(config.softcap, frame)
        self.steps, self.table_uses, self.norm = config.steps, 2 * config.steps + 1, frame.norm
        self.alpha = nn.Parameter(torch.tensor(config.alpha))
        self.log_beta = nn.Parameter(torch.tensor(math.log(config.beta)))

    def query(self, x_XD: Tensor, table_VD: Tensor) -> Tensor:
        """Chunks of tokens, each computed anew in the backward pass: a step holds V numbers a token."""
        chunks = x_XD.flatten(0, -2).split(chunk_rows(len(table_VD), x_XD.device))
        found = [checkpoint(self.refined, x, table_VD, use_reentrant=False, preserve_rng_state=False) for x in chunks]
        return torch.cat(found).view_as(x_XD)

    def refined(self, x_nD: Tensor, table_VD: Tensor) -> Tensor:
        """All steps."""
        table_VD, beta, alpha = table_VD.to(x_nD.dtype), self.log_beta.exp(), self.alpha.to(x_nD.dtype)
        for _ in range(self.steps):
            x_nD = torch.lerp(x_nD, self.norm(retrieved(self.map(x_nD), table_VD, beta)), alpha)
        return x_nD


def retrieved(q_XD: Tensor, table_VD: Tensor, beta: Tensor) -> Tensor:
    """E^T softmax(beta E q), the softmax in fp32."""
    weight_XV = (F.linear(q_XD, table_VD).float() * beta).softmax(dim=-1)
    return weight_XV.to(q_XD.dtype) @ table_VD
