"""A narrow message between an encoder and a decoder that sees a few tokens. Shapes: golf/models/slots.py; E: the width
of the decoder's embedding, W: tokens that it sees, m: the message.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, positive
from golf.models.slots import Context, Frame, ResidualConfig, StackConfig, StackModule


@dataclass(kw_only=True, slots=True)
class AgentsConfig(StackConfig):
    """All that the stack `inner` knows reaches the head through `message` numbers a position; a decoder joins them to
    its own embeddings of the last `context` positions and turns both into what the head reads (PR 1589's
    "communicating agents", with all positions trained).

    mean: the message is the mean of those so far, as in the PR, instead of the position's own. width: E; hidden: of the
    decoder's two layers; init_std: of its embedding.
    """

    inner: StackConfig
    message: int
    mean: bool
    context: int
    width: int
    hidden: int
    init_std: float

    def __post_init__(self) -> None:
        between(1, 2**16, message=self.message, width=self.width, hidden=self.hidden)
        between(1, 1024, context=self.context)
        positive(init_std=self.init_std)

    def build(self, frame: Frame, make_block: Callable[[int], nn.Module], residual: ResidualConfig) -> "Agents":
        return Agents(self, frame, self.inner.build(frame, make_block, residual))


class Agents(StackModule):
    """x_BND -> decoder([embeddings of positions t-W+1 .. t ; m_t])_BND."""

    roles = {"table_VE": "embedding"}

    def __init__(self, config: AgentsConfig, frame: Frame, inner: StackModule):
        super().__init__()
        self.norm = frame.norm
        self.inner, self.starts, self.mean, self.context = inner, inner.starts, config.mean, config.context
        frame = frame.at_model()
        self.table_VE = nn.Parameter(torch.empty(frame.vocab_size, config.width).normal_(std=config.init_std))
        self.message = frame.matrix(frame.dim, config.message)
        self.first = frame.matrix(config.context * config.width + config.message, config.hidden)
        self.second = frame.matrix(config.hidden, config.hidden)
        self.out = frame.matrix(config.hidden, frame.dim)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        m_BTm = self.message(self.norm(self.inner(x_BTD, context)))
        if self.mean:
            m_BTm = mean_so_far(m_BTm)
        h_BTM = torch.cat((self.recent(context.padded_ids(), x_BTD.dtype), m_BTm), dim=-1)
        for layer in (self.first, self.second):
            h_BTM = self.norm(F.gelu(layer(h_BTM)))
        y_BTD: Tensor = self.out(h_BTM)
        return y_BTD

    def recent(self, ids_BT: Tensor, dtype: torch.dtype) -> Tensor:
        """Normed embeddings of the last positions side by side, the oldest first: (B, T, W * E); zeros before all."""
        e_BTE = self.norm(F.embedding(ids_BT, self.table_VE).to(dtype))
        padded_BTE = F.pad(e_BTE, (0, 0, self.context - 1, 0))
        length = ids_BT.shape[1]
        return torch.cat([padded_BTE[:, start : start + length] for start in range(self.context)], dim=-1)

    def stored_depth(self) -> int:
        return self.inner.stored_depth()

    def effective_depth(self) -> int:
        return self.inner.effective_depth()

    def repeated_params(self) -> int:
        return self.inner.repeated_params()


def mean_so_far(m_BTm: Tensor) -> Tensor:
    """The mean over positions 0 .. t, summed in fp32."""
    count_T1 = torch.arange(1, m_BTm.shape[1] + 1, device=m_BTm.device)[:, None]
    return (m_BTm.float().cumsum(dim=1) / count_T1).to(m_BTm.dtype)
