"""Dense weight matrices. Shapes: golf/models/slots.py."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.models.slots import LinearConfig


@dataclass(kw_only=True, slots=True)
class DenseConfig(LinearConfig):
    """A full matrix: uniform +-1/sqrt(inputs), or zero where it writes to the residual stream (upstream baseline)."""

    def build(self, inputs: int, outputs: int, *, residual: bool = False) -> "Dense":
        return Dense(inputs, outputs, 0.0 if residual else 1 / math.sqrt(inputs))


class Dense(nn.Module):
    """x_..I -> y_..O without a bias; the fp32 weight is cast to the activations' type on use."""

    roles = {"weight": "matrix"}

    def __init__(self, inputs: int, outputs: int, bound: float):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs).uniform_(-bound, bound))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))
