"""The last part of the budget spent in another way: training on what was read before, or towards an average.

Both stages stood behind the clock in PR 401; here they are a share of the budget, and the schedule ends where they
begin.
"""

import copy
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from golf.averaging import Averager, assign, weights_of
from golf.curriculum import Shape
from golf.fields import between, positive
from golf.losses import NLL
from golf.models.lm import LM, Forward
from golf.schedules import Start, Tick
from golf.tokens.loader import Loader, State


class Late:
    """What a late stage changes; the base class is the null object, which has no late stage and changes nothing."""

    def __init__(self, config: "LateConfig | None" = None):
        self.share = 0.0 if config is None else config.share  # of the budget, at its end
        self.rate = None if config is None else config.rate

    def batch(self, loader: Loader, shape: Shape, tick: Tick) -> tuple[Tensor, Tensor]:
        """This rank's rows of the step at `tick`, x_BT and y_BT."""
        return loader.batch(shape.sequences, shape.length)

    def forward(self, forward: Forward, averager: Averager, tick: Tick) -> Forward:
        """The forward pass of the step at `tick`; `forward` is the usual one."""
        return forward

    def multiplier(self, usual: float, tick: Tick) -> float:
        """The learning-rate multiplier of the step at `tick`."""
        return usual if self.rate is None or not begun(tick) else self.rate

    def forwards(self) -> list[Forward]:
        """The passes of its own, for the warm-up of compiled ones."""
        return []

    def state(self) -> dict[str, Any]:
        """JSON-able; what a checkpoint must hold beside tensors()."""
        return {}

    def tensors(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint must hold."""
        return {}

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Take back what state() and tensors() gave."""


def begun(tick: Tick) -> bool:
    """Whether the late stage has: the schedules are at their end and the run goes on."""
    return tick.progress >= 1.0


@dataclass(kw_only=True, slots=True)
class LateConfig:
    """The slot. share: of the budget, at its end; rate: the learning-rate multiplier there. sees_rounding: whether its
    forward passes are those that QAT rounds. needs_average: whether it is nothing without averaged weights."""

    sees_rounding: ClassVar[bool] = True
    needs_average: ClassVar[bool] = False

    share: float
    rate: float

    def __post_init__(self) -> None:
        between(1e-6, 0.5, share=self.share)
        positive(rate=self.rate)

    def build(self, model: LM, compiled: Callable[[nn.Module], Forward]) -> Late:
        raise NotImplementedError


# ---------------------------------------------------------------- replay


@dataclass(kw_only=True, slots=True)
class ReplayConfig(LateConfig):
    """The last `count` batches before the stage, from `start` on, again and again in their order ("TTT burst" of
    PR 401, which is late training and no test-time training: 2 epochs over 100 batches at a tenth of the rate)."""

    start: Start
    count: int

    def __post_init__(self) -> None:
        LateConfig.__post_init__(self)
        positive(count=self.count)

    def build(self, model: LM, compiled: Callable[[nn.Module], Forward]) -> "Replay":
        return Replay(self)


class Replay(Late):
    """Remembers positions in the data, not the data."""

    def __init__(self, config: ReplayConfig):
        super().__init__(config)
        self.start = config.start
        self.seen: deque[State] = deque(maxlen=config.count)
        self.shape: Shape | None = None  # of what was seen
        self.played = 0

    def batch(self, loader: Loader, shape: Shape, tick: Tick) -> tuple[Tensor, Tensor]:
        if shape != self.shape:  # positions of other rows are positions of other text
            self.seen.clear()
            self.shape = shape
        if begun(tick) and self.seen:
            wanted = self.seen[self.played % len(self.seen)]
            if loader.state() != wanted:  # only where the row of batches begins again, if they are neighbours
                loader.seek(wanted)
            self.played += 1
        elif self.start.reached(tick):
            self.seen.append(loader.state())
        return super().batch(loader, shape, tick)

    def state(self) -> dict[str, Any]:
        shape = None if self.shape is None else [self.shape.sequences, self.shape.length]
        return {"seen": list(self.seen), "shape": shape, "played": self.played}

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        self.seen.clear()
        self.seen.extend(state["seen"])
        self.shape = None if state["shape"] is None else Shape(*state["shape"])
        self.played = state["played"]


# ---------------------------------------------------------------- self-distillation


@dataclass(kw_only=True, slots=True)
class DistillConfig(LateConfig):
    """Towards the averaged weights as they are when the stage begins, on new text: weight * T^2 * KL(teacher, student)
    + (1 - weight) * NLL, both a mean over tokens (PR 401, whose KL was a sum over each row's tokens)."""

    sees_rounding: ClassVar[bool] = False
    needs_average: ClassVar[bool] = True

    weight: float
    temperature: float

    def __post_init__(self) -> None:
        LateConfig.__post_init__(self)
        between(0, 1, weight=self.weight)
        positive(temperature=self.temperature)

    def build(self, model: LM, compiled: Callable[[nn.Module], Forward]) -> "Distill":
        return Distill(self, model, compiled)


class Distill(Late):
    """The teacher is a second model; it is filled when the stage begins."""

    def __init__(self, config: DistillConfig, model: LM, compiled: Callable[[nn.Module], Forward]):
        super().__init__(config)
        self.pair = Taught(model, config.weight, config.temperature)
        self.taught = compiled(self.pair)
        self.filled = False

    def forward(self, forward: Forward, averager: Averager, tick: Tick) -> Forward:
        if not begun(tick):
            return forward
        if not self.filled:
            self._fill(averager.averages(weights_of(self.pair.student)))
        return self.taught

    def forwards(self) -> list[Forward]:
        return [self.taught]

    def tensors(self) -> dict[str, Tensor]:
        return weights_of(self.pair.teacher) if self.filled else {}

    def load(self, state: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        if tensors:
            self._fill(tensors)

    def _fill(self, weights: dict[str, Tensor]) -> None:
        assign(self.pair.teacher, weights)
        self.filled = True


class Taught(nn.Module):
    """ids_BT, targets_BT -> losses of the student with the teacher's probabilities beside the targets."""

    def __init__(self, student: LM, weight: float, temperature: float):
        super().__init__()
        self.student, self.teacher = student, copy.deepcopy(student).requires_grad_(False)
        self.weight, self.temperature = weight, temperature

    def forward(self, ids_BT: Tensor, targets_BT: Tensor, stage: int | None = None) -> dict[str, Tensor]:
        student_NV, teacher_NV = (model.log_probs(ids_BT).flatten(0, 1) for model in (self.student, self.teacher))
        nll = F.nll_loss(student_NV, targets_BT.flatten())
        soft_NV, target_NV = (F.log_softmax(log_p_NV / self.temperature, -1) for log_p_NV in (student_NV, teacher_NV))
        kl = F.kl_div(soft_NV, target_NV, reduction="batchmean", log_target=True)  # a mean over N tokens
        objective = self.weight * self.temperature**2 * kl + (1 - self.weight) * nll
        return {NLL: nll.detach(), "objective": objective}
