"""How a block adds back to the residual stream. Shapes: golf/models/slots.py."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.models.layers import check_layer_text, layer_set
from golf.models.slots import Context, Frame, ResidualConfig, ResidualModule


def depth_scale(layer_scale: bool, layer: int) -> float:
    """1/sqrt(layer + 1) on what mixer and MLP read, "LN scale" (PR 315), or 1."""
    return 1 / math.sqrt(layer + 1) if layer_scale else 1.0


@dataclass(kw_only=True, slots=True)
class ResidMixConfig(ResidualConfig):
    """Each block starts from a mix of the stream and the embedded input; scales a channel (upstream baseline).

    layer_scale: see depth_scale. parallel_layers: there mixer and MLP read the same input (GPT-J; record 1.0835).
    """

    layer_scale: bool
    parallel_layers: str

    def __post_init__(self) -> None:
        check_layer_text(parallel_layers=self.parallel_layers)

    def read_scale(self, layer: int) -> float:
        return depth_scale(self.layer_scale, layer)

    def build(self, frame: Frame) -> "ResidMix":
        assert frame.layer is not None
        parallel = frame.layer in layer_set(self.parallel_layers, frame.layers, "model.residual.parallel_layers")
        return ResidMix(frame, self.read_scale(frame.layer), parallel)


class ResidMix(ResidualModule):
    """x <- a x + b x0; x <- x + s mixer(norm x); x <- x + t mlp(norm x); vectors of D with init a, s, t 1 and b 0."""

    roles = {"mix_D": "scalar", "mix0_D": "scalar", "mixer_scale_D": "scalar", "mlp_scale_D": "scalar"}

    def __init__(self, frame: Frame, scale: float, parallel: bool):
        super().__init__()
        self.norm, self.scale, self.parallel, dim = frame.norm, scale, parallel, frame.dim
        self.mix_D = nn.Parameter(torch.ones(dim))
        self.mix0_D = nn.Parameter(torch.zeros(dim))
        self.mixer_scale_D = nn.Parameter(torch.ones(dim))
        self.mlp_scale_D = nn.Parameter(torch.ones(dim))

    def mixed(self, x_BTD: Tensor, context: Context) -> Tensor:
        """What the block starts from: the stream and the embedded input."""
        return self.mix_D.to(x_BTD.dtype) * x_BTD + self.mix0_D.to(x_BTD.dtype) * context.x0_BND

    def read(self, x_BTD: Tensor) -> Tensor:
        """Return what mixer and MLP read of the stream: normed, times the block's constant."""
        return self.norm(x_BTD) if self.scale == 1.0 else self.norm(x_BTD) * self.scale

    def forward(self, x_BTD: Tensor, context: Context, mixer: nn.Module, mlp: nn.Module) -> Tensor:
        dtype = x_BTD.dtype
        x_BTD = self.mixed(x_BTD, context)
        after_BTD = x_BTD + self.mixer_scale_D.to(dtype) * mixer(self.read(x_BTD), context)
        source_BTD = x_BTD if self.parallel else after_BTD
        return after_BTD + self.mlp_scale_D.to(dtype) * mlp(self.read(source_BTD))
