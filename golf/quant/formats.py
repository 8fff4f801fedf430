"""How one tensor is stored: a format turns it into named parts (what the artifact holds) and back."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from golf.fields import between, one_of, positive
from golf.quant.grid import round_to_grid, row_scales

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Parts = dict[str, Tensor]


@dataclass(kw_only=True, slots=True)
class FormatConfig:
    """The slot. encode is pure; decode(encode(w)) has w's shape, in fp32."""

    def encode(self, w: Tensor) -> Parts:
        raise NotImplementedError

    def decode(self, parts: Parts) -> Tensor:
        raise NotImplementedError

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Part -> (type, shape) of what encode gives for a tensor of this shape: what a reader may expect."""
        raise NotImplementedError

    def rounds(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape becomes integers, which training may want to see."""
        return False

    def predict_bits(self, shape: tuple[int, ...]) -> float:
        """Bits that a tensor of this shape will take before the codec's own overhead, for plans."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class FloatConfig(FormatConfig):
    """As it is, in fewer bits."""

    dtype: str

    def __post_init__(self) -> None:
        one_of("dtype", self.dtype, tuple(FLOATS))

    def encode(self, w: Tensor) -> Parts:
        return {"value": _to_float(w, FLOATS[self.dtype])}

    def decode(self, parts: Parts) -> Tensor:
        return parts["value"].float()

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"value": (FLOATS[self.dtype], shape)}

    def predict_bits(self, shape: tuple[int, ...]) -> float:
        return math.prod(shape) * FLOATS[self.dtype].itemsize * 8


def _to_float(w: Tensor, dtype: torch.dtype) -> Tensor:
    """The nearest number of the type; what is too large becomes its largest, not infinity."""
    limit = torch.finfo(dtype).max
    return w.float().clamp(-limit, limit).to(dtype)


@dataclass(kw_only=True, slots=True)
class RowIntConfig(FormatConfig):
    """Integers of `bits` with one fp16 step a row, one code a byte (a byte coder beats packing; upstream baseline).

    clip_quantile: the magnitude that lands on the last code (null: the row's maximum). scale_floor: smallest step
    (upstream's int8 rule has 1/127; null: none). half_below: tensors of at most so many elements stay fp16.
    """

    bits: int
    clip_quantile: float | None
    scale_floor: float | None
    half_below: int | None

    def __post_init__(self) -> None:
        positive(scale_floor=self.scale_floor)
        between(2, 8, bits=self.bits)
        between(0.5, 1, clip_quantile=self.clip_quantile)

    @property
    def limit(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def encode(self, w: Tensor) -> Parts:
        if self._half(tuple(w.shape)):
            return {"half": _to_float(w, torch.float16)}
        w_OI = w.flatten(1)
        scale_O1 = row_scales(w_OI, self.limit, self.clip_quantile, self.scale_floor)
        return {"codes": round_to_grid(w_OI, scale_O1, self.limit).view(w.shape), "scale": scale_O1.half().flatten()}

    def decode(self, parts: Parts) -> Tensor:
        if "half" in parts:
            return parts["half"].float()
        codes = parts["codes"]
        return codes.float() * parts["scale"].float().view(-1, *[1] * (codes.ndim - 1))

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        if self._half(shape):
            return {"half": (torch.float16, shape)}
        return {"codes": (torch.int8, shape), "scale": (torch.float16, shape[:1])}

    def predict_bits(self, shape: tuple[int, ...]) -> float:
        """Entropy of Gaussian rows on a grid whose last code is the expected maximum of that many draws."""
        count = math.prod(shape)
        if self._half(shape):
            return count * 16
        rows, cols = shape[0], count // shape[0]
        top_in_sigmas = math.sqrt(2 * math.log(max(cols, 2)))
        entropy = math.log2(math.sqrt(2 * math.pi * math.e) * self.limit / top_in_sigmas)
        return count * max(entropy, 0.5) + rows * 16

    def rounds(self, shape: tuple[int, ...]) -> bool:
        return not self._half(shape)

    def _half(self, shape: tuple[int, ...]) -> bool:
        return len(shape) < 2 or (self.half_below is not None and math.prod(shape) <= self.half_below)
