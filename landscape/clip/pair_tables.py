"""Pairs of a CSV/TSV table, one row per pair, in the format of open_clip_train."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

from landscape.clip.pair_files import FilePairs, PictureFile
from landscape.clip.table_text import Row, joined_rows, read_text, split_rows
from landscape.errors import DataError

_SEPARATORS = ("\t", ",", ";", "|")


def open_csv(
    path: Path,
    *,
    split: str,
    image_size: int | None,
    separator: str,
    image_key: str,
    caption_key: str,
    encoding: str = "utf-8",
    quoting: str = "minimal",
) -> FilePairs:
    """List the pairs of a table of picture paths and captions.

    Unlike in open_clip, relative picture paths are relative to the table's folder, wherever the
    program was started; an entry such as "NA" or "null" is a word, not a missing number; and a
    quotation mark that does not enclose a field is a character.

    Args:
        encoding: Encoding of a table without a byte order mark.
        quoting: "minimal", or "none": each quotation mark is a character.

    Raises:
        DataError: If the file is missing, not a table, or lacks a column; if it holds no pair, or a
            pair without a picture; if a quotation mark that is not closed joins rows.
    """
    rows = split_rows(read_text(path, encoding), separator=separator, quoting=quoting)
    header = next(rows, None)
    if header is None:
        raise DataError(f"{path}: the table is empty; expected a header line and one row per pair.")
    table = _Table(path, header, separator, image_key=image_key, caption_key=caption_key)
    files, open_marks = [], 0
    for number, row in enumerate(rows, start=1):
        files.append(table.pair(number, row))
        open_marks += row.open_marks
    if not files:
        raise DataError(
            f"{path}: the table has a header and no row, so there is no pair. Write one row per "
            "pair."
        )
    return FilePairs(
        files,
        split=split,
        source=str(path),
        image_size=image_size,
        notes=tuple(_notes(path, files, open_marks)),
    )


def _notes(path: Path, files: list[PictureFile], open_marks: int) -> Iterator[str]:
    if open_marks:
        yield (
            f"{path}: {open_marks} fields begin with a quotation mark that encloses no field; they "
            "are read as written, while pandas, and so open_clip, drops such marks or joins rows. "
            "Write `quoting: none` below `data:` if all marks are characters."
        )
    empty = sum(not file.caption.strip() for file in files)
    if empty:
        yield (
            f"{path}: {empty} of {len(files)} captions are empty; open_clip trains on the word "
            "'nan' in their place."
        )


class _Table:
    """The header of a table, against which its rows are checked.

    Raises:
        DataError: If a column is missing, or there twice.
    """

    def __init__(
        self, path: Path, header: Row, separator: str, *, image_key: str, caption_key: str
    ) -> None:
        self._title, self._folder = str(path), str(path.parent)
        self.path, self.separator, self.names = (
            path,
            separator,
            [name.strip() for name in header.fields],
        )
        if "" in self.names and not set(self.names) - {""}:
            raise DataError(f"{path}: the header is empty; expected the names of the columns.")
        self.image = self._column(header, "image_key", image_key, (image_key, caption_key))
        self.caption = self._column(header, "caption_key", caption_key, (image_key, caption_key))

    def _column(self, header: Row, option: str, name: str, both: tuple[str, str]) -> int:
        # Blanks around a name are ignored, unless only they distinguish it from another column.
        for names in (header.fields, self.names):
            if names.count(name) == 1:
                return names.index(name)
        if self.names.count(name.strip()) > 1:
            raise DataError(
                f"{self.path}: there are {self.names.count(name.strip())} columns {name!r}, so it "
                "is unclear which is meant. "
                f"Rename all but one, or set `{option}` to another column."
            )
        others = [mark for mark in _SEPARATORS if mark != self.separator]
        for other in others:
            names = [field.strip().strip('"') for field in header.raw.split(other)]
            if set(both) <= set(names):
                raise DataError(
                    f"{self.path}: there is no column {name!r} with separator {self.separator!r}, "
                    f"but with {other!r} there is. Set `separator: {_yaml(other)}` below `data:`."
                )
        there = ", ".join(repr(there) for there in self.names[:20]) + (
            ", ..." if len(self.names) > 20 else ""
        )
        raise DataError(
            f"{self.path}: there is no column {name!r} (there are [{there}] with separator "
            f"{self.separator!r}). Set `{option}` to the column that the table has"
            + (
                ", and `separator` to what stands between the columns."
                if len(self.names) == 1
                else "."
            )
        )

    def pair(self, number: int, row: Row) -> PictureFile:
        """Return the pair of a row.

        Raises:
            DataError: If the row has another number of columns, no picture, or holds other rows.
        """
        where = f"{self._title}, row {number}"
        num_joined = joined_rows(
            row,
            separator=self.separator,
            num_columns=len(self.names),
            image_column=self.image,
            folder=self.path.parent,
        )
        if num_joined:
            self._refuse_open_mark(where, row, num_joined)
        if len(row.fields) != len(self.names):
            self._refuse_length(where, row)
        name = row.fields[self.image]
        if not name.strip():
            raise DataError(
                f"{where}: column {self.names[self.image]!r} is empty, so there is no picture. "
                "Drop the row."
            )
        return PictureFile(
            key=name,
            caption=row.fields[self.caption],
            path=os.path.join(self._folder, name),
            where=where,
        )

    def _refuse_open_mark(self, where: str, row: Row, num_joined: int) -> NoReturn:
        caption = row.lines[0].split(self.separator)[self.caption]
        raise DataError(
            f"{where} (line {row.line}), caption {caption[:80]!r}: a quotation mark is not closed, "
            f"so the next {num_joined} rows would be part of this one. Write `quoting: none` below "
            "`data:` if quotation marks are characters of the captions; else close it."
        )

    def _refuse_length(self, where: str, row: Row) -> NoReturn:
        span = (
            f"line {row.line}"
            if len(row.lines) < 2
            else f"lines {row.line} to {row.line + len(row.lines) - 1}"
        )
        advice = (
            "Put captions that hold separators or line ends in quotation marks, and double the "
            "marks within."
        )
        if '"' in row.raw and all(
            len(line.split(self.separator)) == len(self.names) for line in row.lines
        ):
            advice += (
                " If marks are characters of the captions, write `quoting: none` below `data:` "
                "instead."
            )
        raise DataError(
            f"{where} ({span}): there are {len(row.fields)} columns with separator "
            f"{self.separator!r}, expected {len(self.names)} as in the header, so it is unclear "
            f"where the caption ends. {advice}"
        )


def _yaml(separator: str) -> str:
    return '"\\t"' if separator == "\t" else f'"{separator}"'
