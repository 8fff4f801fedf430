"""How blocks are visited. Shapes: golf/models/slots.py."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.errors import UserError
from golf.models.slots import Context, StackConfig


@dataclass(kw_only=True, slots=True)
class PlainConfig(StackConfig):
    """Every block once, in order."""

    def build(self, dim: int, layers: int, make_block: Callable[[int], nn.Module]) -> "Plain":
        return Plain(layers, make_block)


class Plain(nn.Module):
    """x_BTD -> x_BTD."""

    def __init__(self, layers: int, make_block: Callable[[int], nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(make_block(layer) for layer in range(layers))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        for block in self.blocks:
            x_BTD = block(x_BTD, context)
        return x_BTD


@dataclass(kw_only=True, slots=True)
class UNetConfig(StackConfig):
    """U-Net skips: the first half of the blocks pushes its outputs, the second half adds them, last in, first out."""

    def build(self, dim: int, layers: int, make_block: Callable[[int], nn.Module]) -> "UNet":
        if layers < 2:
            raise UserError(f"model.layers={layers} leaves U-Net skips nothing to join; try model/stack=plain")
        return UNet(dim, layers, make_block)


class UNet(nn.Module):
    """x_BTD -> x_BTD; before block L//2 + j: x <- x + w_j * pop(), w_j of D, init 1 (upstream baseline)."""

    roles = {"skip_scale_JD": "scalar"}

    def __init__(self, dim: int, layers: int, make_block: Callable[[int], nn.Module]):
        super().__init__()
        self.blocks = nn.ModuleList(make_block(layer) for layer in range(layers))
        self.encoders = layers // 2
        self.skip_scale_JD = nn.Parameter(torch.ones(self.encoders, dim))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        outputs: list[Tensor] = []
        for layer, block in enumerate(self.blocks):
            if layer >= self.encoders and outputs:
                scale_D = self.skip_scale_JD[layer - self.encoders]
                x_BTD = x_BTD + scale_D.to(x_BTD.dtype) * outputs.pop()
            x_BTD = block(x_BTD, context)
            if layer < self.encoders:
                outputs.append(x_BTD)
        return x_BTD
