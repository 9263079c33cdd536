"""Legend above the panels of a figure, and remarks in a panel's corner.

Texts are drawn exactly as given.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from landscape.figures.text import enlarged, text_width, wrap

if TYPE_CHECKING:
    from matplotlib.artist import Artist
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# For each series, the options of matplotlib for its line.
Styles = Mapping[str, Mapping[str, Any]]
Corner = Literal["upper left", "upper right"]
_Place = Literal["upper left", "upper center"]
# With more series, remarks would cover the curves.
MAX_REMARKS = 4
# A line sample and the space after a column, in inches.
_SAMPLE = 0.56


@dataclass(frozen=True)
class Legend:
    """Texts of a legend, broken into lines that fit.

    Args:
        texts: Texts in the order of the entries.
        num_columns: Number of columns side by side.
        points: Size of the letters.
    """

    texts: tuple[str, ...]
    num_columns: int
    points: float

    @classmethod
    def fit(cls, labels: Iterable[str], width: float, *, points: float = 7.5) -> "Legend":
        """Lay out labels of any length within `width` inches."""
        texts = tuple(wrap(label, width - _SAMPLE - 0.04, points=points) for label in labels)
        longest = max(
            (
                text_width(line, points=points)
                for text in texts
                for line in text.splitlines() or [""]
            ),
            default=0.0,
        )
        fitting = max(1, int(width / (longest + _SAMPLE)))
        return cls(
            texts, math.ceil(len(texts) / math.ceil(len(texts) / fitting)) if texts else 1, points
        )

    @property
    def num_lines(self) -> int:
        """Count the lines of text in the longest column.

        matplotlib fills one column after the other; the first ones may have one entry more.
        """
        per_column, longer = divmod(len(self.texts), self.num_columns)
        lines = [text.count("\n") + 1 for text in self.texts]
        starts = [
            number * per_column + min(number, longer) for number in range(self.num_columns + 1)
        ]
        return max(sum(lines[first:last]) for first, last in zip(starts, starts[1:]))

    def draw(
        self,
        fig: "Figure",
        handles: "Sequence[Artist | None]",
        *,
        at: tuple[float, float],
        loc: _Place,
        **style: Any,
    ) -> None:
        """Draw the legend on a page.

        Args:
            handles: Handle of each text; a text without a handle is left out.
            at: Position of the corner or side `loc`, in shares of the page.
            style: Further arguments of `Figure.legend`.
        """
        shown = [
            (handle, text)
            for handle, text in zip(handles, self.texts, strict=True)
            if handle is not None
        ]
        if not shown:
            return
        # The texts are set afterwards: a legend drops those that start with an underscore and
        # typesets dollar signs.
        drawn = fig.legend(
            [handle for handle, _ in shown],
            [str(number) for number in range(len(shown))],
            loc=loc,
            bbox_to_anchor=at,
            borderaxespad=0.0,
            borderpad=0.0,
            ncols=self.num_columns,
            fontsize=enlarged(self.points),
            **style,
        )
        for entry, (_, text) in zip(drawn.get_texts(), shown, strict=True):
            entry.set(text=text, parse_math=False)


def draw_remarks(
    ax: "Axes",
    remarks: Mapping[str, str],
    styles: Styles,
    *,
    title: str | None,
    corner: Corner,
    opaque: bool = False,
) -> None:
    """Write a remark on each series in a panel.

    It is beside a piece of the series' line. An example is the share of negative values.
    """
    from matplotlib.lines import Line2D

    if not remarks:
        return
    legend = ax.legend(
        [Line2D([], [], **styles[series]) for series in remarks],
        list(remarks.values()),
        loc=corner,
        title=title,
        alignment="left",
        fontsize=enlarged(6),
        handlelength=2.2,
        borderpad=0.0,
        borderaxespad=0.3,
        labelspacing=0.2,
        handletextpad=0.5,
        frameon=opaque,
        facecolor="white",
        edgecolor="none",
        framealpha=1.0,
    )
    legend.set_zorder(20)
