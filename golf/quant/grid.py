"""The one rounding function: exporters and fake quantisation share it. B: a stack of like tensors."""

from typing import Any

import torch
from torch import Tensor


def stored_step(step: Tensor) -> Tensor:
    """Steps as the artifact gives them back: fp16-rounded, in fp32. A step of 0 (a row of zeros) becomes 1."""
    step = step.clamp_max(torch.finfo(torch.float16).max).half().float()
    return torch.where(step > 0, step, torch.ones_like(step))


def round_to_grid(w: Tensor, step: Tensor, limit: int | Tensor) -> Tensor:
    """Nearest grid index of each weight, clipped to -limit .. limit, as int8; step, limit: broadcast."""
    return nearest_(w.float() / step, limit).to(torch.int8)


def nearest_(in_steps: Tensor, limit: int | Tensor) -> Tensor:
    """The same of weights divided by their steps, in their place, as floats."""
    top: Any = limit  # torch declares clamp for numbers and for tensors, not for either
    return in_steps.round_().clamp_(-top, top)
