"""The one rounding function, and the types that files hold: exporters and fake quantisation share them. B: a stack of
like tensors."""

from typing import Any

import torch
from torch import Tensor

LEAST_NORMAL, LEAST = 2.0**-14, 2.0**-24  # of fp16; below the first numbers lie the second apart


class TooLargeError(ValueError):
    """The tensor `index` of a stack needs a number that its type can't hold: `needed`, at least."""

    def __init__(self, index: int, needed: float, dtype: torch.dtype):
        super().__init__(f"{needed:.3g} where {dtype} ends at {torch.finfo(dtype).max:,.0f}")
        self.index = index


def to_float(x_B: Tensor, dtype: torch.dtype, strict: bool = False) -> Tensor:
    """Return the nearest numbers of the type. What is too large becomes its largest, not infinity; strict: it raises
    TooLargeError."""
    limit = torch.finfo(dtype).max
    if strict:
        refuse_beyond(x_B, dtype)
    return x_B.float().clamp(-limit, limit).to(dtype)


def refuse_beyond(x_B: Tensor, dtype: torch.dtype) -> None:
    """Raise TooLargeError for the first tensor of a stack that holds what the type can't."""
    beyond_B = x_B.float().to(dtype).isinf().reshape(len(x_B), -1).any(dim=1)
    if beyond_B.any():
        index = int(beyond_B.int().argmax())
        raise TooLargeError(index, x_B[index].abs().max().item(), dtype)


def stored_step(step_B: Tensor, strict: bool = False) -> Tensor:
    """Return steps as the artifact gives them back: fp16-rounded, in fp32. A step of 0 (a row of zeros) becomes 1.

    Where fp16 is coarse, below its normal numbers, steps are rounded up: one that is too small would clip. strict: as
    of to_float.
    """
    if strict:
        refuse_beyond(step_B, torch.float16)
    step = torch.where(step_B < LEAST_NORMAL, (step_B / LEAST).ceil() * LEAST, step_B)
    step = step.clamp_max(torch.finfo(torch.float16).max).half().float()
    return torch.where(step > 0, step, torch.ones_like(step))


def round_to_grid(w: Tensor, step: Tensor, limit: int | Tensor) -> Tensor:
    """Nearest grid index of each weight, clipped to -limit .. limit, as int8; step, limit: broadcast."""
    return nearest_(w.float() / step, limit).to(torch.int8)


def nearest_(in_steps: Tensor, limit: int | Tensor) -> Tensor:
    """The same of weights divided by their steps, in their place, as floats."""
    top: Any = limit  # torch declares clamp for numbers and for tensors, not for either
    return in_steps.round_().clamp_(-top, top)
