"""Comparison of stores: every series, every epoch, every metric, every pair."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from landscape.compare.estimated import least_different, widened, widened_quotient
from landscape.compare.metrics import METRICS, QUOTED, Metric
from landscape.compare.remarks import caveats, notes
from landscape.compare.result import Comparison, Difference, Summary
from landscape.compare.sentences import sentence
from landscape.compare.series import (
    MetricValues,
    Pairing,
    Query,
    Series,
    check_same_batches,
    check_same_loss,
    read_series,
)
from landscape.compare.statistics import Resampling, effect_size, holm
from landscape.errors import StoreError
from landscape.linalg import Estimate
from landscape.suggestions import nearest

_QUANTILES = {"q05": 0.05, "q25": 0.25, "median": 0.5, "q75": 0.75, "q95": 0.95}


def compare_stores(
    paths: Sequence[Path | str],
    *,
    metrics: Sequence[str] | None = None,
    epochs: Sequence[int] | None = None,
    series: Sequence[str] | None = None,
    unpaired: bool = False,
    keep_unconverged: bool = False,
    confidence: float = 0.95,
    num_resamples: int = 4999,
    seed: int = 0,
) -> Comparison:
    """Compare the series of one or several stores.

    Tells which series is sharper, which is less convex, and how certain that is. Records that did
    not converge are left out of numbers made of eigenvalues, and counted. What cannot be compared
    is a missing row and a sentence in `notes`; an example is an epoch that only one series has.

    Args:
        paths: Stores, finished or growing.
        metrics: Names out of `METRICS`; all of them by default.
        epochs: Epochs to compare; by default all that any series has.
        series: As in `SpectrumStore.open`, for every store.
        unpaired: Allow series that were measured on different batches, and never compare batch by
            batch.
        keep_unconverged: Count records without a certificate too. Needed for power iteration as
            published.
        confidence, num_resamples, seed: As in `statistics.Resampling`.

    Raises:
        ValueError: If an argument is out of range, or a metric is unknown.
        StoreError: If a store cannot be read or is empty, stores differ in a setting of their
            protocol, series were measured on different batches, or no series has a requested epoch.
    """
    resampling = Resampling(confidence=confidence, num_resamples=num_resamples, seed=seed)
    query = Query(_metrics(metrics), epochs, not unpaired, keep_unconverged, with_pairs=True)
    return _compare(paths, query, resampling, series)


def summarize_stores(
    paths: Sequence[Path | str],
    *,
    metrics: Sequence[str] | None = None,
    epochs: Sequence[int] | None = None,
    series: Sequence[str] | None = None,
    keep_unconverged: bool = False,
    confidence: float = 0.95,
    num_resamples: int = 4999,
    seed: int = 0,
) -> Comparison:
    """Summarize every series by itself, on whatever batches.

    These are the summaries of `compare_stores` alone.

    Raises:
        ValueError, StoreError: As `compare_stores`, except that batches may differ.
    """
    resampling = Resampling(confidence=confidence, num_resamples=num_resamples, seed=seed)
    return _compare(
        paths,
        Query(_metrics(metrics), epochs, True, keep_unconverged, with_pairs=False),
        resampling,
        series,
    )


def _compare(
    paths: Sequence[Path | str], query: Query, resampling: Resampling, wanted: Sequence[str] | None
) -> Comparison:
    series, protocol = read_series([Path(path) for path in paths], wanted)
    kept = _epochs(series, query.epochs)
    pairs = list(itertools.combinations(series, 2)) if query.with_pairs else []
    if query.with_pairs:
        check_same_loss(series)
    for first, second in pairs if query.paired else ():
        check_same_batches(first, second, kept)
    seen = {
        (member.info.name, epoch, metric.name): values
        for metric in query.metrics
        for member in series
        for epoch in kept
        if (values := member.metric_values(epoch, metric, keep_unconverged=query.keep_unconverged))
        is not None
    }
    told = {name for (_, _, name), values in seen.items() if values.counts.any()}
    metrics = tuple(metric for metric in query.metrics if metric.name in told)
    summaries = tuple(
        _summary(key, values, series, resampling)
        for key, values in seen.items()
        if values.counts.any()
    )
    comparison = Comparison(
        stores=tuple(dict.fromkeys(member.info.store for member in series)),
        series=tuple(member.info for member in series),
        epochs=kept,
        metrics=metrics,
        summaries=summaries,
        differences=_differences(seen, pairs, metrics, kept, resampling, paired=query.paired),
        notes=(),
        caveats=(),
        sentences=(),
        protocol=protocol,
        paired=query.paired,
        confidence=resampling.confidence,
        num_resamples=resampling.num_resamples,
        seed=resampling.seed,
    )
    return replace(
        comparison,
        notes=notes(comparison, series, seen, query),
        caveats=caveats(comparison),
        sentences=_sentences(comparison),
    )


def _metrics(names: Sequence[str] | None) -> tuple[Metric, ...]:
    unknown = [name for name in names or () if name not in METRICS]
    if unknown:
        raise ValueError(f"metrics: there is no {unknown[0]!r}; {nearest(unknown[0], METRICS)}")
    return tuple(METRICS[name] for name in (METRICS if names is None else dict.fromkeys(names)))


def _epochs(series: Sequence[Series], wanted: Sequence[int] | None) -> tuple[int, ...]:
    measured = sorted({epoch for member in series for epoch in member.tables})
    unknown = sorted(set(wanted or ()) - set(measured))
    if unknown or (wanted is not None and not wanted):
        lacking = unknown or "an epoch of an empty list"
        raise StoreError(
            f"{series[0].info.store}: no series has {lacking}; measured are {measured}."
        )
    return tuple(measured if wanted is None else sorted(set(wanted)))


def _summary(
    key: tuple[str, int, str],
    observed: MetricValues,
    series: Sequence[Series],
    resampling: Resampling,
) -> Summary:
    name, epoch, metric = key
    table = next(member for member in series if member.info.name == name).tables[epoch]
    sample, estimate = observed.counted, observed.counted_estimate
    values = sample.per_batch[np.isfinite(sample.per_batch)]
    if estimate is None:
        spread = float(values.std(ddof=1)) / math.sqrt(len(values)) if len(values) > 1 else math.nan
        told: dict[str, Any] = asdict(resampling.location(sample)) | {"standard_error": spread}
    else:
        told = _estimated(estimate, resampling.confidence)
        values = values if estimate.is_known else values[:0]
    quantiles = (
        np.quantile(values, list(_QUANTILES.values()))
        if len(values)
        else np.full(len(_QUANTILES), math.nan)
    )
    told |= dict(zip(_QUANTILES, map(float, quantiles), strict=True))
    return Summary(
        series=name,
        epoch=epoch,
        metric=metric,
        num_batches=sample.size,
        num_left_out=observed.num_left_out,
        num_planned=table.num_planned,
        mean=float(values.mean()) if len(values) else math.nan,
        **told,
    )


def _estimated(estimate: Estimate, confidence: float) -> dict[str, Any]:
    """Return the fields of a summary of an estimate.

    An unknown number has a bracket and no value.
    """
    low, high = estimate.interval(confidence)
    value, error = (
        float(number) if estimate.is_known else math.nan
        for number in (estimate.value, estimate.standard_error)
    )
    bracket = {"open_low": float(estimate.low), "open_high": float(estimate.high)}
    return {
        "value": value,
        "low": low,
        "high": high,
        "standard_error": error,
        "known": estimate.is_known,
        **bracket,
    }


def _differences(
    seen: dict[tuple[str, int, str], MetricValues],
    pairs: Sequence[tuple[Series, Series]],
    metrics: Sequence[Metric],
    epochs: Sequence[int],
    resampling: Resampling,
    *,
    paired: bool,
) -> tuple[Difference, ...]:
    """Compare all pairs at all epochs, with Holm's correction.

    Rows exist where both series have the epoch and both numbers are known. Holm's correction takes
    all tests of one metric.
    """
    differences: list[Difference] = []
    for metric in metrics:
        rows = []
        for (left, right), epoch in itertools.product(pairs if metric.compared else (), epochs):
            first, second = (
                seen.get((which.info.name, epoch, metric.name)) for which in (left, right)
            )
            if first is not None and second is not None:
                pairing = Pairing.of(first, second, paired=paired)
                if pairing.num_batches and pairing.is_known:
                    rows.append(
                        _difference(
                            (left, right), epoch, metric, pairing, resampling, paired=paired
                        )
                    )
        corrected = holm(np.array([row.p_value for row in rows]))
        differences += [
            replace(row, p_holm=float(p)) for row, p in zip(rows, corrected, strict=True)
        ]
    return tuple(differences)


def _difference(
    pair: tuple[Series, Series],
    epoch: int,
    metric: Metric,
    pairing: Pairing,
    resampling: Resampling,
    *,
    paired: bool,
) -> Difference:
    first, second = pairing.first, pairing.second
    by, times = (
        resampling.difference(first, second, paired=paired),
        resampling.quotient(first, second, paired=paired),
    )
    tested, errors = first, {}
    if pairing.estimates is not None:
        by, times = widened(by, pairing.estimates), widened_quotient(times, pairing.estimates)
        tested = least_different(first, second, pairing.estimates)
        first_error, second_error = (
            float(estimate.standard_error) for estimate in pairing.estimates
        )
        errors = {"first_error": first_error, "second_error": second_error}
    return Difference(
        first=pair[0].info.name,
        second=pair[1].info.name,
        epoch=epoch,
        metric=metric.name,
        paired=paired,
        num_batches=pairing.num_batches,
        num_left_out=pairing.num_left_out,
        num_uncertified=pairing.num_uncertified,
        audited=all(member.audited(epoch) for member in pair),
        first_value=float(first.at(np.arange(first.size))),
        second_value=float(second.at(np.arange(second.size))),
        difference=by.value,
        low=by.low,
        high=by.high,
        ratio=times.value,
        ratio_low=times.low,
        ratio_high=times.high,
        effect=effect_size(tested, second, paired=paired),
        p_value=resampling.p_value(tested, second, paired=paired),
        smallest_p=resampling.smallest_p(first.size, None if paired else second.size),
        p_holm=math.nan,
        **errors,
    )


def _sentences(comparison: Comparison) -> tuple[str, ...]:
    """Write a sentence per pair and question, at their last shared epoch."""
    last: dict[tuple[str, str, str], Difference] = {}
    for row in comparison.differences:
        if row.metric in QUOTED:
            last[row.first, row.second, row.metric] = row
    return tuple(sentence(comparison, row) for row in last.values())
