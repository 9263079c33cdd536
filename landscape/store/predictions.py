"""Answers of models on labelled pictures: an HDF5 file, prediction schema version 1.

Every metric is recomputed from it.

/                               kind = "predictions", schema_version, landscape_version
/sets/<number>                  a data set in one condition: attribute facts (JSON, of
                                `PictureSet`), datasets keys (JSON), labels
/answers                        (where there are any) CSV of answers of people and other models,
                                see `landscape.answers`
/predictions/<series>/<epoch>   attributes model, label, checkpoint_sha256, as_trained and
                                settings (JSON)
    <number of the set>         datasets top, scores, done; attribute unread (JSON: why, by the
                                place of the picture)

Shapes: n = pictures, t = stored classes of each picture, the best first.
"""

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
from jaxtyping import Bool, Float32, Int32

from landscape.errors import StoreError
from landscape.files import write_atomically
from landscape.manifest import canonical_json, json_sha256
from landscape.store.contents import open_kind
from landscape.store.hdf5 import (
    check_mapping,
    file_image,
    groups_in,
    has_attribute,
    read_array,
)
from landscape.version import VERSION

PREDICTION_SCHEMA_VERSION = 1
_KIND = "predictions"
_CHANGED = {
    "classes_digest": "its classes or prompts are others",
    "pictures_digest": "its pictures or labels are others",
}


@dataclass(frozen=True, kw_only=True, eq=False)
class PictureSet:
    """The pictures of a data set in one condition, with their labels.

    Attributes:
        dataset: Name of the data set, such as "food101"; unique together with the condition.
        title: Title in tables.
        condition: Distortion and level of distorted pictures, such as "c10"; "" where there is only
            one condition.
        split: Split of the data set, such as "test"; "" where it is not known.
        metric: "top1", "mean_per_class", "top1_top5" or "roc_auc".
        rule: How scores are computed: "cosine" with the text of each class, "logit" of a
            classifier, or "imagenet16", see `landscape.answers.category_scores`.
        chance: Value of the metric by chance, from 0 to 1; NaN where it is not known.
        class_names: The first name of each class.
        classes_digest: Digest of names and prompts.
        sources: Origin of names and prompts, as plain values.
        pictures_digest: Digest of keys and labels.
        notes: Caveats on the set, a sentence each.
        left_out: Distortions ("eidolonI") and levels ("low-pass 40") of the same pictures that are
            not made, as these pictures cannot have them, with the reason.
        keys: Names of the pictures, unique.
        labels: The class of each picture.
    """

    dataset: str
    title: str
    condition: str = ""
    split: str = ""
    metric: str = "top1"
    rule: str = "cosine"
    chance: float = math.nan
    class_names: tuple[str, ...]
    classes_digest: str
    sources: Mapping[str, Any] = field(default_factory=dict)
    pictures_digest: str
    notes: tuple[str, ...] = ()
    left_out: Mapping[str, str] = field(default_factory=dict)
    keys: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]

    @property
    def name(self) -> tuple[str, str]:
        return self.dataset, self.condition

    @property
    def place(self) -> str:
        """Return its name for messages."""
        return f"{self.dataset} {self.condition}".strip()

    def __len__(self) -> int:
        return len(self.keys)

    def identity(self) -> dict[str, Any]:
        """Return the values that predictions of a set must share.

        They are JSON values.
        """
        return {
            name: getattr(self, name)
            for name in ("metric", "rule", "classes_digest", "pictures_digest")
        }


@dataclass(kw_only=True, eq=False)
class SetPredictions:
    """The answers of a checkpoint on a set.

    Attributes:
        top: The best classes; -1 where there is no answer.
        scores: Scores of these classes; NaN where there is no answer.
        done: Which pictures were processed, those that could not be read included.
        unread: Why a picture could not be read, by its index.
    """

    top: Int32[np.ndarray, "n t"]
    scores: Float32[np.ndarray, "n t"]
    done: Bool[np.ndarray, " n"]
    unread: dict[int, str] = field(default_factory=dict)

    @classmethod
    def empty(cls, num_pictures: int, width: int) -> "SetPredictions":
        return cls(
            top=np.full((num_pictures, width), -1, dtype=np.int32),
            scores=np.full((num_pictures, width), np.nan, dtype=np.float32),
            done=np.zeros(num_pictures, dtype=bool),
        )

    @property
    def complete(self) -> bool:
        return bool(self.done.all())

    def put(
        self, first: int, top: np.ndarray, scores: np.ndarray, unread: Mapping[int, str]
    ) -> None:
        """Store the answers to the pictures from `first` on.

        Indices in `unread` count from there.
        """
        piece = slice(first, first + len(top))
        for place in range(first, first + len(top)):
            self.unread.pop(place, None)
        self.top[piece], self.scores[piece], self.done[piece] = top, scores, True
        self.unread.update({first + place: why for place, why in unread.items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointPredictions:
    """The answers of a checkpoint on all sets that were evaluated.

    Attributes:
        settings: How scores were computed where a protocol leaves freedom, as JSON values.
        as_trained: How the model was trained: each value that was used, with its source.
        sets: Answers by dataset and condition.
    """

    series: str
    label: str
    model: str
    epoch: int
    checkpoint_sha256: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    as_trained: Mapping[str, Any] = field(default_factory=dict)
    sets: dict[tuple[str, str], SetPredictions] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        return self.series, self.epoch


@dataclass(frozen=True, kw_only=True, eq=False)
class PredictionStore:
    """The whole content of a file.

    Attributes:
        answers: A CSV table of the answers of people and of models that were not evaluated here;
            empty where there are none.
    """

    sets: dict[tuple[str, str], PictureSet] = field(default_factory=dict)
    checkpoints: dict[tuple[str, int], CheckpointPredictions] = field(default_factory=dict)
    answers: bytes = b""
    landscape_version: str = VERSION

    def digest(self) -> str:
        """Compute the SHA-256 digest of all answers.

        It covers what they are answers to, but not how they were computed.
        """
        parts: list[Any] = [
            [*name, pictures.identity()] for name, pictures in sorted(self.sets.items())
        ]
        for key, checkpoint in sorted(self.checkpoints.items()):
            for name, answers in sorted(checkpoint.sets.items()):
                content = [
                    checkpoint.checkpoint_sha256,
                    answers.top.tobytes().hex(),
                    answers.scores.tobytes().hex(),
                ]
                parts.append(
                    [*key, *name, *content, answers.done.tobytes().hex(), sorted(answers.unread)]
                )
        return json_sha256(parts)


# --- the file --------------------------------------------------------------------------


def write_predictions(path: Path, store: PredictionStore) -> None:
    """Write the whole file, or leave the old one.

    Raises:
        StoreError: If the disk does not take it.
    """
    content = file_image(lambda file: _write(file, store))
    try:
        write_atomically(path, content)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}). What was answered is safe: "
            "repair the disk, then run the same command again."
        ) from error


def _write(file: h5py.File, store: PredictionStore) -> None:
    file.attrs.update(
        {"kind": _KIND, "schema_version": PREDICTION_SCHEMA_VERSION, "landscape_version": VERSION}
    )
    sets, predictions = (
        file.create_group(name, track_order=True) for name in ("sets", "predictions")
    )
    numbers = {name: str(number) for number, name in enumerate(store.sets)}
    for name, pictures in store.sets.items():
        group = sets.create_group(numbers[name])
        facts = {
            key: value for key, value in vars(pictures).items() if key not in ("keys", "labels")
        }
        facts["chance"] = None if math.isnan(pictures.chance) else pictures.chance
        group.attrs["facts"] = canonical_json(facts)
        # Stored as an array of bytes, since HDF5 has no checksums for texts.
        keys = np.frombuffer(json.dumps(pictures.keys).encode(), dtype=np.uint8)
        group.create_dataset("keys", data=keys, **_compressed(keys.size))
        group.create_dataset(
            "labels", data=pictures.labels, dtype="<i4", **_compressed(len(pictures.labels))
        )
    if store.answers:
        content = np.frombuffer(store.answers, dtype=np.uint8)
        file.create_dataset("answers", data=content, **_compressed(content.size))
    for (series, epoch), checkpoint in store.checkpoints.items():
        if series not in predictions:
            predictions.create_group(series, track_order=True)
        group = predictions[series].create_group(str(epoch), track_order=True)
        for key in ("model", "label", "checkpoint_sha256"):
            group.attrs[key] = getattr(checkpoint, key)
        for key in ("settings", "as_trained"):
            group.attrs[key] = canonical_json(getattr(checkpoint, key))
        for name, answers in checkpoint.sets.items():
            own = group.create_group(numbers[name])
            own.attrs["unread"] = canonical_json(
                {str(place): why for place, why in answers.unread.items()}
            )
            for key, dtype in (("top", "<i4"), ("scores", "<f4"), ("done", "?")):
                array = getattr(answers, key)
                own.create_dataset(key, data=array, dtype=dtype, **_compressed(array.size))


def _compressed(size: int) -> dict[str, Any]:
    return {"fletcher32": True, "compression": "gzip", "shuffle": True} if size else {}


def is_predictions(path: Path) -> bool:
    """Tell whether a file declares that it holds predictions."""
    return has_attribute(path, "kind", value=_KIND)


def read_predictions(path: Path) -> PredictionStore | None:
    """Read a file of predictions; None if there is no file.

    Raises:
        StoreError: If it is something else, damaged, or of another version of the schema.
    """
    if not path.exists():
        return None
    otherwise = (
        "holds no predictions. Name one of `landscape evaluate` or `landscape ood`, or a new "
        "output."
    )
    advice = "Restore it from a copy, or remove it to evaluate anew."
    with open_kind(path, _KIND, otherwise=otherwise, advice=advice) as file:
        numbered = {number: _read_set(group) for number, group in groups_in(file["sets"])}
        checkpoints = [
            _read_checkpoint(group, series, int(epoch), numbered)
            for series, epochs in groups_in(file["predictions"])
            for epoch, group in groups_in(epochs)
        ]
        return PredictionStore(
            sets={pictures.name: pictures for pictures in numbered.values()},
            checkpoints={checkpoint.key: checkpoint for checkpoint in checkpoints},
            answers=read_array(file, "answers", dtype="u1", shape=(None,)).tobytes()
            if "answers" in file
            else b"",
            landscape_version=str(file.attrs["landscape_version"]),
        )


def _read_set(group: h5py.Group) -> PictureSet:
    known = set(PictureSet.__dataclass_fields__) - {"keys", "labels"}
    facts: dict[str, Any] = dict(check_mapping(json.loads(group.attrs["facts"]), "facts"))
    facts = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in facts.items()
        if name in known
    }
    facts["chance"] = math.nan if facts.get("chance") is None else float(facts["chance"])
    keys = tuple(
        map(str, json.loads(read_array(group, "keys", dtype="u1", shape=(None,)).tobytes()))
    )
    pictures = PictureSet(
        **facts, keys=keys, labels=read_array(group, "labels", dtype="<i4", shape=(len(keys),))
    )
    num_classes = len(pictures.class_names)
    if pictures.labels.size and not (
        0 <= pictures.labels.min() and pictures.labels.max() < num_classes
    ):
        raise ValueError(f"{pictures.place} has labels beyond its {num_classes} classes")
    return pictures


def _read_checkpoint(
    group: h5py.Group, series: str, epoch: int, sets: Mapping[str, PictureSet]
) -> CheckpointPredictions:
    facts: dict[str, Any] = {
        key: str(group.attrs[key]) for key in ("model", "label", "checkpoint_sha256")
    }
    facts |= {
        key: check_mapping(json.loads(group.attrs[key]), key) for key in ("settings", "as_trained")
    }
    predictions = CheckpointPredictions(series=series, epoch=epoch, **facts)
    for number, own in groups_in(group):
        pictures = sets[number]
        top = read_array(own, "top", dtype="<i4", shape=(len(pictures), None))
        if top.size and not (-1 <= top.min() and top.max() < len(pictures.class_names)):
            raise ValueError(
                f"{series} epoch {epoch} names classes that {pictures.place} does not have"
            )
        predictions.sets[pictures.name] = SetPredictions(
            top=top,
            scores=read_array(own, "scores", dtype="<f4", shape=top.shape),
            done=read_array(own, "done", dtype="?", shape=(len(pictures),)),
            unread={int(place): str(why) for place, why in json.loads(own.attrs["unread"]).items()},
        )
    return predictions


def notes_on(sets: Iterable[PictureSet]) -> list[str]:
    """List the notes on sets: each sentence once, with its sets."""
    places: dict[str, list[str]] = {}
    for pictures in sets:
        for note in pictures.notes:
            places.setdefault(note, []).append(pictures.place)
    return [f"{_several(of)}: {note}" for note, of in places.items()]


def left_out_of(sets: Iterable[PictureSet]) -> list[str]:
    """List distortions and levels that are not made, by reason."""
    names: dict[tuple[str, str], list[str]] = {}
    for pictures in sets:
        for name, why in pictures.left_out.items():
            of_reason = names.setdefault((pictures.dataset.rpartition("/")[0], why), [])
            if name not in of_reason:
                of_reason.append(name)
    return [f"{base}: left out: {', '.join(of)} ({why})." for (base, why), of in names.items()]


def num_levels(sets: Iterable[PictureSet], dataset: str) -> tuple[int, int]:
    """Count the conditions of a data set.

    Returns:
        The number of conditions, and the number that it would have with larger pictures.
    """
    conditions = [pictures for pictures in sets if pictures.dataset == dataset]
    kind = dataset.rpartition("/")[2]
    missing = {
        name for pictures in conditions for name in pictures.left_out if name.startswith(f"{kind} ")
    }
    return len(conditions), len(conditions) + len(missing)


def _several(places: list[str]) -> str:
    return (
        " and ".join(places)
        if len(places) <= 2
        else f"{places[0]} and {len(places) - 1} other sets"
    )


def describe_predictions(path: Path) -> list[str]:
    """Describe a file of predictions in the lines that `landscape info` prints.

    Raises:
        StoreError: As `read_predictions`.
    """
    store = read_predictions(path)
    assert store is not None, "the caller has seen the file"
    lines = [
        f"predictions, schema version {PREDICTION_SCHEMA_VERSION}: {len(store.checkpoints)} "
        f"checkpoints on {len(store.sets)} sets of pictures, written by landscape "
        f"{store.landscape_version}"
    ]
    for pictures in store.sets.values():
        condition = f" {pictures.condition}" if pictures.condition else ""
        lines.append(
            f"set {pictures.dataset}{condition}: {len(pictures):,} pictures "
            f"({pictures.split or 'all'}), {len(pictures.class_names)} classes, {pictures.metric}, "
            f"scores by {pictures.rule}, names from {pictures.sources.get('names', 'unknown')}, "
            f"{pictures.sources.get('num_prompts', 0)} prompts from "
            f"{pictures.sources.get('prompts', 'unknown')}"
        )
    for checkpoint in store.checkpoints.values():
        done = sum(int(answers.done.sum()) for answers in checkpoint.sets.values())
        unread = sum(len(answers.unread) for answers in checkpoint.sets.values())
        missing = f", {unread} pictures unread" if unread else ""
        lines.append(
            f"{checkpoint.series} epoch {checkpoint.epoch}: {done:,} answers on "
            f"{len(checkpoint.sets)} sets{missing}, checkpoint sha256 "
            f"{checkpoint.checkpoint_sha256}"
        )
    if store.answers:
        lines.append(
            f"answers of people and other models: {store.answers.count(bytes([10])) - 1:,}"
        )
    return [*lines, *notes_on(store.sets.values()), *left_out_of(store.sets.values())]


# --- joining ---------------------------------------------------------------------------


def with_sets(store: PredictionStore, sets: Iterable[PictureSet], *, path: Path) -> PredictionStore:
    """Return the same store with these sets added.

    Raises:
        StoreError: If a set of the store now has other pictures, classes or prompts.
    """
    joined = dict(store.sets)
    for pictures in sets:
        before = joined.get(pictures.name)
        if before is not None and before.identity() != pictures.identity():
            key = next(
                key for key, value in pictures.identity().items() if before.identity()[key] != value
            )
            raise StoreError(
                f"{path}: {pictures.place}: {_CHANGED.get(key, f'its {key} is another')} than "
                "those that were evaluated, and answers to both are not comparable. Name another "
                "output with -o, or give the data as before."
            )
        joined[pictures.name] = pictures
    return replace(store, sets=joined)
