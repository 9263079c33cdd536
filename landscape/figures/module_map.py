"""Heat map of the sharpness of modules over depth and epoch.

One panel per architecture. Sizes are in inches.

Shapes: e = epochs, m = modules.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
from jaxtyping import Bool, Float

from landscape.figures.loss_surfaces import COLOURS
from landscape.figures.page import Page
from landscape.figures.page_options import PageOptions
from landscape.figures.style import paper_style
from landscape.figures.text import enlarged, text_width

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
    """Sharpness of the modules of one architecture along its training.

    Args:
        series: Name of the checkpoint series.
        label: Title of its panel.
        modules: Names of the modules, in order of depth, the input first.
        epochs: Epochs, ascending.
        values: Largest Hessian eigenvalue of each module, in nats per squared parameter; NaN where
            nothing was measured.
        converged: Whether the eigenvalues behind a value met their tolerance.

    Raises:
        ValueError: If the shapes do not fit, a name occurs twice, or the epochs do not ascend.
    """

    series: str
    label: str
    modules: tuple[str, ...]
    epochs: tuple[int, ...]
    values: Float[np.ndarray, "e m"]
    converged: Bool[np.ndarray, "e m"]
    missing: ClassVar[str] = "were not measured (grey)"

    def __post_init__(self) -> None:
        where, shape = f"modules of series {self.series!r}", (len(self.epochs), len(self.modules))
        if (
            not self.modules
            or not self.epochs
            or self.values.shape != shape
            or self.converged.shape != shape
        ):
            raise ValueError(
                f"{where}: values and converged must have the shape (epochs, modules) = {shape}, "
                f"at least (1, 1), got {self.values.shape} and {self.converged.shape}."
            )
        if len(set(self.modules)) < len(self.modules):
            raise ValueError(f"{where}: a name is there twice.")
        if list(self.epochs) != sorted(set(self.epochs)):
            raise ValueError(f"{where}: epochs must ascend, got {list(self.epochs)}.")

    @property
    def shown(self) -> Bool[np.ndarray, "e m"]:
        """Mark values that are certified and positive.

        A logarithmic colour scale can show only these.
        """
        return np.isfinite(self.values) & self.converged & (self.values > 0)

    def text(self, value: float) -> str:
        """Format a value for its cell."""
        if abs(value) < 100:
            return f"{value:.2g}"
        return f"{value:.0f}" if abs(value) < 1e4 else f"{value:.0e}".replace("e+0", "e")


@dataclass(frozen=True, kw_only=True)
class ShareSample(ModuleSample):
    """Share of each module in something, in percent, drawn on a linear colour scale."""

    missing: ClassVar[str] = "are not known (grey)"

    @property
    def shown(self) -> Bool[np.ndarray, "e m"]:
        """Mark known values; a linear colour scale can show zeros too."""
        return np.isfinite(self.values) & self.converged

    def text(self, value: float) -> str:
        """Format a value for its cell."""
        return f"{value:.2g}" if value >= 0.01 else "<0.01"


def module_heat_map(
    samples: Sequence[ModuleSample],
    *,
    title: str | None = None,
    note: str = "",
    label: str = f"Largest eigenvalue\n({UNIT})",
    page_options: PageOptions | None = None,
) -> "Figure":
    """Draw the sharpness of modules as a heat map, or their shares in something.

    Depth is downwards, epochs are to the right, and one colour scale serves all panels: a linear
    one for shares, else a logarithmic one. A value that did not converge is hatched and has no
    colour. A value that is not positive, which a logarithm cannot show, is orange. A value that was
    not measured is grey. The text under the panels counts them.

    Args:
        samples: One to four, a panel each.
        title: Heading; none by default.
        note: Text under the panels, before the counts.
        page_options: Width and letters; by default as many inches as the names and numbers take.
        label: Text beside the colour scale.

    Raises:
        ValueError: If there are no samples, more than four, two of one series, or no value to draw.
    """
    if not 1 <= len(samples) <= MAX_PANELS:
        raise ValueError(f"samples: 1 to {MAX_PANELS} fit into one figure, got {len(samples)}.")
    if len({sample.series for sample in samples}) < len(samples):
        raise ValueError("samples: two are of the same series.")
    shown = np.concatenate([sample.values[sample.shown] for sample in samples])
    if not shown.size:
        raise ValueError(
            "no module has a positive value that converged, so there is nothing to draw."
        )
    norm = _norm(samples, float(shown.min()), float(shown.max()))
    page_options = page_options or PageOptions()
    texts = [*[note] * bool(note), *_counts(samples)]
    with paper_style(page_options.scale):
        page = _page(samples, title or "", " ".join(texts))
        # Names and numbers decide the width where none is asked for.
        page = page if page_options.width is None else page.fitted(page_options)
        fig, axes = page.figure()
        for ax, sample in zip(axes, samples):
            _draw(ax, sample, norm)
        _colour_bar(fig, page, norm, label)
        page.write(fig, axes)
    return fig


def _norm(samples: Sequence[ModuleSample], low: float, high: float) -> Any:
    from matplotlib.colors import LogNorm, Normalize

    if all(isinstance(sample, ShareSample) for sample in samples):
        return Normalize(0, 100)
    return LogNorm(low, high) if high > low else LogNorm(low / 2, high * 2)


def _counts(samples: Sequence[ModuleSample]) -> list[str]:
    values = np.concatenate([sample.values.ravel() for sample in samples])
    converged = np.concatenate([sample.converged.ravel() for sample in samples])
    shown = np.concatenate([sample.shown.ravel() for sample in samples])
    measured = np.isfinite(values)
    counts = {
        "did not converge (hatched)": measured & ~converged,
        "are not positive (orange)": measured & converged & ~shown,
        samples[0].missing: ~measured,
    }
    return [
        f"{int(mask.sum())} of {mask.size} values {what}."
        for what, mask in counts.items()
        if mask.any()
    ]


def _page(samples: Sequence[ModuleSample], title: str, note: str) -> Page:
    """Choose sizes for the deepest architecture and the longest names and numbers."""
    longest = max(
        text_width(name, points=_LABEL_POINTS) for sample in samples for name in sample.modules
    )
    epochs = max(len(sample.epochs) for sample in samples)
    cell = 0.36 if epochs <= _MAX_NUMBERED else max(0.06, 2.6 / epochs)
    names = max(text_width(sample.label, points=8.0) for sample in samples)
    return Page(
        num_columns=len(samples),
        panel=(
            max(cell * epochs, names, 0.8),
            max(_ROW * max(len(sample.modules) for sample in samples), 0.6),
        ),
        title=title,
        note=note,
        left=longest + 0.15,
        gap=longest + 0.25,
        right=0.85,
        panel_titles=0.16,
    )


def _draw(ax: "Axes", sample: ModuleSample, norm: Any) -> None:
    from matplotlib.patches import Rectangle

    ax.set_facecolor("0.85")
    ax.imshow(
        np.ma.masked_where(~sample.shown, sample.values).T,
        aspect="auto",
        cmap=COLOURS,
        norm=norm,
        interpolation="nearest",
    )
    for column, row in np.argwhere(np.isfinite(sample.values) & ~sample.shown):
        done = bool(sample.converged[column, row])
        cell = Rectangle((column - 0.5, row - 0.5), 1, 1, edgecolor="0.5", linewidth=0)
        cell.set(facecolor=_NOT_POSITIVE if done else "white", hatch=None if done else "/////")
        ax.add_patch(cell)
    if len(sample.epochs) <= _MAX_NUMBERED:
        _write_numbers(ax, sample, norm)
    step = max(1, math.ceil(len(sample.epochs) / 8))
    ax.set_xticks(
        range(0, len(sample.epochs), step), [str(epoch) for epoch in sample.epochs[::step]]
    )
    ax.set_yticks(
        range(len(sample.modules)),
        sample.modules,
        fontsize=enlarged(_LABEL_POINTS),
        parse_math=False,
    )
    ax.tick_params(length=0)
    ax.spines[:].set_visible(False)
    ax.set_title(sample.label, parse_math=False)
    ax.set_xlabel("Epoch")


def _write_numbers(ax: "Axes", sample: ModuleSample, norm: Any) -> None:
    """Write the value in every cell, in a colour that contrasts.

    It is light on dark and dark on light.
    """
    for column, row in np.argwhere(np.isfinite(sample.values)):
        value = float(sample.values[column, row])
        dark = bool(sample.shown[column, row]) and float(norm(value)) < 0.5
        box = (
            None
            if sample.converged[column, row]
            else {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
        )
        text = sample.text(value).replace("-", "\N{MINUS SIGN}")
        ax.text(
            column,
            row,
            text,
            ha="center",
            va="center",
            fontsize=enlarged(5.5),
            color="white" if dark else "black",
            bbox=box,
        )


def _colour_bar(fig: "Figure", page: Page, norm: Any, label: str) -> None:
    from matplotlib.cm import ScalarMappable

    left = (page.width - page.right + 0.12) / page.width
    ax = fig.add_axes(
        (left, page.bottom / page.height, 0.12 / page.width, page.panel[1] / page.height)
    )
    fig.colorbar(ScalarMappable(norm, COLOURS), cax=ax).set_label(label, fontsize=enlarged(6))
    ax.tick_params(size=2)
