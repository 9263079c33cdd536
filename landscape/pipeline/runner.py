"""The loop of every measurement: plan, prepare, measure, store, report.

In detail: plan, lock, plan again, prepare, measure unit by unit, store, report. Spectra, modules,
densities and surfaces are measured by this one loop, in this process, in several, or on a cluster.
"""

import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

from landscape.containers import known_digests, remember_digests
from landscape.errors import LandscapeError
from landscape.manifest.selection import Task
from landscape.pipeline.preparation import PreparedSeries
from landscape.pipeline.session import (
    Failure,
    Lot,
    Measurement,
    Output,
    digests_of,
    forget_session,
    measure_unit,
    prepare_in_session,
)
from landscape.signals import obey_lost_request
from landscape.workers import Done, Lost, call_all, dispatch
from landscape.workers.crew import Crew, WorkerSettings
from landscape.workers.progress import Progress, show_notes

# Seconds between two notes that no worker is connected.
_BETWEEN_NOTES = 120.0


@dataclass(kw_only=True)
class Outcome:
    """Counts and failures of a run.

    Attributes:
        num_stored: Items that were stored before.
        num_measured: Items that it stored.
        num_unconverged: Values among them that missed the tolerance.
        failures: A line for each item that failed.
        num_unread: See `Output.num_unread`.
    """

    num_stored: int = 0
    num_measured: int = 0
    num_unconverged: int = 0
    failures: tuple[str, ...] = ()
    num_unread: int = 0


def run_measurement(
    measurement: Measurement,
    *,
    workers: WorkerSettings = WorkerSettings(),
    progress: bool | None = None,
) -> Outcome:
    """Measure what is not stored yet.

    An item that cannot be measured affects no other.

    Raises:
        LandscapeError: If anything is wrong that can be known before the first item; or the error
            of the first item, if no item has ever been measured and the model or a limit is the
            cause. Measured items are stored.
    """
    workers.check(measurement.chained)
    with Crew(workers, chained=measurement.chained is not None, device=measurement.device) as crew:
        if workers.is_elsewhere and (paths := measurement.undigested()):
            for _, digests in call_all(crew.pool, digests_of, [(path,) for path in paths]):
                remember_digests(digests)
        with measurement.open() as output:
            tasks = output.remaining()
            show_notes(output.notes, shown=progress)
            outcome = Outcome(
                num_stored=measurement.num_planned - sum(len(task.indices) for task in tasks)
            )
            if tasks:
                outcome = _Run(measurement, output, tasks, crew, progress=progress).measured(
                    outcome
                )
            output.finish()
            outcome.num_unread = output.num_unread
    return outcome


class _Run:
    """The loop over units."""

    def __init__(
        self,
        measurement: Measurement,
        output: Output,
        tasks: list[Task],
        crew: Crew,
        *,
        progress: bool | None,
    ) -> None:
        self.measurement, self.output, self.tasks = measurement, output, tasks
        self.crew, self.progress = crew, progress
        self.run, self._waiting_since = uuid.uuid4().hex, time.monotonic()
        self.by_series = {
            name: list(group) for name, group in groupby(tasks, key=lambda task: task.series.name)
        }

    def measured(self, outcome: Outcome) -> Outcome:
        """Prepare and measure everything."""
        try:
            self.crew.limit(sum(len(task.indices) for task in self.tasks))
            prepared = self._prepare(self._sharing())
            prepared = self._settled(prepared)
            if self.crew.is_remote:
                # Its model is no longer needed here.
                forget_session()
            show_notes(self.crew.said, shown=self.progress)
            return self._measure(self._sharing(), prepared, outcome)
        finally:
            forget_session()

    def _tick(self) -> None:
        """Raise lost requests to stop; note when no worker has joined yet."""
        obey_lost_request()
        now = time.monotonic()
        if self.crew.pool.workers():
            self._waiting_since = now
        elif now - self._waiting_since > _BETWEEN_NOTES:
            self._waiting_since = now
            show_notes(["no worker is there; waiting for one."], shown=self.progress)

    def _sharing(self) -> Measurement:
        """Return the measurement with a worker's share of this machine's memory."""
        return (
            self.measurement
            if self.crew.num_sharing == 1
            else self.measurement.sharing(*self.crew.share())
        )

    def _prepare(self, measurement: Measurement) -> dict[str, PreparedSeries]:
        """Prepare every series, before anything is measured."""
        crew = self.crew
        known = {
            name: replace(
                self.output.known(tasks[0].series),
                cores=crew.cores_each,
                threads_elsewhere=crew.threads_elsewhere,
                digests=known_digests(),
                num_planned=self.measurement.num_recorded(tasks[0].series),
            )
            for name, tasks in self.by_series.items()
        }
        calls = [
            (self.run, measurement.sent(tasks), tasks, known[name])
            for name, tasks in self.by_series.items()
        ]
        names, prepared = list(self.by_series), {}
        # The first series is prepared alone, since it may have to draw the data.
        for begin, end in ((0, 1), (1, len(calls))):
            for index, result in call_all(
                crew.pool, prepare_in_session, calls[begin:end], tick=self._tick
            ):
                prepared[names[begin + index]] = result
        prepared = {name: prepared[name] for name in names}
        show_notes(
            dict.fromkeys(note for series in prepared.values() for note in series.notes.values()),
            shown=self.progress,
        )
        for series in prepared.values():
            remember_digests(series.digests)
        return {name: self.output.accept(name, series) for name, series in prepared.items()}

    def _settled(self, prepared: dict[str, PreparedSeries]) -> dict[str, PreparedSeries]:
        """Choose the number of workers; return series with each worker's threads."""
        self.crew.settle(
            seconds=sum(
                prepared[task.series.name].seconds * len(task.indices) for task in self.tasks
            ),
            memory=max(series.memory for series in prepared.values()),
            num_gpus=max(series.num_gpus for series in prepared.values()),
            most_sharing=min(
                (series.most_sharing for series in prepared.values() if series.most_sharing),
                default=None,
            ),
        )
        most = self.crew.cores_each
        if most is None:
            return prepared
        return {
            name: replace(series, num_threads=min(series.num_threads, most))
            for name, series in prepared.items()
        }

    def _measure(
        self, measurement: Measurement, prepared: dict[str, PreparedSeries], outcome: Outcome
    ) -> Outcome:
        """Measure unit by unit, and store each as it arrives."""
        crew = self.crew
        tasks = [
            replace(task, series=replace(task.series, checkpoints=(task.checkpoint,)))
            for task in self.tasks
        ]
        lots = {
            Lot(
                replace(task, indices=()),
                measurement.sent([task]),
                prepared[task.series.name].of(task.checkpoint.path),
                crew.is_remote,
                self.run,
            ): task.indices
            for task in tasks
        }
        with Progress(
            num_planned=measurement.num_planned,
            num_stored=outcome.num_stored,
            noun=measurement.noun,
            folder=self.output.folder,
            shown=self.progress,
            dashboard=crew.pool.dashboard,
        ) as progress:
            sizes: dict[str, Any] = {
                "largest_unit": crew.settings.largest_unit,
                "unit_seconds": max(map(measurement.unit_seconds, prepared.values())),
            }

            def tick() -> None:
                progress.tick()
                self._tick()

            for done in dispatch(lots, crew.pool, measure_unit, tick=tick, **sizes):
                tick()
                progress.begin(measurement.title(done.task.task))
                num_done, unconverged, failures = self._keep(
                    done, has_worked=bool(outcome.num_stored or outcome.num_measured)
                )
                outcome.num_measured += num_done
                outcome.num_unconverged += unconverged
                outcome.failures += tuple(failures)
                progress.add(
                    done.worker, num_done=num_done, num_failed=len(failures), seconds=done.seconds
                )
        return outcome

    def _keep(self, done: "Done[Lot]", *, has_worked: bool) -> tuple[int, int, list[str]]:
        """Store the records of a unit.

        Returns:
            The number of records, the number of values that missed the tolerance, and a line for
            each failure.
        """
        task, prepared = done.task.task, done.task.prepared
        records, failures = [], []
        for index, result in zip(done.items, done.results):
            if isinstance(result, Lost):
                result = Failure(reason=result.reason)
            if isinstance(result, Failure):
                failures.append((index, result))
            else:
                records.append((index, result))
        unconverged = self.output.keep(task, records, prepared) if records else 0
        if (
            error := refusal([*records, *(why for _, why in failures)], has_worked=has_worked)
        ) is not None:
            raise error
        return (
            len(records),
            unconverged,
            [self.measurement.failure(task, i, why.reason) for i, why in failures],
        )


def refusal(results: Sequence[Any], *, has_worked: bool) -> LandscapeError | None:
    """Return the error that ends a run without any measured item.

    The cause is then the model or a limit. None if the run continues.
    """
    if has_worked or not all(isinstance(result, Failure) for result in results):
        return None
    return next((result.error for result in results if result.error is not None), None)
