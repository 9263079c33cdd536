"""Spectra of a manifest: a record per mini-batch and checkpoint.

Each record is stored as soon as it is known. Everything that can be checked before the first
product is checked: the manifest, the output, the data, every checkpoint that has a batch left.
After that a batch that fails affects no other.
"""

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from landscape import clip, curvature, linalg, stability
from landscape.errors import CheckpointError, LandscapeError, ManifestError, NumericalError
from landscape.manifest import Checkpoint, CheckpointSeries, Manifest
from landscape.manifest.gone import check_weights, is_gone
from landscape.manifest.selection import Selection, Task
from landscape.pipeline import lockstep
from landscape.pipeline.audit import check_hvp
from landscape.pipeline.forecast import forecast, num_products_of
from landscape.pipeline.preparation import KnownSeries, Preparation, PreparedSeries
from landscape.pipeline.products import RECORDED, HvpSettings, SeriesProducts
from landscape.pipeline.remaining import RunReport, plan
from landscape.pipeline.runner import Outcome, run_measurement
from landscape.pipeline.session import Bench, Measurement, Output, Session, sent
from landscape.pipeline.shard_settings import ShardSettings
from landscape.pipeline.solve import Solver, SolverSettings
from landscape.pipeline.vectors import (
    SpectrumWithVectors,
    bytes_of_vectors,
    check_room,
    layout_of,
    with_vectors,
)
from landscape.store import Record, SpectrumStore, SpectrumWriter, models_as_trained, verdicts
from landscape.workers.crew import WorkerSettings
from landscape.workers.progress import show_notes

if TYPE_CHECKING:
    from landscape.clip.loaded_series import LoadedSeries
    from landscape.curvature import FiniteDifferenceOperator, HessianOperator, Params
    from landscape.linalg import EigenPairs, RitzValues
    from landscape.stability import OptimizerState, PreconditionedHessian

_Result = TypeVar("_Result")
HVP_TITLES = {
    "double-backward": "double backward, retained graph",
    "finite-difference": "central differences of gradients",
}


@dataclass(frozen=True, kw_only=True)
class SpectraMeasurement(Measurement):
    """The extreme eigenvalues of every batch of every checkpoint.

    Args:
        output: The store.
        hvp: "double-backward", or "finite-difference" where only first derivatives exist.
        unaudited: Measure without an audit of the second derivatives; every record says so.
        shards: Processes that share each model, for a dry run.
        keep_vectors: Also keep the eigenvectors of every batch.
    """

    manifest: Manifest
    output: Path
    hvp: str = "double-backward"
    unaudited: bool = False
    products: HvpSettings = HvpSettings()
    solver: SolverSettings = SolverSettings()
    selection: Selection = Selection()
    device: str | None = None
    shards: ShardSettings | None = None
    keep_vectors: bool = False

    def check(self) -> None:
        """Refuse contradictory settings, and parts that the manifest lacks.

        Raises:
            LandscapeError: If there are any.
        """
        check_hvp(self.manifest, self.hvp)
        self.products.check(self.manifest.hessian.method, self.hvp)
        self.solver.check(self.manifest.hessian.method)
        self.selection.check(self.manifest)
        if self.manifest.hessian.method == "pyhessian":
            from landscape.curvature.pyhessian import import_pyhessian

            import_pyhessian()

    @property
    def num_planned(self) -> int:
        return sum(len(task.indices) for task in self.selection.tasks(self.manifest))

    def num_recorded(self, series: CheckpointSeries) -> int:
        """Return the number of batches that can share a recorded graph."""
        return sum(
            len(task.indices)
            for task in self.selection.tasks(self.manifest)
            if task.series.name == series.name
        )

    @property
    def chained(self) -> str | None:
        return "--recycle" if self.solver.recycle else None

    def sent(self, tasks: Sequence[Task]) -> Self:
        return replace(self, manifest=sent(self.manifest, tasks[0].series))

    def sharing(self, num_workers: int, free: int | None) -> Self:
        products = self.products.sharing(num_workers, free)
        return replace(self, products=products, solver=self.solver.sharing(num_workers))

    def completed(self, store: SpectrumStore | SpectrumWriter) -> frozenset[str]:
        """Return the keys of the measured batches."""
        return store.completed_vectors() if self.keep_vectors else store.completed_keys()

    @contextmanager
    def open(self) -> Iterator["StoreOutput"]:
        with SpectrumWriter(self.output, self.manifest) as writer:
            yield StoreOutput(self, writer)

    def prepare(
        self, session: Session, tasks: Sequence[Task], known: KnownSeries
    ) -> PreparedSeries:
        hessian, sizes = self.manifest.hessian, []

        def check_operator(operator: "HessianOperator") -> None:
            sizes.append(operator.n - operator.num_unused)
            self.solver.check_fits(operator, hessian.k)

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
        loaded = session.series(self.manifest, tasks[0].series, self.device)
        if self.manifest.hessian.preconditioner != "none":
            for task in tasks:
                optimizer_of(loaded, task.checkpoint)
        prepared = preparation.of(loaded, tasks, known)
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

    def is_lockstep(self, product: str | None, device: str) -> bool:
        """Tell whether the batches of a unit are solved together.

        That depends on the strategy of the HVPs and the device.
        """
        hessian = self.manifest.hessian
        is_possible = (
            hessian.method == "lanczos"
            and hessian.preconditioner == "none"
            and not self.solver.recycle
        )
        return is_possible and product in lockstep.STRATEGIES and device in lockstep.DEVICES

    def unit_seconds(self, prepared: PreparedSeries) -> float:
        product = None if prepared.choice is None else prepared.choice["product"]
        return (
            lockstep.UNIT_SECONDS
            if self.is_lockstep(product, "cuda" if prepared.num_gpus else "cpu")
            else 0.0
        )

    def num_unconverged(self, record: Any) -> int:
        """Count the values of a record that missed the tolerance."""
        return int((~record.converged).sum())

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

    def report(self, **counts: Any) -> RunReport:
        """Build the report of a run."""
        return RunReport(output=self.output, num_planned=self.num_planned, **counts)

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


class StoreOutput(Output):
    """A store, locked for this process, as the output of a measurement."""

    def __init__(self, measurement: SpectraMeasurement, writer: SpectrumWriter) -> None:
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


class SpectraBench(Bench):
    """A series whose spectra this process measures."""

    def __init__(
        self,
        measurement: SpectraMeasurement,
        loaded: "LoadedSeries",
        task: Task,
        prepared: PreparedSeries,
    ) -> None:
        super().__init__(loaded, prepared)
        self.measurement, self.series = measurement, task.series.name
        self.products = SeriesProducts(measurement.products, prepared.choice)
        self.solver = Solver(measurement.solver, with_vectors=measurement.keep_vectors)
        # State of the optimizer, where its preconditioner is requested.
        self.state: OptimizerState | None = None

    def load(self, checkpoint: Checkpoint) -> None:
        """Load a checkpoint's weights, and its optimizer's state where requested."""
        is_new = checkpoint != self.checkpoint
        super().load(checkpoint)
        if is_new and self.measurement.manifest.hessian.preconditioner != "none":
            self.checkpoint = None
            self.state = optimizer_of(self.loaded, checkpoint)
            self.checkpoint = checkpoint

    def measure(self, index: int) -> Record | SpectrumWithVectors:
        return _measure(self, index)

    def measure_all(self, indices: Sequence[int], *, contained: bool) -> list[Any]:
        product = None if self.products.choice is None else self.products.choice.product
        if len(indices) < 2 or not self.measurement.is_lockstep(product, self.loaded.device.type):
            return super().measure_all(indices, contained=contained)
        hessian = self.measurement.manifest.hessian
        return lockstep.measure_in_lockstep(
            indices,
            operator=lambda index: self.products.operator(
                self.loaded.objective, self.loaded.params, self.loaded.batch(index)
            ),
            solve=lambda index, operator: self.solver.lanczos(
                operator, hessian, index, series=self.series
            ),
            record=self._record,
            num_vectors=num_products_of(hessian),
            contained=contained,
        )

    def _record(
        self, index: int, eigenpairs: "EigenPairs", operator: "HessianOperator", seconds: float
    ) -> Record | SpectrumWithVectors:
        self.products.keep(operator)
        return _record(self, index, eigenpairs, operator, begun=time.process_time() - seconds)

    def facts(self, index: int, *, loss: float, checked: str, begun: float) -> dict[str, Any]:
        """Return the facts in every record about its batch and weights."""
        assert self.checkpoint is not None, "load comes first"
        return {
            "series": self.series,
            "epoch": self.checkpoint.epoch,
            "batch": index,
            "loss": loss,
            "batch_sha256": self.loaded.batches.digest(index),
            "checkpoint_sha256": self.info.sha256,
            "seconds": time.process_time() - begun,
            "extras": {"audit": self.prepared.audit, "operator": checked}
            | self.loaded.notes_on(self.info),
        }


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


def _measure(bench: SpectraBench, index: int) -> Record | SpectrumWithVectors:
    """Measure the spectrum of a batch.

    Raises:
        ObjectiveError, NumericalError: If there is none.
    """
    begun = time.process_time()
    hessian, hvp = bench.measurement.manifest.hessian, bench.measurement.hvp
    eigenpairs, operator = bench.solver.solve(
        hessian,
        bench.loaded,
        index,
        series=bench.series,
        hvp=hvp,
        products=bench.products,
        state=bench.state,
    )
    return _record(bench, index, eigenpairs, operator, begun=begun)


def _record(
    bench: SpectraBench,
    index: int,
    eigenpairs: "EigenPairs",
    operator: "FiniteDifferenceOperator | HessianOperator | PreconditionedHessian",
    *,
    begun: float,
) -> Record | SpectrumWithVectors:
    """Build the record of a batch, with its eigenvectors where they are kept.

    Raises:
        NumericalError: As in `checked_record`.
    """
    loaded, hessian, hvp = bench.loaded, bench.measurement.manifest.hessian, bench.measurement.hvp
    settings = (
        clip.settings_of(loaded, hessian, product=HVP_TITLES[hvp])
        | bench.products.settings()
        | bench.solver.facts()
    )
    if bench.state is not None:
        settings |= preconditioner_facts(bench.state)
    record = checked_record(
        Record,
        **columns_of(eigenpairs, hessian.k),
        parameter_norm=_norm(loaded.params),
        num_params=operator.n,
        num_unused=operator.num_unused,
        settings=settings,
        **bench.facts(index, loss=operator.loss, checked=eigenpairs.checked, begun=begun),
    )
    if not bench.measurement.keep_vectors:
        return record
    layout = layout_of(loaded.model, loaded.params)
    return with_vectors(record, eigenpairs, layout, bench.measurement.manifest)


def optimizer_of(loaded: "LoadedSeries", checkpoint: Checkpoint) -> "OptimizerState":
    """Read the state of Adam or AdamW in a checkpoint.

    Raises:
        CheckpointError: If it holds none that is known to belong to the measured weights.
    """
    if loaded.trained.get("weights", "online") == "ema":
        raise CheckpointError(
            f"{checkpoint.path}: its averaged weights are measured, but the state of the optimizer "
            "is that of the trained ones. Say `weights: online` for the series, or "
            "`preconditioner: none`."
        )
    return clip.read_adam_state(checkpoint.path, loaded.model, expected_sha256=checkpoint.sha256)


def preconditioner_facts(state: "OptimizerState") -> dict[str, Any]:
    """Return the stored facts on the preconditioner, as JSON values.

    They include the threshold with which eigenvalues are compared.
    """
    facts: dict[str, Any] = {"optimizer": state.kind, "learning_rate": state.learning_rate}
    try:
        threshold = stability.threshold_of(state)
    except ValueError as error:
        return {"preconditioner": facts | {"no_threshold": str(error)}}
    # A learning rate of 0 has an infinite threshold, and JSON has no infinity.
    value = threshold.value if math.isfinite(threshold.value) else None
    return {
        "preconditioner": facts
        | {"threshold": value, "formula": threshold.formula, "source": threshold.source}
    }


def columns_of(eigenpairs: "EigenPairs", k: int) -> dict[str, Any]:
    """Convert the eigenpairs of a batch to columns of a record."""
    import numpy as np

    nodes = weights = np.zeros(0)
    if eigenpairs.quadrature is not None:
        nodes, weights = eigenpairs.quadrature.nodes.numpy(), eigenpairs.quadrature.weights.numpy()
    return {
        "values": eigenpairs.values.cpu().numpy(),
        "residuals": eigenpairs.residuals.cpu().numpy(),
        "converged": eigenpairs.converged.cpu().numpy(),
        **_look_columns(eigenpairs),
        "num_matvecs": eigenpairs.num_matvecs,
        "ritz_values": nodes,
        "ritz_weights": weights,
        **({} if eigenpairs.ritz is None else _ends(eigenpairs.ritz, k)),
    }


def _look_columns(eigenpairs: "EigenPairs") -> dict[str, Any]:
    """Return bounds of the values and facts on missed ones, as columns.

    What the solver does not report is left out.
    """
    columns: dict[str, Any] = {}
    if eigenpairs.value_bounds is not None:
        columns["value_bounds"] = eigenpairs.value_bounds.numpy()
    if eigenpairs.missed is not None:
        columns["missed_distance"] = eigenpairs.missed.distance
        columns["missed_probability"] = eigenpairs.missed.far_probability
    return columns


def checked_record(kind: Callable[..., _Result], **columns: Any) -> _Result:
    """Build a record from columns.

    Raises:
        NumericalError: If a column holds a value that cannot be stored, as after an overflow.
    """
    try:
        return kind(**columns)
    except ValueError as error:
        raise NumericalError(
            f"{error} The loss or its products overflowed; scale the loss, or use dtype float64."
        ) from error


def _ends(ritz: "RitzValues", k: int) -> dict[str, Any]:
    """Return both ends of the spectrum as columns of a record."""
    (smallest, below), (largest, above) = ritz.end("SA", k), ritz.end("LA", k)
    return {
        "smallest": smallest.numpy(),
        "smallest_residuals": below.numpy(),
        "largest": largest.numpy(),
        "largest_residuals": above.numpy(),
        "num_negative": ritz.num_negative,
        "num_positive": ritz.num_positive,
        "orthogonality_defect": ritz.orthogonality_defect,
    }


def _norm(params: "Params") -> float:
    return linalg.norm(curvature.flatten(params))
