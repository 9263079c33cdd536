"""Figure of kept eigenvectors over epochs: how far they turn, and how localised they are.

The numbers are computed in landscape.compare. Sizes are in inches.

Shapes: e = epochs.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from landscape.compare import Displacement, SeriesVectors
from landscape.figures.epoch_axis import draw_band, label_decades, label_epochs
from landscape.figures.module_map import ShareSample, module_heat_map
from landscape.figures.page import Page
from landscape.figures.page_options import PageOptions
from landscape.figures.samples import disambiguate
from landscape.figures.style import MAX_SERIES, paper_style
from landscape.figures.text import heading_of
from landscape.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


@dataclass(frozen=True, eq=False)
class Curve:
    """Numbers of a series over epochs, ascending, with intervals and bounds of their errors."""

    epochs: Float[np.ndarray, " e"]
    value: Float[np.ndarray, " e"]
    low: Float[np.ndarray, " e"]
    high: Float[np.ndarray, " e"]
    error: Float[np.ndarray, " e"]

    @classmethod
    def of(cls, points: Iterable[tuple[int, Interval, float]]) -> "Curve":
        """Collect points (epoch, interval, bound of the error)."""
        rows = [(epoch, at.value, at.low, at.high, error) for epoch, at, error in points]
        return cls(*np.array(sorted(rows), dtype=np.float64).reshape(-1, 5).T)


def eigenvectors(
    analysed: Sequence[SeriesVectors],
    *,
    confidence: float = 0.95,
    title: str | None = None,
    unaudited: bool = False,
    page_options: PageOptions | None = None,
) -> "Figure":
    """Draw angles between consecutive epochs and between batches, and participation ratios.

    There is a panel for each, a line for every series, with bars for the bounds of the errors.
    Angles are the mean principal angle of the spaces of all kept vectors, and dotted of the leading
    one; those between two epochs stand at the later one. Angles and participation ratios that are
    not known are left out, and the text under the panels counts them.

    Args:
        analysed: From `vectors_of_store`, with the default ranks.
        confidence: Nominal coverage of its intervals.
        title: Heading of the figure; none by default.
        unaudited: Say above the panels that the products were not audited.
        page_options: Width, columns and letters; by default those described here.

    Raises:
        ValueError: If there is nothing to draw, or there are more than `MAX_SERIES` series.
    """
    if not analysed:
        raise ValueError("no eigenvectors are kept, so there is nothing to draw.")
    panels = _panels(analysed)
    if not panels:
        raise ValueError(
            "no leading eigenvector is known, as no record is certified and has a gap, and there "
            "are no two to compare, so there is nothing to draw. Measure with a larger max_matvecs."
        )
    if len(analysed) > MAX_SERIES:
        raise ValueError(
            f"{len(analysed)} series, but more than {MAX_SERIES} lines in a panel cannot be told "
            "apart."
        )
    labels = tuple(disambiguate({series.series: series.label for series in analysed}).values())
    heading = heading_of(title, unaudited=unaudited)
    page_options = page_options or PageOptions()
    num_columns = min(page_options.num_columns or len(panels), len(panels))
    with paper_style(page_options.scale):
        page = Page(
            num_columns=num_columns,
            num_rows=math.ceil(len(panels) / num_columns),
            row_gap=0.6,
            panel=(2.05, 1.75),
            title=heading,
            note=_note(analysed, confidence),
            left=0.6,
            gap=0.6,
            panel_titles=0.18,
            legend=labels,
        ).fitted(page_options)
        fig, axes = page.figure()
        for ax, draw in zip(axes, panels, strict=True):
            draw(ax, analysed, labels)
        page.write(fig, axes)
    return fig


def vector_modules(
    analysed: Sequence[SeriesVectors],
    *,
    title: str | None = None,
    unaudited: bool = False,
    page_options: PageOptions | None = None,
) -> "Figure":
    """Draw the share of each module in the leading eigenvector, over depth and epoch.

    Args:
        analysed, title, unaudited: As in `eigenvectors`; one to four series, a panel each.
        page_options: As in `module_heat_map`.

    Raises:
        ValueError: If there is nothing to draw, or there are more than four series.
    """
    heading = heading_of(title, unaudited=unaudited)
    return module_heat_map(
        [_share_sample(series) for series in analysed],
        title=heading,
        note="Share of each module in the squared length of the leading eigenvector, mean over "
        "batches. All shares of an epoch sum to 100 %." + _left_out(analysed, "means"),
        label="share of |v|², %",
        page_options=page_options,
    )


def _share_sample(series: SeriesVectors) -> ShareSample:
    leading = sorted(
        (row for row in series.localisations if row.index == 1), key=lambda row: row.epoch
    )
    values = 100 * np.array([list(row.shares.values()) for row in leading])
    return ShareSample(
        series=series.series,
        label=series.label,
        modules=tuple(leading[0].shares),
        epochs=tuple(row.epoch for row in leading),
        values=values,
        converged=np.isfinite(values),
    )


_Draw = Callable[["Axes", Sequence[SeriesVectors], Sequence[str]], None]


def _panels(analysed: Sequence[SeriesVectors]) -> list[_Draw]:
    """Choose the panels for which there are numbers."""
    rows = [row for series in analysed for row in series.displacements if row.num_pairs]
    panels: list[_Draw] = []
    if any(row.first != row.second for row in rows):
        panels.append(_draw_turning)
    if any(row.first == row.second for row in rows):
        panels.append(_draw_spread)
    if any(
        row.num_batches for series in analysed for row in series.localisations if row.index == 1
    ):
        panels.append(_draw_participation)
    return panels


def _note(analysed: Sequence[SeriesVectors], confidence: float) -> str:
    rows = [row for series in analysed for row in series.localisations]
    counts = sorted({row.num_batches + row.num_unknown for row in rows})
    batches = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    k = analysed[0].num_vectors
    dotted = "Dotted: of the leading eigenvector alone. " if k > 1 else ""
    return (
        f"Angles: mean principal angle of the spaces of the {k} leading eigenvectors, over "
        f"{batches} mini-batch{'es' * (batches != '1')}. {dotted}Bands: {100 * confidence:g} % "
        "bootstrap intervals over batches. Bars: bound of the error by residual, gap and rounding, "
        "where it is larger than the marker."
        + _pairs_left_out(analysed)
        + _left_out(analysed, "ratios")
    )


def _pairs_left_out(analysed: Sequence[SeriesVectors]) -> str:
    """Say how many pairs are not in the mean angles; "" if all are."""
    rows = [row for series in analysed for row in series.displacements]
    ranks = {
        "the leading eigenvectors": [row for row in rows if row.rank == 1],
        "the spaces": [row for row in rows if row.rank > 1],
    }
    counts = [
        f"{unknown} of {unknown + sum(row.num_pairs for row in chosen)} pairs of {what}"
        for what, chosen in ranks.items()
        if (unknown := sum(row.num_unknown for row in chosen))
    ]
    if not counts:
        return ""
    return f" Left out of the angles: {' and '.join(counts)}, of which nothing is known."


def _left_out(analysed: Sequence[SeriesVectors], what: str) -> str:
    """Say how many leading vectors are not in the means; "" if all are."""
    rows = [row for series in analysed for row in series.localisations if row.index == 1]
    count = sum(row.num_unknown for row in rows)
    whole = count + sum(row.num_batches for row in rows)
    if not count:
        return ""
    return (
        f" Left out of the {what}: {count} of {whole} leading eigenvectors, of records that are "
        "not certified or without a gap."
    )


def _styles() -> list[dict[str, Any]]:
    from matplotlib import rcParams

    return list(rcParams["axes.prop_cycle"])


def _draw_turning(ax: "Axes", analysed: Sequence[SeriesVectors], labels: Sequence[str]) -> None:
    _draw_angles(ax, analysed, labels, lambda row: row.first != row.second)
    ax.set_title("Between consecutive epochs")
    ax.set_xlabel("later epoch")


def _draw_spread(ax: "Axes", analysed: Sequence[SeriesVectors], labels: Sequence[str]) -> None:
    _draw_angles(ax, analysed, labels, lambda row: row.first == row.second)
    ax.set_title("Between batches of an epoch")
    ax.set_xlabel("epoch")


def _draw_angles(
    ax: "Axes",
    analysed: Sequence[SeriesVectors],
    labels: Sequence[str],
    chosen: Callable[[Displacement], bool],
) -> None:
    epochs: set[int] = set()
    for series, label, style in zip(analysed, labels, _styles()):
        rows = [row for row in series.displacements if row.num_pairs and chosen(row)]
        epochs |= {row.second for row in rows}
        for rank in sorted({row.rank for row in rows}, reverse=True):
            curve = Curve.of(
                (row.second, _in_degrees(row.mean), np.degrees(row.error))
                for row in rows
                if row.rank == rank
            )
            if rank == series.num_vectors:
                _draw_curve(ax, curve, label, style, limits=(0, 90))
            else:
                dotted = style | {"linestyle": (0, (1, 1.2)), "linewidth": 1.0}
                _draw_bars(ax, curve, style["color"], limits=(0, 90))
                ax.plot(curve.epochs, curve.value, marker="o", markersize=1.8, **dotted)
    ax.set_ylim(-2, 92)
    ax.set_yticks(range(0, 91, 15))
    ax.set_ylabel("mean principal angle, degrees")
    label_epochs(ax, sorted(epochs))


def _in_degrees(angle: Interval) -> Interval:
    return Interval(*map(float, np.degrees([angle.value, angle.low, angle.high])))


def _draw_participation(
    ax: "Axes", analysed: Sequence[SeriesVectors], labels: Sequence[str]
) -> None:
    epochs: set[int] = set()
    for series, label, style in zip(analysed, labels, _styles()):
        leading = [row for row in series.localisations if row.index == 1]
        epochs |= {row.epoch for row in leading}
        curve = Curve.of((row.epoch, row.participation, row.participation_error) for row in leading)
        _draw_curve(ax, curve, label, style, limits=(1 / series.num_params, 1))
    ax.set_title("Leading eigenvector")
    ax.set_xlabel("epoch")
    ax.set_ylabel("participation ratio")
    ax.set_yscale("log")
    label_decades(ax)
    label_epochs(ax, sorted(epochs))


def _draw_curve(
    ax: "Axes", curve: Curve, label: str, style: dict[str, Any], *, limits: tuple[float, float]
) -> None:
    draw_band(ax, curve.epochs.tolist(), curve.low, curve.high, color=style["color"], alpha=0.28)
    _draw_bars(ax, curve, style["color"], limits=limits)
    ax.plot(curve.epochs, curve.value, marker="o", markersize=3, label=label, zorder=3, **style)


def _draw_bars(ax: "Axes", curve: Curve, color: Any, *, limits: tuple[float, float]) -> None:
    """Draw bounds of errors, up to the smallest and largest possible number."""
    low, high = limits
    room = np.stack([curve.value - low, high - curve.value]).clip(min=0)
    ax.errorbar(
        curve.epochs,
        curve.value,
        yerr=np.minimum(curve.error, room),
        fmt="none",
        ecolor=color,
        elinewidth=0.7,
        capsize=2,
    )
