"""Layers that share their matrices and differ by low-rank deltas. Shapes: golf/models/slots.py."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.errors import UserError
from golf.fields import between, positive
from golf.models.slots import Frame, LinearConfig


@dataclass(kw_only=True, slots=True)
class SharedLoRAConfig(LinearConfig):
    """`blocks` sets of matrices for all layers, each used by consecutive layers; a layer adds its own x A B (PR 675).

    Everything that is no matrix (scales, gains) stays a layer's own. A ~ N(0, 1/inputs); B ~ N(0, b_std^2), zero by
    default: the PR's small random B brought loss spikes. dense: the shared matrices, and those outside of layers.
    """

    blocks: int
    rank: int
    b_std: float
    dense: LinearConfig

    def __post_init__(self) -> None:
        positive(blocks=self.blocks)
        between(1, 2**16, rank=self.rank)
        between(0, 10, b_std=self.b_std)

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        if frame.layer is None:
            return self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        if self.blocks > frame.layers:
            raise UserError(f"model.linear.blocks={self.blocks} is more than model.layers={frame.layers}; lower it")
        key = ("shared matrix", frame.layer * self.blocks // frame.layers, frame.kind)
        owner = key not in frame.memo
        if owner:
            frame.memo[key] = self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        return SharedLoRA(frame.memo[key], owner, inputs, outputs, self.rank, self.b_std)


class SharedLoRA(nn.Module):
    """x_..I -> W x + (x A) B. The first layer of a block owns W; the others hold it without registering it, so that
    it has one name, one gradient and one place in the artifact."""

    roles = {"a_IR": "adapter", "b_RO": "adapter"}

    def __init__(self, base: nn.Module, owner: bool, inputs: int, outputs: int, rank: int, b_std: float):
        super().__init__()
        if owner:
            self.base = base
        self.held = (base,)  # a tuple: modules in it are not this module's children
        self.borrowed = 0 if owner else sum(p.numel() for p in base.parameters())
        self.a_IR = nn.Parameter(torch.empty(inputs, rank).normal_(std=1 / math.sqrt(inputs)))
        self.b_RO = nn.Parameter(torch.zeros(rank, outputs))
        if b_std:
            nn.init.normal_(self.b_RO, std=b_std)

    def forward(self, x: Tensor) -> Tensor:
        delta = F.linear(F.linear(x, self.a_IR.T.to(x.dtype)), self.b_RO.T.to(x.dtype))
        return self.held[0](x) + delta
