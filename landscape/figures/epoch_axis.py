"""Bands and ticks of panels over epochs.

Shapes: e = epochs.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_band(
    ax: "Axes",
    epochs: Sequence[float],
    low: Float[np.ndarray, " e"],
    high: Float[np.ndarray, " e"],
    *,
    color: str,
    alpha: float,
) -> None:
    """Draw a band over the epochs.

    An epoch without a measured neighbour gets a bar.
    """
    ax.fill_between(epochs, low, high, color=color, alpha=alpha, linewidth=0, zorder=1)
    known = np.isfinite(low)
    beside = np.concatenate([[False], known[:-1]]) | np.concatenate([known[1:], [False]])
    lonely = known & ~beside
    ax.vlines(
        np.array(epochs)[lonely],
        low[lonely],
        high[lonely],
        color=color,
        alpha=alpha,
        linewidth=5,
        zorder=1,
    )


def label_epochs(ax: "Axes", epochs: Sequence[int]) -> None:
    """Place a tick at every epoch where they are few.

    Leaves room for the outer markers.
    """
    from matplotlib.ticker import MaxNLocator

    if len(epochs) <= 8:
        ax.set_xticks(list(epochs))
    else:
        ax.xaxis.set_major_locator(MaxNLocator(8, integer=True))
    room = 0.5 if len(epochs) == 1 else 0.04 * (epochs[-1] - epochs[0])
    ax.set_xlim(epochs[0] - room, epochs[-1] + room)


def label_decades(ax: "Axes", ticks: Sequence[float] | None = None) -> None:
    """Format plain numbers at the ticks of a logarithmic axis.

    Without given ticks, there are more than the powers of ten where these are few.
    """
    from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter

    low, high = ax.get_ylim()
    subs = (1.0,) if high > 300 * low else (1.0, 2.0, 5.0)
    ax.yaxis.set_major_locator(LogLocator(subs=subs) if ticks is None else FixedLocator(ticks))
    ax.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    ax.yaxis.set_minor_formatter(NullFormatter())
