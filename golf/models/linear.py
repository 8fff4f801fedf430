"""Dense weight matrices. Shapes: golf/models/slots.py."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import one_of
from golf.models.init import orthogonal_
from golf.models.slots import Frame, LinearConfig


@dataclass(kw_only=True, slots=True)
class DenseConfig(LinearConfig):
    """A full matrix.

    init: uniform within +-1/sqrt(inputs) (upstream baseline) or orthogonal (PR 162's line of records). residual: what
    writes to the residual stream begins at zero, or is scaled by 1/sqrt(2 * layers) (muP-like).
    """

    init: str
    residual: str

    def __post_init__(self) -> None:
        one_of("init", self.init, ("uniform", "orthogonal"))
        one_of("residual", self.residual, ("zero", "scaled"))

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> "Dense":
        dense = Dense(inputs, outputs)
        if residual:
            gain *= 0.0 if self.residual == "zero" else 1 / math.sqrt(2 * frame.layers)
        if self.init == "uniform":
            bound = gain / math.sqrt(inputs)
            nn.init.uniform_(dense.weight, -bound, bound)
        elif gain:
            orthogonal_(dense.weight, gain)
        else:
            nn.init.zeros_(dense.weight)
        return dense


def dense_std(inputs: int) -> float:
    """Of the entries of a uniform start."""
    return 1 / math.sqrt(3 * inputs)


class Dense(nn.Module):
    """x_..I -> y_..O without a bias; the fp32 weight is cast to the activations' type on use."""

    roles = {"weight": "matrix"}

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight.to(x.dtype))
