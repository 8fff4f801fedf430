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
    group; columns beyond the last whole group never are. All columns take part in the same rounding. Without a
    measurement inputs count alike. The finer codes are a part of their own, which suits every coder.
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
        whole_BI = salience_BI[:, : self._groups(shape) * self.columns]
        group_B1 = whole_BI.unflatten(1, (-1, self.columns)).sum(dim=2).argmax(dim=1, keepdim=True)
        salient_BI = self._salient(group_B1, shape)
        parts = self.inner.encode(w_B, replace(how, finer_BI=torch.where(salient_BI, self._finer, 1)))
        code_BIO = parts["codes"].flatten(2).transpose(1, 2)
        fine_BOc, coarse_BOn = (
            code_BIO[chosen_BI].view(len(w_B), -1, shape[0]).transpose(1, 2) for chosen_BI in (salient_BI, ~salient_BI)
        )
        return parts | {"codes": coarse_BOn, "fine": fine_BOc, "salient": group_B1.to(torch.int16)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        if "salient" not in parts:
            return self.inner.decode(parts, shape)
        salient_BI = self._salient(parts["salient"], shape)
        code_BIO = parts["codes"].new_empty(*salient_BI.shape, shape[0])
        for chosen_BI, part in ((salient_BI, "fine"), (~salient_BI, "codes")):
            code_BIO[chosen_BI] = parts[part].transpose(1, 2).flatten(0, 1)
        codes = code_BIO.transpose(1, 2).reshape(-1, *shape)
        w_B = self.inner.decode({"codes": codes, "scale": parts["scale"]}, shape)
        return (w_B.flatten(2) / torch.where(salient_BI, self._finer, 1)[:, None]).view(w_B.shape)

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        if not self._chooses(shape):
            return self.inner.layout(shape)
        return self.inner.layout(shape) | {
            "codes": (torch.int8, (shape[0], math.prod(shape[1:]) - self.columns)),
            "fine": (torch.int8, (shape[0], self.columns)),
            "salient": (torch.int16, (1,)),
        }

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

    def _groups(self, shape: tuple[int, ...]) -> int:
        return math.prod(shape[1:]) // self.columns

    def _salient(self, group_B1: Tensor, shape: tuple[int, ...]) -> Tensor:
        """salient_BI: whether a column is of the chosen group. Raises ValueError for a group that is not there."""
        if (group_B1 < 0).any() or (group_B1 >= self._groups(shape)).any():
            raise ValueError(f"salient columns beyond the {self._groups(shape)} groups of a matrix")
        return torch.arange(math.prod(shape[1:]), device=group_B1.device) // self.columns == group_B1
