"""What one process has loaded: the data, one series, the weights of one checkpoint, kept from unit to unit."""

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

from landscape.containers import digest_of_checkpoint, known_digests, remember_digests
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

if TYPE_CHECKING:
    from landscape.clip.image_text import Pairs
    from landscape.clip.loaded_series import LoadedSeries
    from landscape.zeroshot import ZeroShotModel


# Seconds that a worker waits after it could not load a checkpoint.
_AFTER_FAILURE = 5.0


class Bench:
    """A series as a process measures it; a subclass says how one item is measured.

    Attributes:
        checkpoint: Whose weights it has.
        info: What the file of the checkpoint says.
    """

    def __init__(self, loaded: Any, prepared: PreparedSeries) -> None:
        self.loaded, self.prepared = loaded, prepared
        self.checkpoint: Checkpoint | None = None
        self.info: Any = None

    def load(self, checkpoint: Checkpoint) -> None:
        """Take the weights of a checkpoint."""
        if checkpoint != self.checkpoint:
            self.checkpoint = None
            self.info = self.loaded.load(checkpoint)
            self.checkpoint = checkpoint

    def measure(self, index: int) -> Any:
        """The record of one mini-batch or point; what it raises is as `try_measure` takes it."""
        raise NotImplementedError

    def measure_all(self, indices: Sequence[int], *, contained: bool) -> list[Any]:
        """The record of each item of a unit, or its `Failure`; see `try_measure`."""
        return [try_measure(partial(self.measure, index), contained=contained) for index in indices]


class Output:
    """Where records go, locked for this process alone; a subclass says how they are stored.

    Attributes:
        folder: For what is needed while the run goes on.
        notes: What is to be known of what remains.
    """

    folder: Path
    notes: tuple[str, ...] = ()

    def remaining(self) -> list[Task]:
        """What is not stored."""
        raise NotImplementedError

    def keep(self, task: Task, records: Sequence[tuple[int, Any]], prepared: PreparedSeries) -> int:
        """Store records, each with its index; they are safe on disk afterwards.

        Returns:
            Number of values that missed the tolerance.
        """
        raise NotImplementedError

    def known(self, series: CheckpointSeries) -> KnownSeries:
        """What the output says of a series."""
        return KnownSeries()

    def accept(self, series: str, prepared: PreparedSeries) -> PreparedSeries:
        """Take a series that is going to be measured.

        Raises:
            StoreError: If it does not go with what is stored.
        """
        return prepared

    def finish(self) -> None:
        """Close an output of which nothing more will be measured now."""


class Measurement:
    """One kind of measurement: what its units are, how one is measured, and where its record goes. Plain data, to be sent.

    Attributes:
        noun: What an item is, in the plural.
        chained: The option for which items are measured one after the other; None where they are independent.
        device: "cpu", "cuda", ...; None for CUDA where there is one.
    """

    noun = "batches"
    device: str | None

    @property
    def num_planned(self) -> int:
        """Items that were asked for."""
        raise NotImplementedError

    def num_recorded(self, series: CheckpointSeries) -> int:
        """Items of a series in all for which HVPs may be recorded once; 0 where they may not."""
        return 0

    @property
    def chained(self) -> str | None:
        return None

    def open(self) -> AbstractContextManager[Output]:
        """Lock the output.

        Raises:
            LandscapeError: If it cannot be written, or is of another request.
        """
        raise NotImplementedError

    def prepare(
        self, session: "Session", tasks: Sequence[Task], known: KnownSeries
    ) -> PreparedSeries:
        """Look at the series of `tasks` before its first unit.

        Raises:
            LandscapeError: If anything is wrong with it that can be known.
        """
        raise NotImplementedError

    def bench(self, session: "Session", task: Task, prepared: PreparedSeries) -> Bench:
        """The series of a task, ready for its checkpoints."""
        raise NotImplementedError

    def sent(self, tasks: Sequence[Task]) -> Self:
        """The same for the series of `tasks` alone, to be sent to another process."""
        return self

    def sharing(self, num_workers: int, free: int | None) -> Self:
        """The same with its share of the memory, where `free` bytes are free; None where each worker looks by itself."""
        return self

    def unit_seconds(self, prepared: PreparedSeries) -> float:
        """How long a unit of a series should take at least, where its items gain from each other; 0 where they do not."""
        return 0.0

    def undigested(self) -> list[Path]:
        """Checkpoints whose files are read when the output is opened."""
        return []

    def title(self, task: Task) -> str:
        """What is measured, for people."""
        return task.place

    def failure(self, task: Task, index: int, reason: str) -> str:
        """The line that says why an item failed."""
        return f"{task.place} batch {index}: {reason}"


@dataclass(frozen=True, kw_only=True)
class Failure:
    """Why there is no record of an item.

    Attributes:
        reason: One line.
        error: Set where the model or a limit is at fault, so that a run in which nothing has worked ends with it.
    """

    reason: str
    error: LandscapeError | None = None


@dataclass(frozen=True)
class Lot:
    """A checkpoint with all that a process needs to measure units of it; equal where the checkpoint is.

    Attributes:
        run: Names the run.
        contained: Whether any error of a unit is a failure of that unit, as among many workers, and no bug to show.
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
    """What this process has loaded; a model that is no longer needed is let go of before the next one is built."""

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
        """The series on its batches, with whatever weights it had last.

        Raises:
            LandscapeError: As `LoadedSeries.of`, or if the data or the device is not there.
        """
        from landscape.clip.image_text import open_pairs
        from landscape.clip.loaded_series import LoadedSeries, device_of

        key = _identity(manifest, series, device)
        if self._series is None or self._series[0] != key:
            if self._pairs is None or self._data != manifest.data:
                self._data, self._pairs = manifest.data, open_pairs(manifest.data)
            self._series = self._bench = None
            self._series = (
                key,
                LoadedSeries.of(manifest, series, self._pairs, device=device_of(device)),
            )
        return self._series[1]

    def model(self, series: CheckpointSeries, device: str | None) -> "ZeroShotModel":
        """The model of a series that classifies pictures, with whatever weights it had last.

        Raises:
            LandscapeError: If it cannot be built, or the device is not there.
        """
        from landscape.clip.loaded_series import device_of
        from landscape.zeroshot import ZeroShotModel

        key = (
            series.name,
            series.model,
            str(series.config),
            json_sha256(series.trained.changes()),
            device,
        )
        if self._model is None or self._model[0] != key:
            self._model = self._bench = None
            self._model = (key, ZeroShotModel.of(series, device=device_of(device)))
        return self._model[1]

    def other(self, key: object, make: Callable[[], Any]) -> Any:
        """What `make` returned for this key last, or returns now; for what is no series."""
        if self._other is None or self._other[0] != key:
            self._other = None
            self._other = (key, make())
        return self._other[1]

    def release_bench(self) -> None:
        """Let no bench go on with weights that another has changed."""
        self._bench = None

    def bench(self, lot: Lot) -> Bench:
        """Where units of a lot are measured; that of the lot before goes on where it is of the same series."""
        key = (type(lot.measurement), lot.task.series.name, lot.measurement.device)
        if self._bench is None or self._bench[0] != key:
            self._bench = None
            self._bench = (key, lot.measurement.bench(self, lot.task, lot.prepared))
        return self._bench[1]


def _identity(manifest: Manifest, series: CheckpointSeries, device: str | None) -> str:
    """Digest of all that a loaded series depends on, but for its weights."""
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


# The session of this process, or of this thread of it, with the run that it is of: another one begins anew.
_local = threading.local()


def session_of(run: str) -> Session:
    """What this process has loaded for a run."""
    if getattr(_local, "run", None) != run:
        _local.run = _local.session = None
        _local.run, _local.session = run, Session()
    session: Session = _local.session
    return session


def forget_session() -> None:
    """Let go of what this process has loaded, on a GPU too."""
    _local.run = _local.session = None
    torch = sys.modules.get("torch")
    if torch is None:
        return
    from landscape.curvature.traced import forget_graphs

    forget_graphs()
    if torch.cuda.is_initialized():
        gc.collect()
        torch.cuda.empty_cache()


def prepare_in_session(
    run: str, measurement: Measurement, tasks: Sequence[Task], known: KnownSeries
) -> PreparedSeries:
    """`prepare` with what this process has loaded for a run."""
    import torch

    session = session_of(run)
    # The weights change under whatever was measured last.
    session.release_bench()

    remember_digests(known.digests)
    # The processes of somebody's executor may have any number.
    if known.threads_elsewhere is not None:
        torch.set_num_threads(known.threads_elsewhere)
    return measurement.prepare(session, tasks, known)


def measure_unit(lot: Lot, indices: tuple[int, ...]) -> list[Any]:
    """The record of each item, or its `Failure`.

    Raises:
        LandscapeError: If the checkpoint cannot be loaded; WorkerDied among many workers, since another may see the files.
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
        # This machine may not see a file that others do: let them have time to take the next units.
        time.sleep(_AFTER_FAILURE)
        raise WorkerDied(f"{lot.task.place} cannot be loaded: {_failure(error).reason}") from error
    return bench.measure_all(indices, contained=lot.contained)


def try_measure(measure: Callable[[], Any], *, contained: bool = False) -> Any:
    """What `measure` returns on one item, or why it fails: such an item costs itself alone.

    Args:
        contained: Whether errors that no item should raise are failures too.
    """
    try:
        return measure()
    except (NumericalError, ObjectiveError, PictureError, MemoryError, RuntimeError) as error:
        return _failure(error)
    except Exception as error:
        if not contained:
            raise
        return _failure(error)


def _failure(error: Exception) -> Failure:
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
    """The manifest of one series alone, small enough to be sent with every unit."""
    return replace(manifest, series=(series,), epoch_zero="optional")
