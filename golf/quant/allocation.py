"""Which tensors get the finer steps, and how wide all of them are to be for a file of a given size."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

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
        """Where none meets its bound they leave the mean of the bits as it was: the weighted mean of their logarithms
        is 0. Tensors that say nothing (no gradient, all zeros) keep their steps and do not weigh on the others'."""
        sigma = {name: weight.float().square().mean().sqrt().item() for name, weight in weights.items()}
        spoken = {name: power[name] ** 0.5 * sigma[name] for name in weights}
        wanted = {name: -math.log(value) for name, value in spoken.items() if 0 < value < math.inf}
        numbers = sum(weights[name].numel() for name in wanted)
        mean = sum(value * weights[name].numel() for name, value in wanted.items()) / max(1, numbers)
        bound = math.log(self.most)
        shares = {name: self.strength * (value - mean) for name, value in wanted.items()}
        return {name: math.exp(min(max(shares.get(name, 0.0), -bound), bound)) for name in weights}


@dataclass(frozen=True, slots=True)
class Fit:
    """What a search ended with, after so many tries. fits: the file is within the cap and its margin; full: and leaves
    little unused."""

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
    return replace(best, tries=tries)


def _merit(found: Fit) -> tuple[bool, int]:
    """A file that fits before one that does not; then the fuller of those, and the smaller of these."""
    return found.fits, found.size_bytes if found.fits else -found.size_bytes
