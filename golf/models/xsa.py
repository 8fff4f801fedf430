"""Exclusive self-attention. Shapes: golf/models/slots.py; G: query heads of a key/value head."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.models.layers import check_layer_text, layer_set
from golf.models.slots import Frame, Heads, OutputPartConfig


@dataclass(kw_only=True, slots=True)
class XSAConfig(OutputPartConfig):
    """In `layers`: what a head gives loses its part along its own position's value (arXiv 2603.09078; PR 265).

    gated: only the share tanh(a) of it, a learned for each head, 0 at first (PR 2018).
    """

    layers: str
    gated: bool

    def __post_init__(self) -> None:
        check_layer_text(layers=self.layers)

    def build(self, frame: Frame, shape: Heads) -> "XSA | None":
        if frame.layer not in layer_set(self.layers, frame.layers):
            return None
        return XSA(shape.heads if self.gated else None)


class XSA(nn.Module):
    """y - (y . v^) v^ with v^ the unit value of the same position, shared by the query heads of a group.

    Position 0 attends to nothing but itself, so that ungated its output is 0.
    """

    roles = {"share_H": "scalar"}

    def __init__(self, gated_heads: int | None):
        super().__init__()
        self.share_H = None if gated_heads is None else nn.Parameter(torch.zeros(gated_heads))

    def forward(self, y_BTHC: Tensor, v_BTKC: Tensor, h_BTD: Tensor) -> Tensor:
        y_BTKGC = y_BTHC.unflatten(2, (v_BTKC.shape[2], -1))
        unit_BTK1C = F.normalize(v_BTKC, dim=-1, eps=1e-12).unsqueeze(3)
        along_BTKGC = (y_BTKGC * unit_BTK1C).sum(dim=-1, keepdim=True) * unit_BTK1C
        if self.share_H is not None:
            share_KG1 = self.share_H.tanh().to(y_BTHC.dtype).view(y_BTKGC.shape[2], -1, 1)
            along_BTKGC = share_KG1 * along_BTKGC
        return (y_BTKGC - along_BTKGC).flatten(2, 3)
