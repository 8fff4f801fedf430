"""Grouped-query attention with rotary positions, QK norm and per-head gain. Shapes: golf/models/slots.py."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from golf.errors import UserError
from golf.fields import positive
from golf.models.norms import norm
from golf.models.slots import Context, LinearConfig, MixerConfig, OutputPartConfig, ValuePartConfig, named_parts


@dataclass(kw_only=True, slots=True)
class GQAConfig(MixerConfig):
    """Grouped-query attention of the upstream baseline; `value` and `output` are named parts, null drops one."""

    heads: int
    kv_heads: int
    qk_gain: float
    rope_base: float
    value: dict[str, ValuePartConfig | None] = field(default_factory=dict)
    output: dict[str, OutputPartConfig | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive(heads=self.heads, kv_heads=self.kv_heads, rope_base=self.rope_base, qk_gain=self.qk_gain)
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} must divide heads={self.heads}; try kv_heads={self.heads}")

    def build(self, dim: int, linear: LinearConfig, layer: int, layers: int) -> "Attention":
        head_dim = dim // self.heads
        if dim % self.heads or head_dim % 2:
            unit = 2 * self.heads
            raise UserError(
                f"model.dim={dim} must give each of model.mixer.heads={self.heads} heads a whole, even number of "
                f"channels; try model.dim={max(1, round(dim / unit)) * unit}"
            )
        return Attention(self, dim, linear, layer, layers)


def rotary_tables(length: int, channels: int, base: float, like: Tensor) -> tuple[Tensor, Tensor]:
    """cos_T1J and sin_T1J for positions 0 .. length-1, J = channels / 2 (RoPE, arXiv 2104.09864)."""
    exponents_J = torch.arange(0, channels, 2, dtype=torch.float32, device=like.device) / channels
    angles_TJ = torch.arange(length, dtype=torch.float32, device=like.device)[:, None] * base**-exponents_J
    return angles_TJ.cos()[:, None].to(like.dtype), angles_TJ.sin()[:, None].to(like.dtype)


def rotate(x_BTHC: Tensor, tables: tuple[Tensor, Tensor]) -> Tensor:
    """Rotate channel pairs (j, j + C/2) by their position's angle (half-split layout)."""
    cos_T1J, sin_T1J = tables
    a, b = x_BTHC.chunk(2, dim=-1)
    return torch.cat((a * cos_T1J + b * sin_T1J, b * cos_T1J - a * sin_T1J), dim=-1)


class Attention(nn.Module):
    """h_BTD -> y_BTD. Values are neither normed nor rotated."""

    roles = {"gain_H": "scalar"}

    def __init__(self, config: GQAConfig, dim: int, linear: LinearConfig, layer: int, layers: int):
        super().__init__()
        self.heads, self.kv_heads, self.rope_base = config.heads, config.kv_heads, config.rope_base
        self.head_dim = dim // config.heads
        kv_dim = config.kv_heads * self.head_dim
        self.query = linear.build(dim, dim)
        self.key = linear.build(dim, kv_dim)
        self.values = linear.build(dim, kv_dim)
        self.out = linear.build(dim, dim, residual=True)
        self.gain_H = nn.Parameter(torch.full((config.heads,), config.qk_gain))
        self.value_parts = named_parts(
            "model.mixer.value", config.value, lambda part: part.build(dim, self.kv_heads, self.head_dim, layer, layers)
        )
        self.output_parts = named_parts(
            "model.mixer.output", config.output, lambda part: part.build(dim, self.heads, self.kv_heads, layer, layers)
        )

    def forward(self, h_BTD: Tensor, context: Context) -> Tensor:
        B, T, D = h_BTD.shape
        q_BTHC = norm(self.query(h_BTD).view(B, T, self.heads, self.head_dim))
        k_BTKC = norm(self.key(h_BTD).view(B, T, self.kv_heads, self.head_dim))
        v_BTKC = self.values(h_BTD).view(B, T, self.kv_heads, self.head_dim)
        for part in self.value_parts.values():
            v_BTKC = part(v_BTKC, h_BTD, context)
        tables = context.once(
            ("rotary", T, self.head_dim, self.rope_base),
            lambda: rotary_tables(T, self.head_dim, self.rope_base, q_BTHC),
        )
        q_BTHC = rotate(q_BTHC, tables) * self.gain_H.to(q_BTHC.dtype)[:, None]
        y_BTHC = context.attend(q_BTHC, rotate(k_BTKC, tables), v_BTKC)
        for part in self.output_parts.values():
            y_BTHC = part(y_BTHC, v_BTKC, h_BTD)
        return self.out(y_BTHC.reshape(B, T, D))
