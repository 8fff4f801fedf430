"""Multi-head latent attention: keys and values are made of one narrow latent. Shapes: golf/models/slots.py; R: the
latent, P: the rotary channels of the decoupled form, G: query heads of a key/value head.
"""

import math
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from golf.fields import between, positive
from golf.models.attention import Attention, GQAConfig
from golf.models.init import orthogonal_
from golf.models.kernels import FLASH_CHANNELS
from golf.models.linear import Dense
from golf.models.rope import rotate
from golf.models.slots import Context, Frame, Heads


@dataclass(kw_only=True, slots=True)
class MLAConfig(GQAConfig):
    """c = W_d h, k = U_k c, v = U_v c, all else as in GQA (PR 1589): keys are normed and turned whole after
    the up-projection, the latent is not normed.

    latent: R. W_d begins with orthonormal rows. up_std: U_k and U_v begin as N(0, up_std^2) (the PR: 0.02); null:
    uniform within +-1/sqrt(R), which gives the values the size that they have in GQA.
    """

    latent: int
    up_std: float | None

    def __post_init__(self) -> None:
        GQAConfig.__post_init__(self)
        between(1, 2**16, latent=self.latent)
        positive(up_std=self.up_std)

    def build(self, frame: Frame) -> "MLA":
        return MLA(self, frame, self.shape(frame.dim))

    def cached_numbers(self, dim: int) -> int:
        """Numbers that a decoder keeps of a token in a layer: the latent. Keys and values are made of it anew at each
        step, since keys are normed and turned after U_k; to keep those instead takes 2 * K * C numbers."""
        return self.latent


class MLA(Attention):
    """h_BTD -> y_BTD."""

    def make_keys_values(self, config: GQAConfig, frame: Frame, kv_dim: int) -> None:
        latent, std = cast(MLAConfig, config).latent, cast(MLAConfig, config).up_std
        self.down, self.key_up, self.value_up = Dense(frame.dim, latent), Dense(latent, kv_dim), Dense(latent, kv_dim)
        orthogonal_(self.down.weight)
        for up in (self.key_up, self.value_up):
            if std is None:
                nn.init.uniform_(up.weight, -1 / math.sqrt(latent), 1 / math.sqrt(latent))
            else:
                nn.init.normal_(up.weight, std=std)

    def keys_values(self, h_BTD: Tensor) -> tuple[Tensor, Tensor]:
        c_BTR = self.down(h_BTD)
        return self.key_up(c_BTR), self.value_up(c_BTR)


@dataclass(kw_only=True, slots=True)
class DecoupledMLAConfig(MLAConfig):
    """The published form (DeepSeek-V2, arXiv 2405.04434), without compressed queries. With c = norm(W_d h):

    a head's key is [U_k c ; RoPE(W_kr h)], the second part one for all heads; its query [W_q h ; RoPE(W_qr h)]; scores
    are scaled by 1/sqrt(C + P), values are U_v c. Queries and keys are not normed; qk_gain multiplies whole queries.

    rotary_dim: P; null: half of a head's channels, as published. absorb: without gradients, attention looks at the
    latent itself, with U_k taken into the queries and U_v after it: the same numbers from a cache of R + P a token.
    It is what a decoder would do; whole windows are scored with less arithmetic without.
    """

    rotary_dim: int | None
    absorb: bool

    def __post_init__(self) -> None:
        MLAConfig.__post_init__(self)
        between(2, 2**12, rotary_dim=self.rotary_dim)
        if self.rotary_dim is not None and self.rotary_dim % 2:
            raise ValueError(f"rotary_dim={self.rotary_dim} must be even; try {self.rotary_dim + 1}")
        if self.absorb and any(part is not None for part in self.value.values()):
            raise ValueError("absorb=true leaves no values that parts could change; set it to false or model/value=[]")

    def build(self, frame: Frame) -> "DecoupledMLA":
        return DecoupledMLA(self, frame, self.shape(frame.dim))

    def rotary_channels(self, dim: int) -> int:
        """P."""
        return self.rotary_dim if self.rotary_dim is not None else max(2, 2 * round(dim / self.heads / 4))

    def kernel_channels(self, dim: int) -> int:
        """C + P; where training and scoring see different widths, the one that flash kernels refuse, if any."""
        whole = dim // self.heads + self.rotary_channels(dim)
        narrow = self.cached_numbers(dim)
        return narrow if self.absorb and whole % FLASH_CHANNELS == 0 else whole

    def cached_numbers(self, dim: int) -> int:
        """Numbers that a decoder keeps of a token in a layer: the normed latent and the turned part of the keys."""
        return self.latent + self.rotary_channels(dim)


class DecoupledMLA(MLA):
    """h_BTD -> y_BTD."""

    def __init__(self, config: DecoupledMLAConfig, frame: Frame, shape: Heads):
        super().__init__(config, frame, shape)
        self.absorb, rotary = config.absorb, config.rotary_channels(frame.dim)
        self.turning = config.rope.channels(rotary)
        self.query_turned = frame.matrix(frame.dim, shape.heads * rotary)
        self.key_turned = frame.matrix(frame.dim, rotary)

    def forward(self, h_BTD: Tensor, context: Context) -> Tensor:
        B, T, D = h_BTD.shape
        H, K, C = self.shape.heads, self.shape.kv_heads, self.shape.head_dim
        for part in self.input_parts.values():
            h_BTD = part(h_BTD, context)
        c_BTR = self.norm(self.down(h_BTD))
        gain_H1 = self.gain_H.to(h_BTD.dtype)[:, None]
        tables = self.rope.tables(context, self.turning, h_BTD)
        q_BTHC = self.query(h_BTD).view(B, T, H, C) * gain_H1
        q_BTHP = rotate(self.query_turned(h_BTD).view(B, T, H, -1), tables) * gain_H1
        k_BT1P = rotate(self.key_turned(h_BTD).view(B, T, 1, -1), tables)
        v_BTKC = self.value_up(c_BTR).view(B, T, K, C)
        for part in self.value_parts.values():
            v_BTKC = part(v_BTKC, h_BTD, context)
        if self.absorbs():
            y_BTHC = self.mix_latent(q_BTHC, q_BTHP, c_BTR, k_BT1P, context)
        else:
            k_BTKC = self.key_up(c_BTR).view(B, T, K, C)
            k_BTKX = torch.cat((k_BTKC, k_BT1P.expand(-1, -1, K, -1)), dim=-1)
            y_BTHC = self.mix(torch.cat((q_BTHC, q_BTHP), dim=-1), k_BTKX, v_BTKC, context)
        for part in self.output_parts.values():
            y_BTHC = part(y_BTHC, v_BTKC, h_BTD)
        return self.out(y_BTHC.reshape(B, T, D))

    def absorbs(self) -> bool:
        """Whether this pass looks at the latent; not where hooks on U_k or U_v (adapters, calibration) have a say."""
        hooked = [up._forward_hooks or up._forward_pre_hooks for up in (self.key_up, self.value_up)]
        return self.absorb and not torch.is_grad_enabled() and not any(hooked)

    def mix(self, q_BTHC: Tensor, k_BTKC: Tensor, v_BTKC: Tensor, context: Context) -> Tensor:
        """Values that are narrower than the keys are padded with zeros: kernels take one width."""
        width = v_BTKC.shape[-1]
        v_BTKC = F.pad(v_BTKC, (0, k_BTKC.shape[-1] - width))
        return context.attend(q_BTHC, k_BTKC, v_BTKC, self.window)[..., :width]

    def mix_latent(self, q_BTHC: Tensor, q_BTHP: Tensor, c_BTR: Tensor, k_BT1P: Tensor, context: Context) -> Tensor:
        """The latent is the values and most of the one key that all heads share; the kernel's scale is put right."""
        K, C, P = self.shape.kv_heads, self.shape.head_dim, q_BTHP.shape[-1]
        key_KCR = self.key_up.weight.to(c_BTR.dtype).unflatten(0, (K, C))
        value_KCR = self.value_up.weight.to(c_BTR.dtype).unflatten(0, (K, C))
        q_BTHR = torch.einsum("btkgc,kcr->btkgr", q_BTHC.unflatten(2, (K, -1)), key_KCR).flatten(2, 3)
        c_BT1R = c_BTR.unsqueeze(2)
        scale = math.sqrt((c_BTR.shape[-1] + P) / (C + P))
        q_BTHX = torch.cat((q_BTHR, q_BTHP), dim=-1) * scale
        y_BTHR = self.mix(q_BTHX, torch.cat((c_BT1R, k_BT1P), dim=-1), c_BT1R, context)
        return torch.einsum("btkgr,kcr->btkgc", y_BTHR.unflatten(2, (K, -1)), value_KCR).flatten(2, 3)
