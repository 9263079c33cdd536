"""What models said of labelled pictures: an HDF5 file, prediction schema version 1, from which every metric is recomputed.

/                               kind = "predictions", schema_version, landscape_version
/sets/<number>                  a data set in one condition: attribute facts (JSON, of `PictureSet`), datasets keys (JSON), labels
/answers                        (where there are any) CSV of answers of people and other models, see `landscape.answers`
/predictions/<series>/<epoch>   attributes model, label, checkpoint_sha256, as_trained and settings (JSON)
    <number of the set>         datasets top, scores, done; attribute unread (JSON: why, by the place of the picture)

Shapes: n = pictures, t = classes that are stored of each, the best first.
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
from landscape.store.hdf5 import (
    check_mapping,
    corrupt_file_errors,
    file_image,
    groups_in,
    has_attribute,
    open_hdf5,
    read_array,
)
from landscape.store.plan import check_schema_version
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
        dataset: Its name, such as "food101"; unique with the condition.
        title: For tables.
        condition: Of distorted pictures, such as "c10"; "" where there is one.
        split: Such as "test", or "" where it is not known.
        metric: "top1", "mean_per_class", "top1_top5" or "roc_auc".
        rule: How scores came about: "cosine" with the text of each class, "logit" of a classifier, or "imagenet16", see
            `landscape.answers.category_scores`.
        chance: Of the metric, from 0 to 1; NaN where it is not known.
        class_names: The first name of each class.
        classes_digest: Of names and prompts.
        sources: Where names and prompts come from, as plain values.
        pictures_digest: Of keys and labels.
        notes: What is to be known of it, a sentence each.
        keys: Of the pictures, unique.
        labels: The class of each.
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
    keys: tuple[str, ...]
    labels: Int32[np.ndarray, " n"]

    @property
    def name(self) -> tuple[str, str]:
        return self.dataset, self.condition

    @property
    def place(self) -> str:
        """For people."""
        return f"{self.dataset} {self.condition}".strip()

    def __len__(self) -> int:
        return len(self.keys)

    def identity(self) -> dict[str, Any]:
        """What predictions must share to be of one set, as JSON values."""
        return {
            name: getattr(self, name)
            for name in ("metric", "rule", "classes_digest", "pictures_digest")
        }


@dataclass(kw_only=True, eq=False)
class SetPredictions:
    """What one checkpoint says of a set.

    Attributes:
        top: The best classes; -1 where there is no answer.
        scores: Of these classes; NaN where there is no answer.
        done: Which pictures were shown to it, those that could not be read included.
        unread: Why a picture could not be read, by its place.
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
        """Take the answers to the pictures from `first` on; places in `unread` count from there."""
        piece = slice(first, first + len(top))
        for place in range(first, first + len(top)):
            self.unread.pop(place, None)
        self.top[piece], self.scores[piece], self.done[piece] = top, scores, True
        self.unread.update({first + place: why for place, why in unread.items()})


@dataclass(frozen=True, kw_only=True, eq=False)
class CheckpointPredictions:
    """What one checkpoint says of every set that it was shown.

    Attributes:
        settings: How scores were computed where a protocol leaves freedom, as JSON values.
        as_trained: What was used of how the model was trained, with who states it.
        sets: By dataset and condition.
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
    """All that a file holds.

    Attributes:
        answers: A CSV table of the answers of people and of models that were not evaluated here; empty where there are none.
    """

    sets: dict[tuple[str, str], PictureSet] = field(default_factory=dict)
    checkpoints: dict[tuple[str, int], CheckpointPredictions] = field(default_factory=dict)
    answers: bytes = b""
    landscape_version: str = VERSION

    def digest(self) -> str:
        """SHA-256 of all answers and what they are of, but not of how they were computed."""
        parts: list[Any] = [[*name, one.identity()] for name, one in sorted(self.sets.items())]
        for key, checkpoint in sorted(self.checkpoints.items()):
            for name, one in sorted(checkpoint.sets.items()):
                content = [
                    checkpoint.checkpoint_sha256,
                    one.top.tobytes().hex(),
                    one.scores.tobytes().hex(),
                ]
                parts.append([*key, *name, *content, one.done.tobytes().hex(), sorted(one.unread)])
        return json_sha256(parts)


# --- the file ---------------------------------------------------------------------------------------------------------


def write_predictions(path: Path, store: PredictionStore) -> None:
    """Write the whole file, or leave the one that is there.

    Raises:
        StoreError: If the disk does not take it.
    """
    content = file_image(lambda file: _write(file, store))
    try:
        write_atomically(path, content)
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}). What was answered is safe: mend the disk, then run the same "
            "command again."
        ) from error


def _write(file: h5py.File, store: PredictionStore) -> None:
    file.attrs.update(
        {"kind": _KIND, "schema_version": PREDICTION_SCHEMA_VERSION, "landscape_version": VERSION}
    )
    sets, predictions = (
        file.create_group(name, track_order=True) for name in ("sets", "predictions")
    )
    numbers = {name: str(number) for number, name in enumerate(store.sets)}
    for name, one in store.sets.items():
        group = sets.create_group(numbers[name])
        facts = {key: value for key, value in vars(one).items() if key not in ("keys", "labels")}
        facts["chance"] = None if math.isnan(one.chance) else one.chance
        group.attrs["facts"] = canonical_json(facts)
        # As one array of bytes: HDF5 has no checksums for texts.
        keys = np.frombuffer(json.dumps(one.keys).encode(), dtype=np.uint8)
        group.create_dataset("keys", data=keys, **_compressed(keys.size))
        group.create_dataset("labels", data=one.labels, dtype="<i4", **_compressed(len(one.labels)))
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
    """Whether a file says that it is one of these."""
    return has_attribute(path, "kind", value=_KIND)


def read_predictions(path: Path) -> PredictionStore | None:
    """Read a file; None if there is none.

    Raises:
        StoreError: If it is something else, damaged, or of another version of the schema.
    """
    if not path.exists():
        return None
    if not is_predictions(path):
        raise StoreError(
            f"{path}: holds no predictions. Name one of `landscape evaluate` or `landscape ood`, or a new output."
        )
    advice = "Restore it from a copy, or remove it to evaluate anew."
    with corrupt_file_errors(path, advice=advice), open_hdf5(path) as file:
        check_schema_version(
            path, file.attrs["schema_version"], written_by=file.attrs["landscape_version"]
        )
        numbered = {number: _read_set(group) for number, group in groups_in(file["sets"])}
        checkpoints = [
            _read_checkpoint(group, series, int(epoch), numbered)
            for series, epochs in groups_in(file["predictions"])
            for epoch, group in groups_in(epochs)
        ]
        return PredictionStore(
            sets={one.name: one for one in numbered.values()},
            checkpoints={one.key: one for one in checkpoints},
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
    found = PictureSet(
        **facts, keys=keys, labels=read_array(group, "labels", dtype="<i4", shape=(len(keys),))
    )
    num_classes = len(found.class_names)
    if found.labels.size and not (0 <= found.labels.min() and found.labels.max() < num_classes):
        raise ValueError(f"{found.place} has labels beyond its {num_classes} classes")
    return found


def _read_checkpoint(
    group: h5py.Group, series: str, epoch: int, sets: Mapping[str, PictureSet]
) -> CheckpointPredictions:
    facts: dict[str, Any] = {
        key: str(group.attrs[key]) for key in ("model", "label", "checkpoint_sha256")
    }
    facts |= {
        key: check_mapping(json.loads(group.attrs[key]), key) for key in ("settings", "as_trained")
    }
    found = CheckpointPredictions(series=series, epoch=epoch, **facts)
    for number, own in groups_in(group):
        one = sets[number]
        top = read_array(own, "top", dtype="<i4", shape=(len(one), None))
        if top.size and not (-1 <= top.min() and top.max() < len(one.class_names)):
            raise ValueError(f"{series} epoch {epoch} names classes that {one.place} does not have")
        found.sets[one.name] = SetPredictions(
            top=top,
            scores=read_array(own, "scores", dtype="<f4", shape=top.shape),
            done=read_array(own, "done", dtype="?", shape=(len(one),)),
            unread={int(place): str(why) for place, why in json.loads(own.attrs["unread"]).items()},
        )
    return found


def notes_on(sets: Iterable[PictureSet]) -> list[str]:
    """What is to be known of sets, each sentence once, with the sets that it is of."""
    places: dict[str, list[str]] = {}
    for one in sets:
        for note in one.notes:
            places.setdefault(note, []).append(one.place)
    return [f"{_several(of)}: {note}" for note, of in places.items()]


def _several(places: list[str]) -> str:
    return (
        " and ".join(places)
        if len(places) <= 2
        else f"{places[0]} and {len(places) - 1} other sets"
    )


def describe_predictions(path: Path) -> list[str]:
    """The lines that `landscape info` prints of such a file.

    Raises:
        StoreError: As `read_predictions`.
    """
    store = read_predictions(path)
    assert store is not None, "the caller has seen the file"
    lines = [
        f"predictions, schema version {PREDICTION_SCHEMA_VERSION}: {len(store.checkpoints)} checkpoints on {len(store.sets)} "
        f"sets of pictures, written by landscape {store.landscape_version}"
    ]
    for one in store.sets.values():
        condition = f" {one.condition}" if one.condition else ""
        lines.append(
            f"set {one.dataset}{condition}: {len(one):,} pictures ({one.split or 'all'}), {len(one.class_names)} classes, "
            f"{one.metric}, scores by {one.rule}, names from {one.sources.get('names', 'unknown')}, "
            f"{one.sources.get('num_prompts', 0)} prompts from {one.sources.get('prompts', 'unknown')}"
        )
    for checkpoint in store.checkpoints.values():
        done = sum(int(answers.done.sum()) for answers in checkpoint.sets.values())
        unread = sum(len(answers.unread) for answers in checkpoint.sets.values())
        missing = f", {unread} pictures unread" if unread else ""
        lines.append(
            f"{checkpoint.series} epoch {checkpoint.epoch}: {done:,} answers on {len(checkpoint.sets)} sets{missing}, "
            f"checkpoint sha256 {checkpoint.checkpoint_sha256}"
        )
    if store.answers:
        lines.append(
            f"answers of people and other models: {store.answers.count(bytes([10])) - 1:,}"
        )
    return [*lines, *notes_on(store.sets.values())]


# --- joining ----------------------------------------------------------------------------------------------------------


def with_sets(store: PredictionStore, sets: Iterable[PictureSet], *, path: Path) -> PredictionStore:
    """The same store with these sets among its own.

    Raises:
        StoreError: If one of its own sets is now of other pictures, classes or prompts.
    """
    joined = dict(store.sets)
    for one in sets:
        before = joined.get(one.name)
        if before is not None and before.identity() != one.identity():
            key = next(
                key for key, value in one.identity().items() if before.identity()[key] != value
            )
            raise StoreError(
                f"{path}: {one.place}: {_CHANGED.get(key, f'its {key} is another')} than those that were evaluated, and answers "
                "to both are not comparable. Name another output with -o, or give the data as before."
            )
        joined[one.name] = one
    return replace(store, sets=joined)
