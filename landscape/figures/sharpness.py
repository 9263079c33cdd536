"""Sharpness and the share of negative eigenvalues over epochs, a line per series, with bands over mini-batches.

What is drawn was computed in landscape.compare; nothing is here. Sizes are in inches. Shapes: e = epochs.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from landscape.compare import METRICS, Comparison
from landscape.figures.page import Page
from landscape.figures.style import MAX_SERIES, paper_style
from landscape.figures.text import UNAUDITED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# What the panels show, and whether single batches spread enough to show where half of them lie.
PANELS = {"lambda_max": True, "nep": False}
# Narrower ranges hold too few round numbers for a logarithmic axis.
_WIDE = 8.0


@dataclass(frozen=True, eq=False)
class Line:
    """One series in one panel, over all epochs of the figure; NaN where it was not measured.

    Args:
        value: What stands for all batches.
        low, high: Ends of its interval.
        inner_low, inner_high: Between them lie half of the batches.
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
    comparison: Comparison, *, title: str | None = None, unaudited: bool = False
) -> "Figure":
    """Draw the largest eigenvalue and NEP over epochs: a panel each, a line with a marker per epoch for every series.

    A pale band holds the middle half of the batches (of the largest eigenvalue alone), a darker one is the bootstrap
    interval of the line. A series that was not measured at an epoch has a gap there. The largest eigenvalue is drawn on a
    logarithmic axis where everything that is shown of it is positive and spans more than a factor of `_WIDE`.

    Args:
        comparison: From `summarize_stores` or `compare_stores`, with the metrics of `PANELS`.
        title: Heading of the figure; none by default.
        unaudited: Say so above the panels.

    Raises:
        ValueError: If there is nothing to draw, or there are more than `MAX_SERIES` series.
    """
    metrics = [name for name in PANELS if any(row.metric == name for row in comparison.summaries)]
    if not metrics:
        raise ValueError(
            "no certified record says how large an eigenvalue is, so there is nothing to draw."
        )
    if len(comparison.series) > MAX_SERIES:
        raise ValueError(
            f"{len(comparison.series)} series, but more than {MAX_SERIES} lines in a panel cannot be told apart."
        )
    labels = tuple(comparison.label(one.name) for one in comparison.series)
    heading = ". ".join(text for text in (title or "", UNAUDITED if unaudited else "") if text)
    with paper_style():
        page = Page(
            num_columns=len(metrics),
            panel=(2.75, 1.9),
            title=heading,
            note=_note(comparison),
            left=0.6,
            gap=0.6,
            panel_titles=0.18,
            legend=labels,
        )
        fig, axes = page.figure()
        for ax, metric in zip(axes, metrics, strict=True):
            _draw(ax, comparison, metric, labels)
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


def _draw(ax: "Axes", comparison: Comparison, metric: str, labels: Sequence[str]) -> None:
    from matplotlib import rcParams
    from matplotlib.ticker import MaxNLocator

    styles: list[dict[str, Any]] = list(rcParams["axes.prop_cycle"])
    lines = [Line.of(comparison, one.name, metric) for one in comparison.series]
    spread = PANELS[metric]
    for order, (line, label, style) in enumerate(zip(lines, labels, styles)):
        if spread:
            _band(ax, line, line.inner_low, line.inner_high, color=style["color"], alpha=0.10)
        _band(ax, line, line.low, line.high, color=style["color"], alpha=0.28)
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
    _label_epochs(ax, comparison.epochs)
    if metric == "nep":
        ax.set_ylabel(f"share of negatives among the top {comparison.protocol['hessian']['k']}")
        ax.set_ylim(
            -0.02,
            max(0.2, 1.08 * float(np.nanmax([np.fmax(line.value, line.high) for line in lines]))),
        )
        ax.yaxis.set_major_locator(MaxNLocator(5))
        return
    ax.set_ylabel(f"{METRICS[metric].location}, {METRICS[metric].unit}")
    drawn = np.concatenate(
        [column for line in lines for column in (line.value, line.low, line.inner_low, line.high)]
    )
    if np.nanmin(drawn) > 0 and np.nanmax(drawn) > _WIDE * np.nanmin(drawn):
        ax.set_yscale("log")
        _label_decades(ax)


def _band(
    ax: "Axes", line: Line, low: np.ndarray, high: np.ndarray, *, color: str, alpha: float
) -> None:
    """A band over the epochs; a bar where an epoch has no neighbour that was measured."""
    ax.fill_between(line.epochs, low, high, color=color, alpha=alpha, linewidth=0, zorder=1)
    known = np.isfinite(low)
    beside = np.concatenate([[False], known[:-1]]) | np.concatenate([known[1:], [False]])
    lonely = known & ~beside
    ax.vlines(
        np.array(line.epochs)[lonely],
        low[lonely],
        high[lonely],
        color=color,
        alpha=alpha,
        linewidth=5,
        zorder=1,
    )


def _label_epochs(ax: "Axes", epochs: Sequence[int]) -> None:
    """A tick at every epoch where they are few, and room for the outer markers."""
    from matplotlib.ticker import MaxNLocator

    if len(epochs) <= 8:
        ax.set_xticks(list(epochs))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    room = 0.5 if len(epochs) == 1 else 0.04 * (epochs[-1] - epochs[0])
    ax.set_xlim(epochs[0] - room, epochs[-1] + room)


def _label_decades(ax: "Axes") -> None:
    """Plain numbers, more than the powers of ten where there are few of those."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_ylim()
    ax.yaxis.set_major_locator(LogLocator(subs=(1.0,) if high > 300 * low else (1.0, 2.0, 5.0)))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
