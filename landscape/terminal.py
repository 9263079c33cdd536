"""Texts and tables that fit a terminal: neither words nor numbers are ever broken.

A table that is too wide is split into several by its columns; where not even one column fits beside the names, its rows are
written one below the other. Imports only the standard library; rich where a table is drawn.
"""

import io
import re
import shutil
import sys
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace

# Where the output is no terminal.
_WIDTH = 120
# Between the columns of a table stand a line and two spaces.
_BETWEEN = 3
_GLUE = "\0"
# Blanks between a number, its error and its unit.
TOGETHER = re.compile("(?<=[\\d)]) (?=[±%])|(?<=±) ")


def terminal_width() -> int | None:
    """Columns of the terminal; None where the output goes to a file or another program."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def wrapped(text: str, width: int | None) -> str:
    """Lines that fit, the rest of a long one indented below it; as they are without a width."""
    if width is None:
        return text
    return "\n".join(line for long in text.split("\n") for line in _wrapped_line(long, width))


def _wrapped_line(line: str, width: int) -> list[str]:
    indent = line[: len(line) - len(line.lstrip())]
    hanging = indent + "  " if len(indent) + 2 < width // 2 else ""
    # A number and its error stay together; textwrap breaks at ASCII blanks alone.
    text = TOGETHER.sub("\N{NO-BREAK SPACE}", line)
    lines = textwrap.wrap(
        text, width, subsequent_indent=hanging, break_long_words=False, break_on_hyphens=False
    )
    return [part.replace("\N{NO-BREAK SPACE}", " ") for part in lines] or [""]


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """A table of texts.

    Args:
        num_names: First columns, which say what a row is about; they stand in every part of a table that is split.
        num_left: First columns that are words, justified to the left; the others are numbers.
        sections: Rows that begin a section.
    """

    title: str
    header: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    num_names: int = 1
    num_left: int = 1
    sections: Collection[int] = ()

    def text(self, width: int | None = None) -> str:
        """The table in so many columns; by default 120."""
        width = _WIDTH if width is None else width
        for glued in (True, False):
            if (widths := self._widths(width, glued=glued)) is not None:
                return self._drawn(widths, glued=glued)
        parts = self._parts(width)
        if parts is None:
            return self._stacked(width)
        return "\n".join(part.text(width) for part in parts)

    def _widths(self, width: int, *, glued: bool) -> list[int] | None:
        """Widths of the columns in which the table fits; None if there are none."""
        columns = list(zip(self.header, *self.rows, strict=True))
        least = [
            max(len(piece) for cell in column for piece in _pieces(cell, glued=glued))
            for column in columns
        ]
        widths = [max(least[index], max(map(len, column))) for index, column in enumerate(columns)]
        room = width - _BETWEEN * len(columns) - 1
        if sum(least) > room:
            return None
        while sum(widths) > room:
            # What can shrink the most is shrunk first.
            widest = max(
                (index for index in range(len(widths)) if widths[index] > least[index]),
                key=lambda i: widths[i],
            )
            widths[widest] -= 1
        return widths

    def _parts(self, width: int) -> "list[TextTable] | None":
        """The table by its columns, as few parts as fit; None if a column fits beside no names."""
        parts: list[TextTable] = []
        start = self.num_names
        while start < len(self.header):
            candidates = (self._columns(start, stop) for stop in range(len(self.header), start, -1))
            part = next(
                (one for one in candidates if one._widths(width, glued=True) is not None), None
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
            justify = "left" if index < self.num_left else "right"
            table.add_column(
                Text(_filled(name, width, glued=glued)), justify=justify, width=width, no_wrap=True
            )  # type: ignore
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
        """A block of lines for each row."""
        lines = [wrapped(self.title, width)]
        for row in self.rows:
            heads = zip(self.header, row[: self.num_names])
            names = [f"{name} {cell}" if cell.isdigit() else cell for name, cell in heads]
            lines += ["", wrapped(", ".join(names), width)]
            cells = zip(self.header[self.num_names :], row[self.num_names :], strict=True)
            lines += [wrapped(f"  {name}: {cell}", width) for name, cell in cells if cell]
        return "\n".join([*lines, ""])


def _pieces(cell: str, *, glued: bool) -> list[str]:
    """What stays on one line: a number with its error and unit; an interval too, where it is glued."""
    text = TOGETHER.sub(_GLUE, cell)
    if glued:
        text = re.sub(r"\[[^\]]*\]", lambda interval: interval.group().replace(" ", _GLUE), text)
    return [piece.replace(_GLUE, " ") for line in text.split("\n") for piece in line.split(" ")]


def _filled(cell: str, width: int, *, glued: bool) -> str:
    """A cell in lines of so many columns at most."""
    lines = [""]
    for piece in _pieces(cell, glued=glued):
        longer = f"{lines[-1]} {piece}" if lines[-1] else piece
        if len(longer) <= width:
            lines[-1] = longer
        else:
            lines.append(piece)
    return "\n".join(lines)


def seconds_text(seconds: float) -> str:
    """A short time, such as "0.53 s" or "12 ms"."""
    return (
        f"{seconds:.2g} s"
        if 0.1 <= seconds < 10
        else f"{seconds:.0f} s"
        if seconds >= 10
        else f"{1000 * seconds:.2g} ms"
    )


def duration_text(seconds: float) -> str:
    """A time as people say it, such as "40 seconds", "3.2 hours" or "2.5 days"."""
    for size, unit, upto in ((1, "second", 90), (60, "minute", 5400), (3600, "hour", 172_800)):
        if seconds < upto:
            break
    else:
        size, unit = 86_400, "day"
    amount = f"{max(seconds / size, 1):.0f}" if size < 3600 else f"{seconds / size:.1f}"
    return f"{amount} {unit}{'' if amount in ('1', '1.0') else 's'}"


def size_text(size: int) -> str:
    """An amount of memory, such as "340 MiB" or "1.3 GiB"."""
    return f"{size / 2**30:.1f} GiB" if size >= 2**30 else f"{max(1, round(size / 2**20))} MiB"
