"""Channel mixers. Shapes: golf/models/slots.py."""

import math
from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, positive
from golf.models.slots import LinearConfig, MLPConfig


@dataclass(kw_only=True, slots=True)
class Relu2Config(MLPConfig):
    """down(relu(up(h))^2), hidden width expand * D (Primer, arXiv 2109.08668; upstream baseline)."""

    expand: float

    def __post_init__(self) -> None:
        between(0.01, 1000, expand=self.expand)

    def build(self, dim: int, linear: LinearConfig) -> "Relu2":
        return Relu2(dim, max(1, round(self.expand * dim)), linear)


class Relu2(nn.Module):
    """h_BTD -> y_BTD."""

    def __init__(self, dim: int, hidden: int, linear: LinearConfig):
        super().__init__()
        self.up = linear.build(dim, hidden)
        self.down = linear.build(hidden, dim, residual=True)

    def forward(self, h_BTD: Tensor) -> Tensor:
        return self.down(F.relu(self.up(h_BTD)).square())


@dataclass(kw_only=True, slots=True)
class SwiGLUConfig(MLPConfig):
    """down(silu(gate(h)) * up(h)) (arXiv 2002.05202). Hidden width: 2/3 of expand * D, up to a multiple of `multiple`,
    which is 1,024 at expand 3 and D 512: the parameters of the ungated MLP (PR 584)."""

    expand: float
    multiple: int

    def __post_init__(self) -> None:
        between(0.01, 1000, expand=self.expand)
        positive(multiple=self.multiple)

    def build(self, dim: int, linear: LinearConfig) -> "SwiGLU":
        return SwiGLU(dim, self.multiple * math.ceil(int(2 / 3 * self.expand * dim) / self.multiple), linear)


class SwiGLU(nn.Module):
    """h_BTD -> y_BTD."""

    def __init__(self, dim: int, hidden: int, linear: LinearConfig):
        super().__init__()
        self.gate = linear.build(dim, hidden)
        self.up = linear.build(dim, hidden)
        self.down = linear.build(hidden, dim, residual=True)

    def forward(self, h_BTD: Tensor) -> Tensor:
        return self.down(F.silu(self.gate(h_BTD)) * self.up(h_BTD))
