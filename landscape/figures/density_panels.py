"""The density of the whole spectrum: a panel per epoch, a curve per series with its band, the exact spectrum behind it.

The kernel and its width belong to the drawing. Densities are per unit of the drawn coordinate u = asinh(lambda / w), so that
areas mean shares; their axis is logarithmic, since a single outlier is one of millions. Shapes: g = grid points.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from landscape.figures.asinh_axis import AsinhAxis
from landscape.figures.eigenvalue_plan import span
from landscape.figures.samples import epochs_to_draw
from landscape.figures.style import MAX_SERIES, paper_style
from landscape.figures.text import STAMP_BOX, UNAUDITED, wrap

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from landscape.linalg import Estimate, SpectralDensity

_GRID_POINTS = 800
# The width of the kernel, as a part of the axis: about what print shows.
_NARROWEST = 1 / 150
_BAND = 2


@dataclass(frozen=True, eq=False)
class DensitySample:
    """The spectrum of one checkpoint.

    Args:
        series, label, epoch: As in `EigenvalueSample`.
        density: What the probes saw.
        dense: All eigenvalues of each operator (b, n), where they are known.
    """

    series: str
    label: str
    epoch: int
    density: "SpectralDensity"
    dense: Float[np.ndarray, "b n"] | None = None


def density_figure(
    samples: Sequence[DensitySample],
    *,
    epochs: Sequence[int] | None = None,
    title: str | None = None,
    width: float | None = None,
    unaudited: bool = False,
) -> "Figure":
    """Draw the density of all eigenvalues, with bands of two standard errors over probes and batches.

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
    plan = _make_plan(samples, epochs=epochs, width=width)
    with paper_style():
        return _draw(plan, title=title, unaudited=unaudited)


@dataclass(frozen=True)
class _Plan:
    panels: dict[int, list[DensitySample]]
    labels: dict[str, str]
    axis: AsinhAxis
    grid: Float[np.ndarray, " g"]
    width: float
    floor: float

    def kernel(self, values: np.ndarray) -> np.ndarray:
        """The kernel of every eigenvalue at every grid point, per unit of u."""
        offset = (self.grid - self.axis.forward(values)[..., None]) / self.width
        return np.exp(-0.5 * offset**2) / (self.width * math.sqrt(2 * math.pi))

    def smoothed(self, density: "SpectralDensity") -> "Estimate":
        """The density on the grid: half of a node's weight spread evenly to either neighbour, then the kernel."""
        nodes, left, right = _neighbours(density, self.axis)

        def function(values: np.ndarray) -> np.ndarray:
            at = np.minimum(np.searchsorted(nodes, values), len(nodes) - 1)
            drawn, found = self.axis.forward(values), nodes[at] == values
            low, high = np.where(found, left[at], drawn), np.where(found, right[at], drawn)
            return (self._evenly(low, drawn) + self._evenly(drawn, high)) / 2

        return density.mean(function)

    def _evenly(self, low: np.ndarray, high: np.ndarray) -> np.ndarray:
        """A uniform distribution from low to high under the kernel, at every grid point."""
        from scipy.special import ndtr

        # A thousandth of the kernel makes no difference, and no division by zero.
        short = np.maximum(1e-3 * self.width - (high - low), 0) / 2
        low, high = (low - short)[..., None], (high + short)[..., None]
        return (ndtr((self.grid - low) / self.width) - ndtr((self.grid - high) / self.width)) / (high - low)


def _make_plan(samples: Sequence[DensitySample], *, epochs: Sequence[int] | None, width: float | None) -> _Plan:
    keys = [(one.series, one.epoch) for one in samples]
    labels = {one.series: one.label for one in samples}
    measured = sorted({one.epoch for one in samples})
    wanted = epochs_to_draw(measured) if epochs is None else tuple(sorted(set(epochs)))
    if not samples or len(set(keys)) < len(keys) or len(labels) > MAX_SERIES:
        raise ValueError(f"samples must be one per series and epoch, of 1 to {MAX_SERIES} series, got {keys}.")
    if not wanted or not set(wanted) <= set(measured):
        raise ValueError(f"epochs: no series has {sorted(set(wanted) - set(measured))}; measured are {measured}.")
    if width is not None and not width > 0:
        raise ValueError(f"width must be > 0, got {width}.")
    shown = [one for one in samples if one.epoch in wanted]
    axis = AsinhAxis(_linear_width(shown))
    points = np.concatenate([axis.forward(one.density.measure()[0]) for one in shown])
    low, high = min(float(points.min()), -1.0), max(float(points.max()), 1.0)
    width = width if width is not None else _NARROWEST * (high - low)
    grid = np.linspace(low - 4 * width, high + 4 * width, _GRID_POINTS)
    # A tenth of the height of one eigenvalue of the largest spectrum: one that is spread over a few kernels is seen too.
    floor = 0.04 / (max(one.density.n for one in shown) * width)
    return _Plan({epoch: [one for one in shown if one.epoch == epoch] for epoch in wanted}, labels, axis, grid, width, floor)


def _linear_width(samples: Sequence[DensitySample]) -> float:
    """How far from zero a probe's nodes begin to tell eigenvalues apart: the axis is linear where nothing is resolved.

    Half of the distance of the nodes around the one nearest to zero, in the geometric mean of all probes, rounded down to 1, 2 or
    5 times a power of ten; 1 where no probe has three nodes.
    """
    gaps = []
    for row in (row[~np.isnan(row)] for one in samples for row in one.density.nodes.numpy()):
        if len(row) > 2:
            nearest = int(np.clip(np.abs(row).argmin(), 1, len(row) - 2))
            gaps.append(float(row[nearest + 1] - row[nearest - 1]) / 2)
    gaps = [gap for gap in gaps if gap > 0]
    wanted = float(np.exp(np.mean(np.log(gaps)))) if gaps else 1.0
    decade = 10.0 ** math.floor(math.log10(wanted))
    return max(factor * decade for factor in (1, 2, 5) if factor * decade <= wanted * (1 + 1e-9))


def _neighbours(density: "SpectralDensity", axis: AsinhAxis) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """All nodes, ascending, and where on the axis the neighbours of each lie; beyond its last node a probe sees nothing."""
    nodes, left, right = [np.full(1, np.inf)], [np.zeros(1)], [np.zeros(1)]
    for row in density.nodes.numpy():
        there = row[~np.isnan(row)]
        drawn = axis.forward(there)
        nodes.append(there)
        left.append(np.append(drawn[:1], drawn[:-1]))
        right.append(np.append(drawn[1:], drawn[-1:]))
    order = np.argsort(np.concatenate(nodes), kind="stable")
    return np.concatenate(nodes)[order], np.concatenate(left)[order], np.concatenate(right)[order]


def _draw(plan: _Plan, *, title: str | None, unaudited: bool) -> "Figure":
    from matplotlib import rcParams
    from matplotlib.figure import Figure

    num_columns = 2 if len(plan.panels) in (2, 4) else min(3, len(plan.panels))
    num_rows = math.ceil(len(plan.panels) / num_columns)
    page_width = 7.0 if num_columns > 1 else 4.5
    note = wrap(_footnote(plan), page_width - 0.1, points=6)
    top = 0.3 + 0.22 * bool(title) + 0.26 * unaudited + 0.16 * math.ceil(len(plan.labels) / 3)
    bottom = 0.62 + 0.106 * note.count("\n")
    height = top + bottom + 1.75 * num_rows + 0.35 * (num_rows - 1)
    fig = Figure(figsize=(page_width, height))
    spec = fig.add_gridspec(
        num_rows,
        num_columns,
        left=0.55 / page_width,
        right=1 - 0.12 / page_width,
        bottom=bottom / height,
        top=1 - top / height,
        wspace=0.08,
        hspace=0.35 / 1.75,
    )
    axes = list(spec.subplots(sharex=True, sharey=True, squeeze=False).flat)
    styles = dict(zip(plan.labels, rcParams["axes.prop_cycle"], strict=False))
    for ax, (epoch, samples) in zip(axes, plan.panels.items()):
        _draw_panel(ax, plan, epoch, samples, styles)
    for ax in axes[len(plan.panels) :]:
        ax.set_axis_off()
    for ax in axes[max(0, len(plan.panels) - num_columns) : len(plan.panels)]:
        ax.tick_params(axis="x", which="both", labelbottom=True)
    _set_axes(axes, plan, panel_width=page_width / num_columns - 0.3)
    _write_around(fig, plan, styles, note, title=title, unaudited=unaudited, bottom=bottom)
    return fig


def _draw_panel(ax: "Axes", plan: _Plan, epoch: int, samples: list[DensitySample], styles: dict[str, dict[str, Any]]) -> None:
    ax.set_title("Initialisation" if epoch == 0 else f"Epoch {epoch}")
    x = plan.axis.inverse(plan.grid)
    ax.axvline(0.0, color="0.35", linewidth=0.6, zorder=-1)
    remarks = []
    for row, sample in enumerate(samples):
        style = styles[sample.series]
        if sample.dense is not None:
            exact = plan.kernel(sample.dense.reshape(-1)).mean(axis=0)
            ax.fill_between(x, plan.floor, np.maximum(exact, plan.floor), color="0.8", linewidth=0, zorder=0, label="exact")
            ax.plot(x, np.where(exact > plan.floor, exact, np.nan), color="0.45", linewidth=0.6, zorder=1)
        found = plan.smoothed(sample.density)
        value, error = np.asarray(found.value), np.asarray(found.standard_error)
        low, high = np.maximum(value - _BAND * error, plan.floor), np.maximum(value + _BAND * error, plan.floor)
        ax.fill_between(x, low, high, color=style["color"], alpha=0.25, linewidth=0, zorder=2, label="band")
        ax.plot(x, np.where(value > plan.floor, value, np.nan), zorder=3 + row, label=plan.labels[sample.series], **style)
        remarks.append((_remark(sample), style))
    for row, (text, style) in enumerate(remarks):
        ax.text(0.02, 0.97 - 0.075 * row, text, transform=ax.transAxes, fontsize=6, color=style["color"], va="top", zorder=20)


def _remark(sample: DensitySample) -> str:
    """Of one curve, the share of negative eigenvalues as far as it is known."""
    share = sample.density.negative_share()
    low = max(0.0, float(share.low) - _BAND * float(share.probe_error))
    high = min(1.0, float(share.high) + _BAND * float(share.probe_error))
    digits = 0 if high - low > 0.02 else 2 if high - low > 2e-4 else 4
    return f"$\\lambda$ < 0: {100 * low:.{digits}f}\N{EN DASH}{100 * high:.{digits}f} %"


def _set_axes(axes: "Sequence[Axes]", plan: _Plan, *, panel_width: float) -> None:
    from matplotlib.ticker import FixedFormatter, FixedLocator, NullFormatter

    low, high = plan.axis.inverse(plan.grid[[0, -1]]).tolist()
    ticks = plan.axis.ticks(low, high, gap=0.3 / panel_width * (plan.grid[-1] - plan.grid[0]))
    first = axes[0]
    first.set_xscale("asinh", linear_width=plan.axis.linear_width)
    first.set_xlim(low, high)
    first.xaxis.set_major_locator(FixedLocator(ticks.major))
    first.xaxis.set_major_formatter(FixedFormatter(ticks.labels))
    first.xaxis.set_minor_locator(FixedLocator(ticks.minor))
    first.xaxis.set_minor_formatter(NullFormatter())
    first.set_yscale("log")
    curves = [np.asarray(line.get_ydata(), dtype=float) for ax in axes for line in ax.lines]
    peak = max(float(np.nanmax(curve)) for curve in curves if curve.size > 2)
    # A third of the decades above the peak keeps the remarks off the curves.
    first.set_ylim(plan.floor, peak * (peak / plan.floor) ** 0.3)


def _write_around(
    fig: "Figure",
    plan: _Plan,
    styles: dict[str, dict[str, Any]],
    note: str,
    *,
    title: str | None,
    unaudited: bool,
    bottom: float,
) -> None:
    from matplotlib.lines import Line2D

    page_width, height = fig.get_size_inches()
    down = 0.06
    if unaudited:
        fig.text(0.5, 1 - down / height, UNAUDITED, ha="center", va="top", fontsize=6.5, weight="bold", bbox=STAMP_BOX)
        down += 0.26
    if title:
        fig.suptitle(title, y=1 - down / height, parse_math=False)
        down += 0.22
    legend = fig.legend(
        [Line2D([], [], **style) for style in styles.values()],
        [str(number) for number in range(len(styles))],
        loc="upper center",
        bbox_to_anchor=(0.5, 1 - down / height),
        borderaxespad=0.0,
        ncols=min(3, len(styles)),
    )
    for text, label in zip(legend.get_texts(), plan.labels.values(), strict=True):
        text.set(text=label, parse_math=False)
    coordinate = f"asinh($\\lambda$ / {plan.axis.linear_width:g})"
    note_top = (bottom - 0.42) / height
    fig.supxlabel(f"Hessian eigenvalue $\\lambda$ (nat per squared parameter), drawn at {coordinate}", y=note_top + 0.03 / height)
    fig.supylabel("Density per unit of the axis", x=0.05 / page_width)
    fig.text(0.06 / page_width, note_top, note, fontsize=6, color="0.25", va="top", linespacing=1.25, parse_math=False)


def _footnote(plan: _Plan) -> str:
    samples = [one for panel in plan.panels.values() for one in panel]
    densities = [one.density for one in samples]
    batches = span([one.num_operators for one in densities])
    several = max(one.num_operators for one in densities) > 1
    probes = span([one.num_probes / one.num_operators for one in densities])
    sentences = [
        f"All {span([one.n for one in densities], ',')} eigenvalues, {batches} mini-batch{'es' * several}, "
        f"{probes} random probe{'s' * (probes != '1')} each.",
        f"Weights of nodes spread to their neighbours, then a Gaussian kernel of width {plan.width:.2g} on this axis; area 1. "
        "Flat stretches are not resolved.",
        f"Band: {_BAND} standard errors over probes{' and batches' * several}; what lies between nodes is not in it.",
        "Share below zero: what the quadratures prove, and two standard errors over probes.",
    ]
    zeros = [float(one.num_zeros.double().mean()) / one.n for one in densities]
    if max(zeros) > 0:
        sentences.append(f"{span([100 * share for share in zeros], '.3g')} % are zero by structure: rows that no batch uses.")
    if any(one.dense is not None for one in samples):
        sentences.append("Grey: the exact spectrum, from the assembled matrix, under the same kernel.")
    return " ".join(sentences)
