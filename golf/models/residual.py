"""How a block adds back to the residual stream. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.models.norms import norm
from golf.models.slots import Context, ResidualConfig


@dataclass(kw_only=True, slots=True)
class ResidMixConfig(ResidualConfig):
    """Each block starts from a mix of the stream and the embedded input; scales a channel (upstream baseline)."""

    def build(self, dim: int, layer: int, layers: int) -> "ResidMix":
        return ResidMix(dim)


class ResidMix(nn.Module):
    """x <- a x + b x0; x <- x + s mixer(norm x); x <- x + t mlp(norm x); vectors of D with init a, s, t 1 and b 0."""

    roles = {"mix_D": "scalar", "mix0_D": "scalar", "mixer_scale_D": "scalar", "mlp_scale_D": "scalar"}

    def __init__(self, dim: int):
        super().__init__()
        self.mix_D = nn.Parameter(torch.ones(dim))
        self.mix0_D = nn.Parameter(torch.zeros(dim))
        self.mixer_scale_D = nn.Parameter(torch.ones(dim))
        self.mlp_scale_D = nn.Parameter(torch.ones(dim))

    def forward(self, x_BTD: Tensor, context: Context, mixer: nn.Module, mlp: nn.Module) -> Tensor:
        dtype = x_BTD.dtype
        x_BTD = self.mix_D.to(dtype) * x_BTD + self.mix0_D.to(dtype) * context.x0_BTD
        x_BTD = x_BTD + self.mixer_scale_D.to(dtype) * mixer(norm(x_BTD), context)
        return x_BTD + self.mlp_scale_D.to(dtype) * mlp(norm(x_BTD))
