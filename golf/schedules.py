"""Values that change during training, as pure functions of where the run is."""

from dataclasses import dataclass

from golf.fields import between, positive


@dataclass(frozen=True, slots=True)
class Tick:
    """Where a run is. step: optimizer steps taken; progress: 0 to 1 by the budget's clock; steps_left: steps until the
    end, exact on the step clock, from the median step time on the wall clock (so one slow step latches nothing)."""

    step: int
    progress: float
    steps_left: float


@dataclass(kw_only=True, slots=True)
class Schedule:
    """A value for each tick."""

    def __call__(self, tick: Tick) -> float:
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class Constant(Schedule):
    """The same value always."""

    value: float

    def __post_init__(self) -> None:
        between(0, 1e6, value=self.value)

    def __call__(self, tick: Tick) -> float:
        return self.value


@dataclass(kw_only=True, slots=True)
class Warmdown(Schedule):
    """1, then linear to `floor` over the last `steps` steps (upstream baseline; min LR of PR 1787)."""

    steps: int
    floor: float

    def __post_init__(self) -> None:
        positive(steps=self.steps)
        between(0, 1, floor=self.floor)

    def __call__(self, tick: Tick) -> float:
        return max(self.floor, min(1.0, tick.steps_left / self.steps))


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
