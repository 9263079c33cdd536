"""The density of the whole spectrum: a panel per epoch, a curve per series with its band, the exact spectrum behind it.

What is drawn is in density_plan.py. The axis of the densities is logarithmic, since a single outlier is one of millions.
Sizes are in inches.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from landscape.figures.density_plan import DensityPlan, DensitySample, footnote, make_density_plan
from landscape.figures.legend import MAX_REMARKS, Legend, Styles, draw_remarks
from landscape.figures.page import paper_width
from landscape.figures.style import paper_style
from landscape.figures.text import STAMP_BOX, UNAUDITED, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def density_figure(
    samples: Sequence[DensitySample],
    *,
    epochs: Sequence[int] | None = None,
    title: str | None = None,
    width: float | None = None,
    unaudited: bool = False,
) -> "Figure":
    """Draw the density of all eigenvalues, with bands of two standard errors over probes and batches.

    In the corner of a panel (up to four series) stand the shares of negative eigenvalues, each with its whole standard error; a
    series without a sample at some epoch has no curve there, and the panel says so.

    Args:
        samples: At most one per series and epoch, in the order of the legend.
        epochs: Epochs that get a panel; by default `epochs_to_draw` of those that any series has.
        title: Heading of the figure; none by default.
        width: Standard deviation of the Gaussian kernel, in units of the drawn coordinate u; by default 1/150 of the axis. What
            a node stands for lies anywhere between its neighbours, so its weight is spread to them before.
        unaudited: Stamp the figure, as in `figure3`.

    Raises:
        ValueError: If there are no samples, more than `MAX_SERIES` series, two samples for one series and epoch, an epoch that
            no series has, or a width that is not positive.
    """
    plan = make_density_plan(samples, epochs=epochs, width=width)
    with paper_style():
        return _draw(plan, _Page.fit(plan, title=title, unaudited=unaudited))


@dataclass(frozen=True)
class _Page:
    """Sizes, and the texts around the panels broken into lines that fit."""

    num_columns: int
    num_rows: int
    title: str
    legend: Legend
    stamp: str
    note: str

    left, right, panel_height, row_gap = 0.55, 0.12, 1.75, 0.35
    legend_line, title_line, note_line = 0.155, 0.18, 0.106

    @classmethod
    def fit(cls, plan: DensityPlan, *, title: str | None, unaudited: bool) -> "_Page":
        num_columns = 2 if len(plan.epochs) in (2, 4) else min(3, len(plan.epochs))
        width = paper_width(num_columns)
        return cls(
            num_columns=num_columns,
            num_rows=math.ceil(len(plan.epochs) / num_columns),
            title=wrap(title or "", width - 0.4, points=10),
            legend=Legend.fit(plan.labels.values(), width - 0.4),
            stamp=UNAUDITED * unaudited,
            note=wrap(footnote(plan, shares=_says_shares(plan)), width - 0.1, points=6),
        )

    @property
    def width(self) -> float:
        return paper_width(self.num_columns)

    @property
    def panel_width(self) -> float:
        return self.width / self.num_columns - 0.3

    @property
    def bottom(self) -> float:
        """From the lower edge to the panels."""
        return 0.62 + self.note_line * self.note.count("\n")

    @property
    def tops(self) -> tuple[float, float, float, float]:
        """Distances from the upper edge down to the stamp, the title, the legend and the panels."""
        title = 0.06 + 0.26 * bool(self.stamp)
        legend = title + (
            self.title_line * (self.title.count("\n") + 1) + 0.04 if self.title else 0.0
        )
        return 0.06, title, legend, legend + self.legend_line * self.legend.num_lines + 0.24

    @property
    def height(self) -> float:
        panels = self.panel_height * self.num_rows + self.row_gap * (self.num_rows - 1)
        return self.tops[3] + panels + self.bottom


def _says_shares(plan: DensityPlan) -> bool:
    return len(plan.labels) <= MAX_REMARKS


def _draw(plan: DensityPlan, page: _Page) -> "Figure":
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    fig = Figure(figsize=(page.width, page.height))
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
    styles = dict(zip(plan.labels, rcParams["axes.prop_cycle"], strict=False))
    num_panels = len(plan.epochs)
    for ax, epoch in zip(axes, plan.epochs):
        _draw_panel(ax, plan, epoch, styles)
    for ax in axes[num_panels:]:
        ax.set_axis_off()
    for ax in axes[max(0, num_panels - page.num_columns) : num_panels]:
        ax.tick_params(axis="x", which="both", labelbottom=True)
    _set_axes(axes[0], plan, page)
    _write_around(fig, plan, page, styles)
    return fig


def _draw_panel(ax: "Axes", plan: DensityPlan, epoch: int, styles: Styles) -> None:
    ax.set_title("Initialisation" if epoch == 0 else f"Epoch {epoch}")
    x = plan.axis.inverse(plan.grid)
    ax.axvline(0.0, color="0.35", linewidth=0.6, zorder=-1)
    remarks = {}
    for row, (series, style) in enumerate(styles.items()):
        curve = plan.curves.get((series, epoch))
        if curve is not None:
            if curve.exact is not None:
                grey = np.maximum(curve.exact, plan.floor)
                ax.fill_between(
                    x, plan.floor, grey, color="0.8", linewidth=0, zorder=0, label="exact"
                )
                ax.plot(x, plan.above_floor(curve.exact), color="0.45", linewidth=0.6, zorder=1)
            low, high = np.maximum(curve.low, plan.floor), np.maximum(curve.high, plan.floor)
            ax.fill_between(
                x, low, high, color=style["color"], alpha=0.25, linewidth=0, zorder=2, label="band"
            )
            ax.plot(
                x, plan.above_floor(curve.value), zorder=3 + row, label=plan.labels[series], **style
            )
        if curve is None or _says_shares(plan):
            remarks[series] = plan.remark(series, epoch)
    title = "share of $\\lambda$ < 0" if _says_shares(plan) else None
    draw_remarks(ax, remarks, styles, title=title, corner="upper left", opaque=True)


def _set_axes(first: "Axes", plan: DensityPlan, page: _Page) -> None:
    """Scale, limits and ticks, once for all panels since they share them."""
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

    low, high = plan.axis.inverse(np.array(plan.limits)).tolist()
    ticks = plan.axis.ticks(
        low, high, gap=0.3 / page.panel_width * (plan.limits[1] - plan.limits[0])
    )
    first.set_xscale("asinh", linear_width=plan.axis.linear_width)
    first.set_xlim(low, high)
    first.xaxis.set_major_locator(FixedLocator(ticks.major))
    first.xaxis.set_major_formatter(FixedFormatter(ticks.labels))
    first.xaxis.set_minor_locator(FixedLocator(ticks.minor))
    first.xaxis.set_minor_formatter(NullFormatter())
    first.set_yscale("log")
    # Room above the highest curve keeps the remarks off it.
    rows = len(plan.labels) + 1 if _says_shares(plan) else len(plan.labels)
    share = min((0.1 + 0.112 * rows) / page.panel_height, 0.6)
    first.set_ylim(plan.floor, plan.peak * (plan.peak / plan.floor) ** (share / (1 - share)))


def _write_around(fig: "Figure", plan: DensityPlan, page: _Page, styles: Styles) -> None:
    """Stamp, title, legend, axis labels and footnote."""
    from matplotlib.lines import Line2D

    down = [1 - distance / page.height for distance in page.tops]
    if page.stamp:
        fig.text(
            0.5,
            down[0],
            page.stamp,
            ha="center",
            va="top",
            fontsize=6.5,
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
    width = plan.axis.linear_width
    coordinate = "asinh($\\lambda$)" if width == 1 else f"asinh($\\lambda$ / {width:g})"
    note_top = (page.bottom - 0.42) / page.height
    x_label = f"Hessian eigenvalue $\\lambda$ (nat per squared parameter), drawn at {coordinate}"
    fig.supxlabel(x_label, y=note_top + 0.03 / page.height)
    fig.supylabel("Density per unit of the axis", x=0.05 / page.width)
    at = (0.06 / page.width, note_top)
    fig.text(*at, page.note, fontsize=6, color="0.25", va="top", linespacing=1.25, parse_math=False)
