"""Loss along lines: measured values, and the prediction from derivatives at the middle.

A panel per line; the loss axis is shared. Sizes are in inches.

Shapes: m = points.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from landscape.figures.page import MEASURED, MISSING, PREDICTED, Page
from landscape.figures.page_options import PageOptions
from landscape.figures.style import paper_style
from landscape.figures.text import enlarged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from landscape.surface import LossSlice

# Losses that span more than this factor are drawn on a logarithmic axis.
_LOG_RATIO = 50.0
# The panel of a single slice, in inches.
SLICE: dict[str, Any] = {"num_columns": 1, "panel": (3.7, 2.1)}
_MAX_PANELS = 3
_MEASURED, _NOT_FINITE = "measured", "not finite"


def loss_slice(
    slices: "LossSlice | Sequence[LossSlice]",
    *,
    title: str | None = None,
    note: str = "",
    page_options: PageOptions | None = None,
) -> "Figure":
    """Draw the loss along one to three lines, side by side.

    Along a direction, the parabola predicted from the derivatives at the middle is dashed, as far
    as the axis reaches. Along a line between two checkpoints, the linear interpolation of the ends
    is dashed and the barrier is marked. Points whose loss is not finite are crosses at the upper
    edge; the curve has gaps there and where nothing was computed.

    Args:
        title: Heading; none by default.
        note: Text under the panels.
        page_options: Width and letters; by default those of the style.

    Raises:
        ValueError: If there are no slices, more than three, or no finite loss in any of them.
    """
    lines: list[LossSlice] = list(slices) if isinstance(slices, Sequence) else [slices]
    if not 1 <= len(lines) <= _MAX_PANELS:
        raise ValueError(f"slices: 1 to {_MAX_PANELS} fit into one figure, got {len(lines)}.")
    finite = np.concatenate([line.losses[np.isfinite(line.losses)] for line in lines])
    if not finite.size:
        raise ValueError("none of the losses is finite, so there is nothing to draw.")
    page_options = page_options or PageOptions()
    with paper_style(page_options.scale):
        page = Page(
            num_columns=len(lines),
            panel=SLICE["panel"] if len(lines) == 1 else (2.0, 1.7),
            title=title or "",
            note=note,
            legend=_labels(lines),
        ).fitted(page_options)
        fig, axes = page.figure(sharey=True)
        _set_loss_axis(axes[0], finite)
        for ax, line in zip(axes, lines):
            _draw(ax, line)
        axes[0].set_ylabel("Loss (nats)")
        page.write(fig, axes)
    return fig


def _labels(lines: "Sequence[LossSlice]") -> tuple[str, ...]:
    """List the texts of the legend."""
    predicted = [_prediction(line) for line in lines]
    return tuple(
        dict.fromkeys(
            [_MEASURED, *predicted, *[_NOT_FINITE for line in lines if line.num_undefined]]
        )
    )


def _prediction(line: "LossSlice") -> str:
    if line.local is None:
        return "between the ends"
    return "predicted from slope and " + (
        "curvature" if math.isnan(line.axis.eigenvalue) else "eigenvalue"
    )


def _set_loss_axis(ax: "Axes", finite: Float[np.ndarray, " m"]) -> None:
    low, high = float(finite.min()), float(finite.max())
    if low > 0 and high / low > _LOG_RATIO:
        ax.set_yscale("log")
        ax.set_ylim(low / (high / low) ** 0.05, high * (high / low) ** 0.1)
    else:
        room = max(high - low, 1e-6 * abs(high), 1e-12)
        ax.set_ylim(low - 0.06 * room, high + 0.12 * room)


def _draw(ax: "Axes", line: "LossSlice") -> None:
    x = line.axis.coordinates
    ax.plot(
        x,
        np.where(np.isfinite(line.losses), line.losses, np.nan),
        marker="o",
        markersize=2.2,
        label=_MEASURED,
        **MEASURED,
    )
    if line.local is not None:
        _draw_prediction(ax, line)
    else:
        _draw_barrier(ax, line)
    bad = line.computed & ~np.isfinite(line.losses)
    if bad.any():
        # Just below the upper edge, in shares of the axis.
        heights = np.full(int(bad.sum()), 0.96)
        ax.plot(x[bad], heights, transform=ax.get_xaxis_transform(), label=_NOT_FINITE, **MISSING)
    room = 0.02 * (x[-1] - x[0])
    ax.set_xlim(x[0] - room, x[-1] + room)
    ax.set_xlabel(f"{line.axis.name} ({line.axis.unit})")


def _draw_prediction(ax: "Axes", line: "LossSlice") -> None:
    """Draw the parabola on a fine grid, within the axis."""
    assert line.local is not None
    fine = np.linspace(line.axis.coordinates[0], line.axis.coordinates[-1], 401)
    parabola = line.local(fine[:, None])
    low, high = ax.get_ylim()
    inside = np.where((parabola >= low) & (parabola <= high), parabola, np.nan)
    ax.plot(fine, inside, label=_prediction(line), **PREDICTED)
    ax.axvline(0.0, color="0.6", linewidth=0.5, zorder=0)


def _draw_barrier(ax: "Axes", line: "LossSlice") -> None:
    x, ends = line.axis.coordinates, line.losses[[0, -1]]
    if not np.isfinite(ends).all():
        return
    between = (1 - x) * ends[0] + x * ends[1]
    ax.plot(x, between, label=_prediction(line), **PREDICTED)
    barrier = line.barrier()
    if not (math.isfinite(barrier.height) and barrier.height > 0):
        return
    foot = float(np.interp(barrier.at, x, between))
    arrow = {"arrowstyle": "<->", "linewidth": 0.7, "shrinkA": 0, "shrinkB": 0}
    ax.annotate("", (barrier.at, foot + barrier.height), (barrier.at, foot), arrowprops=arrow)
    to_right = barrier.at < 0.5
    ax.annotate(
        f"barrier {barrier.height:.3g}",
        (barrier.at, foot + barrier.height / 2),
        xytext=(4 if to_right else -4, 0),
        textcoords="offset points",
        ha="left" if to_right else "right",
        va="center",
        fontsize=enlarged(6.5),
    )
