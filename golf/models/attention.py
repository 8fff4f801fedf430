"""Grouped-query attention with rotary positions, QK norm and per-head gain. Shapes: golf/models/slots.py."""

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from golf.errors import UserError
from golf.fields import positive
from golf.models.layers import check_layer_text, layer_set
from golf.models.rope import RopeConfig, rotate
from golf.models.slots import (
    Context,
    Frame,
    Heads,
    InputPartConfig,
    MixerConfig,
    MixerModule,
    OutputPartConfig,
    ValuePartConfig,
    named_parts,
)


@dataclass(kw_only=True, slots=True)
class WindowConfig:
    """In these layers a query sees its own position and `size` positions before it, in training and scoring alike."""

    size: int
    layers: str

    def __post_init__(self) -> None:
        positive(size=self.size)
        check_layer_text(layers=self.layers)

    def at(self, frame: Frame) -> int | None:
        """The size in this layer, None where it has full attention."""
        return self.size if frame.layer in layer_set(self.layers, frame.layers, "model.mixer.window.layers") else None


@dataclass(kw_only=True, slots=True)
class GQAConfig(MixerConfig):
    """Grouped-query attention (arXiv 2305.13245) of the upstream baseline.

    qk_gain: first value of a gain for each head on its normed, turned queries. input, value, output: named parts, in
    their order; null drops one. window: null is full attention everywhere.
    """

    split: ClassVar[int] = 1  # a head's channels are cut into so many query/key heads

    heads: int
    kv_heads: int
    qk_gain: float
    rope: RopeConfig
    window: WindowConfig | None
    input: dict[str, InputPartConfig | None] = field(default_factory=dict)
    value: dict[str, ValuePartConfig | None] = field(default_factory=dict)
    output: dict[str, OutputPartConfig | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive(heads=self.heads, kv_heads=self.kv_heads, qk_gain=self.qk_gain)
        if self.heads % self.kv_heads:
            raise ValueError(f"kv_heads={self.kv_heads} must divide heads={self.heads}; try kv_heads={self.heads}")

    def build(self, frame: Frame) -> "Attention":
        return Attention(self, frame, self.shape(frame.dim))

    def shape(self, dim: int) -> Heads:
        """The heads of a model of this width. Raises UserError where the width can't be shared out."""
        unit = 2 * self.split * self.heads
        if dim % unit:
            raise UserError(
                f"model.dim={dim} must give each of model.mixer.heads={self.heads} heads a whole, even number of "
                f"channels{f' for each of its {self.split} parts' if self.split > 1 else ''}; try "
                f"model.dim={max(1, round(dim / unit)) * unit}"
            )
        return Heads(self.heads, self.kv_heads, dim // self.heads)

    def kernel_channels(self, dim: int) -> int:
        return dim // self.heads

    def cached_numbers(self, dim: int) -> int:
        return 2 * self.kv_heads * (dim // self.heads)


class Attention(MixerModule):
    """h_BTD -> y_BTD. Values are neither normed nor rotated."""

    roles = {"gain_H": "scalar"}

    def __init__(self, config: GQAConfig, frame: Frame, shape: Heads):
        super().__init__()
        self.shape, self.rope, self.split, self.norm = shape, config.rope, config.split, frame.norm
        self.turning = config.rope.channels(shape.head_dim // config.split)
        assert frame.layer is not None
        self.window = None if config.window is None else config.window.at(frame)
        self.query = frame.matrix(frame.dim, frame.dim)
        self.make_keys_values(config, frame, shape.kv_heads * shape.head_dim)
        self.out = frame.matrix(frame.dim, frame.dim, residual=True)
        self.gain_H = nn.Parameter(torch.full((shape.heads,), config.qk_gain))
        self.input_parts = named_parts("model.mixer.input", config.input, lambda part: part.build(frame))
        self.value_parts = named_parts("model.mixer.value", config.value, lambda part: part.build(frame, shape))
        self.output_parts = named_parts("model.mixer.output", config.output, lambda part: part.build(frame, shape))

    def why_whole(self, length: int) -> str:
        return ""

    def make_keys_values(self, config: GQAConfig, frame: Frame, kv_dim: int) -> None:
        """Make what keys_values() needs."""
        self.key = frame.matrix(frame.dim, kv_dim)
        self.values = frame.matrix(frame.dim, kv_dim)

    def keys_values(self, h_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values of all heads, (B, T, K * C) each, before anything is done to them."""
        return self.key(h_BTD), self.values(h_BTD)

    def forward(self, h_BTD: Tensor, context: Context) -> Tensor:
        B, T, D = h_BTD.shape
        H, K, C, S = self.shape.heads, self.shape.kv_heads, self.shape.head_dim, self.split
        for part in self.input_parts.values():
            h_BTD = part(h_BTD, context)
        q_BTHC = self.norm(self.query(h_BTD).view(B, T, H * S, C // S))
        keys, values = self.keys_values(h_BTD)
        k_BTKC, v_BTKC = self.norm(keys.view(B, T, K * S, C // S)), values.view(B, T, K, C)
        for part in self.value_parts.values():
            v_BTKC = part(v_BTKC, h_BTD, context)
        tables = self.rope.tables(context, self.turning, q_BTHC)
        gain_H1 = self.gain_H.to(q_BTHC.dtype).repeat_interleave(S)[:, None]
        y_BTHC = self.mix(rotate(q_BTHC, tables) * gain_H1, rotate(k_BTKC, tables), v_BTKC, context)
        for part in self.output_parts.values():
            y_BTHC = part(y_BTHC, v_BTKC, h_BTD)
        return self.out(y_BTHC.reshape(B, T, D))

    def mix(self, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, context: Context) -> Tensor:
        """Queries and keys with everything done to them, values -> y_BTHC."""
        return context.attend(q_BTHC, k_BTKC, v_BTKC, self.window)
