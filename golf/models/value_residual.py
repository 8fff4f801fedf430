"""Value residuals: the first layer's values in every later layer (arXiv 2410.17897). Shapes: golf/models/slots.py.

Three forms go by this name; they differ in who learns the mix and whether the first layer feels it. The first layer
has the part too, only to hand its values on; it stands before what adds to the values where it should hand on raw ones.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.fields import between
from golf.models.slots import Context, Frame, Heads, ValuePartConfig

FIRST = "first values"


def first_values(v_BTKC: Tensor, context: Context) -> Tensor:
    """The values of the first layer that asks in this pass."""
    first: Tensor = context.once(FIRST, lambda: v_BTKC)
    return first


class HandOn(nn.Module):
    """The first layer's part, in every form: its values stay, and are there for later layers."""

    def forward(self, v_BTKC: Tensor, h_BTD: Tensor, context: Context) -> Tensor:
        first_values(v_BTKC, context)
        return v_BTKC


@dataclass(kw_only=True, slots=True)
class HalfResidualConfig(ValuePartConfig):
    """v/2 + stopgrad(v_0)/2 (PR 675)."""

    def build(self, frame: Frame, shape: Heads) -> nn.Module:
        return HandOn() if frame.layer == 0 else HalfResidual()


class HalfResidual(nn.Module):
    def forward(self, v_BTKC: Tensor, h_BTD: Tensor, context: Context) -> Tensor:
        return (v_BTKC + first_values(v_BTKC, context).detach()) / 2


@dataclass(kw_only=True, slots=True)
class PairResidualConfig(ValuePartConfig):
    """a v_0 + b v, two learned numbers a layer, both 1/2 at first (PR 413)."""

    def build(self, frame: Frame, shape: Heads) -> nn.Module:
        return HandOn() if frame.layer == 0 else PairResidual()


class PairResidual(nn.Module):
    roles = {"mix_2": "scalar"}

    def __init__(self) -> None:
        super().__init__()
        self.mix_2 = nn.Parameter(torch.full((2,), 0.5))

    def forward(self, v_BTKC: Tensor, h_BTD: Tensor, context: Context) -> Tensor:
        first, own = self.mix_2.to(v_BTKC.dtype)
        return first * first_values(v_BTKC, context) + own * v_BTKC


@dataclass(kw_only=True, slots=True)
class GateResidualConfig(ValuePartConfig):
    """(1 - g) v + g v_0, g = sigmoid of one learned number a layer, -1.5 at first: g = 0.18 (PR 657)."""

    start: float

    def __post_init__(self) -> None:
        between(-20, 20, start=self.start)

    def build(self, frame: Frame, shape: Heads) -> nn.Module:
        return HandOn() if frame.layer == 0 else GateResidual(self.start)


class GateResidual(nn.Module):
    roles = {"gate": "scalar"}

    def __init__(self, start: float):
        super().__init__()
        self.gate = nn.Parameter(torch.tensor(start))

    def forward(self, v_BTKC: Tensor, h_BTD: Tensor, context: Context) -> Tensor:
        return torch.lerp(v_BTKC, first_values(v_BTKC, context), self.gate.sigmoid().to(v_BTKC.dtype))
