"""Weight matrices of low rank. Shapes: golf/models/slots.py."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from golf.errors import UserError
from golf.fields import between, positive
from golf.models.init import orthogonal_
from golf.models.linear import Dense, dense_std
from golf.models.slots import Frame, LinearConfig


def factor(inputs: int, outputs: int) -> Dense:
    """A Dense matrix that is a factor of another one: a role of its own, so that tables can treat it as small."""
    made = Dense(inputs, outputs)
    made.roles = {"weight": "factor"}
    return made


@dataclass(kw_only=True, slots=True)
class EigenConfig(LinearConfig):
    """W = U diag(sigma) V^T in every layer, never formed: U and V stand at first on random orthonormal columns and are
    free afterwards ("eigenweight", PR 1589; the decomposition is that of SVD compression).

    ranks: by part of the block, mixer and mlp, cut to what a matrix has. std: sigma begins as the singular values of a
    Gaussian matrix of this standard deviation (PR 1589: 0.02; null: that of a dense matrix). What writes to the
    residual stream begins with sigma = 0. dense: matrices outside of layers.
    """

    ranks: dict[str, int] = field(default_factory=dict)
    std: float | None
    dense: LinearConfig

    def __post_init__(self) -> None:
        positive(std=self.std)
        if set(self.ranks) != {"mixer", "mlp"}:
            raise ValueError(f"ranks={dict(self.ranks)} must name mixer and mlp, such as {{mixer: 64, mlp: 64}}")
        for part, rank in self.ranks.items():
            between(1, 2**16, **{f"ranks.{part}": rank})

    def build(self, frame: Frame, inputs: int, outputs: int, *, residual: bool, gain: float) -> nn.Module:
        if frame.layer is None:
            return self.dense.build(frame, inputs, outputs, residual=residual, gain=gain)
        if frame.part not in self.ranks:
            part = frame.part or "a block"
            raise UserError(f"model.linear.ranks={dict(self.ranks)}: has no rank for the matrices of {part}; add one")
        return Eigen(inputs, outputs, min(self.ranks[frame.part], inputs, outputs), self.std, 0.0 if residual else gain)


class Eigen(nn.Module):
    """x_..I -> U (sigma * (V^T x))."""

    roles = {"sigma_R": "scalar"}

    def __init__(self, inputs: int, outputs: int, rank: int, std: float | None, gain: float):
        super().__init__()
        self.v, self.u = factor(inputs, rank), factor(rank, outputs)
        orthogonal_(self.v.weight)
        orthogonal_(self.u.weight)
        std = std if std is not None else dense_std(inputs)
        self.sigma_R = nn.Parameter(gain * std * top_singular_values(outputs, inputs, rank))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.u(self.sigma_R.to(x.dtype) * self.v(x))
        return y


def top_singular_values(outputs: int, inputs: int, rank: int) -> Tensor:
    """sigma_R of a random Gaussian matrix of variance 1, descending."""
    drawn_OI = torch.empty(outputs, inputs).normal_()
    if drawn_OI.is_meta:
        return torch.empty(rank, device="meta")
    return torch.linalg.svdvals(drawn_OI)[:rank]
