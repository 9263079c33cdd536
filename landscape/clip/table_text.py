"""Tables as text: from bytes to rows whose fields are as they were written.

Knows no pictures. A field is a run of characters up to the separator or the end of the line, or
stands in double quotation marks, within which a mark is written twice. csv and pandas read such
tables alike. They differ where a mark opens a field and is not closed: pandas drops it and
continues over the ends of lines, here it is a character.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from landscape.errors import DataError
from landscape.files import open_regular

PICTURE_SUFFIXES = ("jpg", "jpeg", "png", "webp")
# UTF-32's mark starts with that of UTF-16.
_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32",
    b"\x00\x00\xfe\xff": "utf-32",
    b"\xef\xbb\xbf": "utf-8-sig",
    b"\xff\xfe": "utf-16",
    b"\xfe\xff": "utf-16",
}
_OTHER_FILES = {
    b"\x1f\x8b": "a gzip archive",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a Parquet file",
}
_LINE_END = re.compile(r"\r\n|\r|\n")


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it was written.

    Attributes:
        fields: Fields without the marks around them; doubled marks within are single.
        raw: The text of the row, without its line end.
        open_marks: Number of fields that begin with a mark that is not closed, and so is a
            character.
        line: Line of the file, from 1, on which the row begins.
    """

    fields: list[str]
    raw: str
    open_marks: int
    line: int

    @property
    def lines(self) -> list[str]:
        """Split the row into lines of the file.

        There are several where a quoted field holds line ends.
        """
        return _LINE_END.split(self.raw)


def read_text(path: Path, encoding: str) -> str:
    """Decode a file by its byte order mark, or else as `encoding`.

    Raises:
        DataError: If the file cannot be read or has another encoding; names the row and an encoding
            that fits.
    """
    try:
        with open_regular(path) as stream:
            content = stream.read()
    except OSError as error:
        raise DataError(
            f"{path}: the table of pairs cannot be read ({error.strerror or error}). Check "
            "`source`."
        ) from error
    for start, kind in _OTHER_FILES.items():
        if content.startswith(start):
            raise DataError(
                f"{path}: this is {kind}, but expected a CSV/TSV table. Unpack it, or write it "
                "again as one."
            )
    marked = next((name for mark, name in _MARKS.items() if content.startswith(mark)), encoding)
    try:
        text = content.decode(marked)
    except UnicodeError as error:
        position = error.start if isinstance(error, UnicodeDecodeError) else 0
        raise DataError(_wrong_encoding(path, content, position, marked)) from error
    at = text.find("\0")
    if at >= 0 and (guess := _guess(content)).startswith("utf-16"):
        raise DataError(_wrong_encoding(path, content, 0, marked, guess))
    if at >= 0:
        raise DataError(
            f"{path}, line {_line_of(text, at)}: there is a NUL character, which no caption or "
            "path has. Remove it, with `tr -d '\\000' < TABLE > CLEAN`, say."
        )
    return text


def _wrong_encoding(
    path: Path, content: bytes, start: int, encoding: str, guess: str | None = None
) -> str:
    guess = _guess(content) if guess is None else guess
    row = content.count(b"\n", 0, start)
    where = f"{path}, row {row}" if row else f"{path}, header"
    if any(content.startswith(mark) for mark in _MARKS):
        return (
            f"{where}: the encoding is not {encoding}, though the file begins with its byte order "
            "mark, so parts of it were written in another one. Write the table again as UTF-8."
        )
    first, last = content.rfind(b"\n", 0, start) + 1, content.find(b"\n", start)
    line = content[first : last if last >= 0 else len(content)][:200]
    if guess.startswith("utf-16"):
        where, line = f"{path}, header", content[:160]
    excerpt = line.decode(guess, errors="replace").split("\n")[0].rstrip("\r")
    return (
        f"{where}: the encoding is not {encoding}; in {guess} this line reads {excerpt[:80]!r}. "
        f"Set `encoding: {guess}` below `data:` if that is right, else the encoding that the table "
        "was written in; or save the table as UTF-8."
    )


def _guess(content: bytes) -> str:
    """Guess an encoding in which the bytes are text."""
    even, odd = content[0:2000:2].count(0), content[1:2000:2].count(0)
    if even + odd > len(content[:2000]) // 5:
        return "utf-16-le" if odd > even else "utf-16-be"
    # These are control characters in Latin-1, and typographic quotation marks and dashes in
    # Windows' code page 1252.
    if re.search(rb"[\x80-\x9f]", content):
        try:
            content.decode("cp1252")
            return "cp1252"
        except UnicodeError:
            pass
    return "latin-1"


def _line_of(text: str, position: int) -> int:
    return len(_LINE_END.findall(text, 0, position)) + 1


def split_rows(text: str, *, separator: str, quoting: str) -> Iterator[Row]:
    """Yield the rows of a table, with its header; skip blank lines.

    Args:
        quoting: "minimal", or "none": each quotation mark is a character.
    """
    plain, end = rf"([^{re.escape(separator)}\r\n]*+)", rf"({re.escape(separator)}|\r\n|\r|\n|\Z)"
    quoted = r'"([^"]*+(?:""[^"]*+)*+)"'
    pattern = re.compile(
        f"(?:{quoted}|{plain}){end}" if quoting == "minimal" else f"()(?:{plain}){end}"
    )
    fields: list[str] = []
    first, line, open_marks = 0, 1, 0
    for match in pattern.finditer(text):
        inside, outside, terminator = match.groups()
        if outside is None:
            fields.append(inside.replace('""', '"'))
        else:
            fields.append(outside)
            open_marks += quoting == "minimal" and outside.startswith('"')
        if terminator == separator:
            continue
        row = Row(fields, text[first : match.start(3)], open_marks, line)
        if len(fields) > 1 or fields[0].strip():
            yield row
        line += len(row.lines) if '"' in row.raw else 1
        fields, first, open_marks = [], match.end(), 0


def joined_rows(
    row: Row, *, separator: str, num_columns: int, image_column: int, folder: Path
) -> int:
    """Count the rows that an unclosed quotation mark has joined into `row`.

    0 if it is a row of several lines. The lines count as rows if each of them has as many columns
    as the table, and a picture in the column of pictures: a name with the ending of a picture, or
    with that of the row's own, or a file.
    """
    if '"' not in row.raw:
        return 0
    lines = [line.split(separator) for line in row.lines]
    if len(lines) < 2 or any(len(fields) != num_columns for fields in lines):
        return 0
    names = [fields[image_column].strip('"') for fields in lines]
    endings = {Path(names[0]).suffix.lower(), *(f".{suffix}" for suffix in PICTURE_SUFFIXES)} - {""}
    pictures = (
        Path(name).suffix.lower() in endings or (name and _is_file(folder / name))
        for name in names[1:]
    )
    return len(names) - 1 if all(pictures) else 0


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    # A caption can be too long for a name.
    except OSError:
        return False
