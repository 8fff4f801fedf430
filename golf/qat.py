"""Quantisation-aware training: the forward pass sees the weights as the artifact will give them back.

The rounding is the exporter's own, so that what training sees at full strength is bitwise what is read back. It is a
second module around the model, not a flag in it: a flag read while torch.compile traces is a constant ever after (late
QAT of PRs 315, 374 and 414 was never active). The loop picks the module, the strength is a tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from golf.errors import UserError
from golf.models.lm import LM, Forward
from golf.quant.formats import FormatConfig
from golf.quant.quantizer import QuantConfig
from golf.schedules import Schedule, Tick


@dataclass(kw_only=True, slots=True)
class QATConfig:
    """strength: 0 is off, 1 the stored values, between them a mixture. Formats and roles are those of `quant`."""

    strength: Schedule

    def build(self, model: LM, quant: QuantConfig, compiled: Callable[[nn.Module], Forward]) -> "RoundingQAT":
        """compiled: torch.compile or nothing, for either pass. Raises UserError where `quant` rounds nothing."""
        return RoundingQAT(self.strength, compiled(model), Rounded(model, rounding_formats(model, quant)), compiled)


class QAT:
    """Which forward pass a step takes; the base class is the null object, always the plain model's."""

    def __init__(self, plain: Forward):
        self.plain = plain

    def forward(self, tick: Tick) -> Forward:
        """The forward pass of the step at `tick`."""
        return self.plain

    def forwards(self) -> list[Forward]:
        """Every pass that a run may take, for the warm-up of compiled ones."""
        return [self.plain]


class RoundingQAT(QAT):
    """The plain model's pass, or the one with rounded weights where the strength is above 0."""

    def __init__(
        self, schedule: Schedule, plain: Forward, rounded: "Rounded", compiled: Callable[[nn.Module], Forward]
    ):
        super().__init__(plain)
        self.schedule, self.strength, self.rounded = schedule, rounded.strength, compiled(rounded)

    def forward(self, tick: Tick) -> Forward:
        strength = self.schedule(tick)
        if strength == 0.0:
            return self.plain
        self.strength.fill_(strength)
        return self.rounded

    def forwards(self) -> list[Forward]:
        return [self.plain, self.rounded]


def rounding_formats(model: LM, quant: QuantConfig) -> dict[str, FormatConfig]:
    """parameter name -> format, for what the artifact holds as integers. Raises UserError where that is nothing."""
    formats = {name: quant.formats[entry] for name, entry in quant.assign(model.stored_roles()).items()}
    shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
    rounding = {name: chosen for name, chosen in formats.items() if chosen.rounds(shapes[name])}
    if not rounding:
        raise UserError("qat: this quantiser stores no integers; take another quant, or leave qat out (qat=null)")
    return rounding


class Rounded(nn.Module):
    """The model with weights as stored: w + strength * (stored(w) - w), in fp32; gradients go to w unchanged."""

    strength: Tensor

    def __init__(self, model: LM, formats: dict[str, FormatConfig]):
        super().__init__()
        self.model, self.formats = model, formats
        device = next(model.parameters()).device
        self.register_buffer("strength", torch.ones((), device=device), persistent=False)

    def forward(self, *arguments: Any) -> dict[str, Tensor]:
        losses: dict[str, Tensor] = functional_call(self.model, self.weights(), arguments)
        return losses

    def weights(self) -> dict[str, Tensor]:
        """name -> what the forward pass uses instead of the parameter."""
        parameters = dict(self.model.named_parameters())
        return {name: _round(parameters[name], chosen, self.strength) for name, chosen in self.formats.items()}


def _round(weight: Tensor, chosen: FormatConfig, strength: Tensor) -> Tensor:
    with torch.no_grad():
        stored = chosen.decode(chosen.encode(weight[None]), tuple(weight.shape))[0]
        seen = torch.lerp(weight.float(), stored, strength).to(weight.dtype)
    return _StraightThrough.apply(weight, seen)


class _StraightThrough(torch.autograd.Function):
    """The value of the second, the gradient to the first (arXiv 1308.3432). A sum with a detached difference would be
    the value but for rounding."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, seen: Tensor) -> Tensor:
        return seen.view_as(seen)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None
