"""Figure of sharpness and the share of negative eigenvalues over epochs.

A line per series, with bands over mini-batches. The numbers are computed in landscape.compare.
Sizes are in inches.

Shapes: e = epochs.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from landscape.compare import METRICS, Comparison
from landscape.figures.epoch_axis import draw_band, label_decades, label_epochs
from landscape.figures.page import Page
from landscape.figures.page_options import PageOptions
from landscape.figures.style import MAX_SERIES, paper_style
from landscape.figures.text import heading_of
from landscape.figures.value_range import ValueRange

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Metrics of the panels, and whether single batches spread enough to draw their middle half.
PANELS = {"lambda_max": True, "nep": False}


@dataclass(frozen=True, eq=False)
class Line:
    """One series in one panel, over all epochs of the figure.

    NaN where it was not measured.

    Args:
        value: Number for all batches.
        low, high: Ends of its interval.
        inner_low, inner_high: Ends of the middle half of the batches.
    """

    epochs: tuple[int, ...]
    value: Float[np.ndarray, " e"]
    low: Float[np.ndarray, " e"]
    high: Float[np.ndarray, " e"]
    inner_low: Float[np.ndarray, " e"]
    inner_high: Float[np.ndarray, " e"]

    @classmethod
    def of(cls, comparison: Comparison, series: str, metric: str) -> "Line":
        rows = [comparison.summary(series, epoch, metric) for epoch in comparison.epochs]
        names = ("value", "low", "high", "q25", "q75")
        columns = [
            np.array([np.nan if row is None else getattr(row, name) for row in rows])
            for name in names
        ]
        return cls(comparison.epochs, *columns)


def sharpness(
    comparison: Comparison,
    *,
    title: str | None = None,
    unaudited: bool = False,
    page_options: PageOptions | None = None,
) -> "Figure":
    """Draw the largest eigenvalue and NEP over epochs.

    There is a panel for each, and a line with a marker per epoch for every series. A pale band
    holds the middle half of the batches (of the largest eigenvalue alone); a darker band is the
    bootstrap interval of the line. A series that was not measured at an epoch has a gap there. The
    axis of the largest eigenvalue is logarithmic where everything drawn on it is positive and spans
    more than a factor of 8; it is that of the report, see `ValueRange`.

    Args:
        comparison: From `summarize_stores` or `compare_stores`, with the metrics of `PANELS`.
        title: Heading of the figure; none by default.
        unaudited: Say above the panels that the products were not audited.
        page_options: Width, columns, letters and axis; by default those described here.

    Raises:
        ValueError: If there is nothing to draw, or there are more than `MAX_SERIES` series.
    """
    metrics = [name for name in PANELS if any(row.metric == name for row in comparison.summaries)]
    if not metrics:
        raise ValueError("no certified record contains an eigenvalue, so there is nothing to draw.")
    if len(comparison.series) > MAX_SERIES:
        raise ValueError(
            f"{len(comparison.series)} series, but more than {MAX_SERIES} lines in a panel cannot "
            "be told apart."
        )
    labels = tuple(comparison.label(info.name) for info in comparison.series)
    heading = heading_of(title, unaudited=unaudited)
    page_options = page_options or PageOptions()
    num_columns = min(page_options.num_columns or len(metrics), len(metrics))
    with paper_style(page_options.scale):
        page = Page(
            num_columns=num_columns,
            num_rows=math.ceil(len(metrics) / num_columns),
            row_gap=0.6,
            panel=(2.75, 1.9),
            title=heading,
            note=_note(comparison),
            left=0.6,
            gap=0.6,
            panel_titles=0.18,
            legend=labels,
        ).fitted(page_options)
        fig, axes = page.figure()
        for ax, metric in zip(axes, metrics, strict=True):
            _draw(ax, comparison, metric, labels, linear=page_options.linear)
        page.write(fig, axes)
    return fig


def _note(comparison: Comparison) -> str:
    counted = sorted({row.num_batches for row in comparison.summaries})
    batches = str(counted[0]) if len(counted) == 1 else f"{counted[0]} to {counted[-1]}"
    sentences = [
        f"Markers: over {batches} mini-batch{'es' * (batches != '1')}. "
        f"Darker bands: {100 * comparison.confidence:g} % bootstrap intervals over batches. "
        "Pale bands: the middle half of the batches.",
        *comparison.notes,
    ]
    return " ".join(sentences)


def _draw(
    ax: "Axes", comparison: Comparison, metric: str, labels: Sequence[str], *, linear: bool
) -> None:
    from matplotlib import rcParams
    from matplotlib.ticker import MaxNLocator

    styles: list[dict[str, Any]] = list(rcParams["axes.prop_cycle"])
    lines = [Line.of(comparison, info.name, metric) for info in comparison.series]
    spread = PANELS[metric]
    for order, (line, label, style) in enumerate(zip(lines, labels, styles)):
        if spread:
            draw_band(
                ax, line.epochs, line.inner_low, line.inner_high, color=style["color"], alpha=0.10
            )
        draw_band(ax, line.epochs, line.low, line.high, color=style["color"], alpha=0.28)
        ax.plot(
            line.epochs,
            line.value,
            marker="o",
            markersize=3,
            label=label,
            zorder=3 + order,
            **style,
        )
    ax.set_title(METRICS[metric].label[0].upper() + METRICS[metric].label[1:])
    ax.set_xlabel("epoch")
    label_epochs(ax, comparison.epochs)
    if metric == "nep":
        ax.set_ylabel(f"share of negatives among the top {comparison.protocol['hessian']['k']}")
        shares = ValueRange.of_shares(
            float(number) for line in lines for number in (*line.value, *line.high)
        )
        ax.set_ylim(shares.low, shares.high)
        ax.yaxis.set_major_locator(MaxNLocator(5))
        return
    ax.set_ylabel(f"{METRICS[metric].location}, {METRICS[metric].unit}")
    columns = ("value", "low", "high", "inner_low", "inner_high")
    drawn = (float(number) for line in lines for name in columns for number in getattr(line, name))
    axis = ValueRange.of(drawn, linear=linear)
    if axis.is_log:
        ax.set_yscale("log")
        label_decades(ax, axis.log_ticks())
    ax.set_ylim(axis.low, axis.high)
