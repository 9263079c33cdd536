"""Panels on a page of fixed size.

Title and legend are above, a note is below, and nothing crosses the edge.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from landscape.figures.legend import Legend
from landscape.figures.page_options import PageOptions
from landscape.figures.style import new_figure
from landscape.figures.text import enlarged, wrap

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours of the style's cycle, by meaning.
MEASURED: dict[str, Any] = {"color": "#0072B2", "linestyle": "-", "linewidth": 1.2, "zorder": 3}
PREDICTED: dict[str, Any] = {
    "color": "#D55E00",
    "linestyle": (0, (4, 1.5)),
    "linewidth": 1.1,
    "zorder": 4,
}
MISSING: dict[str, Any] = {
    "color": "black",
    "linestyle": "none",
    "marker": "x",
    "markersize": 3.5,
    "zorder": 5,
}

_NOTE_POINTS, _LEGEND_POINTS, _TITLE_POINTS = 6.0, 7.0, 9.0
_NOTE_LINE, _LEGEND_LINE, _TITLE_LINE = 0.106, 0.15, 0.17


def paper_width(num_columns: int) -> float:
    """Return the width of a figure, in inches.

    Several panels take the two columns of a paper; a single panel needs less.
    """
    return 7.0 if num_columns > 1 else 4.5


@dataclass(frozen=True, kw_only=True)
class Page:
    """Sizes in inches.

    Attributes:
        panel: Width and height of a panel.
        left, right: Room beside the row, for labels and colour bars.
        gap: Distance between panels.
        labels: Height under the panels for tick labels and axis labels.
        panel_titles: Height above the panels.
        legend: Labels of the lines in the panels, in the order of the legend; any text.
        num_rows: Rows of panels; all have `num_columns`.
        row_gap: Distance between rows, for the labels of the upper and the titles of the lower
            panels.
    """

    num_columns: int
    panel: tuple[float, float]
    title: str
    note: str
    left: float = 0.6
    right: float = 0.15
    gap: float = 0.18
    labels: float = 0.42
    panel_titles: float = 0.0
    legend: tuple[str, ...] = ()
    num_rows: int = 1
    row_gap: float = 0.0

    @property
    def width(self) -> float:
        return (
            self.left
            + self.num_columns * self.panel[0]
            + (self.num_columns - 1) * self.gap
            + self.right
        )

    @property
    def title_lines(self) -> list[str]:
        # Bold letters are wider than the measured ones.
        return wrap(
            self.title, self.width - self.left - 0.1, points=1.15 * _TITLE_POINTS
        ).splitlines()

    @property
    def note_lines(self) -> list[str]:
        return wrap(self.note, self.width - 0.12, points=_NOTE_POINTS).splitlines()

    @property
    def fitted_legend(self) -> Legend:
        return Legend.fit(self.legend, self.width - self.left - 0.05, points=_LEGEND_POINTS)

    @property
    def bottom(self) -> float:
        """Compute the distance from the lower edge to the panels."""
        return (
            0.08
            + _NOTE_LINE * len(self.note_lines)
            + (0.06 if self.note_lines else 0.0)
            + self.labels
        )

    @property
    def top(self) -> float:
        """Compute the distance from the upper edge to the panels."""
        return (
            self.legend_top + _LEGEND_LINE * self.fitted_legend.num_lines + 0.08 + self.panel_titles
        )

    @property
    def legend_top(self) -> float:
        return 0.07 + _TITLE_LINE * len(self.title_lines) + (0.04 if self.title_lines else 0.0)

    @property
    def height(self) -> float:
        return (
            self.top
            + self.num_rows * self.panel[1]
            + (self.num_rows - 1) * self.row_gap
            + self.bottom
        )

    def fitted(self, page_options: PageOptions, *, keep_shape: bool = False) -> "Page":
        """Return the page at the width that is asked for; only its panels change.

        Args:
            keep_shape: Whether panels keep the ratio of their sides.

        Raises:
            ValueError: If they become too narrow.
        """
        if page_options.width is None and page_options.scale == 1:
            return self
        more = (page_options.page_width(self.width) - self.width) / self.num_columns
        width, height = self.panel
        page_options.check_panel(width + more, self.num_columns)
        height *= (width + more) / width if keep_shape else 1.0
        return replace(self, panel=(width + more, height))

    def figure(self, *, sharey: bool = False, **subplot: Any) -> "tuple[Figure, list[Axes]]":
        """Create a figure with its panels, empty."""
        fig = new_figure(self.width, self.height)
        spec = fig.add_gridspec(
            self.num_rows,
            self.num_columns,
            left=self.left / self.width,
            right=1 - self.right / self.width,
            bottom=self.bottom / self.height,
            top=1 - self.top / self.height,
            wspace=self.gap / self.panel[0],
            hspace=self.row_gap / self.panel[1],
        )
        axes = list(spec.subplots(sharey=sharey, squeeze=False, subplot_kw=subplot).flat)
        for axis in (axis for ax in axes for axis in ax._axis_map.values()):
            # Small and large numbers share a power of ten at the end of the axis: short tick
            # labels.
            axis.get_major_formatter().set_powerlimits((-3, 4))
        return fig, axes

    def write(
        self, fig: "Figure", axes: "Sequence[Axes]", handles: "Sequence[Artist] | None" = None
    ) -> None:
        """Write the title, one legend for all panels, and the note.

        Args:
            handles: Artist beside each text of the legend; by default the line of the panels with
                its label.
        """
        if self.title_lines:
            fig.text(
                self.left / self.width,
                1 - 0.07 / self.height,
                "\n".join(self.title_lines),
                va="top",
                fontsize=enlarged(_TITLE_POINTS),
                weight="bold",
                parse_math=False,
            )
        lines = {line.get_label(): line for ax in reversed(axes) for line in reversed(ax.lines)}
        shown = [lines.get(label) for label in self.legend] if handles is None else handles
        at = (self.left / self.width, 1 - self.legend_top / self.height)
        style = {"columnspacing": 1.2, "handlelength": 2.2}
        self.fitted_legend.draw(fig, shown, at=at, loc="upper left", **style)
        note = "\n".join(self.note_lines)
        y = (self.bottom - self.labels - 0.06) / self.height
        fig.text(
            0.06 / self.width,
            y,
            note,
            fontsize=enlarged(_NOTE_POINTS),
            color="0.25",
            va="top",
            linespacing=1.25,
            parse_math=False,
        )
