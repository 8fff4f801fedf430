"""A language model that is one product of matrices, one for each token. Shapes: golf/models/slots.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, positive
from golf.models.norms import NORM_EPS, norm
from golf.models.slots import Context, Frame, ResidualConfig, StackConfig, StackModule


@dataclass(kw_only=True, slots=True)
class MPSConfig(StackConfig):
    """h <- RMSNorm(h A[token]), from a learned h0: a matrix product state of bond D (PR 1589). The state is
    what the head reads, after the token is absorbed; no block is built: mixer, mlp and residual are not used.

    A[token] begins as identity I + std N(0, 1/D); far from the identity most starts never train. late: the head reads
    the state before the token is absorbed, so that the last token counts for nothing (a mistake of the PR). detach: no
    gradient passes more than so many tokens back (null: all the way).
    """

    identity: float
    std: float
    late: bool
    detach: int | None

    def __post_init__(self) -> None:
        between(0, 10, identity=self.identity, std=self.std)
        positive(detach=self.detach)

    def build(self, frame: Frame, make_block: Callable[[int], nn.Module], residual: ResidualConfig) -> "MPS":
        return MPS(self, frame)


class MPS(StackModule):
    """ids_BN -> h_BND, in fp32 inside: errors of a product grow with its length."""

    roles = {"core_VF": "generator", "start_D": "generator"}
    reads_input = False

    def __init__(self, config: MPSConfig, frame: Frame):
        super().__init__()
        self.late, self.detach, D = config.late, config.detach, frame.dim
        noise_VDD = torch.empty(frame.vocab_size, D, D).normal_(std=config.std * D**-0.5)
        self.core_VF = nn.Parameter((noise_VDD + config.identity * torch.eye(D)).flatten(1))  # F = D * D
        self.start_D = nn.Parameter(torch.empty(D).normal_())

    def forward(self, x_BND: Tensor, context: Context) -> Tensor:
        ids_BN = context.padded_ids()
        a_BNDD = F.embedding(ids_BN, self.core_VF).unflatten(-1, (x_BND.shape[-1], -1))
        h_BND: Tensor = states(self.start_D, a_BNDD, self.detach)
        if self.late:
            h_BND = before(self.start_D, h_BND)
        return h_BND.to(x_BND.dtype)

    def stored_depth(self) -> int:
        return 0

    def effective_depth(self) -> int:
        return 0

    def repeated_params(self) -> int:
        return self.start_D.numel() ** 2  # the matrix that a token is multiplied by


def before(start_D: Tensor, h_BND: Tensor) -> Tensor:
    """The state that each token meets: h of the token before it."""
    return torch.cat((start_D.expand(len(h_BND), 1, -1), h_BND[:, :-1]), dim=1)


# An operator, its backward pass too: left open to torch.compile, the loop would be unrolled into a graph of all tokens.
@torch.library.custom_op("golf::mps_states", mutates_args=())
def states(start_D: Tensor, a_BNDD: Tensor, detach: int | None) -> Tensor:
    """h_BND: each h is norm(h A) of the one before; no gradient passes a multiple of `detach`."""
    h_BD, found = start_D.expand(len(a_BNDD), -1), []
    for a_BDD in a_BNDD.unbind(1):
        h_BD = norm(torch.einsum("bd,bde->be", h_BD, a_BDD))
        found.append(h_BD)
    return torch.stack(found, dim=1)


@states.register_fake
def _(start_D: Tensor, a_BNDD: Tensor, detach: int | None) -> Tensor:
    return a_BNDD.new_empty(a_BNDD.shape[:-1])


@torch.library.custom_op("golf::mps_states_backward", mutates_args=())
def states_backward(
    gradient_BND: Tensor, start_D: Tensor, a_BNDD: Tensor, h_BND: Tensor, detach: int | None
) -> tuple[Tensor, Tensor]:
    """Gradients of start_D and a_BNDD. With y = h A and r = 1 / rms(y), that of y is r (g - h mean(g h))."""
    before_BND = before(start_D, h_BND)
    y_BND = torch.einsum("bnd,bnde->bne", before_BND, a_BNDD)
    r_BN1 = (y_BND.square().mean(dim=-1, keepdim=True) + NORM_EPS).rsqrt()
    g_BD, found = torch.zeros_like(gradient_BND[:, 0]), []
    for t in reversed(range(h_BND.shape[1])):
        g_BD, h_BD = g_BD + gradient_BND[:, t], h_BND[:, t]
        found.append(r_BN1[:, t] * (g_BD - h_BD * (g_BD * h_BD).mean(dim=-1, keepdim=True)))
        cut = detach is not None and t > 0 and t % detach == 0
        g_BD = torch.zeros_like(g_BD) if cut else torch.einsum("be,bde->bd", found[-1], a_BNDD[:, t])
    dy_BND = torch.stack(found[::-1], dim=1)
    return g_BD.sum(dim=0), torch.einsum("bnd,bne->bnde", before_BND, dy_BND)


@states_backward.register_fake
def _(
    gradient_BND: Tensor, start_D: Tensor, a_BNDD: Tensor, h_BND: Tensor, detach: int | None
) -> tuple[Tensor, Tensor]:
    return torch.empty_like(start_D), torch.empty_like(a_BNDD)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    start_D, a_BNDD, ctx.detach = inputs
    ctx.save_for_backward(start_D, a_BNDD, output)


def _differentiate(ctx: Any, gradient_BND: Tensor) -> tuple[Tensor, Tensor, None]:
    return *states_backward(gradient_BND, *ctx.saved_tensors, ctx.detach), None


states.register_autograd(_differentiate, setup_context=_keep)
