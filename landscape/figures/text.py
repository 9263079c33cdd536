"""How wide texts are in the font of the style, lines that fit, and the stamp on figures of what was not audited."""

import textwrap
from typing import Any

UNAUDITED = "NOT AUDITED: nobody has checked that these are second derivatives of the whole model"
STAMP_BOX: dict[str, Any] = {
    "boxstyle": "square,pad=0.25",
    "facecolor": "#FFE08A",
    "edgecolor": "black",
    "linewidth": 0.8,
}


def wrap(text: str, width: float, *, points: float) -> str:
    """Break a text into lines of about `width` inches, a few percent less where its letters are unevenly wide."""
    whole = text_width(text, points=points)
    return (
        text
        if whole <= width
        else textwrap.fill(text, width=max(1, int(0.95 * len(text) * width / whole)))
    )


def text_width(text: str, *, points: float) -> float:
    """Inches that a line of text takes in the font of the style."""
    from matplotlib.font_manager import FontProperties
    from matplotlib.textpath import text_to_path

    width, _, _ = text_to_path.get_text_width_height_descent(
        text, FontProperties(size=points), ismath=False
    )
    return float(width) / 72
