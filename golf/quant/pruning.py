"""The cheapest codes of +-1 become 0 after rounding: selective pruning (record 1.1147), bytes against error."""

from dataclasses import dataclass

import torch
from torch import Tensor

from golf.fields import between
from golf.quant.formats import FormatConfig, Parts
from golf.quant.rounding import PLAIN, How
from golf.quant.salient import SalientConfig


@dataclass(kw_only=True, slots=True)
class PrunedConfig(FormatConfig):
    """Another format with codes and steps; of each tensor's codes of +-1 this share, those of the smallest steps, is 0:
    a zero in their place adds step^2 to the squared error. What has no codes stays as it is."""

    inner: FormatConfig
    share: float

    def __post_init__(self) -> None:
        between(0, 1, share=self.share)
        if isinstance(self.inner, SalientConfig) and self.inner.inner.per == "group":
            raise ValueError("inner: salient columns of steps by group can't be pruned; take per=row")

    @property
    def reads_hessians(self) -> bool:
        return self.inner.reads_hessians

    def encode(self, w_B: Tensor, how: How = PLAIN) -> Parts:
        parts = self.inner.encode(w_B, how)
        if "codes" not in parts:
            return parts
        code_BN, scale_BR = parts["codes"].flatten(1), parts["scale"].float()
        cost_BN = scale_BR.repeat_interleave(code_BN.shape[1] // scale_BR.shape[1], dim=1)
        is_one_BN = code_BN.abs() == 1
        cost_BN = cost_BN.masked_fill(~is_one_BN, torch.inf)
        rank_BN = cost_BN.argsort(dim=1, stable=True).argsort(dim=1)
        dropped_BN = rank_BN < (self.share * is_one_BN.sum(dim=1, keepdim=True)).floor()
        return parts | {"codes": code_BN.masked_fill(dropped_BN, 0).view(parts["codes"].shape)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        return self.inner.decode(parts, shape)

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return self.inner.layout(shape)

    def predict_bits(self, shape: tuple[int, ...]) -> float:
        """As if nothing were pruned: an upper bound."""
        return self.inner.predict_bits(shape)

    def rounds(self, shape: tuple[int, ...]) -> bool:
        return self.inner.rounds(shape)

    def dials(self, shape: tuple[int, ...]) -> bool:
        return self.inner.dials(shape)
