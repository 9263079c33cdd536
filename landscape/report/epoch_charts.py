"""Charts of sharpness and convexity over epochs.

One metric of the comparison each, with a line per series and its uncertainty.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from landscape.compare import Comparison, Metric, Summary
from landscape.figures.style import LineStyle
from landscape.figures.value_range import ValueRange
from landscape.report.chart import PLAIN, Chart, Trace, band_of, line_of, literal, packed
from landscape.report.study import Study
from landscape.report.tables import number

# Metrics that get a chart, where the records allow them: sharper, less convex.
CHARTED = ("lambda_max", "nep")
_HOVER = (
    "<b>{label}</b>, epoch %{{x}}<br>%{{y:.4~g}}, interval %{{customdata[0]:.4~g}} to "
    "%{{customdata[1]:.4~g}}<extra></extra>"
)


def metric_charts(study: Study, styles: Mapping[str, LineStyle]) -> dict[str, Chart]:
    """Make a chart for each metric of `CHARTED` that the comparison has.

    A chart has one frame. There is none without a comparison.
    """
    comparison = study.comparison
    if comparison is None:
        return {}
    return {
        metric.name: _metric_chart(comparison, metric, study, styles)
        for name in CHARTED
        for metric in comparison.metrics
        if metric.name == name and any(summary.metric == name for summary in comparison.summaries)
    }


def _metric_chart(
    comparison: Comparison, metric: Metric, study: Study, styles: Mapping[str, LineStyle]
) -> Chart:
    traces: list[Trace] = []
    numbers: list[float] = []
    with_quartiles = metric.location == "median"
    for series in study.series:
        # None where nothing was measured: the line has a gap there.
        row = [comparison.summary(series, epoch, metric.name) for epoch in study.epochs]
        if with_quartiles:
            low, high = (_column(row, name) for name in ("q25", "q75"))
            traces.append(
                band_of(series, styles[series], x=np.array(study.epochs), low=low, high=high)
            )
        traces.append(_line(series, row, study, styles[series]))
        numbers += [
            number
            for summary in row
            if summary is not None
            for number in _drawn_numbers(summary, with_quartiles)
        ]
    title = literal(metric.label if metric.unit == "1" else metric.unit)
    yaxis = value_axis(title, numbers, is_share=metric.name == "nep")
    xaxis = {
        **PLAIN,
        "title": {"text": "finished epochs"},
        "tickvals": list(study.epochs),
        "showgrid": False,
    }
    return Chart(
        frames=(tuple(traces),),
        layout={"xaxis": xaxis, "yaxis": yaxis},
        note=_note(comparison, metric, with_quartiles),
    )


def value_axis(title: str, numbers: Sequence[float], *, is_share: bool = False) -> dict[str, Any]:
    """Return plotly's axis of values: that of the figure of the same numbers.

    Args:
        is_share: Whether the numbers are shares, whose axis is always linear.
    """
    ends = ValueRange.of_shares(numbers) if is_share else ValueRange.of(numbers)
    axis: dict[str, Any] = {**PLAIN, "title": {"text": title}, "nticks": 6}
    if not ends.is_log:
        return axis | {"range": [ends.low, ends.high]}
    # Plotly labels the ticks between powers of ten by single digits.
    ticks = ends.log_ticks()
    return axis | {
        "type": "log",
        "range": [math.log10(ends.low), math.log10(ends.high)],
        "tickvals": ticks,
        "ticktext": [number(tick, "g") for tick in ticks],
    }


def _drawn_numbers(summary: Summary, with_quartiles: bool) -> tuple[float, ...]:
    """Return the finite numbers of a summary.

    A single batch has no interval.
    """
    numbers = (
        summary.value,
        summary.low,
        summary.high,
        *((summary.q25, summary.q75) if with_quartiles else ()),
    )
    return tuple(filter(math.isfinite, numbers))


def _note(comparison: Comparison, metric: Metric, with_quartiles: bool) -> str:
    bars = f"Bars: {100 * comparison.confidence:g} % bootstrap interval over batches."
    note = f"{metric.meaning[:1].upper()}{metric.meaning[1:]}. {bars}"
    return note + " Band: the middle half of the batches." * with_quartiles


def _column(row: list[Summary | None], name: str) -> Float[np.ndarray, " epochs"]:
    return np.array([np.nan if summary is None else getattr(summary, name) for summary in row])


def _line(series: str, row: list[Summary | None], study: Study, style: LineStyle) -> Trace:
    value, low, high = (_column(row, name) for name in ("value", "low", "high"))
    return line_with_bars(
        series,
        style,
        label=study.labels[series],
        x=np.array(study.epochs),
        value=value,
        low=low,
        high=high,
    )


def line_with_bars(
    series: str,
    style: LineStyle,
    *,
    label: str,
    x: np.ndarray,
    value: Float[np.ndarray, " epochs"],
    low: Float[np.ndarray, " epochs"],
    high: Float[np.ndarray, " epochs"],
    **properties: Any,
) -> Trace:
    """Return a curve over epochs with the interval of each value.

    NaN are gaps.
    """
    bars = {"array": packed(high - value), "arrayminus": packed(value - low)}
    return line_of(
        series,
        style,
        x=x,
        y=value,
        mode="lines+markers",
        customdata=packed(np.stack([low, high], axis=1)),
        hovertemplate=_HOVER.format(label=literal(label)),
        error_y={"type": "data", **bars, "width": 4, "thickness": 1.5},
        marker={"size": 7, "color": style.color},
        **properties,
    )
