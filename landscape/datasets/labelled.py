"""Labelled pictures: keys, labels and pictures in a fixed order, and their classes."""

import hashlib
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from PIL import Image

from landscape.clip.pair_files import FilePairs, PictureFile, in_one_line
from landscape.datasets.classes import Classes
from landscape.errors import DataError, PictureError


class LabelledPictures(ABC):
    """Pictures with their class numbers, in a fixed order.

    Attributes:
        name: Identifier of the set, see `landscape.datasets.suite`, or the name that the user gave
            it.
        path: Path from which it was read; empty for sets from packages.
        split: Part of the set; "all" where there are no parts.
        notes: What was guessed, left out, or is read differently than elsewhere, a sentence each.
        classes: The classes that the labels number.
    """

    name: str
    path: str
    split: str
    notes: tuple[str, ...]
    classes: Classes

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def key(self, i: int) -> str:
        """Name picture i: its path within the set, or its number.

        Keys are unique, and the same on every machine.
        """

    @abstractmethod
    def label(self, i: int) -> int:
        """Return the class number of picture i, from 0 in `classes`."""

    @abstractmethod
    def picture(self, i: int) -> Image.Image:
        """Decode picture i as RGB.

        Raises:
            PictureError: If it is missing or cannot be decoded.
        """

    @property
    @abstractmethod
    def digest(self) -> str:
        """Compute the sha256 of keys, labels and sizes of files.

        Neither pixels nor `classes` enter it, so it is cheap; `Classes.digest` is separate.
        """


class PictureSource(ABC):
    """Pictures by number, without labels."""

    keys: Sequence[str]

    @abstractmethod
    def size(self, i: int) -> int | None:
        """Return the size of the file in bytes; None without a file."""

    @abstractmethod
    def read(self, i: int) -> Image.Image:
        """Decode picture i as RGB.

        Raises:
            PictureError: If it is missing or cannot be decoded.
        """


class PictureFiles(PictureSource):
    """Pictures that are files, or pieces of tar files.

    Args:
        files: The files; each `key` is the name within the set.
        source: Name of the source for messages.
    """

    def __init__(self, files: Sequence[PictureFile], *, source: str) -> None:
        self.keys = tuple(file.key for file in files)
        self._files = files
        self._pairs = FilePairs(files, split="all", source=source, image_size=None)

    def size(self, i: int) -> int | None:
        file = self._files[i]
        if file.size is not None:
            return file.size
        try:
            return os.path.getsize(file.path)
        # A missing picture becomes an error when it is read.
        except (OSError, ValueError):
            return None

    def read(self, i: int) -> Image.Image:
        try:
            picture = self._pairs[i][0]
        except PictureError as error:
            raise PictureError(
                error.problem,
                "Its answer is counted as missing; restore the picture, or remove it.",
            ) from error
        assert isinstance(picture, Image.Image)
        return picture


class PictureArrays(PictureSource):
    """Pictures that a function returns as arrays.

    Args:
        array: Function from the number of a picture to uint8 (h, w) or (h, w, 3). A function of a
            module, or a partial of one, so that it can be sent to worker processes.
        where: Name for messages of what holds the pictures.
    """

    def __init__(
        self, keys: Sequence[str], array: Callable[[int], np.ndarray], *, where: str
    ) -> None:
        self.keys = keys
        self._array, self._where = array, where

    def size(self, i: int) -> int | None:
        return None

    def read(self, i: int) -> Image.Image:
        try:
            return Image.fromarray(self._array(i)).convert("RGB")
        except (OSError, ValueError, LookupError, TypeError) as error:
            where, reason = (
                f"{self._where}, picture {in_one_line(self.keys[i])}",
                " ".join(str(error).split()),
            )
            raise PictureError(
                f"{where}: the picture cannot be read ({reason}).",
                "Restore the file that holds it.",
            ) from error


def array_row(arrays: np.ndarray, i: int) -> np.ndarray:
    """Copy a row of an array of pictures if it is not contiguous."""
    return np.ascontiguousarray(arrays[i])


@dataclass(frozen=True)
class RawPictures:
    """The result of a reader: pictures, and labels as the data name them.

    Attributes:
        labels: Index into `classes` for each picture.
        classes: The labels as the data spell them: folder names, a data set object's class names,
            lines of classnames.txt.
        names: Names of classes in a file beside the data, in its order; None without one. In tar
            shards they are `classes`.
        templates: Prompts in a file beside the data.
        names_file, templates_file: Names of these files, with a digest.
        classes_are_named: Whether `classes` are names that a data set or a person gave, rather than
            folder names.
        numbered: Whether labels were integers whose meaning `names` gives (clip-benchmark's
            shards).
        contents: Digest of the pixels, where they are drawn or in memory.
    """

    pictures: PictureSource
    labels: Sequence[int]
    classes: tuple[str, ...]
    where: str
    split: str
    notes: tuple[str, ...] = ()
    names: tuple[str, ...] | None = None
    templates: tuple[str, ...] | None = None
    names_file: str = ""
    templates_file: str = ""
    classes_are_named: bool = False
    numbered: bool = False
    contents: str = ""


class OpenedPictures(LabelledPictures):
    """Labelled pictures from a reader, with their matched classes.

    Args:
        indices: Number in `classes` of each label of the data.

    Raises:
        DataError: If there is no picture, or two have one key.
    """

    def __init__(
        self, raw: RawPictures, classes: Classes, indices: Sequence[int], *, name: str, path: str
    ) -> None:
        self.name, self.path, self.split = name, path, raw.split
        self.classes, self.notes = classes, raw.notes
        self._contents = raw.contents
        self._pictures, self._labels = raw.pictures, [indices[label] for label in raw.labels]
        if not self._labels:
            raise DataError(
                f"{raw.where}: there is no picture, so there is nothing to evaluate on. Check the "
                "path and the split."
            )
        seen: set[str] = set()
        for key in raw.pictures.keys:
            if key in seen:
                raise DataError(
                    f"{raw.where}: there are two pictures {in_one_line(key)}, so their answers "
                    "cannot be told apart. Drop one."
                )
            seen.add(key)

    def __len__(self) -> int:
        return len(self._labels)

    def key(self, i: int) -> str:
        return self._pictures.keys[i]

    def label(self, i: int) -> int:
        return self._labels[i]

    def picture(self, i: int) -> Image.Image:
        return self._pictures.read(i)

    @property
    def digest(self) -> str:
        return self._digest

    @cached_property
    def _digest(self) -> str:
        digest = hashlib.sha256(self._contents.encode())
        for i in range(len(self)):
            digest.update(
                json.dumps([self.key(i), self.label(i), self._pictures.size(i)]).encode() + b"\n"
            )
        return digest.hexdigest()
