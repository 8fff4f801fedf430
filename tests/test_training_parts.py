"""Optimizers against oracles, schedules at hand-picked points, averages against closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from golf.averaging import EMAConfig, NoAverageConfig
from golf.config import Budget, Run
from golf.loop import LoopState, is_over, tick_of
from golf.optim.adamw import AdamWConfig
from golf.optim.muon import QUINTIC, MuonConfig, newton_schulz
from golf.schedules import Constant, Ramp, Tick, Warmdown

NOW = Tick(step=3, progress=0.3, steps_left=7)


def matrices(*shapes: tuple[int, int]) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    parameters = {f"w{i}": nn.Parameter(torch.randn(shape)) for i, shape in enumerate(shapes)}
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    return parameters


def muon(**fields: object) -> MuonConfig:
    base = {"lr": 0.1, "momentum": Constant(value=0.9), "nesterov": True, "newton_schulz_steps": 5}
    return MuonConfig(**{**base, "weight_decay": Constant(value=0.0), **fields})


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_newton_schulz_keeps_singular_vectors_and_levels_values(shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(1, *shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    result = newton_schulz(matrix, 5, torch.float64)[0]
    inside = u.T @ result @ vh.T
    assert torch.allclose(inside, torch.diag(inside.diag()), atol=1e-9)
    expected = s / (matrix.norm() + 1e-7)
    for _ in range(5):
        a, b, c = QUINTIC
        expected = a * expected + b * expected**3 + c * expected**5
    assert torch.allclose(inside.diag(), expected, atol=1e-9)
    assert inside.diag().min() > 0.6 and inside.diag().max() < 1.3


def test_muon_batches_equal_one_matrix_at_a_time() -> None:
    """Two steps by the published rule, a matrix at a time, in plain tensor algebra."""
    parameters = matrices((6, 4), (6, 4), (4, 6))
    expected = {name: p.detach().clone() for name, p in parameters.items()}
    buffers = {name: torch.zeros_like(p) for name, p in expected.items()}
    group = muon(weight_decay=Constant(value=0.1)).build(parameters, torch.float32)
    for multiplier in (1.0, 0.5):
        lr = 0.1 * multiplier
        for name, weight in expected.items():
            gradient = parameters[name].grad
            buffers[name] = 0.9 * buffers[name] + gradient
            update = newton_schulz((gradient + 0.9 * buffers[name])[None], 5, torch.float32)[0]
            rows, cols = weight.shape
            expected[name] = weight * (1 - lr * 0.1) - lr * math.sqrt(max(1, rows / cols)) * update
        group.step(multiplier, NOW)
    for name, weight in expected.items():
        assert torch.allclose(parameters[name], weight, atol=1e-5), name


def test_muon_agrees_with_torch_muon() -> None:
    """torch's own Muon (bf16 Newton-Schulz, Nesterov by interpolation) moves the same way for a first step."""
    ours, theirs = matrices((12, 12)), matrices((12, 12))
    before = ours["w0"].detach().clone()
    muon(lr=0.02).build(ours, torch.bfloat16).step(1.0, NOW)
    torch.optim.Muon(list(theirs.values()), lr=0.02, momentum=0.9, weight_decay=0.0).step()
    a, b = ours["w0"].detach() - before, theirs["w0"].detach() - before
    assert torch.cosine_similarity(a.flatten(), b.flatten(), dim=0) > 0.999
    assert a.norm() == pytest.approx(b.norm().item(), rel=0.02)


def test_muon_momentum_follows_its_schedule() -> None:
    ramp = Ramp(start=0.5, end=0.9, steps=4)
    parameters = matrices((4, 4))
    group = muon(momentum=ramp).build(parameters, torch.float32)
    group.step(1.0, Tick(0, 0, 9))
    first = group.state()["w0"].clone()
    group.step(1.0, Tick(2, 0, 9))
    assert torch.allclose(group.state()["w0"], 0.7 * first + parameters["w0"].grad, atol=1e-6)


def test_adamw_is_torch_adamw_bitwise() -> None:
    ours, theirs = matrices((5, 3)), matrices((5, 3))
    config = AdamWConfig(lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=Constant(value=0.1))
    group = config.build(ours, torch.float32)
    oracle = torch.optim.AdamW(list(theirs.values()), lr=0.05, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(3):
        group.step(0.5, NOW)
        oracle.step()
    assert torch.equal(ours["w0"], theirs["w0"])


@pytest.mark.parametrize("kind", ["muon", "adamw"])
def test_group_state_round_trips(kind: str) -> None:
    adam = AdamWConfig(lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=Constant(value=0.0))
    config = muon() if kind == "muon" else adam
    straight, broken = matrices((4, 6), (4, 6)), matrices((4, 6), (4, 6))
    group, first = config.build(straight, torch.float32), config.build(broken, torch.float32)
    for g in (group, first):
        g.step(1.0, NOW)
    resumed = config.build(broken, torch.float32)
    resumed.load({name: tensor.clone() for name, tensor in first.state().items()})
    for g in (group, resumed):
        g.step(1.0, NOW)
    assert all(torch.equal(straight[name], broken[name]) for name in straight)


def test_moments_go_where_the_parameters_are() -> None:
    """A checkpoint is read on the CPU; on another device (here: meta) the moments must follow the parameters."""
    config = AdamWConfig(lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=Constant(value=0.0))
    here = matrices((4, 6))
    group = config.build(here, torch.float32)
    group.step(1.0, NOW)
    there = {name: nn.Parameter(p.detach().to("meta")) for name, p in here.items()}
    moved = config.build(there, torch.float32)
    moved.load(group.state())
    assert {key: t.device.type for key, t in moved.state().items()} == {
        "w0/step": "cpu",
        "w0/exp_avg": "meta",
        "w0/exp_avg_sq": "meta",
    }


def test_clip_is_global(toy: Callable[..., Run]) -> None:
    run = toy("optimizer.clip_norm=0.5")
    model = run.model.build()
    optimizer = run.optimizer.build(model, torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.0, NOW)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-3)


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
