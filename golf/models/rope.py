"""Rotary positions. Shapes: golf/models/slots.py; J: pairs of channels."""

from dataclasses import dataclass

import torch
from torch import Tensor

from golf.fields import between, positive
from golf.models.slots import Context


@dataclass(kw_only=True, slots=True)
class RopeConfig:
    """Which channels turn and how fast (RoPE, arXiv 2104.09864).

    part: the share of a head's channels that turn, to an even number of them, 2 at least (16 of 64: PR 315).
    reference_length: for texts of up to T tokens, more than so many, the base grows by (T / reference)^(r / (r - 2)), r
    channels turning (NTK-aware scaling); the length trained at, so that training and scoring turn alike; null: never.
    T is what the evaluator declares (LM.text_length): how far this one text goes on is not known while it is scored.
    """

    base: float
    part: float
    reference_length: int | None

    def __post_init__(self) -> None:
        positive(base=self.base, reference_length=self.reference_length)
        between(0.01, 1, part=self.part)

    def channels(self, head_dim: int) -> int:
        """How many of head_dim (even) channels turn."""
        return max(2, 2 * round(self.part * head_dim / 2))

    def tables(self, context: Context, channels: int, like: Tensor) -> tuple[Tensor, Tensor]:
        """cos_N1J and sin_N1J for all positions of this pass, in the type of `like`, made once a pass."""
        base, tokens = self.base, context.text_length
        if self.reference_length is not None and tokens > self.reference_length and channels > 2:
            base *= (tokens / self.reference_length) ** (channels / (channels - 2))
        stop = context.start + context.x0_BND.shape[1]

        def make() -> tuple[Tensor, Tensor]:
            cos_N1J, sin_N1J = rotary_tables(stop, channels, base, like.dtype, like.device)
            return cos_N1J[context.start :], sin_N1J[context.start :]

        return context.once(("rotary", channels, base), make)


# An operator: left open to torch.compile, the sines would be taken anew at each element that is turned.
@torch.library.custom_op("golf::rotary_tables", mutates_args=())
def rotary_tables(
    length: int, channels: int, base: float, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor]:
    """cos_T1J and sin_T1J for positions 0 .. length-1, J = channels / 2."""
    exponents_J = torch.arange(0, channels, 2, dtype=torch.float32, device=device) / channels
    angles_TJ = torch.arange(length, dtype=torch.float32, device=device)[:, None] * base**-exponents_J
    return angles_TJ.cos()[:, None].to(dtype), angles_TJ.sin()[:, None].to(dtype)


@rotary_tables.register_fake
def _(length: int, channels: int, base: float, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    table_T1J = torch.empty(length, 1, channels // 2, dtype=dtype, device=device)
    return table_T1J, torch.empty_like(table_T1J)


def rotate(x_BTHC: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Turn channel pairs (j, j + J) by their position's angle (half-split layout); channels from 2J on stay."""
    cos_T1J, sin_T1J = tables
    pairs = cos_T1J.shape[-1]
    a, b, rest = x_BTHC[..., :pairs], x_BTHC[..., pairs : 2 * pairs], x_BTHC[..., 2 * pairs :]
    return torch.cat((a * cos_T1J + b * sin_T1J, b * cos_T1J - a * sin_T1J, rest), dim=-1)
