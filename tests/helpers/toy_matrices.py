"""A toy problem that one rank or several solve: known gradients, a number of matrices that few worlds divide."""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn

from golf.dist import ALONE, Ranks
from golf.optim.adamw import AdamWConfig
from golf.optim.mousse import MousseConfig
from golf.optim.multiplier import LRMultiplierConfig
from golf.optim.muon import MuonConfig
from golf.optim.normuon import NorMuonConfig
from golf.optim.optimizer import Optimizer, OptimizerConfig
from golf.optim.rows import RowsConfig
from golf.optim.sam import AscentConfig
from golf.schedules import Constant, Ramp, Tick

CLIP = 4.0  # the gradient of all rows begins at 14
ROWS = 12  # of the global batch, shared out over ranks
WHOLE, CUT = range(12), 5  # steps of a run, half of them in stage 0; where one is cut
SHAPES = [(6, 4)] * 5 + [(4, 8)]  # 5 matrices in shares of 3 and 2, or 2, 2 and 1; one rank alone has the other
BEFORE = {"rows": RowsConfig(), "mousse": MousseConfig(beta=0.9), "absent": None}
AFTER = {"normuon": NorMuonConfig(beta=0.9)}


class Block(nn.Module):
    roles = {"weight": "matrix", "scale": "scalar"}

    def __init__(self, rows: int, cols: int):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(rows, cols))
        self.scale = nn.Parameter(torch.randn(cols))


class Toy(nn.Module):
    """Block 1 is in use from stage 1 on; the scale of block 2 is met in the first row of the batch only."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stack = nn.Module()
        self.stack.blocks = nn.ModuleList(Block(*shape) for shape in SHAPES)

    def loss(self, rows: range, stage: int) -> Tensor:
        """Mean over rows of half the squared distance to each row's own targets, which grow from row to row."""
        total = torch.zeros(())
        for name, parameter in self.named_parameters():
            idle = stage == 0 and ".1." in name
            met = [row for row in rows if row == 0] if name.endswith("blocks.2.scale") else list(rows)
            if met and not idle:
                total = total + (parameter - targets(parameter.shape)[met]).square().sum() / 2 / len(rows)
        return total


@cache
def targets(shape: torch.Size) -> Tensor:
    """What a parameter of this shape is drawn to, by row."""
    draws = [torch.randn(shape, generator=torch.Generator().manual_seed(row)) for row in range(ROWS)]
    return torch.stack([(1 + row) / 4 * draw for row, draw in enumerate(draws)])


def muon(**fields: Any) -> MuonConfig:
    base: dict[str, Any] = {"lr": 0.1, "momentum": Constant(value=0.9), "nesterov": True, "newton_schulz_steps": 5}
    return MuonConfig(**{**base, "weight_decay": Constant(value=0.0), **fields})


def config(**fields: Any) -> OptimizerConfig:
    decay = Constant(value=0.1)
    matrices = fields.pop("matrices", {})
    # An eps as large as gradients, else Adam would hide their scale as Muon does.
    scalars = AdamWConfig(lr=0.05, beta1=0.9, beta2=0.95, eps=1.0, weight_decay=decay)
    ramp = Ramp(start=0.5, end=0.9, steps=5)
    base: dict[str, Any] = {
        "groups": {"matrices": muon(lr=0.02, momentum=ramp, weight_decay=decay, **matrices), "scalars": scalars},
        "roles": {"matrix": "matrices", "scalar": "scalars"},
        "names": {},
        "default": None,
        "clip_norm": None,
    }
    return OptimizerConfig(**{**base, **fields})


VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "parts": {"matrices": {"before": BEFORE, "after": AFTER, "coefficients": "polar_express"}},
    "no nesterov": {"matrices": {"before": BEFORE, "nesterov": False}},
    "clip": {"clip_norm": CLIP},
    "ascent": {"ascent": AscentConfig(rho=0.3), "clip_norm": 1.0},
    "multiplier": {"multipliers": {"last": LRMultiplierConfig(layers="last:3", groups=["matrices"], factor=3.0)}},
}


def steps(variant: dict[str, Any], ranks: Ranks, span: range, start: dict[str, Any] | None = None) -> dict[str, Any]:
    """Take the steps of `span` from the start or from what this returned."""
    model = Toy()
    optimizer = config(**variant).build(model, torch.float32, ranks)
    if start is not None:
        model.load_state_dict(start["weights"])
        optimizer.load(start["state"])
    share = ROWS // ranks.world
    rows = range(ranks.rank * share, (ranks.rank + 1) * share)
    for step in span:
        stage = int(step >= len(WHOLE) // 2)
        optimizer.differentiate(lambda stage=stage: backward(model.loss(rows, stage)), stage)
        optimizer.step(1.0, Tick(step, step / len(WHOLE), len(WHOLE) - step))
    weights = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    return {"weights": weights, "state": {name: tensor.clone() for name, tensor in optimizer.state().items()}}


def backward(loss: Tensor) -> Tensor:
    loss.backward()
    return loss.detach()


def clipped_apart(world: int, clip_norm: float) -> dict[str, Tensor]:
    """Weights after one step, on one rank, by the mean of gradients that each of `world` ranks has clipped."""
    model, share = Toy(), ROWS // world
    optimizer: Optimizer = config().build(model, torch.float32, ALONE)
    total: dict[str, Tensor] = {}
    for rank in range(world):
        model.zero_grad()
        model.loss(range(rank * share, (rank + 1) * share), 1).backward()
        own = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
        norm = torch.cat([gradient.flatten() for gradient in own.values()]).norm()
        for name, gradient in own.items():
            total[name] = total.get(name, 0) + gradient * min(1.0, clip_norm / norm.item()) / world
    for name, parameter in model.named_parameters():
        parameter.grad = total[name]
    optimizer.step(1.0, Tick(10, 0.5, 10))
    return {name: parameter.detach() for name, parameter in model.named_parameters()}


def no_scatter(ranks: Ranks) -> dict[str, Any]:
    """The variant `parts` by a backend without reduce-scatter."""
    return steps(VARIANTS["parts"], replace(ranks, scatters=False), WHOLE)


def half(ranks: Ranks) -> dict[str, Any]:
    """Its first steps."""
    return steps(VARIANTS["parts"], ranks, WHOLE[:CUT])


def resumed(ranks: Ranks) -> dict[str, Any]:
    """The others, from what one rank alone came to."""
    return steps(VARIANTS["parts"], ranks, WHOLE[CUT:], steps(VARIANTS["parts"], ALONE, WHOLE[:CUT]))


def clipped_locally(ranks: Ranks) -> dict[str, Any]:
    """One step, each rank's gradient clipped by its own norm."""
    return steps({"clip_norm": CLIP, "clip": "local"}, ranks, range(10, 11))


TASKS: dict[str, Callable[[Ranks], dict[str, Any]]] = {
    **{name: lambda ranks, variant=variant: steps(variant, ranks, WHOLE) for name, variant in VARIANTS.items()},
    "no scatter": no_scatter,
    "half": half,
    "resumed": resumed,
    "local": clipped_locally,
}


def everything(ranks: Ranks) -> dict[str, dict[str, Any]]:
    """Return what each of TASKS comes to."""
    return {name: task(ranks) for name, task in TASKS.items()}
