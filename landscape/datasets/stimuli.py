"""Stimuli on disk: model-vs-human's data sets, and your own distorted pictures.

`landscape distort` writes such pictures. A data set is a folder in one of two layouts, which are
distinguished by the folder "dnn":

    <dataset>/dnn/session-<n>/<trial>_<experiment>_<observer>_<condition>_<category>_..._<image>.png
    <dataset>/<category>/<image>.png          one condition, named "0"

Sets with a benchmark's name have its 16 categories and its conditions, unless they are your own:
those in `distort.json` (in which names are escaped as URLs are), and all where the caller says so.
Classes of your own sets may have any names.
"""

import hashlib
import json
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from urllib.parse import unquote

from PIL import Image

from landscape.answers import CATEGORIES, CUE_CONFLICT, DATASETS, image_key
from landscape.answers.benchmark import texture_of
from landscape.clip.pair_files import PictureFile, in_one_line
from landscape.datasets.folders import SUFFIXES
from landscape.datasets.labelled import PictureFiles
from landscape.errors import DataError
from landscape.files import read_regular
from landscape.suggestions import did_you_mean

# The condition of sets that have only one.
ONE_CONDITION = "0"
_SESSIONS = "dnn"
_RECORD = "distort.json"
_LARGEST_RECORD = 2**20
# Trial, experiment, observer, condition, category, image.
_MIN_FIELDS = 6
_CONDITION, _CATEGORY = 3, 4


@dataclass(frozen=True)
class Stimulus:
    """A picture with its condition and category.

    Args:
        image: Key, the same for all observers: `landscape.answers.image_key` of the benchmark's
            pictures; for your own "<category>/<file>", or the key that `landscape distort` gave.
        category: The right answer; in cue-conflict that of the shape.
        texture: Category of the texture in cue-conflict, else None.
    """

    path: Path
    image: str
    condition: str
    category: str
    texture: str | None = None


class Stimuli:
    """The pictures of one condition of a data set, ordered by path.

    Args:
        dataset, condition: Names as in the benchmark, where it has them.
        is_published: Whether it is the benchmark's set, with its 16 categories, which people saw.
        classes: Classes of your own set in all conditions; by default those of these pictures.
    """

    def __init__(
        self,
        dataset: str,
        condition: str,
        stimuli: Sequence[Stimulus],
        *,
        is_published: bool,
        classes: Sequence[str] = (),
    ) -> None:
        self.dataset, self.condition, self.is_published = dataset, condition, is_published
        self._classes = tuple(classes) or tuple(sorted({stimulus.category for stimulus in stimuli}))
        self.keys = tuple(stimulus.image for stimulus in stimuli)
        self.paths = tuple(stimulus.path for stimulus in stimuli)
        self.categories = tuple(stimulus.category for stimulus in stimuli)
        self.textures = tuple(stimulus.texture for stimulus in stimuli)
        files = [
            PictureFile(
                key=stimulus.image,
                caption=stimulus.category,
                path=str(stimulus.path),
                where=str(stimulus.path),
            )
            for stimulus in stimuli
        ]
        self._pictures = PictureFiles(files, source=str(stimuli[0].path.parent))

    def __len__(self) -> int:
        return len(self.keys)

    def __repr__(self) -> str:
        return f"Stimuli({self.dataset!r}, {self.condition!r}, {len(self)} pictures)"

    @property
    def classes(self) -> tuple[str, ...]:
        """List the possible answers.

        The benchmark's 16 categories; for your own sets those of all conditions, sorted.
        """
        return CATEGORIES if self.is_published else self._classes

    def picture(self, i: int) -> Image.Image:
        """Decode picture i as RGB.

        Raises:
            PictureError: If it is missing or cannot be decoded.
        """
        return self._pictures.read(i)

    @cached_property
    def digest(self) -> str:
        """Compute the sha256 of the set's names, keys, categories and file sizes.

        The names are those of data set and condition, the sizes are in bytes. Pixels do not enter.
        """
        digest = hashlib.sha256(json.dumps([self.dataset, self.condition]).encode())
        for i, (key, category) in enumerate(zip(self.keys, self.categories, strict=True)):
            digest.update(json.dumps([key, category, self._pictures.size(i)]).encode() + b"\n")
        return digest.hexdigest()


def open_stimuli(
    folder: Path, *, datasets: Collection[str] | None = None, own: bool | None = None
) -> dict[tuple[str, str], Stimuli]:
    """Index the data sets of a folder, without opening pictures.

    Args:
        datasets: Names of those to index; by default all that are there.
        own: Whether the classes may have any names and levels any number, also in sets with a
            benchmark's name. By default this holds for the sets in `distort.json`.

    Returns:
        By data set and condition: the benchmark's in its order, then others sorted by name.

    Raises:
        DataError: If the folder is missing or has no data set, a data set has no picture or is not
            there, a file's name has too few fields, the benchmark has no such condition or
            category, or two pictures of a condition have one key.
    """
    folder = Path(folder)
    names = _set_names(folder, datasets)
    distorted = _distorted_sets(folder)
    stimuli: dict[tuple[str, str], Stimuli] = {}
    for name in names:
        is_published = name in DATASETS and not (own or (own is None and name in distorted))
        reader = _SetReader(
            folder / name, name, is_published=is_published, is_distorted=name in distorted
        )
        stimuli |= reader.by_condition()
    return stimuli


def _set_names(folder: Path, datasets: Collection[str] | None) -> list[str]:
    """List the folders that are data sets, the benchmark's first."""
    if not folder.is_dir():
        what = "this is a file, expected a folder" if folder.exists() else "there is no such folder"
        raise DataError(
            f"{folder}: {what} of stimuli. Name the folder that holds the data sets' folders."
        )
    if (folder / _SESSIONS).is_dir():
        raise DataError(
            f"{folder}: this is one data set, expected the folder that holds data sets. Name "
            f"{folder.parent}."
        )
    there = [
        entry.name
        for entry in folder.iterdir()
        if entry.is_dir() and entry.name[0] != "." and _is_set(entry)
    ]
    names = [*(name for name in DATASETS if name in there), *sorted(set(there) - set(DATASETS))]
    if not names:
        raise DataError(
            f"{folder}: there is no data set in it, so there is nothing to answer. Expected "
            "<dataset>/dnn/session-1/<picture>, or <dataset>/<category>/<picture>, as "
            "model-vs-human's archives unpack."
        )
    for name in datasets or ():
        if name not in names:
            raise DataError(
                f"{folder}: there is no data set {in_one_line(name)}, but "
                f"{', '.join(map(in_one_line, names))}.{did_you_mean(name, names)}"
            )
    return [name for name in names if datasets is None or name in datasets]


def _is_set(folder: Path) -> bool:
    """Tell whether a folder has a layout of a data set.

    A folder of pictures alone is a category.
    """
    return folder.name in DATASETS or any(
        entry.is_dir() and entry.name[0] != "." for entry in folder.iterdir()
    )


def _distorted_sets(folder: Path) -> frozenset[str]:
    """Read the names of the sets that `landscape distort` wrote."""
    record = folder / _RECORD
    if not record.is_file():
        return frozenset()
    try:
        return frozenset(json.loads(read_regular(record, largest=_LARGEST_RECORD))["sets"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{record}: the record cannot be read ({' '.join(str(error).split())}), so it is "
            "unclear which sets are your own. "
            "Remove it, or write the pictures again."
        ) from error


@dataclass(frozen=True)
class _SetReader:
    """A reader of the picture names of one data set."""

    folder: Path
    name: str
    is_published: bool
    is_distorted: bool

    def by_condition(self) -> dict[tuple[str, str], Stimuli]:
        """Sort the pictures by condition."""
        groups: dict[str, list[Stimulus]] = {}
        sources: dict[tuple[str, str], Path] = {}
        for stimulus in self._stimuli():
            key = stimulus.condition, stimulus.image
            if key in sources:
                raise DataError(
                    f"{_shown(stimulus.path)}: it has the key {in_one_line(stimulus.image)}, as "
                    f"{_shown(sources[key])} in the same condition, so their answers cannot be "
                    "told apart. Rename or remove one."
                )
            sources[key] = stimulus.path
            groups.setdefault(stimulus.condition, []).append(stimulus)
        if not groups:
            raise DataError(
                f"{self.folder}: the data set has no picture ({', '.join(SUFFIXES)}) where they "
                "are expected, in dnn/session-1 or in folders of categories. Unpack it again, or "
                "remove the folder."
            )
        classes = sorted({stimulus.category for group in groups.values() for stimulus in group})
        return {
            (self.name, text): Stimuli(
                self.name, text, groups[text], is_published=self.is_published, classes=classes
            )
            for text in _ordered(self.name, groups)
        }

    def _stimuli(self) -> Iterator[Stimulus]:
        sessions = self.folder / _SESSIONS
        if sessions.is_dir():
            for session in sorted(
                (entry for entry in sessions.iterdir() if entry.is_dir()),
                key=lambda at: _natural(at.name),
            ):
                yield from (self._of_trial(path) for path in _pictures(session))
            return
        for category in sorted(
            entry for entry in self.folder.iterdir() if entry.is_dir() and entry.name[0] != "."
        ):
            yield from (self._of_category(path, category.name) for path in _pictures(category))

    def _of_trial(self, path: Path) -> Stimulus:
        """Read a file name with fields."""
        fields = path.stem.split("_")
        if len(fields) < _MIN_FIELDS:
            raise DataError(
                f"{_shown(path)}: the name has {len(fields)} fields between '_', expected at least "
                f"{_MIN_FIELDS} (trial_experiment_observer_condition_category_image), so its "
                "condition and category are unknown. Rename or remove it."
            )
        category = self._category(path, fields[_CATEGORY])
        return Stimulus(
            path, self._key(path, category), self._condition(path, fields[_CONDITION]), category
        )

    def _of_category(self, path: Path, folder: str) -> Stimulus:
        """Read a file name in a folder of its category."""
        category = self._category(path, folder)
        key = self._key(path, category)
        texture = texture_of(key) if self.is_published and self.name == CUE_CONFLICT else None
        if texture is not None and texture not in CATEGORIES:
            raise DataError(
                f"{_shown(path)}: the texture {texture!r} is no category, so its answers say "
                "nothing of shape bias. Expected a name such as dog10-bird2.png."
            )
        condition = DATASETS[self.name].conditions[0].name if self.is_published else ONE_CONDITION
        return Stimulus(path, key, condition, category, texture)

    def _key(self, path: Path, category: str) -> str:
        if self.is_published:
            return image_key(path.name)
        return unquote(path.stem.split("_")[-1]) if self.is_distorted else f"{category}/{path.name}"

    def _category(self, path: Path, text: str) -> str:
        category = unquote(text) if self.is_distorted else text
        if self.is_published and category not in CATEGORIES:
            raise DataError(
                f"{_shown(path)}: the category {category!r} is none of the benchmark's 16 "
                f"({', '.join(CATEGORIES)}), so no answer to it can be right. Rename it, or say "
                "that the pictures are your own."
            )
        return category

    def _condition(self, path: Path, text: str) -> str:
        known = DATASETS.get(self.name)
        condition = known.condition_named(text) if known else text
        if condition is None and self.is_published:
            names = ", ".join(level.name for level in DATASETS[self.name].conditions)
            raise DataError(
                f"{_shown(path)}: {self.name} has no condition {text!r}, but {names}, so people's "
                "answers to it are unknown. Rename or remove it, or say that the pictures are your "
                "own."
            )
        return text if condition is None else condition


def _ordered(name: str, levels: Collection[str]) -> list[str]:
    """Sort the levels of a set as the benchmark does.

    Levels in between are sorted by size.
    """
    known = [condition.name for condition in DATASETS[name].conditions] if name in DATASETS else []
    if all(level in known for level in levels):
        return sorted(levels, key=known.index)
    # The undistorted level comes first; of some sets it is the largest.
    is_falling = len(known) > 1 and _natural(known[0]) > _natural(known[-1])
    return sorted(levels, key=_natural, reverse=is_falling)


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        path
        for path in folder.iterdir()
        if path.suffix.lower() in SUFFIXES and path.name[0] != "." and path.is_file()
    )


def _shown(path: Path) -> str:
    return in_one_line(str(path))


def _natural(text: str) -> tuple[tuple[float, str], ...]:
    """Make a sort key that orders numbers in a text by size.

    "inf" counts as a number.
    """
    parts = re.findall(r"\d+(?:\.\d+)?|inf|\D+", text)
    return tuple(
        (float(part), "") if part[0].isdecimal() or part == "inf" else (-1.0, part)
        for part in parts
    )
