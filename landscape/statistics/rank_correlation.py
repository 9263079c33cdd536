"""Rank correlation of two measurements of the same points.

Also within blocks, with an interval over clusters, and with an exact test. A point is a checkpoint:
a series (cluster) at an epoch (block). Knows arrays, not stores.

Shapes: r = resamples or permutations, n = points, s = clusters, b = blocks.
"""

import math
from collections.abc import Callable, Sequence
from itertools import permutations
from typing import Any

import numpy as np
from jaxtyping import Float

from landscape.statistics.intervals import Interval

# Fewer points have so few orders of ranks that chance alone gives large correlations: of 3 points,
# one order in 3 is perfect.
MIN_POINTS = 4
# Up to this number of clusters all arrangements are tried: 40,320.
_MAX_LISTED = 8
_NUM_RANDOM = 9999
# Arrangements held at once.
_BLOCK = 5000
# Equal correlations differ by the rounding of their sums.
_ROUNDING = 1e-9

Statistic = Callable[[Any, Any], Any]


def spearman(x: Float[np.ndarray, "*r n"], y: Float[np.ndarray, "*r n"]) -> Any:
    """Compute Spearman's rank correlation, ties with their mean rank.

    Returns:
        A number per row; NaN where all values of a side are the same, or a value is NaN.

    Source: Spearman, The Proof and Measurement of Association between Two Things, American Journal
    of Psychology 15 (1904).
    """
    return blocked_spearman(x, y, np.zeros(np.shape(x)[-1], dtype=int))


def blocked_spearman(
    x: Float[np.ndarray, "*r n"], y: Float[np.ndarray, "*r n"], blocks: Any
) -> Any:
    """Compute the rank correlation of points within blocks.

    Differences between blocks do not count. Ranks are taken within each block and centred there;
    the correlation is that of all centred ranks together.

    Args:
        blocks: Name or number of the block of each point (n,). A block of one point has no effect.

    Returns:
        As in `spearman`.

    Source: Taylor, Kendall's and Spearman's Correlation Coefficients in the Presence of a Blocking
    Variable, Biometrics 43 (1987).
    """
    first, second = _centred_ranks(x, blocks), _centred_ranks(y, blocks)
    product = (first * second).sum(axis=-1)
    scale = np.sqrt((first**2).sum(axis=-1) * (second**2).sum(axis=-1))
    return np.divide(
        product, scale, out=np.full(np.shape(product), math.nan), where=scale > _ROUNDING
    )


def mean_spearman(x: Float[np.ndarray, "*r n"], y: Float[np.ndarray, "*r n"], clusters: Any) -> Any:
    """Average the rank correlations of the clusters, each over its own points.

    Returns:
        As in `spearman`; NaN where a cluster has no correlation.
    """
    names = np.asarray(clusters)
    return np.mean(
        [
            spearman(x[..., names == name], y[..., names == name])
            for name in dict.fromkeys(names.tolist())
        ],
        axis=0,
    )


def _centred_ranks(values: Float[np.ndarray, "*r n"], blocks: Any) -> Float[np.ndarray, "*r n"]:
    from scipy import stats

    values, names = np.asarray(values, dtype=float), np.asarray(blocks)
    ranks = np.empty(values.shape)
    for name in np.unique(names):
        block = names == name
        # The mean of the ranks 1 to m is (m + 1) / 2.
        own = stats.rankdata(values[..., block], axis=-1, nan_policy="propagate")
        ranks[..., block] = own - (block.sum() + 1) / 2
    return ranks


def jackknife_interval(
    statistic: Callable[[np.ndarray], float], clusters: Any, *, confidence: float = 0.95
) -> Interval:
    """Compute the jackknife interval of a statistic over clusters.

    The clusters are the sample; they are left out one at a time. With theta_i the statistic without
    cluster i, the variance is (s - 1) / s times the sum of (theta_i - mean)^2. The interval is
    Student's with s - 1 degrees of freedom, cut at -1 and 1. Points of a cluster may depend on each
    other in any way. Of few clusters it is wide, as it should be.

    Args:
        statistic: Function that gives the correlation of the points that a mask (n,) keeps.
        clusters: Name or number of the cluster of each point (n,).

    Returns:
        NaN for both ends with fewer than three clusters, where a part has no correlation, or where
            all parts agree: a width of 0 would mean that the clusters seen agree, not that all do.

    Source: Efron and Tibshirani, An Introduction to the Bootstrap (1993), chapter 11; the jackknife
    over clusters of Cameron and Miller, A Practitioner's Guide to Cluster-Robust Inference, Journal
    of Human Resources 50 (2015), section VI.
    """
    from scipy import stats

    names = np.asarray(clusters)
    value = float(statistic(np.ones(len(names), dtype=bool)))
    different = np.unique(names)
    size = len(different)
    if size < 3:
        return Interval(value)
    parts = np.array([float(statistic(names != name)) for name in different])
    error = math.sqrt((size - 1) / size * float(((parts - parts.mean()) ** 2).sum()))
    if not (math.isfinite(value) and math.isfinite(error)) or np.ptp(parts) <= _ROUNDING:
        return Interval(value)
    half = float(stats.t.ppf((1 + confidence) / 2, size - 1)) * error
    return Interval(value, max(-1.0, value - half), min(1.0, value + half))


def exchange_test(
    statistic: Statistic, x: Float[np.ndarray, "s b"], y: Float[np.ndarray, "s b"], *, seed: int = 0
) -> tuple[float, float]:
    """Test by permutation whether `x` and `y` of clusters belong together.

    The clusters' rows of `y` are exchanged as wholes. So neither dependence along a row nor a trend
    over the blocks that all clusters share makes the p-value too small. Up to 8 clusters, all
    arrangements are tried and the test is exact; beyond that 9,999 random ones and the observed
    one. Two-sided as in SciPy: twice the smaller tail.

    Args:
        statistic: Function of x and y (..., s, b) that returns (...).

    Returns:
        The p-value, NaN where an arrangement has no correlation, and the smallest one that so many
        clusters can give.

    Source: Pitman, Significance Tests Which May Be Applied to Samples from Any Populations II, JRSS
    Supplement 4 (1937).
    """
    orders = _orders(len(x), seed)
    starts = range(0, len(orders), _BLOCK)
    parts = [orders[start : start + _BLOCK] for start in starts]
    # x is repeated for every order, so that the statistic gets equal shapes.
    values = np.concatenate(
        [np.atleast_1d(statistic(np.broadcast_to(x, (len(o), *x.shape)), y[o])) for o in parts]
    )
    smallest = min(1.0, 2 / len(orders))
    if not np.isfinite(values).all():
        return math.nan, smallest
    seen = values[0]
    tails = [float(np.mean(values <= seen + _ROUNDING)), float(np.mean(values >= seen - _ROUNDING))]
    return min(1.0, 2 * min(tails)), smallest


def _orders(size: int, seed: int) -> np.ndarray:
    """List arrangements of clusters (r, s), the observed one first."""
    if size <= _MAX_LISTED:
        return np.array(list(permutations(range(size))))
    generator = np.random.default_rng(seed)
    rows: Sequence[np.ndarray] = [generator.permutation(size) for _ in range(_NUM_RANDOM)]
    return np.stack([np.arange(size), *rows])
