"""The sharpness of every module along training, as a heat map over depth and epoch: a panel per architecture.

Sizes are in inches. Shapes: e = epochs, m = modules.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from jaxtyping import Bool, Float

from landscape.figures.loss_surfaces import COLOURS
from landscape.figures.page import Page
from landscape.figures.style import paper_style
from landscape.figures.text import text_width

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

UNIT = "nat per squared parameter"
MAX_PANELS = 4
# With more epochs than this, numbers do not fit into the cells.
_MAX_NUMBERED = 8
_ROW, _LABEL_POINTS = 0.15, 6.0
_NOT_POSITIVE = "#D55E00"


@dataclass(frozen=True, kw_only=True)
class ModuleSample:
    """The sharpness of the modules of one architecture along its training.

    Args:
        series: Name of the checkpoint series.
        label: What its panel is called.
        modules: Names, in order of depth, the input first.
        epochs: Ascending.
        values: Largest Hessian eigenvalue of each module, in nats per squared parameter; NaN where nothing was measured.
        converged: Whether what stands behind a value met its tolerance.

    Raises:
        ValueError: If the shapes do not fit, a name is there twice, or the epochs do not ascend.
    """

    series: str
    label: str
    modules: tuple[str, ...]
    epochs: tuple[int, ...]
    values: Float[np.ndarray, "e m"]
    converged: Bool[np.ndarray, "e m"]

    def __post_init__(self) -> None:
        where, shape = f"modules of series {self.series!r}", (len(self.epochs), len(self.modules))
        if (
            not self.modules
            or not self.epochs
            or self.values.shape != shape
            or self.converged.shape != shape
        ):
            raise ValueError(
                f"{where}: values and converged must have the shape (epochs, modules) = {shape}, at least (1, 1), got "
                f"{self.values.shape} and {self.converged.shape}."
            )
        if len(set(self.modules)) < len(self.modules):
            raise ValueError(f"{where}: a name is there twice.")
        if list(self.epochs) != sorted(set(self.epochs)):
            raise ValueError(f"{where}: epochs must ascend, got {list(self.epochs)}.")

    @property
    def shown(self) -> Bool[np.ndarray, "e m"]:
        """Which values have a certificate and a colour on a logarithmic scale."""
        return np.isfinite(self.values) & self.converged & (self.values > 0)


def module_heat_map(
    samples: Sequence[ModuleSample], *, title: str | None = None, note: str = ""
) -> "Figure":
    """Draw the sharpness of modules: depth downwards, epochs to the right, one logarithmic colour scale for all panels.

    A value that did not converge is hatched and has no colour; one that is not positive, which a logarithm cannot show, is
    orange; what was not measured is grey. The text under the panels counts them.

    Args:
        samples: One to four, a panel each.
        title: Heading; none by default.
        note: Text under the panels, before the counts.

    Raises:
        ValueError: If there are no samples, more than four, two of one series, or no value to draw.
    """
    if not 1 <= len(samples) <= MAX_PANELS:
        raise ValueError(f"samples: 1 to {MAX_PANELS} fit into one figure, got {len(samples)}.")
    if len({one.series for one in samples}) < len(samples):
        raise ValueError("samples: two are of the same series.")
    shown = np.concatenate([one.values[one.shown] for one in samples])
    if not shown.size:
        raise ValueError(
            "no module has a positive value that converged, so there is nothing to draw."
        )
    from matplotlib.colors import LogNorm

    low, high = float(shown.min()), float(shown.max())
    norm = LogNorm(low, high) if high > low else LogNorm(low / 2, high * 2)
    with paper_style():
        page = _page(samples, title or "", " ".join([*[note] * bool(note), *_counts(samples)]))
        fig, axes = page.figure()
        for ax, one in zip(axes, samples):
            _draw(ax, one, norm)
        _colour_bar(fig, page, norm)
        page.write(fig, axes)
    return fig


def _counts(samples: Sequence[ModuleSample]) -> list[str]:
    values = np.concatenate([one.values.ravel() for one in samples])
    converged = np.concatenate([one.converged.ravel() for one in samples])
    measured = np.isfinite(values)
    counts = {
        "did not converge (hatched)": measured & ~converged,
        "are not positive (orange)": measured & converged & (values <= 0),
        "were not measured (grey)": ~measured,
    }
    return [
        f"{int(found.sum())} of {found.size} values {what}."
        for what, found in counts.items()
        if found.any()
    ]


def _page(samples: Sequence[ModuleSample], title: str, note: str) -> Page:
    """All panels of the height of the deepest architecture; rooms for the longest names and numbers."""
    longest = max(text_width(name, points=_LABEL_POINTS) for one in samples for name in one.modules)
    epochs = max(len(one.epochs) for one in samples)
    cell = 0.36 if epochs <= _MAX_NUMBERED else max(0.06, 2.6 / epochs)
    names = max(text_width(one.label, points=8.0) for one in samples)
    return Page(
        num_columns=len(samples),
        panel=(
            max(cell * epochs, names, 0.8),
            max(_ROW * max(len(one.modules) for one in samples), 0.6),
        ),
        title=title,
        note=note,
        left=longest + 0.15,
        gap=longest + 0.25,
        right=0.85,
        panel_titles=0.16,
    )


def _draw(ax: "Axes", one: ModuleSample, norm: Any) -> None:
    from matplotlib.patches import Rectangle

    ax.set_facecolor("0.85")
    ax.imshow(
        np.ma.masked_where(~one.shown, one.values).T,
        aspect="auto",
        cmap=COLOURS,
        norm=norm,
        interpolation="nearest",
    )
    for column, row in np.argwhere(np.isfinite(one.values) & ~one.shown):
        done = bool(one.converged[column, row])
        cell = Rectangle((column - 0.5, row - 0.5), 1, 1, edgecolor="0.5", linewidth=0)
        cell.set(facecolor=_NOT_POSITIVE if done else "white", hatch=None if done else "/////")
        ax.add_patch(cell)
    if len(one.epochs) <= _MAX_NUMBERED:
        _write_numbers(ax, one, norm)
    step = max(1, math.ceil(len(one.epochs) / 8))
    ax.set_xticks(range(0, len(one.epochs), step), [str(epoch) for epoch in one.epochs[::step]])
    ax.set_yticks(range(len(one.modules)), one.modules, fontsize=_LABEL_POINTS, parse_math=False)
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(one.label, parse_math=False)
    ax.set_xlabel("Epoch")


def _write_numbers(ax: "Axes", one: ModuleSample, norm: Any) -> None:
    """The value in every cell, light on dark and dark on light."""
    for column, row in np.argwhere(np.isfinite(one.values)):
        value = float(one.values[column, row])
        dark = bool(one.shown[column, row]) and float(norm(value)) < 0.5
        box = (
            None
            if one.converged[column, row]
            else {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
        )
        text = (
            f"{value:.2g}"
            if abs(value) < 100
            else f"{value:.0f}"
            if abs(value) < 1e4
            else f"{value:.0e}".replace("e+0", "e")
        )
        text = text.replace("-", "\N{MINUS SIGN}")
        ax.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=5.5,
            color="white" if dark else "black",
            bbox=box,
        )


def _colour_bar(fig: "Figure", page: Page, norm: Any) -> None:
    from matplotlib.cm import ScalarMappable

    left = (page.width - page.right + 0.12) / page.width
    ax = fig.add_axes(
        (left, page.bottom / page.height, 0.12 / page.width, page.panel[1] / page.height)
    )
    fig.colorbar(ScalarMappable(norm, COLOURS), cax=ax).set_label(
        f"Largest eigenvalue\n({UNIT})", fontsize=6
    )
    ax.tick_params(size=2)
