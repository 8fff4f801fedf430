"""Training weights at evaluation, on text that is graded: the optimizers, and one pass over rows on all ranks."""

import copy
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from golf.dist import Ranks
from golf.fields import between, positive
from golf.models.lm import LM
from golf.optim.sam import AscentConfig


@dataclass(kw_only=True, slots=True)
class LearnerConfig:
    """The slot: torch's own optimizers, built anew for each evaluation. lr: before any schedule."""

    lr: float
    weight_decay: float

    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        """groups: parameters and lr of each."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class SGDLearnerConfig(LearnerConfig):
    """Momentum without dampening."""

    momentum: float

    def __post_init__(self) -> None:
        positive(lr=self.lr)
        between(0, 1, momentum=self.momentum, weight_decay=self.weight_decay)

    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        return torch.optim.SGD(groups, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)


@dataclass(kw_only=True, slots=True)
class AdamWLearnerConfig(LearnerConfig):
    """arXiv 1711.05101."""

    beta1: float
    beta2: float
    eps: float

    def __post_init__(self) -> None:
        positive(lr=self.lr, eps=self.eps)
        between(0, 1, beta1=self.beta1, beta2=self.beta2)
        between(0, 10, weight_decay=self.weight_decay)

    def build(self, groups: list[dict]) -> torch.optim.Optimizer:
        betas = (self.beta1, self.beta2)
        return torch.optim.AdamW(groups, lr=self.lr, betas=betas, eps=self.eps, weight_decay=self.weight_decay)


def learning_copy(model: LM) -> LM:
    """Return a copy with weights in fp32, of which none asks for a gradient yet. In bf16 small steps are rounded away,
    and the sum of a gradient over ranks depends on how many there are."""
    copied = copy.deepcopy(model).requires_grad_(False)
    for w in copied.parameters():
        w.data = w.data.float()
    return copied


def lesson_loss(model: LM, rows_BT: Tensor, targets_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Sum of the masked targets' negative log-likelihoods, nats."""
    logp_BTV = model.log_probs(rows_BT)
    return -(logp_BTV.gather(-1, targets_BT[..., None])[..., 0] * mask_BT).sum()


@dataclass(frozen=True, slots=True)
class Step:
    """One optimizer step on `weights`, those of `model` that train. sam_radius: sharpness-aware (rho of AscentConfig);
    None: the gradient is taken where the weights are."""

    model: LM
    weights: Sequence[nn.Parameter]
    optimizer: torch.optim.Optimizer
    clip_norm: float
    sam_radius: float | None
    ranks: Ranks

    def __call__(self, rows_BT: Tensor, targets_BT: Tensor, mask_BT: Tensor) -> float:
        """Returns the mean loss of the rows over all ranks, before the step. A rank may have no rows."""
        count = max(1.0, self.ranks.sum_(mask_BT.sum().double()).item())

        def evaluate() -> Tensor:
            """Fills the gradients, whose mean over ranks is that of the mean loss over all ranks' tokens."""
            self.optimizer.zero_grad()
            total = torch.zeros((), device=rows_BT.device)
            if len(rows_BT):
                with torch.enable_grad():
                    total = lesson_loss(self.model, rows_BT, targets_BT, mask_BT)
                    (total * (self.ranks.world / count)).backward()
            if self.ranks.world > 1:  # a rank without rows has none
                for w in self.weights:
                    w.grad = torch.zeros_like(w) if w.grad is None else w.grad
            return total.detach().double()

        if self.sam_radius is None:
            total = evaluate()
        else:
            total = AscentConfig(rho=self.sam_radius).differentiate(evaluate, list(self.weights), self.ranks)
        self.ranks.average_([w.grad for w in self.weights if w.grad is not None])
        nn.utils.clip_grad_norm_(self.weights, self.clip_norm)
        self.optimizer.step()
        return self.ranks.sum_(total).item() / count


def dealt(place_B: np.ndarray, count: int, rows: int) -> list[np.ndarray]:
    """Which of this rank's rows each step of an epoch takes. A step takes `rows` of all ranks' `count` rows, in order,
    whatever the number of ranks. place_B: where each of this rank's rows stands among them."""
    return [np.flatnonzero(place_B // rows == step) for step in range(-(-count // rows))]


def one_epoch(
    step: Callable[[Tensor, Tensor, Tensor], float], lesson: Sequence[Tensor], steps: Sequence[np.ndarray]
) -> float:
    """Every row once, in these steps; the mean loss. All ranks together."""
    losses = [step(*(part[torch.from_numpy(own).to(part.device)] for part in lesson)) for own in steps]
    return sum(losses) / max(1, len(losses))


def cosine(index: int, steps: int) -> float:
    """From 1 at the first of `steps` to 0 at the last."""
    return 0.5 * (1 + math.cos(math.pi * min(1.0, index / max(1, steps - 1))))


@contextmanager
def rate_of(optimizer: torch.optim.Optimizer, factor: float) -> Iterator[None]:
    """All its rates times a factor, for a while."""
    rates = [group["lr"] for group in optimizer.param_groups]
    for group, rate in zip(optimizer.param_groups, rates, strict=True):
        group["lr"] = rate * factor
    try:
        yield
    finally:
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
