"""Schedules at hand-picked points, averages against closed forms."""

import pytest
import torch
from torch import nn

from golf.averaging import EMAConfig, NoAverageConfig
from golf.config import Budget
from golf.loop import LoopState, is_over, tick_of
from golf.schedules import Constant, Ramp, Tick, Warmdown

NOW = Tick(step=3, progress=0.3, steps_left=7)


def test_schedules_at_points() -> None:
    down = Warmdown(steps=10, floor=0.1)
    assert [down(Tick(0, 0, left)) for left in (float("inf"), 20, 10, 5, 0.5, 0)] == [1, 1, 1, 0.5, 0.1, 0.1]
    ramp = Ramp(start=0.85, end=0.95, steps=500)
    assert [ramp(Tick(step, 0, 0)) for step in (0, 250, 500, 900)] == pytest.approx([0.85, 0.9, 0.95, 0.95])
    assert Constant(value=3.0)(NOW) == 3.0


def test_a_stall_latches_no_wall_clock_schedule() -> None:
    """One slow first step (a compile) must not begin the warm-down: the median forgets it."""
    budget = Budget(max_steps=None, max_seconds=100.0, clock="seconds")
    state = LoopState()
    down = Warmdown(steps=100, floor=0.0)
    assert down(tick_of(budget, state)) == 1.0
    for seconds in [30.0] + [0.1] * 20:
        state.step += 1
        state.train_seconds += seconds
        state.step_seconds.append(seconds)
    tick = tick_of(budget, state)
    assert tick.steps_left == pytest.approx(680) and down(tick) == 1.0
    assert tick.progress == pytest.approx(0.32)
    state.train_seconds = 95.0
    assert down(tick_of(budget, state)) == pytest.approx(0.5)
    state.train_seconds = 100.1
    assert is_over(budget, state) and down(tick_of(budget, state)) == 0.0


def test_the_other_limit_only_stops() -> None:
    budget = Budget(max_steps=100, max_seconds=5.0, clock="steps")
    state = LoopState(step=50, train_seconds=4.0)
    assert tick_of(budget, state) == Tick(50, 0.5, 50) and not is_over(budget, state)
    state.train_seconds = 5.0
    assert is_over(budget, state) and tick_of(budget, state).progress == 0.5


def path_of(model: nn.Linear, steps: int) -> list[torch.Tensor]:
    torch.manual_seed(1)
    return [torch.randn_like(model.weight) for _ in range(steps)]


@pytest.mark.parametrize("corrected", [True, False])
def test_ema_against_its_closed_form(corrected: bool) -> None:
    model = nn.Linear(3, 2, bias=False)
    start = model.weight.detach().clone()
    averager = EMAConfig(horizon_steps=4, bias_correction=corrected).build(model)
    path = path_of(model, 6)
    for weights in path:
        model.weight.data.copy_(weights)
        averager.update(model)
    shares = [0.25 * 0.75 ** (5 - i) for i in range(6)]
    expected = sum(share * weights for share, weights in zip(shares, path, strict=True))
    expected = expected / sum(shares) if corrected else expected + 0.75**6 * start
    assert torch.allclose(averager.averages(model)["weight"], expected, atol=1e-6)
    copy = EMAConfig(horizon_steps=4, bias_correction=corrected).build(model)
    copy.load({name: tensor.clone() for name, tensor in averager.state().items()})
    assert torch.equal(copy.averages(model)["weight"], averager.averages(model)["weight"])


def test_applied_swaps_and_restores_bitwise() -> None:
    model = nn.Linear(3, 2, bias=False)
    averager = EMAConfig(horizon_steps=2, bias_correction=True).build(model)
    for weights in path_of(model, 3):
        model.weight.data.copy_(weights)
        averager.update(model)
    own = model.weight.detach().clone()
    average = averager.averages(model)["weight"].clone()
    with pytest.raises(RuntimeError), averager.applied(model):
        assert torch.equal(model.weight, average) and not torch.equal(own, average)
        raise RuntimeError("in the middle")
    assert torch.equal(model.weight, own)


def test_no_average_is_the_model() -> None:
    model = nn.Linear(3, 2, bias=False)
    averager = NoAverageConfig().build(model)
    averager.update(model)
    assert averager.identity and torch.equal(averager.averages(model)["weight"], model.weight)
