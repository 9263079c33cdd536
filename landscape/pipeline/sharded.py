"""Spectra by several processes that share a model: `landscape spectra --shards N`.

All processes go through the same batches in the same order. Process 0 has the store: it plans,
stores the records, and prints messages. An error of one process is raised in all, and a batch that
fails in one fails in all.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch

from landscape import ranks
from landscape.clip.loaded_series import device_of
from landscape.errors import WorkerDied
from landscape.language.model import import_transformers
from landscape.manifest.language import is_language
from landscape.manifest.selection import Task
from landscape.pipeline.audit import stated_verdict, stored_verdict
from landscape.pipeline.cut_series import CutSeries
from landscape.pipeline.preparation import PreparedSeries, check_same_function
from landscape.pipeline.remaining import RunReport
from landscape.pipeline.runner import Outcome, refusal
from landscape.pipeline.series import load_series, open_data
from landscape.pipeline.session import Failure, failure_of
from landscape.pipeline.shard_settings import ShardSettings
from landscape.pipeline.spectra import SpectraMeasurement, report_after
from landscape.pipeline.vectors import check_room
from landscape.sharded.joining import joined
from landscape.sharded.processes import Processes
from landscape.signals import obey_lost_request
from landscape.version import VERSION
from landscape.workers.launch import end_with_launcher, is_launched
from landscape.workers.progress import Progress, show_notes

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

_KEPT = "Everything measured so far is kept, the same command goes on."
_SAME_COMMAND = (
    "Start the same command, with the same packages and the same manifest, in every process."
)


def run_sharded(
    measurement: SpectraMeasurement, settings: ShardSettings, *, progress: bool | None
) -> RunReport:
    """Measure into a store, in each process that shares the models.

    Every process calls this.

    Returns:
        The report, in every process.

    Raises:
        LandscapeError: As in `pipeline.run`; WorkerDied if another process has ended or does not
            answer.
    """
    end_with_launcher()
    try:
        with joined(device_of(measurement.device).type, timeout=settings.timeout) as mesh:
            return _Run(
                measurement, mesh, progress=progress if ranks.rank() == 0 else False
            ).report()
    except WorkerDied as error:
        lost = WorkerDied(f"{error} {_KEPT}")
        lost.is_repeated = error.is_repeated
        raise lost from error


class _Run:
    """The loop over batches in a process."""

    def __init__(
        self, measurement: SpectraMeasurement, mesh: "DeviceMesh", *, progress: bool | None
    ) -> None:
        self.mesh, self.processes = mesh, Processes(mesh)
        self.is_first = self.processes.rank == 0
        self.measurement = replace(
            measurement, solver=measurement.solver.sharing(self.processes.size)
        )
        self.progress = progress
        self.outcome = Outcome()

    def report(self) -> RunReport:
        with ExitStack() as stack:
            with self.processes.together():
                self._check_same_command()
                self.output = (
                    stack.enter_context(self.measurement.open()) if self.is_first else None
                )
                tasks: list[Task] = self.processes.from_first(
                    None if self.output is None else self.output.remaining()
                )
                if self.output is not None:
                    show_notes(self.output.notes, shown=self.progress)
            self.outcome.num_stored = self.measurement.num_planned - sum(
                len(task.indices) for task in tasks
            )
            if tasks:
                self._measure(self._prepare(tasks), tasks)
            with self.processes.together():
                if self.output is not None:
                    self.output.finish()
                outcome = self.processes.from_first(self.outcome)
        return report_after(self.measurement, outcome)

    def _check_same_command(self) -> None:
        manifest = self.measurement.manifest
        self.processes.must_agree(
            (VERSION, torch.__version__), "versions of landscape and torch", _SAME_COMMAND
        )
        if is_language(manifest.hessian.objective):
            self.processes.must_agree(
                import_transformers().__version__, "versions of transformers", _SAME_COMMAND
            )
        all_series = [
            (series.name, series.model, [(c.epoch, c.sha256) for c in series.checkpoints])
            for series in manifest.series
        ]
        self.processes.must_agree((manifest.protocol(), all_series), "manifests", _SAME_COMMAND)
        measurement = self.measurement
        options = (
            measurement.hvp,
            measurement.products,
            measurement.solver,
            measurement.unaudited,
            measurement.selection,
            measurement.keep_vectors,
        )
        self.processes.must_agree(options, "options", _SAME_COMMAND)

    # --- before the first batch ---

    def _prepare(self, tasks: Sequence[Task]) -> dict[str, CutSeries]:
        """Build every series and check its checkpoints, before measuring."""
        with self.processes.together():
            # First in process 0 alone: it may have to draw the pictures.
            if self.is_first:
                data = open_data(self.measurement.manifest)
            self.processes.meet("the data")
            if not self.is_first:
                data = open_data(self.measurement.manifest)
        prepared: dict[str, CutSeries] = {}
        for name, group in groupby(tasks, key=lambda task: task.series.name):
            of_series = list(group)
            with self.processes.together():
                device = torch.device(self.mesh.device_type)
                loaded = load_series(
                    self.measurement.manifest,
                    of_series[0].series,
                    data,
                    device=device,
                    on_meta=True,
                )
                _share_threads()
                series = prepared[name] = CutSeries(
                    self.measurement, loaded, of_series[0].series, self.mesh, self.processes
                )
                series.look_at([task.checkpoint for task in of_series])
            series.audit = self._audit(series)
            series.release()
            show_notes([f"{name}: {series.memory_text()}"], shown=self.progress)
        with self.processes.together():
            if self.output is not None and self.measurement.keep_vectors:
                sizes = [
                    len(task.indices) * prepared[task.series.name].vector_bytes() for task in tasks
                ]
                check_room(self.measurement.output, sum(sizes))
        return prepared

    def _audit(self, series: CutSeries) -> dict[str, Any]:
        """Return the verdict of a series' audit, stored or new."""
        with self.processes.together():
            verdict = None
            if self.output is not None:
                known = self.output.known(series.series)
                check_same_function(
                    self.measurement.output, series.series.name, series.loaded.used, known.models
                )
                if self.measurement.hvp != "finite-difference":
                    verdict = stored_verdict(series.series, known.verdicts, known.last_digest)
            verdict = self.processes.from_first(verdict)
        verdict = verdict or stated_verdict(
            unaudited=self.measurement.unaudited, hvp=self.measurement.hvp
        )
        if verdict is None:
            with self.processes.together():
                verdict = series.audited()
        return dict(verdict)

    # --- the batches ---

    def _measure(self, prepared: dict[str, CutSeries], tasks: Sequence[Task]) -> None:
        with ExitStack() as stack:
            shown = None
            if self.output is not None:
                shown = stack.enter_context(
                    Progress(
                        num_planned=self.measurement.num_planned,
                        num_stored=self.outcome.num_stored,
                        noun=self.measurement.noun,
                        folder=self.output.folder,
                        shown=self.progress,
                    )
                )
            before: CutSeries | None = None
            for task in tasks:
                series = prepared[task.series.name]
                if before is not None and before is not series:
                    before.release()
                before = series
                with self.processes.together():
                    series.load(task.checkpoint)
                show_notes(series.new_notes(), shown=self.progress)
                for index in task.indices:
                    self._measure_batch(series, task, index, shown)

    def _measure_batch(
        self, series: CutSeries, task: Task, index: int, shown: Progress | None
    ) -> None:
        obey_lost_request()
        if shown is not None:
            shown.tick()
            shown.begin(self.measurement.title(task))
        begun = time.monotonic()
        result = _try_together(self.processes, lambda: series.measure(task.checkpoint, index))
        with self.processes.together():
            if self.output is not None:
                num_failed = self._keep(series, task, index, result)
                assert shown is not None, "the process that has the store shows how far it is"
                shown.add(
                    "",
                    num_done=1 - num_failed,
                    num_failed=num_failed,
                    seconds=time.monotonic() - begun,
                )

    def _keep(self, series: CutSeries, task: Task, index: int, result: Any) -> int:
        """Store a record, or note a failure; return the number of failures.

        Raises:
            LandscapeError: The failure, if no item was ever measured and the model or a limit is
                the cause.
        """
        outcome, has_worked = (
            self.outcome,
            bool(self.outcome.num_stored or self.outcome.num_measured),
        )
        if isinstance(result, Failure):
            if (error := refusal([result], has_worked=has_worked)) is not None:
                raise error
            outcome.failures += (self.measurement.failure(task, index, result.reason),)
            return 1
        assert self.output is not None
        outcome.num_unconverged += self.output.keep(
            task, [(index, result)], PreparedSeries(audit=series.audit)
        )
        outcome.num_measured += 1
        return 0


def _try_together(processes: Processes, measure: Callable[[], Any]) -> Any:
    """Call `measure` in all processes.

    If it fails in one, all return a failure.

    Raises:
        WorkerDied: If another process has ended or does not answer.
    """
    try:
        with processes.together():
            return measure()
    except WorkerDied:
        raise
    # As among workers, any error of a batch is a failure of that batch.
    except Exception as error:
        return failure_of(error)


def _share_threads() -> None:
    """Divide the threads of one process among those that `--shards` has started."""
    if is_launched():
        torch.set_num_threads(max(1, torch.get_num_threads() // ranks.world_size()))
