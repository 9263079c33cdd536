"""Sentences about a difference, to quote.

They include all that would change a reader's judgement.
"""

import math
from dataclasses import replace

import numpy as np

from landscape.compare.metrics import METRICS, NORMALISED, Metric
from landscape.compare.result import Comparison, Difference, Summary
from landscape.compare.statistics import holm
from landscape.linalg.number_text import short as number
from landscape.linalg.number_text import unknown, with_error

# Words for a difference in a metric; for the others a series "has the higher ...".
_MORE = {"lambda_max": "is sharper", "nep": "is less convex"}
_IN = {"lambda_max": "in sharpness", "nep": "in convexity"}


def sentence(comparison: Comparison, row: Difference) -> str:
    """Describe a difference with its interval and its test.

    Also says where normalised metrics disagree, and what is not certified.
    """
    larger = direction(comparison, row)
    objections = _objections(comparison, row, larger)
    if larger < 0:
        row = _turned(row)
    metric, where = METRICS[row.metric], f"at {epoch_text(row.epoch)}"
    first, second = comparison.label(row.first), comparison.label(row.second)
    if larger:
        claim = f"{first} {_more(metric)} than {second} {where}"
    else:
        claim = f"{first} and {second} {_undecided(comparison, row)} {where}"
    batches = counted(row.num_batches, "batch", "batches")
    on = (
        f"On the same {batches}"
        if row.paired
        else f"On at least {batches} each, not compared batch by batch"
    )
    what = (
        f"{'paired ' if row.paired else ''}difference "
        f"{with_interval(row.difference, row.low, row.high)}"
    )
    numbers = (
        f"{_naming(metric)} {' vs '.join(sides_text(row))}, {what}, Holm p = {p_text(row.p_holm)}"
    )
    return "; ".join([f"{on}, {claim}: {numbers}", *objections, *_doubts(row)]) + "."


def _turned(row: Difference) -> Difference:
    """Swap the first and the second series, for a sentence."""
    return replace(
        row,
        first=row.second,
        second=row.first,
        first_value=row.second_value,
        second_value=row.first_value,
        first_error=row.second_error,
        second_error=row.first_error,
        difference=-row.difference,
        low=-row.high,
        high=-row.low,
    )


def sides_text(row: Difference) -> tuple[str, str]:
    """Format the two numbers of a difference; estimates with their errors."""
    metric = METRICS[row.metric]
    if metric.estimate is None:
        return number(row.first_value), number(row.second_value)
    first, second = (row.first_value, row.first_error), (row.second_value, row.second_error)
    return with_error(*first, percent=metric.is_share), with_error(*second, percent=metric.is_share)


def direction(comparison: Comparison, row: Difference) -> int:
    """Return the sign of a significant difference, else 0.

    1 where the first is demonstrably larger, -1 where the second is, 0 where neither is. Both have
    to agree: the test, which covers all epochs together, and the interval, where there is one.
    """
    shown = row.p_holm <= 1 - comparison.confidence and (
        math.isnan(row.low) or row.low * row.high > 0
    )
    return int(np.sign(row.difference)) if shown else 0


def can_decide(comparison: Comparison, row: Difference) -> bool:
    """Tell whether the test of a pair could have been significant.

    The other tests of its metric are taken as they are.
    """
    key = (row.first, row.second, row.epoch)
    family = [test for test in comparison.differences if test.metric == row.metric]
    keys = [(test.first, test.second, test.epoch) for test in family]
    best = [
        test.smallest_p if test_key == key else test.p_value
        for test, test_key in zip(family, keys, strict=True)
    ]
    return bool(holm(np.array(best))[keys.index(key)] <= 1 - comparison.confidence)


def _undecided(comparison: Comparison, row: Difference) -> str:
    """Say that no difference was demonstrated, or that none could have been.

    A test that cannot be significant is no evidence of equality, and the words must not suggest it.
    """
    what = _IN.get(row.metric, f"in {METRICS[row.metric].label}")
    if can_decide(comparison, row):
        if math.isnan(row.p_value):
            return f"cannot be told apart {what}, since the test is undefined,"
        return f"do not differ demonstrably {what}"
    few = "permutations" if row.smallest_p == 2 / (comparison.num_resamples + 1) else "batches"
    return f"cannot be told apart {what} by so few {few}"


def _objections(comparison: Comparison, row: Difference, larger: int) -> list[str]:
    """Name normalised versions of a metric that disagree or leave it open.

    `larger` is the direction of the metric itself.
    """
    said: dict[str, list[str]] = {}
    for name, how in NORMALISED.get(row.metric, {}).items():
        other = comparison.difference(row.first, row.second, row.epoch, name)
        verdict_sign = larger if other is None else direction(comparison, other)
        if other is not None and verdict_sign != larger:
            winner = comparison.label(row.first if verdict_sign > 0 else row.second)
            verdict = f"but {winner} {_more(METRICS[row.metric])}" if verdict_sign else "left open"
            # The series stand in the order of the sentence.
            values = " vs ".join(sides_text(_turned(other) if larger < 0 else other))
            said.setdefault(verdict, []).append(
                f"{how} ({values}, Holm p = {p_text(other.p_holm)})"
            )
    return [f"{verdict} {', '.join(hows)}" for verdict, hows in said.items()]


def _doubts(row: Difference) -> list[str]:
    """Name records behind a difference without a certificate or an audit."""
    said = []
    if row.num_uncertified:
        what = counted(
            row.num_uncertified, *(("batch", "batches") if row.paired else ("record", "records"))
        )
        said.append(f"{what} WITHOUT CERTIFICATE")
    return said if row.audited else [*said, "NOT AUDITED"]


def _more(metric: Metric) -> str:
    return _MORE.get(metric.name, f"has the higher {metric.label}")


def _naming(metric: Metric) -> str:
    name = metric.name if metric.name == "lambda_max" else metric.label
    return (
        name if metric.location == "ratio" or metric.name == "nep" else f"{metric.location} {name}"
    )


def summary_text(row: Summary) -> str:
    """Format the number for all batches.

    An estimate is rounded to its error, or "unknown"; other numbers have three digits.
    """
    metric = METRICS[row.metric]
    if not row.known:
        return unknown(row.open_low, row.open_high, percent=metric.is_share)
    if metric.estimate is None:
        return number(row.value)
    return with_error(row.value, row.standard_error, percent=metric.is_share)


def with_interval(value: float, low: float, high: float) -> str:
    """Format a number and its interval, if there is one."""
    return (
        number(value)
        if math.isnan(low) or math.isnan(high)
        else f"{number(value)} [{number(low)}, {number(high)}]"
    )


def p_text(p: float) -> str:
    """Format a p value to two significant digits."""
    return "?" if not math.isfinite(p) else f"{p:.2g}"


def counted(count: int, singular: str, plural: str) -> str:
    """Format a count with its noun: "1 batch", "2 batches"."""
    return f"{count} {singular if count == 1 else plural}"


def epoch_text(epoch: int) -> str:
    return "initialisation" if epoch == 0 else f"epoch {epoch}"
