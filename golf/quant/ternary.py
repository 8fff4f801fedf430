"""Weights of three values, or two, and a step for each group of columns (BitNet b1.58: arXiv 2402.17764).

Record 1.1570 has three. Codes come as they are, for coders that model them, or packed: five trits or eight bits a byte.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from golf.errors import UserError
from golf.fields import between, positive
from golf.quant.formats import FormatConfig, Parts
from golf.quant.grid import LEAST, stored_step, to_float
from golf.quant.rounding import PLAIN, How

PACKED = {2: 8, 3: 5}  # values -> how many make a byte


@dataclass(kw_only=True, slots=True)
class FewValuesConfig(FormatConfig):
    """values: 3 (-1, 0, 1) or 2 (-1, 1), times the group's mean magnitude, which is 0 of a group of zeros. Vectors stay
    fp16.

    shrinkage_fix: zeros make a group's mean magnitude smaller than it was; the step that is stored makes up for it, so
    that what is read back has the same codes and steps again (record 1.1570).
    """

    values: int
    group: int
    packed: bool
    shrinkage_fix: bool

    def __post_init__(self) -> None:
        between(2, 3, values=self.values)
        positive(group=self.group)

    def encode(self, w_B: Tensor, how: How = PLAIN) -> Parts:
        shape = tuple(w_B.shape[1:])
        if len(shape) < 2:
            return {"half": to_float(w_B, torch.float16, how.strict)}
        w_BOI = w_B.float().flatten(2)
        w_BRC = w_BOI.reshape(len(w_B), self._groups(shape), self.group)
        mean_BR1 = w_BRC.abs().mean(dim=2, keepdim=True)
        step_BR1 = stored_step(mean_BR1, how.strict)  # which divides, and is never 0
        if self.values == 2:
            code_BRC = torch.where(w_BRC < 0, -1, 1).to(torch.int8)
        else:
            step_BOI = step_BR1.expand_as(w_BRC).reshape(w_BOI.shape)
            code_BRC = how.rounding.round(w_BOI, step_BOI, 1, how.hessian_BII).view(w_BRC.shape)
        if self.shrinkage_fix:
            used_BR1 = code_BRC.abs().float().mean(dim=2, keepdim=True)
            step_BR1 = torch.where(used_BR1 > 0, step_BR1 / used_BR1.clamp_min(1e-6), step_BR1)
        # Two values have no code for 0: a group of zeros has a scale of 0.
        scale_BR1 = to_float(torch.where(mean_BR1 < LEAST, mean_BR1, step_BR1), torch.float16, how.strict)
        codes = pack(code_BRC.flatten(1), self.values) if self.packed else code_BRC.view(w_B.shape)
        return {"packed" if self.packed else "codes": codes, "scale": scale_BR1.flatten(1)}

    def decode(self, parts: Parts, shape: tuple[int, ...]) -> Tensor:
        if "half" in parts:
            return parts["half"].float()
        scale_BR1 = parts["scale"].float()[:, :, None]
        count = math.prod(shape)
        codes_BN = unpack(parts["packed"], self.values, count) if self.packed else parts["codes"].flatten(1)
        return (codes_BN.float().view(len(codes_BN), -1, self.group) * scale_BR1).view(-1, *shape)

    def layout(self, shape: tuple[int, ...]) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
        if len(shape) < 2:
            return {"half": (torch.float16, shape)}
        size = -(-math.prod(shape) // PACKED[self.values])
        codes = {"packed": (torch.uint8, (size,))} if self.packed else {"codes": (torch.int8, shape)}
        return {**codes, "scale": (torch.float16, (self._groups(shape),))}

    def predict_bits(self, shape: tuple[int, ...]) -> float:
        """Of Gaussian weights, whose groups are alike: a coder saves a fourth of their steps."""
        count = math.prod(shape)
        if len(shape) < 2:
            return count * 16
        return count * {2: 1.0, 3: 1.583}[self.values] + self._groups(shape) * 12

    def rounds(self, shape: tuple[int, ...]) -> bool:
        return len(shape) >= 2

    def _groups(self, shape: tuple[int, ...]) -> int:
        columns = math.prod(shape[1:])
        if columns % self.group:
            raise UserError(
                f"quant.formats: a tensor of {shape} can't be cut into groups of {self.group} columns; take a divisor "
                f"of {columns}"
            )
        return shape[0] * columns // self.group


def pack(code_BN: Tensor, values: int) -> Tensor:
    """byte_BM, uint8: base-3 digits code + 1, or bits (code + 1) / 2, the first in the lowest place."""
    per = PACKED[values]
    digit_BN = code_BN.int() + 1 if values == 3 else (code_BN.int() + 1) // 2
    digit_BN = torch.nn.functional.pad(digit_BN, (0, -digit_BN.shape[1] % per))
    place = values ** torch.arange(per, dtype=torch.int32)
    return (digit_BN.unflatten(1, (-1, per)) * place).sum(dim=2).to(torch.uint8)


def unpack(byte_BM: Tensor, values: int, count: int) -> Tensor:
    """code_BN, int8: the first `count` codes. Raises ValueError for bytes that pack() never writes."""
    per = PACKED[values]
    if values == 3 and (byte_BM >= 3**per).any():
        raise ValueError("a byte of packed trits is larger than five trits can be")
    place = values ** torch.arange(per, dtype=torch.int32)
    digit_BN = (byte_BM.int()[:, :, None] // place % values).flatten(1)[:, :count]
    return (digit_BN - 1 if values == 3 else 2 * digit_BN - 1).to(torch.int8)
