"""Rank correlations as sentences: what goes with what, how sure that is, and what it does not say."""

import math
from collections.abc import Iterable

from landscape.compare.accuracy_means import MEAN_TITLES
from landscape.compare.correlation import ALL, SAME_EPOCH, Correlation
from landscape.compare.metrics import METRICS
from landscape.statistics import Interval

TRAINING = (
    "Training changes both sharpness and accuracy, so over all checkpoints they go together whether or not one has to do with "
    "the other. Whether the sharper of several models is the worse one is asked at the same epoch. No correlation says that one "
    "causes the other."
)


def correlation_sentences(correlations: Iterable[Correlation]) -> tuple[str, ...]:
    """Say the correlations of the largest eigenvalue, over all checkpoints and at the same epoch; empty without any."""
    quoted = [
        one for one in correlations if one.metric == "lambda_max" and math.isfinite(one.value)
    ]
    sentences = [_over_all(one) for one in quoted if one.scope == ALL]
    sentences += [_at_same(one) for one in quoted if one.scope == SAME_EPOCH]
    return (*sentences, TRAINING) if sentences else ()


def signed(value: float) -> str:
    """A correlation with its sign, to two decimals, never rounded to 1."""
    text = f"{value:+.2f}"
    if abs(value) < 1 and text[1:] == "1.00":
        text = f"{text[0]}0.99"
    return (
        text.replace("-", "\N{MINUS SIGN}")
        .replace("+0.00", "0.00")
        .replace("\N{MINUS SIGN}0.00", "0.00")
    )


def ends(interval: Interval) -> str:
    """The ends of an interval, which do not break; "" where there are none."""
    if not math.isfinite(interval.low):
        return ""
    return f"[{signed(interval.low)},\N{NO-BREAK SPACE}{signed(interval.high)}]"


def _over_all(one: Correlation) -> str:
    of = f" of {one.num_series} series" if one.num_series > 1 else ""
    return f"Over {one.num_points} checkpoints{of}, {_association(one)}: {_numbers(one)}. {_beyond(one)}"


def _at_same(one: Correlation) -> str:
    who = f"Among {one.num_series} series at the same epoch ({one.num_points} checkpoints)"
    return f"{who}, {_association(one)}: {_numbers(one)}. {_beyond(one)}"


def _association(one: Correlation) -> str:
    """What goes with what, as far as measurement error lets these checkpoints tell."""
    sharper, title = (
        f"sharper checkpoints, by their {METRICS[one.metric].label},",
        MEAN_TITLES[one.mean],
    )
    if one.value == 0 or (
        math.isfinite(one.measured.low) and one.measured.low <= 0 <= one.measured.high
    ):
        return f"it cannot be told whether {sharper} have more or less {title}"
    return f"{sharper} have {'more' if one.value > 0 else 'less'} {title}"


def _numbers(one: Correlation) -> str:
    parts = [f"rank correlation {signed(one.value)}"]
    if ends(one.measured):
        parts.append(f"{ends(one.measured)} by measurement error")
    if ends(one.clusters):
        parts.append(f"{ends(one.clusters)} with series as clusters")
    if math.isfinite(one.p_value):
        parts.append(f"p = {one.p_value:.2g} by exchanging series")
    return ", ".join(parts)


def _beyond(one: Correlation) -> str:
    """What this says of other series, which is what a reader wants to know."""
    if one.num_series < 3:
        return "Of other series it says nothing: these are fewer than three."
    if math.isfinite(one.smallest_p) and one.smallest_p > 0.05:
        least = f"{one.num_series} series can give no p below {one.smallest_p:.2g}"
        return f"{least}, so whether other series would show the same is open."
    if not math.isfinite(one.clusters.low):
        return "Whether other series would show the same is open."
    if one.clusters.low <= 0 <= one.clusters.high:
        return "Other series may show the contrary."
    return f"With series as clusters it keeps its sign, as far as {one.num_series} series can tell."
