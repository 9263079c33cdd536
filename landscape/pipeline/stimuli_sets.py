"""Pictures in the layout of model-vs-human, as sets.

The published stimuli have its 16 categories, others their own classes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landscape import datasets, zeroshot
from landscape.datasets.classes import GENERIC_TEMPLATE
from landscape.pipeline.distorted_sets import OWN
from landscape.pipeline.picture_sets import OpenedSet, sources_of
from landscape.store.predictions import PictureSet

if TYPE_CHECKING:
    from landscape.datasets import Classes, Stimuli


@dataclass(frozen=True, kw_only=True)
class StimuliRequest:
    """A condition of a data set of stimuli.

    Args:
        folder: Folder of all data sets.
        logit_scale: Factor of the cosines for decisions among the 16 categories; None for the
            learned factor.
    """

    folder: Path
    dataset: str
    condition: str
    logit_scale: float | None

    @property
    def place(self) -> str:
        return f"{self.dataset} {self.condition}"

    @property
    def is_published(self) -> bool:
        """Tell whether the set is the benchmark's, with its 16 categories."""
        return _stimuli(self.folder)[self.dataset, self.condition].is_published

    def open(self) -> OpenedSet:
        """Open the pictures, with the facts that are stored about them.

        Raises:
            DataError: If they do not exist, or are not what they seem.
        """
        stimuli = _stimuli(self.folder)[self.dataset, self.condition]
        published = stimuli.is_published
        classes = _imagenet() if published else _own_classes(stimuli.classes)
        place = {name: number for number, name in enumerate(stimuli.classes)}
        stored = PictureSet(
            dataset=self.dataset if published else f"{OWN}{self.folder.name}/{self.dataset}",
            title=self.dataset,
            condition=self.condition,
            rule=zeroshot.imagenet16(self.logit_scale) if published else zeroshot.COSINE,
            chance=1 / len(place),
            class_names=stimuli.classes,
            classes_digest=classes.digest,
            sources=sources_of(classes),
            pictures_digest=stimuli.digest,
            notes=classes.notes,
            keys=stimuli.keys,
            labels=np.array([place[name] for name in stimuli.categories], dtype=np.int32),
        )
        return OpenedSet(stored, stimuli, classes)


def stimuli_requests(folder: Path, *, logit_scale: float | None) -> Iterator[StimuliRequest]:
    """Yield a request for each data set and condition in a folder.

    Raises:
        DataError: If there is none, or something in the folder is wrong.
    """
    folder = folder.absolute()
    forget_stimuli()
    for dataset, condition in _stimuli(folder):
        yield StimuliRequest(
            folder=folder, dataset=dataset, condition=condition, logit_scale=logit_scale
        )


def forget_stimuli() -> None:
    """Clear the cache of listed folders.

    Files may have come or gone since an earlier run of this process.
    """
    _stimuli.cache_clear()


@lru_cache(maxsize=2)
def _stimuli(folder: Path) -> "dict[tuple[str, str], Stimuli]":
    """List the folder, once for all its data sets."""
    return datasets.open_stimuli(folder)


def _imagenet() -> "Classes":
    """Return ImageNet's classes with the 80 prompts of CLIP.

    The benchmark's toolbox uses these for CLIP models.
    """
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    return datasets.Classes(
        names=tuple((name,) for name in IMAGENET_CLASSNAMES),
        templates=tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),
        names_source="open_clip",
        templates_source="open_clip, the 80 templates",
    )


def _own_classes(names: tuple[str, ...]) -> "Classes":
    return datasets.Classes(
        names=tuple((name.replace("_", " "),) for name in names),
        templates=(GENERIC_TEMPLATE,),
        names_source="folder names",
        templates_source="one general prompt",
    )
