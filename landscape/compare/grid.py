"""A table of texts, before it is rendered for a terminal or for LaTeX."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Grid:
    """Table of texts: two columns of names, then numbers.

    A section begins where the first name changes.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    @property
    def justified(self) -> tuple[Literal["left", "right"], ...]:
        return tuple("left" if index < 2 else "right" for index in range(len(self.header)))

    def begins_section(self, index: int) -> bool:
        return index > 0 and self.rows[index][0] != self.rows[index - 1][0]
