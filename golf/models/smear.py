"""The previous token's vector in this one's. Shapes: golf/models/slots.py; F: the channels that a gate reads.

Where a token begins a document (bos_id; null: everywhere) nothing of the token before it comes along, so that a
document's scores do not depend on which one precedes it in the stream (PR 1851).
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.errors import UserError
from golf.fields import positive
from golf.models.slots import FeatureConfig, FeatureModule, Frame


def previous(x_BTD: Tensor, ids_BT: Tensor, bos_id: int | None) -> Tensor:
    """x of the position before, zero at position 0 and where a document begins."""
    before_BTD = F.pad(x_BTD[:, :-1], (0, 0, 1, 0))
    return before_BTD if bos_id is None else before_BTD * (ids_BT != bos_id).to(x_BTD.dtype).unsqueeze(-1)


@dataclass(kw_only=True, slots=True)
class SmearConfig(FeatureConfig):
    """(1 - g) x + g x_previous after the norm, g a learned sigmoid for each channel, 0.5 at first (PR 65; PR 374)."""

    bos_id: int | None

    def build(self, frame: Frame) -> "Smear":
        return Smear(frame.dim, self.bos_id)


class Smear(FeatureModule):
    roles = {"gate_D": "scalar"}
    after_norm = True

    def __init__(self, dim: int, bos_id: int | None):
        super().__init__()
        self.bos_id = bos_id
        self.gate_D = nn.Parameter(torch.zeros(dim))

    def forward(self, x_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        return torch.lerp(x_BTD, previous(x_BTD, ids_BT, self.bos_id), self.gate_D.sigmoid().to(x_BTD.dtype))


@dataclass(kw_only=True, slots=True)
class GatedSmearConfig(FeatureConfig):
    """x + s sigmoid(w . x[:inputs]) x_previous before the norm; w and s begin at zero (PR 1667)."""

    inputs: int
    bos_id: int | None

    def __post_init__(self) -> None:
        positive(inputs=self.inputs)

    def build(self, frame: Frame) -> "GatedSmear":
        if self.inputs > frame.dim:
            raise UserError(f"inputs={self.inputs} is more than model.dim={frame.dim}; lower it")
        return GatedSmear(self.inputs, self.bos_id)


class GatedSmear(FeatureModule):
    roles = {"weight_F": "gate", "scale": "scalar"}

    def __init__(self, inputs: int, bos_id: int | None):
        super().__init__()
        self.bos_id = bos_id
        self.weight_F = nn.Parameter(torch.zeros(inputs))
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        read_BTF = x_BTD[..., : len(self.weight_F)]
        open_BT1 = torch.sigmoid((read_BTF * self.weight_F.to(x_BTD.dtype)).sum(dim=-1, keepdim=True))
        return x_BTD + self.scale.to(x_BTD.dtype) * open_BT1 * previous(x_BTD, ids_BT, self.bos_id)
