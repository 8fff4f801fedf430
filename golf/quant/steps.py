"""How wide the steps of an integer grid are. B: a stack of like tensors; R: rows that have a step each, of C weights.

The last code of a grid is `limit`: steps are some magnitude of the row, divided by it.
"""

import math
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from golf.fields import OPERATIONAL, between, one_of, positive
from golf.quant.grid import round_to_grid, stored_step

MOST_AT_ONCE = 2**24
USUAL_NORM = 5.0  # FlooredConfig.norm where none is given


@dataclass(kw_only=True, slots=True)
class StepConfig:
    """The slot. dial: whether its steps may be made wider or finer at will, without weights that no code reaches."""

    dial: ClassVar[bool] = False

    @property
    def reads_hessians(self) -> bool:
        """Whether steps() wants the inputs' importance."""
        return False

    def steps(self, w_BRC: Tensor, limit: int, importance_BRC: Tensor | None) -> Tensor:
        """step_BR1, before it is rounded as stored. importance_BRC: of each input, where it was measured, or None."""
        raise NotImplementedError

    def top_in_sigmas(self, columns: int) -> float:
        """Where the last code lies for Gaussian weights, for plans."""
        return math.sqrt(2 * math.log(max(columns, 2)))

    def step_in_sigmas(self, columns: int, limit: int) -> float:
        """Return how wide a step is for Gaussian weights, for plans."""
        return self.top_in_sigmas(columns) / limit


def quantiles(x_BRC: Tensor, levels: list[float]) -> Tensor:
    """x_QBR1: these quantiles of each row, some rows at a time: torch takes no more than MOST_AT_ONCE numbers."""
    level_Q = torch.tensor(levels, dtype=x_BRC.dtype, device=x_BRC.device)
    rows = x_BRC.flatten(0, 1).split(max(1, MOST_AT_ONCE // x_BRC.shape[2]))
    found_QN = torch.cat([torch.quantile(some_NC, level_Q, dim=1) for some_NC in rows], dim=1)
    return found_QN.view(len(levels), *x_BRC.shape[:2], 1)


@dataclass(kw_only=True, slots=True)
class FlooredConfig(StepConfig):
    """Steps that may have a least width.

    floor: the smallest step; upstream's 1/127 and the first records' undocumented 1/31 make small weights cheap and
    coarse (null: none). norm: the root mean square of trained weights times the root of their columns, which plans
    take where there is a floor; Muon's steps have the same size in this measure for every matrix. Published sizes tell
    4.4 (PR 414, weight decay 0.04) and 5.9 (naive baseline); null: 5.
    """

    floor: float | None
    norm: float | None = field(default=None, metadata=OPERATIONAL)

    def __post_init__(self) -> None:
        positive(floor=self.floor, norm=self.norm)

    def floored(self, step: Tensor) -> Tensor:
        return step if self.floor is None else step.clamp_min(self.floor)

    def step_in_sigmas(self, columns: int, limit: int) -> float:
        step = self.top_in_sigmas(columns) / limit
        return step if self.floor is None else max(step, self.floor * math.sqrt(columns) / (self.norm or USUAL_NORM))


@dataclass(kw_only=True, slots=True)
class MaxAbsConfig(FlooredConfig):
    """The largest magnitude lands on the last code."""

    def steps(self, w_BRC: Tensor, limit: int, importance_BRC: Tensor | None) -> Tensor:
        return self.floored(w_BRC.abs().amax(dim=2, keepdim=True) / limit)


@dataclass(kw_only=True, slots=True)
class QuantileConfig(FlooredConfig):
    """This quantile of the magnitudes lands on the last code, what is larger is clipped (upstream: 99.99984 %)."""

    quantile: float

    def __post_init__(self) -> None:
        FlooredConfig.__post_init__(self)
        between(0.5, 1, quantile=self.quantile)

    def steps(self, w_BRC: Tensor, limit: int, importance_BRC: Tensor | None) -> Tensor:
        return self.floored(quantiles(w_BRC.abs(), [self.quantile])[0] / limit)


@dataclass(kw_only=True, slots=True)
class SearchConfig(FlooredConfig):
    """Of some quantiles that whose rounding errs least in the mean square: "GPTQ-lite" (record 1.1228).

    over: row (each row its own) or matrix (one quantile for all rows, as that record's code does).
    """

    quantiles: list[float]
    over: str

    def __post_init__(self) -> None:
        FlooredConfig.__post_init__(self)
        one_of("over", self.over, ("row", "matrix"))
        if not self.quantiles or not all(0.5 <= q <= 1 for q in self.quantiles):
            raise ValueError(f"quantiles={self.quantiles}: takes numbers in 0.5 .. 1, such as [0.999, 1.0]")

    def steps(self, w_BRC: Tensor, limit: int, importance_BRC: Tensor | None) -> Tensor:
        step_QBR1 = self.floored(quantiles(w_BRC.abs(), self.quantiles) / limit)
        return _least_error(w_BRC, step_QBR1, limit, (1, 2) if self.over == "matrix" else (2,))


@dataclass(kw_only=True, slots=True)
class LeastErrorConfig(StepConfig):
    """Of `candidates` even fractions of the largest magnitude that whose rounding errs least, each row its own."""

    candidates: int

    def __post_init__(self) -> None:
        between(2, 1000, candidates=self.candidates)

    def steps(self, w_BRC: Tensor, limit: int, importance_BRC: Tensor | None) -> Tensor:
        top_BR1 = w_BRC.abs().amax(dim=2, keepdim=True) / limit
        shares = (torch.arange(self.candidates, device=w_BRC.device) + 1) / self.candidates
        return _least_error(w_BRC, shares.view(-1, 1, 1, 1) * top_BR1, limit, (2,))


def _least_error(w_BRC: Tensor, step_QBR1: Tensor, limit: int, over: tuple[int, ...]) -> Tensor:
    """step_BR1: of the candidates Q the one whose squared error, summed over these axes, is least."""
    error_QBR1 = torch.stack(
        [
            (w_BRC - round_to_grid(w_BRC, kept, limit) * kept).square().sum(over, keepdim=True).expand_as(kept)
            for kept in map(stored_step, step_QBR1)
        ]
    )
    return step_QBR1.gather(0, error_QBR1.argmin(dim=0, keepdim=True))[0]


@dataclass(kw_only=True, slots=True)
class MeanAbsConfig(StepConfig):
    """The mean magnitude times `factor` lands on the last code (BitNet b1.58, arXiv 2402.17764, on a limit of 1)."""

    factor: float

    def __post_init__(self) -> None:
        positive(factor=self.factor)

    def steps(self, w_BRC: Tensor, limit: int, importance_BRC: Tensor | None) -> Tensor:
        return w_BRC.abs().mean(dim=2, keepdim=True) * (self.factor / limit)

    def top_in_sigmas(self, columns: int) -> float:
        return 0.7979 * self.factor  # E|x| of a normal distribution


@dataclass(kw_only=True, slots=True)
class SDClipConfig(StepConfig):
    """k standard deviations of the row land on the last code (PR 1394, record 1.0856): what a weight costs is then
    2.05 + log2(limit / k) bits, whatever its size. They are taken from 0, where the grid has its middle: a row of equal
    weights has some too.

    by_hessian: rows whose weights meet strong inputs get wider steps (record 1.0835: 0.175): k sigma (1 + by_hessian
    (i - 1)), i the mean of |weight| times its input's share, 1 on average. 0: the rows are alike.
    """

    dial: ClassVar[bool] = True

    k: float
    by_hessian: float

    def __post_init__(self) -> None:
        positive(k=self.k)
        between(0, 1, by_hessian=self.by_hessian)

    @property
    def reads_hessians(self) -> bool:
        return self.by_hessian > 0

    def steps(self, w_BRC: Tensor, limit: int, importance_BRC: Tensor | None) -> Tensor:
        sigma_BR1 = w_BRC.square().mean(dim=2, keepdim=True).sqrt()
        if self.by_hessian and importance_BRC is not None:
            share_BRC = importance_BRC / importance_BRC.mean(dim=(1, 2), keepdim=True).clamp_min(1e-30)
            i_BR1 = (w_BRC.abs() * share_BRC).mean(dim=2, keepdim=True)
            i_BR1 = i_BR1 / i_BR1.mean(dim=1, keepdim=True).clamp_min(1e-30)
            sigma_BR1 = sigma_BR1 * (1 + self.by_hessian * (i_BR1 - 1))
        return sigma_BR1 * (self.k / limit)

    def top_in_sigmas(self, columns: int) -> float:
        return self.k
