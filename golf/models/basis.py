"""Layers whose matrices of one kind are combinations of one basis. Shapes: golf/models/slots.py."""

from dataclasses import dataclass

from torch import Tensor, nn

from golf.fields import between, positive
from golf.models.init import orthogonal_
from golf.models.linear import Dense, dense_std
from golf.models.low_rank import factor
from golf.models.slots import Frame, LinearConfig


@dataclass(kw_only=True, slots=True)
class BasisConfig(LinearConfig):
    """W = U C: U for each kind of matrix (query, key, ...) and group of layers, C for each layer (PR 1589;
    basis sharing, arXiv 2410.03765).

    rank: columns of U, cut to what a matrix has. layers: how many neighbouring layers have one basis (null: all). std:
    of the entries of W whose projection C begins as (PR 1589: 0.02; null: that of a dense one); zero
    where the matrix writes to the residual stream. dense: matrices outside of layers.
    """

    rank: int
    layers: int | None
    std: float | None
    dense: LinearConfig

    def __post_init__(self) -> None:
        between(1, 2**16, rank=self.rank)
        positive(layers=self.layers, std=self.std)

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        if frame.layer is None:
            return self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        rank = min(self.rank, inputs, outputs)
        group = 0 if self.layers is None else frame.layer // self.layers
        name = frame.share("basis", (group, frame.kind), lambda: orthonormal(rank, outputs))
        std = self.std if self.std is not None else dense_std(inputs)
        return Combined(frame.shared[name], inputs, rank, 0.0 if residual else std * gain)


def orthonormal(rank: int, outputs: int) -> Dense:
    """U, y_..R -> y_..O."""
    basis = factor(rank, outputs)
    orthogonal_(basis.weight)
    return basis


class Combined(nn.Module):
    """x_..I -> U (C x). The model owns U; this module holds it, so that it has one name."""

    def __init__(self, basis: nn.Module, inputs: int, rank: int, std: float):
        super().__init__()
        self.held = (basis,)  # a tuple: modules in it are not this module's children
        self.own = factor(inputs, rank)
        nn.init.normal_(self.own.weight, std=std)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.held[0](self.own(x))
        return y
