"""Pictures in model-vs-human's layout as sets: the published stimuli by its 16 categories, others by their own classes."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landscape.pipeline.distorted_sets import OWN
from landscape.pipeline.picture_sets import OpenedSet, sources_of
from landscape.store.predictions import PictureSet

if TYPE_CHECKING:
    from landscape.datasets import Classes, Stimuli


@dataclass(frozen=True, kw_only=True)
class StimuliRequest:
    """One condition of a data set of stimuli.

    Args:
        folder: Of all data sets.
        logit_scale: Of decisions among the 16 categories; None for the learned one.
    """

    folder: Path
    dataset: str
    condition: str
    logit_scale: float | None

    @property
    def place(self) -> str:
        return f"{self.dataset} {self.condition}"

    def open(self) -> OpenedSet:
        """The pictures, and what is stored of them.

        Raises:
            DataError: If they are not there, or are not what they seem.
        """
        from landscape.zeroshot import COSINE, imagenet16

        stimuli = _stimuli(self.folder)[self.dataset, self.condition]
        published = stimuli.is_published
        classes = _imagenet() if published else _own_classes(stimuli.classes)
        place = {name: number for number, name in enumerate(stimuli.classes)}
        one = PictureSet(
            dataset=self.dataset if published else f"{OWN}{self.folder.name}/{self.dataset}",
            title=self.dataset,
            condition=self.condition,
            rule=imagenet16(self.logit_scale) if published else COSINE,
            chance=1 / len(place),
            class_names=stimuli.classes,
            classes_digest=classes.digest,
            sources=sources_of(classes),
            pictures_digest=stimuli.digest,
            notes=classes.notes,
            keys=stimuli.keys,
            labels=np.array([place[name] for name in stimuli.categories], dtype=np.int32),
        )
        return OpenedSet(one, stimuli, classes)


def stimuli_requests(folder: Path, *, logit_scale: float | None) -> Iterator[StimuliRequest]:
    """A request for each data set and condition in a folder.

    Raises:
        DataError: If there is none, or something in it is not as it should be.
    """
    folder = folder.absolute()
    forget_stimuli()
    for dataset, condition in _stimuli(folder):
        yield StimuliRequest(
            folder=folder, dataset=dataset, condition=condition, logit_scale=logit_scale
        )


def forget_stimuli() -> None:
    """List folders anew: files may have come or gone since an earlier run of this process."""
    _stimuli.cache_clear()


@lru_cache(maxsize=2)
def _stimuli(folder: Path) -> "dict[tuple[str, str], Stimuli]":
    """The folder, listed once for all its data sets."""
    from landscape.datasets import open_stimuli

    return open_stimuli(folder)


def _imagenet() -> "Classes":
    """ImageNet's classes in the 80 prompts of CLIP, as the benchmark's toolbox asks CLIP models."""
    from open_clip import IMAGENET_CLASSNAMES, OPENAI_IMAGENET_TEMPLATES

    from landscape.datasets import Classes

    return Classes(
        names=tuple((name,) for name in IMAGENET_CLASSNAMES),
        templates=tuple(template("{}") for template in OPENAI_IMAGENET_TEMPLATES),
        names_source="open_clip",
        templates_source="open_clip, the 80 templates",
    )


def _own_classes(names: tuple[str, ...]) -> "Classes":
    from landscape.datasets import Classes
    from landscape.datasets.classes import GENERIC_TEMPLATE

    return Classes(
        names=tuple((name.replace("_", " "),) for name in names),
        templates=(GENERIC_TEMPLATE,),
        names_source="folder names",
        templates_source="one general prompt",
    )
