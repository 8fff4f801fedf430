"""Two residual lanes in the last layers. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.fields import positive
from golf.models.layers import check_layer_text, layer_set
from golf.models.residual import ResidMix, depth_scale
from golf.models.slots import Context, Frame, ResidualConfig

SECOND = "second lane"


@dataclass(kw_only=True, slots=True)
class TwoLanesConfig(ResidualConfig):
    """From `layers` on, attention reads lane 0 and the MLP lane 1, and both write to both (records 1.0734 to 1.0611).

    keep: first value of how much of itself a lane keeps. Before those layers blocks are sequential. The lanes begin as
    the stream before a skip joins it, and the last block gives their mean. layers must be the last ones of the stack.
    """

    layer_scale: bool
    layers: str
    keep: float

    def __post_init__(self) -> None:
        positive(keep=self.keep)
        check_layer_text(layers=self.layers)
        if not self.layers.strip().startswith("last:"):
            raise ValueError(f"layers={self.layers!r} must be the last ones; write it as last:3 of 11")

    def read_scale(self, layer: int) -> float:
        return depth_scale(self.layer_scale, layer)

    def build(self, frame: Frame) -> ResidMix:
        assert frame.layer is not None
        scale = self.read_scale(frame.layer)
        if frame.layer not in layer_set(self.layers, frame.layers, "model.residual.layers"):
            return ResidMix(frame, scale, parallel=False)
        return TwoLanes(frame, scale, self.keep, last=frame.layer == frame.layers - 1)


class TwoLanes(ResidMix):
    """a = s attention(norm(mix(lane 0, x0))), m = t mlp(norm(lane 1)); lane_i <- keep_i lane_i + p_ai a + p_mi m.

    Lane 0 is the stream that the stack hands on (skips reach it alone, the one before the first of these blocks too);
    lane 1 is kept in the context.
    """

    roles = {**ResidMix.roles, "keep_2": "scalar", "write_22": "scalar"}

    def __init__(self, frame: Frame, scale: float, keep: float, last: bool):
        super().__init__(frame, scale, parallel=True)
        self.last = last
        self.keep_2 = nn.Parameter(torch.full((2,), keep))
        self.write_22 = nn.Parameter(torch.ones(2, 2))

    def enter(self, x_BTD: Tensor, context: Context) -> None:
        context.once(SECOND, lambda: x_BTD)

    def forward(self, x_BTD: Tensor, context: Context, mixer: nn.Module, mlp: nn.Module) -> Tensor:
        dtype = x_BTD.dtype
        self.enter(x_BTD, context)
        lane_BTD = context.memo.pop(SECOND)
        a_BTD = self.mixer_scale_D.to(dtype) * mixer(self.read(self.mixed(x_BTD, context)), context)
        m_BTD = self.mlp_scale_D.to(dtype) * mlp(self.read(lane_BTD))
        keep, write = self.keep_2.to(dtype), self.write_22.to(dtype)
        x_BTD = keep[0] * x_BTD + write[0, 0] * a_BTD + write[1, 0] * m_BTD
        lane_BTD = keep[1] * lane_BTD + write[0, 1] * a_BTD + write[1, 1] * m_BTD
        if self.last:
            return (x_BTD + lane_BTD) / 2
        context.memo[SECOND] = lane_BTD
        return x_BTD
