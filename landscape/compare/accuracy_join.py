"""Several files of predictions joined into one.

Series have unique names, and sets are the same in all files.
"""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from landscape.compare.accuracy_result import EvaluatedSeries
from landscape.errors import StoreError
from landscape.store.predictions import (
    CheckpointPredictions,
    PictureSet,
    PredictionStore,
    read_predictions,
)
from landscape.suggestions import nearest

_DIFFERS = {
    "classes_digest": "its classes or prompts are others",
    "pictures_digest": "its pictures or labels are others",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class JoinedStores:
    """Series of one or several files.

    Attributes:
        store: All sets and checkpoints, with the series and labels of `series`. Answers of people
            and of other models are not in it.
        series: Names and labels, unique among all files.
        answers: Those of each file that has any, as `PredictionStore.answers`.
    """

    store: PredictionStore
    series: tuple[EvaluatedSeries, ...]
    answers: tuple[bytes, ...]


def join_stores(paths: Sequence[Path], *, series: Sequence[str] = ()) -> JoinedStores:
    """Read files of predictions.

    Args:
        series: Names, as in the files; all by default.

    Raises:
        StoreError: If a file is missing, damaged or named twice, two files have a set of one name
            with other pictures or classes, a series is in none, or none has answered a picture.
    """
    stores: dict[Path, PredictionStore] = {}
    for path in paths:
        if any(os.path.realpath(path) == os.path.realpath(other) for other in stores):
            raise StoreError(
                f"{path}: named twice, and a series does not differ from itself; name each store "
                "once."
            )
        store = read_predictions(path)
        if store is None:
            raise StoreError(
                f"{path}: there is no such file; `landscape evaluate` and `landscape ood` write "
                "one."
            )
        stores[path] = store
    kept = _wanted(stores, series)
    names = _unique_names(list(kept))
    infos = [
        _info(path, name, names[path, name], checkpoints)
        for (path, name), checkpoints in kept.items()
    ]
    labels = Counter(info.label for info in infos)
    infos = [
        info if labels[info.label] == 1 else replace(info, label=f"{info.label} ({info.name})")
        for info in infos
    ]
    renamed = {
        (info.name, checkpoint.epoch): replace(checkpoint, series=info.name, label=info.label)
        for info, checkpoints in zip(infos, kept.values(), strict=True)
        for checkpoint in checkpoints
    }
    return JoinedStores(
        store=PredictionStore(sets=_joined_sets(stores), checkpoints=renamed),
        series=tuple(infos),
        answers=tuple(store.answers for store in stores.values() if store.answers),
    )


def _wanted(
    stores: Mapping[Path, PredictionStore], series: Sequence[str]
) -> dict[tuple[Path, str], list[CheckpointPredictions]]:
    """Select checkpoints that answered a picture, by file and series."""
    kept: dict[tuple[Path, str], list[CheckpointPredictions]] = {}
    for path, store in stores.items():
        for checkpoint in store.checkpoints.values():
            if any(answers.done.any() for answers in checkpoint.sets.values()):
                kept.setdefault((path, checkpoint.series), []).append(checkpoint)
    there = dict.fromkeys(name for _, name in kept)
    files = ", ".join(map(str, stores))
    for name in series:
        if name not in there:
            raise StoreError(
                f"{files}: no series {name!r} has answered anything; {nearest(name, there)}"
            )
    if not kept:
        raise StoreError(
            f"{files}: no series has answered a picture, so there is nothing to compare; evaluate "
            "some first."
        )
    return {key: checkpoints for key, checkpoints in kept.items() if not series or key[1] in series}


def _unique_names(keys: Sequence[tuple[Path, str]]) -> dict[tuple[Path, str], str]:
    """Prefix names that two stores share with the file: "a:vit".

    The prefix is the whole path where the files also have the same name.
    """
    names, stems = (
        Counter(name for _, name in keys),
        Counter(path.stem for path in {path for path, _ in keys}),
    )
    return {
        (path, name): name
        if names[name] == 1
        else f"{path.stem if stems[path.stem] == 1 else path}:{name}"
        for path, name in keys
    }


def _info(
    path: Path, name: str, unique: str, checkpoints: Sequence[CheckpointPredictions]
) -> EvaluatedSeries:
    last = max(checkpoints, key=lambda checkpoint: checkpoint.epoch)
    epochs = tuple(sorted(checkpoint.epoch for checkpoint in checkpoints))
    return EvaluatedSeries(
        name=unique, label=last.label or name, model=last.model, store=str(path), epochs=epochs
    )


def _joined_sets(stores: Mapping[Path, PredictionStore]) -> dict[tuple[str, str], PictureSet]:
    sets: dict[tuple[str, str], tuple[Path, PictureSet]] = {}
    for path, store in stores.items():
        for name, pictures in store.sets.items():
            other, known = sets.setdefault(name, (path, pictures))
            identity = known.identity()
            key = next(
                (key for key, value in pictures.identity().items() if identity[key] != value), None
            )
            if key is None and (
                known.keys != pictures.keys or (known.labels != pictures.labels).any()
            ):
                key = "pictures_digest"
            if key is not None:
                raise StoreError(
                    f"{path}: {pictures.place}: {_DIFFERS.get(key, f'its {key} is another')} than "
                    f"in {other}, and answers to both are not comparable. Evaluate both on the "
                    "same data with the same prompts."
                )
    return {name: pictures for name, (_, pictures) in sets.items()}
