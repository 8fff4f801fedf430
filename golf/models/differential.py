"""Differential attention. Shapes: golf/models/slots.py."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.models.attention import Attention, GQAConfig
from golf.models.slots import Context, Frame, Heads


@dataclass(kw_only=True, slots=True)
class DifferentialConfig(GQAConfig):
    """Two attention maps of half-width queries and keys, the second subtracted (arXiv 2410.05258; PR 675).

    The values stay whole: the PR's later form, which split them too, is no difference of maps any more.
    """

    split: ClassVar[int] = 2

    def build(self, frame: Frame) -> "Differential":
        return Differential(self, frame, self.shape(frame.dim))


class Differential(Attention):
    """y = (1 - lambda_0) norm(attend(q1, k1, v) - lambda attend(q2, k2, v)), norm over a head's channels.

    lambda = exp(a1.b1) - exp(a2.b2) + lambda_0, lambda_0 = 0.8 - 0.6 exp(-0.3 layer), vectors of C/2 from N(0, 0.1^2).
    """

    roles = {"gain_H": "scalar", "lambda_22c": "scalar"}

    def __init__(self, config: GQAConfig, frame: Frame, shape: Heads):
        super().__init__(config, frame, shape)
        assert frame.layer is not None
        self.lambda_0 = 0.8 - 0.6 * math.exp(-0.3 * frame.layer)
        self.lambda_22c = nn.Parameter(torch.empty(2, 2, shape.head_dim // 2).normal_(std=0.1))

    def weight(self) -> Tensor:
        """lambda: how much of the second map is subtracted, fp32."""
        first, second = self.lambda_22c.prod(dim=1).sum(dim=-1).exp()
        return first - second + self.lambda_0

    def mix(self, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, context: Context) -> Tensor:
        """Both maps in one kernel call: halves padded with zeros to the values' width, the scale put right."""
        half = q_BTHC.shape[-1]
        q_BTHC = torch.cat((q_BTHC[:, :, 0::2], q_BTHC[:, :, 1::2]), dim=2) * math.sqrt(2)
        k_BTKC = torch.cat((k_BTKC[:, :, 0::2], k_BTKC[:, :, 1::2]), dim=2)
        both_BTHC = torch.cat((v_BTKC, v_BTKC), dim=2)
        y_BTHC = context.attend(F.pad(q_BTHC, (0, half)), F.pad(k_BTKC, (0, half)), both_BTHC, self.window)
        first_BTHC, second_BTHC = y_BTHC.chunk(2, dim=2)
        return (1 - self.lambda_0) * self.norm(first_BTHC - self.weight().to(first_BTHC.dtype) * second_BTHC)
