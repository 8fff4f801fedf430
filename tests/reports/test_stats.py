"""Statistics of seeds: against SciPy, the published worked examples, formulas by hand, and simulated experiments."""

import math
import warnings
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import astuple

import numpy as np
import pytest
from scipy import stats

from golf.reports.stats import (
    MAX_SEEDS,
    BarTest,
    Difference,
    PooledSd,
    RankAgreement,
    Summary,
    bpb_to_nats,
    holm,
    nats_to_bpb,
    one_sample,
    pooled_sd,
    power_of,
    rank_agreement,
    seeds_needed,
    summarize,
    welch,
)
from tests.helpers.tiers import slow

# The contest's own per-seed scores in BPB: PR 1019 against PR 549, and the 2026-03-19 TrainingOptSeq4096 record.
PR_1019, PR_549 = [1.11508, 1.11437, 1.11475], [1.11923, 1.12002, 1.11889]
SEQ4096, SEQ4096_BAR = [1.20143, 1.19945, 1.20320], 1.21113611
MARGIN_BPB = 0.00296  # 0.005 nats a token on that text
NOISE = 0.00072  # BPB, the pooled sd within records


@pytest.fixture(autouse=True)
def no_warnings() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def samples(count: int) -> list[tuple[list[float], list[float]]]:
    """Rows and controls of 2 to 6 seeds, of unequal number, mean and noise."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(2, 7, (count, 2))
    sds = NOISE * rng.uniform(0.2, 5, (count, 2))
    return [
        (rng.normal(1.1, a, n).tolist(), rng.normal(1.101, b, m).tolist())
        for (n, m), (a, b) in zip(sizes, sds, strict=True)
    ]


# --- one row


@pytest.mark.parametrize("confidence", [0.8, 0.95, 0.99])
def test_summary_is_the_t_interval(confidence: float) -> None:
    for row, _ in samples(20):
        ours, theirs = summarize(row, confidence), stats.ttest_1samp(row, 0).confidence_interval(confidence)
        assert (ours.n, ours.mean) == (len(row), pytest.approx(np.mean(row), rel=1e-12))
        assert ours.sd == pytest.approx(np.std(row, ddof=1), rel=1e-9)
        assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), rel=1e-12)


def test_summary_is_95_percent_unless_told() -> None:
    assert summarize(PR_549) == summarize(PR_549, 0.95) != summarize(PR_549, 0.9)


def test_summary_of_one_seed_and_of_seeds_without_spread() -> None:
    assert summarize([1.2]) == Summary(n=1, mean=1.2, sd=None, low=None, high=None)
    # Three times 0.1 adds up to more than 0.3 in floats: neither the mean nor the sd may show it.
    assert summarize([0.1] * 3) == Summary(n=3, mean=0.1, sd=0.0, low=0.1, high=0.1)
    assert summarize([1.1, 1.1 + 3e-16]).sd == 0.0
    assert summarize([1.1, 1.1 + 1e-9]).sd == pytest.approx(1e-9 / math.sqrt(2), rel=1e-6)


# --- against a bar


def test_one_sample_is_scipys_and_points_down() -> None:
    for row, _ in samples(20):
        ours, theirs = one_sample(row, 1.1003), stats.ttest_1samp(row, 1.1003, alternative="less")
        assert astuple(ours)[2:] == pytest.approx((theirs.df, theirs.statistic, theirs.pvalue), rel=1e-12)
        assert ours.delta == pytest.approx(np.mean(row) - 1.1003, abs=1e-12)


def test_one_sample_worked_example() -> None:
    test = one_sample(SEQ4096, SEQ4096_BAR)
    assert (test.n, test.df) == (3, 2)
    assert test.t == pytest.approx(-9.06, rel=0.01)
    assert test.p == pytest.approx(0.006, rel=0.01)
    assert one_sample([2 * SEQ4096_BAR - x for x in SEQ4096], SEQ4096_BAR).p == pytest.approx(1 - test.p)


def test_one_sample_without_noise_has_no_p() -> None:
    assert one_sample([1.25], 1.0) == BarTest(n=1, delta=0.25, df=None, t=None, p=None)
    assert one_sample([0.1] * 3, 0.1) == BarTest(n=3, delta=0.0, df=None, t=None, p=None)
    assert one_sample([0.75] * 3, 1.0) == BarTest(n=3, delta=-0.25, df=None, t=None, p=None)


# --- against a control


def by_hand(row: np.ndarray, control: np.ndarray, margin: float = 0.0, confidence: float = 0.95) -> np.ndarray:
    """Welch's formulas over the last axis: delta, low, high, df, t, p_zero, p_margin along the first."""
    n, m = row.shape[-1], control.shape[-1]
    a, b = row.var(-1, ddof=1) / n, control.var(-1, ddof=1) / m
    delta, error, df = row.mean(-1) - control.mean(-1), np.sqrt(a + b), (a + b) ** 2 / (a**2 / (n - 1) + b**2 / (m - 1))
    reach = error * stats.t.ppf((1 + confidence) / 2, df)
    p_zero, p_margin = stats.t.cdf(delta / error, df), stats.t.cdf((delta + margin) / error, df)
    return np.array([delta, delta - reach, delta + reach, df, delta / error, p_zero, p_margin])


@pytest.mark.parametrize(("margin", "confidence"), [(0.0, 0.95), (0.002, 0.9)])
def test_welch_is_the_formula(margin: float, confidence: float) -> None:
    for row, control in samples(20):
        ours = astuple(welch(row, control, margin=margin, confidence=confidence))
        assert ours == pytest.approx(by_hand(np.array(row), np.array(control), margin, confidence), rel=1e-6)


def test_welch_defaults_are_no_margin_and_95_percent() -> None:
    test = welch(PR_1019, PR_549)
    assert test == welch(PR_1019, PR_549, margin=0.0, confidence=0.95)
    assert test.p_margin == test.p_zero


def test_welch_worked_example() -> None:
    test = welch(PR_1019, PR_549, margin=MARGIN_BPB)
    assert test.delta == pytest.approx(-0.004647, abs=1e-6)
    assert (test.t, test.df) == (pytest.approx(-11.83, rel=0.01), pytest.approx(3.31, rel=0.01))
    assert test.p_zero == pytest.approx(0.0004, rel=0.01)
    assert test.p_margin == pytest.approx(0.0095, rel=0.01)
    assert welch([x + MARGIN_BPB for x in PR_1019], PR_549).t == pytest.approx(-4.29, rel=0.01)


def test_welch_is_one_sided_and_its_sides_differ() -> None:
    better, worse = welch(PR_1019, PR_549), welch(PR_549, PR_1019)
    assert better.delta < 0 < worse.delta
    assert better.p_zero == pytest.approx(1 - worse.p_zero)
    assert (better.low, better.high) == pytest.approx((-worse.high, -worse.low))


def test_welch_wants_two_seeds_a_side() -> None:
    lonely = Difference(delta=-0.25, low=None, high=None, df=None, t=None, p_zero=None, p_margin=None)
    assert welch([1.0], [1.25]) == welch([1.0], [1.0, 1.5]) == welch([0.75, 1.25], [1.25]) == lonely


def test_welch_without_any_spread() -> None:
    """Identical numbers give no noise to test with; equal ones tie at exactly 0, whatever their sums round to."""
    tie = Difference(delta=0.0, low=0.0, high=0.0, df=None, t=None, p_zero=None, p_margin=None)
    assert welch([0.1] * 3, [0.1] * 7, margin=0.001) == tie
    assert welch([0.75] * 2, [1.0] * 3) == Difference(delta=-0.25, low=-0.25, high=-0.25)
    assert welch([1.1, 1.1 + 3e-16], [1.2] * 3).p_zero is None


def test_welch_with_one_side_without_spread_is_the_other_sides_t_test() -> None:
    row = [1.0, 1.01, 1.03]
    test, alone = welch(row, [1.05] * 4), one_sample(row, 1.05)
    assert (test.df, test.t, test.p_zero) == pytest.approx((alone.df, alone.t, alone.p))
    assert welch([1.05] * 4, row).p_zero == pytest.approx(1 - alone.p)


# --- error rates on simulated seeds

DRAWS = 40_000


@pytest.mark.parametrize("alpha", [0.01, 0.05])
@pytest.mark.parametrize(("n", "m", "ratio"), [(3, 3, 1), (5, 5, 1), (3, 6, 3)])
def test_type_one_error_and_coverage(n: int, m: int, ratio: float, alpha: float) -> None:
    """With no true difference p_zero < alpha at most as often as alpha says, and as often as the docstring says."""
    rng = np.random.default_rng(1)
    rows, controls = rng.normal(1.1, NOISE, (DRAWS, n)), rng.normal(1.1, ratio * NOISE, (DRAWS, m))
    _, low, high, _, _, p_zero, _ = by_hand(rows, controls, confidence=1 - alpha)
    for draw in range(5):  # what is simulated is what welch says
        ours = welch(rows[draw].tolist(), controls[draw].tolist(), confidence=1 - alpha)
        assert (ours.low, ours.high, ours.p_zero) == pytest.approx((low[draw], high[draw], p_zero[draw]), rel=1e-6)
    slack = 3 * math.sqrt(alpha / DRAWS)
    rejected, covered = (p_zero < alpha).mean(), ((low <= 0) & (high >= 0)).mean()
    assert 0.55 * alpha - slack < rejected < 1.1 * alpha + slack
    assert 1 - 1.2 * alpha - slack < covered < 1 - 0.4 * alpha + slack
    if n == m == 3:
        assert rejected == pytest.approx({0.05: 0.040, 0.01: 0.006}[alpha], abs=slack)
    if n == m:
        assert rejected == pytest.approx(power_of(0.0, NOISE, n, alpha=alpha), abs=slack)


def test_margin_error_rate() -> None:
    """A row that is truly better by exactly the margin passes p_margin no more often than alpha, and p_zero often."""
    rng = np.random.default_rng(2)
    rows, controls = rng.normal(1.1 - 0.003, NOISE, (DRAWS, 5)), rng.normal(1.1, NOISE, (DRAWS, 5))
    *_, p_zero, p_margin = by_hand(rows, controls, margin=0.003)
    assert (p_margin < 0.05).mean() == pytest.approx(0.046, abs=0.004)
    assert (p_zero < 0.05).mean() > 0.99
    ours = welch(rows[0].tolist(), controls[0].tolist(), margin=0.003)
    assert (ours.p_zero, ours.p_margin) == pytest.approx((p_zero[0], p_margin[0]), rel=1e-6)


# --- several rows


def test_holm_by_hand() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9, 0.7]) == [1.0, 1.0, 1.0]
    assert holm([0.02, 0.02]) == [0.04, 0.04]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_holm_counts_no_test_that_was_not_made() -> None:
    assert holm([None, 0.01, None, 0.04]) == [None, 0.02, None, 0.04]
    assert holm([None, None]) == [None, None]


@pytest.mark.parametrize("real", [0, 4])
@pytest.mark.parametrize("draws", [DRAWS // 5, slow(DRAWS)])
def test_holm_family_wise_error(real: int, draws: int) -> None:
    """Eight rows, some truly better: one false alarm or more in 5 % of reports, no more, and not far fewer."""
    rng = np.random.default_rng(3)
    p_values = rng.uniform(size=(draws, 8))
    p_values[:, :real] = 1e-9
    alarms = [any(p < 0.05 for p in holm(row)[real:]) for row in p_values.tolist()]
    expected = 1 - (1 - 0.05 / (8 - real)) ** (8 - real)  # some p of the others below alpha / how many they are
    assert np.mean(alarms) == pytest.approx(expected, abs=4 * math.sqrt(0.05 / draws))


def test_holm_family_wise_error_with_a_shared_control() -> None:
    rng = np.random.default_rng(4)
    rows, control = rng.normal(size=(8, 4_000, 3)), rng.normal(size=(4_000, 3))
    p_values = by_hand(rows, control[None])[5].T
    assert 0.01 < np.mean([min(holm(row)) < 0.05 for row in p_values.tolist()]) < 0.05


def test_pooled_sd_by_hand() -> None:
    pooled = pooled_sd([[1.0, 3.0], [10.0, 10.0, 13.0], [5.0], []])
    assert pooled == PooledSd(sd=pytest.approx(math.sqrt((2 + 6) / 3)), df=3)
    assert pooled_sd([[1.0, 3.0]]) == PooledSd(sd=pytest.approx(math.sqrt(2)), df=1)
    assert pooled_sd(iter([[1.0, 1.0], [2.0] * 3])) == PooledSd(sd=0.0, df=3)
    assert pooled_sd([[1.0], [], [2.0]]) is None
    assert pooled_sd([]) is None


# --- power


@pytest.mark.parametrize(
    ("delta", "n", "published"), [(0.001, 12, 0.81), (0.001, 3, 0.08), (0.002, 5, 0.86), (0.002, 3, 0.35)]
)
def test_power_agrees_with_the_published_simulation(delta: float, n: int, published: float) -> None:
    assert power_of(delta, NOISE, n) == pytest.approx(published, abs=0.015)


def test_power_of_a_large_gain_agrees_with_the_published_simulation() -> None:
    assert power_of(0.003, NOISE, 3) == pytest.approx(0.67, abs=0.01)
    assert power_of(0.003, NOISE, 5) > 0.99
    assert [seeds_needed(delta, NOISE) for delta in (0.001, 0.002)] == [12, 5]


@pytest.mark.parametrize(("effect", "n", "alpha"), [(1, 4, 0.05), (2, 2, 0.05), (2, 3, 0.01), (0.5, 20, 0.01)])
def test_power_is_how_often_a_simulated_gain_is_seen(effect: float, n: int, alpha: float) -> None:
    rng = np.random.default_rng(5)
    p_zero = by_hand(rng.normal(-effect, 1, (DRAWS, n)), rng.normal(0, 1, (DRAWS, n)))[5]
    assert power_of(effect, 1.0, n, alpha=alpha) == pytest.approx((p_zero < alpha).mean(), abs=0.008)


def test_power_of_many_seeds_is_students() -> None:
    """Welch's critical value tends to Student's, whose power is one noncentral t."""
    for n, effect in ((100, 0.4), (1000, 0.1)):
        students = stats.nct.sf(stats.t.isf(0.01, 2 * n - 2), 2 * n - 2, effect * math.sqrt(n / 2))
        assert power_of(effect, 1.0, n) == pytest.approx(students, abs=0.002)


def test_power_has_no_sign_and_no_unit() -> None:
    assert power_of(-0.001, NOISE, 5) == power_of(0.001, NOISE, 5)
    assert power_of(0.1, 100 * NOISE, 5) == pytest.approx(power_of(0.001, NOISE, 5), rel=1e-9)


def test_power_at_its_ends() -> None:
    assert power_of(0.1, 0.01, 1) == power_of(0.1, 0.01, 0) == 0.0
    assert (power_of(0.001, 0.0, 2), power_of(0.0, 0.0, 2)) == (1.0, 0.0)
    for effect in (1e3, 1e9, 1e300):
        assert power_of(1.0, 1 / effect, 2) == power_of(1.0, 1 / effect, MAX_SEEDS) == 1.0
    assert power_of(1e-9, 1.0, MAX_SEEDS) == pytest.approx(0.01, rel=1e-3)


def test_seeds_needed_is_the_first_count_with_the_power() -> None:
    for delta, alpha, power in ((0.001, 0.01, 0.8), (-0.0008, 0.05, 0.9), (0.003, 0.01, 0.5)):
        needed = seeds_needed(delta, NOISE, alpha=alpha, power=power)
        assert power_of(delta, NOISE, needed - 1, alpha=alpha) < power <= power_of(delta, NOISE, needed, alpha=alpha)


def test_seeds_needed_at_its_ends() -> None:
    assert seeds_needed(0.0, NOISE) is None
    assert seeds_needed(0.0, 0.0) is None
    assert seeds_needed(0.0, NOISE, alpha=0.5, power=0.1) is None
    assert seeds_needed(-0.001, 0.0) == 2
    assert seeds_needed(1.0, NOISE) == 2
    effects = np.arange(0.04, 0.05, 1e-5)
    at_cap = effects[bisect_left(effects, 0.8, key=lambda effect: power_of(effect, 1.0, MAX_SEEDS))]
    assert MAX_SEEDS - 10 < seeds_needed(at_cap, 1.0) <= MAX_SEEDS
    assert seeds_needed(at_cap - 1e-5, 1.0) is None


# --- units


def test_nats_and_bpb() -> None:
    """A bit a byte is ln 2 nats a token of one byte; 0.005 nats a token are the rules' 0.00296 BPB."""
    assert nats_to_bpb(math.log(2), tokens=10, text_bytes=10) == 1.0
    assert nats_to_bpb(math.log(2), tokens=10, text_bytes=40) == 0.25
    published = {"tokens": 62_021_632, "text_bytes": 151_080_000}
    assert nats_to_bpb(0.005, **published) == pytest.approx(MARGIN_BPB, rel=0.002)
    assert bpb_to_nats(-0.004647, **published) == pytest.approx(-0.00784, rel=0.002)
    assert bpb_to_nats(nats_to_bpb(2.5, **published), **published) == pytest.approx(2.5, rel=1e-15)


# --- two tracks


def test_rank_agreement_by_hand() -> None:
    """Of six pairs the tracks order five alike; of four rows they put three on the same side of the control."""
    found = rank_agreement([-0.03, -0.02, -0.01, 0.02], [-0.3, -0.1, -0.2, -0.05])
    assert found == RankAgreement(
        n=4,
        spearman=pytest.approx(0.8),
        kendall=pytest.approx(4 / 6),
        p=pytest.approx(4 / 24),  # of the 24 orders of four rows, one has no swap and three have one
        pairs=pytest.approx(5 / 6),
        signs=0.75,
    )


def test_rank_agreement_of_opposites_and_equals() -> None:
    same = RankAgreement(n=3, spearman=1.0, kendall=1.0, p=pytest.approx(1 / 6), pairs=1.0, signs=1.0)
    assert rank_agreement([1, 2, 3], [10, 200, 201]) == same
    opposite = rank_agreement([-1, -2, 3], [1, 2, -3])
    assert (opposite.kendall, opposite.p, opposite.pairs, opposite.signs) == pytest.approx((-1, 1, 0, 0))
    assert rank_agreement([1, 2, 3, 4], [1, 2, 3, 4]).p == pytest.approx(1 / 24)


def test_rank_agreement_is_scipys_with_ties() -> None:
    rng = np.random.default_rng(6)
    for _ in range(20):
        a, b = rng.integers(-3, 4, (2, 12)).tolist()
        ours = rank_agreement(a, b)
        assert ours.spearman == pytest.approx(stats.spearmanr(a, b).statistic)
        assert ours.kendall == pytest.approx(stats.kendalltau(a, b).statistic)
        assert ours.p == pytest.approx(stats.kendalltau(a, b, alternative="greater").pvalue)


def test_rank_agreement_leaves_ties_out_of_its_shares() -> None:
    found = rank_agreement([-1, -1, 2, 0], [-1, -2, 1, 3])
    assert found.pairs == pytest.approx(4 / 5)  # the pair that a ties has no order
    assert found.signs == 1.0  # a's zero has no side
    assert found.kendall == pytest.approx(3 / math.sqrt(5 * 6))


def test_rank_agreement_without_an_order() -> None:
    assert rank_agreement([], []) == RankAgreement(n=0)
    assert rank_agreement([-1], [-2]) == RankAgreement(n=1, signs=1.0)
    assert rank_agreement([-1, 2], [-2, -1]) == RankAgreement(n=2, signs=0.5)
    assert rank_agreement([-1, -1, -1], [-2, -1, 1]) == RankAgreement(n=3, signs=pytest.approx(2 / 3))
    assert rank_agreement([-2, -1, 1], [0, 0, 0]) == RankAgreement(n=3)


# --- refusals

BAD = [math.nan, math.inf, -math.inf]
PLACES: dict[str, Callable[[float], object]] = {
    "values[1]": lambda bad: summarize([1.0, bad]),
    "row[0]": lambda bad: welch([bad, 1.0], [1.0, 2.0]),
    "control[2]": lambda bad: welch([1.0, 2.0], [1.0, 2.0, bad]),
    "margin": lambda bad: welch([1.0, 2.0], [1.0, 2.0], margin=bad),
    "confidence": lambda bad: summarize([1.0, 2.0], bad),
    "bar": lambda bad: one_sample([1.0, 2.0], bad),
    "values[0]": lambda bad: one_sample([bad], 1.0),
    "p_values[1]": lambda bad: holm([0.5, bad]),
    "delta": lambda bad: power_of(bad, 1.0, 3),
    "sd": lambda bad: seeds_needed(1.0, bad),
    "alpha": lambda bad: seeds_needed(1.0, 1.0, alpha=bad),
    "power": lambda bad: seeds_needed(1.0, 1.0, power=bad),
    "groups[1][0]": lambda bad: pooled_sd([[1.0, 2.0], [bad]]),
    "nats_per_token": lambda bad: nats_to_bpb(bad, tokens=1, text_bytes=1),
    "bpb": lambda bad: bpb_to_nats(bad, tokens=1, text_bytes=1),
    "a[0]": lambda bad: rank_agreement([bad], [1.0]),
    "b[0]": lambda bad: rank_agreement([1.0], [bad]),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("bad", BAD)
def test_numbers_that_are_not_finite_are_refused_by_name(place: str, bad: float) -> None:
    with pytest.raises(ValueError) as refusal:
        PLACES[place](bad)
    assert str(refusal.value).startswith(f"{place}={bad} ")


@pytest.mark.parametrize(
    ("call", "start"),
    [
        (lambda: summarize([]), "values=[] is too short"),
        (lambda: one_sample([], 1.0), "values=[] is too short"),
        (lambda: welch([], [1.0]), "row=[] is too short"),
        (lambda: welch([1.0], []), "control=[] is too short"),
        (lambda: welch([1.0, 2.0], [1.0], margin=-0.1), "margin=-0.1 "),
        (lambda: welch([1.0, 2.0], [1.0], confidence=95), "confidence=95 "),
        (lambda: summarize([1.0], 1.0), "confidence=1.0 "),
        (lambda: holm([1.5]), "p_values[0]=1.5 "),
        (lambda: power_of(1.0, -1.0, 3), "sd=-1.0 "),
        (lambda: power_of(1.0, 1.0, -1), "n=-1 "),
        (lambda: power_of(1.0, 1.0, 3, alpha=0.0), "alpha=0.0 "),
        (lambda: seeds_needed(1.0, 1.0, power=1.0), "power=1.0 "),
        (lambda: nats_to_bpb(1.0, tokens=1, text_bytes=0), "text_bytes=0 "),
        (lambda: nats_to_bpb(1.0, tokens=0, text_bytes=1), "tokens=0 "),
        (lambda: bpb_to_nats(1.0, tokens=0, text_bytes=1), "tokens=0 "),
        (lambda: rank_agreement([1.0], [1.0, 2.0]), "a holds 1 rows and b 2"),
    ],
)
def test_what_makes_no_sense_is_refused(call: Callable[[], object], start: str) -> None:
    with pytest.raises(ValueError) as refusal:
        call()
    assert str(refusal.value).startswith(start)


def test_results_are_plain_floats() -> None:
    """They go into JSON, where NumPy's own floats cannot."""
    found = [
        summarize(np.array(PR_549)),
        welch(np.array(PR_1019), np.array(PR_549)),
        one_sample(np.array(SEQ4096), SEQ4096_BAR),
        rank_agreement(PR_549, PR_1019),
        pooled_sd([np.array(PR_549)]),
    ]
    numbers = [number for result in found for number in astuple(result)] + [power_of(1.0, 1.0, 3)]
    assert {type(number) for number in numbers} == {int, float}
