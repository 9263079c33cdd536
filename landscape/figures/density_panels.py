"""Density of the whole spectrum: a panel per epoch, a curve per series.

Each curve has its band, and the exact spectrum behind it where that is known. Contents and
smoothing are in density_layout.py. The axis of the densities is logarithmic, since a single outlier
is one of millions. Sizes are in inches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landscape.figures.density_layout import (
    DensityLayout,
    DensitySample,
    footnote,
    make_density_layout,
)
from landscape.figures.legend import MAX_REMARKS, Legend, Styles, draw_remarks
from landscape.figures.page import paper_width
from landscape.figures.page_options import PageOptions
from landscape.figures.style import new_figure, paper_style
from landscape.figures.text import STAMP_BOX, UNAUDITED, enlarged, wrap, wrapped_label

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


# Inches between two panels.
_BETWEEN = 0.3


def density_figure(
    samples: Sequence[DensitySample],
    *,
    epochs: Sequence[int] | None = None,
    title: str | None = None,
    width: float | None = None,
    unaudited: bool = False,
    page_options: PageOptions | None = None,
) -> "Figure":
    """Draw the density of all eigenvalues, with bands of two standard errors.

    The errors are over probes and batches. The corner of a panel (up to four series) shows the
    shares of negative eigenvalues, each with its whole standard error. A series without a sample at
    some epoch has no curve there, and the panel says so.

    Args:
        samples: At most one per series and epoch, in the order of the legend.
        epochs: Epochs that get a panel; by default `epochs_to_draw` of those that any series has.
        title: Heading of the figure; none by default.
        width: Standard deviation of the Gaussian kernel, in units of the drawn coordinate u; by
            default 1/150 of the axis. The eigenvalues that a node represents lie anywhere between
            its neighbours, so its weight is first spread to them.
        unaudited: Stamp the figure, as in `figure3`.
        page_options: Width, columns, letters and axis; by default those described here.

    Raises:
        ValueError: If there are no samples, more than `MAX_SERIES` series, two samples for one
            series and epoch, an epoch that no series has, or a width that is not positive.
    """
    page_options = page_options or PageOptions()
    layout = make_density_layout(samples, epochs=epochs, width=width, linear=page_options.linear)
    with paper_style(page_options.scale):
        page = _Page.fit(layout, page_options, title=title, unaudited=unaudited)
        return _draw(layout, page)


def check_page(num_panels: int, page_options: PageOptions | None) -> None:
    """Refuse a page on which so many panels have no room.

    Raises:
        ValueError: If so.
    """
    _columns(num_panels, page_options or PageOptions())


def _columns(num_panels: int, page_options: PageOptions) -> tuple[int, float]:
    """Return the number of panels side by side, and the width of the page in inches."""
    num_columns = 2 if num_panels in (2, 4) else min(3, num_panels)
    num_columns = min(page_options.num_columns or num_columns, num_panels)
    width = page_options.page_width(paper_width(num_columns))
    page_options.check_panel(width / num_columns - _BETWEEN, num_columns)
    return num_columns, width


@dataclass(frozen=True)
class _Page:
    """Sizes, and the texts around the panels, broken into lines that fit."""

    width: float
    num_columns: int
    num_rows: int
    title: str
    legend: Legend
    stamp: str
    label: str
    note: str

    left, right, panel_height, row_gap = 0.55, 0.12, 1.75, 0.35
    legend_line, title_line, note_line = 0.155, 0.18, 0.106

    @classmethod
    def fit(
        cls, layout: DensityLayout, page_options: PageOptions, *, title: str | None, unaudited: bool
    ) -> "_Page":
        num_columns, width = _columns(len(layout.epochs), page_options)
        return cls(
            width=width,
            num_columns=num_columns,
            num_rows=math.ceil(len(layout.epochs) / num_columns),
            title=wrap(title or "", width - 0.4, points=10),
            legend=Legend.fit(layout.labels.values(), width - 0.4),
            stamp=UNAUDITED * unaudited,
            label=wrapped_label(
                f"Hessian eigenvalue $\\lambda$ (nat per squared parameter){layout.axis.drawn_at}",
                width - 0.1,
            ),
            note=wrap(footnote(layout, shares=_says_shares(layout)), width - 0.1, points=6),
        )

    @property
    def panel_width(self) -> float:
        return self.width / self.num_columns - _BETWEEN

    @property
    def bottom(self) -> float:
        """Compute the distance from the lower edge to the panels."""
        return 0.2 + self.label_height + self.note_line * self.note.count("\n")

    @property
    def label_height(self) -> float:
        """Compute the height of tick labels and axis label."""
        return 0.42 + 0.13 * self.label.count("\n")

    @property
    def tops(self) -> tuple[float, float, float, float]:
        """Compute the distances from the upper edge to what lies below it.

        These are the stamp, the title, the legend and the panels.
        """
        title = 0.06 + 0.26 * bool(self.stamp)
        legend = title + (
            self.title_line * (self.title.count("\n") + 1) + 0.04 if self.title else 0.0
        )
        return 0.06, title, legend, legend + self.legend_line * self.legend.num_lines + 0.24

    @property
    def height(self) -> float:
        panels = self.panel_height * self.num_rows + self.row_gap * (self.num_rows - 1)
        return self.tops[3] + panels + self.bottom


def _says_shares(layout: DensityLayout) -> bool:
    return len(layout.labels) <= MAX_REMARKS


def _draw(layout: DensityLayout, page: _Page) -> "Figure":
    from matplotlib import rcParams

    fig = new_figure(page.width, page.height)
    spec = fig.add_gridspec(
        page.num_rows,
        page.num_columns,
        left=page.left / page.width,
        right=1 - page.right / page.width,
        bottom=page.bottom / page.height,
        top=1 - page.tops[3] / page.height,
        wspace=0.08,
        hspace=page.row_gap / page.panel_height,
    )
    axes = list(spec.subplots(sharex=True, sharey=True, squeeze=False).flat)
    styles = dict(zip(layout.labels, rcParams["axes.prop_cycle"], strict=False))
    num_panels = len(layout.epochs)
    for ax, epoch in zip(axes, layout.epochs):
        _draw_panel(ax, layout, epoch, styles)
    for ax in axes[num_panels:]:
        ax.set_axis_off()
    for ax in axes[max(0, num_panels - page.num_columns) : num_panels]:
        ax.tick_params(axis="x", which="both", labelbottom=True)
    _set_axes(axes[0], layout, page)
    _write_around(fig, layout, page, styles)
    return fig


def _draw_panel(ax: "Axes", layout: DensityLayout, epoch: int, styles: Styles) -> None:
    ax.set_title("Initialisation" if epoch == 0 else f"Epoch {epoch}")
    x = layout.axis.inverse(layout.grid)
    ax.axvline(0.0, color="0.35", linewidth=0.6, zorder=-1)
    remarks = {}
    for row, (series, style) in enumerate(styles.items()):
        curve = layout.curves.get((series, epoch))
        if curve is not None:
            if curve.exact is not None:
                grey = np.maximum(curve.exact, layout.floor)
                ax.fill_between(
                    x, layout.floor, grey, color="0.8", linewidth=0, zorder=0, label="exact"
                )
                ax.plot(x, layout.above_floor(curve.exact), color="0.45", linewidth=0.6, zorder=1)
            low, high = np.maximum(curve.low, layout.floor), np.maximum(curve.high, layout.floor)
            ax.fill_between(
                x, low, high, color=style["color"], alpha=0.25, linewidth=0, zorder=2, label="band"
            )
            ax.plot(
                x,
                layout.above_floor(curve.value),
                zorder=3 + row,
                label=layout.labels[series],
                **style,
            )
        if curve is None or _says_shares(layout):
            remarks[series] = layout.remark(series, epoch)
    title = "share of $\\lambda$ < 0" if _says_shares(layout) else None
    draw_remarks(ax, remarks, styles, title=title, corner="upper left", opaque=True)


def _set_axes(first: "Axes", layout: DensityLayout, page: _Page) -> None:
    """Set scale, limits and ticks once for all panels, which share them."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

    low, high = layout.axis.inverse(np.array(layout.limits)).tolist()
    ticks = layout.axis.ticks(
        low, high, gap=0.3 / page.panel_width * (layout.limits[1] - layout.limits[0])
    )
    name, settings = layout.axis.scale
    first.set_xscale(name, **settings)
    first.set_xlim(low, high)
    first.xaxis.set_major_locator(FixedLocator(ticks.major))
    first.xaxis.set_major_formatter(FixedFormatter(ticks.labels))
    first.xaxis.set_minor_locator(FixedLocator(ticks.minor))
    first.xaxis.set_minor_formatter(NullFormatter())
    first.set_yscale("log")
    # Room above the highest curve keeps the remarks off it: a share of the axis, which is
    # logarithmic, so that the room is a power of peak / floor.
    rows = len(layout.labels) + 1 if _says_shares(layout) else len(layout.labels)
    share = min((0.1 + 0.112 * rows) / page.panel_height, 0.6)
    first.set_ylim(
        layout.floor, layout.peak * (layout.peak / layout.floor) ** (share / (1 - share))
    )


def _write_around(fig: "Figure", layout: DensityLayout, page: _Page, styles: Styles) -> None:
    """Write stamp, title, legend, axis labels and footnote."""
    from matplotlib.lines import Line2D

    down = [1 - distance / page.height for distance in page.tops]
    if page.stamp:
        fig.text(
            0.5,
            down[0],
            page.stamp,
            ha="center",
            va="top",
            fontsize=enlarged(6.5),
            weight="bold",
            bbox=STAMP_BOX,
        )
    if page.title:
        fig.suptitle(page.title, y=down[1], parse_math=False)
    page.legend.draw(
        fig,
        [Line2D([], [], **style) for style in styles.values()],
        at=(0.5, down[2]),
        loc="upper center",
    )
    note_top = (page.bottom - page.label_height) / page.height
    fig.supxlabel(page.label, y=note_top + 0.03 / page.height)
    fig.supylabel(f"Density per unit of {layout.axis.coordinate}", x=0.05 / page.width)
    at = (0.06 / page.width, note_top)
    fig.text(
        *at,
        page.note,
        fontsize=enlarged(6),
        color="0.25",
        va="top",
        linespacing=1.25,
        parse_math=False,
    )
