"""Averages of the weights over training. Evals and the artifact use the averaged weights.

Averages nest: a mean of snapshots may take them from the weights themselves or from another average of them.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.checkpoint import pack, unpack
from golf.fields import between, positive
from golf.schedules import Start, Tick

Weights = Mapping[str, Tensor]


class Averager:
    """Follows a model's weights; the base class is the null object, whose average is the last weights."""

    @property
    def identity(self) -> bool:
        """Whether the average is the weights themselves, so that a score of one is a score of the other."""
        return True

    def name(self) -> str:
        """What the average is now, for results."""
        return "last weights"

    def update(self, weights: Weights, tick: Tick) -> None:
        """Take in the weights after the optimizer step that began at `tick`."""

    def never_begun(self) -> list[str]:
        """Return the keys of averages that took no weights at all."""
        return []

    def averages(self, weights: Weights) -> dict[str, Tensor]:
        """name -> averaged parameter; weights: the last ones. What it gives is not to be written to."""
        return dict(weights)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold."""
        return {}

    def load(self, state: dict[str, Tensor]) -> None:
        """Take back what state() gave."""

    @contextmanager
    def applied(self, model: nn.Module) -> Iterator[None]:
        """Within the context the model holds the averaged weights; afterwards its own, bit for bit."""
        own = {name: weight.clone() for name, weight in weights_of(model).items()}
        assign(model, self.averages(own))
        try:
            yield
        finally:
            assign(model, own)


def weights_of(model: nn.Module) -> dict[str, Tensor]:
    """name -> parameter, without its history."""
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def assign(model: nn.Module, weights: Weights) -> None:
    """Give the model these weights, each in the type of its parameter."""
    for name, weight in weights_of(model).items():
        weight.copy_(weights[name])


@dataclass(kw_only=True, slots=True)
class AverageConfig:
    """The slot."""

    def build(self, weights: Weights) -> Averager:
        """An averager that has seen nothing but the first weights."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class NoAverageConfig(AverageConfig):
    """The last weights."""

    def build(self, weights: Weights) -> Averager:
        return Averager()


# ---------------------------------------------------------------- exponential


@dataclass(kw_only=True, slots=True)
class EMAConfig(AverageConfig):
    """Exponential moving average in fp32 with decay 1 - 1/horizon_steps (records: 0.997, a horizon of 333.33 steps).

    bias_correction divides by the weight collected so far, as Adam does; without it a run shorter than a few horizons
    keeps a share of its first weights.
    """

    horizon_steps: float
    bias_correction: bool

    def __post_init__(self) -> None:
        between(1, 1e9, horizon_steps=self.horizon_steps)

    def build(self, weights: Weights) -> "EMA":
        return EMA(weights, self.horizon_steps, self.bias_correction)


class EMA(Averager):
    """average <- decay * average + (1 - decay) * weights."""

    def __init__(self, weights: Weights, horizon_steps: float, bias_correction: bool):
        self.horizon_steps, self.bias_correction = horizon_steps, bias_correction
        self.decay = 1 - 1 / horizon_steps
        start = torch.zeros_like if bias_correction else torch.clone
        self.shadow = {name: start(weight.float()) for name, weight in weights.items()}
        self.mass = 0.0 if bias_correction else 1.0  # the weight collected so far

    @property
    def identity(self) -> bool:
        return self.mass == 0.0

    def name(self) -> str:
        if self.identity:
            return super().name()
        return f"EMA over {self.horizon_steps:g} steps{'' if self.bias_correction else ', first weights kept'}"

    @torch.no_grad()
    def update(self, weights: Weights, tick: Tick) -> None:
        torch._foreach_lerp_(list(self.shadow.values()), [w.float() for w in weights.values()], 1 - self.decay)
        self.mass = self.mass * self.decay + (1 - self.decay)

    def averages(self, weights: Weights) -> dict[str, Tensor]:
        if self.identity:
            return dict(weights)
        return {name: shadow / self.mass for name, shadow in self.shadow.items()}

    def state(self) -> dict[str, Tensor]:
        return {**self.shadow, "mass": torch.tensor(self.mass, dtype=torch.float64)}

    def load(self, state: dict[str, Tensor]) -> None:
        self.mass = float(state["mass"])
        for name, shadow in self.shadow.items():
            shadow.copy_(state[name])


# ---------------------------------------------------------------- snapshots


class Snapshots(Averager):
    """What SWA and LAWA share: every so many steps from a start on, they take what `of` gives. Before the first
    snapshot the average is that of `of`."""

    def __init__(self, of: Averager, start: Start, every_steps: int):
        self.of, self.start, self.every_steps = of, start, every_steps

    def update(self, weights: Weights, tick: Tick) -> None:
        self.of.update(weights, tick)
        if self.start.reached(tick) and (tick.step + 1) % self.every_steps == 0:
            self.take({name: weight.float() for name, weight in self.of.averages(weights).items()})

    def take(self, snapshot: dict[str, Tensor]) -> None:
        raise NotImplementedError

    def never_begun(self) -> list[str]:
        return [*self.of.never_begun(), *(["average.every_steps"] if self.empty else [])]

    @property
    def empty(self) -> bool:
        """Whether no snapshot was taken."""
        raise NotImplementedError

    @property
    def identity(self) -> bool:
        return self.empty and self.of.identity

    def state(self) -> dict[str, Tensor]:
        return pack({"of": self.of.state()})

    def load(self, state: dict[str, Tensor]) -> None:
        self.of.load(unpack(state, "of"))


@dataclass(kw_only=True, slots=True)
class SWAConfig(AverageConfig):
    """The mean of snapshots (arXiv 1803.05407), in fp32; "tight" is a late start (PR 374: rate below 0.2).

    of: the average that snapshots are taken of (PR 401: EMA), null the weights. with_last: the weights at the end
    count as one more snapshot.
    """

    every_steps: int
    start: Start
    with_last: bool
    of: AverageConfig | None

    def __post_init__(self) -> None:
        positive(every_steps=self.every_steps)

    def build(self, weights: Weights) -> "SWA":
        return SWA(_source(self.of).build(weights), self.start, self.every_steps, self.with_last)


class SWA(Snapshots):
    """A running mean: two copies of the weights however many snapshots."""

    def __init__(self, of: Averager, start: Start, every_steps: int, with_last: bool):
        super().__init__(of, start, every_steps)
        self.with_last = with_last
        self.taken = 0
        self.mean: dict[str, Tensor] = {}

    @property
    def empty(self) -> bool:
        return self.taken == 0

    def name(self) -> str:
        return f"SWA of {self.taken} x {self.of.name()}" if self.taken else self.of.name()

    def take(self, snapshot: dict[str, Tensor]) -> None:
        self.taken += 1
        if self.taken == 1:
            self.mean = {name: weight.clone() for name, weight in snapshot.items()}
        for name, mean in self.mean.items():
            mean.lerp_(snapshot[name], 1 / self.taken)

    def averages(self, weights: Weights) -> dict[str, Tensor]:
        last = self.of.averages(weights)
        if self.taken == 0:
            return last
        share = 1 / (self.taken + 1) if self.with_last else 0.0
        return {name: mean.lerp(last[name].float(), share) for name, mean in self.mean.items()}

    def state(self) -> dict[str, Tensor]:
        return super().state() | pack({"mean": self.mean}) | {"taken": torch.tensor(self.taken)}

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self.taken = int(state["taken"])
        self.mean = {name: tensor.clone() for name, tensor in unpack(state, "mean").items()}


@dataclass(kw_only=True, slots=True)
class LAWAConfig(AverageConfig):
    """The mean of the latest `count` snapshots (LAtest Weight Averaging, arXiv 2209.14981), in fp32.

    of: the average that snapshots are taken of, null the weights.
    """

    every_steps: int
    start: Start
    count: int
    of: AverageConfig | None

    def __post_init__(self) -> None:
        positive(every_steps=self.every_steps, count=self.count)

    def build(self, weights: Weights) -> "LAWA":
        return LAWA(_source(self.of).build(weights), self.start, self.every_steps, self.count)


class LAWA(Snapshots):
    """Holds the snapshots themselves, the oldest dropped."""

    def __init__(self, of: Averager, start: Start, every_steps: int, count: int):
        super().__init__(of, start, every_steps)
        self.count = count
        self.kept: deque[dict[str, Tensor]] = deque(maxlen=count)

    @property
    def empty(self) -> bool:
        return not self.kept

    def name(self) -> str:
        return f"LAWA of {len(self.kept)} x {self.of.name()}" if self.kept else self.of.name()

    def take(self, snapshot: dict[str, Tensor]) -> None:
        self.kept.append({name: weight.clone() for name, weight in snapshot.items()})

    def averages(self, weights: Weights) -> dict[str, Tensor]:
        if not self.kept:
            return self.of.averages(weights)
        return {name: torch.stack([snapshot[name] for snapshot in self.kept]).mean(dim=0) for name in self.kept[0]}

    def state(self) -> dict[str, Tensor]:
        return super().state() | pack({f"kept{i}": snapshot for i, snapshot in enumerate(self.kept)})

    def load(self, state: dict[str, Tensor]) -> None:
        super().load(state)
        self.kept.clear()
        for index in range(self.count):
            if snapshot := unpack(state, f"kept{index}"):
                self.kept.append({name: tensor.clone() for name, tensor in snapshot.items()})


def _source(config: AverageConfig | None) -> AverageConfig:
    return NoAverageConfig() if config is None else config
