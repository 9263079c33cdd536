"""Width of texts, line breaks, and the stamp on figures that were not audited."""

import textwrap
from typing import Any

from landscape.figures.page_options import FONT_SIZE

UNAUDITED = "NOT AUDITED: nobody has checked that these are second derivatives of the whole model"
STAMP_BOX: dict[str, Any] = {
    "boxstyle": "square,pad=0.25",
    "facecolor": "#FFE08A",
    "edgecolor": "black",
    "linewidth": 0.8,
}


def letter_scale() -> float:
    """Return the factor of all letters in the present `paper_style`."""
    from matplotlib import rcParams

    return float(rcParams["font.size"]) / FONT_SIZE


def enlarged(points: float) -> float:
    """Convert a size of letters in the style to the present `paper_style`."""
    return points * letter_scale()


def heading_of(title: str | None, *, unaudited: bool) -> str:
    """Join a title and the words that say that nothing was audited."""
    return ". ".join(text for text in (title or "", UNAUDITED if unaudited else "") if text)


def wrap(text: str, width: float, *, points: float) -> str:
    """Break a text into lines of about `width` inches.

    Lines are a few percent shorter, as letters differ in width.
    """
    whole = text_width(text, points=points)
    return (
        text
        if not text or whole <= width
        else textwrap.fill(text, width=max(1, int(0.95 * len(text) * width / whole)))
    )


def wrapped_label(label: str, width: float) -> str:
    r"""Break the label of an axis, which may hold $\lambda$, into lines that fit.

    Args:
        width: In inches at the letters of the style.
    """
    lines = wrap(label.replace("$\\lambda$", "λ"), width, points=7.5)
    return lines.replace("λ", "$\\lambda$")


def text_width(text: str, *, points: float) -> float:
    """Compute the width of a line of text, in inches.

    The font is that of the style.
    """
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(
        text, FontProperties(size=points), ismath=False
    )
    return float(width) / 72
