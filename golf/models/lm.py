"""The language model shell: LM(embed, stack(blocks), head). Legend of the shapes: golf/models/slots.py."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from golf.errors import RunError, UserError
from golf.fields import between
from golf.losses import CROSS_ENTROPY, NLL
from golf.models.kernels import sdpa
from golf.models.norms import NORM_EPS, Norm
from golf.models.recall import Recall, piece_of
from golf.models.slots import (
    Attend,
    AuxiliaryConfig,
    Context,
    EmbedConfig,
    Frame,
    HeadConfig,
    LinearConfig,
    MixerConfig,
    MLPConfig,
    ResidualConfig,
    StackConfig,
    named_parts,
    take,
)
from golf.roles import roles_of

MOST_VOCAB, MOST_DIM, MOST_LAYERS = 2**16, 2**16, 2**12  # ids are uint16; no artifact holds a model beyond these

Forward = Callable[..., dict[str, Tensor]]  # ids_BT, targets_BT, stage -> named losses: a model, or what stands for it


@dataclass(kw_only=True, slots=True)
class LMConfig:
    """A model is what stands in its slots; `auxiliary` holds named losses that only training uses.

    norm_eps: what every norm of activations adds to the mean square before its root, whatever the type; null: 1e-6.
    Upstream leaves it to torch, which takes 1.2e-7 in fp32. What makes weights (siren, hypernetwork) or states (mps)
    norms with 1e-6.
    """

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
    auxiliary: dict[str, AuxiliaryConfig | None] = field(default_factory=dict)
    norm_eps: float | None = None

    def __post_init__(self) -> None:
        between(1, MOST_VOCAB, vocab_size=self.vocab_size)
        between(1, MOST_DIM, dim=self.dim)
        between(1, MOST_LAYERS, layers=self.layers)
        between(1e-12, 1, norm_eps=self.norm_eps)

    def build(self) -> "LM":
        """A model with fresh weights from torch's global generator, on the current default device."""
        return LM(self)

    def build_on_meta(self, most_weights: int | None = None) -> "LM":
        """The model without memory or values: names and shapes only. most_weights: as of Frame."""
        with torch.device("meta"), _NoFill():
            return LM(self, most_weights)

    def exported(self) -> "LMConfig":
        """The model that the artifact holds: what only training uses is left out."""
        return replace(self, auxiliary={})


class _NoFill(TorchFunctionMode):
    """Random fills do nothing (on the meta device the first normal_ would import two seconds of symbolic algebra)."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (Tensor.normal_, Tensor.uniform_):
            return args[0]
        return func(*args, **(kwargs or {}))


class Block(nn.Module):
    """One layer: what mixes tokens, what mixes channels, and how both add back."""

    def __init__(self, config: LMConfig, frame: Frame, layer: int):
        super().__init__()
        frame = replace(frame, read_scale=config.residual.read_scale(layer))
        self.mixer = config.mixer.build(frame.at(layer, "mixer"))
        self.mlp = config.mlp.build(frame.at(layer, "mlp"))
        self.residual = config.residual.build(frame.at(layer))

    def forward(self, x_BTD: Tensor, context: Context) -> Tensor:
        return self.residual(x_BTD, context, self.mixer, self.mlp)


class LM(nn.Module):
    """ids_BT -> losses or log-probabilities. Weights are fp32 masters; activations run in `compute_dtype`."""

    embed: Any
    head: Any

    def __init__(self, config: LMConfig, most_weights: int | None = None):
        super().__init__()
        self.norm = Norm(config.norm_eps or NORM_EPS)
        sizes = config.vocab_size, config.dim, config.layers
        frame = Frame(*sizes, config.linear, most_weights=most_weights, norm=self.norm)
        self.embed = config.embed.build(frame)
        self.stack = config.stack.build(frame, lambda layer: Block(config, frame, layer), config.residual)
        if not self.stack.reads_input and len(self.embed.features):
            unread, stack = ", ".join(self.embed.features), type(self.stack).__name__
            raise UserError(f"model.embed.features={unread}: {stack} reads tokens alone; set model/features=[]")
        self.head = config.head.build(frame)
        if NLL in config.auxiliary:
            raise UserError(f"model.auxiliary.{NLL}: the head's own loss has this name; choose another")
        self.auxiliary = named_parts("model.auxiliary", config.auxiliary, lambda part: part.build(frame))
        self.shared = nn.ModuleDict(frame.shared)
        self.compute_dtype = torch.float32
        self.attend: Attend = sdpa
        self.text_length: int | None = None  # what an evaluator declares; None: each pass is a whole text
        self.loss = CROSS_ENTROPY

    def stage(self, progress: float) -> int:
        """Which stage of the stack trains at this part of training, 0 to 1."""
        return sum(progress >= start for start in self.stack.starts)

    def stored_roles(self) -> dict[str, str]:
        """name -> role of what the artifact holds: all but what only training uses, as in LMConfig.exported()."""
        return {name: role for name, role in roles_of(self).items() if not name.startswith("auxiliary.")}

    def repeated_params(self) -> int:
        """What the model would hold in addition if nothing were used twice."""
        return self.stack.repeated_params() + sum(getattr(module, "borrowed", 0) for module in self.modules())

    def hidden(
        self,
        ids_BT: Tensor,
        stage: int | None = None,
        losses: dict[str, Tensor] | None = None,
        past: Recall | None = None,
    ) -> Tensor:
        """ids_BT -> x_BTD, normed, ready for the head. losses: where parts put further losses of their own.

        past: keys and values of the first tokens of these texts, to which those of the others are added; x_BTD is of
        those others. It is for stacks that have no reason against it (StackModule.why_whole). Raises RunError where a
        text is longer than text_length, or where `past` comes without it.
        """
        length = self._text_length(ids_BT.shape[1], past is not None)
        x_BND, places = self.embed(ids_BT, self.compute_dtype), self.embed.places(ids_BT.shape[1])
        context = Context(ids_BT, x_BND, places, self.attend, self.shared, length, stage, read=self._read)
        if past is not None:
            context = piece_of(context, past.positions, places.count, past.next_chunk())
        x_BND = self.stack(context.x0_BND, context)
        if losses is not None:
            losses |= context.losses
        return self.norm(take(x_BND, context.places.reads))

    def _text_length(self, tokens: int, goes_on: bool) -> int:
        """Return the length of text that positions are made for, of a pass of so many tokens."""
        if self.text_length is None and goes_on:
            raise RunError("a text that is passed in pieces needs LM.text_length: how long it may become")
        if self.text_length is not None and tokens > self.text_length:
            raise RunError(f"a text of {tokens} tokens is passed where at most {self.text_length} were declared")
        return self.text_length or tokens

    def _read(self, x_BND: Tensor) -> Tensor:
        """Log-probabilities from all positions."""
        logp_BNV: Tensor = self.head.log_probs(self.norm(x_BND), self.embed.table_VD)
        return logp_BNV

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, stage: int | None = None) -> dict[str, Tensor]:
        """Named losses, each a scalar in fp32, that add up to what is trained; `nll` is the mean nats per token."""
        further: dict[str, Tensor] = {}
        x_BTD = self.hidden(ids_BT, stage, further)
        losses = self.head.losses(x_BTD, targets_BT, self.embed.table_VD, self.loss)
        return losses | further | {name: part(x_BTD, targets_BT) for name, part in self.auxiliary.items()}

    def log_probs(self, ids_BT: Tensor, last: int | None = None) -> Tensor:
        """Log-probabilities over the whole vocabulary for the token after each position: fp32, (B, T or last, V)."""
        x_BTD = self.hidden(ids_BT)
        if last is not None:
            x_BTD = x_BTD[:, -last:]
        return self.head.log_probs(x_BTD, self.embed.table_VD)


@contextmanager
def declared_length(model: LM, length: int) -> Iterator[None]:
    """Tell the model how long the texts may become that it is asked for in here."""
    before = model.text_length
    model.text_length = length
    try:
        yield
    finally:
        model.text_length = before
