"""Sharpness-aware minimisation: the gradient is taken at the highest point nearby."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from golf.dist import Ranks
from golf.fields import positive


@dataclass(kw_only=True, slots=True)
class AscentConfig:
    """Gradients are those at w + rho * g / |g|, g the gradient at w (SAM, arXiv 2010.01412); a step costs two.

    g is the mean over ranks, and |g| its norm over all parameters.
    """

    rho: float

    def __post_init__(self) -> None:
        positive(rho=self.rho)

    def differentiate(self, evaluate: Callable[[], Tensor], parameters: list[nn.Parameter], ranks: Ranks) -> Tensor:
        """evaluate: fills the gradients and returns the loss; returns the loss at w. The weights come back bitwise."""
        loss = evaluate()
        moved = [parameter for parameter in parameters if parameter.grad is not None]
        gradients = [parameter.grad for parameter in moved if parameter.grad is not None]
        ranks.average_(gradients)
        rate = self.rho / (nn.utils.get_total_norm(gradients) + 1e-12)
        own = [parameter.detach().clone() for parameter in moved]
        with torch.no_grad():
            for parameter, gradient in zip(moved, gradients, strict=True):
                parameter.add_(gradient * rate)
        evaluate()
        with torch.no_grad():
            for parameter, weight in zip(moved, own, strict=True):
                parameter.copy_(weight)
        return loss
