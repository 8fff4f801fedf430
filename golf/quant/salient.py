"""The columns of a matrix that matter most on a finer grid than the others ("AWQ-lite", PR 1908)."""

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from golf.fields import positive
from golf.quant.formats import FormatConfig, IntConfig, Parts
from golf.quant.rounding import PLAIN, How

FINEST = 127  # the last code of int8


@dataclass(kw_only=True, slots=True)
class SalientConfig(FormatConfig):
    """An integer format whose most salient group of `columns` columns has int8's codes over the same range.

    Salient is where strong inputs meet large weights: root mean square of the input times mean |weight|, summed over a
    group. All columns take part in the same rounding. Without a measurement inputs count alike.
    """

    inner: IntConfig
    columns: int

    def __post_init__(self) -> None:
        positive(columns=self.columns)
        if self._finer == 1:
            raise ValueError(f"inner.bits={self.inner.bits}: no code of int8 is finer; take 7 or fewer")

    @property
    def reads_hessians(self) -> bool:
        return True

    def encode(self, w_B: Tensor, how: How = PLAIN) -> Parts:
        shape = tuple(w_B.shape[1:])
        if not self._chooses(shape):
            return self.inner.encode(w_B, how)
        salience_BI = w_B.float().flatten(2).abs().mean(dim=1)
        if how.hessian_BII is not None:
            salience_BI = salience_BI * how.hessian_BII.diagonal(dim1=1, dim2=2).sqrt()
        padded_BI = torch.nn.functional.pad(salience_BI, (0, -salience_BI.shape[1] % self.columns))
        group_B1 = padded_BI.unflatten(1, (-1, self.columns)).sum(dim=2).argmax(dim=1, keepdim=True)
        parts = self.inner.encode(w_B, replace(how, finer_BI=self._finer_columns(group_B1, shape)))
        return parts | {"salient": group_B1.to(torch.int16)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        inner = {part: value for part, value in parts.items() if part != "salient"}
        w_B = self.inner.decode(inner, shape)
        if "salient" not in parts:
            return w_B
        finer_BI = self._finer_columns(parts["salient"], shape)
        return (w_B.flatten(2) / finer_BI[:, None]).view(w_B.shape)

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        salient = {"salient": (torch.int16, (1,))} if self._chooses(shape) else {}
        return self.inner.layout(shape) | salient

    def predict_bits(self, shape: tuple[int, ...]) -> float:
        extra = shape[0] * self.columns * math.log2(self._finer) + 16 if self._chooses(shape) else 0
        return self.inner.predict_bits(shape) + extra

    def rounds(self, shape: tuple[int, ...]) -> bool:
        return self.inner.rounds(shape)

    def dials(self, shape: tuple[int, ...]) -> bool:
        return self.inner.dials(shape)

    @property
    def _finer(self) -> int:
        return FINEST // self.inner.limit

    def _chooses(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor has more columns than a group."""
        return self.inner.rounds(shape) and math.prod(shape[1:]) > self.columns

    def _finer_columns(self, group_B1: Tensor, shape: tuple[int, ...]) -> Tensor:
        """finer_BI: how many times finer each column's grid is. Raises ValueError for a group that is not there."""
        group_I = torch.arange(math.prod(shape[1:]), device=group_B1.device) // self.columns
        if (group_B1 < 0).any() or (group_B1 > group_I[-1]).any():
            raise ValueError(f"salient columns beyond the {len(group_I)} of a matrix")
        return torch.where(group_I == group_B1, self._finer, 1)
