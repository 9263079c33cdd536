"""Opening a labelled set by its name and path."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from landscape.datasets.folders import choose_resisc45, read_folders
from landscape.datasets.labelled import LabelledPictures, RawPictures
from landscape.datasets.names import nearest
from landscape.datasets.openmoji_sets import read_openmoji
from landscape.datasets.resolve import resolve
from landscape.datasets.shards import is_shards, read_shards
from landscape.datasets.suite import OPENMOJI_SETS, SUITE, KnownSet, find_set
from landscape.datasets.tables import read_memes, read_table
from landscape.datasets.torchvision_sets import expected_at, find_root, read_torchvision
from landscape.errors import DataError

TABLE_SUFFIXES = (".csv", ".tsv")


def open_labelled(
    name: str,
    path: str | None,
    *,
    slip: Path | None = None,
    image_size: int | None = None,
    split: str | None = None,
) -> LabelledPictures:
    """Open a labelled set by its name and path.

    Pictures are decoded on demand, and nothing is downloaded.

    The layout of `path` is recognised in this order; the first that fits is taken, and guesses are
    in the notes:
    1. a file NAME.csv or .tsv: a table with columns of picture paths and labels; a .jsonl: Hateful
       Memes' lines;
    2. a folder with `*/nshards.txt`: clip-benchmark's tar shards;
    3. for a set of the suite, a folder that holds torchvision's folder of it, or is that folder:
       torchvision's class;
    4. for Hateful Memes, a folder with SPLIT.jsonl;
    5. a folder with `<split>/<class>/<picture>`, else `<class>/<picture>`.

    Args:
        name: A set of `SUITE` or `OPENMOJI_SETS` by identifier, title or alias, or any other name
            for your own pictures.
        path: None for "openmoji/...".
        slip: Folder with SLIP's labels.json and templates.json.
        image_size: Size in pixels at which OpenMoji is drawn (default 224); other pictures come as
            they are stored.
        split: By default that of the published numbers; for your own pictures "test", then "val",
            then all.

    Raises:
        MissingDependencyError: If OpenMoji's packages are not installed.
        DataError: If the set is unknown and has no path, a part of it is missing or unreadable, or
            a label matches no class or several. `PictureError`, a subclass, comes from `picture`,
            never from here.
    """
    known = find_set(name)
    if known in OPENMOJI_SETS:
        assert known is not None
        if path is not None:
            raise DataError(
                f"{name}: OpenMoji's pictures come from installed packages, not from {path}. Leave "
                "the path out."
            )
        task = known.identifier.partition("/")[2]
        raw = read_openmoji(task, image_size=image_size, split=split or known.split)
        return resolve(raw, known, name=known.identifier, path="", slip=None)
    if path is None:
        raise DataError(_why_no_path(name, known))
    raw = _read(Path(path).expanduser(), known, split)
    return resolve(
        raw, known, name=known.identifier if known is not None else name, path=path, slip=slip
    )


def _read(path: Path, known: KnownSet | None, split: str | None) -> RawPictures:
    if path.is_file():
        return _read_file(path, known, split)
    if not path.is_dir():
        layout = expected_at(known) if known is not None else ""
        expected = (
            f" Expected class folders, clip-benchmark's shards, or {layout} below it."
            if layout
            else ""
        )
        raise DataError(f"{path}: there is no such folder or file.{expected} Check the path.")
    if is_shards(path):
        return read_shards(path, split=split)
    if known is not None:
        root = find_root(known, path)
        if root is not None:
            return read_torchvision(known, root, split or known.split)
        if (
            known.identifier == "hateful_memes"
            and (path / f"{split or known.split}.jsonl").is_file()
        ):
            return read_memes(path, split or known.split)
    if known is not None and known.identifier == "resisc45":
        part = split or known.split
        if (choose := choose_resisc45(path, part)) is not None:
            return replace(
                read_folders(path, split=None, default_split=None, choose=choose), split=part
            )
    try:
        return read_folders(
            path, split=split, default_split=known.split if known is not None else None
        )
    except DataError as error:
        layout = expected_at(known) if known is not None else ""
        if "no class folders" in str(error) and layout:
            raise DataError(f"{error} That would be {layout} below it.") from None
        raise


def _read_file(path: Path, known: KnownSet | None, split: str | None) -> RawPictures:
    if (
        path.suffix.lower() == ".jsonl"
        and known is not None
        and known.identifier == "hateful_memes"
    ):
        return read_memes(path, split or known.split)
    if path.suffix.lower() not in TABLE_SUFFIXES:
        raise DataError(
            f"{path}: expected a folder or a table ({', '.join(TABLE_SUFFIXES)}). Give the folder "
            "that holds the set."
        )
    if split not in (None, "all"):
        raise DataError(
            f"{path}: a table has no splits, so {split!r} cannot be chosen. Leave the split out, "
            "or give its own table."
        )
    return read_table(path)


def _why_no_path(name: str, known: KnownSet | None) -> str:
    if known is not None:
        layout = expected_at(known)
        where = (
            f", a folder with {layout} or class folders"
            if layout
            else ", a folder of class folders"
        )
        return (
            f"{name}: {known.title} needs a path{where}. Give it as {known.identifier}=PATH; "
            "nothing is downloaded."
        )
    candidates = (find_set(spelling) for spelling in nearest(name, _all_names()))
    close = dict.fromkeys(known.identifier for known in candidates if known is not None)
    advice = f"Did you mean {', '.join(close)}? " if close else ""
    return f"{name}: there is no such set. {advice}Pictures of your own need a path: NAME=PATH."


def _all_names() -> Iterator[str]:
    for known in (*SUITE, *OPENMOJI_SETS):
        yield from (known.identifier, *known.aliases)
