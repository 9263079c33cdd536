"""The loss along lines: what was measured, and over it what the derivatives in the middle predict.

A panel per line; the loss axis is shared. Sizes are in inches. Shapes: m = points.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

from landscape.figures.page import MEASURED, MISSING, PREDICTED, Page
from landscape.figures.style import paper_style

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from landscape.curvature import LossSlice

# Losses that span more than this factor are drawn on a logarithmic axis.
_LOG_RATIO = 50.0
_MAX_PANELS = 3
_MEASURED, _NOT_FINITE = "measured", "not finite"


def loss_slice(
    slices: "LossSlice | Sequence[LossSlice]", *, title: str | None = None, note: str = ""
) -> "Figure":
    """Draw the loss along one to three lines, side by side.

    Along a direction, the parabola that the derivatives in the middle predict is dashed, as far as the axis reaches. Along a
    line between two checkpoints, the linear interpolation of the ends is dashed and the barrier is marked. Points whose loss
    is not finite are crosses at the upper edge; the curve has gaps there and where nothing was computed.

    Args:
        title: Heading; none by default.
        note: Text under the panels.

    Raises:
        ValueError: If there are no slices, more than three, or not one finite loss in all of them.
    """
    lines: "list[LossSlice]" = list(slices) if isinstance(slices, Sequence) else [slices]
    if not 1 <= len(lines) <= _MAX_PANELS:
        raise ValueError(f"slices: 1 to {_MAX_PANELS} fit into one figure, got {len(lines)}.")
    finite = np.concatenate([one.losses[np.isfinite(one.losses)] for one in lines])
    if not finite.size:
        raise ValueError("none of the losses is finite, so there is nothing to draw.")
    with paper_style():
        page = Page(
            num_columns=len(lines),
            panel=(3.7, 2.1) if len(lines) == 1 else (2.0, 1.7),
            title=title or "",
            note=note,
            legend=_labels(lines),
        )
        fig, axes = page.figure(sharey=True)
        _set_loss_axis(axes[0], finite)
        for ax, one in zip(axes, lines):
            _draw(ax, one)
        axes[0].set_ylabel("Loss (nats)")
        page.write(fig, axes)
    return fig


def _labels(lines: "Sequence[LossSlice]") -> tuple[str, ...]:
    """What the legend holds."""
    predicted = [_prediction(one) for one in lines]
    return tuple(
        dict.fromkeys([_MEASURED, *predicted, *[_NOT_FINITE for one in lines if one.num_undefined]])
    )


def _prediction(one: "LossSlice") -> str:
    if one.local is None:
        return "between the ends"
    return "predicted from slope and " + (
        "curvature" if math.isnan(one.axis.eigenvalue) else "eigenvalue"
    )


def _set_loss_axis(ax: "Axes", finite: Float[np.ndarray, " m"]) -> None:
    low, high = float(finite.min()), float(finite.max())
    if low > 0 and high / low > _LOG_RATIO:
        ax.set_yscale("log")
        ax.set_ylim(low / (high / low) ** 0.05, high * (high / low) ** 0.1)
    else:
        room = max(high - low, 1e-6 * abs(high), 1e-12)
        ax.set_ylim(low - 0.06 * room, high + 0.12 * room)


def _draw(ax: "Axes", one: "LossSlice") -> None:
    x = one.axis.coordinates
    ax.plot(
        x,
        np.where(np.isfinite(one.losses), one.losses, np.nan),
        marker="o",
        markersize=2.2,
        label=_MEASURED,
        **MEASURED,
    )
    if one.local is not None:
        _draw_prediction(ax, one)
    else:
        _draw_barrier(ax, one)
    bad = one.computed & ~np.isfinite(one.losses)
    if bad.any():
        # Just inside of the upper edge, wherever that is.
        heights = np.full(int(bad.sum()), 0.96)
        ax.plot(x[bad], heights, transform=ax.get_xaxis_transform(), label=_NOT_FINITE, **MISSING)
    room = 0.02 * (x[-1] - x[0])
    ax.set_xlim(x[0] - room, x[-1] + room)
    ax.set_xlabel(f"{one.axis.name} ({one.axis.unit})")


def _draw_prediction(ax: "Axes", one: "LossSlice") -> None:
    """The parabola, finely, as far as it stays within the axis."""
    assert one.local is not None
    fine = np.linspace(one.axis.coordinates[0], one.axis.coordinates[-1], 401)
    parabola = one.local(fine[:, None])
    low, high = ax.get_ylim()
    inside = np.where((parabola >= low) & (parabola <= high), parabola, np.nan)
    ax.plot(fine, inside, label=_prediction(one), **PREDICTED)
    ax.axvline(0.0, color="0.6", linewidth=0.5, zorder=0)


def _draw_barrier(ax: "Axes", one: "LossSlice") -> None:
    x, ends = one.axis.coordinates, one.losses[[0, -1]]
    if not np.isfinite(ends).all():
        return
    between = (1 - x) * ends[0] + x * ends[1]
    ax.plot(x, between, label=_prediction(one), **PREDICTED)
    barrier = one.barrier()
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
        fontsize=6.5,
    )
