"""Bootstrap over items in strata, as weights: one weight per resample and item.

A statistic of a resample is the formula of the sample with a weight for each item. So one function
of weights gives the number and its interval. All observers share the weights, so it also gives the
interval of a paired difference.

Shapes: r = resamples, n = items.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from landscape.statistics.intervals import Interval

# Weights held at once: 32 MB.
_MAX_WEIGHTS = 1 << 22
# A relative spread of at most this size is rounding error of sums.
_ROUNDING = 1e-12

Statistic = Callable[[Float[np.ndarray, "r n"]], Any]


def check_resampling(confidence: float, num_resamples: int, seed: int) -> None:
    """Refuse settings with which nothing can be resampled.

    Raises:
        ValueError: If a setting is out of range.
    """
    if not 0 < confidence < 1:
        raise ValueError(f"confidence must be between 0 and 1, got {confidence}.")
    if num_resamples < 99:
        raise ValueError(
            f"num_resamples must be at least 99, got {num_resamples}; tails of fewer are noise."
        )
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}.")


@dataclass(frozen=True, kw_only=True)
class Bootstrap:
    """Settings of a bootstrap.

    Args:
        num_resamples: Number of resamples. With 2,000, an end of a 95 % interval is uncertain by
            about 6 % of the standard error.
        confidence: Nominal coverage of the intervals, in (0, 1).
        seed: Seed of the resamples.

    Raises:
        ValueError: If a number is out of range.
    """

    num_resamples: int = 2000
    confidence: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        check_resampling(self.confidence, self.num_resamples, self.seed)

    def weights(self, strata: Any, *, stream: int = 0) -> Iterator[Float[np.ndarray, "r n"]]:
        """Draw the weights of all resamples, in blocks that bound the memory.

        Args:
            strata: As in `stratified_weights`.
            stream: Number of an independent random sequence; two data sets should not share one.
        """
        generator = np.random.default_rng([self.seed, stream])
        block = max(1, _MAX_WEIGHTS // max(1, len(strata)))
        for start in range(0, self.num_resamples, block):
            yield stratified_weights(strata, min(block, self.num_resamples - start), generator)

    def resample(
        self, statistic: Statistic, strata: Any, *, stream: int = 0
    ) -> Float[np.ndarray, " r *s"]:
        """Compute a statistic of every resample.

        Args:
            statistic: Function of weights (r, n) that returns (r, ...). It must not depend on the
                scale of the weights of a row.
            strata, stream: As in `weights`.
        """
        return np.concatenate(
            [np.asarray(statistic(weights)) for weights in self.weights(strata, stream=stream)]
        )

    def interval(self, statistic: Statistic, strata: Any, *, stream: int = 0) -> Interval:
        """Compute a statistic that is a single number, with its percentile interval."""
        value = float(np.asarray(statistic(np.ones((1, len(strata)))))[0])
        return percentile_interval(
            value, self.resample(statistic, strata, stream=stream), self.confidence
        )


def stratified_weights(
    strata: Any, num_resamples: int, generator: np.random.Generator
) -> Float[np.ndarray, "r n"]:
    """Draw bootstrap weights of items, stratum by stratum.

    Items are resampled with replacement. Of a stratum of m items, m - 1 are drawn, and each drawn
    item counts m / (m - 1). Drawing all m would make the variance of a stratum too small by (m - 1)
    / m, which is 10 % where a stratum holds 10 pictures. With m - 1 draws it is that of the
    unbiased estimate. A stratum of one item has no variance to show: its weight is always 1.

    Args:
        strata: Number or name of the stratum of each item (n,).

    Returns:
        Weights whose sum over a stratum is its number of items, in every resample.

    Source: Rao and Wu, Resampling Inference with Complex Survey Data, JASA 83 (1988), with m - 1
    draws.
    """
    _, number, sizes = np.unique(np.asarray(strata), return_inverse=True, return_counts=True)
    order, starts = np.argsort(number, kind="stable"), np.cumsum(sizes) - sizes
    blocks, columns = [np.empty((num_resamples, 0))], [np.empty(0, dtype=np.int64)]
    for size in np.unique(sizes):
        first = starts[sizes == size]
        columns.append(order[(first[:, None] + np.arange(size)).ravel()])
        if size == 1:
            blocks.append(np.ones((num_resamples, len(first))))
            continue
        drawn = generator.integers(size, size=(num_resamples, len(first), size - 1))
        # All strata of this size in all resamples are the rows of one histogram.
        drawn += size * np.arange(num_resamples * len(first)).reshape(num_resamples, len(first), 1)
        counts = np.bincount(drawn.ravel(), minlength=num_resamples * len(first) * size)
        blocks.append(counts.reshape(num_resamples, -1) * (size / (size - 1)))
    column, weights = np.concatenate(columns), np.hstack(blocks)
    # Strata that are in order already, as for the trials of a data set, are not rearranged.
    return weights if (column[:-1] < column[1:]).all() else weights[:, np.argsort(column)]


def percentile_interval(
    value: float, resampled: Float[np.ndarray, " r"], confidence: float = 0.95
) -> Interval:
    """Take the percentile interval of a resampled number.

    Returns:
        NaN for both ends where a resample has no value, or all resamples are the same. A width of 0
        would mean that nothing rare was seen, not that there is nothing rare. For a share of 0 or 1
        use `wilson_interval`.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 13.
    """
    if not (math.isfinite(value) and np.isfinite(resampled).all()):
        return Interval(value)
    if np.ptp(resampled) <= _ROUNDING * abs(value):
        return Interval(value)
    low, high = np.quantile(resampled, [(1 - confidence) / 2, (1 + confidence) / 2])
    return Interval(value, float(low), float(high))


def bootstrap_p_value(resampled: Float[np.ndarray, " r"]) -> float:
    """Compute the two-sided p-value of "the number is 0" from its resamples.

    It is twice the smaller share of resamples on one side of 0, the sample itself counted among
    them. So it is below alpha where the percentile interval of confidence 1 - alpha excludes 0, up
    to one resample. It is never below 2 / (r + 1).

    Returns:
        NaN where a resample has no value.

    Source: Davison and Hinkley, Bootstrap Methods and their Application (1997), chapter 4, for
    counting the sample.
    """
    if not np.isfinite(resampled).all():
        return math.nan
    smaller = min(int((resampled <= 0).sum()), int((resampled >= 0).sum()))
    return min(1.0, 2 * (smaller + 1) / (len(resampled) + 1))
