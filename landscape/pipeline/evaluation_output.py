"""The output of predictions: a log that grows unit by unit, then a file.

One rename puts the file in place.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import StoreError
from landscape.files import open_regular
from landscape.manifest import canonical_json, json_sha256
from landscape.manifest.selection import Task
from landscape.pipeline.preparation import PreparedSeries
from landscape.pipeline.session import Output
from landscape.store.hdf5 import CORRUPT
from landscape.store.lines import decode, encode, reason_of
from landscape.store.log import LogWriter, log_number, scan
from landscape.store.place import disk_trouble_named
from landscape.store.predictions import (
    CheckpointPredictions,
    PictureSet,
    PredictionStore,
    SetPredictions,
    notes_on,
    read_predictions,
    with_sets,
    write_predictions,
)

_KIND = "predictions"


@dataclass(frozen=True)
class Stretch:
    """The pictures `first` to `last` - 1 of a set."""

    number: int
    first: int
    last: int


@dataclass(frozen=True, eq=False)
class UnitPredictions:
    """The answers to a stretch of a set, as computed by a process."""

    number: int
    first: int
    top: np.ndarray
    scores: np.ndarray
    unread: dict[int, str]


class StoredAnswers:
    """The answers in a file and in the logs beside it; only read.

    Args:
        folder: Folder of the logs; it need not exist.
        tasks: Every checkpoint with all units.
        stretches: The pictures of each unit, by its index.

    Raises:
        StoreError: If the file is no file of predictions, or holds other sets under these names.
    """

    def __init__(
        self,
        target: Path,
        folder: Path,
        sets: Sequence[PictureSet],
        *,
        tasks: Sequence[Task],
        stretches: Sequence[Stretch],
    ) -> None:
        self.target, self.folder = target, folder
        self.sets, self.tasks, self.stretches = sets, tasks, stretches
        self.store = read_predictions(target) or PredictionStore()
        notes = notes_on(sets)
        notes += [f"{target}: {reason}; it is answered again." for reason in self._replay()]
        self.store = with_sets(self.store, sets, path=target)
        self.notes: tuple[str, ...] = tuple(notes)

    def remaining(self) -> list[Task]:
        tasks = []
        for task in self.tasks:
            stored = self.store.checkpoints.get((task.series.name, task.checkpoint.epoch))
            indices = tuple(i for i in task.indices if not self._is_done(stored, i))
            if indices:
                tasks.append(Task(task.series, task.checkpoint, indices))
        return tasks

    def _is_done(self, stored: CheckpointPredictions | None, index: int) -> bool:
        stretch = self.stretches[index]
        known = None if stored is None else stored.sets.get(self.sets[stretch.number].name)
        if known is None or not known.done[stretch.first : stretch.last].all():
            return False
        # Pictures that could not be read are tried again: the disk may have been unavailable.
        return not any(stretch.first <= place < stretch.last for place in known.unread)

    def _put(
        self,
        facts: dict[str, Any],
        pictures: PictureSet,
        first: int,
        top: np.ndarray,
        scores: np.ndarray,
        unread: dict[int, str],
    ) -> None:
        key = facts["series"], facts["epoch"]
        checkpoint = self.store.checkpoints.setdefault(key, CheckpointPredictions(**facts))
        known = checkpoint.sets.setdefault(
            pictures.name, SetPredictions.empty(len(pictures), top.shape[1])
        )
        known.put(first, top, scores, unread)

    # --- the log -------------------------------------------------------------------------

    def _logs(self) -> list[Path]:
        there = self.folder.iterdir() if self.folder.is_dir() else ()
        numbered = ((log_number(path), path) for path in there)
        return [
            path
            for _, path in sorted((number, path) for number, path in numbered if number is not None)
        ]

    def _replay(self) -> Iterator[str]:
        """Read the logs of earlier runs; yield reasons for rejection."""
        for path in self._logs():
            with open_regular(path) as stream:
                for stretch in scan(stream):
                    if stretch.content is None:
                        yield f"{path.name}: {stretch.reason}"
                        continue
                    try:
                        self._take(decode(stretch.content, path, kind=_KIND)[1])
                    except (*CORRUPT, KeyError) as error:
                        yield f"{path.name} at byte {stretch.offset}: {reason_of(error)}"

    def _take(self, content: Any) -> None:
        if "set" in content:
            self.store = with_sets(self.store, [_read_set(content["set"])], path=self.target)
            return
        facts, answers = content["checkpoint"], content["answers"]
        pictures = self.store.sets[tuple(answers["of"])]
        if json_sha256(pictures.identity()) != answers["identity"]:
            raise ValueError(
                f"its answers are to other pictures or classes than those of {pictures.place}"
            )
        before = self.store.checkpoints.get((facts["series"], facts["epoch"]))
        if before is not None and before.checkpoint_sha256 != facts["checkpoint_sha256"]:
            raise ValueError("it is of other weights than the rest of its checkpoint")
        top = np.array(answers["top"], dtype=np.int32)
        scores = np.array(answers["scores"], dtype=np.float32)
        if (
            top.ndim != 2
            or scores.shape != top.shape
            or answers["first"] + len(top) > len(pictures)
        ):
            raise ValueError("its answers have other shapes than their set")
        unread = {int(place): str(why) for place, why in answers["unread"].items()}
        self._put(dict(facts), pictures, int(answers["first"]), top, scores, unread)


class EvaluationOutput(StoredAnswers, Output):
    """A file of predictions that is locked for this process.

    Args:
        digests: A function that returns the digests of the checkpoints' files, given what is
            stored.
    """

    notes: tuple[str, ...]

    def __init__(
        self,
        target: Path,
        folder: Path,
        sets: Sequence[PictureSet],
        *,
        tasks: Sequence[Task],
        stretches: Sequence[Stretch],
        digests: Callable[[PredictionStore], Mapping[tuple[str, int], str]],
    ) -> None:
        super().__init__(target, folder, sets, tasks=tasks, stretches=stretches)
        self._digests = digests(self.store)
        self._check_weights()
        self._log = LogWriter(folder)
        self._logged: set[tuple[str, str]] = set()

    @property
    def num_unread(self) -> int:
        checkpoints = self.store.checkpoints.values()
        return sum(
            len(answers.unread)
            for checkpoint in checkpoints
            for answers in checkpoint.sets.values()
        )

    def _check_weights(self) -> None:
        for key, digest in self._digests.items():
            stored = self.store.checkpoints.get(key)
            if stored is not None and stored.checkpoint_sha256 != digest:
                raise StoreError(
                    f"{self.target}: epoch {key[1]} of series {key[0]!r} was evaluated on weights "
                    f"with sha256 {stored.checkpoint_sha256}, but now it has {digest}: it was "
                    "written anew since. Name another output with -o, or go back to the "
                    "checkpoints that began this one."
                )

    def accept(self, series: str, prepared: PreparedSeries) -> PreparedSeries:
        """Refuse a model that is now built in another way.

        Raises:
            StoreError: If the model differs from that of stored answers.
        """
        for (name, epoch), stored in self.store.checkpoints.items():
            if name == series and canonical_json(stored.as_trained) != canonical_json(
                prepared.used
            ):
                keys = sorted({*stored.as_trained, *prepared.used})
                differing = [
                    key for key in keys if stored.as_trained.get(key) != prepared.used.get(key)
                ]
                raise StoreError(
                    f"{self.target}: epoch {epoch} of series {series!r} was evaluated with another "
                    f"{', '.join(differing)}: the same weights mean another function. Name another "
                    "output with -o."
                )
        return prepared

    def keep(self, task: Task, records: Sequence[tuple[int, Any]], prepared: PreparedSeries) -> int:
        content = b""
        answers = [(self.sets[unit.number], unit) for _, unit in records]
        facts = {
            "series": task.series.name,
            "label": task.series.label,
            "model": task.series.model,
            "epoch": task.checkpoint.epoch,
            "checkpoint_sha256": self._digests[task.series.name, task.checkpoint.epoch],
            "settings": prepared.details,
            "as_trained": prepared.used,
        }
        for pictures, unit in answers:
            if pictures.name not in self._logged:
                # The log then identifies the set of its answers by itself.
                content += encode(_KIND, {"set": _plain_set(pictures)})
                self._logged.add(pictures.name)
            content += encode(_KIND, {"checkpoint": facts, "answers": _plain_unit(pictures, unit)})
        with disk_trouble_named(self.target):
            self._log.append(content)
        for pictures, unit in answers:
            self._put(facts, pictures, unit.first, unit.top, unit.scores, unit.unread)
        return 0

    def close(self) -> None:
        """Close the log, and leave it for the next run."""
        self._log.close()

    def finish(self) -> None:
        """Merge the log and the former file into one file.

        The log is then removed.
        """
        self.close()
        if self.store.checkpoints:
            write_predictions(self.target, self.store)
        for path in self._logs():
            path.unlink()


def _plain_set(pictures: PictureSet) -> dict[str, Any]:
    values = {
        key: list(value) if isinstance(value, tuple) else value
        for key, value in vars(pictures).items()
    }
    return values | {
        "labels": pictures.labels.tolist(),
        "sources": dict(pictures.sources),
        "left_out": dict(pictures.left_out),
    }


def _read_set(values: Any) -> PictureSet:
    facts: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in values.items()
    }
    return PictureSet(**facts | {"labels": np.array(values["labels"], dtype=np.int32)})


def _plain_unit(pictures: PictureSet, unit: UnitPredictions) -> dict[str, Any]:
    return {
        "of": list(pictures.name),
        "identity": json_sha256(pictures.identity()),
        "first": unit.first,
        "top": unit.top.tolist(),
        # A float32 has the same digits as a float64.
        "scores": unit.scores.astype(np.float64).tolist(),
        "unread": {str(place): why for place, why in unit.unread.items()},
    }
