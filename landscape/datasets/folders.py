"""Class folders: `<class>/<picture>` or `<split>/<class>/<picture>`.

torchvision's ImageFolder reads the same layout. `classes.txt` beside the class folders gives names:
a line `folder TAB class name` each. `classnames.txt` and `zeroshot_classification_templates.txt`
there are class names and prompts, a line each ("{c}" or "{}" for the name).
"""

import hashlib
import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from landscape.clip.pair_files import PictureFile
from landscape.datasets.labelled import PictureFiles, RawPictures
from landscape.datasets.names import nearest
from landscape.errors import DataError
from landscape.files import read_regular

# torchvision.datasets.folder.IMG_EXTENSIONS and GIF.
SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
# Folder names that mean one part of a set.
SPLIT_NAMES = {
    "train": ("train", "training"),
    "val": ("val", "valid", "validation", "val_images", "dev"),
    "dev": ("dev", "val", "validation"),
    "test": ("test", "testing"),
}
_MAX_TEXT = 2**24
# Number of RESISC45's classes, and of pictures of each.
_RESISC45 = (45, 700)


@dataclass(frozen=True)
class Choose:
    """A selection from each class's pictures.

    The pictures are given sorted by file name, class by class in order.

    Attributes:
        pictures: Function from the pictures of a class to the selected ones.
        note: Description of the selection, a sentence.
    """

    pictures: Callable[[list[Path]], list[Path]]
    note: str


def choose_range(first: int, end: int, note: str) -> Choose:
    """Take the pictures `first` to `end` - 1 of each class."""
    return Choose(lambda pictures: pictures[first:end], note)


def choose_resisc45(path: Path, split: str) -> Choose | None:
    """Split the whole archive of RESISC45 by VISSL's rule.

    RESISC45 has no splits. One generator, seeded with 42, shuffles the sorted file names of one
    class after the other; of each class the first 80 % are train, and the next 20 % test. VISSL's
    published script intends this, but stops at the shuffle. So it is not known whether the
    published numbers were made by this rule.

    Returns:
        The selection; None for anything but the whole archive and these two splits.

    Source: extra_scripts/datasets/create_resisc45_data_files.py of VISSL.
    """
    folders = _class_folders(path)
    if split not in ("train", "test") or len(folders) != _RESISC45[0]:
        return None
    if any(len(_pictures(path / folder)) != _RESISC45[1] for folder in folders):
        return None
    generator = random.Random(42)

    def choose(pictures: list[Path]) -> list[Path]:
        shuffled = list(pictures)
        generator.shuffle(shuffled)
        first = int(0.8 * len(shuffled))
        part = (
            shuffled[:first]
            if split == "train"
            else shuffled[first : first + int(0.2 * len(shuffled))]
        )
        return sorted(part)

    return Choose(
        choose,
        f"Split {split!r} by VISSL's rule: 80/20 of each class, its sorted file names shuffled by "
        "Random(42).",
    )


def read_folders(
    path: Path, *, split: str | None, default_split: str | None, choose: Choose | None = None
) -> RawPictures:
    """Index class folders; sort integer names as integers, others as ASCII.

    Args:
        split: The requested part; None: `default_split`, or what is there.

    Raises:
        DataError: If there is no class folder, a class folder has no picture, or the split is not
            there.
    """
    root, found_split, notes = _split_folder(path, split, default_split)
    names = _class_names(root, path)
    folders = _class_folders(root)
    if not folders:
        raise DataError(
            f"{root}: there are no class folders. Expected CLASS/PICTURE, SPLIT/CLASS/PICTURE, "
            "clip-benchmark's shards, a table of pictures and labels, or the folder of "
            "torchvision's class."
        )
    _check_names(root, folders, names)
    files, classes = _files(root, folders, names, choose)
    if choose is not None:
        notes.append(choose.note)
    if not files:
        raise DataError(
            f"{root}: no picture is left of split {found_split!r}. Check that the set is complete."
        )
    numbers = {label: i for i, label in enumerate(classes)}
    listed, listed_file = _lines(root, path, "classnames.txt")
    templates, templates_file = _lines(root, path, "zeroshot_classification_templates.txt")
    return RawPictures(
        PictureFiles(files, source=str(root)),
        [numbers[file.caption] for file in files],
        classes,
        where=str(root),
        split=found_split,
        notes=tuple(notes),
        names=listed,
        names_file=listed_file,
        templates=None
        if templates is None
        else tuple(line.replace("{c}", "{}") for line in templates),
        templates_file=templates_file,
        classes_are_named=bool(names),
    )


def _check_names(root: Path, folders: list[str], names: dict[str, str]) -> None:
    unknown = [name for name in names if name not in folders]
    if unknown:
        raise DataError(
            f"{root}: classes.txt names {unknown[0]!r}, but there is no such folder (nearest: "
            f"{', '.join(map(repr, nearest(unknown[0], folders))) or 'none'}). Correct the line, "
            "or remove it."
        )


def _files(
    root: Path, folders: list[str], names: dict[str, str], choose: Choose | None
) -> tuple[list[PictureFile], tuple[str, ...]]:
    """List the pictures, captioned with their labels, and the labels in order."""
    files = []
    for folder in folders:
        pictures = _pictures(root / folder)
        if not pictures:
            raise DataError(
                f"{root / folder}: the class has no picture ({', '.join(SUFFIXES)}). Add some, or "
                "remove the folder."
            )
        for picture in pictures if choose is None else choose.pictures(pictures):
            key = picture.relative_to(root).as_posix()
            files.append(
                PictureFile(key, names.get(folder, folder), str(picture), where=str(picture))
            )
    return files, tuple(dict.fromkeys(names.get(folder, folder) for folder in folders))


def _split_folder(
    path: Path, split: str | None, default: str | None
) -> tuple[Path, str, list[str]]:
    """Find the folder of class folders, its split, and what was guessed."""
    if not path.is_dir():
        what = "this is a file, expected a folder" if path.exists() else "there is no such folder"
        raise DataError(f"{path}: {what} of labelled pictures. Check the path.")
    there = {
        entry.name for entry in path.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    }
    known = {name for names in SPLIT_NAMES.values() for name in names}
    parts = [name for name in sorted(there & known) if _class_folders(path / name)]
    if not parts:
        if split not in (None, "all", default):
            raise DataError(
                f"{path}: there is no folder of split {split!r}. Name one of these, or leave the "
                f"split out: {_some(there)}."
            )
        note = "The folder has no splits; all its pictures are used."
        return path, split or default or "all", [note] if default is not None else []
    for wanted in (split,) if split is not None else (default, "test", "val"):
        for name in SPLIT_NAMES.get(wanted, (wanted,)) if wanted is not None else ():
            if name in there and name in parts:
                guessed = split is None and wanted != default
                said = f"Split {name!r} was taken: there are {', '.join(parts)}."
                return path / name, name, [said] if guessed else []
    raise DataError(
        f"{path}: there is no split {split or default or 'test'!r}, but {', '.join(parts)}. Name "
        "one of these."
    )


def _class_folders(root: Path) -> list[str]:
    folders = [
        entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
    ]
    return sorted(
        folders, key=lambda name: (not _is_number(name), int(name) if _is_number(name) else 0, name)
    )


def _is_number(name: str) -> bool:
    return name.isascii() and name.isdigit()


def _pictures(folder: Path) -> list[Path]:
    pictures = (
        path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file()
    )
    # Hidden files belong to programs: previews, checkpoints of notebooks.
    return sorted(
        path
        for path in pictures
        if not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def _class_names(root: Path, path: Path) -> dict[str, str]:
    """Read classes.txt: folder to class name; empty without the file."""
    lines, source = _lines(root, path, "classes.txt")
    names: dict[str, str] = {}
    for number, line in enumerate(lines or (), start=1):
        folder, tab, name = line.partition("\t")
        if not (tab and folder.strip() and name.strip()):
            raise DataError(
                f"{source}, line {number}: expected FOLDER TAB CLASS NAME, got {line[:60]!r}. "
                "Correct it."
            )
        if folder in names:
            raise DataError(
                f"{source}, line {number}: folder {folder!r} has two classes, {names[folder]!r} "
                f"and {name!r}. Drop one."
            )
        names[folder] = name.strip()
    return names


def _lines(root: Path, path: Path, name: str) -> tuple[tuple[str, ...] | None, str]:
    """Read a file beside the class folders, or beside the splits."""
    file = next((folder / name for folder in (root, path) if (folder / name).is_file()), None)
    return (None, "") if file is None else read_lines(file)


def read_lines(file: Path) -> tuple[tuple[str, ...], str]:
    """Read a small text file: its lines with content, and name with digest.

    Raises:
        DataError: If it cannot be read as UTF-8, or is empty.
    """
    try:
        content = read_regular(file, largest=_MAX_TEXT)
        lines = tuple(
            line.rstrip("\r") for line in content.decode("utf-8-sig").split("\n") if line.strip()
        )
    except (OSError, ValueError) as error:
        raise DataError(
            f"{file}: the file cannot be read as UTF-8 text ({error}). Write it again."
        ) from error
    if not lines:
        raise DataError(
            f"{file}: the file is empty, so it names no class and no prompt. Fill it, or remove it."
        )
    return lines, f"{file.name} beside the data, sha256 {hashlib.sha256(content).hexdigest()}"


def _some(names: set[str]) -> str:
    listed = sorted(names)
    return ", ".join(listed[:6]) + (", ..." if len(listed) > 6 else "") if listed else "nothing"
