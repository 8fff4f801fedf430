"""Optimizers against oracles: torch's own, plain formulas, a float64 SVD, closed forms."""

import math
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from golf.checks import check
from golf.compose import compose
from golf.conf_files import CONF
from golf.config import Run
from golf.dist import ALONE
from golf.errors import UserError
from golf.optim.adamw import AdamWConfig
from golf.optim.mousse import MousseConfig
from golf.optim.multiplier import LRMultiplierConfig
from golf.optim.muon import POLAR_EXPRESS, QUINTIC, newton_schulz
from golf.optim.normuon import NorMuonConfig
from golf.optim.rows import RowsConfig
from golf.optim.sam import AscentConfig
from golf.optim.update import UpdatePartConfig
from golf.schedules import Constant, Ramp, Tick
from tests.helpers.parts import run_of_line
from tests.helpers.runs import TOY, merged
from tests.helpers.toy_matrices import AFTER, BEFORE, VARIANTS, Toy, backward, config, muon, steps

NOW = Tick(step=3, progress=0.3, steps_left=7)
YAMLS = sorted(path.relative_to(CONF).with_suffix("") for path in (CONF / "optimizer").rglob("*.yaml"))


def toy_run(*overrides: str) -> Run:
    return run_of_line(*merged(TOY, [*overrides]))


def matrices(*shapes: tuple[int, int]) -> dict[str, nn.Parameter]:
    torch.manual_seed(0)
    parameters = {f"w{i}": nn.Parameter(torch.randn(shape)) for i, shape in enumerate(shapes)}
    for parameter in parameters.values():
        parameter.grad = torch.randn_like(parameter)
    return parameters


# ---------------------------------------------------------------- Newton-Schulz


@pytest.mark.parametrize("coefficients", [None, "polar_express"])
@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
def test_newton_schulz_keeps_singular_vectors_and_levels_values(shape: tuple[int, int], coefficients: str) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(1, *shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix[0], full_matrices=False)
    polynomials = muon(coefficients=coefficients, newton_schulz_steps=6).polynomials
    result = newton_schulz(matrix, polynomials, torch.float64)[0]
    inside = u.T @ result @ vh.T
    assert torch.allclose(inside, torch.diag(inside.diag()), atol=1e-9)
    expected = s / (matrix.norm() + 1e-7)
    for step in range(6):
        a, b, c = QUINTIC[0] if coefficients is None else POLAR_EXPRESS[min(step, 4)]
        expected = a * expected + b * expected**3 + c * expected**5
    assert torch.allclose(inside.diag(), expected, atol=1e-9)
    assert inside.diag().min() > 0.6 and inside.diag().max() < 1.3


@pytest.mark.parametrize("shape", [(16, 16), (8, 24), (24, 8)])
@pytest.mark.parametrize("count", [5, 6, 7])
def test_polar_express_comes_closer_to_the_polar_factor(shape: tuple[int, int], count: int) -> None:
    torch.manual_seed(0)
    matrix = torch.randn(4, *shape, dtype=torch.float64)
    u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
    polar, classic = (
        (newton_schulz(matrix, muon(coefficients=name, newton_schulz_steps=count).polynomials, torch.float64) - u @ vh)
        for name in ("polar_express", None)
    )
    # Fewer than its five iterations leave it further away than the constant quintic.
    assert polar.norm() < 0.8 * classic.norm()


# ---------------------------------------------------------------- Muon and its parts


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
            update = newton_schulz((gradient + 0.9 * buffers[name])[None], QUINTIC * 5, torch.float32)[0]
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


def test_muon_looks_ahead_as_torch_muon_does() -> None:
    """Three steps of different gradients, in which Nesterov's step and the plain one part ways."""
    ours, theirs = matrices((12, 12)), matrices((12, 12))
    group = muon(lr=0.02).build(ours, torch.bfloat16)
    reference = torch.optim.Muon(list(theirs.values()), lr=0.02, momentum=0.9, weight_decay=0.0)
    for seed in (1, 2, 3):
        before = [parameters["w0"].detach().clone() for parameters in (ours, theirs)]
        gradient = torch.randn(12, 12, generator=torch.Generator().manual_seed(seed))
        for parameters in (ours, theirs):
            parameters["w0"].grad = gradient.clone()
        group.step(1.0, NOW)
        reference.step()
        moves = [(now["w0"].detach() - was).flatten() for now, was in zip((ours, theirs), before, strict=True)]
        assert torch.cosine_similarity(*moves, dim=0) > 0.999


def test_muon_momentum_follows_its_schedule() -> None:
    ramp = Ramp(start=0.5, end=0.9, steps=4)
    parameters = matrices((4, 4))
    group = muon(momentum=ramp).build(parameters, torch.float32)
    group.step(1.0, Tick(0, 0, 9))
    first = group.state()["w0"].clone()
    group.step(1.0, Tick(2, 0, 9))
    assert torch.allclose(group.state()["w0"], 0.7 * first + parameters["w0"].grad, atol=1e-6)


def rows_by_hand(path: list[Tensor]) -> Tensor:
    return torch.stack([row / math.sqrt(sum(x.item() ** 2 for x in row)) for row in path[-1]])


def mousse_by_hand(path: list[Tensor]) -> Tensor:
    rows, cols = torch.ones(6, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
    for update in path:
        rows = 0.9 * rows + 0.1 * torch.stack([(row**2).mean() for row in update])
        cols = 0.9 * cols + 0.1 * torch.stack([(col**2).mean() for col in update.T])
    return torch.diag(rows**-0.5) @ path[-1] @ torch.diag(cols**-0.5)


def normuon_by_hand(path: list[Tensor]) -> Tensor:
    second = torch.zeros(6, dtype=torch.float64)
    for update in path:
        second = 0.9 * second + 0.1 * torch.stack([(row**2).mean() for row in update])
    even = torch.diag(second**-0.5) @ path[-1]
    return even * path[-1].norm() / even.norm()


BY_HAND: list[tuple[UpdatePartConfig, Callable[[list[Tensor]], Tensor]]] = [
    (RowsConfig(), rows_by_hand),
    (MousseConfig(beta=0.9), mousse_by_hand),
    (NorMuonConfig(beta=0.9), normuon_by_hand),
]


@pytest.mark.parametrize("part, by_hand", BY_HAND, ids=["rows", "mousse", "normuon"])
def test_parts_follow_their_formulas(part: UpdatePartConfig, by_hand: Callable[[list[Tensor]], Tensor]) -> None:
    """Four steps on a stack of three, against float64 on a matrix at a time."""
    path = torch.randn(4, 3, 6, 4, generator=torch.Generator().manual_seed(0))
    path *= torch.tensor([1e-3, 1.0, 30.0])[:, None, None]
    state = part.start(path[0])
    for step, update_NOI in enumerate(path):
        given = update_NOI.clone()
        result = part.apply(update_NOI, state)
        assert torch.equal(update_NOI, given), "what comes in may be the momentum itself"
        for n in range(3):
            expected = by_hand([path[s, n].double() for s in range(step + 1)])
            assert torch.allclose(result[n].double(), expected, rtol=1e-4, atol=1e-9), (step, n)


@pytest.mark.parametrize("part", [part for part, _ in BY_HAND], ids=["rows", "mousse", "normuon"])
def test_parts_bear_rows_of_zeros_and_empty_stacks(part: UpdatePartConfig) -> None:
    update_NOI = torch.randn(2, 6, 4)
    update_NOI[0], update_NOI[1, 2] = 0.0, 0.0
    result = part.apply(update_NOI, part.start(update_NOI))
    assert result.isfinite().all() and not result[0].any() and not result[1, 2].any() and result[1, 0].any()
    assert part.apply(update_NOI[:0], part.start(update_NOI[:0])).shape == (0, 6, 4)


def test_parts_stand_on_their_sides_of_newton_schulz() -> None:
    """One step of Muon with all parts is the chain by hand, in the order in which they are named."""
    parameters = matrices((6, 4), (6, 4))
    before = {name: p.detach().clone() for name, p in parameters.items()}
    muon(before=BEFORE, after=AFTER).build(parameters, torch.float32).step(1.0, NOW)
    for name, parameter in parameters.items():
        update = mousse_by_hand([rows_by_hand([1.9 * parameter.grad.double()])])
        orthogonal = newton_schulz(update[None], QUINTIC * 5, torch.float64)[0]
        moved = (parameter.detach() - before[name]).double()
        assert torch.allclose(moved, -0.1 * math.sqrt(1.5) * normuon_by_hand([orthogonal]), atol=1e-5)


def test_matrices_without_a_gradient_keep_weights_and_state() -> None:
    parameters = matrices((6, 4), (6, 4), (6, 4))
    group = muon(before=BEFORE, after=AFTER, weight_decay=Constant(value=0.1)).build(parameters, torch.float32)
    group.step(1.0, NOW)
    gradients = {name: p.grad for name, p in parameters.items()}
    weights = {name: p.detach().clone() for name, p in parameters.items()}
    state = {key: tensor.clone() for key, tensor in group.state().items()}
    parameters["w1"].grad = None
    group.step(1.0, NOW)
    changed = {key for key, tensor in group.state().items() if not torch.equal(tensor, state[key])}
    assert changed == {key for key in state if not key.startswith("w1")}
    assert {name for name, p in parameters.items() if not torch.equal(p, weights[name])} == {"w0", "w2"}

    alone = {name: nn.Parameter(weights[name].clone()) for name in ("w0", "w2")}
    for name, parameter in alone.items():
        parameter.grad = gradients[name]
    other = muon(before=BEFORE, after=AFTER, weight_decay=Constant(value=0.1)).build(alone, torch.float32)
    other.load(state)
    other.step(1.0, NOW)
    assert all(torch.allclose(alone[name], parameters[name], atol=1e-6) for name in alone)


# ---------------------------------------------------------------- AdamW and state


def adamw() -> AdamWConfig:
    return AdamWConfig(lr=0.1, beta1=0.9, beta2=0.95, eps=1e-8, weight_decay=Constant(value=0.1))


def test_adamw_is_torch_adamw_bitwise() -> None:
    ours, theirs = matrices((5, 3)), matrices((5, 3))
    group = adamw().build(ours, torch.float32)
    oracle = torch.optim.AdamW(list(theirs.values()), lr=0.05, betas=(0.9, 0.95), eps=1e-8, weight_decay=0.1)
    for _ in range(3):
        group.step(0.5, NOW)
        oracle.step()
    assert torch.equal(ours["w0"], theirs["w0"])


STATEFUL = [muon(), adamw(), muon(before=BEFORE, after=AFTER), *(muon(before={"part": part}) for part, _ in BY_HAND)]


@pytest.mark.parametrize("group_config", STATEFUL, ids=["muon", "adamw", "all", "rows", "mousse", "normuon"])
def test_group_state_round_trips(group_config: Any) -> None:
    straight, broken = matrices((4, 6), (4, 6)), matrices((4, 6), (4, 6))
    group, first = group_config.build(straight, torch.float32), group_config.build(broken, torch.float32)
    for g in (group, first):
        g.step(1.0, NOW)
    resumed = group_config.build(broken, torch.float32)
    resumed.load({name: tensor.clone() for name, tensor in first.state().items()})
    for g in (group, resumed):
        g.step(1.0, NOW)
    assert all(torch.equal(straight[name], broken[name]) for name in straight)


def test_moments_go_where_the_parameters_are() -> None:
    """A checkpoint is read on the CPU; on another device (here: meta) the moments must follow the parameters."""
    here = matrices((4, 6))
    group = adamw().build(here, torch.float32)
    group.step(1.0, NOW)
    there = {name: nn.Parameter(p.detach().to("meta")) for name, p in here.items()}
    moved = adamw().build(there, torch.float32)
    moved.load(group.state())
    assert {key: t.device.type for key, t in moved.state().items()} == {
        "w0/step": "cpu",
        "w0/exp_avg": "meta",
        "w0/exp_avg_sq": "meta",
    }


# ---------------------------------------------------------------- multipliers, clips, ascent


def moves(**fields: Any) -> dict[str, Tensor]:
    """How far one step without decay takes each parameter of the toy."""
    model = Toy()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    made = config(**fields)
    for group in made.groups.values():
        group.weight_decay = Constant(value=0.0)
    optimizer = made.build(model, torch.float32)
    optimizer.differentiate(lambda: backward(model.loss(range(12), 1)))
    optimizer.step(0.5, NOW)
    return {name: p.detach() - before[name] for name, p in model.named_parameters()}


def test_multipliers_scale_the_steps_of_their_layers_and_groups() -> None:
    last = LRMultiplierConfig(layers="last:2", groups=["matrices"], factor=3.0)
    fifth = LRMultiplierConfig(layers="5", groups=["matrices", "scalars"], factor=2.0)
    plain, scaled = moves(), moves(multipliers={"last": last, "fifth": fifth, "absent": None})
    expected = {"4.weight": 3.0, "5.weight": 6.0, "5.scale": 2.0}
    for name, move in plain.items():
        factor = expected.get(name.removeprefix("stack.blocks."), 1.0)
        assert torch.allclose(scaled[name], factor * move, rtol=1e-4, atol=1e-6), name


def test_multipliers_leave_the_names_of_states() -> None:
    variants = ({}, VARIANTS["multiplier"])
    assert len({frozenset(steps(variant, ALONE, range(2))["state"]) for variant in variants}) == 1


def test_the_decoder_is_the_second_half_of_a_unet() -> None:
    for layers in (3, 4, 9, 11):
        run = toy_run("optimizer/multiplier=[decoder]", f"model.layers={layers}")
        model = run.model.build_on_meta()
        factors = run.optimizer.factors(model)
        halves = {name.split(".")[2] for name, factor in factors.items() if factor == 2.0}
        assert halves == {str(layer) for layer in range(layers // 2, layers)}
        assert set(factors) == set(dict(model.named_parameters()))


def test_a_multiplier_for_nothing_is_refused() -> None:
    run = toy_run("optimizer/multiplier=[decoder]", "optimizer.multipliers.decoder.groups=[embeddings]")
    with pytest.raises(UserError, match=r"^optimizer\.multipliers\.decoder: fits no parameter; layers='last:6 of 11'"):
        check(run)
    wrong = ["optimizer/multiplier=[decoder]", "optimizer.multipliers.decoder.groups=[nope]"]
    with pytest.raises(UserError, match=r"optimizer\.multipliers\.decoder\.groups='nope' is not .*matrices"):
        compose(wrong)


@pytest.mark.parametrize("clip", ["null", "local"])
def test_clip_is_global(clip: str) -> None:
    run = toy_run("optimizer.clip_norm=0.5", f"optimizer.clip={clip}")
    model = run.model.build()
    optimizer = run.optimizer.build(model, torch.float32)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step(0.0, NOW)
    norm = torch.stack([p.grad.norm() for p in model.parameters()]).norm()
    assert norm.item() == pytest.approx(0.5, rel=1e-3)


def test_ascent_takes_the_gradient_above() -> None:
    """f = w'Aw / 2 over two parameters: g = Aw, and the gradient of SAM is A(w + rho g / |g|)."""
    torch.manual_seed(0)
    root = torch.randn(7, 7)
    a, rho = root @ root.T + torch.eye(7), 0.3
    parameters = [nn.Parameter(torch.randn(3)), nn.Parameter(torch.randn(2, 2))]
    unused = nn.Parameter(torch.ones(2))
    before = [p.detach().clone() for p in parameters]
    seen = []

    def evaluate() -> Tensor:
        for parameter in parameters:
            parameter.grad = None
        w = torch.cat([p.flatten() for p in parameters])
        seen.append(w.detach())
        return backward(w @ a @ w / 2)

    loss = AscentConfig(rho=rho).differentiate(evaluate, [*parameters, unused], ALONE)
    w = torch.cat([p.flatten() for p in before])
    g = a @ w
    assert loss == w @ a @ w / 2, "what is logged is the loss at the weights"
    assert torch.allclose(seen[1], w + rho * g / g.norm(), atol=1e-6)
    gradient = torch.cat([p.grad.flatten() for p in parameters])
    assert torch.allclose(gradient, a @ (w + rho * g / g.norm()), atol=1e-4)
    assert all(torch.equal(p, start) for p, start in zip(parameters, before, strict=True))
    assert unused.grad is None


# ---------------------------------------------------------------- every YAML


@cache
def trained(*overrides: str) -> tuple[list[float], dict[str, Tensor]]:
    """The losses of three steps of a toy model, and its weights behind them: every parameter has moved."""
    run = toy_run(*overrides)
    torch.manual_seed(0)
    model = run.model.build()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = run.optimizer.build(model, torch.float32)
    ids = torch.randint(run.model.vocab_size, (4, 25), generator=torch.Generator().manual_seed(1))
    losses = []
    for step in range(3):
        closure = lambda: backward(torch.stack(list(model(ids[:, :-1], ids[:, 1:]).values())).sum())  # noqa: E731
        losses.append(optimizer.differentiate(closure).item())
        optimizer.step(1.0, Tick(step, step / 3, 3 - step))
    assert not [name for name, p in model.named_parameters() if torch.equal(p, start[name])]
    return losses, {name: p.detach() for name, p in model.named_parameters()}


@pytest.mark.parametrize("path", YAMLS, ids=str)
def test_every_choice_takes_steps_of_its_own(path: Path) -> None:
    """Three steps lower the loss and move every parameter; only the default goes the default's way."""
    name = f"{path.parent}={path.name}"
    losses, weights = trained(name)
    assert losses[2] < losses[0] and all(tensor.isfinite().all() for tensor in weights.values())
    _, default = trained()
    assert all(torch.equal(weights[name], default[name]) for name in default) == (
        str(path) in ("optimizer/muon", "optimizer/decay/zero")
    )
