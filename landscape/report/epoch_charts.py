"""Sharpness and convexity over epochs: one metric of the comparison, a line per series with its uncertainty."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from landscape.compare import Comparison, Metric, Summary
from landscape.figures.style import LineStyle
from landscape.report.chart import PLAIN, Chart, Trace, band_of, line_of, literal, packed
from landscape.report.study import Study
from landscape.report.tables import number

# Metrics that get a chart, where the records allow them: sharper, less convex.
CHARTED = ("lambda_max", "nep")
# With values this many times apart the small ones would lie on the axis.
_LOGARITHMIC_FROM = 20.0
_HOVER = "<b>{label}</b>, epoch %{{x}}<br>%{{y:.4~g}}, interval %{{customdata[0]:.4~g}} to %{{customdata[1]:.4~g}}<extra></extra>"


def metric_charts(study: Study, styles: Mapping[str, LineStyle]) -> dict[str, Chart]:
    """A chart of one frame for each metric of `CHARTED` that the comparison has; none without a comparison."""
    comparison = study.comparison
    if comparison is None:
        return {}
    return {
        metric.name: _metric_chart(comparison, metric, study, styles)
        for name in CHARTED
        for metric in comparison.metrics
        if metric.name == name and any(one.metric == name for one in comparison.summaries)
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
            for one in row
            if one is not None
            for number in _drawn_numbers(one, with_quartiles)
        ]
    yaxis = value_axis(literal(metric.label if metric.unit == "1" else metric.unit), numbers)
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


def value_axis(title: str, numbers: Sequence[float]) -> dict[str, Any]:
    """Return plotly's axis of values: logarithmic where they are far apart, from zero where none is negative."""
    least, most = min(numbers), max(numbers)
    axis: dict[str, Any] = {**PLAIN, "title": {"text": title}, "nticks": 6}
    if least > 0 and most > _LOGARITHMIC_FROM * least:
        return axis | {"type": "log", **_decade_ticks(least, most)}
    return axis | ({"rangemode": "tozero"} if least >= 0 else {})


def _decade_ticks(low: float, high: float) -> dict[str, Any]:
    """Powers of ten, and 2 and 5 times those where there are few; plotly's own labels of them are bare digits."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    mantissas = (1, 2, 5) if len(decades) <= 3 else (1,)
    ticks = [mantissa * 10.0**decade for decade in decades for mantissa in mantissas]
    return {"tickvals": ticks, "ticktext": [number(tick, "g") for tick in ticks]}


def _drawn_numbers(one: Summary, with_quartiles: bool) -> tuple[float, ...]:
    """Those of a summary that are numbers: a single batch has no interval."""
    numbers = (one.value, one.low, one.high, *((one.q25, one.q75) if with_quartiles else ()))
    return tuple(filter(math.isfinite, numbers))


def _note(comparison: Comparison, metric: Metric, with_quartiles: bool) -> str:
    bars = f"Bars: {100 * comparison.confidence:g} % bootstrap interval over batches."
    note = f"{metric.meaning[:1].upper()}{metric.meaning[1:]}. {bars}"
    return note + " Band: the middle half of the batches." * with_quartiles


def _column(row: list[Summary | None], name: str) -> Float[np.ndarray, " epochs"]:
    return np.array([np.nan if one is None else getattr(one, name) for one in row])


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
    """Return a curve over epochs with the interval of each value; NaN are gaps."""
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
