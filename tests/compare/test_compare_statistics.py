"""Statistics over batches, held to SciPy, closed forms, and the coverage and the rate that
simulated data show.
"""

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from landscape.compare import Resampling, Sample, effect_size, holm

NUM_TRIALS = 1000


def sample(values, location="median"):
    values = np.asarray(values, dtype=float)
    return Sample(location, values, np.ones_like(values))


def lognormal_pair(generator, n, location="median"):
    """Sharpness as it is found: skewed, twice as large in the first, and high for both on the same
    batches.
    """
    shared = generator.normal(0, 0.4, n)
    first = 12 * np.exp(shared + generator.normal(0, 0.4, n))
    return sample(first, location), sample(
        6 * np.exp(shared + generator.normal(0, 0.4, n)), location
    )


def heavy_pair(generator, n):
    """Spreads that differ, so that the differences are skewed themselves."""
    shared = generator.normal(0, 0.5, n)
    return sample(100 * np.exp(shared + generator.normal(0, 0.8, n))), sample(
        30 * np.exp(shared + generator.normal(0, 0.5, n))
    )


def shares_pair(generator, n):
    """NEP: means of shares of 5, which have ties and many zeros."""
    difficulty = generator.beta(4, 6, n)
    first, second = (generator.binomial(5, factor * difficulty) / 5 for factor in (1.0, 0.6))
    return sample(first, "mean"), sample(second, "mean")


def positive_means_pair(generator, n):
    """APE: sums of positive values over the number of them, which varies by batch."""
    shared = generator.normal(0, 0.3, n)

    def one(scale):
        positive = generator.random((n, 5)) < 0.7
        values = scale * np.exp(shared[:, None] + generator.normal(0, 0.5, (n, 5))) * positive
        return Sample("ratio", values.sum(1), positive.sum(1).astype(float))

    return one(12.0), one(8.0)


def true_difference(draw):
    """From three million batches; the formula is written out here, not taken from the code under
    test.
    """
    first, second = draw(np.random.default_rng(99), 3_000_000)
    if first.location == "ratio":
        return (
            first.numerator.sum() / first.denominator.sum()
            - second.numerator.sum() / second.denominator.sum()
        )
    return {"median": np.median, "mean": np.mean}[first.location](
        first.numerator - second.numerator
    )


# 500 trials have a standard error of 1 %, 2000 one of 0.5 %.
@pytest.mark.parametrize(
    ("num_trials", "least", "most"),
    [(500, 0.90, 0.98), pytest.param(2000, 0.93, 0.97, marks=pytest.mark.slow)],
)
@pytest.mark.parametrize(
    ("draw", "n"),
    [
        (lognormal_pair, 20),
        (heavy_pair, 50),
        pytest.param(heavy_pair, 200, marks=pytest.mark.slow),
        (shares_pair, 20),
        (positive_means_pair, 20),
    ],
)
def test_the_interval_of_a_paired_difference_covers_the_truth_in_93_to_97_percent(
    draw, n, num_trials, least, most
):
    truth, generator = true_difference(draw), np.random.default_rng(3)
    resampling = Resampling(num_resamples=399)
    covered = 0
    for _ in range(num_trials):
        interval = resampling.difference(*draw(generator, n), paired=True)
        covered += interval.low <= truth <= interval.high
    assert least <= covered / num_trials <= most


def test_the_interval_of_a_ratio_covers_the_truth_in_93_to_97_percent():
    # Median of the quotient of two log-normals with medians 12 and 6 and a shared factor: 2.
    generator, resampling = np.random.default_rng(4), Resampling(num_resamples=399)
    covered = 0
    for _ in range(NUM_TRIALS):
        interval = resampling.quotient(*lognormal_pair(generator, 30), paired=True)
        covered += interval.low <= 2.0 <= interval.high
    assert 0.93 <= covered / NUM_TRIALS <= 0.97


def test_the_interval_of_an_unpaired_difference_covers_the_truth_in_93_to_97_percent():
    generator, resampling = np.random.default_rng(5), Resampling(num_resamples=399)
    covered = 0
    for _ in range(NUM_TRIALS):
        first, second = (
            sample(12 * np.exp(generator.normal(0, 0.5, 25))),
            sample(6 * np.exp(generator.normal(0, 0.5, 40))),
        )
        interval = resampling.difference(first, second, paired=False)
        covered += interval.low <= 6.0 <= interval.high
    assert 0.93 <= covered / NUM_TRIALS <= 0.97


@pytest.mark.parametrize("draw", [lognormal_pair, shares_pair, positive_means_pair])
def test_the_paired_permutation_test_of_exchangeable_series_rejects_at_its_nominal_rate(draw):
    # Names are swapped at random batch by batch, which makes any two series exchangeable.
    generator, resampling, n = np.random.default_rng(6), Resampling(num_resamples=399), 20
    rejected = 0
    for _ in range(NUM_TRIALS):
        pool = (pair := draw(generator, n))[0].joined(pair[1])
        swap = n * (generator.random(n) < 0.5)
        first, second = pool.take(np.arange(n) + swap), pool.take(np.arange(n) + n - swap)
        rejected += resampling.p_value(first, second, paired=True) <= 0.05
    # Ties and few values make it a little careful; three standard errors are 2 %.
    assert 0.03 <= rejected / NUM_TRIALS <= 0.07


def test_the_unpaired_permutation_test_of_one_distribution_rejects_at_its_nominal_rate():
    generator, resampling = np.random.default_rng(7), Resampling(num_resamples=399)
    draws = [[sample(generator.lognormal(size=n)) for n in (20, 30)] for _ in range(NUM_TRIALS)]
    rejected = sum(resampling.p_value(*pair, paired=False) <= 0.05 for pair in draws)
    assert 0.03 <= rejected / NUM_TRIALS <= 0.07


def rare_shares(generator, n, share):
    return sample(generator.binomial(5, share, n) / 5, "mean")


@pytest.mark.parametrize(("n", "without"), [(20, 0.98**100), (100, 0.98**500)])
def test_intervals_of_rare_negatives_cover_the_truth_and_none_is_given_without_any(n, without):
    generator, resampling = np.random.default_rng(15), Resampling(num_resamples=399)
    found = [resampling.location(rare_shares(generator, n, 0.02)) for _ in range(NUM_TRIALS)]
    given = [one for one in found if not math.isnan(one.low)]
    covered = np.mean([one.low <= 0.02 <= one.high for one in given])
    # Without the rule it is 86 % of 20 batches: 0.98^100 = 13 % of the samples hold no negative
    # value at all.
    assert covered >= 0.93 and abs(1 - len(given) / NUM_TRIALS - without) < 0.035


def test_the_interval_of_a_difference_of_rare_shares_covers_the_truth_in_90_percent_at_least():
    generator, resampling = np.random.default_rng(16), Resampling(num_resamples=399)
    pairs = (
        (rare_shares(generator, 20, 0.02), rare_shares(generator, 20, 0.06))
        for _ in range(NUM_TRIALS)
    )
    found = [resampling.difference(*pair, paired=True) for pair in pairs]
    covered = np.mean([one.low <= -0.04 <= one.high for one in found if not math.isnan(one.low)])
    # Less than nominal, as the docstring of the interval says; three standard errors are 2.7 %.
    assert 0.885 <= covered <= 0.97


def test_the_interval_of_a_share_with_negatives_in_few_batches_covers_the_truth_in_88_percent():
    generator, resampling = np.random.default_rng(17), Resampling(num_resamples=399)
    draws = (
        sample(generator.binomial(5, generator.beta(0.2, 1.8, 20)) / 5, "mean")
        for _ in range(NUM_TRIALS)
    )
    found = [resampling.location(one) for one in draws]
    covered = np.mean([one.low <= 0.1 <= one.high for one in found if not math.isnan(one.low)])
    assert 0.875 <= covered <= 0.95


@pytest.mark.parametrize("location", ["median", "mean", "ratio"])
def test_batches_that_all_say_the_same_have_a_value_and_no_interval(location):
    same, other = (
        sample(np.full(30, 0.1), location),
        sample(np.random.default_rng(0).lognormal(size=20), location),
    )
    for found in (
        Resampling().location(same),
        Resampling().difference(same, other, paired=False),
        Resampling().difference(other, other, paired=True),
        Resampling().quotient(other, other, paired=True),
    ):
        assert math.isfinite(found.value) and math.isnan(found.low) and math.isnan(found.high)
    assert math.isfinite(Resampling().location(other).low)


def test_identical_series_differ_by_exactly_nothing():
    one = sample(np.random.default_rng(0).lognormal(size=30))
    assert Resampling().difference(one, one, paired=True).value == 0.0
    assert Resampling().p_value(one, one, paired=True) == 1.0
    assert effect_size(one, one, paired=True) == effect_size(one, one, paired=False) == 0.0
    assert Resampling().quotient(one, one, paired=True).value == 1.0


def test_the_paired_test_of_medians_is_wilcoxons_exact_test_where_all_permutations_are_tried():
    generator = np.random.default_rng(8)
    for _ in range(20):
        first, second = generator.normal(0.4, 1, 10), generator.normal(0, 1, 10)
        expected = stats.wilcoxon(first, second, method="exact").pvalue
        assert Resampling().p_value(sample(first), sample(second), paired=True) == pytest.approx(
            expected, rel=1e-12
        )


def test_the_unpaired_test_of_medians_is_the_exact_test_of_mann_and_whitney():
    first, second = np.array([3.1, 4.5, 9.0, 2.2]), np.array([1.0, 2.5, 0.3, 2.1, 4.0])
    expected = stats.mannwhitneyu(first, second, method="exact").pvalue
    assert Resampling().p_value(sample(first), sample(second), paired=False) == pytest.approx(
        expected, rel=1e-12
    )


def test_the_paired_test_of_means_counts_all_swaps_of_six_batches():
    first, second = (
        np.array([1.0, 5.0, 2.0, 7.0, 3.5, 4.0]),
        np.array([0.5, 2.0, 2.5, 3.0, 3.0, 1.0]),
    )
    means = [
        np.mean(np.array(signs) * (first - second))
        for signs in itertools.product((1, -1), repeat=6)
    ]
    observed = np.mean(first - second)
    upper = sum(mean >= observed - 1e-12 for mean in means) / 64
    expected = min(1.0, 2 * min(upper, sum(mean <= observed + 1e-12 for mean in means) / 64))
    assert Resampling().p_value(
        sample(first, "mean"), sample(second, "mean"), paired=True
    ) == pytest.approx(expected)


def test_the_interval_is_the_percentile_interval_of_scipy_at_the_level_of_student():
    values = np.random.default_rng(9).lognormal(size=25)
    level = 2 * stats.norm.cdf(stats.t.ppf(0.975, 24) * math.sqrt(25 / 24)) - 1
    expected = stats.bootstrap(
        (values,),
        np.mean,
        method="percentile",
        n_resamples=4999,
        confidence_level=level,
        rng=np.random.default_rng(0),
    ).confidence_interval
    found = Resampling().location(sample(values, "mean"))
    assert found.value == np.mean(values)
    # The same resamples; SciPy may only sum or sort them in another order.
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), rel=1e-12)


def test_the_interval_of_a_mean_is_that_of_student_where_data_are_normal():
    values = np.random.default_rng(10).normal(5, 2, 100)
    expected = stats.t.interval(0.95, 99, loc=values.mean(), scale=stats.sem(values))
    found = Resampling(num_resamples=19_999).location(sample(values, "mean"))
    # 20,000 resamples fix an end to about 1.5 % of the width.
    assert (found.low, found.high) == pytest.approx(
        expected, abs=0.04 * (expected[1] - expected[0])
    )


def test_paired_differences_ignore_what_batches_have_in_common_and_unpaired_ones_do_not():
    generator = np.random.default_rng(11)
    shared = generator.normal(0, 10, 60)
    first, second = (
        sample(shared + 1 + generator.normal(0, 0.1, 60)),
        sample(shared + generator.normal(0, 0.1, 60)),
    )
    paired, unpaired = (
        Resampling(num_resamples=999).difference(first, second, paired=which)
        for which in (True, False)
    )
    assert paired.high - paired.low < 0.2 and unpaired.high - unpaired.low > 2
    assert (
        Resampling().p_value(first, second, paired=True)
        < 0.001
        < 0.3
        < Resampling().p_value(first, second, paired=False)
    )


def test_holm_is_what_the_stepwise_procedure_says():
    # By hand: 5 x 0.01, then 4 x 0.011 raised to that, 3 x 0.02, 2 x 0.04, and 0.03 x 3 stands
    # before it.
    found = holm(np.array([0.04, 0.01, 0.30, 0.02, 0.011]))
    np.testing.assert_allclose(found, [0.08, 0.05, 0.30, 0.06, 0.05], rtol=1e-12)
    np.testing.assert_allclose(holm(np.array([0.5, math.nan, 0.02])), [0.5, math.nan, 0.04])
    assert holm(np.array([0.9, 0.8])).max() <= 1 and holm(np.array([])).shape == (0,)


def test_holm_keeps_the_rate_of_any_false_rejection():
    generator = np.random.default_rng(12)
    p_values = stats.norm.sf(np.abs(generator.normal(size=(4000, 6)))) * 2
    false = np.mean([holm(row).min() <= 0.05 for row in p_values])
    # Independent tests: 1 - (1 - 0.05 / 6)^6 = 4.9 %; the standard error is 0.35 %.
    assert abs(false - (1 - (1 - 0.05 / 6) ** 6)) < 0.011


def test_the_paired_effect_size_is_wilcoxons_statistic_rescaled():
    generator = np.random.default_rng(13)
    first, second = generator.normal(0.5, 1, 40), generator.normal(0, 1, 40)
    larger = stats.wilcoxon(first, second, alternative="greater").statistic
    total = 40 * 41 / 2
    assert effect_size(sample(first), sample(second), paired=True) == pytest.approx(
        (larger - (total - larger)) / total
    )
    # Batches without a difference do not count: of the others, which tie, three are larger and one
    # is smaller.
    assert effect_size(sample([0, 0, 1, 1, 1, -1]), sample(np.zeros(6)), paired=True) == 0.5
    assert effect_size(sample(second + 9), sample(second), paired=True) == 1.0
    assert effect_size(sample(second - 9), sample(second), paired=True) == -1.0


def test_the_unpaired_effect_size_is_mann_and_whitneys_statistic_rescaled():
    generator = np.random.default_rng(14)
    first, second = generator.normal(0.5, 1, 30), generator.normal(0, 1, 50)
    u = stats.mannwhitneyu(first, second).statistic
    assert effect_size(sample(first), sample(second), paired=False) == pytest.approx(
        2 * u / (30 * 50) - 1
    )


def test_one_batch_has_a_value_and_no_interval_and_no_test():
    first, second = sample([3.0]), sample([1.0])
    found = Resampling().difference(first, second, paired=True)
    assert found.value == 2.0 and math.isnan(found.low) and math.isnan(found.high)
    assert math.isnan(Resampling().p_value(first, second, paired=True))
    assert math.isnan(effect_size(sample([]), sample([]), paired=True))


def test_a_quotient_of_what_is_not_positive_is_unknown():
    assert math.isnan(
        Resampling().quotient(sample([1.0, -2.0, 3.0]), sample([1.0, 2.0, 3.0]), paired=True).value
    )
    nothing = Sample("ratio", np.zeros(3), np.zeros(3))
    assert math.isnan(Resampling().location(nothing).value)


def test_the_smallest_p_value_is_reached_by_a_difference_without_exception():
    for n, num_resamples in ((5, 999), (40, 999)):
        resampling = Resampling(num_resamples=num_resamples)
        found = resampling.p_value(sample(np.arange(n) + 100.0), sample(np.zeros(n)), paired=True)
        assert found == pytest.approx(resampling.smallest_p(n))
        found = resampling.p_value(
            sample(np.arange(n) + 100.0), sample(np.arange(n - 1)), paired=False
        )
        assert found == pytest.approx(resampling.smallest_p(n, n - 1))
    assert math.isnan(resampling.smallest_p(1)) and math.isnan(resampling.smallest_p(9, 1))


@pytest.mark.parametrize("wrong", [{"confidence": 1.0}, {"num_resamples": 9}, {"seed": -1}])
def test_settings_out_of_range_are_refused(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Resampling(**wrong)
