"""Muon: momentum, orthogonalised by Newton-Schulz iterations. O, I: rows and columns of a matrix; N: matrices alike."""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from golf.dist import ALONE, Ranks
from golf.fields import between, one_of, positive
from golf.optim.batch import Batch, stack_of
from golf.optim.optimizer import Group, GroupConfig
from golf.optim.update import Chain, UpdatePartConfig
from golf.schedules import Schedule, Tick

Polynomial = tuple[float, float, float]  # a, b, c of X <- aX + (bA + cA^2)X with A = XX^T

QUINTIC: tuple[Polynomial, ...] = ((3.4445, -4.7750, 2.0315),)  # the same in every iteration (Muon, K. Jordan 2024)
POLAR_EXPRESS: tuple[Polynomial, ...] = (  # one an iteration, the last for all that follow (arXiv 2505.16932; PR 1344)
    (8.156554524902461, -22.48329292557795, 15.878769915207462),
    (4.042929935166739, -2.808917465908714, 0.5000178451051316),
    (3.8916678022926607, -2.772484153217685, 0.5060648178503393),
    (3.285753657755655, -2.3681294933425376, 0.46449024233003106),
    (2.3465413258596377, -1.7097828382687081, 0.42323551169305323),
)
COEFFICIENTS = {"polar_express": POLAR_EXPRESS}
MOMENTUM = "momentum"


@dataclass(kw_only=True, slots=True)
class MuonConfig(GroupConfig):
    """Momentum SGD, the update made orthogonal and scaled by sqrt(max(1, rows/cols)) (upstream baseline).

    coefficients: of the Newton-Schulz iterations; null is Muon's own constant quintic.
    before, after: parts by name, applied in order to what is made orthogonal and to what comes of it.
    """

    lr: float
    momentum: Schedule
    nesterov: bool
    newton_schulz_steps: int
    coefficients: str | None = None
    weight_decay: Schedule
    before: dict[str, UpdatePartConfig | None] = field(default_factory=dict)
    after: dict[str, UpdatePartConfig | None] = field(default_factory=dict)

    def __post_init__(self) -> None:
        positive(lr=self.lr)
        between(1, 100, newton_schulz_steps=self.newton_schulz_steps)
        if self.coefficients is not None:
            one_of("coefficients", self.coefficients, tuple(COEFFICIENTS))

    def build(self, parameters: dict[str, nn.Parameter], dtype: torch.dtype, ranks: Ranks = ALONE) -> "Muon":
        return Muon(self, parameters, dtype, ranks)

    @property
    def polynomials(self) -> list[Polynomial]:
        """One for each iteration."""
        table = QUINTIC if self.coefficients is None else COEFFICIENTS[self.coefficients]
        return [table[min(step, len(table) - 1)] for step in range(self.newton_schulz_steps)]


def newton_schulz(update_NOI: Tensor, polynomials: Sequence[Polynomial], dtype: torch.dtype) -> Tensor:
    """Singular values of each matrix pushed towards 1, singular vectors kept. Shape (N, O, I).

    polynomials: one an iteration; five of Muon's own leave values in about 0.7 .. 1.2.
    dtype: where the iteration runs; bf16 is the field's choice for speed, fp32 for runs that must repeat across ranks.
    """
    x_NOI = update_NOI.to(dtype)
    tall = x_NOI.shape[-2] > x_NOI.shape[-1]
    if tall:
        x_NOI = x_NOI.mT
    x_NOI = x_NOI / (x_NOI.norm(dim=(-2, -1), keepdim=True) + 1e-7)
    for a, b, c in polynomials:
        a_NOO = x_NOI @ x_NOI.mT
        x_NOI = torch.baddbmm(x_NOI, torch.baddbmm(a_NOO, a_NOO, a_NOO, beta=b, alpha=c), x_NOI, beta=a)
    return (x_NOI.mT if tall else x_NOI).to(update_NOI.dtype)


class Muon(Group):
    """Matrices of one shape are updated as one batch; of several ranks, each updates a share of every batch."""

    def __init__(
        self, config: MuonConfig, parameters: dict[str, nn.Parameter], dtype: torch.dtype, ranks: Ranks = ALONE
    ):
        super().__init__(parameters)
        self.config = config
        self.dtype = dtype
        self.polynomials = config.polynomials
        self.before, self.after = Chain("before", config.before), Chain("after", config.after)
        self.sharded = ranks.world > 1
        shapes: dict[tuple[int, ...], dict[str, nn.Parameter]] = defaultdict(dict)
        for name, parameter in parameters.items():
            assert parameter.ndim == 2, f"Muon moves matrices; {name} has shape {tuple(parameter.shape)}"
            shapes[tuple(parameter.shape)][name] = parameter
        batches = [stack_of(alike, ranks) for alike in shapes.values()]
        self.batches = [(batch, self._start(batch.zeros())) for batch in batches]  # each with the state of its own

    def _start(self, zeros_NOI: Tensor) -> dict[str, Tensor]:
        return {**self.before.start(zeros_NOI), **self.after.start(zeros_NOI), MOMENTUM: zeros_NOI}

    @torch.no_grad()
    def step(self, multiplier: float, tick: Tick) -> None:
        lr = self.config.lr * multiplier
        momentum = self.config.momentum(tick)
        decay = 1 - lr * self.config.weight_decay(tick)
        moving = [(batch, state) for batch, state in self.batches if batch.in_use]
        for batch, state in moving:
            update_NOI = self._update(batch, state, momentum)
            rows, cols = update_NOI.shape[-2:]
            batch.move(update_NOI, decay, -lr * math.sqrt(max(1.0, rows / cols)))
        for batch, _ in moving:
            batch.finish()

    def _update(self, batch: Batch, state: dict[str, Tensor], momentum: float) -> Tensor:
        """The orthogonal updates of this rank's matrices that move; their state goes on by a step."""
        places = batch.moving()
        whole = len(places) == len(batch.own)
        used = state if whole else {key: tensor[places] for key, tensor in state.items()}
        gradient_NOI = batch.gradient()
        buffer_NOI = used[MOMENTUM].mul_(momentum).add_(gradient_NOI)
        update_NOI = gradient_NOI.add_(buffer_NOI, alpha=momentum) if self.config.nesterov else buffer_NOI
        update_NOI = self.before(update_NOI, used)
        update_NOI = self.after(newton_schulz(update_NOI, self.polynomials, self.dtype), used)
        if not whole:
            for key, tensor in used.items():
                state[key][places] = tensor
        return update_NOI

    def reduce(self) -> None:
        for batch, _ in self.batches:
            if batch.in_use:
                batch.reduce()

    def gradients(self) -> list[Tensor]:
        return [tensor for batch, _ in self.batches if batch.in_use for tensor in batch.gradients()]

    def state(self) -> dict[str, Tensor]:
        return {
            _entry(name, key): own
            for batch, state in self.batches
            for key, tensor_N in state.items()
            for name, own in zip(batch.parameters, batch.collect(tensor_N).unbind(), strict=True)
        }

    def load(self, state: dict[str, Tensor]) -> None:
        for batch, own in self.batches:
            for key, tensor_N in own.items():
                for name, tensor in zip(batch.own, tensor_N.unbind(), strict=True):
                    tensor.copy_(state[_entry(name, key)])


def _entry(name: str, key: str) -> str:
    """The name in a checkpoint: a matrix's momentum has its own, what parts keep stands below it."""
    return name if key == MOMENTUM else f"{name}/{key}"
