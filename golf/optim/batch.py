"""Matrices of one shape, updated as one stack, by one rank or shared out over several. Shapes: golf/optim/update.py."""

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from golf.dist import Ranks


def stack_of(parameters: dict[str, nn.Parameter], ranks: Ranks) -> "Batch":
    """The batch of these matrices: whole where one rank is alone, else shared."""
    return Batch(parameters) if ranks.world == 1 else SharedBatch(parameters, ranks)


class Batch:
    """Matrices of one shape; a rank that is alone moves all of them. Those without a gradient stay as they are."""

    def __init__(self, parameters: dict[str, nn.Parameter]):
        self.parameters = parameters
        self.own = list(parameters)  # names of the matrices that this rank moves

    @property
    def in_use(self) -> bool:
        return any(weight.grad is not None for weight in self.parameters.values())

    def zeros(self) -> Tensor:
        """A stack of this rank's matrices, all zero."""
        first = next(iter(self.parameters.values()))
        return first.detach().new_zeros((len(self.own), *first.shape))

    def moving(self) -> list[int]:
        """Places in `own` of the matrices that have a gradient."""
        return [n for n, name in enumerate(self.own) if self.parameters[name].grad is not None]

    def reduce(self) -> None:
        """Start to average the gradients over ranks."""

    def gradients(self) -> list[Tensor]:
        """The averaged gradients of this rank's matrices, in whatever pieces they are."""
        return [weight.grad for weight in self.parameters.values() if weight.grad is not None]

    def gradient(self) -> Tensor:
        """The averaged gradients of those that move, as one stack that the caller may write to."""
        return torch.stack(self.gradients())

    def move(self, update_NOI: Tensor, decay: float, step: float) -> None:
        """weight <- decay * weight + step * update, for those that move."""
        self._move(list(update_NOI.unbind()), decay, step)

    def finish(self) -> None:
        """Wait until move() is done."""

    def _move(self, updates: list[Tensor], decay: float, step: float) -> None:
        weights: list[Tensor] = [weight for weight in self.parameters.values() if weight.grad is not None]
        torch._foreach_mul_(weights, decay)
        torch._foreach_add_(weights, updates, alpha=step)

    def collect(self, own_N: Tensor) -> Tensor:
        """State of this rank's matrices to state of all, in the order of `parameters`; every rank calls it."""
        return own_N


class SharedBatch(Batch):
    """Each rank moves a share of the matrices (parallel Muon, PR 399): gradients are averaged to where they are used,
    updates travel back. Shares are equal: what the last ranks lack is filled with zeros on the way."""

    def __init__(self, parameters: dict[str, nn.Parameter], ranks: Ranks):
        super().__init__(parameters)
        self.ranks = ranks
        self.share = math.ceil(len(parameters) / ranks.world)
        self.own = list(parameters)[ranks.rank * self.share : (ranks.rank + 1) * self.share]
        self.mean: Callable[[], Tensor]
        self.arrive: Callable[[], None]

    def reduce(self) -> None:
        weights = list(self.parameters.values())
        zero = torch.zeros_like(weights[0])
        gradients = [zero if weight.grad is None else weight.grad for weight in weights]
        gradients += [zero] * (self.share * self.ranks.world - len(weights))
        self.mean = functools.cache(self.ranks.mean_share(torch.stack(gradients)))

    def gradients(self) -> list[Tensor]:
        return [self.mean()]

    def gradient(self) -> Tensor:
        moving = self.moving()
        return self.mean()[: len(moving)] if moving == list(range(len(moving))) else self.mean()[moving]

    def move(self, update_NOI: Tensor, decay: float, step: float) -> None:
        arrived = self.ranks.gather(self._filled(update_NOI, self.moving()))

        def arrive() -> None:
            used = [n for n, weight in enumerate(self.parameters.values()) if weight.grad is not None]
            update_NOI = arrived()
            self._move([update_NOI[n] for n in used], decay, step)

        self.arrive = arrive

    def finish(self) -> None:
        self.arrive()

    def collect(self, own_N: Tensor) -> Tensor:
        return self.ranks.gather(self._filled(own_N, list(range(len(self.own)))))()[: len(self.parameters)]

    def _filled(self, tensor_N: Tensor, places: list[int]) -> Tensor:
        full_N = tensor_N.new_zeros((self.share, *tensor_N.shape[1:]))
        full_N[places] = tensor_N
        return full_N
