"""Rows mixed by a Hadamard transform before they are rounded, unmixed when they are read ("OptRot", PR 401's F1).

A rotation of outputs leaves what the inputs are, so that Hessians stay valid, and every row becomes more Gaussian:
outliers are spread, and what a coder could have gained from rows of different width is lost.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from golf.quant.formats import FormatConfig, Parts
from golf.quant.rounding import PLAIN, How


@dataclass(kw_only=True, slots=True)
class RotatedConfig(FormatConfig):
    """Another format of W' = H W; H has blocks of the largest power of two that divides the rows."""

    inner: FormatConfig

    @property
    def reads_hessians(self) -> bool:
        return self.inner.reads_hessians

    def encode(self, w_B: Tensor, how: How = PLAIN) -> Parts:
        return self.inner.encode(rotated(w_B.float()), how)

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        return rotated(self.inner.decode(parts, shape))

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return self.inner.layout(shape)

    def predict_bits(self, shape: tuple[int, ...]) -> float:
        return self.inner.predict_bits(shape)

    def rounds(self, shape: tuple[int, ...]) -> bool:
        return self.inner.rounds(shape)

    def dials(self, shape: tuple[int, ...]) -> bool:
        return self.inner.dials(shape)


def rotated(w_B: Tensor) -> Tensor:
    """H w of each tensor of a stack, over its rows; H is symmetric and orthonormal: twice is the tensor itself. Vectors
    stay as they are."""
    if w_B.ndim < 3:
        return w_B
    rows = w_B.shape[1]
    size = rows & -rows
    x = w_B.reshape(len(w_B), rows // size, size, -1)
    half = 1
    while half < size:
        pair = x.view(*x.shape[:2], size // (2 * half), 2, half, -1)
        first, second = pair[:, :, :, 0], pair[:, :, :, 1]
        x = torch.stack((first + second, first - second), dim=3).view(x.shape)
        half *= 2
    return (x / math.sqrt(size)).view(w_B.shape)
