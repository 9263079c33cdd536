"""Style of the figures, and writing of a figure to disk."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from landscape.errors import StoreError
from landscape.figures.fonts import complete_fonts, font_families, font_warnings_off
from landscape.figures.text import letter_scale
from landscape.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE_FILE = Path(__file__).parent.parent / "paper.mplstyle"
# The colour cycle of the style file has as many entries; more curves in one panel cannot be told
# apart.
MAX_SERIES = 8
# Metadata that would differ between two runs on the same numbers is left out.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
# Settings in points that grow with the letters.
_OF_LETTERS: tuple[Any, ...] = (
    "font.size",
    "axes.titlesize",
    "axes.titlepad",
    "axes.labelsize",
    "figure.labelsize",
    "figure.titlesize",
    "xtick.labelsize",
    "ytick.labelsize",
    "xtick.major.pad",
    "ytick.major.pad",
    "legend.fontsize",
    "legend.title_fontsize",
)
SUFFIXES = tuple(f".{name}" for name in _METADATA)


@dataclass(frozen=True)
class LineStyle:
    """Colour and dashes of a series.

    The colour is "#rrggbb". `dash` distinguishes series without colour: alternating lengths of
    strokes and gaps in line widths, empty for a solid line.
    """

    color: str
    dash: tuple[float, ...]


def line_styles() -> tuple[LineStyle, ...]:
    """Read the colour cycle of `paper.mplstyle`.

    For pictures that matplotlib does not draw.
    """
    from matplotlib import rc_params_from_file

    cycle = rc_params_from_file(STYLE_FILE, use_default_template=False)["axes.prop_cycle"]
    return tuple(
        LineStyle(
            color=f"#{entry['color'].lstrip('#')}",
            dash=() if entry["linestyle"] == "-" else tuple(entry["linestyle"][1]),
        )
        for entry in cycle
    )


@contextmanager
def paper_style(scale: float = 1.0) -> Iterator[None]:
    """Draw or save with `paper.mplstyle`, whatever the user's settings are.

    The style is applied on top of matplotlib's defaults.

    Args:
        scale: Factor of all letters.
    """
    from matplotlib import rcParams, style

    with font_warnings_off(), style.context(str(STYLE_FILE), after_reset=True):
        rcParams["font.family"] = list(font_families())
        if scale != 1:
            for name in _OF_LETTERS:
                rcParams[name] *= scale
        yield


def new_figure(width: float, height: float) -> "Figure":
    """Create a figure within `paper_style`, enlarged as its letters are.

    Args:
        width, height: Size in inches at the letters of the style.
    """
    from matplotlib.figure import Figure

    scale = letter_scale()
    return Figure(figsize=(scale * width, scale * height))


def svg_of(fig: "Figure") -> bytes:
    """Render the figure as the SVG that `save_figure` writes."""
    stream = io.BytesIO()
    _write(fig, stream, "svg")
    return stream.getvalue()


def _write(fig: "Figure", stream: IO[bytes], kind: str) -> None:
    # New ticks have the letters of those that were drawn first.
    with paper_style():
        complete_fonts(fig)
        fig.savefig(stream, format=kind, metadata=_METADATA[kind])


def save_figure(fig: "Figure", path: Path) -> None:
    """Write `fig` as PNG, PDF or SVG, by the suffix.

    Equal figures give equal bytes. The file is complete or absent: it is written under a temporary
    name in the same folder, which is created if missing, flushed to disk and renamed.

    Raises:
        ValueError: If the suffix is none of `SUFFIXES`.
        StoreError: If the folder or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: a figure cannot be written as {suffix!r}, the suffix must be one of "
            f"{', '.join(SUFFIXES)}."
        )
    stream = io.BytesIO()
    _write(fig, stream, suffix[1:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, stream.getvalue())
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}) - the figure is not saved - choose a "
            "folder that is writable."
        ) from error
