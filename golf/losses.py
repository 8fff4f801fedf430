"""What training minimises: cross entropy, and named parts that weigh its tokens or add to it. Evals never see it.

The objective is mean_n(weight_n * nll_n + penalty(lse_n)) over the N tokens of a forward pass, in nats; lse_n is the
logarithm of the sum of the exponentials of token n's logits, after their cap.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from golf.fields import between, positive

NLL = "nll"  # the mean nats per token, which is what the loop logs
PARTS = "loss.parts"  # what parts of the loss change about it; no auxiliary loss can have a name with a dot


@dataclass(kw_only=True, slots=True)
class LossPartConfig:
    """A part of the loss. This class weighs all tokens alike and adds nothing; a part says what it changes.

    weighs: it has weights of its own, which cost a pass over the logits before the one with gradients.
    """

    weighs: ClassVar[bool] = False

    def weights(self, entropy_N: Tensor) -> Tensor:
        """weight_N of mean one; the entropies (nats) carry no gradient."""
        return torch.ones_like(entropy_N)

    def penalty(self, lse: Tensor) -> tuple[Tensor, Tensor]:
        """What is added for each lse, of any shape, and its derivative by it."""
        return torch.zeros_like(lse), torch.zeros_like(lse)


@dataclass(kw_only=True, slots=True)
class EntropyWeightsConfig(LossPartConfig):
    """min(floor + H_n / mean(H), ceiling) over its mean, H the entropy of a prediction (PR 675).

    mean(H) is over one forward pass on one rank, so batch.max_microbatch_sequences is part of the mathematics here.
    """

    weighs: ClassVar[bool] = True

    floor: float
    ceiling: float

    def __post_init__(self) -> None:
        positive(floor=self.floor)
        between(self.floor, 1e6, ceiling=self.ceiling)

    def weights(self, entropy_N: Tensor) -> Tensor:
        raw_N = (self.floor + entropy_N / entropy_N.mean()).clamp(max=self.ceiling)
        return raw_N / raw_N.mean()


@dataclass(kw_only=True, slots=True)
class ZLossConfig(LossPartConfig):
    """coefficient * lse^2: keeps the softmax's denominator near one (PaLM, arXiv 2204.02311)."""

    coefficient: float

    def __post_init__(self) -> None:
        positive(coefficient=self.coefficient)

    def penalty(self, lse: Tensor) -> tuple[Tensor, Tensor]:
        return self.coefficient * lse.square(), 2 * self.coefficient * lse


class Loss:
    """The parts of a loss as one: weights multiply, penalties add up. Without parts it is plain cross entropy."""

    def __init__(self, parts: Mapping[str, LossPartConfig | None]):
        self.parts = [part for part in parts.values() if part is not None]
        self.weighs = any(part.weighs for part in self.parts)

    def weights(self, entropy_N: Tensor) -> Tensor:
        """weight_N, whose mean is one where one part weighs."""
        weight_N = torch.ones_like(entropy_N)
        for part in self.parts:
            weight_N = weight_N * part.weights(entropy_N)
        return weight_N

    def penalty(self, lse: Tensor) -> tuple[Tensor, Tensor]:
        """What is added for each lse, of any shape, and its derivative by it."""
        value, slope = torch.zeros_like(lse), torch.zeros_like(lse)
        for part in self.parts:
            added, by_lse = part.penalty(lse)
            value, slope = value + added, slope + by_lse
        return value, slope

    def named(self, objective: Tensor, nll: Tensor) -> dict[str, Tensor]:
        """Losses that add up to the objective, among them the plain mean nats per token.

        objective: with the gradient; nll: its plain value, which has none.
        """
        return {NLL: nll, PARTS: objective - nll} if self.parts else {NLL: objective}


CROSS_ENTROPY = Loss({})
