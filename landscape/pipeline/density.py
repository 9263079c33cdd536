"""Densities of whole spectra: from the quadratures of a store, or measured with probes of their own, to a figure.

What is measured goes to an HDF5 file beside the figure, one checkpoint after the other, and is not measured again.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.errors import LandscapeError, ManifestError, ObjectiveError, StoreError
from landscape.manifest import Checkpoint, CheckpointSeries, Manifest
from landscape.pipeline.audit import model_on_openmoji, verdict_of
from landscape.pipeline.products import ProductSettings, SeriesProducts
from landscape.store import (
    DensityRecord,
    SpectraTable,
    SpectrumStore,
    is_audited,
    is_density_file,
    is_store,
    read_densities,
    write_densities,
)

if TYPE_CHECKING:
    from landscape.linalg import Quadrature, SpectralDensity, SymmetricOperator

_ARRAYS = ("nodes", "weights", "operators", "remainders", "exact", "exact_residuals", "num_zeros")
_NUMBERS = ("n", "resolution", "rounding", "num_matvecs", "orthogonality_defect")


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


def density_of(source: str, output: Path, settings: DensitySettings, **options: Any) -> list[str]:
    """Draw the densities of a source into `output`.

    Args:
        source: A store (drawn as it is), a file of densities, a manifest, or the name of a model, which is given random weights
            and OpenMoji pictures. The last two are measured.
        options: epochs, title, device, unaudited, dry_run; see `landscape density --help`.

    Returns:
        Lines that say what was found.

    Raises:
        LandscapeError: If the source or an option is wrong.
    """
    settings.products.check("lanczos", "double-backward")
    path = Path(source)
    if path.suffix.lower() in (".yaml", ".yml"):
        return _measured(_manifest_jobs(Manifest.load(path), settings, options), output, settings, options)
    if is_density_file(path):
        return _drawn(read_densities(path), output, options)
    if is_store(path):
        return _drawn(_stored(path), output, options)
    if path.suffix or path.exists():
        raise LandscapeError(f"{source}: not a store, a file of densities, a manifest or a model's name, so it has no density.")
    return _measured(_model_job(source, settings, options), output, settings, options)


@dataclass(frozen=True)
class _Job:
    """One checkpoint: what identifies it, and how to get the verdict of its audit and the operators of its batches."""

    facts: dict[str, Any]
    prepare: "Callable[[], tuple[bool, Iterable[SymmetricOperator]]]"


def _measured(jobs: Iterator[_Job], output: Path, settings: DensitySettings, options: dict[str, Any]) -> list[str]:
    target = output.with_suffix(".h5")
    if target == output or (target.exists() and not is_density_file(target)):
        raise StoreError(f"{target}: would be overwritten by the densities behind the figure; name another output with -o.")
    stored = {(one.series, one.epoch): one for one in read_densities(target)} if target.exists() else {}
    records: list[DensityRecord] = []
    todo: list[str] = []
    for job in jobs:
        facts = job.facts
        known = stored.get((facts["series"], facts["epoch"]))
        if known is not None and known.matches(checkpoint_sha256=facts["checkpoint_sha256"], settings=facts["settings"]):
            records.append(known)
        elif options.get("dry_run"):
            todo.append(f"to measure: {facts['series']} epoch {facts['epoch']}")
        else:
            records.append(_measure(job, settings))
            write_densities(target, records)
    if options.get("dry_run"):
        return [*todo, f"{target}: {len(records)} of {len(records) + len(todo)} densities are measured."]
    return [*_drawn(records, output, options), f"{target}: the densities themselves."]


def _measure(job: _Job, settings: DensitySettings) -> DensityRecord:
    from landscape.linalg import SpectralDensity, dense_spectrum, density

    audited, operators = job.prepare()
    found, dense = [], []
    for index, operator in enumerate(operators):
        one = density(
            operator, num_probes=settings.num_probes, num_matvecs=settings.num_matvecs, seed=settings.seed + 7919 * index
        )
        found.append(one)
        if operator.n - operator.num_unused <= settings.dense_limit:
            dense.append(dense_spectrum(operator).numpy())
    together = SpectralDensity.pooled(found)
    arrays = {name: getattr(together, name).numpy() for name in _ARRAYS}
    numbers = {name: getattr(together, name) for name in _NUMBERS}
    # Ritz values of exact pairs prove their signs.
    proved = (together.exact + together.exact_residuals < 0).sum(dim=1).numpy()
    return DensityRecord(
        **job.facts,
        audited=audited,
        **arrays,
        **numbers,
        num_negative=proved,
        dense_eigenvalues=np.stack(dense) if len(dense) == len(found) else np.zeros((0, 0)),
    )


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
        from landscape.pipeline.measure import device_of
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
        from landscape.pipeline.measure import device_of

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


def _stored(path: Path) -> list[DensityRecord]:
    """The quadratures of a store's records as densities.

    Raises:
        StoreError: If there are none.
    """
    with SpectrumStore.open(path) as store:
        dtype = store.plan.protocol["hessian"]["dtype"]
        tables = [store.records(name, epoch) for name in store.series() for epoch in store.epochs(name)]
    if not tables:
        raise StoreError(f"{path}: it holds no eigenvalues yet, so there is nothing to draw. Run `landscape spectra` first.")
    return [_record_of(table, path, dtype) for table in tables]


def _record_of(table: SpectraTable, path: Path, dtype: str) -> DensityRecord:
    """One operator and one probe per batch.

    Raises:
        StoreError: If a batch has no quadrature, or one that does not know its own error.
    """
    from landscape.linalg import SpectralDensity
    from landscape.pipeline.subject import DTYPES

    place = f"{path}: {table.series} epoch {table.epoch}"
    rules = _quadratures_of(table, place)
    try:
        one = SpectralDensity.from_quadratures(rules, table.num_params, dtype=DTYPES[dtype])
    except ValueError as error:
        raise StoreError(
            f"{place}: {error} Raise max_matvecs or lower tol in the manifest, or give the manifest to `landscape density`."
        ) from error
    return DensityRecord(
        series=table.series,
        label=table.label,
        model=table.model,
        epoch=table.epoch,
        n=table.num_params,
        checkpoint_sha256=table.checkpoint_sha256,
        settings={},
        audited=is_audited(table.extras),
        resolution=one.resolution,
        rounding=one.rounding,
        num_matvecs=int(table.num_matvecs.sum()),
        orthogonality_defect=float(np.max(table.orthogonality_defect)),
        num_negative=table.num_negative,
        **{array: getattr(one, array).numpy() for array in _ARRAYS},
    )


def _quadratures_of(table: SpectraTable, place: str) -> "list[Quadrature]":
    """The quadrature of every batch.

    Raises:
        StoreError: If a batch has none; says why.
    """
    import torch

    from landscape.linalg import Quadrature

    rows = [(x[~np.isnan(x)], w[~np.isnan(w)]) for x, w in zip(table.ritz_values, table.ritz_weights)]
    missing = [int(batch) for batch, (nodes, _) in zip(table.batch, rows) if not nodes.size]
    if missing:
        recycled = "start" in table.settings
        why = "a start from recycled eigenvectors is no random probe" if recycled else "power iteration leaves none"
        raise StoreError(
            f"{place}: batch {missing[0]} has no quadrature, since {why}, so there is no density. Measure "
            f"{'without --recycle' if recycled else 'with the method lanczos'} into another file, or give the manifest to "
            "`landscape density`."
        )
    return [Quadrature(torch.from_numpy(nodes), torch.from_numpy(weights)) for nodes, weights in rows]


def spectral_density(record: DensityRecord) -> "SpectralDensity":
    """The record with its methods."""
    import torch

    from landscape.linalg import SpectralDensity

    facts: dict[str, Any] = {name: torch.from_numpy(np.asarray(getattr(record, name))) for name in _ARRAYS}
    return SpectralDensity(**facts, **{name: getattr(record, name) for name in _NUMBERS})


def _drawn(records: Sequence[DensityRecord], output: Path, options: dict[str, Any]) -> list[str]:
    from landscape.figures import DensitySample, density_figure, save_figure

    samples = [
        DensitySample(
            series=one.series,
            label=one.label,
            epoch=one.epoch,
            density=spectral_density(one),
            dense=one.dense_eigenvalues if one.dense_eigenvalues.size else None,
        )
        for one in records
    ]
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
    lines = [
        f"{record.series} epoch {record.epoch}: {record.n:,} eigenvalues, {density.num_operators} batches, "
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
