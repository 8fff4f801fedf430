"""An embedding of hashed pairs of tokens. Shapes: golf/models/slots.py; E: its width."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, one_of, positive
from golf.models.slots import FeatureConfig, FeatureModule, Frame


@dataclass(kw_only=True, slots=True)
class BigramHashConfig(FeatureConfig):
    """x + scale * P U[hash(previous id, id)], before the norm: `buckets` rows of `dim` (PR 162's line of records).

    hash: `xor` is (36313 id XOR 27191 previous) mod (buckets - 1), the last bucket for position 0; `linear` is
    (multiplier * previous + id) mod buckets, previous 0 at position 0. table_std 0 needs a projection that is not
    zero and the other way round: with both at zero neither ever gets a gradient. scale null: there is none.
    """

    hashes_ids: ClassVar[bool] = True

    buckets: int
    dim: int
    hash: str
    multiplier: int | None
    table_std: float
    zero_projection: bool
    scale: float | None

    def __post_init__(self) -> None:
        positive(scale=self.scale)
        between(1, 2**16, dim=self.dim)
        between(1, 2**31, multiplier=self.multiplier)
        between(2, 2**24, buckets=self.buckets)
        between(0, 10, table_std=self.table_std)
        one_of("hash", self.hash, ("xor", "linear"))
        if (self.hash == "linear") != (self.multiplier is not None):
            raise ValueError(f"multiplier={self.multiplier} with hash={self.hash}; linear needs one, xor has none")
        if self.zero_projection and self.table_std == 0:
            raise ValueError("table_std=0 and zero_projection=true would never train; set table_std=0.01")

    def build(self, frame: Frame) -> "BigramHash":
        return BigramHash(self, frame)


class BigramHash(FeatureModule):
    roles = {"table_E": "embedding", "scale": "scalar"}

    def __init__(self, config: BigramHashConfig, frame: Frame):
        super().__init__()
        self.buckets, self.multiplier = config.buckets, config.multiplier
        self.table_E = nn.Parameter(torch.zeros(config.buckets, config.dim))
        if config.table_std:
            nn.init.normal_(self.table_E, std=config.table_std)
        gain = 0.0 if config.zero_projection else 1 / math.sqrt(2 * frame.layers)
        self.project = frame.matrix(config.dim, frame.dim, gain=gain)
        self.scale = None if config.scale is None else nn.Parameter(torch.tensor(config.scale))

    def bucket(self, ids_BT: Tensor) -> Tensor:
        """The row of each position's pair. int64: no product overflows."""
        previous_BT = F.pad(ids_BT[:, :-1], (1, 0))
        if self.multiplier is not None:
            return (self.multiplier * previous_BT + ids_BT) % self.buckets
        mixed_BT = ((36313 * ids_BT) ^ (27191 * previous_BT)) % (self.buckets - 1)
        return torch.cat((torch.full_like(ids_BT[:, :1], self.buckets - 1), mixed_BT[:, 1:]), dim=1)

    def forward(self, x_BTD: Tensor, ids_BT: Tensor) -> Tensor:
        added_BTD = self.project(F.embedding(self.bucket(ids_BT), self.table_E).to(x_BTD.dtype))
        return x_BTD + (added_BTD if self.scale is None else self.scale.to(x_BTD.dtype) * added_BTD)
