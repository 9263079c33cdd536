"""From stores to a comparison: every series, every epoch, every metric, every pair."""

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
    Asked,
    Observed,
    Pairing,
    Series,
    check_same_batches,
    check_same_loss,
    read_series,
)
from landscape.compare.statistics import Resampling, effect_size, holm
from landscape.errors import StoreError
from landscape.linalg import Estimate

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
    """Compare the series of one or several stores: which is sharper, which is less convex, and how sure is that?

    Records that did not converge are left out of what is made of eigenvalues, and counted. What cannot be compared, an
    epoch that only one series has for instance, is a row that is missing and a sentence in `notes`.

    Args:
        paths: Stores, finished or growing.
        metrics: Names out of `METRICS`; all of them by default.
        epochs: Those to compare; by default all that any series has.
        series: As of `SpectrumStore.open`, of every store.
        unpaired: Allow series that were measured on different batches, and never compare batch by batch.
        keep_unconverged: Count records without a certificate too. Needed for power iteration as published.
        confidence, num_resamples, seed: As of `statistics.Resampling`.

    Raises:
        ValueError: If an argument is out of range, or a metric is unknown.
        StoreError: If a store cannot be read or is empty, stores differ in a setting of their protocol, series were measured
            on different batches, or no series has an epoch that was asked for.
    """
    resampling = Resampling(confidence=confidence, num_resamples=num_resamples, seed=seed)
    asked = Asked(_metrics(metrics), epochs, not unpaired, keep_unconverged, with_pairs=True)
    return _compare(paths, asked, resampling, series)


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
    """The summaries of `compare_stores` alone: every series for itself, on whatever batches.

    Raises:
        ValueError, StoreError: As `compare_stores`, except that batches may differ.
    """
    resampling = Resampling(confidence=confidence, num_resamples=num_resamples, seed=seed)
    return _compare(
        paths,
        Asked(_metrics(metrics), epochs, True, keep_unconverged, with_pairs=False),
        resampling,
        series,
    )


def _compare(
    paths: Sequence[Path | str], asked: Asked, resampling: Resampling, wanted: Sequence[str] | None
) -> Comparison:
    series, protocol = read_series([Path(path) for path in paths], wanted)
    kept = _epochs(series, asked.epochs)
    pairs = list(itertools.combinations(series, 2)) if asked.with_pairs else []
    if asked.with_pairs:
        check_same_loss(series)
    for one, other in pairs if asked.paired else ():
        check_same_batches(one, other, kept)
    seen = {
        (one.info.name, epoch, metric.name): found
        for metric in asked.metrics
        for one in series
        for epoch in kept
        if (found := one.observed(epoch, metric, keep_unconverged=asked.keep_unconverged))
        is not None
    }
    told = {name for (_, _, name), found in seen.items() if found.counts.any()}
    metrics = tuple(metric for metric in asked.metrics if metric.name in told)
    summaries = tuple(
        _summary(key, found, series, resampling)
        for key, found in seen.items()
        if found.counts.any()
    )
    comparison = Comparison(
        stores=tuple(dict.fromkeys(one.info.store for one in series)),
        series=tuple(one.info for one in series),
        epochs=kept,
        metrics=metrics,
        summaries=summaries,
        differences=_differences(seen, pairs, metrics, kept, resampling, paired=asked.paired),
        notes=(),
        caveats=(),
        sentences=(),
        protocol=protocol,
        paired=asked.paired,
        confidence=resampling.confidence,
        num_resamples=resampling.num_resamples,
        seed=resampling.seed,
    )
    return replace(
        comparison,
        notes=notes(comparison, series, seen, asked),
        caveats=caveats(comparison),
        sentences=_sentences(comparison),
    )


def _metrics(names: Sequence[str] | None) -> tuple[Metric, ...]:
    unknown = [name for name in names or () if name not in METRICS]
    if unknown:
        raise ValueError(f"metrics: there is no {unknown[0]!r}; known are {', '.join(METRICS)}.")
    return tuple(METRICS[name] for name in (METRICS if names is None else dict.fromkeys(names)))


def _epochs(series: Sequence[Series], wanted: Sequence[int] | None) -> tuple[int, ...]:
    measured = sorted({epoch for one in series for epoch in one.tables})
    unknown = sorted(set(wanted or ()) - set(measured))
    if unknown or (wanted is not None and not wanted):
        asked = unknown or "an epoch of an empty list"
        raise StoreError(f"{series[0].info.store}: no series has {asked}; measured are {measured}.")
    return tuple(measured if wanted is None else sorted(set(wanted)))


def _summary(
    key: tuple[str, int, str], found: Observed, series: Sequence[Series], resampling: Resampling
) -> Summary:
    name, epoch, metric = key
    table = next(one for one in series if one.info.name == name).tables[epoch]
    sample, estimate = found.counted, found.counted_estimate
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
        num_left_out=found.num_left_out,
        num_planned=table.num_planned,
        mean=float(values.mean()) if len(values) else math.nan,
        **told,
    )


def _estimated(estimate: Estimate, confidence: float) -> dict[str, Any]:
    """Fields of a summary; an unknown number has a bracket and no value."""
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
    seen: dict[tuple[str, int, str], Observed],
    pairs: Sequence[tuple[Series, Series]],
    metrics: Sequence[Metric],
    epochs: Sequence[int],
    resampling: Resampling,
    *,
    paired: bool,
) -> tuple[Difference, ...]:
    """Every pair at every epoch that both have and of which both are known; Holm's correction takes all tests of one metric."""
    differences: list[Difference] = []
    for metric in metrics:
        rows = []
        for (one, other), epoch in itertools.product(pairs if metric.compared else (), epochs):
            first, second = (
                seen.get((which.info.name, epoch, metric.name)) for which in (one, other)
            )
            if first is not None and second is not None:
                pairing = Pairing.of(first, second, paired=paired)
                if pairing.num_batches and pairing.is_known:
                    rows.append(
                        _difference((one, other), epoch, metric, pairing, resampling, paired=paired)
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
        first_error, second_error = (float(one.standard_error) for one in pairing.estimates)
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
        audited=all(one.audited(epoch) for one in pair),
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
    """One per pair and question, at the last epoch that the pair shares."""
    last: dict[tuple[str, str, str], Difference] = {}
    for row in comparison.differences:
        if row.metric in QUOTED:
            last[row.first, row.second, row.metric] = row
    return tuple(sentence(comparison, row) for row in last.values())
