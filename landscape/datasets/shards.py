"""clip-benchmark's tar layout of labelled pictures.

It has `{split}/nshards.txt`, `{split}/0.tar` ..., `classnames.txt`, and prompts beside them.
Members are `KEY.webp|png|jpg` with `KEY.cls`, the number of a line of `classnames.txt` from 0. The
split folder is called "test" even where it holds validation data.
"""

import glob
from dataclasses import replace
from pathlib import Path

from landscape.clip.pair_shards import open_shards
from landscape.datasets.folders import SPLIT_NAMES, read_lines
from landscape.datasets.labelled import PictureFiles, RawPictures
from landscape.errors import DataError

COUNT_FILE = "nshards.txt"


def is_shards(path: Path) -> bool:
    """Tell whether a folder has this layout."""
    return any(path.glob(f"*/{COUNT_FILE}"))


def read_shards(path: Path, *, split: str | None) -> RawPictures:
    """Index the shards of a split.

    Args:
        split: By default "test", the layout's name of the evaluation data.

    Raises:
        DataError: If a file of the layout is missing or unreadable, the set is no classification,
            or a number has no class.
    """
    folder = _split_folder(path, split)
    _check_layout(path)
    classes, classes_file = read_lines(path / "classnames.txt")
    templates_path = path / "zeroshot_classification_templates.txt"
    templates, templates_file = (
        read_lines(templates_path) if templates_path.is_file() else (None, "")
    )
    pairs = open_shards(
        _pattern(folder), split="all", image_size=None, caption_key="caption"
    ).labelled()
    if pairs is None:
        raise DataError(
            f"{folder}: the pictures have no KEY.cls with the number of their class. Write the "
            "shards again."
        )
    notes = [note for note in pairs.notes if "classes in KEY.cls are read" not in note]
    if split is not None and folder.name != split:
        notes.append(
            f"Split {split!r} is read from folder {folder.name!r}, as the layout calls what is "
            "evaluated on."
        )
    labels = []
    for file in pairs.files:
        label = file.label
        if label is None or label >= len(classes):
            raise DataError(
                f"{file.where}: class {label} is beyond the {len(classes)} lines of "
                "classnames.txt. Fetch it again."
            )
        labels.append(label)
    keyed = [
        replace(file, key=f"{Path(file.path).relative_to(path).as_posix()}/{file.key}")
        for file in pairs.files
    ]
    return RawPictures(
        PictureFiles(keyed, source=str(folder)),
        labels,
        classes,
        where=str(folder),
        split=folder.name,
        notes=tuple(notes),
        names=classes,
        names_file=classes_file,
        templates=None
        if templates is None
        else tuple(line.replace("{c}", "{}") for line in templates),
        templates_file=templates_file,
        classes_are_named=True,
        numbered=True,
    )


def _check_layout(path: Path) -> None:
    kind_file = path / "dataset_type.txt"
    if kind_file.is_file() and (kind := read_lines(kind_file)[0][0].strip()) != "classification":
        raise DataError(
            f"{path}: the set is of type {kind!r}, expected pictures with classes. Choose another "
            "set."
        )
    if not (path / "classnames.txt").is_file():
        raise DataError(
            f"{path}: there is no classnames.txt, so the numbers of classes mean nothing. Fetch it "
            "with the shards."
        )


def _split_folder(path: Path, split: str | None) -> Path:
    there = sorted(file.parent.name for file in path.glob(f"*/{COUNT_FILE}"))
    wanted = ("test",) if split is None else (*SPLIT_NAMES.get(split, (split,)), "test")
    for name in wanted:
        if name in there:
            return path / name
    raise DataError(
        f"{path}: there is no {wanted[0]}/{COUNT_FILE}, but {', '.join(there)}. Choose one of "
        "these splits."
    )


def _pattern(folder: Path) -> str:
    count = read_lines(folder / COUNT_FILE)[0][0].strip()
    if not (count.isascii() and count.isdigit() and int(count) > 0):
        raise DataError(
            f"{folder / COUNT_FILE}: expected the number of shards, got {count[:40]!r}. Write it "
            "again."
        )
    return f"{glob.escape(str(folder))}/{{0..{int(count) - 1}}}.tar"
