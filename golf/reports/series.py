"""Series of points as plots show them: smoothed, cut where points are missing, and the best of them."""

import itertools
import math
import statistics
from collections.abc import Sequence

SMOOTHING = 0.8  # of a training curve, per logged step


def smooth(values: Sequence[float], places: Sequence[int] = ()) -> list[float]:
    """Return the exponential average, corrected for its start; it begins anew before each of these places."""
    smoothed, total, weight = [], 0.0, 0.0
    for index, value in enumerate(values):
        if index in places:
            total = weight = 0.0
        total, weight = SMOOTHING * total + (1 - SMOOTHING) * value, SMOOTHING * weight + 1 - SMOOTHING
        smoothed.append(total / weight)
    return smoothed


def gaps(steps: Sequence[float]) -> list[int]:
    """Return where steps are left out: the indices before which a line must not go on."""
    widths = [after - before for before, after in itertools.pairwise(steps)]
    usual = statistics.median(widths) if widths else 0.0
    return [index + 1 for index, width in enumerate(widths) if width > 1.5 * usual]


def broken(values: Sequence[float], places: Sequence[int]) -> list[float]:
    """Return the values with a NaN, which ends a line, before each of these places."""
    cut = set(places)
    return [part for index, value in enumerate(values) for part in ([math.nan] * (index in cut) + [value])]


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Return the points that no other one beats in both (smaller is better), from small to large."""
    best: list[tuple[float, float]] = []
    for point in sorted(points):
        if not best or point[1] < best[-1][1]:
            best.append(point)
    return best
