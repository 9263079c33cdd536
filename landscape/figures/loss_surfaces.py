"""Loss in a plane, as contours and as a surface.

Sizes are in inches.

Shapes: m1, m2 = points along the first (horizontal) and the second (vertical) direction.
"""

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Float

from landscape.figures.page import MISSING, PREDICTED, Page
from landscape.figures.page_options import PageOptions
from landscape.figures.style import paper_style
from landscape.figures.text import enlarged

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from landscape.surface import LossSurface

# Perceptually even and readable without any colour vision (Nunez, Anderton & Renslow 2018, PLOS ONE
# 13:e0199239).
COLOURS = "cividis"
# Panels and the room beside them, in inches.
CONTOUR: dict[str, Any] = {"num_columns": 1, "panel": (3.3, 3.3), "left": 0.65, "right": 1.0}
RELIEF: dict[str, Any] = {
    "num_columns": 1,
    "panel": (4.1, 3.0),
    "left": 0.1,
    "right": 0.3,
    "labels": 0.3,
}
# Number of levels between the lowest and the highest loss, and the height of the first of them
# above the lowest, as a share of the whole range.
_NUM_LEVELS = 11
_FIRST = 1 / 64
# Losses that span more than this factor are drawn on a logarithmic height axis.
_LOG_RATIO = 50.0
_MEASURED, _CENTRE, _NOT_FINITE = "measured", "the model", "not finite"


def contour_levels(losses: Float[np.ndarray, "m1 m2"]) -> Float[np.ndarray, " levels"]:
    """Choose contour levels whose heights grow by a constant factor.

    The first level is the lowest loss, the last the highest; heights are measured above the lowest.
    Every finite point lies between two levels, and the flat bottom of a minimum gets as many levels
    as its steep sides. A constant loss gets two levels to lie between.

    Args:
        losses: At least one is finite; the others are ignored.
    """
    finite = losses[np.isfinite(losses)]
    low = float(finite.min())
    extent = max(float(finite.max()) - low, 1e-9 * max(abs(low), 1e-3))
    return np.concatenate([[low], low + np.geomspace(_FIRST, 1.0, _NUM_LEVELS + 1) * extent])


def loss_contour(
    surface: "LossSurface",
    *,
    title: str | None = None,
    note: str = "",
    page_options: PageOptions | None = None,
) -> "Figure":
    """Draw the loss in a plane as filled contours.

    The levels are spaced logarithmically in height above the lowest point. Dashed over them, at
    some of the same levels, is the quadratic predicted from the derivatives at the middle. Points
    whose loss is not finite are crosses on grey; points that were not computed are grey.

    Args:
        title: Heading; none by default.
        note: Text under the panel.
        page_options: Width and letters; by default those of the style.

    Raises:
        ValueError: If fewer than 2 x 2 points have a finite loss.
    """
    levels = _checked_levels(surface)
    page_options = page_options or PageOptions()
    with paper_style(page_options.scale):
        page = Page(
            title=title or "",
            note=note,
            **CONTOUR,
            legend=_labels(surface),
        ).fitted(page_options, keep_shape=True)
        fig, (ax,) = page.figure()
        _fill(ax, surface, levels)
        _draw_predicted(ax, surface, levels)
        _mark(ax, surface)
        ax.set(xlabel=_axis_label(surface, 0), ylabel=_axis_label(surface, 1))
        _colour_bar(fig, page, levels)
        page.write(fig, [ax])
    return fig


def _checked_levels(surface: "LossSurface") -> Float[np.ndarray, " levels"]:
    finite = np.isfinite(surface.losses)
    if min(finite.any(axis=0).sum(), finite.any(axis=1).sum()) < 2:
        raise ValueError(
            f"a surface needs finite losses at 2 x 2 points at least, got {int(finite.sum())} "
            "finite losses."
        )
    return contour_levels(surface.losses)


def _labels(surface: "LossSurface") -> tuple[str, ...]:
    """List the texts of the legend."""
    predicted = [_prediction(surface)] if surface.local is not None else []
    return (_MEASURED, *predicted, _CENTRE, *[_NOT_FINITE] * bool(surface.num_undefined))


def _prediction(surface: "LossSurface") -> str:
    known = (
        "curvature" if any(math.isnan(axis.eigenvalue) for axis in surface.axes) else "eigenvalues"
    )
    return f"predicted from slopes and {known}"


def _axis_label(surface: "LossSurface", number: int) -> str:
    return f"{surface.axes[number].name} ({surface.axes[number].unit})"


def _fill(ax: "Axes", surface: "LossSurface", levels: Float[np.ndarray, " levels"]) -> None:
    from matplotlib.colors import BoundaryNorm

    x, y = (axis.coordinates for axis in surface.axes)
    known = np.ma.masked_invalid(surface.losses.T)
    norm = BoundaryNorm(levels, 256)
    ax.set_facecolor("0.82")
    ax.contourf(x, y, known, levels=levels, norm=norm, cmap=COLOURS)
    ax.contour(
        x, y, known, levels=levels[1:-1], colors="black", linewidths=0.35, linestyles="solid"
    )
    ax.plot([], [], color="black", linewidth=0.6, label=_MEASURED)
    ax.set_xlim(x[0], x[-1])
    ax.set_ylim(y[0], y[-1])


def _draw_predicted(
    ax: "Axes", surface: "LossSurface", levels: Float[np.ndarray, " levels"]
) -> None:
    """Draw every second of the inner levels of the prediction.

    The grid is finer than the measured one.
    """
    if surface.local is None:
        return
    x, y = (np.linspace(axis.coordinates[0], axis.coordinates[-1], 201) for axis in surface.axes)
    predicted = surface.local(np.stack(np.meshgrid(x, y, indexing="xy"), axis=-1))
    chosen = [level for level in levels[1:-1:2] if predicted.min() < level < predicted.max()]
    if chosen:
        dashes = [PREDICTED["linestyle"]]
        ax.contour(
            x,
            y,
            predicted,
            levels=chosen,
            colors=PREDICTED["color"],
            linewidths=0.9,
            linestyles=dashes,
            zorder=4,
        )
    ax.plot([], [], label=_prediction(surface), **PREDICTED)


def _mark(ax: "Axes", surface: "LossSurface") -> None:
    ax.plot(
        [0],
        [0],
        "o",
        markersize=4,
        markerfacecolor="white",
        markeredgecolor="black",
        zorder=6,
        label=_CENTRE,
        clip_on=False,
    )
    bad = surface.computed & ~np.isfinite(surface.losses)
    if bad.any():
        first, second = np.nonzero(bad)
        x, y = surface.axes[0].coordinates[first], surface.axes[1].coordinates[second]
        ax.plot(x, y, clip_on=False, label=_NOT_FINITE, **MISSING)


def _colour_bar(fig: "Figure", page: Page, levels: Float[np.ndarray, " levels"]) -> None:
    """Draw the colour bar, with equally high steps for all levels.

    As many levels have a text as can be read.
    """
    from matplotlib.cm import ScalarMappable
    from matplotlib.colors import BoundaryNorm

    left = (page.left + page.panel[0] + 0.12) / page.width
    ax = fig.add_axes(
        (left, page.bottom / page.height, 0.12 / page.width, page.panel[1] / page.height)
    )
    bar = fig.colorbar(
        ScalarMappable(BoundaryNorm(levels, 256), COLOURS), cax=ax, spacing="uniform"
    )
    label, texts = level_labels(levels)
    bar.set_ticks(levels.tolist(), labels=texts)
    bar.set_label(label)
    ax.tick_params(size=2)


def level_labels(levels: Float[np.ndarray, " levels"]) -> tuple[str, list[str]]:
    """Name the quantity of the colours, and format every level.

    All texts differ. They have the fewest digits that distinguish the levels, from three to five;
    where those are not enough, they are heights above the lowest.
    """
    for digits in (3, 4, 5):
        texts = [_number(level, digits) for level in levels]
        if len(set(texts)) == len(texts):
            return "Loss (nats)", texts
    return f"Loss above {_number(levels[0], 5)} (nats)", [
        _number(level, 3) for level in levels - levels[0]
    ]


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}g}".replace("-", "\N{MINUS SIGN}")


def loss_surface_3d(
    surface: "LossSurface",
    *,
    title: str | None = None,
    note: str = "",
    page_options: PageOptions | None = None,
) -> "Figure":
    """Draw the loss in a plane as a surface above its contours.

    Heights are logarithmic where losses span more than a factor of 50. There is a hole where the
    loss is not finite or was not computed.

    Args:
        title: Heading; none by default.
        note: Text under the panel.
        page_options: Width and letters; by default those of the style.

    Raises:
        ValueError: If fewer than 2 x 2 points have a finite loss.
    """
    levels = _checked_levels(surface)
    finite = surface.losses[np.isfinite(surface.losses)]
    is_log = bool(finite.min() > 0 and finite.max() / finite.min() > _LOG_RATIO)
    page_options = page_options or PageOptions()
    with paper_style(page_options.scale):
        page = Page(
            title=title or "",
            note=note,
            **RELIEF,
        ).fitted(page_options, keep_shape=True)
        fig, axes = page.figure(projection="3d")
        # An Axes3D, whose methods matplotlib's stubs of Axes do not know.
        ax: Any = axes[0]
        _draw_relief(ax, surface, levels, is_log=is_log)
        for number, which in enumerate("xy"):
            getattr(ax, f"set_{which}label")(_axis_label(surface, number), labelpad=-3)
        ax.set_zlabel("Loss (nats)", labelpad=-3)
        ax.tick_params(pad=-2, labelsize=enlarged(6))
        page.write(fig, [])
    return fig


def _draw_relief(
    ax: Any, surface: "LossSurface", levels: Float[np.ndarray, " levels"], *, is_log: bool
) -> None:
    from matplotlib.colors import Normalize
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    scaled = np.log10 if is_log else np.asarray
    x, y = np.meshgrid(*(axis.coordinates for axis in surface.axes), indexing="ij")
    heights = scaled(np.where(np.isfinite(surface.losses), surface.losses, np.nan))
    low, high = float(np.nanmin(heights)), float(np.nanmax(heights))
    floor = low - 0.35 * max(high - low, 1e-9)
    norm = Normalize(low, high)
    edges = {"rstride": 1, "cstride": 1, "linewidth": 0.15, "edgecolor": (0, 0, 0, 0.35)}
    ax.plot_surface(x, y, heights, cmap=COLOURS, norm=norm, **edges)
    shadow = {"cmap": COLOURS, "norm": norm, "linewidths": 0.7}
    ax.contour(
        x,
        y,
        np.ma.masked_invalid(heights),
        levels=scaled(levels[1:-1]),
        zdir="z",
        offset=floor,
        **shadow,
    )
    ax.set_zlim(floor, max(high, floor + 1e-9))
    for axis in (ax.xaxis, ax.yaxis, ax.zaxis):
        axis.set_major_locator(MaxNLocator(5))
    if is_log:
        ax.zaxis.set_major_formatter(FuncFormatter(lambda height, _: f"{10**height:.2g}"))
    ax.view_init(elev=28, azim=-57)
    ax.set_box_aspect((1, 1, 0.75), zoom=1.08)
