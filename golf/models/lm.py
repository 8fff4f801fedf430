"""The language model shell: LM(embed, stack(blocks), head). Legend of the shapes: golf/models/slots.py."""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from golf.fields import positive
from golf.models.kernels import sdpa
from golf.models.norms import norm
from golf.models.slots import (
    Attend,
    Context,
    EmbedConfig,
    HeadConfig,
    LinearConfig,
    MixerConfig,
    MLPConfig,
    ResidualConfig,
    StackConfig,
)


@dataclass(kw_only=True, slots=True)
class LMConfig:
    """A model is what stands in its slots."""

    vocab_size: int
    dim: int
    layers: int
    embed: EmbedConfig
    mixer: MixerConfig
    mlp: MLPConfig
    residual: ResidualConfig
    stack: StackConfig
    linear: LinearConfig
    head: HeadConfig

    def __post_init__(self) -> None:
        positive(vocab_size=self.vocab_size, dim=self.dim, layers=self.layers)

    def build(self) -> "LM":
        """A model with fresh weights from torch's global generator, on the current default device."""
        return LM(self)

    def build_on_meta(self) -> "LM":
        """The model without memory or values: names and shapes only."""
        with torch.device("meta"), _NoFill():
            return LM(self)


class _NoFill(TorchFunctionMode):
    """Random fills do nothing (on the meta device the first normal_ would import two seconds of symbolic algebra)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


class Block(nn.Module):
    """One layer: what mixes tokens, what mixes channels, and how both add back."""

    def __init__(self, config: LMConfig, layer: int):
        super().__init__()
        self.mixer = config.mixer.build(config.dim, config.linear, layer, config.layers)
        self.mlp = config.mlp.build(config.dim, config.linear)
        self.residual = config.residual.build(config.dim, layer, config.layers)

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return self.residual(x_BTD, context, self.mixer, self.mlp)


class LM(nn.Module):
    """ids_BT -> losses or log-probabilities. Weights are fp32 masters; activations run in `compute_dtype`."""

    embed: nn.Module
    head: Any

    def __init__(self, config: LMConfig):
        super().__init__()
        self.embed = config.embed.build(config.vocab_size, config.dim)
        self.stack = config.stack.build(config.dim, config.layers, lambda layer: Block(config, layer))
        self.head = config.head.build(config.vocab_size, config.dim)
        self.compute_dtype = torch.float32
        self.attend: Attend = sdpa

    def hidden(self, ids_BT: Tensor) -> Tensor:
        """ids_BT -> x_BTD, normed, ready for the head."""
        x_BTD = norm(self.embed(ids_BT).to(self.compute_dtype))
        context = Context(ids_BT=ids_BT, x0_BTD=x_BTD, attend=self.attend)
        return norm(self.stack(x_BTD, context))

    def forward(self, ids_BT: Tensor, targets_BT: Tensor) -> dict[str, Tensor]:
        """Named losses, each a scalar in fp32, already weighted; `nll` is the mean nats per token."""
        return self.head.losses(self.hidden(ids_BT), targets_BT, self.embed.table_VD)

    def log_probs(self, ids_BT: Tensor, last: int | None = None) -> Tensor:
        """Log-probabilities over the whole vocabulary for the token after each position: fp32, (B, T or last, V)."""
        x_BTD = self.hidden(ids_BT)
        if last is not None:
            x_BTD = x_BTD[:, -last:]
        return self.head.log_probs(x_BTD, self.embed.table_VD)
