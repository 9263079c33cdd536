"""Charts of accuracy and sharpness.

Both over the same epochs, and accuracy against sharpness with a point per checkpoint.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from landscape.compare.accuracy_means import MEAN_TITLES, ROBUSTNESS
from landscape.compare.metrics import METRICS
from landscape.compare.sharpness_accuracy import CheckpointRow, SharpnessAccuracy
from landscape.figures.style import LineStyle
from landscape.report.chart import PLAIN, Chart, Trace, line_of, literal, packed
from landscape.report.epoch_charts import line_with_bars, value_axis
from landscape.statistics import Interval

# The chart of all panels over epochs; the scatter of a mean is "accuracy-" and its name.
OVER_EPOCHS = "accuracy-epochs"
_CHARTED = "lambda_max"
# Gap between panels, as a share of the height of a chart.
_GAP = 0.07
_LONGEST_LABEL = 18
_NONE = Interval(np.nan)
# Possible places of a point's label: plotly's name, and the direction from the point.
_PLACES = {
    "top right": (1, 1),
    "bottom left": (-1, -1),
    "bottom right": (1, -1),
    "top left": (-1, 1),
}
# Size of a character of a label, as a share of the plot: about 6 of 1,100 and 14 of 280 pixels.
_LETTER, _LINE = 0.0055, 0.05
_HOVER = (
    "<b>{label}</b>, epoch %{{customdata[0]}}<br>largest eigenvalue %{{customdata[1]:.4~g}}, "
    "interval %{{customdata[2]:.4~g}} to %{{customdata[3]:.4~g}}<br>%{{y:.3~g}} %, interval "
    "%{{customdata[4]:.3~g}} to %{{customdata[5]:.3~g}}<extra></extra>"
)


def accuracy_charts(
    accuracy: SharpnessAccuracy, labels: Mapping[str, str], styles: Mapping[str, LineStyle]
) -> dict[str, Chart]:
    """Return the chart over epochs, and a scatter for each mean.

    There is none without a largest eigenvalue.

    Args:
        labels, styles: Label and style of each series.
    """
    if not accuracy.means or not any(_CHARTED in row.sharpness for row in accuracy.rows):
        return {}
    charts = {OVER_EPOCHS: _over_epochs(accuracy, labels, styles)}
    for name in accuracy.means:
        if any(name in row.means and _CHARTED in row.sharpness for row in accuracy.rows):
            charts[f"accuracy-{name}"] = _scatter(accuracy, name, labels, styles)
    return charts


def num_panels(accuracy: SharpnessAccuracy) -> int:
    """Count the panels of the chart over epochs.

    There is one of sharpness, and one of each mean.
    """
    return 1 + len(accuracy.means)


def percent(interval: Interval) -> Interval:
    """Convert a share to percent."""
    return Interval(100 * interval.value, 100 * interval.low, 100 * interval.high)


def _sharpness(row: CheckpointRow) -> Interval:
    return row.sharpness.get(_CHARTED, _NONE)


def _mean(row: CheckpointRow, name: str) -> Interval:
    return percent(row.means.get(name, _NONE))


def _columns(intervals: list[Interval]) -> dict[str, np.ndarray]:
    return {
        name: np.array([getattr(each, name) for each in intervals], dtype=float)
        for name in ("value", "low", "high")
    }


def _over_epochs(
    accuracy: SharpnessAccuracy, labels: Mapping[str, str], styles: Mapping[str, LineStyle]
) -> Chart:
    panels = {"": METRICS[_CHARTED].unit} | {name: _axis_title(name) for name in accuracy.means}
    epochs = sorted({row.epoch for row in accuracy.rows})
    height = (1 - _GAP * (len(panels) - 1)) / len(panels)
    layout: dict[str, Any] = {"shapes": []}
    traces: list[Trace] = []
    for place, (name, title) in enumerate(panels.items()):
        axis = f"y{place + 1}" if place else "y"
        numbers: list[float] = []
        for series in dict.fromkeys(row.series for row in accuracy.rows):
            # NaN where there is no checkpoint: the line has a gap there.
            rows = [accuracy.row(series, epoch) for epoch in epochs]
            intervals = [
                _NONE if row is None else _mean(row, name) if name else _sharpness(row)
                for row in rows
            ]
            columns = _columns(intervals)
            options: dict[str, Any] = {"label": labels[series], "yaxis": axis, **columns}
            traces.append(line_with_bars(series, styles[series], x=np.array(epochs), **options))
            numbers += [
                float(number)
                for column in columns.values()
                for number in column[np.isfinite(column)]
            ]
        top = 1 - place * (height + _GAP)
        drawn = value_axis(title, numbers) if numbers else {**PLAIN, "title": {"text": title}}
        layout[f"yaxis{place + 1}" if place else "yaxis"] = {
            **drawn,
            "domain": [max(0.0, top - height), top],
            "anchor": "x",
        }
        if name:
            layout["shapes"] += _guessing(accuracy.means[name].chance, axis)
    lowest = f"y{len(panels)}"
    xaxis = {
        **PLAIN,
        "title": {"text": "finished epochs"},
        "tickvals": epochs,
        "showgrid": False,
        "anchor": lowest,
    }
    return Chart(
        frames=(tuple(traces),), layout={**layout, "xaxis": xaxis}, note=_note_over_epochs(accuracy)
    )


def _axis_title(name: str) -> str:
    return {"zero_shot": "zero-shot (%)", "ood": "out of distr. (%)", ROBUSTNESS: "kept (%)"}[name]


def _guessing(chance: float, axis: str) -> list[dict[str, Any]]:
    """Draw a dotted line at the accuracy of guessing.

    None where that is not known or is the axis itself.
    """
    if not chance > 0:
        return []
    height = 100 * chance
    line = {"width": 1.5, "color": "#777", "dash": "dot"}
    return [
        {
            "type": "line",
            "xref": "paper",
            "x0": 0,
            "x1": 1,
            "yref": axis,
            "y0": height,
            "y1": height,
            "line": line,
        }
    ]


def _note_over_epochs(accuracy: SharpnessAccuracy) -> str:
    bars = (
        f"Bars: {100 * accuracy.confidence:g} % intervals, over batches above and over pictures "
        "below."
    )
    order = ", ".join([METRICS[_CHARTED].label, *(MEAN_TITLES[name] for name in accuracy.means)])
    guessing = (
        " Dotted: guessing." if any(mean.chance > 0 for mean in accuracy.means.values()) else ""
    )
    return f"From the top: {order}. {bars}{guessing}"


def _scatter(
    accuracy: SharpnessAccuracy,
    name: str,
    labels: Mapping[str, str],
    styles: Mapping[str, LineStyle],
) -> Chart:
    rows = [row for row in accuracy.rows if name in row.means and _CHARTED in row.sharpness]
    ends = [end for row in rows for end in _finite(_sharpness(row))]
    heights = [end for row in rows for end in _finite(_mean(row, name))]
    xaxis = value_axis(f"largest eigenvalue ({METRICS[_CHARTED].unit})", ends)
    yaxis = value_axis(_axis_title(name), heights)
    # Room for the labels of the outermost points.
    xaxis |= _padded(ends, logarithmic=xaxis.get("type") == "log", share=0.09)
    xaxis.pop("rangemode", None)
    places = _places(rows, name, labels, logarithmic=xaxis.get("type") == "log")
    traces = []
    for series in dict.fromkeys(row.series for row in rows):
        own = [row for row in rows if row.series == series]
        traces.append(
            _points(own, name, labels[series], styles[series], [places[row.key] for row in own])
        )
    layout = {"xaxis": xaxis, "yaxis": yaxis, "shapes": _guessing(accuracy.means[name].chance, "y")}
    note = (
        "A point per checkpoint, labelled with its series and epoch; lines join those of a series "
        f"in the order of training. Bars: {100 * accuracy.confidence:g} % intervals, across over "
        "batches and upright over pictures."
    )
    return Chart(
        frames=(tuple(traces),),
        layout=layout,
        narrow={"title": {"text": "largest eigenvalue"}},
        note=note + " Dotted: guessing." * bool(layout["shapes"]),
    )


def _finite(interval: Interval) -> list[float]:
    return [end for end in (interval.value, interval.low, interval.high) if np.isfinite(end)]


def _padded(numbers: list[float], *, logarithmic: bool, share: float) -> dict[str, Any]:
    ends = np.array([min(numbers), max(numbers)])
    ends = np.log10(ends) if logarithmic else ends
    room = share * float(ends[1] - ends[0]) or 0.1 * abs(float(ends[0])) or 1.0
    return {"range": [float(ends[0]) - room, float(ends[1]) + room]}


def _label(label: str, row: CheckpointRow) -> str:
    short = label if len(label) <= _LONGEST_LABEL else f"{label[: _LONGEST_LABEL - 1]}…"
    return f"{short} {row.epoch}"


def _places(
    rows: list[CheckpointRow], name: str, labels: Mapping[str, str], *, logarithmic: bool
) -> dict[tuple[str, int], str]:
    """Choose for each point the place of its label.

    It is the place that covers the fewest points and labels, the first of equals.
    """
    x = np.array([_sharpness(row).value for row in rows])
    y = np.array([_mean(row, name).value for row in rows])
    x = np.log10(x) if logarithmic else x
    points = np.stack(
        [(values - values.min()) / (float(np.ptp(values)) or 1.0) for values in (x, y)], axis=1
    )
    # Boxes by their lower and upper corner; a point is a small box.
    boxes = [np.stack([point - 0.006, point + 0.006]) for point in points]
    places = {}
    for row, point in zip(rows, points, strict=True):
        size = np.array([_LETTER * len(_label(labels[row.series], row)), _LINE])
        candidates = {}
        for place, direction in _PLACES.items():
            corner = point + np.array(direction) * (size + 0.006)
            candidates[place] = np.sort(
                np.stack([point + np.array(direction) * 0.006, corner]), axis=0
            )
        places[row.key] = min(
            candidates, key=lambda place: sum(_meet(candidates[place], box) for box in boxes)
        )
        boxes.append(candidates[places[row.key]])
    return places


def _meet(first: np.ndarray, second: np.ndarray) -> bool:
    return bool((first[0] < second[1]).all() and (second[0] < first[1]).all())


def _points(
    rows: list[CheckpointRow], name: str, label: str, style: LineStyle, places: list[str]
) -> Trace:
    x, y = _columns([_sharpness(row) for row in rows]), _columns([_mean(row, name) for row in rows])
    facts = np.stack(
        [[row.epoch for row in rows], x["value"], x["low"], x["high"], y["low"], y["high"]], axis=1
    )
    trace = line_of(
        rows[0].series,
        style,
        x=x["value"],
        y=y["value"],
        mode="lines+markers+text",
        text=[literal(_label(label, row)) for row in rows],
        textposition=places,
        textfont={"size": 10, "color": style.color},
        customdata=packed(facts),
        hovertemplate=_HOVER.format(label=literal(label)),
        error_x=_bars(x),
        error_y=_bars(y),
        marker={"size": 8, "color": style.color},
    )
    trace["line"] = {**trace["line"], "width": 1}
    return trace


def _bars(columns: Mapping[str, np.ndarray]) -> dict[str, Any]:
    up, down = columns["high"] - columns["value"], columns["value"] - columns["low"]
    return {
        "type": "data",
        "array": packed(up),
        "arrayminus": packed(down),
        "width": 0,
        "thickness": 1,
    }
