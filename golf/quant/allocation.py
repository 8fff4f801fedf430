"""Which tensors get the finer steps, and how wide all of them are to be for a file of a given size."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from golf.fields import between

UNUSED = 0.004  # of the cap: what a fit may leave unused beside its margin
MOST_TRIES, WIDEST = 12, 6.0  # files that a fit may make; octaves that steps may be widened or refined by


@dataclass(kw_only=True, slots=True)
class AllocationConfig:
    """The slot."""

    @property
    def reads_gradients(self) -> bool:
        """Whether factors() wants the power of gradients."""
        return False

    def factors(self, weights: Mapping[str, Tensor], power: Mapping[str, float]) -> dict[str, float]:
        """What to multiply the steps of these tensors by. power: mean square of the loss's derivative by a weight."""
        raise NotImplementedError


@dataclass(kw_only=True, slots=True)
class EvenConfig(AllocationConfig):
    """As their formats say."""

    def factors(self, weights: Mapping[str, Tensor], power: Mapping[str, float]) -> dict[str, float]:
        return dict.fromkeys(weights, 1.0)


@dataclass(kw_only=True, slots=True)
class WaterfillConfig(AllocationConfig):
    """Reverse water-filling over tensors, for formats whose step is in standard deviations of its weights.

    Rounding with step d adds about c d^2 / 24 to the loss for each weight, c the curvature, and a weight costs
    log2(sigma / d) bits: the least loss for all bytes together has c d^2 alike everywhere. c is taken to be the mean
    square gradient (the diagonal of the Fisher information). strength: 1 is that, 0 is even; most: no factor is further
    from 1 than this.
    """

    strength: float
    most: float

    def __post_init__(self) -> None:
        between(0, 2, strength=self.strength)
        between(1, 1000, most=self.most)

    @property
    def reads_gradients(self) -> bool:
        return True

    def factors(self, weights: Mapping[str, Tensor], power: Mapping[str, float]) -> dict[str, float]:
        """They leave the mean of the bits as it was: the weighted mean of their logarithms is 0."""
        numbers = torch.tensor([float(weight.numel()) for weight in weights.values()], dtype=torch.float64)
        sigma = torch.tensor([weight.float().std().item() for weight in weights.values()], dtype=torch.float64)
        slope = torch.tensor([power[name] for name in weights], dtype=torch.float64).sqrt()
        wanted = -(slope.clamp_min(1e-30) * sigma.clamp_min(1e-30)).log()
        wanted = self.strength * (wanted - (wanted * numbers).sum() / numbers.sum())
        bound = math.log(self.most)
        return dict(zip(weights, wanted.clamp(-bound, bound).exp().tolist(), strict=True))


@dataclass(frozen=True, slots=True)
class Fit:
    """What a search ended with. fits: the file is within the cap and its margin; full: and leaves little unused."""

    factor: float
    size_bytes: int
    tries: int
    fits: bool
    full: bool


def fit(size_of: Callable[[float], int], cap_bytes: int, margin: float, weights: int) -> Fit:
    """The factor of all steps whose file fills the cap best; size_of(factor) makes a file. weights: how many numbers
    have such steps: an octave costs each of them a bit, which is where the search takes its next guess from."""
    top, least = cap_bytes * (1 - margin), cap_bytes * (1 - margin - UNUSED)
    aim = (top + least) / 2
    low, high, octaves, tries = -WIDEST, WIDEST, 0.0, 0
    best: Fit | None = None
    while tries < MOST_TRIES and high - low > 1e-4:
        size, tries = size_of(2.0**octaves), tries + 1
        found = Fit(2.0**octaves, size, tries, size <= top, least <= size <= top)
        best = found if best is None else max(best, found, key=_merit)
        if found.full:
            break
        low, high = (octaves, high) if size > aim else (low, octaves)
        octaves += 8 * (size - aim) / max(1, weights)
        if not low < octaves < high:
            octaves = (low + high) / 2
    assert best is not None
    return best


def _merit(found: Fit) -> tuple[bool, int]:
    """A file that fits before one that does not; then the fuller of those, and the smaller of these."""
    return found.fits, found.size_bytes if found.fits else -found.size_bytes
