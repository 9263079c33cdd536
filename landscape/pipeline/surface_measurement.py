"""The measurement of the points of a loss surface.

Each point is in the file before the next unit begins. Eigenvectors lie beside the growing file and
are removed with the last point: another run might compute slightly rotated ones.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self

import numpy as np

from landscape.errors import StoreError
from landscape.manifest import Checkpoint, CheckpointSeries, Manifest
from landscape.manifest.selection import Task
from landscape.memory import peak_memory
from landscape.pipeline.preparation import (
    KnownSeries,
    PreparedSeries,
    check_same_function,
    num_gpus,
    threads_of_torch,
)
from landscape.pipeline.session import Bench, Measurement, Output, Session, sent
from landscape.pipeline.surface_plan import SurfacePlan
from landscape.pipeline.surface_source import DIRECTIONS_FILE, Slice, open_slice
from landscape.store import (
    StoredSurface,
    axes_of,
    check_same_request,
    models_as_trained,
    parts_folder,
    read_surface,
    write_surface,
)
from landscape.store.lock import FolderLock
from landscape.surface import from_the_middle
from landscape.workers.run_status import remove_status


@dataclass(frozen=True, kw_only=True)
class SurfaceMeasurement(Measurement):
    """The loss at the points of a slice.

    Args:
        data: The HDF5 file of the points.
    """

    manifest: Manifest
    plan: SurfacePlan
    data: Path
    device: str | None = None
    noun = "points"

    @property
    def num_planned(self) -> int:
        return int(self.plan.points**self.plan.dimensions)

    def title(self, task: Task) -> str:
        return ""

    def failure(self, task: Task, index: int, reason: str) -> str:
        return reason

    def sent(self, tasks: Sequence[Task]) -> Self:
        return replace(self, manifest=sent(self.manifest, self.plan.series))

    def stored(self) -> StoredSurface | None:
        """Return what is stored, if it belongs to this request.

        Raises:
            StoreError: If it belongs to another, or is no such file.
        """
        stored = read_surface(self.data)
        if stored is not None:
            check_same_request(self.data, stored.request, self.plan.request)
        return stored

    @contextmanager
    def open(self) -> Iterator["SurfaceOutput"]:
        lock = FolderLock(parts_folder(self.data), output=self.data)
        try:
            yield SurfaceOutput(self, lock.folder)
        finally:
            remove_status(lock.folder)
            lock.release(remove_folder=True)

    def prepare(
        self, session: Session, tasks: Sequence[Task], known: KnownSeries
    ) -> PreparedSeries:
        opened = self._slice(session)
        begun = time.perf_counter()
        opened.loss_at(*[0.0] * self.plan.dimensions)
        seconds = time.perf_counter() - begun
        return PreparedSeries(
            used=opened.used,
            num_threads=threads_of_torch(),
            seconds=seconds,
            memory=peak_memory(),
            num_gpus=num_gpus(session.series(self.manifest, self.plan.series, self.device)),
            # The surface before its first point, if the file does not hold a surface yet.
            details=(None if known.num_stored else opened.empty(), opened.directions_sha256),
        )

    def _slice(self, session: Session) -> Slice:
        def make() -> Slice:
            loaded = session.series(self.manifest, self.plan.series, self.device)
            return open_slice(loaded, self.manifest.hessian, self.plan, parts_folder(self.data))

        return session.other(self.plan.request_sha256, make)

    def bench(self, session: Session, task: Task, prepared: PreparedSeries) -> "SurfaceBench":
        opened = self._slice(session)
        _, directions_sha256 = prepared.details
        if opened.directions_sha256 != directions_sha256:
            raise StoreError(
                f"{self.data}: this process has other directions (sha256 expected "
                f"{directions_sha256}, got {opened.directions_sha256}): it does not see "
                f"{DIRECTIONS_FILE} in {parts_folder(self.data)}. Let all workers see the folder "
                "of the output."
            )
        return SurfaceBench(opened, prepared)


class SurfaceBench(Bench):
    """A slice whose points this process computes."""

    def load(self, checkpoint: Checkpoint) -> None:
        """Do nothing: the slice was opened with its weights."""

    def measure(self, index: int) -> float:
        coordinates: tuple[np.ndarray, ...] = self.prepared.details[0]
        at = np.unravel_index(index, [len(axis) for axis in coordinates])
        return float(self.loaded.loss_at(*(float(axis[i]) for axis, i in zip(coordinates, at))))


class SurfaceOutput(Output):
    """A file of points that is locked for this process."""

    def __init__(self, measurement: SurfaceMeasurement, folder: Path) -> None:
        self.measurement, self.folder = measurement, folder
        self.stored = measurement.stored()

    def remaining(self) -> list[Task]:
        plan = self.measurement.plan
        shape = (plan.points,) * plan.dimensions
        computed = (
            np.zeros(shape, dtype=bool) if self.stored is None else self.stored.result.computed
        )
        missing = from_the_middle(computed)
        indices = np.ravel_multi_index(tuple(missing.T), shape) if len(missing) else ()
        return (
            [Task(plan.series, plan.checkpoint, tuple(map(int, indices)))] if len(indices) else []
        )

    def known(self, series: CheckpointSeries) -> KnownSeries:
        return KnownSeries(num_stored=0 if self.stored is None else self.stored.num_computed)

    def accept(self, series: str, prepared: PreparedSeries) -> PreparedSeries:
        """Continue the stored surface, or begin with an empty one.

        Raises:
            StoreError: If the directions differ from those of the stored points, or these are of
                another function of the same weights.
        """
        (empty, directions_sha256), data = prepared.details, self.measurement.data
        if self.stored is None:
            self.stored = StoredSurface(
                result=empty,
                request=self.measurement.plan.request,
                directions_sha256=directions_sha256,
                as_trained=prepared.used,
            )
        elif self.stored.directions_sha256 != directions_sha256:
            raise StoreError(
                f"{data}: the directions of its points are lost (sha256 expected "
                f"{self.stored.directions_sha256}, got {directions_sha256}), so new points would "
                f"lie in another plane. Remove {data} to begin anew."
            )
        stored = models_as_trained({"as_trained": self.stored.as_trained or None})
        check_same_function(data, series, prepared.used, stored)
        coordinates = tuple(axis.coordinates for axis in axes_of(self.stored.result))
        return replace(prepared, details=(coordinates, directions_sha256))

    def keep(self, task: Task, records: Sequence[tuple[int, Any]], prepared: PreparedSeries) -> int:
        assert self.stored is not None, "accept comes first"
        result = self.stored.result
        losses, computed = result.losses.copy(), result.computed.copy()
        for index, loss in records:
            losses.flat[index], computed.flat[index] = loss, True
        self.stored = replace(self.stored, result=replace(result, losses=losses, computed=computed))
        write_surface(self.measurement.data, self.stored)
        return 0

    def finish(self) -> None:
        """Remove the eigenvectors if no point is missing."""
        if self.stored is not None and self.stored.num_computed == self.stored.num_points:
            (self.folder / DIRECTIONS_FILE).unlink(missing_ok=True)
