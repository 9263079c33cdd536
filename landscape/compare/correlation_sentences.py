"""Rank correlations as sentences: their sign, their certainty and their limits."""

import math
from collections.abc import Iterable

from landscape.compare.accuracy_means import MEAN_TITLES
from landscape.compare.correlation import ALL, SAME_EPOCH, Correlation
from landscape.compare.metrics import METRICS
from landscape.statistics import Interval

TRAINING = (
    "Training changes both sharpness and accuracy, so over all checkpoints they go together "
    "whether or not one has to do with the other. Whether the sharper of several models is the "
    "worse one is asked at the same epoch. No correlation says that one causes the other."
)


def correlation_sentences(correlations: Iterable[Correlation]) -> tuple[str, ...]:
    """Describe the correlations of the largest eigenvalue.

    The scopes are all checkpoints, and the same epoch. Empty where there are none.
    """
    quoted = [
        row for row in correlations if row.metric == "lambda_max" and math.isfinite(row.value)
    ]
    sentences = [_over_all(row) for row in quoted if row.scope == ALL]
    sentences += [_at_same(row) for row in quoted if row.scope == SAME_EPOCH]
    return (*sentences, TRAINING) if sentences else ()


def signed(value: float) -> str:
    """Format a correlation with sign and two decimals, never rounded to 1."""
    text = f"{value:+.2f}"
    if abs(value) < 1 and text[1:] == "1.00":
        text = f"{text[0]}0.99"
    return (
        text.replace("-", "\N{MINUS SIGN}")
        .replace("+0.00", "0.00")
        .replace("\N{MINUS SIGN}0.00", "0.00")
    )


def ends(interval: Interval) -> str:
    """Format the ends of an interval, joined without a line break.

    "" where there are none.
    """
    if not math.isfinite(interval.low):
        return ""
    return f"[{signed(interval.low)},\N{NO-BREAK SPACE}{signed(interval.high)}]"


def _over_all(row: Correlation) -> str:
    of = f" of {row.num_series} series" if row.num_series > 1 else ""
    return (
        f"Over {row.num_points} checkpoints{of}, {_association(row)}: {_numbers(row)}. "
        f"{_beyond(row)}"
    )


def _at_same(row: Correlation) -> str:
    who = f"Among {row.num_series} series at the same epoch ({row.num_points} checkpoints)"
    return f"{who}, {_association(row)}: {_numbers(row)}. {_beyond(row)}"


def _association(row: Correlation) -> str:
    """Say whether sharper checkpoints are more or less accurate.

    The sign is left open where measurement error does not decide it.
    """
    sharper, title = (
        f"sharper checkpoints, by their {METRICS[row.metric].label},",
        MEAN_TITLES[row.mean],
    )
    if row.value == 0 or (
        math.isfinite(row.measured.low) and row.measured.low <= 0 <= row.measured.high
    ):
        return f"it cannot be told whether {sharper} have more or less {title}"
    return f"{sharper} have {'more' if row.value > 0 else 'less'} {title}"


def _numbers(row: Correlation) -> str:
    parts = [f"rank correlation {signed(row.value)}"]
    if ends(row.measured):
        parts.append(f"{ends(row.measured)} by measurement error")
    if ends(row.clusters):
        parts.append(f"{ends(row.clusters)} with series as clusters")
    if math.isfinite(row.p_value):
        parts.append(f"p = {row.p_value:.2g} by exchanging series")
    return ", ".join(parts)


def _beyond(row: Correlation) -> str:
    """Say what the correlation tells about other series."""
    if row.num_series < 3:
        return "It says nothing about other series: these are fewer than three."
    if math.isfinite(row.smallest_p) and row.smallest_p > 0.05:
        least = f"{row.num_series} series can give no p below {row.smallest_p:.2g}"
        return f"{least}, so whether other series would show the same is open."
    if not math.isfinite(row.clusters.low):
        return "Whether other series would show the same is open."
    if row.clusters.low <= 0 <= row.clusters.high:
        return "Other series may show the contrary."
    return f"With series as clusters it keeps its sign, as far as {row.num_series} series can tell."
