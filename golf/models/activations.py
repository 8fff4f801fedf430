"""Activations of an MLP. Shapes: golf/models/slots.py."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, one_of


@dataclass(kw_only=True, slots=True)
class ActivationConfig:
    """The slot: module(u_BTM) -> u_BTM."""

    def build(self, hidden: int) -> nn.Module:
        raise NotImplementedError


POINTWISE: dict[str, Callable[..., Any]] = {"silu": F.silu, "gelu": F.gelu, "relu": F.relu, "sigmoid": torch.sigmoid}


@dataclass(kw_only=True, slots=True)
class PointwiseConfig(ActivationConfig):
    """One of torch's functions."""

    name: str

    def __post_init__(self) -> None:
        one_of("name", self.name, tuple(POINTWISE))

    def build(self, hidden: int) -> "Pointwise":
        return Pointwise(self.name)


class Pointwise(nn.Module):
    def __init__(self, name: str):
        super().__init__()
        self.function = POINTWISE[name]

    def forward(self, u_BTM: Tensor) -> Tensor:
        return self.function(u_BTM)


@dataclass(kw_only=True, slots=True)
class SquareConfig(ActivationConfig):
    """u^2 where u > 0, (slope u)^2 elsewhere. Slope 0: squared ReLU (Primer, arXiv 2109.08668); 0.5: PR 657's leaky."""

    slope: float

    def __post_init__(self) -> None:
        between(0, 1, slope=self.slope)

    def build(self, hidden: int) -> "Square":
        return Square(self.slope)


class Square(nn.Module):
    def __init__(self, slope: float):
        super().__init__()
        self.slope = slope

    def forward(self, u_BTM: Tensor) -> Tensor:
        return (F.leaky_relu(u_BTM, self.slope) if self.slope else F.relu(u_BTM)).square()


@dataclass(kw_only=True, slots=True)
class StarConfig(ActivationConfig):
    """s * square(u) + b with a learned s (1 at first) and b (0) for each hidden channel (PR 462; Star-ReLU: arXiv
    2210.13452)."""

    slope: float

    def __post_init__(self) -> None:
        between(0, 1, slope=self.slope)

    def build(self, hidden: int) -> "Star":
        return Star(self.slope, hidden)


class Star(nn.Module):
    roles = {"scale_M": "scalar", "shift_M": "scalar"}

    def __init__(self, slope: float, hidden: int):
        super().__init__()
        self.square = Square(slope)
        self.scale_M = nn.Parameter(torch.ones(hidden))
        self.shift_M = nn.Parameter(torch.zeros(hidden))

    def forward(self, u_BTM: Tensor) -> Tensor:
        return self.scale_M.to(u_BTM.dtype) * self.square(u_BTM) + self.shift_M.to(u_BTM.dtype)
