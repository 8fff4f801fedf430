"""Attention whose queries do not see their own position. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

import torch
from torch import Tensor

from golf.models.attention import Attention, GQAConfig
from golf.models.kernels import masked, window_mask
from golf.models.layers import check_layer_text, layer_set
from golf.models.slots import Context, Frame, Heads


@dataclass(kw_only=True, slots=True)
class DiagonalMaskedConfig(GQAConfig):
    """In `masked_layers` a query sees the positions before its own only (PR 401 called this XSA; it is not).

    Position 0, which has none before it, sees itself. The mask needs the general kernel: there it costs T x T. Here
    scoring masks as training does; the PR scored without the mask, which is the likelier cause of its 1.1797 BPB.
    """

    masked_layers: str

    def __post_init__(self) -> None:
        GQAConfig.__post_init__(self)
        check_layer_text(masked_layers=self.masked_layers)

    def build(self, frame: Frame) -> "DiagonalMasked":
        return DiagonalMasked(self, frame, self.shape(frame.dim))


class DiagonalMasked(Attention):
    """Attention with the diagonal masked out in some layers."""

    def __init__(self, config: DiagonalMaskedConfig, frame: Frame, shape: Heads):
        super().__init__(config, frame, shape)
        self.masked = frame.layer in layer_set(config.masked_layers, frame.layers, "model.mixer.masked_layers")

    def why_whole(self, length: int) -> str:
        if not self.masked:
            return super().why_whole(length)
        return "model.mixer.masked_layers has a mask of whole texts; try model.mixer.masked_layers=none"

    def mix(self, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, context: Context) -> Tensor:
        if not self.masked:
            return super().mix(q_BTHC, k_BTKC, v_BTKC, context)
        length, device = q_BTHC.shape[1], q_BTHC.device
        seen_TT = window_mask(length, length if self.window is None else self.window, device)
        own_TT = torch.diag(torch.arange(length, device=device) > 0)
        return masked(q_BTHC, k_BTKC, v_BTKC, seen_TT & ~own_TT)
