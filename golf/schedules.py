"""Values that change during training, as pure functions of where the run is."""

import math
from dataclasses import dataclass, replace

from golf.fields import between, one_of, positive


@dataclass(frozen=True, slots=True)
class Tick:
    """Where a run is. step: optimizer steps taken; progress: 0 to 1 by the budget's clock; steps_left: steps until the
    end, exact on the step clock, from the median step time on the wall clock (so one slow step latches nothing);
    decay: what the learning-rate schedule has come down to, its warm-up left out: 1 until it decays."""

    step: int
    progress: float
    steps_left: float
    decay: float = 1.0


@dataclass(kw_only=True, slots=True)
class Schedule:
    """A value for each tick."""

    def __call__(self, tick: Tick) -> float:
        raise NotImplementedError

    def decay(self, tick: Tick) -> float:
        """The value without a warm-up, which is no decay."""
        return self(tick)

    def at(self, tick: Tick) -> Tick:
        """The tick with what this schedule, the learning rate's, has come down to."""
        return replace(tick, decay=self.decay(tick))


SHAPES = ("linear", "cosine")


def _falling(left: float, shape: str, floor: float) -> float:
    """1 at left = 1, `floor` at left = 0 and where the line or the half cosine would pass below it."""
    left = min(1.0, max(0.0, left))
    return max(floor, left if shape == "linear" else (1 - math.cos(math.pi * left)) / 2)


@dataclass(kw_only=True, slots=True)
class Constant(Schedule):
    """The same value always."""

    value: float

    def __post_init__(self) -> None:
        between(0, 1e6, value=self.value)

    def __call__(self, tick: Tick) -> float:
        return self.value

    def decay(self, tick: Tick) -> float:
        return 1.0


@dataclass(kw_only=True, slots=True)
class Warmdown(Schedule):
    """1, then down to `floor` over the last `steps` steps (upstream baseline, linear; min LR of PR 1787)."""

    steps: int
    floor: float
    shape: str

    def __post_init__(self) -> None:
        positive(steps=self.steps)
        between(0, 1, floor=self.floor)
        one_of("shape", self.shape, SHAPES)

    def __call__(self, tick: Tick) -> float:
        return _falling(tick.steps_left / self.steps, self.shape, self.floor)


@dataclass(kw_only=True, slots=True)
class Cooldown(Schedule):
    """1, then down to `floor` over the last `fraction` of the run (the records from 1.0979 on, linear)."""

    fraction: float
    floor: float
    shape: str

    def __post_init__(self) -> None:
        between(1e-6, 1, fraction=self.fraction)
        between(0, 1, floor=self.floor)
        one_of("shape", self.shape, SHAPES)

    def __call__(self, tick: Tick) -> float:
        return _falling((1 - tick.progress) / self.fraction, self.shape, self.floor)


@dataclass(kw_only=True, slots=True)
class Warmup(Schedule):
    """From 0 up over the first `warmup_steps` steps, as far as `then` allows, and then `then` (D2Z of PR 401)."""

    warmup_steps: int
    then: Schedule

    def __post_init__(self) -> None:
        positive(warmup_steps=self.warmup_steps)

    def __call__(self, tick: Tick) -> float:
        return min(tick.step / self.warmup_steps, self.then(tick))

    def decay(self, tick: Tick) -> float:
        return self.then.decay(tick)


@dataclass(kw_only=True, slots=True)
class Ramp(Schedule):
    """Linear from `start` to `end` over the first `steps` steps, then `end` (Muon's momentum warm-up)."""

    start: float
    end: float
    steps: int

    def __post_init__(self) -> None:
        positive(steps=self.steps)
        between(0, 1e6, start=self.start, end=self.end)

    def __call__(self, tick: Tick) -> float:
        return self.start + (self.end - self.start) * min(1.0, tick.step / self.steps)


@dataclass(kw_only=True, slots=True)
class Taper(Schedule):
    """`start`, then linear to `end` between two parts of the run (weight decay of the 1.0678 record)."""

    start: float
    end: float
    begin: float
    finish: float

    def __post_init__(self) -> None:
        between(0, 1e6, start=self.start, end=self.end)
        between(0, 1, begin=self.begin, finish=self.finish)
        if self.begin >= self.finish:
            raise ValueError(f"begin={self.begin} must come before finish={self.finish}; they are parts of the run")

    def __call__(self, tick: Tick) -> float:
        share = (tick.progress - self.begin) / (self.finish - self.begin)
        return self.start + (self.end - self.start) * min(1.0, max(0.0, share))


@dataclass(kw_only=True, slots=True)
class AlongRate(Schedule):
    """`full` at the full learning rate, linear to `zero` where the rate has decayed to zero (PR 675)."""

    full: float
    zero: float

    def __post_init__(self) -> None:
        between(0, 1e6, full=self.full, zero=self.zero)

    def __call__(self, tick: Tick) -> float:
        return self.zero + (self.full - self.zero) * tick.decay


@dataclass(kw_only=True, slots=True)
class Start:
    """When something begins: at a part of the run, or once the learning rate has decayed below a part of itself.

    One of the two, the other null. Thresholds such as `scale < 0.2` in the PRs are `rate_below`. Both are functions of
    the tick, so nothing latches: a rate that is low in its warm-up has not decayed.
    """

    progress: float | None
    rate_below: float | None

    def __post_init__(self) -> None:
        between(0, 1, progress=self.progress, rate_below=self.rate_below)
        if (self.progress is None) == (self.rate_below is None):
            raise ValueError(
                f"progress={self.progress} and rate_below={self.rate_below}: set one of the two, the other to null"
            )

    def reached(self, tick: Tick) -> bool:
        if self.progress is not None:
            return tick.progress >= self.progress
        assert self.rate_below is not None
        return tick.decay < self.rate_below


@dataclass(kw_only=True, slots=True)
class Switch(Schedule):
    """0, and 1 from `start` on."""

    start: Start

    def __call__(self, tick: Tick) -> float:
        return float(self.start.reached(tick))
