"""Averages of the weights over training. Evals and the artifact use the averaged weights."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.fields import between


class Averager:
    """Follows a model's weights; the base class is the null object, whose average is the last weights."""

    identity = True  # the averaged weights are the model's own: a score of one is a score of the other

    def update(self, model: nn.Module) -> None:
        """Take in the weights after an optimizer step."""

    def averages(self, model: nn.Module) -> dict[str, Tensor]:
        """name -> averaged parameter."""
        return {name: parameter.detach() for name, parameter in model.named_parameters()}

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what state() gave."""

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the context the model holds the averaged weights; afterwards its own, bit for bit."""
        own = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
        _assign(model, self.averages(model))
        try:
            yield
        finally:
            _assign(model, own)


def _assign(model: nn.Module, weights: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(weights[name])


@dataclass(kw_only=True, slots=True)
class AverageConfig:
    """The slot."""

    def build(self, model: nn.Module) -> Averager:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class NoAverageConfig(AverageConfig):
    """The last weights."""

    def build(self, model: nn.Module) -> Averager:
        return Averager()


@dataclass(kw_only=True, slots=True)
class EMAConfig(AverageConfig):
    """Exponential moving average in fp32 with decay 1 - 1/horizon_steps (records: 0.997, a horizon of 333 steps).

    bias_correction divides by the weight collected so far, as Adam does; without it a run shorter than a few horizons
    keeps a share of its first weights.
    """

    horizon_steps: float
    bias_correction: bool

    def __post_init__(self) -> None:
        between(1, 1e9, horizon_steps=self.horizon_steps)

    def build(self, model: nn.Module) -> "EMA":
        return EMA(model, 1 - 1 / self.horizon_steps, self.bias_correction)


class EMA(Averager):
    """average <- decay * average + (1 - decay) * weights."""

    identity = False

    def __init__(self, model: nn.Module, decay: float, bias_correction: bool):
        self.decay = decay
        self.bias_correction = bias_correction
        start = torch.zeros_like if bias_correction else torch.clone
        self.shadow = {name: start(parameter.detach().float()) for name, parameter in model.named_parameters()}
        self.mass = 0.0 if bias_correction else 1.0  # the weight collected so far

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for name, parameter in model.named_parameters():
            self.shadow[name].lerp_(parameter.detach().float(), 1 - self.decay)
        self.mass = self.mass * self.decay + (1 - self.decay)

    def averages(self, model: nn.Module) -> dict[str, Tensor]:
        if self.mass == 0.0:
            return super().averages(model)
        return {name: shadow / self.mass for name, shadow in self.shadow.items()}

    def state(self) -> dict[str, Tensor]:
        return {**self.shadow, "mass": torch.tensor(self.mass, dtype=torch.float64)}

    def load(self, state: dict[str, Tensor]) -> None:
        self.mass = float(state["mass"])
        for name, shadow in self.shadow.items():
            shadow.copy_(state[name])
