"""Channel mixers. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between
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
