"""The one style file, and writing a figure to disk."""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from landscape.errors import StoreError
from landscape.figures.fonts import font_families, font_warnings_off, tell_missing
from landscape.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

STYLE_FILE = Path(__file__).parent.parent / "paper.mplstyle"
# The colour cycle of the style file has as many entries; more curves in one panel cannot be told apart.
MAX_SERIES = 8
# Metadata that would differ between two runs on the same numbers is left out.
_METADATA: dict[str, dict[str, Any]] = {
    "png": {},
    "pdf": {"CreationDate": None},
    "svg": {"Date": None},
}
SUFFIXES = tuple(f".{name}" for name in _METADATA)


@dataclass(frozen=True)
class LineStyle:
    """How a series is told from the others: by colour, "#rrggbb", and without it by `dash`, alternating lengths of strokes and
    gaps in line widths; empty for a solid line."""

    color: str
    dash: tuple[float, ...]


def line_styles() -> tuple[LineStyle, ...]:
    """The cycle of `paper.mplstyle`, for pictures that matplotlib does not draw."""
    from matplotlib import rc_params_from_file

    cycle = rc_params_from_file(STYLE_FILE, use_default_template=False)["axes.prop_cycle"]
    return tuple(
        LineStyle(
            color=f"#{one['color'].lstrip('#')}",
            dash=() if one["linestyle"] == "-" else tuple(one["linestyle"][1]),
        )
        for one in cycle
    )


@contextmanager
def paper_style() -> Iterator[None]:
    """Draw or save with `paper.mplstyle` on top of matplotlib's defaults, whatever the user's own settings are."""
    from matplotlib import rcParams, style

    with font_warnings_off(), style.context(str(STYLE_FILE), after_reset=True):
        rcParams["font.family"] = list(font_families())
        yield


def svg_of(fig: "Figure") -> bytes:
    """The figure as the SVG that `save_figure` writes."""
    stream = io.BytesIO()
    _write(fig, stream, "svg")
    return stream.getvalue()


def _write(fig: "Figure", stream: IO[bytes], kind: str) -> None:
    with paper_style():
        fig.savefig(stream, format=kind, metadata=_METADATA[kind])
    tell_missing(fig)


def save_figure(fig: "Figure", path: Path) -> None:
    """Write `fig` as PNG, PDF or SVG, by the suffix; equal figures give equal bytes.

    The file appears whole or not at all: it is written under a temporary name in the same folder, which is made if
    missing, flushed to disk and renamed.

    Raises:
        ValueError: If the suffix is none of `SUFFIXES`.
        StoreError: If the folder or the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise ValueError(
            f"{path}: a figure cannot be written as {suffix!r}, the suffix must be one of {', '.join(SUFFIXES)}."
        )
    stream = io.BytesIO()
    _write(fig, stream, suffix[1:])
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, stream.getvalue())
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror}) - the figure is not saved - choose a folder that is writable."
        ) from error
