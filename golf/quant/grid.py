"""The one rounding function: exporters and fake quantisation share it. B: a stack of like tensors."""

import torch
from torch import Tensor


def stored_step(step: Tensor) -> Tensor:
    """Steps as the artifact gives them back: fp16-rounded, in fp32. A step of 0 (a row of zeros) becomes 1."""
    step = step.clamp_max(torch.finfo(torch.float16).max).half().float()
    return torch.where(step > 0, step, torch.ones_like(step))


def round_to_grid(w: Tensor, step: Tensor, limit: int) -> Tensor:
    """Nearest grid index of each weight, clipped to -limit .. limit, as int8; step: of any shape that broadcasts."""
    return (w.float() / step).round().clamp(-limit, limit).to(torch.int8)
