"""Gates on what each head gives. Shapes: golf/models/slots.py; F: the channels that a gate reads."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.errors import UserError
from golf.fields import between, positive
from golf.models.layers import check_layer_text, layer_set
from golf.models.slots import Frame, Heads, OutputPartConfig


@dataclass(kw_only=True, slots=True)
class HeadGateConfig(OutputPartConfig):
    """y_h * ceiling * sigmoid(sharpness * w_h . h[:inputs]) in `layers`; h is what attention reads.

    One formula for the attention output gate (12 inputs, ceiling 2, so that it begins as the identity; PR 1667), the
    gated attention of arXiv 2505.06708 (inputs null: all; init_std 0.005) and the sparse gate (12 inputs, ceiling 1;
    the 1.0634 record).
    """

    layers: str
    inputs: int | None
    ceiling: float
    sharpness: float
    init_std: float

    def __post_init__(self) -> None:
        positive(inputs=self.inputs, ceiling=self.ceiling, sharpness=self.sharpness)
        between(0, 10, init_std=self.init_std)
        check_layer_text(layers=self.layers)

    def build(self, frame: Frame, shape: Heads) -> "HeadGate | None":
        if frame.layer not in layer_set(self.layers, frame.layers):
            return None
        inputs = frame.dim if self.inputs is None else self.inputs
        if inputs > frame.dim:
            raise UserError(f"inputs={inputs} is more than model.dim={frame.dim}; lower it")
        return HeadGate(self, shape.heads, inputs)


class HeadGate(nn.Module):
    roles = {"weight_HF": "gate"}

    def __init__(self, config: HeadGateConfig, heads: int, inputs: int):
        super().__init__()
        self.ceiling, self.sharpness = config.ceiling, config.sharpness
        self.weight_HF = nn.Parameter(torch.zeros(heads, inputs))
        if config.init_std:
            nn.init.normal_(self.weight_HF, std=config.init_std)

    def forward(self, y_BTHC: Tensor, v_BTKC: Tensor, h_BTD: Tensor) -> Tensor:
        open_BTH = F.linear(h_BTD[..., : self.weight_HF.shape[1]], self.weight_HF.to(h_BTD.dtype))
        return y_BTHC * (self.ceiling * torch.sigmoid(self.sharpness * open_BTH)).unsqueeze(-1)
