"""What is said beside the numbers: a sentence to quote, what was left out, and what the numbers do not show."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from landscape.compare.metrics import METRICS, Measured, Metric
from landscape.compare.result import Comparison, Difference
from landscape.compare.series import Observed, Series
from landscape.compare.statistics import Resampling
from landscape.store import is_audited

# The fewest batches for which the coverage of the intervals was measured.
FEWEST_BATCHES = 20
# How a difference in a metric is put into words; the rest are "higher in ...".
_MORE = {"lambda_max": "is sharper than", "nep": "is less convex than"}
_NOTHING = {"lambda_max": "in sharpness", "nep": "in convexity"}


def sentence(comparison: Comparison, row: Difference) -> str:
    """A difference in words, with everything that a reader needs to judge it."""
    metric = METRICS[row.metric]
    first, second = comparison.label(row.first), comparison.label(row.second)
    a, b, by, low, high = row.first_value, row.second_value, row.difference, row.low, row.high
    # Both have to agree: the test, which looks at all epochs together, and the interval.
    shown = row.p_holm <= 1 - comparison.confidence and low * high > 0
    if shown and by < 0:
        first, second, a, b, by, low, high = second, first, b, a, -by, -high, -low
    where = f"at {_epoch(row.epoch)}"
    if shown:
        claim = f"{first} {_MORE.get(row.metric, f'has the higher {metric.label} than')} {second} {where}"
    else:
        claim = f"{first} and {second} do not differ demonstrably {_NOTHING.get(row.metric, f'in {metric.label}')} {where}"
    batches = "1 batch" if row.num_batches == 1 else f"{row.num_batches} batches"
    on = f"On the same {batches}" if row.paired else f"On at least {batches} each, not the same ones"
    what = f"{'paired ' if row.paired else ''}difference {number(by)} [{number(low)}, {number(high)}]"
    values = f"{_naming(metric)} {number(a)} vs {number(b)}"
    return f"{on}, {claim}: {values}, {what}, Holm p = {p_text(row.p_holm)}."


def _naming(metric: Metric) -> str:
    name = metric.name if metric.name == "lambda_max" else metric.label
    return name if metric.location == "ratio" or metric.name == "nep" else f"{metric.location} {name}"


def number(value: float) -> str:
    """Three significant digits, without an exponent where it can be read without."""
    if not math.isfinite(value):
        return "?"
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        digits = 3 if value == 0 else max(0, 2 - math.floor(math.log10(abs(value))))
        return f"{value:.{min(digits, 5)}f}" if value else "0"
    return f"{value:.2e}"


def p_text(p: float) -> str:
    """Two significant digits."""
    return "?" if not math.isfinite(p) else f"{p:.2g}"


def caveats(protocol: Mapping[str, Mapping[str, Any]], *, paired: bool, confidence: float) -> tuple[str, ...]:
    """What no number of batches can show, in sentences."""
    data, hessian = protocol["data"], protocol["hessian"]
    said = [
        "Each series is one training run: the intervals are over mini-batches, and another seed may move the numbers further.",
        f"All batches are of one data set ({data['source']}, {data['split']}), of {data['batch_size']} pairs each; other data or "
        "another size may order the series differently.",
        "Eigenvalues change when parameters are rescaled so that the function stays (Dinh et al., arXiv 1703.04933), and a "
        "sharper minimum need not generalise worse; each normalised metric removes one such freedom, none removes all.",
        f"NEP and APE speak of the {hessian['k']} eigenvalues of largest magnitude per batch, not of the whole spectrum. Numbers "
        "of negative eigenvalues are a lower bound (at least) or an estimate (about), whose bias the intervals do not hold.",
        f"Intervals hold {100 * confidence:g} % one at a time. Holm's correction covers the epochs and pairs of one metric, not "
        "the choice among metrics.",
    ]
    if not paired:
        said.append("Unpaired: differences between the batches of the series are mixed with differences between the series.")
    return tuple(said)


def notes(
    comparison: Comparison,
    series: Sequence[Series],
    seen: Mapping[tuple[str, int, str], Observed],
    asked: Sequence[Metric],
    *,
    keep_unconverged: bool,
) -> tuple[str, ...]:
    """Gaps, what was left out, and what was measured in another way."""
    epochs = comparison.epochs
    said = []
    if len(series) == 1 and comparison.paired:
        said.append("There is one series only, so there is no difference to take.")
    if len(epochs) == 1:
        said.append(f"Only {_epoch(epochs[0])} was measured, so nothing is said about training.")
    for one in series:
        said += _of_series(comparison, one, keep_unconverged=keep_unconverged)
    said += _of_metrics(comparison, series, seen, asked, keep_unconverged=keep_unconverged)
    few = sorted({row.num_batches for row in comparison.summaries if row.num_batches < FEWEST_BATCHES})
    if few:
        said.append(
            f"Some intervals and tests rest on {few[0]} batches only; how well they cover was measured from {FEWEST_BATCHES} on."
        )
    return tuple(said + _of_power(comparison))


def _of_power(comparison: Comparison) -> list[str]:
    """A test that could not come out otherwise is no evidence of equality."""
    alpha, resampling = 1 - comparison.confidence, Resampling(num_resamples=comparison.num_resamples)
    compared, powerless = 0, []
    for metric in comparison.metrics:
        rows = [row for row in comparison.differences if row.metric == metric.name and row.paired]
        compared += bool(rows)
        if len(rows) * min((resampling.smallest_p(row.num_batches) for row in rows), default=0.0) > alpha:
            powerless.append(metric.label)
    if not powerless:
        return []
    of = "of any metric" if len(powerless) == compared > 1 else f"of: {', '.join(powerless)}"
    said = f"Too few batches or permutations to demonstrate a difference at {alpha:.2g} after Holm's correction, {of}."
    return [f"{said} Take more batches or resamples, or fewer epochs."]


def _of_series(comparison: Comparison, one: Series, *, keep_unconverged: bool) -> list[str]:
    label, said = comparison.label(one.info.name), []
    measured = [epoch for epoch in comparison.epochs if epoch in one.tables]
    missing = [epoch for epoch in comparison.epochs if epoch not in one.tables]
    if missing:
        said.append(f"{label}: not measured at {_epochs(missing)}.")
    unfinished = {e: one.tables[e] for e in measured if one.tables[e].num_records < one.tables[e].num_planned}
    if unfinished:
        parts = ", ".join(f"{table.num_records} of {table.num_planned} at epoch {e}" for e, table in unfinished.items())
        said.append(f"{label}: unfinished, batches measured: {parts}.")
    loose = {e: int((~Measured(one.tables[e], one.hessian).certified).sum()) for e in measured}
    loose = {e: count for e, count in loose.items() if count}
    if loose:
        parts = ", ".join(f"{count} of {one.tables[e].num_records} at epoch {e}" for e, count in loose.items())
        treated = "kept, although they are" if keep_unconverged else "left out of what is made of eigenvalues, as"
        said.append(f"{label}: records {treated} not certified: {parts}.")
    if not all(is_audited(one.tables[e].extras) for e in measured):
        said.append(f"{label}: NOT AUDITED: nobody has checked that these are second derivatives of the whole model.")
    return said


def _of_metrics(
    comparison: Comparison,
    series: Sequence[Series],
    seen: Mapping[tuple[str, int, str], Observed],
    asked: Sequence[Metric],
    *,
    keep_unconverged: bool,
) -> list[str]:
    """Metrics that no record speaks of, and batches that are certified but do not say a number."""
    said = []
    silent = [metric.label for metric in asked if metric not in comparison.metrics]
    if silent:
        said.append(f"No record that counts says: {', '.join(silent)}.")
    for metric in comparison.metrics:
        unknown: dict[str, dict[int, int]] = {}
        for one in series:
            for epoch, table in one.tables.items():
                found = seen.get((one.info.name, epoch, metric.name))
                if found is None:
                    continue
                measured = Measured(table, one.hessian)
                usable = measured.finite if keep_unconverged else measured.certified
                count = found.num_left_out - (int((~usable).sum()) if metric.certified else 0)
                if count:
                    unknown.setdefault(comparison.label(one.info.name), {})[epoch] = count
        for label, counts in unknown.items():
            parts = ", ".join(f"{count} at epoch {epoch}" for epoch, count in counts.items())
            said.append(f"{label}: records that do not say the {metric.label} are left out of it: {parts}.")
    return said


def _epoch(epoch: int) -> str:
    return "initialisation" if epoch == 0 else f"epoch {epoch}"


def _epochs(epochs: Sequence[int]) -> str:
    return f"epoch{'s' * (len(epochs) > 1)} {', '.join(map(str, epochs))}"
