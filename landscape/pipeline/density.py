"""Densities of whole spectra: from the quadratures of a store, or measured with probes of their own, to a figure.

What is measured goes to an HDF5 file beside the figure, one checkpoint after the other, and is not measured again.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.errors import LandscapeError, ManifestError, ObjectiveError, StoreError
from landscape.manifest import Checkpoint, CheckpointSeries, Manifest
from landscape.pipeline.audit import model_on_openmoji, verdict_of
from landscape.pipeline.density_record import density_record, density_sample, stored_densities
from landscape.pipeline.measure import attempted, device_of
from landscape.pipeline.products import ProductSettings, SeriesProducts
from landscape.store import (
    DensityRecord,
    is_density_file,
    is_store,
    read_densities,
    write_densities,
)

if TYPE_CHECKING:
    from landscape.linalg import SpectralDensity, SymmetricOperator

_Key = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class DensitySettings:
    """How densities are measured.

    Args:
        num_batches: Mini-batches of each checkpoint, the first of the protocol.
        num_probes, num_matvecs: As `landscape.density` takes them.
        dense_limit: Up to so many parameters that a batch uses, the exact spectrum is measured too.
        seed: Of the random vectors.
        products: How they are computed, and in how much memory.
    """

    num_batches: int = 1
    num_probes: int = 2
    num_matvecs: int = 64
    dense_limit: int = 3000
    seed: int = 0
    products: ProductSettings = ProductSettings()

    def facts(self, manifest: Manifest | None) -> dict[str, Any]:
        """What a stored record must agree with to be taken as it is."""
        numbers = ("num_batches", "num_probes", "num_matvecs", "dense_limit", "seed")
        facts = {name: getattr(self, name) for name in numbers}
        facts["protocol_sha256"] = None if manifest is None else manifest.protocol_digest()
        # All ways of a product compute the same matrix, but for what this rounds off.
        return facts | ({"allow_tf32": True} if self.products.allow_tf32 else {})


@dataclass(frozen=True)
class DensityReport:
    """What a command found and what it failed to.

    Attributes:
        lines: That say what was found.
        failures: A line for each batch or checkpoint that failed; the next run tries it again.
    """

    lines: tuple[str, ...]
    failures: tuple[str, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.failures

    def summary(self) -> str:
        """For a terminal."""
        return "\n".join([*(f"failed: {failure}" for failure in self.failures), *self.lines])


def density_of(source: str, output: Path, settings: DensitySettings, **options: Any) -> DensityReport:
    """Draw the densities of a source into `output`. A batch that cannot be measured costs itself alone.

    Args:
        source: A store (drawn as it is), a file of densities, a manifest, or the name of a model, which is given random weights
            and OpenMoji pictures. The last two are measured.
        options: epochs, series (of a store), title, device, unaudited, dry_run; see `landscape density --help`.

    Returns:
        What was found; not `complete` where batches failed.

    Raises:
        LandscapeError: If the source or an option is wrong.
    """
    settings.products.check("lanczos", "double-backward")
    path = Path(source)
    if is_store(path) and not is_density_file(path):
        return DensityReport(tuple(_drawn(stored_densities(path, series=options.get("series")), output, options)))
    if options.get("series"):
        raise LandscapeError(f"{source}: --series chooses among the series of a store, and this is none; leave it out.")
    if path.suffix.lower() in (".yaml", ".yml"):
        return _measured(_manifest_jobs(Manifest.load(path), settings, options), output, settings, options)
    if is_density_file(path):
        return DensityReport(tuple(_drawn(read_densities(path), output, options)))
    if path.suffix or path.exists():
        raise LandscapeError(f"{source}: not a store, a file of densities, a manifest or a model's name, so it has no density.")
    return _measured(_model_job(source, settings, options), output, settings, options)


@dataclass(frozen=True)
class _Job:
    """One checkpoint: what identifies it, and how to get the verdict of its audit and the operators of its batches."""

    facts: dict[str, Any]
    prepare: "Callable[[], tuple[bool, Iterable[SymmetricOperator]]]"

    @property
    def key(self) -> _Key:
        return self.facts["series"], self.facts["epoch"]

    def __str__(self) -> str:
        return f"{self.facts['series']} epoch {self.facts['epoch']}"


def _measured(jobs: Iterator[_Job], output: Path, settings: DensitySettings, options: dict[str, Any]) -> DensityReport:
    target = output.with_suffix(".h5")
    if target == output or (target.exists() and not is_density_file(target)):
        raise StoreError(f"{target}: would be overwritten by the densities behind the figure; name another output with -o.")
    stored = {(one.series, one.epoch): one for one in read_densities(target)} if target.exists() else {}
    found: dict[_Key, DensityRecord] = {}
    keys: list[_Key] = []
    todo: deque[_Job] = deque()
    for job in jobs:
        keys.append(job.key)
        known = stored.get(job.key)
        if known is not None and known.matches(
            checkpoint_sha256=job.facts["checkpoint_sha256"], settings=job.facts["settings"]
        ):
            found[job.key] = known
        else:
            todo.append(job)
    if options.get("dry_run"):
        lines = [f"to measure: {job}" for job in todo]
        return DensityReport((*lines, f"{target}: {len(found)} of {len(keys)} densities are measured."))
    failures: list[str] = []
    while todo:
        # Each job goes as it is done, and with the last of a series its model.
        job = todo.popleft()
        record, failed = _measure(job, settings, has_worked=bool(found))
        failures += failed
        if record is not None:
            found[job.key] = record
            write_densities(target, [found[key] for key in keys if key in found])
    if not found:
        return DensityReport((f"{output}: nothing was measured, so there is nothing to draw.",), tuple(failures))
    lines = _drawn([found[key] for key in keys if key in found], output, options)
    return DensityReport((*lines, f"{target}: the densities themselves."), tuple(failures))


def _measure(job: _Job, settings: DensitySettings, *, has_worked: bool) -> tuple[DensityRecord | None, list[str]]:
    """The density over the batches of a checkpoint that could be measured, and a line for each that could not.

    Raises:
        LandscapeError: If the input is wrong; or the model is, and nothing has worked.
    """
    from landscape.linalg import SpectralDensity

    prepared = attempted(job.prepare, has_worked=has_worked)
    if isinstance(prepared, str):
        return None, [f"{job}: {prepared}"]
    audited, operators = prepared[0], iter(prepared[1])
    found: list[SpectralDensity] = []
    dense: list[np.ndarray] = []
    failed: dict[int, str] = {}
    for index in count():
        one = attempted(partial(_measure_batch, operators, index, settings), has_worked=has_worked or bool(found))
        if one is None:
            break
        if isinstance(one, str):
            failed[index] = one
        else:
            found.append(one[0])
            dense += one[1]
    failures = [f"{job} batch {index}: {reason}" for index, reason in failed.items()]
    if not found:
        return None, failures
    together = SpectralDensity.pooled(found)
    # A record that lacks batches matches no settings, so that the next run tries them again.
    lacking = {"failed_batches": list(failed)} if failed else {}
    record = density_record(
        together,
        **job.facts | {"settings": {**job.facts["settings"], **lacking}},
        audited=audited,
        # Ritz values of exact pairs prove their signs.
        num_negative=(together.exact + together.exact_residuals < 0).sum(dim=1).numpy(),
        dense_eigenvalues=np.stack(dense) if len(dense) == len(found) else np.zeros((0, 0)),
    )
    return record, failures


def _measure_batch(
    operators: "Iterator[SymmetricOperator]", index: int, settings: DensitySettings
) -> "tuple[SpectralDensity, list[np.ndarray]] | None":
    """The density of the next operator, and its exact spectrum where it is small; None after the last one.

    Raises:
        ObjectiveError, NumericalError, MemoryLimitError: If there is none.
    """
    from landscape.linalg import dense_spectrum, density

    operator = next(operators, None)
    if operator is None:
        return None
    found = density(
        operator, num_probes=settings.num_probes, num_matvecs=settings.num_matvecs, seed=settings.seed + 7919 * index
    )
    small = operator.n - operator.num_unused <= settings.dense_limit
    return found, [dense_spectrum(operator).numpy()] if small else []


def _manifest_jobs(manifest: Manifest, settings: DensitySettings, options: dict[str, Any]) -> Iterator[_Job]:
    wanted = options.get("epochs")
    if settings.num_batches > manifest.data.num_batches:
        raise ManifestError(
            f"{manifest.path}: has {manifest.data.num_batches} batches, but a density over {settings.num_batches} was asked for. "
            "Lower --batches, or raise num_samples."
        )
    known = sorted({one.epoch for series in manifest.series for one in series.checkpoints})
    if wanted is not None and not set(wanted) <= set(known):
        raise ManifestError(f"{manifest.path}: no series has an epoch {sorted(set(wanted) - set(known))[0]}; it has {known}.")
    for series in manifest.series:
        subject_of = _SubjectOf(manifest, series, settings.products, options)
        for checkpoint in series.checkpoints:
            if wanted is None or checkpoint.epoch in wanted:
                facts = {
                    "series": series.name,
                    "label": series.label,
                    "model": series.model,
                    "epoch": checkpoint.epoch,
                    "checkpoint_sha256": checkpoint.verify(),
                    "settings": settings.facts(manifest),
                }
                yield _Job(facts, partial(subject_of.operators, checkpoint, settings.num_batches))


class _SubjectOf:
    """The model of a series, built and audited when a checkpoint of it is measured first."""

    def __init__(
        self, manifest: Manifest, series: CheckpointSeries, products: ProductSettings, options: dict[str, Any]
    ) -> None:
        self.manifest, self.series, self.options = manifest, series, options
        self.products = SeriesProducts(products)
        self._ready: tuple[bool, Any] | None = None

    def operators(self, checkpoint: Checkpoint, num_batches: int) -> "tuple[bool, Iterable[SymmetricOperator]]":
        """The verdict, and the Hessians of the first batches with the weights of a checkpoint."""
        if self._ready is None:
            self._ready = self._build()
        audited, subject = self._ready
        subject.load(checkpoint)
        batches = map(subject.batch, range(num_batches))
        return audited, self.products.operators(subject.objective, subject.params, batches)

    def _build(self) -> tuple[bool, Any]:
        from landscape.clip.image_text import open_pairs
        from landscape.pipeline.subject import Subject

        device = device_of(self.options.get("device"))
        subject = Subject.of(self.manifest, self.series, open_pairs(self.manifest.data), device=device)
        unaudited = bool(self.options.get("unaudited"))
        verdict = verdict_of(subject, self.manifest, self.series, unaudited=unaudited, hvp="double-backward")
        return bool(verdict["passed"]), subject


def _model_job(name: str, settings: DensitySettings, options: dict[str, Any]) -> Iterator[_Job]:
    def prepare() -> "tuple[bool, Iterable[SymmetricOperator]]":
        from landscape.clip.objectives import contrastive_objective
        from landscape.curvature import audit_objective

        model, batches = model_on_openmoji(name, device_of(options.get("device")), num_batches=settings.num_batches)
        audited = False
        if not options.get("unaudited"):
            report = audit_objective(contrastive_objective, model, batches[0])
            audited = report.passed
            if not audited:
                raise ObjectiveError(
                    f"{name}: the audit failed for {', '.join(report.blamed[:3])}, so the density would not be the Hessian's. "
                    f"See `landscape audit {name}`, or measure anyway, and marked so, with --unaudited."
                )
        objective, params = contrastive_objective(model)
        return audited, SeriesProducts(settings.products).operators(objective, params, batches)

    facts = {"series": name.replace("/", "-"), "label": name, "model": name, "epoch": 0, "checkpoint_sha256": ""}
    yield _Job(facts | {"settings": settings.facts(None)}, prepare)


def _drawn(records: Sequence[DensityRecord], output: Path, options: dict[str, Any]) -> list[str]:
    from landscape.figures import density_figure, save_figure

    samples = [density_sample(one) for one in records]
    unaudited = not all(one.audited for one in records)
    try:
        drawn = density_figure(samples, epochs=options.get("epochs"), title=options.get("title"), unaudited=unaudited)
        save_figure(drawn, output)
    except ValueError as error:
        raise StoreError(f"{output}: {error}") from error
    lines = [line for record, sample in zip(records, samples) for line in _summary(record, sample.density)]
    return [*lines, f"{output}: {len({one.series for one in records})} series, {len(records)} densities."]


def _summary(record: DensityRecord, density: "SpectralDensity") -> list[str]:
    """The numbers of one checkpoint, estimates and certificates under their own names."""
    failed, batches = record.settings.get("failed_batches", ()), f"{density.num_operators} batches"
    if failed:
        numbers = ", ".join(map(str, failed))
        batches = f"{density.num_operators} of {density.num_operators + len(failed)} batches ({numbers} failed)"
    lines = [
        f"{record.series} epoch {record.epoch}: {record.n:,} eigenvalues, {batches}, "
        f"{density.num_probes} probes, {record.num_matvecs} products"
    ]
    for name, estimate in (
        ("trace", density.trace()),
        ("sum of squares", density.sum_of_squares()),
        ("negative share", density.negative_share()),
        ("negative mass", density.negative_mass()),
    ):
        lines.append(f"  estimated {name}: {estimate}")
    proved = record.num_negative[record.num_negative >= 0]
    if proved.size:
        several = "" if proved.min() == proved.max() else f" to {proved.max()}, by batch"
        lines.append(f"  certified: at least {proved.min()}{several} negative eigenvalues")
    return lines
