"""Rank correlations of sharpness and accuracy over checkpoints, with their uncertainty.

Checkpoints are few and not independent: those of a series follow one another in one training run.
So there are several scopes, and up to three statements for each: measurement error, series as
clusters, and an exact test where whole series may be exchanged. Each says what it covers.

Shapes: r = resamples, p = points (checkpoints).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from landscape.compare.accuracy_means import AccuracyMean, Key
from landscape.statistics import (
    MIN_POINTS,
    Bootstrap,
    Interval,
    blocked_spearman,
    exchange_test,
    jackknife_interval,
    mean_spearman,
    percentile_interval,
    spearman,
)

# Scopes, beside the names of single series.
ALL, SAME_EPOCH, WITHIN, ONE_SERIES = "all", "same_epoch", "within", "series"
# What each statement of uncertainty covers, and what it does not, for people.
COVERS = {
    "measured": (
        "Measurement error: batches and pictures are drawn anew, the same for all checkpoints, and "
        "the checkpoints are held fixed. It does not cover other trainings, seeds or "
        "architectures. Drawing anew adds noise to ranks that are noisy already, so the "
        "correlation is biased towards 0."
    ),
    "clusters": (
        "Series as clusters: leaving out one series after the other (jackknife), for at least "
        "three series. It covers that other series like these would have given other numbers, with "
        "any dependence along a training; it does not cover series unlike these. Of few series it "
        "is rough: with three to six, at nominal 95 %, it held the true value in 72 to 100 % of "
        "simulated studies."
    ),
    "exchanged": (
        "Permutation p: the accuracies of whole series are exchanged among the series, over the "
        "epochs that all have; exact up to eight series, two-sided. Checkpoints of one series "
        "cannot be exchanged with each other, as they follow one another, so correlations along "
        "training have no p-value. Few series cannot give a small one: of three it is at least "
        "0.33."
    ),
}


@dataclass(frozen=True, kw_only=True)
class Correlation:
    """The rank correlation of a measure of sharpness with a mean accuracy.

    Args:
        metric: Measure of sharpness.
        mean: Name of the mean accuracy.
        scope: "all": over all checkpoints. "same_epoch": of ranks among the series at the same
            epoch, so that the effect of training on all of them does not count. "within": mean over
            series of the correlation over epochs. "series": of one series.
        series: Name of the series, for the scope "series".
        num_points, num_series: Number of checkpoints and of series.
        value: The correlation; NaN where there is none, and `why_not` says why.
        measured: Interval over batches and pictures, checkpoints held fixed.
        clusters: Interval that takes series as clusters; NaN with fewer than three.
        p_value, smallest_p: The p-value of exchanging whole series, and the smallest one that so
            many series can give; NaN where none can be exchanged.
    """

    metric: str
    mean: str
    scope: str
    series: str = ""
    num_points: int
    num_series: int
    value: float = math.nan
    measured: Interval = Interval(math.nan)
    clusters: Interval = Interval(math.nan)
    p_value: float = math.nan
    smallest_p: float = math.nan
    why_not: str = ""


@dataclass(frozen=True, eq=False)
class _Points:
    """Sharpness and accuracy of the checkpoints, as arrays."""

    sharpness: Float[np.ndarray, " p"]
    accuracy: Float[np.ndarray, " p"]
    sharpness_drawn: Float[np.ndarray, "r p"]
    accuracy_drawn: Float[np.ndarray, "r p"]
    series: np.ndarray
    epochs: np.ndarray

    def __len__(self) -> int:
        return len(self.series)

    @property
    def num_series(self) -> int:
        return len(np.unique(self.series))

    def of(self, mask: np.ndarray) -> "_Points":
        """Select the points of a mask (p,)."""
        rest = (
            self.sharpness_drawn[:, mask],
            self.accuracy_drawn[:, mask],
            self.series[mask],
            self.epochs[mask],
        )
        return _Points(self.sharpness[mask], self.accuracy[mask], *rest)

    def correlation(
        self, scope: str, mask: np.ndarray | None = None, *, drawn: bool = False
    ) -> Any:
        """Compute the statistic of a scope, of points or of every resample.

        `mask` selects the points; by default all count.
        """
        mask = np.ones(len(self), dtype=bool) if mask is None else mask
        x, y = (
            (self.sharpness_drawn, self.accuracy_drawn)
            if drawn
            else (self.sharpness, self.accuracy)
        )
        x, y = x[..., mask], y[..., mask]
        if scope == SAME_EPOCH:
            return blocked_spearman(x, y, self.epochs[mask])
        return mean_spearman(x, y, self.series[mask]) if scope == WITHIN else spearman(x, y)


def correlations_of(
    metric: str,
    mean: AccuracyMean,
    sharpness: Mapping[Key, Interval],
    drawn: Mapping[Key, Float[np.ndarray, " r"]],
    bootstrap: Bootstrap,
) -> list[Correlation]:
    """Correlate a measure of sharpness with a mean accuracy, in every scope.

    The checkpoints are those that have both; they decide which scopes there are.

    Args:
        sharpness: Sharpness of each checkpoint, with its interval.
        drawn: Its resamples.
    """
    keys = [key for key in sharpness if key in mean.values]
    if not keys:
        return []
    points = _Points(
        sharpness=np.array([sharpness[key].value for key in keys]),
        accuracy=np.array([mean.values[key].value for key in keys]),
        sharpness_drawn=np.stack([drawn[key] for key in keys], axis=1),
        accuracy_drawn=np.stack([mean.resamples[key] for key in keys], axis=1),
        series=np.array([series for series, _ in keys]),
        epochs=np.array([epoch for _, epoch in keys]),
    )
    names = list(dict.fromkeys(points.series.tolist()))
    scopes: list[tuple[str, str, _Points]] = [(ALL, "", points)]
    shared = _at_shared_epochs(points)
    if len(names) > 1 and len(np.unique(points.epochs)) > 1 and shared.any():
        scopes.append((SAME_EPOCH, "", points.of(shared)))
    long_enough = np.isin(
        points.series, [name for name in names if (points.series == name).sum() >= MIN_POINTS]
    )
    if len(np.unique(points.series[long_enough])) > 1:
        scopes.append((WITHIN, "", points.of(long_enough)))
    if len(names) > 1 and len(points) > len(names):
        scopes += [(ONE_SERIES, name, points.of(points.series == name)) for name in names]
    return [
        _correlation(metric, mean.name, scope, name, chosen, bootstrap)
        for scope, name, chosen in scopes
    ]


def _at_shared_epochs(points: _Points) -> np.ndarray:
    """Mark points at epochs that more than one series has."""
    epochs, counts = np.unique(points.epochs, return_counts=True)
    return np.isin(points.epochs, epochs[counts > 1])


def _correlation(
    metric: str, mean: str, scope: str, name: str, points: _Points, bootstrap: Bootstrap
) -> Correlation:
    facts: dict[str, Any] = {"metric": metric, "mean": mean, "scope": scope, "series": name}
    facts |= {"num_points": len(points), "num_series": points.num_series}
    value = float(points.correlation(scope)) if len(points) >= MIN_POINTS else math.nan
    if not math.isfinite(value):
        return Correlation(**facts, why_not=_why_not(points))
    clusters = Interval(value)
    if scope != ONE_SERIES:
        clusters = jackknife_interval(
            lambda mask: _of_part(points, scope, mask),
            points.series,
            confidence=bootstrap.confidence,
        )
    p_value, smallest = _exchanged(points, scope, bootstrap.seed)
    return Correlation(
        **facts,
        value=value,
        measured=_measured(points, scope, value, bootstrap),
        clusters=clusters,
        p_value=p_value,
        smallest_p=smallest,
    )


def _measured(points: _Points, scope: str, value: float, bootstrap: Bootstrap) -> Interval:
    """Compute the interval over batches and pictures."""
    if not (np.isfinite(points.sharpness_drawn).all() and np.isfinite(points.accuracy_drawn).all()):
        return Interval(value)
    drawn = np.asarray(points.correlation(scope, drawn=True))
    # A resample in which all checkpoints of a scope are tied has no correlation: count it as 0.
    interval = percentile_interval(
        value, np.where(np.isfinite(drawn), drawn, 0.0), bootstrap.confidence
    )
    # Where nearly all resamples give one order, the width would be 0; that is no interval.
    return interval if interval.low < interval.high else Interval(value)


def _of_part(points: _Points, scope: str, mask: np.ndarray) -> float:
    return float(points.correlation(scope, mask)) if mask.sum() >= MIN_POINTS else math.nan


def _why_not(points: _Points) -> str:
    if len(points) < MIN_POINTS:
        return (
            f"{len(points)} checkpoint{'s' * (len(points) != 1)}, and ranks of fewer than "
            f"{MIN_POINTS} say nothing"
        )
    what = "accuracies" if np.ptp(points.accuracy) == 0 else "values"
    return f"all {what} that are ranked together are the same, so there is no order"


def _exchanged(points: _Points, scope: str, seed: int) -> tuple[float, float]:
    """Compute the p-value of exchanging whole series.

    NaN where the statistic does not depend on which series is which.
    """
    one_each = len(points) == points.num_series
    if points.num_series < 2 or not (scope == SAME_EPOCH or (scope == ALL and one_each)):
        return math.nan, math.nan
    names = np.unique(points.series)
    if one_each:
        tables = [values[:, None] for values in (points.sharpness, points.accuracy)]
        return exchange_test(lambda x, y: spearman(x[..., 0], y[..., 0]), *tables, seed=seed)
    epochs = [
        epoch for epoch in np.unique(points.epochs) if (points.epochs == epoch).sum() == len(names)
    ]
    if not epochs:
        return math.nan, math.nan
    order = [
        [int(np.flatnonzero((points.series == name) & (points.epochs == e))[0]) for e in epochs]
        for name in names
    ]
    blocks = np.tile(np.arange(len(epochs)), len(names))

    def statistic(x: Any, y: Any) -> Any:
        return blocked_spearman(x.reshape(*x.shape[:-2], -1), y.reshape(*y.shape[:-2], -1), blocks)

    return exchange_test(statistic, points.sharpness[order], points.accuracy[order], seed=seed)
