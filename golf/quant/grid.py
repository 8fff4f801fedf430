"""The one rounding function: exporters and fake quantisation share it. O, I: rows and columns of a matrix."""

import torch
from torch import Tensor


def row_scales(w_OI: Tensor, limit: int, clip_quantile: float | None, floor: float | None) -> Tensor:
    """Step of each row's grid, fp16-rounded (as it will be stored) and returned in fp32, shape (O, 1).

    The step puts the row's largest magnitude, or its clip_quantile, on `limit`; `floor` bounds it from below. A row
    of zeros gets step 1.
    """
    magnitude_OI = w_OI.float().abs()
    if clip_quantile is None:
        top_O1 = magnitude_OI.amax(dim=1, keepdim=True)
    else:
        top_O1 = torch.quantile(magnitude_OI, clip_quantile, dim=1, keepdim=True)
    scale_O1 = top_O1 / limit
    if floor is not None:
        scale_O1 = scale_O1.clamp_min(floor)
    scale_O1 = scale_O1.clamp_max(torch.finfo(torch.float16).max).half().float()
    return torch.where(scale_O1 > 0, scale_O1, torch.ones_like(scale_O1))


def round_to_grid(w_OI: Tensor, scale_O1: Tensor, limit: int) -> Tensor:
    """Nearest grid index of each weight, clipped to -limit .. limit, as int8."""
    return (w_OI.float() / scale_O1).round().clamp(-limit, limit).to(torch.int8)
