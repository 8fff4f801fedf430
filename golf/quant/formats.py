"""How a tensor is stored: a format turns it into named parts (what the artifact holds) and back.

Like tensors come in stacks: B is how many. O, I: rows and columns of a matrix.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from golf.errors import UserError
from golf.fields import between, one_of, positive
from golf.quant.grid import stored_step, to_float
from golf.quant.rounding import PLAIN, How
from golf.quant.steps import StepConfig

FLOATS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}

Parts = dict[str, Tensor]


@dataclass(kw_only=True, slots=True)
class FormatConfig:
    """The slot. encode is pure; decode(encode(w_B), shape) has w_B's shape, in fp32, and no infinite number."""

    @property
    def reads_hessians(self) -> bool:
        """Whether encode() wants what a calibration measures, beside what the rounding wants."""
        return False

    def encode(self, w_B: Tensor, how: How = PLAIN) -> Parts:
        """Parts of a stack of tensors, each with the stack's axis first. Raises TooLargeError where how.strict and a
        number is beyond its type."""
        raise NotImplementedError

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        """The stack that these parts give back; shape: of one of its tensors."""
        raise NotImplementedError

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        """Part -> (type, shape) of what encode gives for one tensor of this shape: what a reader may expect."""
        raise NotImplementedError

    def rounds(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape becomes integers, which training may want to see."""
        return False

    def dials(self, shape: tuple[int, ...]) -> bool:
        """Whether a tensor of this shape can have steps of any width (How.widen_B): bytes against error, smoothly."""
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

    def encode(self, w_B: Tensor, how: How = PLAIN) -> Parts:
        return {"value": to_float(w_B, FLOATS[self.dtype], how.strict)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        return parts["value"].float()

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        return {"value": (FLOATS[self.dtype], shape)}

    def predict_bits(self, shape: tuple[int, ...]) -> float:
        return math.prod(shape) * FLOATS[self.dtype].itemsize * 8


def decode_one(chosen: FormatConfig, parts: Parts, shape: tuple[int, ...]) -> Tensor:
    """The tensor that the parts of one tensor give back, in fp32."""
    return chosen.decode({part: value[None] for part, value in parts.items()}, shape)[0]


@dataclass(kw_only=True, slots=True)
class IntConfig(FormatConfig):
    """Integers of `bits` and fp16 steps, one code a byte (coders do better on bytes than on packed bits).

    steps: the rule for a step. per: row, group or tensor: what shares one; group: columns of a group. half_below:
    tensors of at most so many elements, and vectors, stay fp16.
    """

    bits: int
    steps: StepConfig
    per: str
    group: int | None
    half_below: int | None

    def __post_init__(self) -> None:
        between(2, 8, bits=self.bits)
        one_of("per", self.per, ("row", "group", "tensor"))
        positive(group=self.group)
        if (self.group is None) == (self.per == "group"):
            raise ValueError(f"group={self.group}: goes with per=group, as its columns; per={self.per}")

    @property
    def reads_hessians(self) -> bool:
        return self.steps.reads_hessians

    @property
    def limit(self) -> int:
        return 2 ** (self.bits - 1) - 1

    def encode(self, w_B: Tensor, how: How = PLAIN) -> Parts:
        shape = tuple(w_B.shape[1:])
        if self._half(shape):
            return {"half": to_float(w_B, torch.float16, how.strict)}
        w_BOI = w_B.float().flatten(2)
        rows = self._rows(shape)
        w_BRC = w_BOI.reshape(len(w_B), rows, -1)
        importance = None
        if how.hessian_BII is not None:
            importance = how.hessian_BII.diagonal(dim1=1, dim2=2)[:, None].expand_as(w_BOI).reshape(w_BRC.shape)
        step_BR1, largest_BR1 = self.steps.steps(w_BRC, self.limit, importance), w_BRC.abs().amax(dim=2, keepdim=True)
        step_BR1 = torch.where(step_BR1 > 0, step_BR1, largest_BR1 / self.limit)  # a rule may see zeros alone
        if how.widen_B is not None and self.steps.dial:
            # no finer than brings the largest weight to the last code: beyond that finer steps only clip
            least_BR1 = torch.minimum(step_BR1, largest_BR1 / self.limit)
            step_BR1 = torch.maximum(step_BR1 * how.widen_B[:, None, None], least_BR1)
        step_BR1 = stored_step(step_BR1, how.strict)
        step_BOI = step_BR1.expand_as(w_BRC).reshape(w_BOI.shape)
        limit: int | Tensor = self.limit
        if how.finer_BI is not None:
            step_BOI, limit = step_BOI / how.finer_BI[:, None], limit * how.finer_BI[:, None]
        codes = how.rounding.round(w_BOI, step_BOI, limit, how.hessian_BII)
        return {"codes": codes.view(w_B.shape), "scale": step_BR1.half().flatten(1)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        if "half" in parts:
            return parts["half"].float()
        codes, scale_BR = parts["codes"], parts["scale"].float()
        return (codes.float().reshape(*scale_BR.shape, -1) * scale_BR[:, :, None]).view(codes.shape)

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        if self._half(shape):
            return {"half": (torch.float16, shape)}
        return {"codes": (torch.int8, shape), "scale": (torch.float16, (self._rows(shape),))}

    def predict_bits(self, shape: tuple[int, ...]) -> float:
        """Entropy of Gaussian weights on the grid that the rule would choose."""
        count = math.prod(shape)
        if self._half(shape):
            return count * 16
        rows = self._rows(shape)
        step = self.steps.step_in_sigmas(count // rows, self.limit)
        return count * gaussian_entropy(step, self.limit) + rows * 16

    def rounds(self, shape: tuple[int, ...]) -> bool:
        return not self._half(shape)

    def dials(self, shape: tuple[int, ...]) -> bool:
        return self.steps.dial and self.rounds(shape)

    def _rows(self, shape: tuple[int, ...]) -> int:
        """How many steps a tensor of this shape has. Raises UserError where its columns can't be shared out."""
        if self.per == "tensor":
            return 1
        columns = math.prod(shape[1:])
        if self.group is None:
            return shape[0]
        if columns % self.group:
            raise UserError(
                f"quant.formats: a tensor of {shape} can't be cut into groups of {self.group} columns; take a divisor "
                f"of {columns}, or half_below={math.prod(shape)}"
            )
        return shape[0] * columns // self.group

    def _half(self, shape: tuple[int, ...]) -> bool:
        return len(shape) < 2 or (self.half_below is not None and math.prod(shape) <= self.half_below)


def gaussian_entropy(step: float, limit: int) -> float:
    """Bits of a standard normal number rounded to multiples of `step`, clipped to -limit .. limit."""
    edges = (torch.arange(-limit, limit + 2, dtype=torch.float64) - 0.5) * step
    edges[0], edges[-1] = -math.inf, math.inf
    share = torch.special.ndtr(edges).diff()
    return -torch.special.xlogy(share, share).sum().item() / math.log(2)
