"""Statistics of right and wrong answers, held to SciPy, closed forms and simulated coverage."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from landscape.statistics import (
    Bootstrap,
    bootstrap_p_value,
    half_top_1_and_5,
    holm,
    independent_discordant_share,
    mcnemar,
    mean_class_recall,
    minimal_detectable_difference,
    percentile_interval,
    roc_auc,
    stratified_weights,
    top_k_hits,
    wilson_interval,
)


@pytest.mark.parametrize("confidence", [0.68, 0.95, 0.999])
@pytest.mark.parametrize(
    ("k", "n"), [(0, 1), (1, 1), (0, 500), (500, 500), (3, 7), (799, 1496), (21, 10_000)]
)
def test_the_wilson_interval_is_scipys(k, n, confidence):
    expected = stats.binomtest(k, n).proportion_ci(confidence, method="wilson")
    ends = wilson_interval(k, n, confidence=confidence)
    np.testing.assert_allclose(ends, (expected.low, expected.high), rtol=1e-12, atol=1e-15)


def test_wilson_intervals_of_arrays_are_those_of_their_numbers():
    low, high = wilson_interval(np.array([0, 4, 9]), np.array([[9], [10]]))
    assert low.shape == (2, 3) and (low[:, 0] == 0).all() and high[0, 2] == 1
    assert (low[1, 1], high[1, 1]) == wilson_interval(4, 10)


@pytest.mark.parametrize(("k", "n"), [(-1, 5), (6, 5), (0, 0), (math.nan, 5)])
def test_wilson_intervals_of_impossible_counts_are_refused(k, n):
    with pytest.raises(ValueError, match="num_correct"):
        wilson_interval(k, n)


def binomial_p(b, c):
    """Two-sided by counting coin sequences, in exact fractions."""
    n = b + c
    tail = sum(Fraction(math.comb(n, i), 2**n) for i in range(min(b, c) + 1))
    return float(min(Fraction(1), 2 * tail))


@pytest.mark.parametrize(
    ("both", "b", "c", "neither"),
    [(5, 0, 0, 4), (0, 1, 0, 0), (9, 6, 0, 1), (3, 2, 9, 0), (40, 31, 55, 3)],
)
def test_mcnemar_is_the_exact_binomial_test_of_the_discordant_items(both, b, c, neither):
    first = np.repeat([True, True, False, False], [both, b, c, neither])
    second = np.repeat([True, False, True, False], [both, b, c, neither])
    order = np.random.default_rng(0).permutation(len(first))
    result = mcnemar(first[order], second[order])
    assert (result.first_only, result.second_only, result.num_items) == (
        b,
        c,
        both + b + c + neither,
    )
    assert result.p_value == pytest.approx(binomial_p(b, c), rel=1e-12)
    if b + c:
        assert result.p_value == pytest.approx(stats.binomtest(b, b + c).pvalue, rel=1e-12)
    assert result.difference == pytest.approx(first.mean() - second.mean())
    assert result.discordant_share == pytest.approx((first != second).mean())


def test_mcnemar_of_other_items_is_refused():
    with pytest.raises(ValueError, match="same items"):
        mcnemar(np.ones(3, bool), np.ones(4, bool))


def test_mcnemar_without_items_has_no_difference_and_p_1():
    result = mcnemar(np.ones(0, bool), np.ones(0, bool))
    assert result.p_value == 1 and math.isnan(result.difference)


def test_holm_corrects_as_by_hand():
    # 0.01 x 4, 0.02 x 3, then 0.03 x 2 and 0.04 x 1, which may not fall below those before; NaN
    # does not count.
    np.testing.assert_allclose(
        holm(np.array([0.03, 0.01, math.nan, 0.04, 0.02])), [0.06, 0.04, math.nan, 0.06, 0.06]
    )


@pytest.mark.parametrize(("n", "psi"), [(160, 0.3), (500, 0.5), (1496, 0.2), (50_000, 0.15)])
@pytest.mark.parametrize(("alpha", "power"), [(0.05, 0.8), (0.05 / 17, 0.9)])
def test_the_minimal_detectable_difference_solves_connors_equation(n, psi, alpha, power):
    delta = minimal_detectable_difference(n, psi, alpha=alpha, power=power)
    a, b = stats.norm.ppf([1 - alpha / 2, power])
    assert (a * math.sqrt(psi) + b * math.sqrt(psi - delta**2)) ** 2 / delta**2 == pytest.approx(
        n, rel=1e-12
    )


def test_the_exact_test_detects_the_minimal_detectable_difference_about_as_often_as_asked():
    # 500 items, exact power by enumeration: lower than 0.8, since the exact test is conservative
    # (its level here is 0.035).
    n, psi = 500, 0.2
    delta = minimal_detectable_difference(n, psi)
    num = np.arange(n + 1)
    share = (psi + delta) / 2 / psi
    power = 0.0
    for m in num[1:]:
        b = np.arange(m + 1)
        rejected = np.minimum(1, 2 * stats.binom.cdf(np.minimum(b, m - b), m, 0.5)) <= 0.05
        power += stats.binom.pmf(m, n, psi) * stats.binom.pmf(b[rejected], m, share).sum()
    assert 0.74 <= power <= 0.80


def test_where_no_difference_can_be_detected_there_is_none():
    assert math.isnan(minimal_detectable_difference(3, 0.1))
    assert math.isnan(minimal_detectable_difference(1000, 0.0))


@pytest.mark.parametrize("arguments", [(0, 0.1), (10, -0.1), (10, 1.1)])
def test_impossible_designs_are_refused(arguments):
    with pytest.raises(ValueError):
        minimal_detectable_difference(*arguments)
    with pytest.raises(ValueError):
        minimal_detectable_difference(10, 0.1, power=0.4)


def test_bootstrap_weights_keep_the_size_of_every_stratum_and_leave_a_single_item_alone():
    strata = np.array([2, 0, 1, 1, 0, 1, 0, 5, 0, 5])
    weights = stratified_weights(strata, 400, np.random.default_rng(0))
    for name, size in ((0, 4), (1, 3), (2, 1), (5, 2)):
        np.testing.assert_allclose(weights[:, strata == name].sum(1), size, rtol=1e-12)
        if size > 1:
            # m - 1 draws, each counting m / (m - 1).
            counts = weights[:, strata == name] * (size - 1) / size
            np.testing.assert_allclose(counts, np.round(counts), atol=1e-12)
            assert len(np.unique(counts, axis=0)) == math.comb(2 * size - 2, size - 1)
    assert (weights[:, 0] == 1).all()


def test_bootstrap_weights_have_the_moments_of_the_multinomial_draw():
    # Var w_i = m^2 / (m - 1)^2 * (m - 1) (1 / m) (1 - 1 / m) = 1; Cov(w_i, w_j) = -1 / (m - 1);
    # strata are independent.
    strata = np.repeat([0, 1], 5)
    weights = stratified_weights(strata, 200_000, np.random.default_rng(1))
    expected = np.kron(np.eye(2), np.full((5, 5), -0.25) + 1.25 * np.eye(5))
    # The standard error of a covariance of 200,000 draws is about 0.003.
    np.testing.assert_allclose(np.cov(weights.T), expected, atol=0.015)


def test_the_variance_of_a_mean_over_strata_is_the_unbiased_estimate():
    generator = np.random.default_rng(2)
    strata = np.repeat(np.arange(16), 10)
    correct = (generator.random(160) < np.repeat(generator.uniform(0.1, 0.9, 16), 10)).astype(float)
    closed = sum(correct[strata == s].var(ddof=1) / 10 for s in range(16)) / 16**2
    resampled = Bootstrap(num_resamples=20_000).resample(lambda w: w @ correct / 160, strata)
    # The standard error of a variance from 20,000 resamples is 1 %. Drawing all 10 of a stratum
    # would give 10 % less.
    assert resampled.var() == pytest.approx(closed, rel=0.04)
    assert resampled.mean() == pytest.approx(correct.mean(), abs=4 * math.sqrt(closed / 20_000))


def test_the_interval_in_one_stratum_is_scipys():
    generator = np.random.default_rng(3)
    values = generator.exponential(size=400)
    ours = Bootstrap(num_resamples=20_000).interval(lambda w: w @ values / w.sum(1), np.zeros(400))
    theirs = stats.bootstrap(
        (values,), np.mean, n_resamples=20_000, method="percentile", rng=np.random.default_rng(4)
    )
    width = theirs.confidence_interval.high - theirs.confidence_interval.low
    assert ours.value == pytest.approx(values.mean())
    # Two ends, each uncertain by 0.03 standard errors of 20,000 resamples; a width is 3.9 standard
    # errors.
    assert ours.low == pytest.approx(theirs.confidence_interval.low, abs=0.03 * width)
    assert ours.high == pytest.approx(theirs.confidence_interval.high, abs=0.03 * width)


def test_a_paired_interval_covers_the_true_difference_in_93_to_97_percent():
    # Two models on 160 pictures in 16 categories of different difficulty; the difference of
    # accuracies is known.
    generator = np.random.default_rng(5)
    strata, covered, num_trials = np.repeat(np.arange(16), 10), 0, 1000
    first, second = np.linspace(0.5, 0.95, 16).repeat(10), np.linspace(0.3, 0.9, 16).repeat(10)
    truth = (first - second).mean()
    settings = Bootstrap(num_resamples=299)
    for _ in range(num_trials):
        shared = generator.random(160)
        difference = (shared < first).astype(float) - (
            (shared + 0.3 * generator.random(160)) % 1 < second
        )
        interval = settings.interval(lambda w, d=difference: w @ d / 160, strata)
        covered += interval.low <= truth <= interval.high
    # 1000 trials have a standard error of 0.7 %.
    assert 0.93 <= covered / num_trials <= 0.97


def test_the_same_seed_gives_the_same_resamples_and_streams_differ():
    strata, values = np.repeat([0, 1], 50), np.random.default_rng(0).random(100)

    def resampled(**settings):
        stream = settings.pop("stream", 0)
        return Bootstrap(num_resamples=99, **settings).resample(
            lambda w: w @ values, strata, stream=stream
        )

    assert (resampled() == resampled()).all()
    assert (resampled() != resampled(seed=1)).any() and (resampled() != resampled(stream=1)).any()


def test_blocks_of_resamples_are_all_there(monkeypatch):
    monkeypatch.setattr("landscape.statistics.bootstrap._MAX_WEIGHTS", 1000)
    blocks = list(Bootstrap(num_resamples=123).weights(np.zeros(100)))
    assert [len(block) for block in blocks] == [10] * 12 + [3]


def test_a_number_that_no_resample_changes_has_no_interval():
    interval = Bootstrap(num_resamples=99).interval(lambda w: w.sum(1) / w.sum(1), np.zeros(9))
    assert interval.value == 1 and math.isnan(interval.low) and math.isnan(interval.high)
    assert math.isnan(percentile_interval(0.5, np.array([0.4, math.nan, 0.6])).low)


def test_the_p_value_is_below_alpha_where_the_interval_excludes_zero():
    generator = np.random.default_rng(6)
    for shift in np.linspace(0, 4, 200):
        resampled = generator.normal(shift, 1, 1999)
        interval = percentile_interval(shift, resampled)
        # Both count resamples beyond 0; they may differ by one of 2,000.
        assert (bootstrap_p_value(resampled) <= 0.05 + 1e-3) or not interval.low > 0
        assert (bootstrap_p_value(resampled) >= 0.05 - 2e-3) or interval.low > 0
    assert bootstrap_p_value(np.full(999, 3.0)) == pytest.approx(2 / 1000)
    assert bootstrap_p_value(np.zeros(999)) == 1


@pytest.mark.parametrize("settings", [{"confidence": 1.0}, {"num_resamples": 10}, {"seed": -1}])
def test_bootstrap_settings_out_of_range_are_refused(settings):
    with pytest.raises(ValueError):
        Bootstrap(**settings)


def auc_over_pairs(scores, positive, weights):
    total = area = 0.0
    for i, j in itertools.product(np.flatnonzero(positive), np.flatnonzero(~positive)):
        weight = weights[i] * weights[j]
        total += weight
        area += weight * ((scores[i] > scores[j]) + 0.5 * (scores[i] == scores[j]))
    return area / total


@pytest.mark.parametrize("levels", [3, 1000])
def test_the_area_under_the_roc_curve_is_the_share_of_ordered_pairs(levels):
    generator = np.random.default_rng(7)
    scores, positive = generator.integers(levels, size=61).astype(float), generator.random(61) < 0.3
    scores[:3], scores[3] = -math.inf, math.inf
    assert roc_auc(scores, positive) == pytest.approx(
        auc_over_pairs(scores, positive, np.ones(61)), rel=1e-12
    )
    weights = generator.integers(0, 4, size=(5, 61)).astype(float)
    expected = [auc_over_pairs(scores, positive, row) for row in weights]
    np.testing.assert_allclose(roc_auc(scores, positive, weights), expected, rtol=1e-12)


def test_the_area_under_the_roc_curve_has_its_known_values():
    positive = np.array([True, False, True, False])
    assert roc_auc(np.array([3.0, 1.0, 4.0, 2.0]), positive) == 1
    assert roc_auc(-np.array([3.0, 1.0, 4.0, 2.0]), positive) == 0
    assert roc_auc(np.zeros(4), positive) == 0.5
    # Wilcoxon's rank sum is the same number, by SciPy.
    scores = np.random.default_rng(8).normal(size=200) + np.repeat([0, 0.4], 100)
    expected = stats.mannwhitneyu(scores[100:], scores[:100]).statistic / 100**2
    assert roc_auc(scores, np.arange(200) >= 100) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(
    ("scores", "positive", "message"),
    [
        ([0.1, math.nan], [True, False], "NaN"),
        ([0.1, 0.2], [True, True], "only one kind"),
        ([], [], "only one kind"),
    ],
)
def test_an_area_that_does_not_exist_is_refused(scores, positive, message):
    with pytest.raises(ValueError, match=message):
        roc_auc(np.array(scores), np.array(positive, dtype=bool))


def test_the_mean_recall_counts_every_class_that_occurs_the_same():
    labels = np.array([7, 2, 2, 2, 7, 4, 2, 2])
    correct = np.array([1, 1, 0, 0, 0, 1, 0, 1], dtype=bool)
    # 2: 2 of 5, 4: 1 of 1, 7: 1 of 2.
    assert mean_class_recall(labels, correct) == pytest.approx((0.4 + 1 + 0.5) / 3)
    # Without class 4 and with the first picture twice: 2: 2 of 5, 7: 2 of 3.
    weights = np.array([[2.0, 1, 1, 1, 1, 0, 1, 1]])
    np.testing.assert_allclose(mean_class_recall(labels, correct, weights), [(0.4 + 2 / 3) / 2])
    with pytest.raises(ValueError, match="at least one item"):
        mean_class_recall(np.ones(0, int), np.ones(0, bool))


def test_top_k_counts_the_class_among_the_k_best():
    labels, best = np.array([3, 1, 2]), np.array([[3, 0, 1], [0, 2, 1], [0, 1, 3]])
    assert top_k_hits(labels, best, 1).tolist() == [True, False, False]
    assert top_k_hits(labels, best, 3).tolist() == [True, True, False]
    with pytest.raises(ValueError, match="between 1 and the 3"):
        top_k_hits(labels, best, 5)


def test_half_of_top_1_and_top_5_gives_half_for_the_second_to_fifth_place():
    best = np.arange(6) + np.zeros((4, 1), int)
    assert half_top_1_and_5(np.array([0, 1, 4, 5]), best).tolist() == [1, 0.5, 0.5, 0]
    with pytest.raises(ValueError, match="got 5"):
        half_top_1_and_5(np.array([0]), best[:1, :3])


def test_independent_observers_are_told_apart_by_so_many_items():
    generator = np.random.default_rng(9)
    first, second = generator.random((2, 100_000)) < [[0.8], [0.3]]
    # The standard error of the share is 0.0015.
    assert independent_discordant_share(0.8, 0.3) == pytest.approx(
        (first != second).mean(), abs=0.006
    )
