"""Grid of panels with accuracy by level of a distortion.

Levels are drawn as lines; sets with one condition are drawn as bars. The numbers are computed
elsewhere. Sizes are in inches.

Shapes: c = levels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from landscape.figures.observers import MARKER_EDGE, Look
from landscape.figures.page import Page
from landscape.figures.text import text_width, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_TICK_POINTS, _LABEL_POINTS, _TEXT_POINTS, _TITLE_POINTS = 5.5, 6.0, 6.5, 7.5
_PANEL_HEIGHT, _GAP, _LEFT, _RIGHT, _WIDTH = 1.05, 0.14, 0.46, 0.08, 7.0
_TITLE, _LABEL_LINE = 0.18, 0.1
# Limits of the axis relative to its highest tick; above it is room for the markers of bars.
_LIMITS = (-0.03, 1.1)
_BAR_MARKER = 0.055
# Choices of the highest tick: accuracies over many classes may all be small.
_TOPS = (0.02, 0.04, 0.1, 0.2, 0.4, 1.0)


@dataclass(frozen=True, eq=False)
class LevelValues:
    """Accuracies of one observer in one panel.

    Args:
        look: Equal looks are the same observer in every panel.
        value: Accuracy at each level; NaN where the level was not answered.
        low, high: Ends of the band of people, or of the whiskers of others; NaN for none.
    """

    look: Look
    value: Float[np.ndarray, " c"]
    low: Float[np.ndarray, " c"]
    high: Float[np.ndarray, " c"]


@dataclass(frozen=True, kw_only=True)
class ConditionPanel:
    """Contents of the panel of one data set.

    Args:
        ticks: Texts of the levels in the order of the axis; with one level the panel has bars.
        hollow: Whether the markers of a level are hollow.
        observers: Values of each observer; none for an empty panel.
        chance: Accuracy of guessing.
        absent: Text of an empty panel.
    """

    title: str
    axis_label: str
    ticks: tuple[str, ...]
    hollow: tuple[bool, ...]
    observers: tuple[LevelValues, ...]
    chance: float
    absent: str = "no answers"


def draw_condition_panels(
    panels: Sequence[ConditionPanel],
    looks: Sequence[Look],
    *,
    title: str,
    note: str,
    num_columns: int = 4,
) -> "Figure":
    """Draw the panels row by row, with one legend above.

    Args:
        looks: Entries of the legend; bars are in its order.
    """
    num_columns = min(num_columns, len(panels))
    # Panels of any number of columns are equally wide.
    panel_width = (_WIDTH - _LEFT - _RIGHT - 3 * _GAP) / 4
    last = (len(panels) - 1) // num_columns * num_columns
    rooms = [_room_below(panel, panel_width) for panel in panels]
    page = Page(
        num_columns=num_columns,
        num_rows=math.ceil(len(panels) / num_columns),
        panel=(panel_width, _PANEL_HEIGHT),
        title=title,
        note=note,
        left=_LEFT,
        right=_RIGHT,
        gap=_GAP,
        labels=max(rooms[max(0, len(panels) - num_columns) :]) + 0.04,
        panel_titles=_TITLE,
        row_gap=max(rooms[:last], default=0.0) + _TITLE + 0.08,
        legend=tuple(look.label for look in looks),
    )
    fig, axes = page.figure(sharey=True)
    top = _top_of(panels)
    for ax in axes[len(panels) :]:
        ax.set_axis_off()
    for at, (ax, panel) in enumerate(zip(axes, panels, strict=False)):
        ax.set_title(
            panel.title, fontsize=_fitting_points(panel.title, panel_width), parse_math=False
        )
        if at % num_columns == 0:
            ax.set_ylabel("Classification accuracy", fontsize=_LABEL_POINTS + 0.5)
        _draw_panel(ax, panel, looks, width=panel_width, top=top)
    axes[0].set_ylim(*(top * limit for limit in _LIMITS))
    ticks = [top * quarter / 4 for quarter in range(5)]
    axes[0].set_yticks(ticks, [f"{tick:.3g}".replace("0.", ".") for tick in ticks])
    page.write(fig, axes, [look.sample() for look in looks])
    return fig


def _top_of(panels: Sequence[ConditionPanel]) -> float:
    """Choose the highest tick of an axis that holds all values.

    The values include intervals and chance.
    """
    numbers = [
        number
        for panel in panels
        for values in panel.observers
        for number in (*values.value, *values.high)
        if math.isfinite(number)
    ]
    largest = max([*numbers, *(panel.chance for panel in panels)])
    return next(top for top in _TOPS if largest <= top or top == _TOPS[-1])


def _fitting_points(title: str, width: float) -> float:
    """Choose the size of the letters so that a title fits.

    Bold letters are wider than the measured ones.
    """
    whole = 1.15 * text_width(title, points=_TITLE_POINTS)
    return _TITLE_POINTS * min(1.0, width / whole) if title else _TITLE_POINTS


def _room_below(panel: ConditionPanel, width: float) -> float:
    """Compute the height for the labels of an axis."""
    if len(panel.ticks) == 1:
        return 0.1
    label = (
        0.03 + _LABEL_LINE * (_axis_label(panel, width).count("\n") + 1)
        if panel.axis_label
        else 0.0
    )
    return 0.07 + _TickTexts.fit(panel, width).height + label


def _axis_label(panel: ConditionPanel, width: float) -> str:
    return wrap(panel.axis_label, width, points=_LABEL_POINTS)


@dataclass(frozen=True)
class _TickTexts:
    """Texts of the levels, and whether they are turned to fit side by side."""

    texts: tuple[str, ...]
    are_turned: bool

    @classmethod
    def fit(cls, panel: ConditionPanel, width: float) -> "_TickTexts":
        """Choose texts that fit, without the leading zero if needed."""
        step = width / (len(panel.ticks) - 0.2)
        short = tuple(text[1:] if text.startswith("0.") else text for text in panel.ticks)
        for texts in (panel.ticks, short):
            widths = [text_width(text, points=_TICK_POINTS) for text in texts]
            if all(
                (first + second) / 2 + 0.03 <= step for first, second in zip(widths, widths[1:])
            ):
                return cls(texts, are_turned=False)
        return cls(panel.ticks, are_turned=True)

    @property
    def height(self) -> float:
        """Compute the height below the axis, in inches."""
        return (
            max(text_width(text, points=_TICK_POINTS) for text in self.texts)
            if self.are_turned
            else 0.08
        )


def _draw_panel(
    ax: "Axes", panel: ConditionPanel, looks: Sequence[Look], *, width: float, top: float
) -> None:
    if not panel.observers:
        ax.set_xticks([])
        ax.spines[["left", "bottom"]].set(color="0.75", linestyle=(0, (2, 2)))
        ax.tick_params(axis="y", color="0.75")
        ax.text(
            0.5,
            0.5,
            panel.absent,
            transform=ax.transAxes,
            ha="center",
            va="center",
            fontsize=_TEXT_POINTS,
            color="0.35",
        )
        return
    ax.axhline(panel.chance, color="0.45", linestyle=":", linewidth=0.9, zorder=1.5)
    if len(panel.ticks) == 1:
        _draw_bars(ax, panel, looks, top=top)
        return
    ax.set_xlim(-0.4, len(panel.ticks) - 0.6)
    ticks = _TickTexts.fit(panel, width)
    ax.set_xticks(range(len(panel.ticks)), ticks.texts, fontsize=_TICK_POINTS, parse_math=False)
    ax.tick_params(axis="x", pad=2, rotation=90 if ticks.are_turned else 0)
    ax.set_xlabel(_axis_label(panel, width), fontsize=_LABEL_POINTS, labelpad=2, parse_math=False)
    # People are drawn last, above all others.
    for order, values in enumerate(
        sorted(panel.observers, key=lambda values: values.look.is_people)
    ):
        _draw_line(ax, panel, values, order=3 + order)


def _draw_line(ax: "Axes", panel: ConditionPanel, values: LevelValues, *, order: int) -> None:
    look, x = values.look, np.arange(len(panel.ticks))
    if look.is_people:
        ax.fill_between(
            x, values.low, values.high, color=look.color, alpha=0.16, linewidth=0, zorder=1
        )
    elif np.isfinite(values.low).any():
        ax.vlines(x, values.low, values.high, color=look.color, linewidth=0.7, zorder=order)
    ax.plot(
        x,
        values.value,
        color=look.color,
        linestyle="-",
        linewidth=1.1 if look.is_people else 0.8,
        zorder=order,
    )
    hollow = np.array(panel.hollow)
    marker: dict[str, Any] = {"linestyle": "none", "marker": look.marker, "zorder": order}
    full, empty = x[~hollow], x[hollow]
    ax.plot(
        full, values.value[full], color=look.color, markersize=look.size, **MARKER_EDGE, **marker
    )
    ax.plot(
        empty,
        values.value[empty],
        color=look.color,
        markersize=0.85 * look.size,
        markerfacecolor="white",
        markeredgewidth=0.7,
        **marker,
    )


def _draw_bars(ax: "Axes", panel: ConditionPanel, looks: Sequence[Look], *, top: float) -> None:
    """Draw bars with whiskers and, above, the marker of the observer."""
    ax.set_xlim(-0.7, len(looks) - 0.3)
    ax.set_xticks([])
    places = {look: at for at, look in enumerate(looks)}
    for values in panel.observers:
        look, x = values.look, places[values.look]
        value, low, high = (
            float(numbers[0]) for numbers in (values.value, values.low, values.high)
        )
        ax.bar(x, value, width=0.72, color=look.color, linewidth=0, zorder=2)
        if math.isfinite(low):
            for color, width, order in (("white", 2.0, 3), ("0.25", 0.9, 4)):
                ax.plot(
                    [x, x],
                    [low, high],
                    color=color,
                    linestyle="-",
                    linewidth=width,
                    zorder=order,
                    solid_capstyle="butt",
                )
        above = np.nanmax([value, high]) + _BAR_MARKER * top
        marker: dict[str, Any] = {
            "linestyle": "none",
            "marker": look.marker,
            "markersize": 0.9 * look.size,
        }
        ax.plot([x], [above], color=look.color, zorder=5, **marker, **MARKER_EDGE)
