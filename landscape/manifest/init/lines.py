"""Lines of a manifest with aligned comments.

Some lines are left for the user to fill in.
"""

import re
import textwrap
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import yaml

from landscape.manifest.document import FILL_IN, Dumper

_WIDTH = 100
# Comments stand behind lines of up to this number of characters, above longer ones.
_LONGEST = 44


@dataclass(frozen=True)
class Line:
    """A line of the manifest.

    Attributes:
        code: The line without its comment; FILL_IN stands for a missing value.
        comment: The comment behind the line, or above it where there is no room.
        wanted: What the user has to write in place of FILL_IN; empty where nothing is missing.
        stand_in: Value that replaces FILL_IN while the rest is checked.
    """

    code: str = ""
    comment: str = ""
    wanted: str = ""
    stand_in: str = ""

    @property
    def indent(self) -> int:
        """Count the leading spaces."""
        return len(self.code) - len(self.code.lstrip())


@dataclass(frozen=True)
class Text:
    """A manifest as text.

    Attributes:
        wanted: Line numbers, and what is to be filled in there.
    """

    text: str
    wanted: tuple[tuple[int, str], ...]


def setting(indent: int, key: str, value: Any, comment: str = "") -> Line:
    """Build the line "key: value"."""
    return Line(f"{' ' * indent}{key}: {scalar(value)}", comment)


def missing(indent: int, key: str, wanted: str, *, stand_in: Any, comment: str = "") -> Line:
    """Build a line whose value the user has to fill in."""
    return Line(f"{' ' * indent}{key}: {FILL_IN}", comment or wanted, wanted, scalar(stand_in))


def remark(indent: int, text: str, *, hanging: int = 0) -> list[Line]:
    """Build lines that hold only a comment.

    Args:
        hanging: Number of spaces before its second and later lines.
    """
    lines = textwrap.wrap(
        plain(text),
        width=_WIDTH - indent - 2,
        subsequent_indent=" " * hanging,
        break_long_words=False,
        break_on_hyphens=False,
    )
    return [Line(f"{' ' * indent}# {line}") for line in lines]


def render(lines: Iterable[Line]) -> Text:
    """Render lines with comments; number what is to be filled in.

    The comments of each block are aligned.
    """
    rows: list[str] = []
    wanted: list[tuple[int, str]] = []
    for block in _blocks(lines):
        beside = [line for line in block if _fits_beside(line)]
        column = max((len(line.code) for line in beside), default=0) + 2
        for line in block:
            if line.comment and not (
                line in beside and column + 2 + len(plain(line.comment)) <= _WIDTH
            ):
                rows += [above.code for above in remark(line.indent, line.comment)]
                rows.append(line.code)
            else:
                rows.append(
                    f"{line.code:<{column}}# {plain(line.comment)}" if line.comment else line.code
                )
            if line.wanted:
                wanted.append((len(rows), line.wanted))
    return Text("\n".join(rows) + "\n", tuple(wanted))


def stand_ins(lines: Iterable[Line]) -> list[Line]:
    """Fill in all missing values by stand-ins, to check the rest."""
    return [
        Line(line.code.replace(FILL_IN, line.stand_in) if line.wanted else line.code)
        for line in lines
    ]


def scalar(value: Any) -> str:
    """Format a value for any place of a manifest, on one line."""
    written = yaml.dump(
        [value], Dumper=Dumper, default_flow_style=True, width=10**6, allow_unicode=True
    )
    return written.strip()[1:-1]


def plain(text: str) -> str:
    """Reduce a text to what a comment may hold.

    That is one line, without characters that YAML cannot read.
    """
    return re.sub(
        r"\s+", " ", "".join(character if character.isprintable() else " " for character in text)
    ).strip()


def _fits_beside(line: Line) -> bool:
    return bool(line.comment) and len(line.code) <= _LONGEST


def _blocks(lines: Iterable[Line]) -> list[list[Line]]:
    """Split lines into blocks at empty lines."""
    blocks: list[list[Line]] = [[]]
    for line in lines:
        blocks[-1].append(line)
        if not line.code:
            blocks.append([])
    return blocks
