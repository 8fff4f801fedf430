"""Schedules at hand-picked points, on both clocks."""

import math

import pytest

from golf.config import Budget
from golf.keeping import LoopState
from golf.loop import is_over, tick_of
from golf.schedules import AlongRate, Constant, Cooldown, Ramp, Start, Switch, Taper, Tick, Warmdown, Warmup

NOW = Tick(0, 0.0, 100)


def at(progress: float, *, step: int = 0, left: float = 100.0, decay: float = 1.0) -> Tick:
    return Tick(step, progress, left, decay)


def test_warmdown() -> None:
    down = Warmdown(steps=10, floor=0.1, shape="linear")
    assert [down(Tick(0, 0, left)) for left in (float("inf"), 20, 10, 5, 0.5, 0)] == [1, 1, 1, 0.5, 0.1, 0.1]
    half = Warmdown(steps=10, floor=0.0, shape="cosine")
    assert [half(Tick(0, 0, left)) for left in (11, 10, 5, 0)] == pytest.approx([1, 1, 0.5, 0])
    assert half(Tick(0, 0, 2.5)) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


def test_cooldown() -> None:
    down = Cooldown(fraction=0.8, floor=0.1, shape="linear")
    assert [down(at(p)) for p in (0, 0.2, 0.6, 0.9, 0.95, 1)] == pytest.approx([1, 1, 0.5, 0.125, 0.1, 0.1])


def test_decay_to_zero_has_a_warm_up_that_is_no_decay() -> None:
    d2z = Warmup(warmup_steps=200, then=Cooldown(fraction=1.0, floor=0.0, shape="linear"))
    assert [d2z(at(p, step=s)) for s, p in ((0, 0.0), (100, 0.01), (200, 0.02), (5000, 0.5), (10_000, 1.0))] == (
        pytest.approx([0, 0.5, 0.98, 0.5, 0])
    )
    late = Start(progress=None, rate_below=0.2)
    assert not late.reached(d2z.at(at(0.0, step=0))), "a rate of zero at the first step is no decayed rate"
    assert [late.reached(d2z.at(at(p, step=9000))) for p in (0.79, 0.81)] == [False, True]


def test_ramps_and_tapers() -> None:
    ramp = Ramp(start=0.85, end=0.95, steps=500)
    assert [ramp(Tick(step, 0, 0)) for step in (0, 250, 500, 900)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
    taper = Taper(start=0.09, end=0.045, begin=0.7, finish=1.0)
    assert [taper(at(p)) for p in (0, 0.7, 0.85, 1.0)] == pytest.approx([0.09, 0.09, 0.0675, 0.045])
    decay = AlongRate(full=0.02, zero=0.08)
    assert [decay(at(0, decay=rate)) for rate in (1.0, 0.5, 0.0)] == pytest.approx([0.02, 0.05, 0.08])
    assert Constant(value=3.0)(NOW) == 3.0


def test_a_switch_at_a_part_of_the_run_and_at_a_rate() -> None:
    by_time = Switch(start=Start(progress=0.35, rate_below=None))
    assert [by_time(at(p)) for p in (0.0, 0.34, 0.35, 1.0)] == [0, 0, 1, 1]
    by_rate = Switch(start=Start(progress=None, rate_below=0.15))
    assert [by_rate(at(0.5, decay=rate)) for rate in (1.0, 0.15, 0.149)] == [0, 0, 1]


@pytest.mark.parametrize("progress, rate_below", [(None, None), (0.5, 0.5)])
def test_a_start_is_one_thing_or_the_other(progress: float | None, rate_below: float | None) -> None:
    with pytest.raises(ValueError, match="set one of the two"):
        Start(progress=progress, rate_below=rate_below)


def test_a_stall_latches_no_wall_clock_schedule() -> None:
    """One slow first step (a compile) must not begin the warm-down: the median forgets it."""
    budget = Budget(max_steps=None, max_seconds=100.0, clock="seconds")
    state = LoopState()
    down = Warmdown(steps=100, floor=0.0, shape="linear")
    qat = Switch(start=Start(progress=None, rate_below=0.15))
    assert down(tick_of(budget, state)) == 1.0
    for seconds in [30.0] + [0.1] * 20:
        state.step += 1
        state.train_seconds += seconds
        state.step_seconds.append(seconds)
    tick = down.at(tick_of(budget, state))
    assert tick.steps_left == pytest.approx(680) and down(tick) == 1.0 and qat(tick) == 0.0
    assert tick.progress == pytest.approx(0.32)
    state.train_seconds = 95.0
    assert down(tick_of(budget, state)) == pytest.approx(0.5)
    state.train_seconds = 100.1
    assert is_over(budget, state) and down(tick_of(budget, state)) == 0.0


def test_a_stall_on_the_first_step_alone_latches_nothing() -> None:
    """With one step taken the median is that step: neither the rate nor a switch may follow it, not for a moment."""
    budget = Budget(max_steps=None, max_seconds=100.0, clock="seconds")
    down = Warmdown(steps=100, floor=0.0, shape="linear")
    qat = Switch(start=Start(progress=None, rate_below=0.15))
    state = LoopState(step=1, train_seconds=10.0, step_seconds=[10.0])
    for _ in range(8):
        tick = down.at(tick_of(budget, state))
        assert down(tick) == 1.0 and qat(tick) == 0.0
        state.step += 1
        state.train_seconds += 0.1
        state.step_seconds.append(0.1)


def test_the_other_limit_only_stops() -> None:
    budget = Budget(max_steps=100, max_seconds=5.0, clock="steps")
    state = LoopState(step=50, train_seconds=4.0)
    assert tick_of(budget, state) == Tick(50, 0.5, 50) and not is_over(budget, state)
    state.train_seconds = 5.0
    assert is_over(budget, state) and tick_of(budget, state).progress == 0.5


def test_schedules_end_where_the_late_stage_begins() -> None:
    budget = Budget(max_steps=100, max_seconds=None, clock="steps")
    ticks = [tick_of(budget, LoopState(step=step), 0.2) for step in (0, 40, 80, 90)]
    assert [(tick.progress, tick.steps_left) for tick in ticks] == [(0.0, 80), (0.5, 40), (1.0, 0), (1.0, 0)]
    assert not is_over(budget, LoopState(step=90))
    clock = Budget(max_steps=None, max_seconds=100.0, clock="seconds")
    state = LoopState(step=5, train_seconds=40.0, step_seconds=[8.0] * 5)
    assert tick_of(clock, state, 0.2) == Tick(5, 0.5, 5.0)
