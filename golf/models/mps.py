"""A language model that is one product of matrices, one for each token. Shapes: golf/models/slots.py."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, positive
from golf.models.norms import norm
from golf.models.slots import Context, Frame, ResidualConfig, StackConfig, StackModule


@dataclass(kw_only=True, slots=True)
class MPSConfig(StackConfig):
    """h <- RMSNorm(h A[token]), from a learned h0: a matrix product state of bond D (PR 1589, section 9 of the spec).
    The state is what the head reads, after the token is absorbed; no block is built and the embedding is not read.

    std: A[token] begins as the identity and std N(0, 1/D); far from the identity most starts never train. detach: no
    gradient passes more than so many tokens back (null: all the way).
    """

    std: float
    detach: int | None

    def __post_init__(self) -> None:
        between(0, 10, std=self.std)
        positive(detach=self.detach)

    def build(self, frame: Frame, make_block: Callable[[int], nn.Module], residual: ResidualConfig) -> "MPS":
        return MPS(self, frame)


class MPS(StackModule):
    """ids_BN -> h_BND, in fp32 inside: errors of a product grow with its length."""

    roles = {"core_VF": "generator", "start_D": "generator"}

    def __init__(self, config: MPSConfig, frame: Frame):
        super().__init__()
        self.detach, D = config.detach, frame.dim
        noise_VDD = torch.empty(frame.vocab_size, D, D).normal_(std=config.std * D**-0.5)
        self.core_VF = nn.Parameter((noise_VDD + torch.eye(D)).flatten(1))  # F = D * D
        self.start_D = nn.Parameter(torch.empty(D).normal_())

    def forward(self, x_BND: Tensor, context: Context) -> Tensor:
        return self.product(context.padded_ids()).to(x_BND.dtype)

    @torch.compiler.disable  # a compiler would unroll the loop into one graph of all tokens
    def product(self, ids_BN: Tensor) -> Tensor:
        (B, N), D = ids_BN.shape, self.start_D.numel()
        a_BNDD = F.embedding(ids_BN, self.core_VF).view(B, N, D, D)
        h_BD = self.start_D.expand(B, D)
        states = []
        for t in range(N):
            if self.detach is not None and t and t % self.detach == 0:
                h_BD = h_BD.detach()
            h_BD = norm(torch.einsum("bd,bde->be", h_BD, a_BNDD[:, t]))
            states.append(h_BD)
        return torch.stack(states, dim=1)

    def stored_depth(self) -> int:
        return 0

    def effective_depth(self) -> int:
        return 0

    def repeated_params(self) -> int:
        return self.start_D.numel() ** 2  # the matrix that a token is multiplied by
