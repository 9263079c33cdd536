"""Texts and tables that fit a terminal, without breaking words or numbers.

A table that is too wide is split into several by its columns. If not even one column fits beside
the names, its rows are written one below the other. Imports only the standard library, and rich
where a table is drawn.
"""

import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from typing import Literal

# Width where the output is no terminal.
_WIDTH = 120
# A line and two spaces separate the columns of a table.
_BETWEEN = 3
_GLUE = "\0"
# Blanks between a number, its error and its unit.
TOGETHER = re.compile("(?<=[\\d)]) (?=[±%])|(?<=±) ")


def terminal_width() -> int | None:
    """Return the columns of the terminal; None without a terminal.

    The variable COLUMNS, where it is set, wins in a pipe too.
    """
    is_known = sys.stdout.isatty() or os.environ.get("COLUMNS", "").isdecimal()
    return shutil.get_terminal_size().columns if is_known else None


def text_columns(text: str) -> int:
    """Count the columns that a text takes in a terminal.

    A Chinese, Japanese or Korean letter takes two, a combining mark none.
    """
    if text.isascii():
        return len(text)
    from rich.cells import cell_len

    return cell_len(text)


def wrapped(text: str, width: int | None) -> str:
    """Wrap a text to a width; None leaves it unchanged.

    The continuation of a long line is indented.
    """
    if width is None:
        return text
    return "\n".join(line for long in text.split("\n") for line in _wrapped_line(long, width))


def _wrapped_line(line: str, width: int) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    hanging = indent + "  " if len(indent) + 2 < width // 2 else ""
    # A number and its error stay together: textwrap breaks only at ASCII blanks.
    text = TOGETHER.sub("\N{NO-BREAK SPACE}", line)
    lines = textwrap.wrap(
        text, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\N{NO-BREAK SPACE}", " ") for part in lines] or [""]


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of texts.

    Args:
        num_names: Number of first columns that name a row; they stand in every part of a table that
            is split.
        num_left: Number of first columns that are words, aligned to the left; the others are
            numbers.
        sections: Rows that begin a section.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_names: int = 1
    num_left: int = 1
    sections: Collection[int] = ()

    def text(self, width: int | None = None) -> str:
        """Format the table for a width in columns, 120 by default."""
        width = _WIDTH if width is None else width
        for glued in (True, False):
            if (widths := self._widths(width, glued=glued)) is not None:
                return self._drawn(widths, glued=glued)
        parts = self._parts(width)
        if parts is None:
            return self._stacked(width)
        return "\n".join(part.text(width) for part in parts)

    def _widths(self, width: int, *, glued: bool) -> list[int] | None:
        """Choose the widths of the columns, if the table fits."""
        columns = list(zip(self.header, *self.rows, strict=True))
        least = [
            max(text_columns(piece) for cell in column for piece in _pieces(cell, glued=glued))
            for column in columns
        ]
        widths = [
            max(narrow, *map(text_columns, column))
            for narrow, column in zip(least, columns, strict=True)
        ]
        room = width - _BETWEEN * len(columns) - 1
        if sum(least) > room:
            return None
        while sum(widths) > room:
            # Shrink the widest of the columns that can still shrink.
            widest = max(
                (index for index in range(len(widths)) if widths[index] > least[index]),
                key=lambda i: widths[i],
            )
            widths[widest] -= 1
        return widths

    def _parts(self, width: int) -> "list[TextTable] | None":
        """Split the table by columns into few parts; None if impossible.

        It is impossible if a column does not fit beside the names.
        """
        parts: list[TextTable] = []
        start = self.num_names
        while start < len(self.header):
            candidates = (self._columns(start, stop) for stop in range(len(self.header), start, -1))
            part = next(
                (
                    candidate
                    for candidate in candidates
                    if candidate._widths(width, glued=True) is not None
                ),
                None,
            )
            if part is None:
                return None
            parts.append(part if not parts else replace(part, title=f"{part.title} (continued)"))
            start += len(part.header) - self.num_names
        return parts if len(parts) > 1 else None

    def _columns(self, start: int, stop: int) -> "TextTable":
        kept = [*range(self.num_names), *range(start, stop)]
        rows = tuple(tuple(row[index] for index in kept) for row in self.rows)
        num_left = sum(index < self.num_left for index in kept)
        return replace(
            self, header=tuple(self.header[index] for index in kept), rows=rows, num_left=num_left
        )

    def _drawn(self, widths: Sequence[int], *, glued: bool) -> str:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(
            title=Text(wrapped(self.title, sum(widths) + _BETWEEN * len(widths) + 1)),
            title_justify="left",
        )
        for index, (name, width) in enumerate(zip(self.header, widths, strict=True)):
            justify: Literal["left", "right"] = "left" if index < self.num_left else "right"
            text = Text(_filled(name, width, glued=glued))
            table.add_column(text, justify=justify, width=width, no_wrap=True)
        for number, row in enumerate(self.rows):
            if number in self.sections:
                table.add_section()
            table.add_row(
                *(
                    Text(_filled(cell, width, glued=glued))
                    for cell, width in zip(row, widths, strict=True)
                )
            )
        stream = io.StringIO()
        Console(
            file=stream,
            width=sum(widths) + _BETWEEN * len(widths) + 1,
            highlight=False,
            color_system=None,
        ).print(table)
        return "\n".join(line.rstrip() for line in stream.getvalue().rstrip().split("\n"))

    def _stacked(self, width: int) -> str:
        """Format each row as a block of lines."""
        lines = [wrapped(self.title, width)]
        for row in self.rows:
            heads = zip(self.header, row[: self.num_names])
            names = [f"{name} {cell}" if cell.isdigit() else cell for name, cell in heads]
            lines += ["", wrapped(", ".join(names), width)]
            cells = zip(self.header[self.num_names :], row[self.num_names :], strict=True)
            lines += [wrapped(f"  {name}: {cell}", width) for name, cell in cells if cell]
        return "\n".join([*lines, ""])


def _pieces(cell: str, *, glued: bool) -> list[str]:
    """Split a cell into pieces that stay on one line.

    A piece is a word, or a number with its error and unit; an interval too, if `glued`.
    """
    text = TOGETHER.sub(_GLUE, cell)
    if glued:
        text = re.sub(r"\[[^\]]*\]", lambda interval: interval.group().replace(" ", _GLUE), text)
    return [piece.replace(_GLUE, " ") for line in text.split("\n") for piece in line.split(" ")]


def _filled(cell: str, width: int, *, glued: bool) -> str:
    """Wrap a cell to lines of at most `width` columns."""
    lines = [""]
    for piece in _pieces(cell, glued=glued):
        longer = f"{lines[-1]} {piece}" if lines[-1] else piece
        if text_columns(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(piece)
    return "\n".join(lines)


def seconds_text(seconds: float) -> str:
    """Format a short time, such as "0.53 s" or "12 ms"."""
    return (
        f"{seconds:.2g} s"
        if 0.1 <= seconds < 10
        else f"{seconds:.0f} s"
        if seconds >= 10
        else f"{1000 * seconds:.2g} ms"
    )


def duration_text(seconds: float) -> str:
    """Format a time in words, such as "40 seconds" or "3.2 hours".

    Long times are in days, such as "2.5 days".
    """
    for size, unit, upto in ((1, "second", 90), (60, "minute", 5400), (3600, "hour", 172_800)):
        if seconds < upto:
            break
    else:
        size, unit = 86_400, "day"
    amount = f"{max(seconds / size, 1):.0f}" if size < 3600 else f"{seconds / size:.1f}"
    return f"{amount} {unit}{'' if amount in ('1', '1.0') else 's'}"


def size_text(size: int) -> str:
    """Format an amount of memory, such as "340 MiB" or "1.3 GiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(1, round(size / 2**20))} MiB"
