"""Figure 3: distribution of the top Hessian eigenvalues over training, by architecture.

One panel per epoch, one density curve per series, shared axes. Sizes are in inches and fixed: the
panels of two figures with the same number of epochs have the same size, whatever text is around
them.

Shapes: m = grid points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landscape.figures.eigenvalue_layout import Curve, Layout, footnote, make_layout
from landscape.figures.legend import MAX_REMARKS, Corner, Legend, Styles, draw_remarks
from landscape.figures.page import paper_width
from landscape.figures.page_options import PageOptions
from landscape.figures.samples import EigenvalueSample
from landscape.figures.style import new_figure, paper_style
from landscape.figures.text import STAMP_BOX, UNAUDITED, enlarged, wrap, wrapped_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNIT = "nat per squared parameter"
# With more series than this, filled areas blend into grey.
_MAX_FILLED = 2
# Below this share of the highest peak a line coincides with the base line.
_INVISIBLE = 1e-3


def figure3(
    samples: Sequence[EigenvalueSample],
    *,
    epochs: Sequence[int] | None = None,
    title: str | None = None,
    clip_quantile: float = 0.0,
    keep_unconverged: bool = False,
    unaudited: bool = False,
    page_options: PageOptions | None = None,
) -> "Figure":
    """Draw the distribution of the top-k eigenvalues.

    There is a panel per epoch, and a density curve per series.

    The horizontal axis is asinh(lambda / w), shared by all panels; the curves are Gaussian kernel
    densities in that coordinate, so every one encloses area 1 as drawn. The side of negative values
    is shaded, ticks below a curve are its single values, and the percentages (up to four series)
    are the shares of negative values. The footnote gives the numbers behind the curves and
    everything that was left out.

    Args:
        samples: At most one per series and epoch, in the order of the legend. A series without a
            sample at some epoch has no curve there, and the panel says so.
        epochs: Epochs that get a panel; by default `epochs_to_draw` of those that any series has.
        title: Heading of the figure; none by default, as in papers.
        clip_quantile: Let the axis end at this quantile of all values on either side, in [0, 0.5),
            and state how many values lie beyond. The curves still count them. 0 shows everything.
        keep_unconverged: Draw the values whose residual missed the tolerance too, and say how many
            they are, instead of leaving them out. Needed for power iteration as published, where
            most values do not converge.
        unaudited: Stamp the figure: nobody has checked that these are second derivatives of the
            whole model.
        page_options: Width, columns, letters and axis; by default those described here.

    Raises:
        ValueError: If there are no samples, more than `MAX_SERIES` series, two samples for one
            series and epoch, or a requested epoch that no series has.
        StoreError: If no value is left to draw.
    """
    page_options = page_options or PageOptions()
    layout = make_layout(
        samples,
        epochs=epochs,
        clip_quantile=clip_quantile,
        keep_unconverged=keep_unconverged,
        linear=page_options.linear,
    )
    with paper_style(page_options.scale):
        page = _Page.fit(layout, page_options, title=title, unaudited=unaudited)
        return _draw(layout, page)


@dataclass(frozen=True)
class _Page:
    """Sizes in inches, and the texts around the panels, broken into lines that fit."""

    width: float
    num_columns: int
    num_rows: int
    title: str
    legend: Legend
    stamp: str
    label: str
    note: str

    line = 0.155  # height of a line of the legend or the title
    note_line = 0.106
    left, right, column_gap = 0.5, 0.12, 0.2
    panel_title, row_gap, tick_labels = 0.18, 0.32, 0.2

    @classmethod
    def fit(
        cls, layout: Layout, page_options: PageOptions, *, title: str | None, unaudited: bool
    ) -> "_Page":
        num_panels = len(layout.epochs)
        num_columns = 2 if num_panels == 4 else min(3, num_panels)
        num_columns = min(page_options.num_columns or num_columns, len(layout.epochs))
        width = page_options.page_width(paper_width(num_columns))
        page = cls(
            width=width,
            num_columns=num_columns,
            num_rows=math.ceil(num_panels / num_columns),
            title=wrap(title or "", width - 0.4, points=10),
            # The legend is centred on the panels, not on the page.
            legend=Legend.fit(layout.labels.values(), width - 0.4),
            stamp=UNAUDITED * unaudited,
            label=wrapped_label(
                f"Hessian eigenvalue $\\lambda$ (nat per squared parameter){layout.axis.drawn_at}",
                width - 0.1,
            ),
            note=wrap(footnote(layout), width - 0.1, points=6),
        )
        page_options.check_panel(page.panel_width, num_columns)
        return page

    @property
    def panel_width(self) -> float:
        return (
            self.width - self.left - self.right - (self.num_columns - 1) * self.column_gap
        ) / self.num_columns

    @property
    def panel_height(self) -> float:
        return 1.3 if self.num_columns == 3 else 1.55

    @property
    def bottom(self) -> float:
        """Compute the height of footnote, axis label and tick labels."""
        note = 0.08 + self.note_line * self.note.count("\n") + 0.1
        return note + self.label_height + self.tick_labels

    @property
    def label_height(self) -> float:
        return 0.2 + 0.13 * self.label.count("\n")

    @property
    def tops(self) -> tuple[float, float, float, float]:
        """Compute the distances from the upper edge to what lies below it.

        These are the stamp, the title, the legend and the panels.
        """
        title = 0.06 + 0.24 * bool(self.stamp)
        legend = title + (0.18 * (self.title.count("\n") + 1) + 0.04 if self.title else 0.0)
        return (
            0.06,
            title,
            legend,
            legend + self.legend.num_lines * self.line + 0.02 + self.panel_title,
        )

    @property
    def height(self) -> float:
        panels = self.num_rows * self.panel_height + (self.num_rows - 1) * self.row_gap
        return self.tops[3] + panels + self.bottom


def _draw(layout: Layout, page: _Page) -> "Figure":
    from matplotlib import rcParams

    fig = new_figure(page.width, page.height)
    spec = fig.add_gridspec(
        page.num_rows,
        page.num_columns,
        left=page.left / page.width,
        right=1 - page.right / page.width,
        bottom=page.bottom / page.height,
        top=1 - page.tops[3] / page.height,
        wspace=page.column_gap / page.panel_width,
        hspace=page.row_gap / page.panel_height,
    )
    axes = list(spec.subplots(sharex=True, sharey=True, squeeze=False).flat)
    styles = dict(zip(layout.labels, rcParams["axes.prop_cycle"], strict=False))
    corner = _set_axes(axes, layout, page)
    for ax, epoch in zip(axes, layout.epochs, strict=False):
        _draw_panel(ax, layout, epoch, styles, corner=corner)
    _write_around(fig, layout, page, styles)
    return fig


def _set_axes(axes: "Sequence[Axes]", layout: Layout, page: _Page) -> Corner:
    """Set scale, limits and ticks once for all panels, which share them.

    Returns the corner for the remarks.
    """
    from matplotlib.ticker import FixedFormatter, FixedLocator, MaxNLocator, NullFormatter

    low, high = layout.axis.inverse(np.array(layout.limits)).tolist()
    ticks = layout.axis.ticks(
        low, high, gap=0.27 / page.panel_width * (layout.limits[1] - layout.limits[0])
    )
    first = axes[0]
    name, settings = layout.axis.scale
    first.set_xscale(name, **settings)
    first.set_xlim(low, high)
    first.xaxis.set_major_locator(FixedLocator(ticks.major))
    first.xaxis.set_major_formatter(FixedFormatter(ticks.labels))
    first.xaxis.set_minor_locator(FixedLocator(ticks.minor))
    first.xaxis.set_minor_formatter(NullFormatter())
    corner, top = _headroom(layout, page)
    first.set_ylim(-_rug_row(layout) * (len(layout.labels) + 0.5), top)
    # Below zero there are no densities, only the rows of ticks.
    first.yaxis.set_major_locator(
        FixedLocator([tick for tick in MaxNLocator(4).tick_values(0.0, top) if 0 <= tick <= top])
    )
    num_panels = len(layout.epochs)
    for ax in axes[num_panels:]:
        ax.set_axis_off()
    # The lowest panel of every column, also where the last row is not full.
    for ax in axes[max(0, num_panels - page.num_columns) : num_panels]:
        ax.tick_params(axis="x", which="both", labelbottom=True)
    return corner


def _headroom(layout: Layout, page: _Page) -> tuple[Corner, float]:
    """Choose the corner for the remarks and the density axis' end.

    The end keeps the remarks off the curves. The corner is the left one, on the negative side,
    unless the right one is clearly emptier.
    """
    remarks = [layout.remark(series, epoch) for series in layout.labels for epoch in layout.epochs]
    envelope = layout.envelope
    peak = float(envelope.max())
    share = min(1.0, (0.45 + 0.05 * max(map(len, remarks))) / page.panel_width)
    points = max(1, int(share * envelope.size))
    beside = {
        "upper left": float(envelope[:points].max()),
        "upper right": float(envelope[-points:].max()),
    }
    corner: Corner = (
        "upper left" if beside["upper left"] <= 1.5 * beside["upper right"] else "upper right"
    )
    rows = len(layout.labels) + 1 if len(layout.labels) <= MAX_REMARKS else 0
    fraction = (0.08 + 0.112 * rows) / page.panel_height
    rug = _rug_row(layout) * (len(layout.labels) + 0.5)
    # The axis reaches from -rug to top, and the remarks cover the upper fraction of it. So the
    # curves beside them need top - fraction * (top + rug) >= beside; solved for top.
    return corner, max(1.06 * peak, (beside[corner] + fraction * rug) / (1 - fraction))


def _rug_row(layout: Layout) -> float:
    """Compute the height of a row of ticks, in density units.

    The ticks are below the curves.
    """
    return float(layout.envelope.max()) * min(0.07, 0.35 / len(layout.labels))


def _draw_panel(ax: "Axes", layout: Layout, epoch: int, styles: Styles, *, corner: Corner) -> None:
    ax.set_title("Initialisation" if epoch == 0 else f"Epoch {epoch}")
    ax.axvspan(ax.get_xlim()[0], 0.0, color="0.94", zorder=-2, linewidth=0)
    ax.axvline(0.0, color="0.35", linewidth=0.6, zorder=-1)
    ax.axhline(0.0, color="0.35", linewidth=0.4, zorder=-1)
    x = layout.axis.inverse(layout.grid)
    invisible = _INVISIBLE * float(layout.envelope.max())
    say_shares = len(layout.labels) <= MAX_REMARKS
    remarks = {}
    for row, (series, style) in enumerate(styles.items()):
        curve = layout.curves.get((series, epoch))
        drawn = curve is not None and curve.drawn.size > 0
        if curve is not None and drawn:
            line = np.where(curve.density > invisible, curve.density, np.nan)
            ax.plot(x, line, label=layout.labels[series], zorder=3 + row, **style)
            if len(layout.labels) <= _MAX_FILLED:
                ax.fill_between(
                    x, curve.density, color=style["color"], alpha=0.12, linewidth=0, zorder=1
                )
            _draw_rug(ax, layout, curve, row=row, color=style["color"])
        if say_shares or not drawn:
            remarks[series] = layout.remark(series, epoch)
    draw_remarks(
        ax, remarks, styles, title="share of $\\lambda$ < 0" if say_shares else None, corner=corner
    )


def _draw_rug(ax: "Axes", layout: Layout, curve: Curve, *, row: int, color: str) -> None:
    """Draw one tick per value.

    Values closer together than print resolves share a tick.
    """
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    low, high = layout.limits
    step = (high - low) / 1000
    inside = curve.drawn[(curve.drawn >= low) & (curve.drawn <= high)]
    x = layout.axis.inverse(np.unique(np.round(inside / step)) * step)
    height = _rug_row(layout)
    top = -height * (row + 0.3)
    vertices = np.column_stack([np.repeat(x, 2), np.tile([top, top - 0.8 * height], len(x))])
    # One path for all, which keeps vector files small.
    path = Path(vertices, np.tile([Path.MOVETO, Path.LINETO], len(x)))
    ax.add_artist(PathPatch(path, fill=False, edgecolor=color, linewidth=0.35, zorder=2))


def _write_around(fig: "Figure", layout: Layout, page: _Page, styles: Styles) -> None:
    """Write legend, title, axis labels, footnote and stamp."""
    from matplotlib.lines import Line2D

    down = [1 - distance / page.height for distance in page.tops]
    centre = (page.left + page.width - page.right) / 2 / page.width
    middle = (page.bottom + page.height - page.tops[3]) / 2 / page.height
    note_top = (page.bottom - page.tick_labels - page.label_height) / page.height
    # A long label is centred on the page.
    x = 0.5 if "\n" in page.label else centre
    fig.supxlabel(page.label, x=x, y=note_top + 0.03 / page.height)
    fig.supylabel(f"Density per unit of {layout.axis.coordinate}", x=0.05 / page.width, y=middle)
    fig.text(
        0.06 / page.width,
        note_top,
        page.note,
        fontsize=enlarged(6),
        color="0.25",
        va="top",
        linespacing=1.25,
        parse_math=False,
    )
    if page.title:
        fig.suptitle(page.title, y=down[1], parse_math=False)
    page.legend.draw(
        fig,
        [Line2D([], [], **style) for style in styles.values()],
        at=(centre, down[2]),
        loc="upper center",
    )
    if page.stamp:
        fig.text(
            centre,
            down[0],
            page.stamp,
            ha="center",
            va="top",
            fontsize=enlarged(6.5),
            weight="bold",
            bbox=STAMP_BOX,
        )
