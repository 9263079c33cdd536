"""Tables of pictures and labels: CSV or TSV, and Hateful Memes' JSON lines.

CSV and TSV tables have a header.
"""

import json
from pathlib import Path

from landscape.clip.pair_files import PictureFile
from landscape.clip.pair_tables import open_csv
from landscape.clip.table_text import read_text, split_rows
from landscape.datasets.labelled import PictureFiles, RawPictures
from landscape.errors import DataError

PICTURE_COLUMNS = (
    "filepath",
    "path",
    "image",
    "image_path",
    "img",
    "filename",
    "file_name",
    "file",
)
LABEL_COLUMNS = ("label", "class", "class_name", "category", "target", "title")
_SEPARATORS = (",", "\t", ";", "|")


def read_table(path: Path) -> RawPictures:
    """Index a table with columns of picture paths and class names.

    Paths are relative to the table's folder. The first of `PICTURE_COLUMNS` and the first of
    `LABEL_COLUMNS` that are there are used.

    Raises:
        DataError: If it cannot be read, or lacks a column; if a row has no picture or no label.
    """
    separator, image, label = _columns(path)
    pairs = open_csv(
        path, split="all", image_size=None, separator=separator, image_key=image, caption_key=label
    )
    labels = [file.caption.strip() for file in pairs.files]
    if "" in labels:
        where = pairs.files[labels.index("")].where
        raise DataError(
            f"{where}: column {label!r} is empty, so the picture has no label. Fill it, or drop "
            "the row."
        )
    notes = [*pairs.notes, f"Pictures are in column {image!r}, labels in {label!r}."]
    return _raw(path, list(pairs.files), labels, split="all", notes=notes)


def read_memes(path: Path, split: str) -> RawPictures:
    """Index Hateful Memes' SPLIT.jsonl, with "img" and "label" per line.

    Raises:
        DataError: If it cannot be read, or a line lacks one of both.
    """
    file = path if path.is_file() else path / f"{split}.jsonl"
    files, labels = [], []
    for number, line in enumerate(read_text(file, "utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            entry = json.loads(line)
            key, label = str(entry["img"]), int(entry["label"])
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise DataError(
                f"{where}: expected an object with 'img' and 'label', got {line[:60]!r}. Fetch the "
                "file again."
            ) from error
        files.append(
            PictureFile(key=key, caption=str(label), path=str(file.parent / key), where=where)
        )
        labels.append(str(label))
    return _raw(file, files, labels, split=file.stem, notes=[])


def _raw(
    path: Path, files: list[PictureFile], labels: list[str], *, split: str, notes: list[str]
) -> RawPictures:
    if not files:
        raise DataError(
            f"{path}: there is no row, so there is no picture. Write one row per picture."
        )
    numbers = all(label.isascii() and label.isdigit() for label in labels)
    classes = sorted(set(labels), key=lambda label: (int(label) if numbers else 0, label))
    place = {label: i for i, label in enumerate(classes)}
    return RawPictures(
        PictureFiles(files, source=str(path)),
        [place[label] for label in labels],
        tuple(classes),
        where=str(path),
        split=split,
        notes=tuple(notes),
        classes_are_named=True,
    )


def _columns(path: Path) -> tuple[str, str, str]:
    """Find separator, picture column and label column by the header's names."""
    text = read_text(path, "utf-8")
    for separator in _SEPARATORS:
        header = next(split_rows(text, separator=separator, quoting="minimal"), None)
        names = (
            {name.strip().lower(): name.strip() for name in header.fields}
            if header is not None
            else {}
        )
        image = next((names[name] for name in PICTURE_COLUMNS if name in names), None)
        label = next((names[name] for name in LABEL_COLUMNS if name in names), None)
        if image is not None and label is not None:
            return separator, image, label
    first = text.partition("\n")[0].strip()[:80]
    raise DataError(
        f"{path}: expected a header with a picture column ({', '.join(PICTURE_COLUMNS)}) and a "
        f"label column ({', '.join(LABEL_COLUMNS)}), got {first!r}. Rename the columns."
    )
