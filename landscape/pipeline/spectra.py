"""Spectra of a manifest: a record per mini-batch and checkpoint.

Each record is stored as soon as it is known. Everything that can be checked before the first
product is checked: the manifest, the output, the data, every checkpoint that has a batch left.
After that a batch that fails affects no other.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from landscape import clip, linalg
from landscape.errors import ManifestError
from landscape.manifest import Manifest
from landscape.manifest.gone import check_weights, is_gone
from landscape.manifest.selection import Task
from landscape.pipeline.forecast import forecast, num_products_of
from landscape.pipeline.optimizer import check_optimizer, optimizer_of, refuse_averaged
from landscape.pipeline.preparation import KnownSeries, Preparation, PreparedSeries
from landscape.pipeline.remaining import RunReport, plan
from landscape.pipeline.runner import Outcome, run_measurement
from landscape.pipeline.session import Session, sent
from landscape.pipeline.spectra_bench import SpectraBench
from landscape.pipeline.spectra_output import StoreOutput, stored_digests
from landscape.pipeline.spectra_request import SpectraRequest
from landscape.pipeline.vectors import (
    bytes_of_vectors,
    layout_of,
)
from landscape.store import SpectrumStore, SpectrumWriter
from landscape.workers.crew import WorkerSettings
from landscape.workers.progress import show_notes

if TYPE_CHECKING:
    from landscape.curvature import HessianOperator


@dataclass(frozen=True, kw_only=True)
class SpectraMeasurement(SpectraRequest):
    """The extreme eigenvalues of every batch of every checkpoint."""

    def sent(self, tasks: Sequence[Task]) -> Self:
        return replace(self, manifest=sent(self.manifest, tasks[0].series))

    @contextmanager
    def open(self) -> Iterator["StoreOutput"]:
        with SpectrumWriter(self.output, self.manifest) as writer:
            yield StoreOutput(self, writer)

    def prepare(
        self, session: Session, tasks: Sequence[Task], known: KnownSeries
    ) -> PreparedSeries:
        hessian, sizes = self.manifest.hessian, []

        loaded = session.series(self.manifest, tasks[0].series, self.device)
        optimizers = [] if hessian.preconditioner == "none" else [task.checkpoint for task in tasks]

        def check_operator(operator: "HessianOperator") -> None:
            sizes.append(operator.n - operator.num_unused)
            self.solver.check_fits(operator, hessian.k)
            while optimizers:
                check_optimizer(loaded, operator, optimizers.pop(0))

        preparation = Preparation(
            manifest=self.manifest,
            hvp=self.hvp,
            unaudited=self.unaudited,
            products=self.products,
            num_products=num_products_of(hessian),
            num_vectors=num_products_of(hessian) if hessian.method == "lanczos" else hessian.k,
            num_planned=known.num_planned,
            output=self.output,
            max_basis_memory=self.solver.max_basis_memory,
            min_vectors=hessian.k + linalg.MIN_EXTRA_VECTORS,
            check_operator=check_operator,
        )
        for checkpoint in optimizers:
            refuse_averaged(loaded, checkpoint)
        prepared = preparation.of(loaded, tasks, known)
        # Without an operator, as where no picture could be read, their states are read alone.
        for checkpoint in optimizers:
            optimizer_of(loaded, checkpoint)
        if not self.keep_vectors:
            return prepared
        num_params = layout_of(loaded.model, loaded.params).n
        size = bytes_of_vectors(hessian.k, num_params, max(sizes, default=num_params))
        # The rounded vectors are there twice while they are sent.
        memory = prepared.memory + 2 * size
        if not prepared.num_gpus:
            itemsize = next(iter(loaded.params.values())).element_size()
            memory += hessian.k * num_params * itemsize
        return replace(prepared, vector_bytes=size, memory=memory)

    def bench(self, session: Session, task: Task, prepared: PreparedSeries) -> "SpectraBench":
        return SpectraBench(
            self, session.series(self.manifest, task.series, self.device), task, prepared
        )

    def undigested(self) -> list[Path]:
        """List checkpoints with records but without a digest in the manifest.

        Their files must be read.
        """
        stored = stored_digests(self.output)
        checkpoints = [
            (series.name, checkpoint)
            for series in self.manifest.series
            for checkpoint in series.checkpoints
        ]
        return [
            checkpoint.path
            for name, checkpoint in checkpoints
            if checkpoint.sha256 is None
            and (name, checkpoint.epoch) in stored
            and not is_gone(checkpoint)
        ]

    def dry_run(self, *, progress: bool | None) -> RunReport:
        """Report what is left or refused, and the cost of the rest."""
        stored = SpectrumStore.check(self.output, self.manifest, with_vectors=self.keep_vectors)
        tasks = plan(self.manifest, stored, self.selection)
        show_notes(
            check_weights(self.manifest, tasks, self.selection.tasks(self.manifest)), shown=progress
        )
        audited, device = (
            self.hvp != "finite-difference" and not self.unaudited,
            clip.device_of(self.device),
        )
        options: dict[str, Any] = {
            "hvp": self.hvp,
            "products": self.products,
            "solver": self.solver,
            "vectors_in": self.output if self.keep_vectors else None,
        }
        looked = forecast(
            self.manifest, tasks, device, audited=audited, shards=self.shards, **options
        )
        num_stored = self.num_planned - sum(len(task.indices) for task in tasks)
        facts: dict[str, Any] = {"forecast": looked.lines, "num_refused": looked.num_refused}
        return self.report(num_stored=num_stored, todo=tuple(tasks), **facts)


def report_of(
    measurement: SpectraMeasurement,
    workers: WorkerSettings,
    *,
    dry_run: bool,
    progress: bool | None,
) -> RunReport:
    """Measure into a store, or report what would be measured."""
    if dry_run:
        return measurement.dry_run(progress=progress)
    return report_after(
        measurement, run_measurement(measurement, workers=workers, progress=progress)
    )


def report_after(measurement: SpectraMeasurement, outcome: Outcome) -> RunReport:
    """Build the report of a run.

    A batch with an unreadable picture is among the failures, so no answers are missing.
    """
    return measurement.report(
        num_stored=outcome.num_stored,
        num_measured=outcome.num_measured,
        num_unconverged=outcome.num_unconverged,
        failures=outcome.failures,
    )


def with_method(manifest: Manifest, method: str | None) -> Manifest:
    """Return the manifest with another method.

    Raises:
        ManifestError: If its settings contradict the method.
    """
    if method is None:
        return manifest
    try:
        return replace(manifest, hessian=replace(manifest.hessian, method=method))
    except ValueError as error:
        raise ManifestError(f"{manifest.path}, with --method {method}: {error}") from error
