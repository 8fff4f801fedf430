"""What seeds can tell: intervals, tests of a row against its control or a bar, and how many seeds a question needs.

Scores are bits per byte, one number a seed, lower is better; a delta below zero is an improvement. A value that one
seed, or seeds without any spread, cannot give is None, never NaN. Distributions and tests are SciPy's. Every function
raises ValueError for a number that is not finite, and names it.
"""

import math
import statistics
import warnings
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import scipy  # its parts are loaded when they are first used: scipy.stats takes a second

from golf.fields import between, positive

MAX_SEEDS = 10_000  # a side; seeds_needed looks no further
ROUNDING = 1e-12  # a relative spread below this is arithmetic, not noise between seeds


@dataclass(frozen=True, kw_only=True, slots=True)
class Summary:
    """Seeds of one row. sd: of the sample (n - 1); low, high: t interval of the mean; None for one seed."""

    n: int
    mean: float
    sd: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Difference:
    """A row against its control; delta below zero is better. p_zero, p_margin: one-sided, see welch."""

    delta: float
    low: float | None = None
    high: float | None = None
    df: float | None = None
    t: float | None = None
    p_zero: float | None = None
    p_margin: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class BarTest:
    """A row against a fixed bar. delta: mean minus bar; p: one-sided, against "the true mean is not below"."""

    n: int
    delta: float
    df: float | None = None
    t: float | None = None
    p: float | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class PooledSd:
    """The noise between seeds that several rows share, and the degrees of freedom it rests on."""

    sd: float
    df: int


@dataclass(frozen=True, kw_only=True, slots=True)
class RankAgreement:
    """The same rows on two tracks.

    spearman, kendall (tau-b): rank correlations, -1 to 1; p: one-sided, of kendall against no association (three rows
    cannot get below 0.17, four 0.04). pairs: share of pairs of rows that both tracks order the same way; signs: share
    of rows that both tracks put on the same side of the control. Ties have no order, and are left out of both shares.
    """

    n: int
    spearman: float | None = None
    kendall: float | None = None
    p: float | None = None
    pairs: float | None = None
    signs: float | None = None


def _finite(name: str, values: Iterable[float], *, least: int) -> list[float]:
    """The values as floats; ValueError for fewer than `least`, or for one that is not finite."""
    numbers = [float(value) for value in values]
    if len(numbers) < least:
        raise ValueError(f"{name}={numbers} is too short; give at least {least} value")
    for index, number in enumerate(numbers):
        if not math.isfinite(number):
            raise ValueError(f"{name}[{index}]={number} is not a finite number; leave failed runs out")
    return numbers


def _sd(numbers: Sequence[float]) -> float | None:
    """Sample standard deviation; exactly 0 where the numbers differ by rounding only, None for fewer than two."""
    if len(numbers) < 2:
        return None
    sd = statistics.stdev(numbers)
    return sd if sd > ROUNDING * max(map(abs, numbers)) else 0.0


def _share_alike(couples: Iterable[tuple[float, float]]) -> float | None:
    """The share of couples with equal signs, among those without a zero; None where every couple has one."""
    alike = [(x > 0) == (y > 0) for x, y in couples if x != 0 and y != 0]
    return sum(alike) / len(alike) if alike else None


def summarize(values: Sequence[float], confidence: float = 0.95) -> Summary:
    """Mean, spread and t interval of one row's seeds. Seeds without spread give an interval of no width."""
    numbers = _finite("values", values, least=1)
    between(0.01, 0.9999, confidence=confidence)
    n, mean, sd = len(numbers), statistics.mean(numbers), _sd(numbers)
    if sd is None:
        return Summary(n=n, mean=mean)
    reach = float(scipy.stats.t.ppf((1 + confidence) / 2, n - 1)) * sd / math.sqrt(n)
    return Summary(n=n, mean=mean, sd=sd, low=mean - reach, high=mean + reach)


def welch(
    row: Sequence[float], control: Sequence[float], *, margin: float = 0.0, confidence: float = 0.95
) -> Difference:
    """Welch's test of a row against its control: no assumption that both are equally noisy.

    delta: mean(row) - mean(control); low, high: its two-sided interval; t, df: of the test against zero difference.
    p_zero: against "not lower than the control"; p_margin: against "lower by less than `margin`" (true difference
    >= -margin). Few seeds make it cautious: with 3 normal ones a side, 0.05 errs in 4.0 % and 0.01 in 0.6 % of cases.
    One seed on a side leaves delta only. Where neither side has any spread there is no noise to measure a difference
    by: the interval has no width, and t, df and both p are None, even where delta is large. One such side is no
    obstacle: the other's noise is then all there is.
    """
    ours, theirs = _finite("row", row, least=1), _finite("control", control, least=1)
    between(0, 1e6, margin=margin)
    between(0.01, 0.9999, confidence=confidence)
    delta = statistics.mean(ours) - statistics.mean(theirs)
    spreads = (_sd(ours), _sd(theirs))
    if None in spreads:
        return Difference(delta=delta)
    if spreads == (0, 0):
        return Difference(delta=delta, low=delta, high=delta)
    shifted = [value + margin for value in ours]
    with warnings.catch_warnings(action="ignore", category=RuntimeWarning):  # SciPy's, of a side without spread
        interval = scipy.stats.ttest_ind(ours, theirs, equal_var=False).confidence_interval(confidence)
        zero = scipy.stats.ttest_ind(ours, theirs, equal_var=False, alternative="less")
        beyond = scipy.stats.ttest_ind(shifted, theirs, equal_var=False, alternative="less")
    return Difference(
        delta=delta,
        low=float(interval.low),
        high=float(interval.high),
        df=float(zero.df),
        t=float(zero.statistic),
        p_zero=float(zero.pvalue),
        p_margin=float(beyond.pvalue),
    )


def one_sample(values: Sequence[float], bar: float) -> BarTest:
    """One-sided t test of a row's mean against a fixed published bar, taken as exact; below the bar is better.

    One seed, or seeds without spread, leave n and delta only. Subtract a required margin from the bar beforehand.
    """
    numbers = _finite("values", values, least=1)
    between(-1e6, 1e6, bar=bar)
    n, delta = len(numbers), statistics.mean(numbers) - bar
    if not _sd(numbers):
        return BarTest(n=n, delta=delta)
    test = scipy.stats.ttest_1samp(numbers, bar, alternative="less")
    return BarTest(n=n, delta=delta, df=float(test.df), t=float(test.statistic), p=float(test.pvalue))


def welch_published(values: Sequence[float], *, mean: float, sd: float, n: int, margin: float = 0.0) -> BarTest:
    """Welch's one-sided test of a row against a result of which only mean, sample sd and seeds are published.

    delta: mean(values) - mean; p: against "lower by less than `margin`". One seed on a side, or no spread on either,
    leaves n and delta only.
    """
    numbers = _finite("values", values, least=1)
    between(0, 1e6, margin=margin, sd=sd)
    ours, delta, own = len(numbers), statistics.mean(numbers) - mean, _sd(numbers)
    if own is None or n < 2 or (own == 0 and sd == 0):
        return BarTest(n=ours, delta=delta)
    test = scipy.stats.ttest_ind_from_stats(
        statistics.mean(numbers) + margin, own, ours, mean, sd, n, equal_var=False, alternative="less"
    )
    weights = own**2 / ours, sd**2 / n
    df = sum(weights) ** 2 / (weights[0] ** 2 / (ours - 1) + weights[1] ** 2 / (n - 1))
    return BarTest(n=ours, delta=delta, df=df, t=float(test.statistic), p=float(test.pvalue))


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """p-values adjusted for being several: acting on those below alpha, even one false alarm has a chance <= alpha.

    In the order given; None (no test was possible) stays None and counts for nothing. Step-down, Holm 1979.
    """
    for index, p in enumerate(p_values):
        between(0, 1, **{f"p_values[{index}]": p})
    tests = sorted((p, index) for index, p in enumerate(p_values) if p is not None)
    adjusted: list[float | None] = [None] * len(p_values)
    highest = 0.0
    for rank, (p, index) in enumerate(tests):
        highest = max(highest, (len(tests) - rank) * p)
        adjusted[index] = min(1.0, highest)
    return adjusted


def power_of(delta: float, sd: float, n: int, *, alpha: float = 0.01) -> float:
    """The chance that `n` seeds a side show a true difference of |delta| at one-sided p < alpha by Welch's test.

    Normal noise of equal sd on both sides. Exact up to the quadrature (error below 1e-4). One seed a side has power 0.
    """
    between(-1e6, 1e6, delta=delta)
    between(0, 1e6, sd=sd)
    between(0, MAX_SEEDS, n=n)
    between(1e-4, 0.5, alpha=alpha)
    if n < 2:
        return 0.0
    if sd == 0:
        return float(delta != 0)
    # With equal n the statistic is Student's, noncentral t with 2n - 2 degrees of freedom. Only the critical value is
    # Welch's: it hangs on the row's share of the two sample variances, which is Beta and independent of the statistic.
    # The average runs over that share's quantiles.
    share = scipy.stats.beta.ppf((np.arange(200) + 0.5) / 200, (n - 1) / 2, (n - 1) / 2)
    critical = scipy.stats.t.isf(alpha, (n - 1) / (share**2 + (1 - share) ** 2))
    shift = min(1e5, abs(delta) / sd * math.sqrt(n / 2))  # power is 1 well before, and nct fails well beyond
    return float(scipy.stats.nct.sf(critical, 2 * n - 2, shift).mean())


def seeds_needed(delta: float, sd: float, *, alpha: float = 0.01, power: float = 0.8) -> int | None:
    """Seeds a side until `power_of` reaches `power`; at least 2, as a test needs.

    None where delta is 0, or where MAX_SEEDS are not enough. To show a gain beyond a margin, give |delta| - margin.
    """
    between(1e-4, 0.9999, power=power)
    counts = range(2, MAX_SEEDS + 1)
    reached = bisect_left(counts, power, key=lambda n: power_of(delta, sd, n, alpha=alpha))
    return counts[reached] if delta != 0 and reached < len(counts) else None


def pooled_sd(groups: Iterable[Sequence[float]]) -> PooledSd | None:
    """The sd within groups, over those with at least two values, each weighted by its n - 1; None without any."""
    samples = [_finite(f"groups[{index}]", group, least=0) for index, group in enumerate(groups)]
    spreads = [(len(sample) - 1, sd) for sample in samples if (sd := _sd(sample)) is not None]
    df = sum(weight for weight, _ in spreads)
    return PooledSd(sd=math.sqrt(sum(weight * sd**2 for weight, sd in spreads) / df), df=df) if df else None


def nats_to_bpb(nats_per_token: float, *, tokens: int, text_bytes: int) -> float:
    """Bits per byte of a loss in nats per token, on a text of so many tokens and bytes; a difference converts alike."""
    between(-1e6, 1e6, nats_per_token=nats_per_token)
    positive(tokens=tokens, text_bytes=text_bytes)
    return nats_per_token / math.log(2) * tokens / text_bytes


def bpb_to_nats(bpb: float, *, tokens: int, text_bytes: int) -> float:
    """Nats per token of a score in bits per byte: the reverse of nats_to_bpb."""
    between(-1e6, 1e6, bpb=bpb)
    positive(tokens=tokens, text_bytes=text_bytes)
    return bpb * math.log(2) * text_bytes / tokens


def rank_agreement(a: Sequence[float], b: Sequence[float]) -> RankAgreement:
    """How well one track's verdicts on some rows foretell another's.

    a, b: each row's delta to the control of that track, in the same order of rows, the controls themselves left out.
    Correlations and pairs are None below three rows, or where a track ties them all; signs where no row has two sides
    to compare. With ties p is asymptotic.
    """
    first, second = _finite("a", a, least=0), _finite("b", b, least=0)
    if len(first) != len(second):
        raise ValueError(f"a holds {len(first)} rows and b {len(second)}; give both tracks' deltas of the same rows")
    n, signs = len(first), _share_alike(zip(first, second, strict=True))
    if n < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return RankAgreement(n=n, signs=signs)
    kendall = scipy.stats.kendalltau(first, second, alternative="greater")
    gaps = ((first[i] - first[j], second[i] - second[j]) for i, j in combinations(range(n), 2))
    return RankAgreement(
        n=n,
        spearman=float(scipy.stats.spearmanr(first, second).statistic),
        kendall=float(kendall.statistic),
        p=float(kendall.pvalue),
        pairs=_share_alike(gaps),
        signs=signs,
    )
