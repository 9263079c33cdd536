"""The measurement of `landscape evaluate`: answers to labelled pictures.

A unit is a stretch of consecutive pictures of a set.
"""

import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from landscape import zeroshot
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
    from torch import Tensor

    from landscape.zeroshot import ZeroShotModel

# Pictures of a unit: the most that a killed run loses, and few enough for workers to share a small
# set.
PICTURES_A_UNIT = 256
# Number of timings of a forward pass, and seconds after which three timings are enough.
_NUM_TIMED, _ENOUGH_SECONDS = 5, 1.0


@dataclass(frozen=True, kw_only=True)
class EvaluationMeasurement(Measurement):
    """The answers of checkpoints to pictures.

    Args:
        checkpoints: Checkpoints of the manifest that are evaluated.
        requests: The sets, which every process opens for itself.
        opened: The sets as opened by the process that has the output; not sent to others.
        sizes, identities: Number of pictures and digest of each of these.
        target: The HDF5 file of the predictions.
    """

    manifest: Manifest
    checkpoints: tuple[Task, ...]
    requests: tuple[Request, ...]
    sizes: tuple[int, ...]
    identities: tuple[str, ...]
    target: Path
    device: str | None = None
    opened: tuple[OpenedSet, ...] | None = field(default=None, compare=False, repr=False)
    noun = "units of pictures"

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"opened": None}

    @cached_property
    def stretches(self) -> tuple[Stretch, ...]:
        """Return the units of a checkpoint, in the order of the sets."""
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
        """Return the digest of each checkpoint's file.

        Raises:
            CheckpointError: If a checkpoint is not the file that is listed.
        """
        digests = {}
        for task in self.checkpoints:
            key = task.series.name, task.checkpoint.epoch
            known = store.checkpoints.get(key)
            digests[key] = digest_of(
                task.checkpoint, stored=None if known is None else known.checkpoint_sha256
            )
        return digests

    def title(self, task: Task) -> str:
        return task.place

    def failure(self, task: Task, index: int, reason: str) -> str:
        stretch = self.stretches[index]
        return (
            f"{task.place}, {self.requests[stretch.number].place} pictures {stretch.first} to "
            f"{stretch.last - 1}: {reason}"
        )

    def sent(self, tasks: Sequence[Task]) -> Self:
        return replace(self, manifest=sent(self.manifest, tasks[0].series), checkpoints=())

    @contextmanager
    def open(self) -> Iterator[EvaluationOutput]:
        lock = FolderLock(parts_folder(self.target), output=self.target)
        try:
            assert self.opened is not None, "the process that has the output has opened the sets"
            sets = [opened.stored for opened in self.opened]
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
        """Build the model, check checkpoints and sets, time a few pictures."""
        import torch

        opened = self._opened(session)
        model = self._model(session, tasks[0])
        for opened_set in opened:
            model.check_classes(opened_set.classes, name=opened_set.stored.place)
        for task in tasks:
            model.check_fit(task.checkpoint)
        size = model.preprocess.size
        blank = torch.zeros(min(model.num_at_once, 8), 3, *size)
        seconds = median_seconds(partial(_see, model, blank)) / len(blank)
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

    def _opened(self, session: Session) -> Sequence[OpenedSet]:
        if self.opened is not None:
            return self.opened

        def make() -> Any:
            # A process that outlives a run, such as a worker of Dask, may have caches of earlier
            # folders.
            forget_own()
            forget_stimuli()
            opened = [request.open() for request in self.requests]
            for opened_set, identity in zip(opened, self.identities):
                if opened_set.identity != identity:
                    raise StoreError(
                        f"{opened_set.stored.place}: this process sees other pictures or classes "
                        f"than the one that keeps {self.target}. Let all workers see the same "
                        "files."
                    )
            return opened

        opened: list[OpenedSet] = session.other(("sets", self.requests), make)
        return opened

    def _model(self, session: Session, task: Task) -> "ZeroShotModel":
        return session.model(task.series, self.device)


def median_seconds(work: Callable[[], object]) -> float:
    """Return the median time of a piece of work.

    It is repeated up to 5 times; 3 times are enough if these take over a second. Before that, the
    work is done once without timing, since the first time includes what is done only once. A single
    measurement under load may be several times too long.
    """
    work()
    seconds: list[float] = []
    while len(seconds) < _NUM_TIMED and (len(seconds) < 3 or sum(seconds) < _ENOUGH_SECONDS):
        begun = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - begun)
    return statistics.median(seconds)


def _see(model: "ZeroShotModel", pictures: "Tensor") -> None:
    import torch

    model.see(pictures)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)


class EvaluationBench(Bench):
    """A model that classifies pictures in this process."""

    def __init__(
        self,
        measurement: EvaluationMeasurement,
        model: "ZeroShotModel",
        prepared: PreparedSeries,
        opened: Sequence[OpenedSet],
    ) -> None:
        super().__init__(model, prepared)
        self.stretches, self.opened = measurement.stretches, opened

    def measure(self, index: int) -> UnitPredictions:
        """Classify a stretch of a set.

        A picture that cannot be read has no answer, and is counted.
        """
        import torch

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
        width = zeroshot.num_stored(len(opened.stored.class_names))
        top = np.full((stretch.last - stretch.first, width), -1, dtype=np.int32)
        scores = np.full(top.shape, np.nan, dtype=np.float32)
        if places:
            class_scores = self.loaded.scores(torch.stack(tensors), opened.classes)
            if not torch.isfinite(class_scores).all():
                bad = places[int((~torch.isfinite(class_scores)).any(dim=1).nonzero()[0])]
                raise NumericalError(
                    f"{opened.stored.keys[stretch.first + bad]}: the model's scores are not "
                    "finite, so any answer would be arbitrary. Check the checkpoint."
                )
            top[places], scores[places] = zeroshot.predictions_of(
                *zeroshot.by_rule(opened.stored.rule, class_scores, self.loaded)
            )
        return UnitPredictions(stretch.number, stretch.first, top, scores, unread)

    def _read(self, pictures: Pictures, indices: range) -> Iterator[Any]:
        """Yield the model's input for each picture, or the error."""
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
