"""What `landscape evaluate` measures: the answers of every checkpoint to labelled pictures, a stretch of a set at a time."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from landscape.errors import NumericalError, PictureError, StoreError
from landscape.manifest import Manifest
from landscape.manifest.gone import digest_of, is_gone
from landscape.manifest.selection import Task
from landscape.memory import peak_memory
from landscape.pipeline.distorted_sets import forget_own
from landscape.pipeline.evaluation_output import EvaluationOutput, Stretch, UnitPredictions
from landscape.pipeline.picture_sets import OpenedSet, Pictures, Request
from landscape.pipeline.preparation import KnownSeries, PreparedSeries, threads_of_torch
from landscape.pipeline.session import Bench, Measurement, Session, sent
from landscape.pipeline.stimuli_sets import forget_stimuli
from landscape.store import parts_folder
from landscape.store.lock import FolderLock
from landscape.store.predictions import PredictionStore
from landscape.workers.run_status import remove_status

if TYPE_CHECKING:
    from landscape.zeroshot import ZeroShotModel

# Pictures of a unit: what a kill costs at most, and few enough for workers to share a small set.
PICTURES_A_UNIT = 256


@dataclass(frozen=True, kw_only=True)
class EvaluationMeasurement(Measurement):
    """The answers of checkpoints to pictures.

    Args:
        checkpoints: Those of the manifest that are evaluated.
        requests: The sets, which every process opens for itself.
        sizes, identities: Number of pictures and digest of each set, as the process that has the output found them.
        target: The HDF5 file of the predictions.
    """

    manifest: Manifest
    checkpoints: tuple[Task, ...]
    requests: tuple[Request, ...]
    sizes: tuple[int, ...]
    identities: tuple[str, ...]
    target: Path
    device: str | None = None
    noun = "units of pictures"

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """The units of a checkpoint, in the order of the sets."""
        return tuple(
            Stretch(number, first, min(first + PICTURES_A_UNIT, size))
            for number, size in enumerate(self.sizes)
            for first in range(0, size, PICTURES_A_UNIT)
        )

    @property
    def tasks(self) -> list[Task]:
        return [
            replace(task, indices=tuple(range(len(self.stretches)))) for task in self.checkpoints
        ]

    @property
    def num_planned(self) -> int:
        return len(self.checkpoints) * len(self.stretches)

    def undigested(self) -> list[Path]:
        return [task.checkpoint.path for task in self.checkpoints if not is_gone(task.checkpoint)]

    def digests(self, store: PredictionStore) -> dict[tuple[str, int], str]:
        """The digest of each checkpoint's file.

        Raises:
            CheckpointError: If a checkpoint is not the file that is listed.
        """
        found = {}
        for task in self.checkpoints:
            key = task.series.name, task.checkpoint.epoch
            known = store.checkpoints.get(key)
            found[key] = digest_of(
                task.checkpoint, stored=None if known is None else known.checkpoint_sha256
            )
        return found

    def title(self, task: Task) -> str:
        return task.place

    def failure(self, task: Task, index: int, reason: str) -> str:
        stretch = self.stretches[index]
        return f"{task.place}, {self.requests[stretch.number].place} pictures {stretch.first} to {stretch.last - 1}: {reason}"

    def sent(self, tasks: Sequence[Task]) -> Self:
        return replace(self, manifest=sent(self.manifest, tasks[0].series), checkpoints=())

    @contextmanager
    def open(self) -> Iterator[EvaluationOutput]:
        lock = FolderLock(parts_folder(self.target), output=self.target)
        try:
            sets = [request.open().one for request in self.requests]
            output = EvaluationOutput(
                self.target,
                lock.folder,
                sets,
                tasks=self.tasks,
                stretches=self.stretches,
                digests=self.digests,
            )
            try:
                yield output
            except BaseException:
                output.close()
                raise
        finally:
            remove_status(lock.folder)
            lock.release(remove_folder=True)

    def prepare(
        self, session: Session, tasks: Sequence[Task], known: KnownSeries
    ) -> PreparedSeries:
        """Build the model, compare it with every checkpoint and set, and time a few pictures."""
        import torch

        opened = self._opened(session)
        model = self._model(session, tasks[0])
        for one in opened:
            model.check_classes(one.classes, name=one.one.place)
        for task in tasks:
            model.check_fit(task.checkpoint)
        size = model.preprocess.size
        blank = torch.zeros(min(model.num_at_once, 8), 3, *size)
        begun = time.perf_counter()
        model.see(blank)
        seconds = (time.perf_counter() - begun) / len(blank)
        cuda = model.device.type == "cuda"
        return PreparedSeries(
            used=model.used,
            num_threads=threads_of_torch(),
            seconds=seconds * PICTURES_A_UNIT,
            memory=peak_memory(),
            num_gpus=(torch.cuda.device_count() if model.device.index is None else 1)
            if cuda
            else 0,
            details=model.settings(),
        )

    def bench(self, session: Session, task: Task, prepared: PreparedSeries) -> "EvaluationBench":
        return EvaluationBench(self, self._model(session, task), prepared, self._opened(session))

    def _opened(self, session: Session) -> list[OpenedSet]:
        def make() -> Any:
            # Of a process that outlives a run, such as a worker of Dask.
            forget_own()
            forget_stimuli()
            opened = [request.open() for request in self.requests]
            for one, identity in zip(opened, self.identities):
                if one.identity != identity:
                    raise StoreError(
                        f"{one.one.place}: this process sees other pictures or classes than the one that keeps {self.target}. "
                        "Let all workers see the same files."
                    )
            return opened

        opened: Any = session.other(("sets", self.requests), make)
        return list(opened)

    def _model(self, session: Session, task: Task) -> "ZeroShotModel":
        return session.model(task.series, self.device)


class EvaluationBench(Bench):
    """A model that answers in this process."""

    def __init__(
        self,
        measurement: EvaluationMeasurement,
        model: "ZeroShotModel",
        prepared: PreparedSeries,
        opened: list[OpenedSet],
    ) -> None:
        super().__init__(model, prepared)
        self.stretches, self.opened = measurement.stretches, opened

    def measure(self, index: int) -> UnitPredictions:
        """The answers to a stretch of a set; a picture that cannot be read has none, and is counted."""
        import torch

        from landscape.zeroshot import by_rule, num_stored, predictions_of

        stretch = self.stretches[index]
        opened = self.opened[stretch.number]
        tensors, places, unread = [], [], {}
        for place, result in enumerate(
            self._read(opened.pictures, range(stretch.first, stretch.last))
        ):
            if isinstance(result, PictureError):
                unread[place] = " ".join(result.problem.split())[:300]
            else:
                tensors.append(result)
                places.append(place)
        width = num_stored(len(opened.one.class_names))
        top = np.full((stretch.last - stretch.first, width), -1, dtype=np.int32)
        scores = np.full(top.shape, np.nan, dtype=np.float32)
        if places:
            found = self.loaded.scores(torch.stack(tensors), opened.classes)
            if not torch.isfinite(found).all():
                bad = places[int((~torch.isfinite(found)).any(dim=1).nonzero()[0])]
                raise NumericalError(
                    f"{opened.one.keys[stretch.first + bad]}: the model's scores are not finite, so any answer would be "
                    "arbitrary. Check the checkpoint."
                )
            top[places], scores[places] = predictions_of(
                *by_rule(opened.one.rule, found, self.loaded)
            )
        return UnitPredictions(stretch.number, stretch.first, top, scores, unread)

    def _read(self, pictures: Pictures, indices: range) -> Iterator[Any]:
        """The input of the model for each picture, or why there is none."""
        from concurrent.futures import ThreadPoolExecutor

        def read(index: int) -> Any:
            try:
                return self.loaded.preprocess(pictures.picture(index))
            except PictureError as error:
                return error

        if self.prepared.num_threads == 1 and self.loaded.device.type == "cpu":
            yield from map(read, indices)
            return
        with ThreadPoolExecutor(max(self.prepared.num_threads, 1)) as pool:
            yield from pool.map(read, indices)
