"""The measurement of `landscape density`, batch by batch.

It measures the checkpoints of a manifest, or a model by name.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from landscape import clip, curvature, linalg
from landscape.errors import LandscapeError, ManifestError, NumericalError, ObjectiveError
from landscape.figures.density_records import density_record, spectral_density
from landscape.manifest import Checkpoint, CheckpointSeries, Manifest
from landscape.manifest.gone import digest_of, is_gone
from landscape.manifest.selection import Selection, Task
from landscape.manifest.trained import LOCAL_DIR
from landscape.memory import peak_memory
from landscape.pipeline.density_file import DensityFile, Key, stored_digests
from landscape.pipeline.preparation import (
    KnownSeries,
    Preparation,
    PreparedSeries,
    check_same_function,
)
from landscape.pipeline.products import HvpSettings, SeriesProducts
from landscape.pipeline.session import Bench, Measurement, Output, Session, sent
from landscape.store import LARGEST_VALUE, DensityRecord, models_as_trained, parts_folder
from landscape.store.lock import FolderLock
from landscape.workers.run_status import remove_status

if TYPE_CHECKING:
    from landscape.clip.loaded_series import LoadedSeries
    from landscape.linalg import SpectralDensity


@dataclass(frozen=True, kw_only=True)
class DensitySettings:
    """Settings of the measurement of densities.

    Args:
        num_batches: Mini-batches of each checkpoint, the first of the protocol.
        num_probes, num_matvecs: As `landscape.density` takes them.
        dense_limit: Largest number of parameters used by a batch for which the exact spectrum is
            measured too.
        seed: Seed of the random vectors.
        products: How HVPs are computed, and in how much memory.
    """

    num_batches: int = 1
    num_probes: int = 2
    num_matvecs: int = 64
    dense_limit: int = 3000
    seed: int = 0
    products: HvpSettings = HvpSettings()

    def facts(self, manifest: Manifest | None) -> dict[str, Any]:
        """Return the settings that a reusable stored record must agree with."""
        numbers = ("num_batches", "num_probes", "num_matvecs", "dense_limit", "seed")
        facts = {name: getattr(self, name) for name in numbers}
        facts["protocol_sha256"] = None if manifest is None else manifest.protocol_digest()
        # All strategies compute the same product, except for the rounding by TF32.
        return facts | ({"allow_tf32": True} if self.products.allow_tf32 else {})


@dataclass(frozen=True)
class BatchDensity:
    """The density of a batch, and all its eigenvalues where these are few."""

    density: "SpectralDensity"
    dense: np.ndarray | None


@dataclass(frozen=True, kw_only=True)
class DensityMeasurement(Measurement):
    """The density of the spectrum of some batches of every checkpoint.

    Args:
        manifest: None for a model by its name alone.
        target: The HDF5 file of the densities.
    """

    manifest: Manifest | None
    tasks: tuple[Task, ...]
    target: Path
    settings: DensitySettings
    unaudited: bool = False
    device: str | None = None

    @property
    def num_planned(self) -> int:
        return len(self.tasks) * self.settings.num_batches

    def undigested(self) -> list[Path]:
        return (
            []
            if self.manifest is None
            else [task.checkpoint.path for task in self.tasks if not is_gone(task.checkpoint)]
        )

    def sent(self, tasks: Sequence[Task]) -> Self:
        manifest = None if self.manifest is None else sent(self.manifest, tasks[0].series)
        return replace(self, manifest=manifest, tasks=())

    def sharing(self, num_workers: int, free: int | None) -> Self:
        settings = replace(
            self.settings, products=self.settings.products.sharing(num_workers, free)
        )
        return replace(self, settings=settings)

    def requests(self) -> dict[Key, dict[str, Any]]:
        """Return the requested fields of `DensityRecord` of each checkpoint.

        Raises:
            CheckpointError: If a checkpoint is not the file that is listed.
        """
        stored, settings = stored_digests(self.target), self.settings.facts(self.manifest)
        requests = {}
        for task in self.tasks:
            series, key = task.series, _key(task)
            digest = (
                "" if self.manifest is None else digest_of(task.checkpoint, stored=stored.get(key))
            )
            facts = {
                "series": series.name,
                "label": series.label,
                "model": series.model,
                "epoch": key[1],
            }
            requests[key] = facts | {"checkpoint_sha256": digest, "settings": settings}
        return requests

    def file(self) -> DensityFile:
        """Open the file of stored densities."""
        return DensityFile(self.target, self.requests())

    def left(self, file: DensityFile) -> list[Task]:
        """List the checkpoints that lack batches, or the audit."""
        tasks = [
            replace(task, indices=file.missing(_key(task), self.settings.num_batches))
            for task in self.tasks
        ]
        return [
            task
            for task in tasks
            if task.indices or not (self.unaudited or file.is_audited(_key(task)))
        ]

    @contextmanager
    def open(self) -> Iterator["DensityOutput"]:
        lock = FolderLock(parts_folder(self.target), output=self.target)
        try:
            yield DensityOutput(self, lock.folder)
        finally:
            remove_status(lock.folder)
            lock.release(remove_folder=True)

    def prepare(
        self, session: Session, tasks: Sequence[Task], known: KnownSeries
    ) -> PreparedSeries:
        num_products = self.settings.num_probes * self.settings.num_matvecs
        if self.manifest is None:
            return self._named(session, tasks[0]).prepare(self)
        preparation = Preparation(
            manifest=self.manifest,
            hvp="double-backward",
            unaudited=self.unaudited,
            products=self.settings.products,
            num_products=num_products,
            num_vectors=self.settings.num_matvecs,
            output=self.target,
        )
        return preparation.of(
            session.series(self.manifest, tasks[0].series, self.device), tasks, known
        )

    def _named(self, session: Session, task: Task) -> "NamedModel":
        name, num_batches = task.series.model, self.settings.num_batches

        def make() -> NamedModel:
            return NamedModel(name, device=self.device, num_batches=num_batches)

        named: NamedModel = session.other((name, self.device, num_batches), make)
        return named

    def bench(self, session: Session, task: Task, prepared: PreparedSeries) -> "DensityBench":
        loaded = (
            self._named(session, task)
            if self.manifest is None
            else session.series(self.manifest, task.series, self.device)
        )
        return DensityBench(self.settings, loaded, prepared)


class DensityOutput(Output):
    """A file of densities that is locked for this process."""

    def __init__(self, measurement: DensityMeasurement, folder: Path) -> None:
        self.measurement, self.folder = measurement, folder
        self.requests = measurement.requests()
        self.file = DensityFile(measurement.target, self.requests)
        self._batches = {key: batches_of(record) for key, record in self.file.known.items()}
        self._used: dict[str, dict[str, Any]] = {}
        self._passed: dict[str, bool] = {}

    def remaining(self) -> list[Task]:
        return self.measurement.left(self.file)

    def accept(self, series: str, prepared: PreparedSeries) -> PreparedSeries:
        """Record a series, and add a missing audit to its stored records.

        Raises:
            StoreError: If stored densities are of another function of the same weights.
        """
        stored = [
            used
            for (name, _), record in self.file.known.items()
            if name == series
            for used in models_as_trained(record.settings)
        ]
        check_same_function(self.file.target, series, prepared.used, stored)
        self._used[series] = prepared.used
        self._passed[series] = bool(prepared.audit["passed"])
        if prepared.audit["passed"]:
            for task in self.measurement.left(self.file):
                if task.series.name == series and not task.indices:
                    self._keep(_key(task), audited=True)
        return prepared

    def keep(self, task: Task, records: Sequence[tuple[int, Any]], prepared: PreparedSeries) -> int:
        self._batches.setdefault(_key(task), {}).update(records)
        self._keep(_key(task), audited=bool(prepared.audit["passed"]))
        return 0

    def finish(self) -> None:
        """Record which requested batches are missing."""
        for task in self.measurement.left(self.file):
            record = self.file.known.get(_key(task))
            if task.indices and record is not None and task.series.name in self._used:
                self._keep(
                    _key(task), audited=record.audited or self._passed.get(task.series.name, False)
                )

    def _keep(self, key: Key, *, audited: bool) -> None:
        """Write the record of all batches of a checkpoint."""
        before = self.file.known.get(key)
        num_batches = max(
            self.measurement.settings.num_batches,
            0 if before is None else before.settings["num_batches"],
        )
        facts, used = self.requests[key], self._used[key[0]]
        self.file.keep(
            key, joined_record(facts, num_batches, self._batches[key], audited=audited, used=used)
        )


def _key(task: Task) -> Key:
    return task.series.name, task.checkpoint.epoch


class DensityBench(Bench):
    """A series, or a model by its name, whose densities this process measures."""

    def __init__(
        self,
        settings: DensitySettings,
        loaded: "LoadedSeries | NamedModel",
        prepared: PreparedSeries,
    ) -> None:
        super().__init__(loaded, prepared)
        self.settings, self.products = settings, SeriesProducts(settings.products, prepared.choice)

    def measure(self, index: int) -> BatchDensity:
        return _measure(self, index)


def _measure(bench: DensityBench, index: int) -> BatchDensity:
    """Measure the density of a batch; small ones also exactly.

    Raises:
        ObjectiveError, NumericalError, MemoryLimitError: If there is none.
    """
    settings, loaded = bench.settings, bench.loaded
    operator = bench.products.operator(loaded.objective, loaded.params, loaded.batch(index))
    # Each batch has its own seed, so that the probes of different batches are independent.
    seed = settings.seed + 7919 * index
    density = linalg.density(
        operator, num_probes=settings.num_probes, num_matvecs=settings.num_matvecs, seed=seed
    )
    if float(density.nodes.abs().nan_to_num().max()) > LARGEST_VALUE:
        raise NumericalError(
            f"batch {index} has a Ritz value beyond {LARGEST_VALUE:.3g}: products overflowed. "
            "Scale the loss."
        )
    small = operator.n - operator.num_unused <= settings.dense_limit
    dense = linalg.dense_spectrum(operator).numpy() if small else None
    bench.products.keep(operator)
    return BatchDensity(density, dense)


def batches_of(record: DensityRecord) -> dict[int, BatchDensity]:
    """Split a record into its batches."""
    parts = spectral_density(record).by_operator()
    dense: list[Any] = (
        list(record.dense_eigenvalues) if record.dense_eigenvalues.size else [None] * len(parts)
    )
    return {
        index: BatchDensity(density, values)
        for index, density, values in zip(record.batches, parts, dense)
    }


def joined_record(
    facts: Mapping[str, Any],
    num_batches: int,
    measured: Mapping[int, BatchDensity],
    *,
    audited: bool,
    used: Mapping[str, Any],
) -> DensityRecord:
    """Join the measured batches among the first `num_batches` into a record."""
    batches = [measured[index] for index in sorted(measured)]
    together = linalg.SpectralDensity.pooled([batch.density for batch in batches])
    dense = [batch.dense for batch in batches if batch.dense is not None]
    missing = [index for index in range(num_batches) if index not in measured]
    which: dict[str, Any] = {"num_batches": num_batches} | (
        {"missing_batches": missing} if missing else {}
    )
    which |= {"as_trained": used} if used else {}
    which |= {"operator": together.checked} if together.checked else {}
    return density_record(
        together,
        **{**facts, "settings": facts["settings"] | which},
        audited=audited,
        # |theta - lambda| <= residual for each exact pair, so theta + residual < 0 proves a
        # negative eigenvalue.
        num_negative=(together.exact + together.exact_residuals < 0).sum(dim=1).numpy(),
        dense_eigenvalues=np.stack(dense) if len(dense) == len(batches) else np.zeros((0, 0)),
    )


class NamedModel:
    """A model by its name with random weights, on OpenMoji pictures.

    It is measured as a series of a single checkpoint.
    """

    used: dict[str, Any] = {}

    def __init__(self, name: str, *, device: str | None, num_batches: int) -> None:
        self.name = name
        self.model, self.batches = clip.model_on_openmoji(
            name, clip.device_of(device), num_batches=num_batches
        )
        self.objective, self.params = clip.contrastive_objective(self.model)

    def load(self, checkpoint: Checkpoint) -> None:
        """Do nothing: the model keeps its random weights."""

    def batch(self, index: int) -> Any:
        return self.batches[index]

    def prepare(self, measurement: DensityMeasurement) -> PreparedSeries:
        """Audit the model and choose how its HVPs are computed.

        Raises:
            ObjectiveError: If the audit fails and `unaudited` is not given.
        """
        import torch

        passed = False
        if not measurement.unaudited:
            report = curvature.audit_objective(
                clip.contrastive_objective, self.model, self.batches[0]
            )
            passed = report.passed
            if not passed:
                raise ObjectiveError(
                    f"{self.name}: the audit failed for {', '.join(report.faulty_modules[:3])}, so "
                    "the density would not be the Hessian's. See `landscape audit "
                    f"{self.name}`, or measure anyway, and marked so, with --unaudited."
                )
        products = SeriesProducts(measurement.settings.products)
        products.choose(self.objective, self.params, lambda: self.batches[0])
        threads = torch.get_num_threads()
        return PreparedSeries(
            audit={"passed": passed},
            choice=products.plain_choice(),
            num_threads=threads,
            memory=peak_memory(),
        )


def manifest_measurement(
    manifest: Manifest,
    settings: DensitySettings,
    target: Path,
    *,
    epochs: Sequence[int] | None,
    **options: Any,
) -> DensityMeasurement:
    """Build the measurement of the densities of a manifest's checkpoints.

    Raises:
        ManifestError: If the manifest has fewer batches, or no such epoch.
    """
    if settings.num_batches > manifest.data.num_batches:
        raise ManifestError(
            f"{manifest.path}: has {manifest.data.num_batches} batches, but a density over "
            f"{settings.num_batches} was asked for. Lower --batches, or raise num_samples."
        )
    selection = Selection(
        epochs=None if epochs is None else tuple(epochs), num_batches=settings.num_batches
    )
    selection.check(manifest)
    tasks = tuple(selection.tasks(manifest))
    return DensityMeasurement(
        manifest=manifest, tasks=tasks, target=target, settings=settings, **options
    )


def model_measurement(
    name: str, settings: DensitySettings, target: Path, **options: Any
) -> DensityMeasurement:
    """Build the measurement of a model by its name with random weights.

    Raises:
        LandscapeError: If this cannot be the name of a model.
    """
    is_path = name.startswith(LOCAL_DIR) or name.endswith(".json")
    short = (
        Path(name.removeprefix(LOCAL_DIR)).stem if is_path else re.sub("[^A-Za-z0-9._-]", "-", name)
    )
    checkpoint = Checkpoint(epoch=0, path=Path(name))
    try:
        series = CheckpointSeries(name=short, model=name, label=name, checkpoints=(checkpoint,))
    except ValueError as error:
        raise LandscapeError(
            f"{name!r}: no name of a model ({error}). Name one of open_clip.list_models()."
        ) from error
    task = Task(series, checkpoint, tuple(range(settings.num_batches)))
    return DensityMeasurement(
        manifest=None, tasks=(task,), target=target, settings=settings, **options
    )
