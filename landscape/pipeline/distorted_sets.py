"""The user's labelled pictures, or OpenMoji's, with distortions.

A set for each kind and level; pictures are distorted when they are read.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from landscape.clip.pictures import has_transparency
from landscape.distortions import KINDS, Inputs, amplitude_spectrum, distort, kind_of, to_bytes
from landscape.distortions.sources import SourcePicture, read_picture
from landscape.errors import DataError, DistortionError, LandscapeError, PictureError
from landscape.pipeline.picture_sets import OpenedSet, SetRequest, sources_of
from landscape.store.predictions import PictureSet

if TYPE_CHECKING:
    from PIL import Image

    from landscape.datasets import LabelledPictures
    from landscape.distortions import Kind, Picture

# Prefix of the name of a distortion, so that own pictures are never mistaken for the published
# stimuli.
OWN = "own/"
_OPENMOJI = "openmoji"
# Bytes of distorted pictures that a process keeps for the next checkpoint.
_KEPT = 2**29
# Number of pictures whose mean amplitudes equalise power; it determines a mean spectrum to a few
# percent.
_MAX_FOR_SPECTRUM = 500


@dataclass(frozen=True, kw_only=True)
class DistortedRequest:
    """A labelled set with a distortion at a given level.

    Args:
        base: The clean pictures: OpenMoji's, or class folders.
        kind, level: As in `landscape.distortions.KINDS`.
        seed: Seed of random distortions.
        size: Side in pixels to which clean pictures are cropped before they are distorted.
        left_out: As in `PictureSet`.
    """

    base: SetRequest
    kind: str
    level: str
    seed: int = 0
    size: int
    left_out: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def dataset(self) -> str:
        return f"{OWN}{self.base.name.removeprefix('own ')}/{self.kind}"

    @property
    def place(self) -> str:
        return f"{self.dataset} {self.level}"

    def open(self) -> OpenedSet:
        """Open the pictures, with the facts that are stored about them.

        Raises:
            DataError: If there are no pictures, or none that can have the distortion.
            DistortionError: If pictures of this size cannot have the level.
        """
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
                f"{left_out} of {len(labelled)} pictures are left out: without transparency, so "
                "without a silhouette."
            )
        stored = PictureSet(
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
            left_out=self.left_out,
            keys=tuple(labelled.key(i) for i in chosen),
            labels=np.array([labelled.label(i) for i in chosen], dtype=np.int32),
        )
        return OpenedSet(
            stored, _DistortedPictures(self, labelled, kind, level.text, chosen), labelled.classes
        )


def distorted_requests(
    base: SetRequest, *, kinds: Iterable[str] = (), size: int, seed: int = 0
) -> tuple[DistortedRequest, ...]:
    """Build a request for each level of each distortion.

    Where no kinds are named, all that these pictures can have. Each request states what was left
    out.

    Raises:
        DistortionError: If there is no such distortion, or it was requested and pictures of this
            size cannot have it.
    """
    kinds = tuple(kinds)
    wanted: list[tuple[str, str]] = []
    left_out: dict[str, str] = {}
    for name in kinds or [
        kind.name for kind in KINDS.values() if kind.in_all or not kind.is_parametric
    ]:
        kind = kind_of(name)
        refused = _refused_levels(base, kind, size)
        if kinds and refused:
            raise next(iter(refused.values()))
        wanted += [(name, level.text) for level in kind.levels if level.text not in refused]
        if len(refused) == len(kind.levels):
            left_out[name] = _reason(next(iter(refused.values())))
        else:
            left_out |= {f"{name} {level}": _reason(error) for level, error in refused.items()}
    return tuple(
        DistortedRequest(base=base, kind=name, level=level, seed=seed, size=size, left_out=left_out)
        for name, level in wanted
    )


def _refused_levels(base: SetRequest, kind: "Kind", size: int) -> dict[str, LandscapeError]:
    """Return the levels that these pictures cannot have, with the reasons."""
    refused: dict[str, LandscapeError] = {}
    for level in kind.levels:
        try:
            if kind.needs == "alpha" and base.path is not None:
                _with_what_it_needs(_labelled(base), kind)
            if kind.needs == "svg" and base.path is not None:
                raise DistortionError(
                    f"{kind.name}: is made of the line layer of a drawing, and {base.place} has "
                    "none. Leave it out."
                )
            kind.check_size(level, size, size)
        except PictureError:
            raise
        except (DataError, DistortionError) as error:
            refused[level.text] = error
    return refused


def _reason(error: LandscapeError) -> str:
    return str(error).partition(". ")[0]


@lru_cache(maxsize=4)
def _labelled(base: SetRequest) -> "LabelledPictures":
    """Open the clean set, once for all its distortions."""
    return base.labelled()


def forget_own() -> None:
    """Clear the caches of folders.

    Files may have come or gone since an earlier run of this process.
    """
    _labelled.cache_clear()
    _mean_amplitudes.cache_clear()


def _with_what_it_needs(labelled: "LabelledPictures", kind: "Kind") -> tuple[int, ...]:
    """Return the indices of the pictures that can have a distortion.

    Raises:
        DataError: If there is none.
    """
    everything = tuple(range(len(labelled)))
    if kind.needs != "alpha" or not labelled.path:
        return everything
    # A picture that cannot be read stays in the set; its answer is then missing.
    paths = [_source(labelled, i).path for i in everything]
    chosen = tuple(
        i
        for i, path in enumerate(paths)
        if path is not None and _has_transparency(path) is not False
    )
    if not chosen:
        raise DataError(
            f"{labelled.name}: no picture has transparency, and a {kind.name} is made of it. Leave "
            f"{kind.name} out with --kind."
        )
    return chosen


def _has_transparency(path: Path) -> bool | None:
    """Tell by its header whether a picture has transparency; None if unreadable."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return _read_transparency(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=2**17)
def _read_transparency(path: Path, size: int, changed: int) -> bool | None:
    """Read a header.

    It is read again only if the size or the time of the last change differs.
    """
    return has_transparency(path)


def _source(labelled: "LabelledPictures", index: int) -> "SourcePicture":
    """Return a clean picture as `landscape.distortions.sources` reads it.

    Raises:
        PictureError: If it is no file of its own, or gone.
    """
    key = labelled.key(index)
    if not labelled.path:
        return SourcePicture(key, _OPENMOJI)
    folder = Path(labelled.path)
    path = next(
        (path for path in (folder / key, folder / labelled.split / key) if path.is_file()), None
    )
    if path is None:
        raise PictureError(
            f"{labelled.name}: {key} is no file in {labelled.path}, and only pictures in class "
            "folders are distorted. Unpack them into <class>/<picture>."
        )
    return SourcePicture(key, labelled.classes.names[labelled.label(index)][0], path)


def _name_of(labelled: "LabelledPictures", key: str) -> str:
    """Return the name on which random distortions depend.

    As in `landscape distort`, it is the path without its suffix.
    """
    return os.path.splitext(key)[0] if labelled.path else key


class _DistortedPictures:
    """Pictures that are distorted when they are read.

    Some are kept in memory for the next checkpoint.
    """

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
            # Every checkpoint reads all pictures in the same order, so the first ones stay in the
            # cache.
            if (len(kept) + 1) * pixels.nbytes <= _KEPT:
                kept[self._name, key] = pixels
        return Image.fromarray(pixels)

    def _clean(self, index: int) -> "Picture":
        return read_picture(
            _source(self._labelled, index), self._request.size, needs={self._kind.needs}
        )

    def _inputs(self, clean: "Picture") -> "Inputs":
        if self._kind.name != "power-equalisation" or self._level == self._kind.control:
            return Inputs()
        return Inputs(amplitudes=_mean_amplitudes(self._request.base, self._request.size))


@lru_cache(maxsize=4)
def _mean_amplitudes(base: SetRequest, size: int) -> np.ndarray:
    """Compute the mean amplitude spectrum of a set's pictures.

    If it has more than 500, these are spread evenly over the set.
    """
    labelled = _labelled(base)
    step = -(-len(labelled) // _MAX_FOR_SPECTRUM)
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
