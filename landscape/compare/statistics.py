"""Intervals, tests and effect sizes over mini-batches.

They are paired where two series were measured on the same batches. The batches are the sample: all
numbers say how a result would vary over batches drawn like these. Resampling and permuting are
SciPy's; batches are passed as indices, so that the same code serves medians, means and ratios of
sums. Knows arrays, not stores.

Shapes: batch = batches of a series, r = resamples.
"""

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int

from landscape.statistics import Interval, check_resampling, holm

__all__ = ["Interval", "Location", "Resampling", "Sample", "effect_size", "holm"]

Location = Literal["median", "mean", "ratio"]
_Combine = Callable[[Any, Any], Any]
# Resamples held at once: for 200 batches they take 2 MB an array.
_BLOCK = 1000
# A relative spread of at most this size is rounding error of sums.
_ROUNDING = 1e-12


@dataclass(frozen=True, eq=False)
class Sample:
    """One number per batch, or two whose sums are divided.

    Args:
        location: Statistic over all batches: their "median", their "mean", or the "ratio" of the
            sums of numerator and denominator (such as a mean over all eigenvalues of all batches,
            where batches hold different numbers of them).
        numerator: The number of each batch, where the location is not "ratio".
        denominator: Ones, where the location is not "ratio".
    """

    location: Location
    numerator: Float[np.ndarray, " batch"]
    denominator: Float[np.ndarray, " batch"]

    @property
    def size(self) -> int:
        return len(self.numerator)

    @property
    def per_batch(self) -> Float[np.ndarray, " batch"]:
        """Return the value of each batch; NaN where its denominator is 0."""
        return _quotient(self.numerator, self.denominator)

    @property
    def is_positive(self) -> bool:
        """Tell whether quotients of two such samples are meaningful."""
        if self.location == "median":
            return bool((self.numerator > 0).all())
        return bool((self.numerator >= 0).all() and self.numerator.sum() > 0)

    @property
    def is_constant(self) -> bool:
        """Tell whether all batches have the same value.

        Then no resample shows a spread.
        """
        values = self.per_batch[np.isfinite(self.per_batch)]
        return not len(values) or bool(np.ptp(values) <= _ROUNDING * abs(values[0]))

    def at(self, index: Int[np.ndarray, "*r batch"], axis: int = -1) -> Float[np.ndarray, "*r"]:
        """Compute the location of the batches that `index` names along `axis`."""
        values = self.numerator[index]
        if self.location == "ratio":
            return _quotient(values.sum(axis=axis), self.denominator[index].sum(axis=axis))
        return np.asarray(
            np.median(values, axis=axis) if self.location == "median" else values.mean(axis=axis)
        )

    def take(self, rows: Int[np.ndarray, " n"]) -> "Sample":
        """Select the batches of these rows."""
        return Sample(self.location, self.numerator[rows], self.denominator[rows])

    def joined(self, other: "Sample") -> "Sample":
        """Join the batches of both, one after the other."""
        numerators, denominators = (
            (self.numerator, other.numerator),
            (self.denominator, other.denominator),
        )
        return Sample(self.location, np.concatenate(numerators), np.concatenate(denominators))


@dataclass(frozen=True, kw_only=True)
class Resampling:
    """Settings of the resampling: how many resamples, and their seed.

    Args:
        confidence: Nominal coverage of the intervals, in (0, 1).
        num_resamples: Resamples of the bootstrap, and of the permutation test unless that can list
            all permutations.
        seed: Seed of each of them, so that a number does not depend on what else was computed.

    Raises:
        ValueError: If a number is out of range.
    """

    confidence: float = 0.95
    num_resamples: int = 4999
    seed: int = 0

    def __post_init__(self) -> None:
        check_resampling(self.confidence, self.num_resamples, self.seed)

    def smallest_p(self, first: int, second: int | None = None) -> float:
        """Compute the smallest possible p-value for so many batches.

        NaN where the test could not be made.

        Args:
            first: Batches of a paired test, or of one series.
            second: Batches of the other series, where the test is unpaired.
        """
        if min(first, first if second is None else second) < 2:
            return math.nan
        permutations = 2.0**first if second is None else math.comb(first + second, first)
        return 2 / min(permutations, self.num_resamples + 1)

    def location(self, sample: Sample) -> Interval:
        """Compute the location of one sample, with its interval."""
        return self._interval([np.arange(sample.size)], sample.at)

    def difference(self, first: Sample, second: Sample, *, paired: bool) -> Interval:
        """Compute by how much `first` is larger, with the interval.

        Paired medians: the median of the differences batch by batch. Otherwise the difference of
        the two locations, which for paired means is the mean of the differences.
        """
        return self._of_two(first, second, np.subtract, paired=paired)

    def quotient(self, first: Sample, second: Sample, *, paired: bool) -> Interval:
        """Compute the quotient of `first` and `second`, with the interval.

        NaN where not both are positive. Paired medians: the median of the quotients batch by batch.
        Otherwise the quotient of the two locations.
        """
        if not (first.is_positive and second.is_positive):
            return Interval(math.nan)
        return self._of_two(first, second, _quotient, paired=paired)

    def _of_two(
        self, first: Sample, second: Sample, combine: _Combine, *, paired: bool
    ) -> Interval:
        contrast = _contrast(first.joined(second), combine, paired=paired)
        first_rows, second_rows = np.arange(first.size), first.size + np.arange(second.size)
        if paired:
            # A batch is drawn together with both of its numbers.
            return self._interval(
                [first_rows], lambda i, axis=-1: contrast(i, i + first.size, axis)
            )
        interval = self._interval([first_rows, second_rows], contrast)
        return Interval(interval.value) if first.is_constant or second.is_constant else interval

    def _interval(
        self, batches: Sequence[Int[np.ndarray, " n"]], statistic: Callable[..., Any]
    ) -> Interval:
        """Compute the percentile interval at a level that corrects for small samples.

        The bootstrap's spread is too small by sqrt((n - 1) / n), and it uses the tails of the
        normal distribution. At the corrected level, the interval would be Student's if the
        statistic were a mean of normal data.

        Where all resamples give the same number, as for batches without a single negative
        eigenvalue, there is no interval. Its width would be 0 because no rare value was seen, not
        because there is none.

        Coverage at nominal 95 %, in tests/compare/test_compare_statistics.py: 93 to 97 % from 20
        batches on, for differences of skewed values and for shares of 0.24 to 0.4. For rare
        negatives it can be less: over 20 batches of 5 values, 91 to 93 % for a difference of
        shares of 0.02 and 0.06, and 90 % for a share of 0.1 where the negatives occur in few of
        the batches. For a share of 0.02, one in seven samples has no interval, and 99 %
        of the other intervals hold the true value.

        Source: Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician
        69 (2015), the expanded percentile interval.
        """
        from scipy import stats

        value = float(statistic(*batches))
        n = min(len(indices) for indices in batches)
        if n < 2 or not math.isfinite(value):
            return Interval(value)
        # Choose the level whose normal quantile is Student's, corrected for the bootstrap's spread.
        quantile = stats.t.ppf((1 + self.confidence) / 2, n - 1) * math.sqrt(n / (n - 1))
        with warnings.catch_warnings():
            # Resamples may lack a value, such as one without a positive eigenvalue; then the ends
            # are NaN.
            warnings.simplefilter("ignore", stats.DegenerateDataWarning)
            resampled = stats.bootstrap(
                batches,
                statistic,
                n_resamples=self.num_resamples,
                batch=_BLOCK,
                vectorized=True,
                method="percentile",
                confidence_level=2 * stats.norm.cdf(quantile) - 1,
                rng=np.random.default_rng(self.seed),
            )
        if np.ptp(resampled.bootstrap_distribution) <= _ROUNDING * abs(value):
            return Interval(value)
        return Interval(
            value,
            float(resampled.confidence_interval.low),
            float(resampled.confidence_interval.high),
        )

    def p_value(self, first: Sample, second: Sample, *, paired: bool) -> float:
        """Test by permutation whether the two series are exchangeable; two-sided.

        Paired: the two numbers of a batch may be swapped. Unpaired: all numbers are assigned anew.
        Every permutation is tried where there are at most `num_resamples`, otherwise that many
        random ones. The statistic is the difference for means and ratios. For medians it is made of
        ranks, as in the tests of Wilcoxon (paired) and of Mann and Whitney: a median takes so few
        values under permutation that its test would reject too rarely.

        Returns:
            NaN where there are fewer than two batches, or a permutation has no difference.
        """
        from scipy import stats

        if min(first.size, second.size) < 2:
            return math.nan
        if first.location == "median":
            first, second = _ranked(first, second, paired=paired)
        test = stats.permutation_test(
            (np.arange(first.size), first.size + np.arange(second.size)),
            _contrast(first.joined(second), np.subtract, paired=paired),
            permutation_type="samples" if paired else "independent",
            n_resamples=self.num_resamples,
            batch=_BLOCK,
            vectorized=True,
            rng=np.random.default_rng(self.seed),
        )
        return float(test.pvalue) if np.isfinite(test.null_distribution).all() else math.nan


def effect_size(first: Sample, second: Sample, *, paired: bool) -> float:
    """Measure how consistently the first is larger, from -1 to 1.

    -1 means never, 0 as often as not, 1 in every batch; the measure does not depend on units.
    Paired: the matched-pairs rank-biserial correlation, (R+ - R-) / (R+ + R-) with the ranks of the
    absolute differences; batches without a difference do not count. Unpaired: Cliff's delta,
    P(first > second) - P(first < second).

    Returns:
        0 where nothing differs; NaN without a batch.

    Source: Kerby, The simple difference formula, Comprehensive Psychology 3 (2014); Cliff,
    Dominance statistics, Psychological Bulletin 114 (1993).
    """
    from scipy import stats

    left, right = first.per_batch, second.per_batch
    if paired:
        differences = (left - right)[np.isfinite(left - right)]
        changed = differences[differences != 0]
        if not len(changed):
            return 0.0 if len(differences) else math.nan
        ranks = stats.rankdata(np.abs(changed))
        return float((np.sign(changed) * ranks).sum() / ranks.sum())
    left, right = left[np.isfinite(left)], right[np.isfinite(right)]
    if not (len(left) and len(right)):
        return math.nan
    return float(np.sign(left[:, None] - right[None, :]).mean())


def _ranked(first: Sample, second: Sample, *, paired: bool) -> tuple[Sample, Sample]:
    """Replace two samples by ranks.

    The difference of their means is then the mean signed rank of the differences (paired), or the
    difference of the mean ranks.
    """
    from scipy import stats

    if paired:
        differences = first.numerator - second.numerator
        signed = np.sign(differences) * stats.rankdata(np.abs(differences))
        # Halves of opposite sign: their difference in each batch is the signed rank.
        ranks = np.concatenate([signed, -signed]) / 2
    else:
        ranks = stats.rankdata(np.concatenate([first.numerator, second.numerator]))
    left, right = ranks[: first.size], ranks[first.size :]
    return Sample("mean", left, np.ones_like(left)), Sample("mean", right, np.ones_like(right))


def _contrast(pool: Sample, combine: _Combine, *, paired: bool) -> Callable[..., Any]:
    """Build a function that compares two groups of batches of a pool.

    The groups are the index arrays i and j.
    """

    def contrast(i: Int[np.ndarray, "*r n"], j: Int[np.ndarray, "*r n"], axis: int = -1) -> Any:
        if paired and pool.location == "median":
            return np.median(combine(pool.numerator[i], pool.numerator[j]), axis=axis)
        return combine(pool.at(i, axis), pool.at(j, axis))

    return contrast


def _quotient(numerator: Any, denominator: Any) -> Any:
    """Divide; NaN where the denominator is 0."""
    shape = np.broadcast_shapes(np.shape(numerator), np.shape(denominator))
    return np.divide(
        numerator, denominator, out=np.full(shape, math.nan), where=np.asarray(denominator) != 0
    )
