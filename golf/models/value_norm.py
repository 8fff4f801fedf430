"""Values normed as far as a learned gate says. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.models.norms import Norm
from golf.models.slots import Context, Frame, Heads, ValuePartConfig


@dataclass(kw_only=True, slots=True)
class NormGateConfig(ValuePartConfig):
    """g norm(v) + (1 - g) v, g = sigmoid of one learned number a key/value head, 0 at first (PR 584, ablation 4)."""

    def build(self, frame: Frame, shape: Heads) -> "NormGate":
        return NormGate(shape.kv_heads, frame.norm)


class NormGate(nn.Module):
    """Changes the length of a value, never its direction."""

    roles = {"gate_K": "scalar"}

    def __init__(self, kv_heads: int, norm: Norm):
        super().__init__()
        self.norm = norm
        self.gate_K = nn.Parameter(torch.zeros(kv_heads))

    def forward(self, v_BTKC: Tensor, h_BTD: Tensor, context: Context) -> Tensor:
        return torch.lerp(v_BTKC, self.norm(v_BTKC), self.gate_K.sigmoid().to(v_BTKC.dtype)[:, None])
