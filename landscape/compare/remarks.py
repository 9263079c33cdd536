"""Remarks beside the numbers.

They say what was left out, what was measured in another way, and what the numbers do not show.
"""

import math
from collections.abc import Mapping, Sequence

from landscape.compare.conditions import conditions, same_weights
from landscape.compare.metrics import METRICS, NORMALISED
from landscape.compare.result import Comparison
from landscape.compare.sentences import counted, epoch_text
from landscape.compare.series import MetricValues, Query, Series
from landscape.manifest.samples import source_in_full, unit_of_samples

# The fewest batches for which the coverage of the intervals was measured.
MIN_BATCHES = 20


def caveats(comparison: Comparison) -> tuple[str, ...]:
    """Say in sentences what no number of batches can show."""
    data, hessian = comparison.protocol["data"], comparison.protocol["hessian"]
    choice = (
        "the choice among metrics or of epochs"
        if _unseen_epochs(comparison)
        else "the choice among metrics"
    )
    said = [
        "Each series is one training run: the intervals are over mini-batches, and another seed "
        "may move the numbers further.",
        f"All batches are of one data set, {source_in_full(data)}, of "
        f"{counted(data['batch_size'], *unit_of_samples(data.get('block_size')))} each; other data "
        "or another size may order the series differently.",
        "Eigenvalues change when parameters are rescaled so that the function stays (Dinh et al., "
        "arXiv 1703.04933), and a sharper minimum need not generalise worse; each normalised "
        "metric removes one such freedom, none removes all.",
        f"NEP and APE speak of the {counted(hessian['k'], 'eigenvalue', 'eigenvalues')} of largest "
        "magnitude per batch, not of the whole spectrum. Numbers of negative eigenvalues are a "
        "lower bound (at least), or an estimate (about) whose interval holds what the quadratures "
        "leave open.",
        f"Intervals hold {100 * comparison.confidence:g} % one at a time. Holm's correction covers "
        f"the epochs and pairs of one metric, not {choice}.",
    ]
    if not comparison.paired:
        said.append(
            "Unpaired: differences between the batches of the series are mixed with differences "
            "between the series."
        )
    return tuple(said)


def _unseen_epochs(comparison: Comparison) -> set[int]:
    """Return the epochs of any series that the comparison does not cover."""
    return {epoch for member in comparison.series for epoch in member.epochs} - set(
        comparison.epochs
    )


def notes(
    comparison: Comparison,
    series: Sequence[Series],
    seen: Mapping[tuple[str, int, str], MetricValues],
    query: Query,
) -> tuple[str, ...]:
    """Name gaps, omissions, and differences in how series were measured."""
    epochs = comparison.epochs
    said = []
    if len(series) == 1 and query.with_pairs:
        said.append("There is one series only, so there is no difference to take.")
    if len(epochs) == 1:
        what = "is looked at, though more were" if _unseen_epochs(comparison) else "was"
        said.append(
            f"Only {epoch_text(epochs[0])} {what} measured, so nothing is said about training."
        )
    for member in series:
        said += _of_series(comparison, member, keep_unconverged=query.keep_unconverged)
    said += _of_metrics(comparison, series, seen, query)
    said += conditions(comparison, series)
    said += same_weights(comparison, series) if query.with_pairs else []
    few = min((row.num_batches for row in comparison.summaries), default=MIN_BATCHES)
    if few < MIN_BATCHES:
        said.append(
            f"Some intervals and tests rest on {counted(few, 'batch', 'batches')} only; how well "
            f"they cover was measured from {MIN_BATCHES} on."
        )
    said += _of_unknown(comparison, with_pairs=query.with_pairs)
    return tuple(
        said
        + _without_interval(comparison)
        + _of_power(comparison)
        + _of_normalised(comparison, query)
    )


def _of_unknown(comparison: Comparison, *, with_pairs: bool) -> list[str]:
    """Name numbers that the quadratures leave unknown and untested.

    Metrics that are unknown in the same places share a sentence.
    """
    places: dict[str, tuple[str, ...]] = {}
    for metric in comparison.metrics:
        epochs: dict[str, list[int]] = {}
        for row in comparison.summaries:
            if row.metric == metric.name and not row.known:
                epochs.setdefault(comparison.label(row.series), []).append(row.epoch)
        if epochs:
            places[metric.label] = tuple(f"{label}, {_epochs(at)}" for label, at in epochs.items())
    said = []
    for where in dict.fromkeys(places.values()):
        labels = ", ".join(label for label, other in places.items() if other == where)
        untested = " and no test is made of it" if with_pairs and len(comparison.series) > 1 else ""
        said.append(
            f"Unknown, since quadratures of so few products leave it open{untested}: {labels} "
            f"({'; '.join(where)}). More products tell more: give the manifest to `landscape "
            "density` and raise --matvecs."
        )
    return said


def _without_interval(comparison: Comparison) -> list[str]:
    """Name numbers without an interval, since every batch repeats them."""
    places: dict[str, dict[str, list[int]]] = {}
    for row in comparison.summaries:
        if row.num_batches > 1 and math.isfinite(row.value) and math.isnan(row.low):
            label = METRICS[row.metric].label
            places.setdefault(label, {}).setdefault(comparison.label(row.series), []).append(
                row.epoch
            )
    parts = []
    for metric, rows in places.items():
        where = "; ".join(f"{label}, {_epochs(epochs)}" for label, epochs in rows.items())
        parts.append(f"{metric} ({where})")
    return (
        [
            "No interval, since all batches say the same or too few say anything: "
            f"{', '.join(parts)}."
        ]
        if parts
        else []
    )


def _of_power(comparison: Comparison) -> list[str]:
    """Name metrics whose tests could not have been significant.

    Such a test is no evidence of equality.
    """
    alpha = 1 - comparison.confidence
    compared, powerless = 0, []
    for metric in comparison.metrics:
        rows = [row for row in comparison.differences if row.metric == metric.name]
        made = [row.smallest_p for row in rows if math.isfinite(row.smallest_p)]
        compared += bool(rows)
        if rows and not (made and len(made) * min(made) <= alpha):
            powerless.append(metric.label)
    if not powerless:
        return []
    of = "of any metric" if len(powerless) == compared > 1 else f"of: {', '.join(powerless)}"
    said = (
        f"Too few batches or permutations to demonstrate a difference at {alpha:.2g} after Holm's "
        f"correction, {of}."
    )
    return [f"{said} Take more batches or resamples, or fewer epochs."]


def _of_normalised(comparison: Comparison, query: Query) -> list[str]:
    """Name normalised metrics that were not compared."""
    said = []
    for name, versions in NORMALISED.items():
        missing = [version for version in versions if METRICS[version] not in query.metrics]
        if missing and any(row.metric == name for row in comparison.differences):
            said.append(
                f"Not compared, though each may say otherwise than {name}: {', '.join(missing)}."
            )
    return said


def _of_series(comparison: Comparison, member: Series, *, keep_unconverged: bool) -> list[str]:
    label, said = comparison.label(member.info.name), []
    measured = [epoch for epoch in comparison.epochs if epoch in member.tables]
    missing = [epoch for epoch in comparison.epochs if epoch not in member.tables]
    if missing:
        said.append(f"{label}: not measured at {_epochs(missing)}.")
    unfinished = {
        e: member.tables[e]
        for e in measured
        if member.tables[e].num_records < member.tables[e].num_planned
    }
    if unfinished:
        parts = ", ".join(
            f"{table.num_records} of {table.num_planned} at epoch {e}"
            for e, table in unfinished.items()
        )
        said.append(f"{label}: unfinished, batches measured: {parts}.")
    loose = {e: int((~member.measured[e].certified).sum()) for e in measured}
    loose = {e: count for e, count in loose.items() if count}
    if loose:
        parts = ", ".join(
            f"{count} of {member.tables[e].num_records} at epoch {e}" for e, count in loose.items()
        )
        treated = (
            "kept, although they are"
            if keep_unconverged
            else "left out of what is made of eigenvalues, as"
        )
        said.append(f"{label}: records {treated} not certified: {parts}.")
    if not all(member.audited(e) for e in measured):
        said.append(
            f"{label}: NOT AUDITED: nobody has checked that these are second derivatives of the "
            "whole model."
        )
    return said


def _of_metrics(
    comparison: Comparison,
    series: Sequence[Series],
    seen: Mapping[tuple[str, int, str], MetricValues],
    query: Query,
) -> list[str]:
    """Name metrics without any record, and certified batches that lack a number."""
    said = []
    silent = [metric.label for metric in query.metrics if metric not in comparison.metrics]
    if silent:
        said.append(f"No record that counts contains: {', '.join(silent)}.")
    for metric in comparison.metrics:
        unknown: dict[str, dict[int, int]] = {}
        for member in series:
            for epoch in member.tables:
                values = seen.get((member.info.name, epoch, metric.name))
                if values is None:
                    continue
                measured = member.measured[epoch]
                usable = measured.finite if query.keep_unconverged else measured.certified
                count = values.num_left_out - (int((~usable).sum()) if metric.certified else 0)
                if count:
                    unknown.setdefault(comparison.label(member.info.name), {})[epoch] = count
        for label, counts in unknown.items():
            parts = ", ".join(f"{count} at epoch {epoch}" for epoch, count in counts.items())
            said.append(
                f"{label}: records that do not say the {metric.label} are left out of it: {parts}."
            )
    return said


def _epochs(epochs: Sequence[int]) -> str:
    return f"epoch{'s' * (len(epochs) > 1)} {', '.join(map(str, epochs))}"
