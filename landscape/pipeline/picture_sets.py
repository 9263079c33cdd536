"""Requests of labelled pictures, which every process can open for itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from landscape import datasets
from landscape.errors import DataError
from landscape.store.predictions import PictureSet

if TYPE_CHECKING:
    from PIL import Image

    from landscape.datasets import Classes, LabelledPictures


class Pictures(Protocol):
    """Pictures by number."""

    def picture(self, i: int, /) -> "Image.Image": ...


@dataclass(frozen=True, eq=False)
class OpenedSet:
    """The pictures of a set.

    Attributes:
        stored: Facts about the pictures that are stored.
        classes: Classes for the text tower, from which the rule of the set derives its own classes.
    """

    stored: PictureSet
    pictures: Pictures
    classes: "Classes"

    @property
    def identity(self) -> str:
        return self.stored.pictures_digest + self.stored.classes_digest


class Request(Protocol):
    """A requested set: plain data, to be sent to other processes."""

    @property
    def place(self) -> str: ...

    def open(self) -> OpenedSet: ...


@dataclass(frozen=True, kw_only=True)
class SetRequest:
    """A requested data set for zero-shot classification.

    Args:
        name: Name of a known set or of the user's own, such as "food101" or "openmoji/group".
        path: Path of its files; None where it needs none.
        split: Split of the set; None for its default.
        slip: Folder of SLIP's class names and prompts, the paper's protocol; None for the files
            beside the data.
        image_size: Side in pixels of pictures that are drawn.
    """

    name: str
    path: str | None = None
    split: str | None = None
    slip: Path | None = None
    image_size: int | None = None

    @property
    def place(self) -> str:
        return self.name

    def labelled(self) -> "LabelledPictures":
        """Open the pictures with their labels.

        Raises:
            DataError: If they do not exist, or their classes fit no known ones.
        """
        return datasets.open_labelled(
            self.name, self.path, slip=self.slip, image_size=self.image_size, split=self.split
        )

    def open(self) -> OpenedSet:
        """Open the pictures, with the facts that are stored about them.

        Raises:
            DataError: As `labelled`.
        """
        pictures = self.labelled()
        known = next((entry for entry in datasets.SUITE if entry.identifier == pictures.name), None)
        classes = pictures.classes
        metric = "top1" if known is None else known.metric
        # Chance follows from the existing classes, which may be fewer than the published ones.
        counted = known is None or metric in ("top1", "mean_per_class")
        chance = 1 / len(classes.names) if counted or known is None else known.chance
        stored = picture_set(
            pictures,
            title=pictures.name if known is None else known.title,
            metric=metric,
            chance=math.nan if chance is None else chance,
            notes=(*(() if known is None else known.notes), *pictures.notes, *classes.notes),
        )
        return OpenedSet(stored, pictures, classes)


def picture_set(
    pictures: "LabelledPictures",
    *,
    title: str,
    metric: str,
    chance: float,
    notes: Sequence[str] = (),
) -> PictureSet:
    """Return the stored facts about labelled pictures.

    Raises:
        DataError: If there is no picture, or two have the same key.
    """
    import numpy as np

    keys = tuple(pictures.key(i) for i in range(len(pictures)))
    if not keys:
        raise DataError(
            f"{pictures.name}: there is no picture in {pictures.path or 'it'}, so there is nothing "
            "to evaluate."
        )
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(
            f"{pictures.name}: two pictures have the key {twice!r}, so their answers would be "
            "mixed up. Rename one."
        )
    classes = pictures.classes
    return PictureSet(
        dataset=pictures.name,
        title=title,
        split=pictures.split,
        metric=metric,
        chance=chance,
        class_names=tuple(names[0] for names in classes.names),
        classes_digest=classes.digest,
        sources=sources_of(classes),
        pictures_digest=pictures.digest,
        notes=tuple(dict.fromkeys(notes)),
        keys=keys,
        labels=np.array([pictures.label(i) for i in range(len(keys))], dtype=np.int32),
    )


def sources_of(classes: "Classes") -> dict[str, Any]:
    """Return the sources of names and prompts, as plain values."""
    return {
        "names": classes.names_source,
        "prompts": classes.templates_source,
        "num_prompts": len(classes.templates),
    }


def check_names(names: Sequence[str]) -> None:
    """Refuse two sets of the same name.

    Raises:
        DataError: If there are two.
    """
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"data set {name!r} is given twice, and its answers would be stored in one place. "
                "Rename one."
            )
