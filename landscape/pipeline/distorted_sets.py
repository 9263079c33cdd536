"""One's own labelled pictures, or OpenMoji's, through the distortions: a set for each kind and level, made when it is read."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

from landscape.errors import DataError, DistortionError, PictureError
from landscape.pipeline.picture_sets import OpenedSet, SetRequest, sources_of
from landscape.store.predictions import PictureSet

if TYPE_CHECKING:
    from PIL import Image

    from landscape.datasets import LabelledPictures
    from landscape.distortions import Inputs, Kind, Picture
    from landscape.distortions.sources import SourcePicture

# Before the name of a distortion, so that one's own pictures are never taken for the published stimuli.
OWN = "own/"
_OPENMOJI = "openmoji"
# Bytes of distorted pictures that a process keeps for the next checkpoint.
_KEPT = 2**29
# Pictures whose mean amplitudes equalise power; so many tell a mean spectrum to a few percent.
_MOST_FOR_SPECTRUM = 500


@dataclass(frozen=True, kw_only=True)
class DistortedRequest:
    """A labelled set through one distortion at one level.

    Args:
        base: The clean pictures: OpenMoji's, or class folders.
        kind, level: As in `landscape.distortions.KINDS`.
        seed: Of random distortions.
        size: Side in pixels to which clean pictures are cut before they are distorted.
    """

    base: SetRequest
    kind: str
    level: str
    seed: int = 0
    size: int

    @property
    def dataset(self) -> str:
        return f"{OWN}{self.base.name.removeprefix('own ')}/{self.kind}"

    @property
    def place(self) -> str:
        return f"{self.dataset} {self.level}"

    def open(self) -> OpenedSet:
        """The pictures, and what is stored of them.

        Raises:
            DataError: If there are none, or none that the distortion can be made of.
            DistortionError: If pictures of this size cannot have the level.
        """
        from landscape.distortions import kind_of

        kind = kind_of(self.kind)
        level = kind.level(self.level)
        kind.check_size(level, self.size, self.size)
        labelled = _labelled(self.base)
        chosen = _with_what_it_needs(labelled, kind)
        facts = [
            labelled.digest,
            self.kind,
            level.text,
            self.size,
            self.seed if kind.is_random else None,
            list(chosen),
        ]
        left_out = len(labelled) - len(chosen)
        notes = [*labelled.notes, *labelled.classes.notes]
        if left_out:
            notes.append(
                f"{left_out} of {len(labelled)} pictures are left out: without transparency, so without a silhouette."
            )
        one = PictureSet(
            dataset=self.dataset,
            title=f"{labelled.name}, {self.kind}",
            condition=level.text,
            split=labelled.split,
            chance=1 / len(labelled.classes.names),
            class_names=tuple(names[0] for names in labelled.classes.names),
            classes_digest=labelled.classes.digest,
            sources=sources_of(labelled.classes),
            pictures_digest=hashlib.sha256(json.dumps(facts).encode()).hexdigest(),
            notes=tuple(dict.fromkeys(notes)),
            keys=tuple(labelled.key(i) for i in chosen),
            labels=np.array([labelled.label(i) for i in chosen], dtype=np.int32),
        )
        return OpenedSet(
            one, _DistortedPictures(self, labelled, kind, level.text, chosen), labelled.classes
        )


def distorted_requests(
    base: SetRequest, *, kinds: Iterable[str] = (), size: int, seed: int = 0
) -> Iterator[DistortedRequest]:
    """A request for each level of each distortion; of all that these pictures can have where no kinds are named.

    Raises:
        DistortionError: If there is no such distortion, or it was asked for and pictures of this size cannot have it.
    """
    from landscape.distortions import KINDS, kind_of
    from landscape.errors import DistortionError

    kinds = tuple(kinds)
    drawn = base.path is None
    for name in kinds or [
        kind.name for kind in KINDS.values() if kind.in_all or not kind.is_parametric
    ]:
        kind = kind_of(name)
        if kind.needs == "svg" and not drawn:
            if kinds:
                raise DistortionError(
                    f"{name}: is made of the line layer of a drawing, and {base.place} has none. Leave it out."
                )
            continue
        for level in kind.levels:
            try:
                kind.check_size(level, size, size)
            except DistortionError:
                if kinds:
                    raise
                continue
            yield DistortedRequest(base=base, kind=name, level=level.text, seed=seed, size=size)


@lru_cache(maxsize=4)
def _labelled(base: SetRequest) -> "LabelledPictures":
    """The clean set, opened once for all its distortions."""
    return base.labelled()


def forget_own() -> None:
    """Look at folders anew: files may have come or gone since an earlier run of this process."""
    _labelled.cache_clear()
    _mean_amplitudes.cache_clear()


def _with_what_it_needs(labelled: "LabelledPictures", kind: "Kind") -> tuple[int, ...]:
    """The pictures of which a distortion can be made.

    Raises:
        DataError: If there is none.
    """
    everything = tuple(range(len(labelled)))
    if kind.needs != "alpha" or not labelled.path:
        return everything
    from landscape.clip.pictures import has_transparency

    # One that cannot be read has an answer of its own, which is missing.
    paths = [_source(labelled, i).path for i in everything]
    chosen = tuple(
        i
        for i, path in enumerate(paths)
        if path is not None and has_transparency(path) is not False
    )
    if not chosen:
        raise DataError(
            f"{labelled.name}: no picture has transparency, and a {kind.name} is made of it. Leave {kind.name} out with --kind."
        )
    return chosen


def _source(labelled: "LabelledPictures", index: int) -> "SourcePicture":
    """A clean picture as `landscape.distortions.sources` reads it.

    Raises:
        PictureError: If it is no file of its own, or gone.
    """
    from pathlib import Path

    from landscape.distortions.sources import SourcePicture

    key = labelled.key(index)
    if not labelled.path:
        return SourcePicture(key, _OPENMOJI)
    folder = Path(labelled.path)
    path = next(
        (path for path in (folder / key, folder / labelled.split / key) if path.is_file()), None
    )
    if path is None:
        raise PictureError(
            f"{labelled.name}: {key} is no file in {labelled.path}, and only pictures in class folders are distorted. Unpack "
            "them into <class>/<picture>."
        )
    return SourcePicture(key, labelled.classes.names[labelled.label(index)][0], path)


def _name_of(labelled: "LabelledPictures", key: str) -> str:
    """The name on which random distortions depend, as in `landscape distort`: the path without its suffix."""
    return os.path.splitext(key)[0] if labelled.path else key


class _DistortedPictures:
    """Pictures that are distorted when they are read; some are kept for the next checkpoint."""

    _kept: dict[tuple[str, str], np.ndarray] = {}

    def __init__(
        self,
        request: DistortedRequest,
        labelled: "LabelledPictures",
        kind: "Kind",
        level: str,
        chosen: tuple[int, ...],
    ) -> None:
        self._request, self._labelled, self._kind, self._level, self._chosen = (
            request,
            labelled,
            kind,
            level,
            chosen,
        )
        self._name = f"{labelled.digest} {kind.name} {level} {request.seed} {request.size}"

    def picture(self, i: int) -> "Image.Image":
        from PIL import Image

        from landscape.distortions import distort, to_bytes

        index = self._chosen[i]
        key = self._labelled.key(index)
        kept = _DistortedPictures._kept
        pixels = kept.get((self._name, key))
        if pixels is None:
            clean = self._clean(index)
            seed, name = self._request.seed, _name_of(self._labelled, key)
            try:
                distorted = distort(
                    clean,
                    self._kind.name,
                    self._level,
                    seed=seed,
                    key=name,
                    inputs=self._inputs(clean),
                )
            except DistortionError as error:
                raise PictureError(f"{key}: {error}") from error
            pixels = to_bytes(distorted)
            # Every checkpoint reads all pictures in the same order, so what came first is not given up for what came last.
            if (len(kept) + 1) * pixels.nbytes <= _KEPT:
                kept[self._name, key] = pixels
        return Image.fromarray(pixels)

    def _clean(self, index: int) -> "Picture":
        from landscape.distortions.sources import read_picture

        return read_picture(
            _source(self._labelled, index), self._request.size, needs={self._kind.needs}
        )

    def _inputs(self, clean: "Picture") -> "Inputs":
        from landscape.distortions import Inputs

        if self._kind.name != "power-equalisation" or self._level == self._kind.control:
            return Inputs()
        return Inputs(amplitudes=_mean_amplitudes(self._request.base, self._request.size))


@lru_cache(maxsize=4)
def _mean_amplitudes(base: SetRequest, size: int) -> np.ndarray:
    """The mean amplitude spectrum of a set's pictures; of 500 spread evenly where it has more."""
    from landscape.distortions import amplitude_spectrum
    from landscape.distortions.sources import read_picture

    labelled = _labelled(base)
    step = -(-len(labelled) // _MOST_FOR_SPECTRUM)
    total, number = np.zeros((size, size)), 0
    for index in range(0, len(labelled), step):
        try:
            total += amplitude_spectrum(read_picture(_source(labelled, index), size).rgb)
            number += 1
        except PictureError:
            continue
    if not number:
        raise DataError(
            f"{labelled.name}: no picture can be read, so there is no mean spectrum. Restore them."
        )
    return total / number
