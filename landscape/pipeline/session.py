"""What a process has loaded: data, a series, and a checkpoint's weights.

They are kept from unit to unit.
"""

import gc
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from landscape import clip, zeroshot
from landscape.containers import digest_of_checkpoint, known_digests, remember_digests
from landscape.curvature import hvp
from landscape.errors import (
    LandscapeError,
    NumericalError,
    ObjectiveError,
    PictureError,
    WorkerDied,
)
from landscape.manifest import Checkpoint, CheckpointSeries, Manifest, json_sha256
from landscape.manifest.selection import Task
from landscape.pipeline.preparation import KnownSeries, PreparedSeries, digests_at
from landscape.pipeline.series import load_series, open_data

if TYPE_CHECKING:
    from landscape.clip.image_text import Pairs
    from landscape.clip.loaded_series import LoadedSeries
    from landscape.zeroshot import ZeroShotModel


# Seconds that a worker waits after it has failed to load a checkpoint.
_AFTER_FAILURE = 5.0


class Bench:
    """A series as a process measures it.

    A subclass defines how an item is measured.

    Attributes:
        checkpoint: The checkpoint whose weights it has.
        info: Facts in the file of the checkpoint.
    """

    def __init__(self, loaded: Any, prepared: PreparedSeries) -> None:
        self.loaded, self.prepared = loaded, prepared
        self.checkpoint: Checkpoint | None = None
        self.info: Any = None

    def load(self, checkpoint: Checkpoint) -> None:
        """Load the weights of a checkpoint."""
        if checkpoint != self.checkpoint:
            self.checkpoint = None
            self.info = self.loaded.load(checkpoint)
            self.checkpoint = checkpoint

    def measure(self, index: int) -> Any:
        """Measure a mini-batch or point, and return its record.

        Errors are handled by `try_measure`.
        """
        raise NotImplementedError

    def measure_all(self, indices: Sequence[int], *, contained: bool) -> list[Any]:
        """Measure the items of a unit; see `try_measure`.

        Returns a record or a `Failure` for each.
        """
        return [try_measure(partial(self.measure, index), contained=contained) for index in indices]


class Output:
    """The place of records, locked for this process alone.

    A subclass defines how they are stored.

    Attributes:
        folder: Folder for files that are needed during the run.
        notes: Notes on what remains to be measured.
    """

    folder: Path
    notes: tuple[str, ...] = ()

    @property
    def num_unread(self) -> int:
        """Return the number of answers stored as missing: their pictures are unreadable."""
        return 0

    def remaining(self) -> list[Task]:
        """List the tasks that are not stored."""
        raise NotImplementedError

    def keep(self, task: Task, records: Sequence[tuple[int, Any]], prepared: PreparedSeries) -> int:
        """Store records, each with its index; they are then safe on disk.

        Returns:
            Number of values that missed the tolerance.
        """
        raise NotImplementedError

    def known(self, series: CheckpointSeries) -> KnownSeries:
        """Return the facts in the output about a series."""
        return KnownSeries()

    def accept(self, series: str, prepared: PreparedSeries) -> PreparedSeries:
        """Accept a series that is going to be measured.

        Raises:
            StoreError: If it does not fit what is stored.
        """
        return prepared

    def finish(self) -> None:
        """Close an output in which nothing more will be stored now."""


class Measurement:
    """A kind of measurement, as plain data that can be sent to workers.

    It defines its units, how one is measured, and where its record goes.

    Attributes:
        noun: Name of an item, in the plural.
        chained: The option for which items are measured one after the other; None where they are
            independent.
        device: "cpu", "cuda", ...; None for CUDA where there is a GPU.
    """

    noun = "batches"
    device: str | None

    @property
    def num_planned(self) -> int:
        """Return the number of requested items."""
        raise NotImplementedError

    def num_recorded(self, series: CheckpointSeries) -> int:
        """Return the number of items for which HVPs may be recorded.

        It counts all items of a series; 0 if recording is not possible.
        """
        return 0

    @property
    def chained(self) -> str | None:
        return None

    def open(self) -> AbstractContextManager[Output]:
        """Lock the output.

        Raises:
            LandscapeError: If it cannot be written, or belongs to another request.
        """
        raise NotImplementedError

    def prepare(
        self, session: "Session", tasks: Sequence[Task], known: KnownSeries
    ) -> PreparedSeries:
        """Prepare the series of `tasks` before its first unit.

        Raises:
            LandscapeError: If anything is wrong with it that can be known.
        """
        raise NotImplementedError

    def bench(self, session: "Session", task: Task, prepared: PreparedSeries) -> Bench:
        """Return the series of a task, ready for its checkpoints."""
        raise NotImplementedError

    def sent(self, tasks: Sequence[Task]) -> Self:
        """Return the measurement of one series, to be sent to another process.

        The series is that of `tasks`.
        """
        return self

    def sharing(self, num_workers: int, free: int | None) -> Self:
        """Return the measurement with its share of the memory.

        `free` bytes are free for all; None where each worker checks by itself.
        """
        return self

    def unit_seconds(self, prepared: PreparedSeries) -> float:
        """Return the least seconds of a unit.

        Its items are then faster together; 0 where they are not.
        """
        return 0.0

    def undigested(self) -> list[Path]:
        """List checkpoints whose files are read when the output is opened."""
        return []

    def title(self, task: Task) -> str:
        """Return a title of what is measured."""
        return task.place

    def failure(self, task: Task, index: int, reason: str) -> str:
        """Return the line about the failure of an item."""
        return f"{task.place} batch {index}: {reason}"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """The reason why an item has no record.

    Attributes:
        reason: The reason on one line.
        error: Set where the model or a limit is the cause: a run in which no item was ever measured
            ends with it.
    """

    reason: str
    error: LandscapeError | None = None


@dataclass(frozen=True)
class Lot:
    """A checkpoint with all that a process needs to measure units of it.

    Lots are equal if their checkpoints are.

    Attributes:
        run: Name of the run.
        contained: Whether every error in a unit counts as a failure of that unit. So it does among
            many workers; otherwise unexpected errors are raised as bugs.
    """

    task: Task = field(compare=False)
    measurement: Measurement = field(compare=False)
    prepared: PreparedSeries = field(compare=False)
    contained: bool = field(compare=False)
    run: str = field(compare=False)
    key: tuple[str, int] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "key", (self.task.series.name, self.task.checkpoint.epoch))


class Session:
    """The models and data that this process has loaded.

    A model that is no longer needed is released before the next one is built.
    """

    def __init__(self) -> None:
        self._data: object = None
        self._pairs: Pairs | None = None
        self._series: tuple[str, LoadedSeries] | None = None
        self._bench: tuple[object, Bench] | None = None
        self._model: tuple[object, ZeroShotModel] | None = None
        self._other: tuple[object, Any] | None = None

    def series(
        self, manifest: Manifest, series: CheckpointSeries, device: str | None
    ) -> "LoadedSeries":
        """Return the series on its batches, with whatever weights it had last.

        Raises:
            LandscapeError: As `LoadedSeries.of`, or if the data or the device does not exist.
        """
        key = _identity(manifest, series, device)
        if self._series is None or self._series[0] != key:
            if self._pairs is None or self._data != manifest.data:
                self._data, self._pairs = manifest.data, open_data(manifest)
            self._series = self._bench = None
            self._series = (
                key,
                load_series(manifest, series, self._pairs, device=clip.device_of(device)),
            )
        return self._series[1]

    def model(self, series: CheckpointSeries, device: str | None) -> "ZeroShotModel":
        """Return the model of a series that classifies pictures.

        It has whatever weights it had last.

        Raises:
            LandscapeError: If it cannot be built, or the device does not exist.
        """
        key = (
            series.name,
            series.model,
            str(series.config),
            json_sha256(series.trained.changes()),
            device,
        )
        if self._model is None or self._model[0] != key:
            self._model = self._bench = None
            self._model = (key, zeroshot.ZeroShotModel.of(series, device=clip.device_of(device)))
        return self._model[1]

    def other(self, key: object, make: Callable[[], Any]) -> Any:
        """Return the result of `make` for this key.

        `make` is called only if the key differs from the last one. For objects that are no series.
        """
        if self._other is None or self._other[0] != key:
            self._other = None
            self._other = (key, make())
        return self._other[1]

    def release_bench(self) -> None:
        """Drop the bench, as its weights are going to change."""
        self._bench = None

    def bench(self, lot: Lot) -> Bench:
        """Return the bench for units of a lot.

        That of the lot before is reused for the same series.
        """
        key = (type(lot.measurement), lot.task.series.name, lot.measurement.device)
        if self._bench is None or self._bench[0] != key:
            self._bench = None
            self._bench = (key, lot.measurement.bench(self, lot.task, lot.prepared))
        return self._bench[1]


def _identity(manifest: Manifest, series: CheckpointSeries, device: str | None) -> str:
    """Digest all that a loaded series depends on, except weights."""
    facts = {
        "protocol": manifest.protocol(),
        "path": str(manifest.path),
        "series": series.name,
        "model": series.model,
    }
    return json_sha256(
        facts
        | {"config": str(series.config), "trained": series.trained.changes(), "device": device}
    )


# The session of this process, or of a thread of it, with its run. Another run gets a new session.
_local = threading.local()


def session_of(run: str) -> Session:
    """Return the session of this process for a run."""
    if getattr(_local, "run", None) != run:
        _local.run = _local.session = None
        _local.run, _local.session = run, Session()
    session: Session = _local.session
    return session


def forget_session() -> None:
    """Release all that this process has loaded, also on a GPU."""
    _local.run = _local.session = None
    torch = sys.modules.get("torch")
    if torch is None:
        return
    hvp.forget_graphs()
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def prepare_in_session(
    run: str, measurement: Measurement, tasks: Sequence[Task], known: KnownSeries
) -> PreparedSeries:
    """Call `prepare` with the session of this process for a run."""
    import torch

    session = session_of(run)
    # Preparation changes the weights of the series that was measured last.
    session.release_bench()

    remember_digests(known.digests)
    # The processes of the user's executor may have any number of threads.
    if known.threads_elsewhere is not None:
        torch.set_num_threads(known.threads_elsewhere)
    return measurement.prepare(session, tasks, known)


def measure_unit(lot: Lot, indices: tuple[int, ...]) -> list[Any]:
    """Measure each item of a unit; return its record, or its `Failure`.

    Raises:
        LandscapeError: If the checkpoint cannot be loaded; WorkerDied among many workers, since
            another may see the files.
    """
    import torch

    try:
        remember_digests(lot.prepared.digests)
        if torch.get_num_threads() != lot.prepared.num_threads:
            torch.set_num_threads(lot.prepared.num_threads)
        bench = session_of(lot.run).bench(lot)
        bench.load(lot.task.checkpoint)
    except Exception as error:
        if not lot.contained:
            raise
        # This machine may not see a file that others see: wait, so that they take the next units.
        time.sleep(_AFTER_FAILURE)
        raise WorkerDied(
            f"{lot.task.place} cannot be loaded: {failure_of(error).reason}"
        ) from error
    return bench.measure_all(indices, contained=lot.contained)


def try_measure(measure: Callable[[], Any], *, contained: bool = False) -> Any:
    """Call `measure` for an item; return its result, or a `Failure`.

    A failed item affects no other.

    Args:
        contained: Whether errors that no item should raise are failures too.
    """
    try:
        return measure()
    except (NumericalError, ObjectiveError, PictureError, MemoryError, RuntimeError) as error:
        return failure_of(error)
    except Exception as error:
        if not contained:
            raise
        return failure_of(error)


def failure_of(error: Exception) -> Failure:
    known = isinstance(error, (LandscapeError, MemoryError, RuntimeError))
    reason = " ".join((str(error) if known else f"{type(error).__name__}: {error}").split())[:500]
    if isinstance(error, LandscapeError) and not isinstance(error, (NumericalError, PictureError)):
        return Failure(reason=reason, error=error)
    return Failure(reason=reason)


def digests_of(path: Path) -> dict[Any, str]:
    """Digest a checkpoint where its files can be read; see `known_digests`."""
    digest_of_checkpoint(path)
    return digests_at(path, known_digests())


def sent(manifest: Manifest, series: CheckpointSeries) -> Manifest:
    """Return the manifest of one series alone.

    It is small enough to be sent with every unit.
    """
    return replace(manifest, series=(series,), epoch_zero="optional")
