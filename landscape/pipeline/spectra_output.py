"""The store of a measurement of spectra: what is left, what is known, what is kept."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError
from landscape.manifest import CheckpointSeries
from landscape.manifest.gone import check_weights
from landscape.manifest.selection import Task
from landscape.pipeline.preparation import KnownSeries, PreparedSeries
from landscape.pipeline.products import RECORDED
from landscape.pipeline.remaining import plan
from landscape.pipeline.session import Output
from landscape.pipeline.spectra_request import SpectraRequest
from landscape.pipeline.vectors import (
    SpectrumWithVectors,
    check_room,
)
from landscape.store import SpectrumStore, SpectrumWriter, models_as_trained, verdicts


class StoreOutput(Output):
    """A store, locked for this process, as the output of a measurement."""

    def __init__(self, measurement: SpectraRequest, writer: SpectrumWriter) -> None:
        self.measurement, self.writer, self.folder = measurement, writer, writer.folder
        self._known: dict[str, KnownSeries] = {}
        self._num_left: dict[str, int] = {}
        self._vector_bytes = 0

    def remaining(self) -> list[Task]:
        measurement = self.measurement
        tasks = plan(
            measurement.manifest, measurement.completed(self.writer), measurement.selection
        )
        self.notes = check_weights(
            measurement.manifest, tasks, measurement.selection.tasks(measurement.manifest)
        )
        self._num_left = {}
        for task in tasks:
            name = task.series.name
            self._num_left[name] = self._num_left.get(name, 0) + len(task.indices)
        return tasks

    def known(self, series: CheckpointSeries) -> KnownSeries:
        if not self._known:
            self._known = known_series(self.measurement.output, self.measurement.manifest.series)
        return self._known[series.name]

    def accept(self, series: str, prepared: PreparedSeries) -> PreparedSeries:
        if prepared.details:
            self.writer.check_modules(series, prepared.details)
        if prepared.vector_bytes:
            self._vector_bytes += self._num_left[series] * prepared.vector_bytes
            check_room(self.measurement.output, self._vector_bytes)
        return prepared

    def keep(self, task: Task, records: Sequence[tuple[int, Any]], prepared: PreparedSeries) -> int:
        kept = [result for _, result in records if isinstance(result, SpectrumWithVectors)]
        spectra = [
            result.record if isinstance(result, SpectrumWithVectors) else result
            for _, result in records
        ]
        self.writer.add_all(spectra, vectors=[result.vectors for result in kept])
        return sum(self.measurement.num_unconverged(record) for record in spectra)

    def finish(self) -> None:
        self.writer.merge()


def stored_digests(output: Path) -> dict[tuple[str, int], str]:
    """Return the digest of each (series, epoch) with records in a store.

    Empty where there is no store yet.
    """
    try:
        with SpectrumStore.open(output) as store:
            return store.stored()
    except LandscapeError:
        return {}


def known_series(output: Path, series: Sequence[CheckpointSeries]) -> dict[str, KnownSeries]:
    """Return the facts in a store about each series, by its name.

    Empty facts where there is no store yet.
    """
    try:
        store = SpectrumStore.open(output)
    except LandscapeError:
        return {checkpoint_series.name: KnownSeries() for checkpoint_series in series}
    with store:
        return {
            checkpoint_series.name: _known(store, checkpoint_series) for checkpoint_series in series
        }


def _known(store: SpectrumStore, series: CheckpointSeries) -> KnownSeries:
    passed: list[Mapping[str, Any]] = []
    models: list[Mapping[str, Any]] = []
    num_threads = strategy = None
    # One checkpoint in memory at a time, and each fact once.
    for epoch in store.epochs(series.name) if series.name in store.series() else ():
        table = store.records(series.name, epoch)
        passed += [
            verdict
            for verdict in verdicts(table.extras)
            if verdict.get("passed") and verdict not in passed
        ]
        models += [used for used in models_as_trained(table.settings) if used not in models]
        count = table.settings.get("num_threads")
        num_threads = count if isinstance(count, int) else num_threads
        product = table.settings.get("product_choice", {}).get("product")
        strategy = product if product in RECORDED else strategy
    last_digest = store.stored().get((series.name, series.checkpoints[-1].epoch))
    return KnownSeries(
        verdicts=tuple(passed),
        models=tuple(models),
        last_digest=last_digest,
        num_threads=num_threads,
        strategy=strategy,
    )
