"""Sizes of a figure that its user may choose."""

import math
from dataclasses import dataclass

# Points of ordinary text in paper.mplstyle.
FONT_SIZE = 7.0
# A narrower panel has no room for its tick labels, in inches of the style.
_NARROWEST_PANEL = 0.75


@dataclass(frozen=True, kw_only=True)
class PageOptions:
    """Width, panels side by side, letters and axis of a figure.

    None is what the figure chooses itself. A figure with larger letters is laid out on a smaller
    page, which is then enlarged as a whole: `scale`.

    Args:
        width: Width of the figure in inches.
        num_columns: Number of panels side by side.
        font_size: Size of ordinary text in points, 7 by default; titles, labels and the room for
            them grow with it.
        linear: Draw eigenvalues on a linear axis.

    Raises:
        ValueError: If a number is out of range.
    """

    width: float | None = None
    num_columns: int | None = None
    font_size: float | None = None
    linear: bool = False

    def __post_init__(self) -> None:
        for name, low, high in (("width", 1, 50), ("font_size", 3, 40), ("num_columns", 1, 20)):
            value = getattr(self, name)
            if value is not None and not (math.isfinite(value) and low <= value <= high):
                raise ValueError(f"{name} must be from {low} to {high}, got {value}.")

    @property
    def scale(self) -> float:
        return 1.0 if self.font_size is None else self.font_size / FONT_SIZE

    def page_width(self, default: float) -> float:
        """Return the width of the page before it is enlarged, in inches."""
        return (default if self.width is None else self.width) / self.scale

    def check_panel(self, panel_width: float, num_columns: int) -> None:
        """Refuse panels without room for their tick labels.

        Args:
            panel_width: Width of a panel of the page before it is enlarged, in inches.

        Raises:
            ValueError: If they are too narrow.
        """
        if panel_width < _NARROWEST_PANEL:
            missing = (_NARROWEST_PANEL - panel_width) * num_columns * self.scale
            raise ValueError(
                f"width: {num_columns} panels side by side need {missing:.1f} inches more. Give a "
                "larger width, fewer columns or smaller letters."
            )
