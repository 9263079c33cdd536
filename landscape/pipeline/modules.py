"""Spectra of every module of a manifest's networks.

A record per mini-batch and checkpoint. They are stored beside the spectra of the whole models, in
the same output, but resume, fail and merge separately: they take several times as long, so fewer
batches may be enough.
"""

import time
from concurrent.futures import Executor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape import clip, curvature
from landscape.errors import LandscapeError, ManifestError, ObjectiveError
from landscape.manifest import CheckpointSeries, Manifest
from landscape.manifest.gone import check_weights
from landscape.manifest.selection import Task
from landscape.pipeline.preparation import KnownSeries, PreparedSeries
from landscape.pipeline.remaining import RunReport, plan, refuse_preconditioned
from landscape.pipeline.session import Session
from landscape.pipeline.spectra import SpectraMeasurement, report_of
from landscape.pipeline.spectra_bench import SpectraBench
from landscape.pipeline.spectra_command import run
from landscape.pipeline.spectra_record import checked_record
from landscape.store import ModuleRecord, SpectrumStore, SpectrumWriter
from landscape.workers.crew import WorkerSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    import numpy as np
    import torch

    from landscape.clip.loaded_series import LoadedSeries
    from landscape.curvature import ModuleSpectrum


@dataclass(frozen=True, kw_only=True)
class ModuleMeasurement(SpectraMeasurement):
    """The extreme eigenvalues of the Hessian's diagonal blocks of modules.

    They start from random vectors, whatever `solver` is for the whole.

    Args:
        modules: Shell patterns of module names; empty for every module of the network, and one for
            the remaining parameters.
    """

    modules: tuple[str, ...] = ()

    @property
    def chained(self) -> str | None:
        return None

    def title(self, task: Task) -> str:
        return f"modules of {task.place}"

    def failure(self, task: Task, index: int, reason: str) -> str:
        return f"modules of {super().failure(task, index, reason)}"

    def completed(self, store: SpectrumStore | SpectrumWriter) -> frozenset[str]:
        return store.completed_modules()

    def num_unconverged(self, record: Any) -> int:
        return int(record.num_not_converged)

    def prepare(
        self, session: Session, tasks: "Sequence[Task]", known: KnownSeries
    ) -> PreparedSeries:
        modules = modules_in(
            session.series(self.manifest, tasks[0].series, self.device), tasks[0], self.modules
        )
        return replace(super().prepare(session, tasks, known), details=tuple(modules))

    def num_recorded(self, series: CheckpointSeries) -> int:
        """Return 0, since all modules share the graph of a batch."""
        return 0

    def is_lockstep(self, product: str | None, device: str) -> bool:
        return False

    def bench(self, session: Session, task: Task, prepared: PreparedSeries) -> "ModuleBench":
        return ModuleBench(
            self, session.series(self.manifest, task.series, self.device), task, prepared
        )

    def report(self, **counts: Any) -> RunReport:
        return replace(super().report(**counts), what="modules")

    def dry_run(self, *, progress: bool | None) -> RunReport:
        tasks = self.left()
        num_stored = self.num_planned - sum(len(task.indices) for task in tasks)
        said = ("The time of modules comes on top of that of the whole.",) if tasks else ()
        return self.report(num_stored=num_stored, todo=tuple(tasks), forecast=said)

    def left(self) -> list[Task]:
        """List what is not stored, without a lock.

        Raises:
            StoreError: If the output belongs to another request.
        """
        SpectrumStore.check(self.output, self.manifest)
        try:
            with SpectrumStore.open(self.output) as store:
                stored = self.completed(store)
        except LandscapeError:
            # There is no output yet; `check` has already reported the errors of an existing one.
            stored = frozenset()
        return plan(self.manifest, stored, self.selection)


class ModuleBench(SpectraBench):
    """A series whose modules this process measures."""

    def __init__(
        self,
        measurement: ModuleMeasurement,
        loaded: "LoadedSeries",
        task: Task,
        prepared: PreparedSeries,
    ) -> None:
        super().__init__(measurement, loaded, task, prepared)
        self.modules = modules_in(loaded, task, measurement.modules)

    def measure(self, index: int) -> ModuleRecord:  # type: ignore[override]
        return _measure(self, index)


def run_with_modules(
    manifest: Manifest,
    output: Path,
    *,
    modules: tuple[str, ...] = (),
    module_batches: int | None = None,
    method: str | None = None,
    hvp: str = "double-backward",
    dry_run: bool = False,
    progress: bool | None = None,
    workers: WorkerSettings = WorkerSettings(),
    executor: Executor | None = None,
    **options: Any,
) -> tuple[RunReport, RunReport]:
    """Run `run`, then measure the missing spectra of modules.

    These are the modules of every checkpoint that are not in `output` yet.

    Args:
        modules: Shell patterns of module names; empty for every module of the network, and one for
            the remaining parameters.
        module_batches: Measure the modules on the first batches only; None on all.
        options: The rest is as in `run`.

    Returns:
        The report of the whole and that of the modules.

    Raises:
        LandscapeError: As `run`; and if the method is not Lanczos by double backward, a pattern
            matches no module, or the output has the spectra of other modules.
    """
    if (method or manifest.hessian.method) != "lanczos" or hvp != "double-backward":
        raise LandscapeError(
            f"{manifest.path}: the spectra of modules are measured by Lanczos with double "
            "backward, as only these take one block of the Hessian at a time. Leave --per-module "
            "out, or ask for --method lanczos."
        )
    refuse_preconditioned(manifest, "--per-module")
    measurement = _measurement(manifest, output, modules, module_batches, options)
    check_weights(manifest, measurement.left(), ())
    if modules:
        _check_patterns(measurement)
    workers = workers if executor is None else replace(workers, executor=executor)
    shared: dict[str, Any] = {"workers": workers, "dry_run": dry_run, "progress": progress}
    whole = run(manifest, output, method=method, hvp=hvp, **options, **shared)
    return whole, report_of(measurement, **shared)


def _measurement(
    manifest: Manifest,
    output: Path,
    modules: tuple[str, ...],
    module_batches: int | None,
    options: dict[str, Any],
) -> ModuleMeasurement:
    if module_batches is not None and not 1 <= module_batches <= manifest.data.num_batches:
        raise ManifestError(
            f"{manifest.path}: it has {manifest.data.num_batches} batches, so modules cannot be "
            f"measured on {module_batches}. Lower --module-batches."
        )
    options = options | {"keep_vectors": False}
    measurement = ModuleMeasurement(manifest=manifest, output=output, modules=modules, **options)
    measurement.products.check_blocks()
    if module_batches is not None:
        selection = replace(measurement.selection, num_batches=module_batches)
        measurement = replace(measurement, selection=selection)
    return measurement


def _check_patterns(measurement: ModuleMeasurement) -> None:
    """Refuse patterns that match no module of some series.

    This happens before the whole is measured.
    """
    session = Session()
    for task in {
        task.series.name: task for task in measurement.selection.tasks(measurement.manifest)
    }.values():
        modules_in(
            session.series(measurement.manifest, task.series, measurement.device),
            task,
            measurement.modules,
        )


def modules_in(
    loaded: "LoadedSeries", task: Task, patterns: tuple[str, ...]
) -> dict[str, tuple[str, ...]]:
    """Return the parameters of each module that is measured.

    Raises:
        ObjectiveError: If a pattern matches none.
    """
    try:
        return curvature.modules_of(loaded.model, loaded.params, patterns or None)
    except ObjectiveError as error:
        raise ObjectiveError(
            f"series {task.series.name!r} ({task.series.model}): {error}"
        ) from error


def _measure(bench: ModuleBench, index: int) -> ModuleRecord:
    """Measure the spectra of the modules on a batch.

    Raises:
        ObjectiveError, NumericalError: If there are none.
        MemoryLimitError: If a product does not fit in memory.
    """
    begun = time.process_time()
    loaded, products = bench.loaded, bench.products
    hessian, solver = bench.measurement.manifest.hessian, bench.measurement.solver
    blocks = products.blocks(loaded.objective, loaded.params, loaded.batch(index), bench.modules)
    spectra = curvature.spectra_of(
        blocks,
        k=hessian.k,
        which=hessian.which,  # type: ignore[arg-type]
        tol=hessian.tol,
        max_matvecs=hessian.max_matvecs,
        seed=clip.derive_seed("start", hessian.seed, index),
        max_basis_memory=solver.max_basis_memory,
    )
    products.keep(blocks)
    settings = clip.settings_of(loaded, hessian, product=f"{blocks.choice.title}, block by block")
    return checked_record(
        ModuleRecord,
        modules=tuple(spectrum.module for spectrum in spectra),
        **_columns(spectra, hessian.k),
        num_params=sum(tensor.numel() for tensor in loaded.params.values()),
        settings=settings | {"product_choice": blocks.choice.as_settings()} | solver.room(),
        **bench.facts(index, loss=blocks.loss, checked=blocks.checked, begun=begun),
    )


def _columns(spectra: "tuple[ModuleSpectrum, ...]", k: int) -> dict[str, Any]:
    import numpy as np

    rows: dict[str, list[Any]] = {}
    for spectrum in spectra:
        eigenpairs, ritz = spectrum.eigenpairs, spectrum.eigenpairs.ritz
        assert ritz is not None and eigenpairs.value_bounds is not None, "Lanczos gives both ends"
        (smallest, below), (largest, above) = ritz.end("SA", k), ritz.end("LA", k)
        values = {
            "eigenvalues": _padded(eigenpairs.values, k),
            "residuals": _padded(eigenpairs.residuals, k),
            "converged": np.concatenate(
                [eigenpairs.converged.numpy(), np.zeros(k - len(eigenpairs.converged), dtype=bool)]
            ),
            "smallest": _padded(smallest, k),
            "smallest_residuals": _padded(below, k),
            "largest": _padded(largest, k),
            "largest_residuals": _padded(above, k),
            "value_bounds": _padded(eigenpairs.value_bounds, k),
            "missed_distance": np.nan if eigenpairs.missed is None else eigenpairs.missed.distance,
            "missed_probability": np.nan
            if eigenpairs.missed is None
            else eigenpairs.missed.far_probability,
            "module_params": spectrum.num_params,
            "num_negative": ritz.num_negative,
            "num_positive": ritz.num_positive,
            "num_matvecs": eigenpairs.num_matvecs,
        }
        for name, value in values.items():
            rows.setdefault(name, []).append(value)
    return {name: np.stack(values) for name, values in rows.items()}


def _padded(values: "torch.Tensor", k: int) -> "np.ndarray":
    import numpy as np

    return np.concatenate([values.numpy(), np.full(k - len(values), np.nan)])
