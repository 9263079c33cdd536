"""Which labelled pictures are shown to a model: requests that every process can open for itself."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

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
        one: What is stored of them.
        classes: What a text tower is asked about, which the rule of the set makes its own classes of.
    """

    one: PictureSet
    pictures: Pictures
    classes: "Classes"

    @property
    def identity(self) -> str:
        return self.one.pictures_digest + self.one.classes_digest


class Request(Protocol):
    """A set as somebody asked for it: plain data, to be sent to other processes."""

    @property
    def place(self) -> str: ...

    def open(self) -> OpenedSet: ...


@dataclass(frozen=True, kw_only=True)
class SetRequest:
    """A data set for zero-shot classification, as somebody asked for it.

    Args:
        name: Of a known set or of one's own, such as "food101" or "openmoji/group".
        path: Of its files; None where it needs none.
        split: None for the set's own.
        slip: Folder of SLIP's class names and prompts, the paper's protocol; None for what there is beside them.
        image_size: Pixels at which drawn pictures are drawn.
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
        """The pictures with their labels.

        Raises:
            DataError: If they are not there, or their classes fit no known ones.
        """
        from landscape.datasets import open_labelled

        return open_labelled(
            self.name, self.path, slip=self.slip, image_size=self.image_size, split=self.split
        )

    def open(self) -> OpenedSet:
        """The pictures, and what is stored of them.

        Raises:
            DataError: As `labelled`.
        """
        from landscape.datasets import SUITE

        pictures = self.labelled()
        known = next((one for one in SUITE if one.identifier == pictures.name), None)
        classes = pictures.classes
        metric = "top1" if known is None else known.metric
        # Of the classes that are there, which may be fewer than were published.
        counted = known is None or metric in ("top1", "mean_per_class")
        chance = 1 / len(classes.names) if counted or known is None else known.chance
        one = picture_set(
            pictures,
            title=pictures.name if known is None else known.title,
            metric=metric,
            chance=math.nan if chance is None else chance,
            notes=(*(() if known is None else known.notes), *pictures.notes, *classes.notes),
        )
        return OpenedSet(one, pictures, classes)


def picture_set(
    pictures: "LabelledPictures",
    *,
    title: str,
    metric: str,
    chance: float,
    notes: Sequence[str] = (),
) -> PictureSet:
    """What is stored of labelled pictures.

    Raises:
        DataError: If there is none, or two have one key.
    """
    import numpy as np

    keys = tuple(pictures.key(i) for i in range(len(pictures)))
    if not keys:
        raise DataError(
            f"{pictures.name}: there is no picture in {pictures.path or 'it'}, so there is nothing to evaluate."
        )
    if len(set(keys)) < len(keys):
        twice = next(key for key in keys if keys.count(key) > 1)
        raise DataError(
            f"{pictures.name}: two pictures have the key {twice!r}, so their answers would be mixed up. Rename one."
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
    """Where names and prompts come from, as plain values."""
    return {
        "names": classes.names_source,
        "prompts": classes.templates_source,
        "num_prompts": len(classes.templates),
    }


def check_names(names: Sequence[str]) -> None:
    """Refuse two sets of one name.

    Raises:
        DataError: If so.
    """
    for name in names:
        if names.count(name) > 1:
            raise DataError(
                f"data set {name!r} is given twice, and its answers would be stored in one place. Rename one."
            )
