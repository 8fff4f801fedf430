"""Channel mixers. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

from torch import Tensor, nn

from golf.fields import between, positive
from golf.models.activations import ActivationConfig
from golf.models.slots import Frame, MLPConfig


@dataclass(kw_only=True, slots=True)
class UngatedConfig(MLPConfig):
    """down(activation(up(h))), hidden width expand * D (upstream baseline)."""

    expand: float
    activation: ActivationConfig

    def __post_init__(self) -> None:
        between(0.01, 1000, expand=self.expand)

    def build(self, frame: Frame) -> "Ungated":
        return Ungated(self, frame, max(1, round(self.expand * frame.dim)))


class Ungated(nn.Module):
    """h_BTD -> y_BTD."""

    def __init__(self, config: UngatedConfig, frame: Frame, hidden: int):
        super().__init__()
        self.up = frame.matrix(frame.dim, hidden)
        self.down = frame.matrix(hidden, frame.dim, residual=True)
        self.activation = config.activation.build(hidden)

    def forward(self, h_BTD: Tensor) -> Tensor:
        return self.down(self.activation(self.up(h_BTD)))


@dataclass(kw_only=True, slots=True)
class GatedConfig(MLPConfig):
    """down(activation(gate(h)) * up(h)) (arXiv 2002.05202). Hidden width: 2/3 of expand * D to the nearest multiple
    of `multiple`, which is the parameters of the ungated MLP at the same `expand`."""

    expand: float
    multiple: int
    activation: ActivationConfig

    def __post_init__(self) -> None:
        between(0.01, 1000, expand=self.expand)
        positive(multiple=self.multiple)

    def build(self, frame: Frame) -> "Gated":
        units = max(1, round(2 / 3 * self.expand * frame.dim / self.multiple))
        return Gated(self, frame, self.multiple * units)


class Gated(nn.Module):
    """h_BTD -> y_BTD."""

    def __init__(self, config: GatedConfig, frame: Frame, hidden: int):
        super().__init__()
        self.gate = frame.matrix(frame.dim, hidden)
        self.up = frame.matrix(frame.dim, hidden)
        self.down = frame.matrix(hidden, frame.dim, residual=True)
        self.activation = config.activation.build(hidden)

    def forward(self, h_BTD: Tensor) -> Tensor:
        return self.down(self.activation(self.gate(h_BTD)) * self.up(h_BTD))
