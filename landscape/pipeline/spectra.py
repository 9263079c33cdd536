"""Spectra of a manifest: one record per mini-batch and checkpoint, stored as soon as it is known.

Everything that can be found wrong before the first product is: the manifest, the output, the data, every checkpoint that
has a batch left. After that a batch that fails costs that batch alone.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

from landscape.errors import LandscapeError, ManifestError, NumericalError
from landscape.manifest import CheckpointSeries, Manifest
from landscape.manifest.gone import check_weights, is_gone
from landscape.manifest.selection import Selection, Task
from landscape.pipeline import lockstep
from landscape.pipeline.audit import check_hvp
from landscape.pipeline.forecast import forecast, num_products_of
from landscape.pipeline.plan import RunReport, plan
from landscape.pipeline.preparation import KnownSeries, Preparation, PreparedSeries
from landscape.pipeline.products import RECORDED, ProductSettings, SeriesProducts
from landscape.pipeline.runner import run_measurement
from landscape.pipeline.session import Bench, Measurement, Output, Session, sent
from landscape.pipeline.solve import Solver, SolverSettings
from landscape.store import Record, SpectrumStore, SpectrumWriter, models_as_trained, verdicts
from landscape.workers.crew import WorkerSettings
from landscape.workers.progress import show_notes

if TYPE_CHECKING:
    from landscape.clip.loaded_series import LoadedSeries
    from landscape.curvature import FiniteDifferenceOperator, HessianOperator, Params
    from landscape.linalg import EigenPairs, RitzValues

_Result = TypeVar("_Result")
_PRODUCTS = {
    "double-backward": "double backward, retained graph",
    "finite-difference": "central differences of gradients",
}


@dataclass(frozen=True, kw_only=True)
class SpectraMeasurement(Measurement):
    """The extreme eigenvalues of every batch of every checkpoint.

    Args:
        output: The store.
        hvp: "double-backward", or "finite-difference" where only first derivatives exist.
        unaudited: Measure without asking whether the products are second derivatives; every record says so.
    """

    manifest: Manifest
    output: Path
    hvp: str = "double-backward"
    unaudited: bool = False
    products: ProductSettings = ProductSettings()
    solver: SolverSettings = SolverSettings()
    selection: Selection = Selection()
    device: str | None = None

    def check(self) -> None:
        """Refuse settings that do not go together, and parts that the manifest does not have.

        Raises:
            LandscapeError: If so.
        """
        check_hvp(self.manifest, self.hvp)
        self.products.check(self.manifest.hessian.method, self.hvp)
        self.solver.check(self.manifest.hessian.method)
        self.selection.check(self.manifest)
        if self.manifest.hessian.method == "pyhessian":
            from landscape.curvature.reference import import_pyhessian

            import_pyhessian()

    @property
    def num_planned(self) -> int:
        return sum(len(task.indices) for task in self.selection.tasks(self.manifest))

    def num_recorded(self, series: CheckpointSeries) -> int:
        """Batches of a series for which one graph can be recorded."""
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
        """Keys of the batches that are measured."""
        return store.completed_keys()

    @contextmanager
    def open(self) -> Iterator["StoreOutput"]:
        with SpectrumWriter(self.output, self.manifest) as writer:
            yield StoreOutput(self, writer)

    def prepare(
        self, session: Session, tasks: Sequence[Task], known: KnownSeries
    ) -> PreparedSeries:
        from landscape.linalg.lanczos import LEAST_ROOM

        hessian = self.manifest.hessian
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
            min_vectors=hessian.k + LEAST_ROOM,
            check_operator=lambda operator: self.solver.check_fits(operator, hessian.k),
        )
        return preparation.of(
            session.series(self.manifest, tasks[0].series, self.device), tasks, known
        )

    def bench(self, session: Session, task: Task, prepared: PreparedSeries) -> "SpectraBench":
        return SpectraBench(
            self, session.series(self.manifest, task.series, self.device), task, prepared
        )

    def is_lockstep(self, product: str | None, device: str) -> bool:
        """Whether the batches of a unit are solved together, whose HVPs are computed in this way on such a device."""
        is_possible = self.manifest.hessian.method == "lanczos" and not self.solver.recycle
        return is_possible and product in lockstep.STRATEGIES and device in lockstep.DEVICES

    def unit_seconds(self, prepared: PreparedSeries) -> float:
        product = None if prepared.choice is None else prepared.choice["product"]
        return (
            lockstep.UNIT_SECONDS
            if self.is_lockstep(product, "cuda" if prepared.num_gpus else "cpu")
            else 0.0
        )

    def num_unconverged(self, record: Any) -> int:
        """Values of a record that missed the tolerance."""
        return int((~record.converged).sum())

    def undigested(self) -> list[Path]:
        """Checkpoints that have records and no digest in the manifest, so that their files must be read."""
        stored = stored_digests(self.output)
        checkpoints = [
            (series.name, one) for series in self.manifest.series for one in series.checkpoints
        ]
        return [
            one.path
            for name, one in checkpoints
            if one.sha256 is None and (name, one.epoch) in stored and not is_gone(one)
        ]

    def report(self, **counts: Any) -> RunReport:
        """The report of a run."""
        return RunReport(output=self.output, num_planned=self.num_planned, **counts)

    def dry_run(self, *, progress: bool | None) -> RunReport:
        """Say what is left, what would be refused, and what the rest takes."""
        from landscape.clip.loaded_series import device_of

        tasks = plan(self.manifest, SpectrumStore.check(self.output, self.manifest), self.selection)
        show_notes(
            check_weights(self.manifest, tasks, self.selection.tasks(self.manifest)), shown=progress
        )
        audited, device = (
            self.hvp != "finite-difference" and not self.unaudited,
            device_of(self.device),
        )
        options: dict[str, Any] = {
            "hvp": self.hvp,
            "products": self.products,
            "solver": self.solver,
        }
        looked = forecast(self.manifest, tasks, device, audited=audited, **options)
        num_stored = self.num_planned - sum(len(task.indices) for task in tasks)
        facts: dict[str, Any] = {"forecast": looked.lines, "num_refused": looked.num_refused}
        return self.report(num_stored=num_stored, todo=tuple(tasks), **facts)


class StoreOutput(Output):
    """A store that is locked for this process, as the place of a measurement's records."""

    def __init__(self, measurement: SpectraMeasurement, writer: SpectrumWriter) -> None:
        self.measurement, self.writer, self.folder = measurement, writer, writer.folder
        self._known: dict[str, KnownSeries] = {}

    def remaining(self) -> list[Task]:
        measurement = self.measurement
        tasks = plan(
            measurement.manifest, measurement.completed(self.writer), measurement.selection
        )
        self.notes = check_weights(
            measurement.manifest, tasks, measurement.selection.tasks(measurement.manifest)
        )
        return tasks

    def known(self, series: CheckpointSeries) -> KnownSeries:
        if not self._known:
            self._known = known_series(self.measurement.output, self.measurement.manifest.series)
        return self._known[series.name]

    def accept(self, series: str, prepared: PreparedSeries) -> PreparedSeries:
        if prepared.details:
            self.writer.check_modules(series, prepared.details)
        return prepared

    def keep(self, task: Task, records: Sequence[tuple[int, Any]], prepared: PreparedSeries) -> int:
        self.writer.add_all([record for _, record in records])
        return sum(self.measurement.num_unconverged(record) for _, record in records)

    def finish(self) -> None:
        self.writer.merge()


def stored_digests(output: Path) -> dict[tuple[str, int], str]:
    """Digest of each (series, epoch) of which a store has records; empty where there is none yet."""
    try:
        with SpectrumStore.open(output) as store:
            return store.stored()
    except LandscapeError:
        return {}


def known_series(output: Path, series: Sequence[CheckpointSeries]) -> dict[str, KnownSeries]:
    """What a store says of each series, by its name; nothing where there is none yet."""
    try:
        store = SpectrumStore.open(output)
    except LandscapeError:
        return {one.name: KnownSeries() for one in series}
    with store:
        return {one.name: _known(store, one) for one in series}


def _known(store: SpectrumStore, series: CheckpointSeries) -> KnownSeries:
    passed: list[Mapping[str, Any]] = []
    models: list[Mapping[str, Any]] = []
    num_threads = strategy = None
    # One checkpoint in memory at a time, and each fact once.
    for epoch in store.epochs(series.name) if series.name in store.series() else ():
        table = store.records(series.name, epoch)
        passed += [
            told for told in verdicts(table.extras) if told.get("passed") and told not in passed
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
    """A series whose spectra are measured in this process."""

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
        self.solver = Solver(measurement.solver)

    def measure(self, index: int) -> Record:
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
    ) -> Record:
        self.products.keep(operator)
        return _record(self, index, eigenpairs, operator, begun=time.process_time() - seconds)

    def facts(self, index: int, *, loss: float, checked: str, begun: float) -> dict[str, Any]:
        """What every record says of its batch and its weights."""
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


def run(
    manifest: Manifest,
    output: Path,
    *,
    method: str | None = None,
    device: str | None = None,
    hvp: str = "double-backward",
    unaudited: bool = False,
    products: ProductSettings = ProductSettings(),
    solver: SolverSettings = SolverSettings(),
    selection: Selection = Selection(),
    workers: WorkerSettings = WorkerSettings(),
    executor: Executor | None = None,
    dry_run: bool = False,
    progress: bool | None = None,
) -> RunReport:
    """Measure every batch of every checkpoint that is not in `output` yet, then make it one file.

    Args:
        method: "lanczos", "power" or "pyhessian" instead of the manifest's.
        device: "cpu", "cuda", ...; by default CUDA where there is one.
        hvp: "double-backward", or "finite-difference" where only first derivatives exist.
        unaudited: Measure without asking whether the products are second derivatives; every record says so.
        products: How they are computed, and in how much memory.
        solver: From where the search starts, and in how much memory.
        selection: The part of the manifest that is measured.
        workers: Where it is measured; by default in this process.
        executor: Any executor of concurrent.futures, in place of `workers`.
        dry_run: Only say what is left, what would be refused, and what the rest takes in time and memory.
        progress: None draws a bar where stderr is a terminal and writes lines elsewhere; False is silent.

    Returns:
        The report; not `complete` where batches failed.

    Raises:
        LandscapeError: If anything is wrong that can be known before the first product; nothing is written then.
    """
    measurement = SpectraMeasurement(
        manifest=with_method(manifest, method),
        output=output,
        hvp=hvp,
        unaudited=unaudited,
        products=products,
        solver=solver,
        selection=selection,
        device=device,
    )
    measurement.check()
    workers = workers if executor is None else replace(workers, executor=executor)
    return report_of(measurement, workers, dry_run=dry_run, progress=progress)


def report_of(
    measurement: SpectraMeasurement,
    workers: WorkerSettings,
    *,
    dry_run: bool,
    progress: bool | None,
) -> RunReport:
    """Measure into a store, or say what would be measured."""
    if dry_run:
        return measurement.dry_run(progress=progress)
    outcome = run_measurement(measurement, workers=workers, progress=progress)
    return measurement.report(**vars(outcome))


def with_method(manifest: Manifest, method: str | None) -> Manifest:
    """The manifest with another method.

    Raises:
        ManifestError: If its settings do not go with it.
    """
    if method is None:
        return manifest
    try:
        return replace(manifest, hessian=replace(manifest.hessian, method=method))
    except ValueError as error:
        raise ManifestError(f"{manifest.path}, with --method {method}: {error}") from error


def _measure(bench: SpectraBench, index: int) -> Record:
    """The spectrum of one batch.

    Raises:
        ObjectiveError, NumericalError: If there is none.
    """
    begun = time.process_time()
    hessian, hvp = bench.measurement.manifest.hessian, bench.measurement.hvp
    eigenpairs, operator = bench.solver.solve(
        hessian, bench.loaded, index, series=bench.series, hvp=hvp, products=bench.products
    )
    return _record(bench, index, eigenpairs, operator, begun=begun)


def _record(
    bench: SpectraBench,
    index: int,
    eigenpairs: "EigenPairs",
    operator: "FiniteDifferenceOperator | HessianOperator",
    *,
    begun: float,
) -> Record:
    """What is stored of a batch.

    Raises:
        NumericalError: As `checked_record`.
    """
    import numpy as np

    from landscape.clip.loaded_series import settings_of

    loaded, products = bench.loaded, bench.products
    hessian, hvp = bench.measurement.manifest.hessian, bench.measurement.hvp
    nodes = weights = np.zeros(0)
    if eigenpairs.quadrature is not None:
        nodes, weights = eigenpairs.quadrature.nodes.numpy(), eigenpairs.quadrature.weights.numpy()
    ends: dict[str, Any] = {} if eigenpairs.ritz is None else _ends(eigenpairs.ritz, hessian.k)
    settings = (
        settings_of(loaded, hessian, product=_PRODUCTS[hvp])
        | products.settings()
        | bench.solver.facts()
    )
    return checked_record(
        Record,
        values=eigenpairs.values.cpu().numpy(),
        residuals=eigenpairs.residuals.cpu().numpy(),
        converged=eigenpairs.converged.cpu().numpy(),
        **_look_columns(eigenpairs),
        num_matvecs=eigenpairs.num_matvecs,
        ritz_values=nodes,
        ritz_weights=weights,
        **ends,
        parameter_norm=_norm(loaded.params),
        num_params=operator.n,
        num_unused=operator.num_unused,
        settings=settings,
        **bench.facts(index, loss=operator.loss, checked=eigenpairs.checked, begun=begun),
    )


def _look_columns(eigenpairs: "EigenPairs") -> dict[str, Any]:
    """Bounds of the values, and what the solver says of missed ones, as columns; nothing of what it does not say."""
    columns: dict[str, Any] = {}
    if eigenpairs.value_bounds is not None:
        columns["value_bounds"] = eigenpairs.value_bounds.numpy()
    if eigenpairs.missed is not None:
        columns["missed_distance"] = eigenpairs.missed.distance
        columns["missed_probability"] = eigenpairs.missed.far_probability
    return columns


def checked_record(kind: Callable[..., _Result], **columns: Any) -> _Result:
    """The record of these columns.

    Raises:
        NumericalError: If one holds a value that cannot be stored, as after an overflow.
    """
    try:
        return kind(**columns)
    except ValueError as error:
        raise NumericalError(
            f"{error} The loss or its products overflowed; scale the loss, or use dtype float64."
        ) from error


def _ends(ritz: "RitzValues", k: int) -> dict[str, Any]:
    """Both ends of the spectrum as columns of a record."""
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
    from landscape.curvature import flatten
    from landscape.linalg.krylov import norm

    return norm(flatten(params))
