"""Muon: momentum, orthogonalised by Newton-Schulz iterations. O, I: rows and columns of a matrix; N: matrices alike."""

import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.fields import positive
from golf.optim.optimizer import Group, GroupConfig
from golf.schedules import Schedule, Tick

QUINTIC = (3.4445, -4.7750, 2.0315)  # a, b, c of X <- aX + (bA + cA^2)X with A = XX^T (Muon, K. Jordan 2024)


@dataclass(kw_only=True, slots=True)
class MuonConfig(GroupConfig):
    """Momentum SGD, the update made orthogonal and scaled by sqrt(max(1, rows/cols)) (upstream baseline)."""

    lr: float
    momentum: Schedule
    nesterov: bool
    newton_schulz_steps: int
    weight_decay: Schedule

    def __post_init__(self) -> None:
        positive(lr=self.lr, newton_schulz_steps=self.newton_schulz_steps)

    def build(self, parameters: dict[str, nn.Parameter], dtype: torch.dtype) -> "Muon":
        return Muon(self, parameters, dtype)


def newton_schulz(update_NOI: Tensor, steps: int, dtype: torch.dtype) -> Tensor:
    """Singular values of each matrix pushed towards 1 (into about 0.7 .. 1.2), singular vectors kept. Shape (N, O, I).

    dtype: where the iteration runs; bf16 is the field's choice for speed, fp32 for runs that must repeat across ranks.
    """
    a, b, c = QUINTIC
    x_NOI = update_NOI.to(dtype)
    tall = x_NOI.shape[-2] > x_NOI.shape[-1]
    if tall:
        x_NOI = x_NOI.mT
    x_NOI = x_NOI / (x_NOI.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for _ in range(steps):
        a_NOO = x_NOI @ x_NOI.mT
        x_NOI = torch.baddbmm(x_NOI, torch.baddbmm(a_NOO, a_NOO, a_NOO, beta=b, alpha=c), x_NOI, beta=a)
    return (x_NOI.mT if tall else x_NOI).to(update_NOI.dtype)


class Muon(Group):
    """Matrices of one shape are updated as one batch; those without a gradient stay as they are."""

    def __init__(self, config: MuonConfig, parameters: dict[str, nn.Parameter], dtype: torch.dtype):
        self.config = config
        self.dtype = dtype
        shapes: dict[tuple[int, ...], dict[str, nn.Parameter]] = defaultdict(dict)
        for name, parameter in parameters.items():
            assert parameter.ndim == 2, f"Muon moves matrices; {name} has shape {tuple(parameter.shape)}"
            shapes[tuple(parameter.shape)][name] = parameter
        self.batches = list(shapes.values())
        self.momenta = [torch.stack([torch.zeros_like(p) for p in batch.values()]) for batch in self.batches]

    @torch.no_grad()
    def step(self, multiplier: float, tick: Tick) -> None:
        lr = self.config.lr * multiplier
        momentum = self.config.momentum(tick)
        decay = 1 - lr * self.config.weight_decay(tick)
        for batch, momenta_NOI in zip(self.batches, self.momenta, strict=True):
            used = [n for n, w in enumerate(batch.values()) if w.grad is not None]
            if not used:
                continue
            whole = len(used) == len(batch)
            weights: list[Tensor] = [w for w in batch.values() if w.grad is not None]
            gradient_NOI = torch.stack([w.grad for w in weights if w.grad is not None])
            buffer_NOI = momenta_NOI if whole else momenta_NOI[used]
            buffer_NOI.mul_(momentum).add_(gradient_NOI)
            if not whole:
                momenta_NOI[used] = buffer_NOI
            update_NOI = gradient_NOI.add_(buffer_NOI, alpha=momentum) if self.config.nesterov else buffer_NOI
            update_NOI = newton_schulz(update_NOI, self.config.newton_schulz_steps, self.dtype)
            rows, cols = update_NOI.shape[-2:]
            torch._foreach_mul_(weights, decay)
            torch._foreach_add_(weights, list(update_NOI.unbind()), alpha=-lr * math.sqrt(max(1.0, rows / cols)))

    def state(self) -> dict[str, Tensor]:
        return {
            name: momentum
            for batch, buffer_NOI in zip(self.batches, self.momenta, strict=True)
            for name, momentum in zip(batch, buffer_NOI.unbind(), strict=True)
        }

    def load(self, state: dict[str, Tensor]) -> None:
        for name, momentum in self.state().items():
            momentum.copy_(state[name])
