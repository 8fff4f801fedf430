"""Optimizers against oracles, schedules at hand-picked points, averages against closed forms."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn

from golf.config import Run
from golf.optim.adamw import AdamWConfig
from golf.optim.muon import QUINTIC, MuonConfig, newton_schulz
from golf.schedules import Constant, Ramp, Tick

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
