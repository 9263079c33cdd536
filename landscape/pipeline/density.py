"""Densities of whole spectra: from the quadratures of a store, or measured with probes of their own, to a figure.

What is measured goes to an HDF5 file beside the figure, batch by batch, and is not measured again.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.errors import LandscapeError, NumericalError, StoreError
from landscape.manifest import Manifest
from landscape.manifest.trained import LOCAL_DIR
from landscape.pipeline.density_jobs import DensityJob, DensitySettings, manifest_jobs, model_job
from landscape.pipeline.density_record import density_record, density_sample, spectral_density, stored_densities
from landscape.pipeline.density_shelf import DensityShelf
from landscape.pipeline.draw import check_figure_name
from landscape.pipeline.measure import Show, attempted, progress_shown, show_notes
from landscape.store import LARGEST_VALUE, DensityRecord, is_density_file, is_store, parts_folder, read_densities
from landscape.store.lock import FolderLock

if TYPE_CHECKING:
    from landscape.linalg import SpectralDensity, SymmetricOperator


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
    check_figure_name(output)
    path = Path(source)
    if is_store(path) and not is_density_file(path):
        return DensityReport(tuple(_drawn(stored_densities(path, series=options.get("series")), output, options)))
    if options.get("series"):
        raise LandscapeError(f"{source}: --series chooses among the series of a store, and this is none; leave it out.")
    if path.suffix.lower() in (".yaml", ".yml"):
        manifest = Manifest.load(path, checkpoints_exist=False)
        jobs = manifest_jobs(manifest, settings, options | {"target": output.with_suffix(".h5")})
        return _measured(jobs, output, settings, options)
    if is_density_file(path):
        return DensityReport(tuple(_drawn(read_densities(path), output, options)))
    names_architecture = source.startswith(LOCAL_DIR) or path.suffix.lower() == ".json"
    if (path.suffix or path.exists()) and not names_architecture:
        raise LandscapeError(f"{source}: not a store, a file of densities, a manifest or a model's name, so it has no density.")
    return _measured(model_job(source, settings, options), output, settings, options)


def _measured(jobs: Iterator[DensityJob], output: Path, settings: DensitySettings, options: dict[str, Any]) -> DensityReport:
    target = output.with_suffix(".h5")
    asked, failures = list(jobs), []
    look = partial(
        DensityShelf, target, asked, num_batches=settings.num_batches, unaudited=bool(options.get("unaudited"))
    )
    shelf = look()
    if options.get("dry_run"):
        lines = [f"to measure: {asked[index]}" for index in shelf.todo]
        return DensityReport((*lines, f"{target}: {len(asked) - len(shelf.todo)} of {len(asked)} densities are measured."))
    if shelf.todo:
        lock = FolderLock(parts_folder(target), output=target)
        try:
            # Another run may have gone on since.
            shelf = look()
            failures = _measure_all(asked, shelf, settings)
        finally:
            lock.release(remove_folder=True)
    # A record may be of more batches than this command asks for.
    found = [_first_batches(job, shelf.known[job.key], settings) for job in asked if job.key in shelf.known]
    records = [record for record in found if record is not None]
    if not records:
        return DensityReport((f"{output}: nothing was measured, so there is nothing to draw.",), tuple(failures))
    lines = _drawn(records, output, options)
    return DensityReport((*lines, f"{target}: the densities themselves."), tuple(failures))


def _measure_all(jobs: Sequence[DensityJob], shelf: DensityShelf, settings: DensitySettings) -> list[str]:
    """Measure what is left to do; a line for each batch that failed."""
    todo = [jobs[index] for index in shelf.todo]
    show_notes(dict.fromkeys(note for job in todo for note in job.check()), shown=None)
    failures: list[str] = []
    num_known = sum(index < settings.num_batches for one in shelf.known.values() for index in one.batches)
    with progress_shown(len(jobs) * settings.num_batches, num_known, shown=None) as show:
        for job in todo:
            keep = partial(shelf.keep, job.key)
            failures += _measure(job, settings, shelf.known.get(job.key), keep, has_worked=bool(shelf.known), show=show)
    return failures


@dataclass(frozen=True)
class _Batch:
    """The density of one batch, and all its eigenvalues where they are few."""

    density: "SpectralDensity"
    dense: np.ndarray | None


def _measure(
    job: DensityJob,
    settings: DensitySettings,
    known: DensityRecord | None,
    keep: Callable[[DensityRecord], None],
    *,
    has_worked: bool,
    show: Show,
) -> list[str]:
    """Measure the batches of a checkpoint that are asked for and not known; the record of all that are is kept after each.

    Returns:
        A line for each batch that failed.

    Raises:
        LandscapeError: If the input is wrong; or the model is, and nothing has worked.
    """
    show(str(job), 0)
    measured = {} if known is None else dict(zip(known.batches, _batches_of(known)))
    todo = [index for index in range(settings.num_batches) if index not in measured]
    prepared = attempted(partial(job.prepare, todo), has_worked=has_worked)
    if isinstance(prepared, str):
        return [f"{job}: {prepared}"]
    audited, operators = prepared[0], iter(prepared[1])
    num_batches = max(settings.num_batches, 0 if known is None else known.settings["num_batches"])
    failures = []
    for index in todo:
        one = attempted(partial(_measure_batch, operators, index, settings), has_worked=has_worked or bool(measured))
        if isinstance(one, str):
            failures.append(f"{job} batch {index}: {one}")
        else:
            measured[index] = one
            keep(_record(job, num_batches, measured, audited=audited, used=job.used()))
        show("", 1)
    if measured and (failures or not todo):
        # With what is missing now, and a new verdict.
        nothing_new = len(failures) == len(todo)
        audited = audited or (nothing_new and known is not None and known.audited)
        keep(_record(job, num_batches, measured, audited=audited, used=job.used()))
    # Asked once more, it takes note of the way that the last operator has come to, for the next checkpoint.
    next(operators, None)
    return failures


def _batches_of(record: DensityRecord) -> list[_Batch]:
    parts = spectral_density(record).by_operator()
    dense: list[Any] = list(record.dense_eigenvalues) if record.dense_eigenvalues.size else [None] * len(parts)
    return [_Batch(density, values) for density, values in zip(parts, dense)]


def _first_batches(job: DensityJob, record: DensityRecord, settings: DensitySettings) -> DensityRecord | None:
    """The part of a record that is asked for; None where that is none of it."""
    if record.settings["num_batches"] <= settings.num_batches:
        return record
    wanted = {i: one for i, one in zip(record.batches, _batches_of(record)) if i < settings.num_batches}
    used = record.settings.get("as_trained", {})
    return _record(job, settings.num_batches, wanted, audited=record.audited, used=used) if wanted else None


def _record(
    job: DensityJob, num_batches: int, measured: dict[int, _Batch], *, audited: bool, used: dict[str, Any]
) -> DensityRecord:
    """The batches that are measured, of the first so many, as one record."""
    from landscape.linalg import SpectralDensity

    batches = [measured[index] for index in sorted(measured)]
    together = SpectralDensity.pooled([one.density for one in batches])
    dense = [one.dense for one in batches if one.dense is not None]
    missing = [index for index in range(num_batches) if index not in measured]
    which: dict[str, Any] = {"num_batches": num_batches} | ({"missing_batches": missing} if missing else {})
    which |= {"as_trained": used} if used else {}
    which |= {"operator": together.checked} if together.checked else {}
    return density_record(
        together,
        **job.facts | {"settings": job.facts["settings"] | which},
        audited=audited,
        # Ritz values of exact pairs prove their signs.
        num_negative=(together.exact + together.exact_residuals < 0).sum(dim=1).numpy(),
        dense_eigenvalues=np.stack(dense) if len(dense) == len(batches) else np.zeros((0, 0)),
    )


def _measure_batch(operators: "Iterator[SymmetricOperator]", index: int, settings: DensitySettings) -> _Batch:
    """The density of the next operator, that of batch `index`, and its exact spectrum where it is small.

    Raises:
        ObjectiveError, NumericalError, MemoryLimitError: If there is none.
    """
    from landscape.linalg import dense_spectrum, density

    operator = next(operators)
    found = density(
        operator, num_probes=settings.num_probes, num_matvecs=settings.num_matvecs, seed=settings.seed + 7919 * index
    )
    if float(found.nodes.abs().nan_to_num().max()) > LARGEST_VALUE:
        raise NumericalError(f"batch {index} has a Ritz value beyond {LARGEST_VALUE:.3g}: products overflowed. Scale the loss.")
    small = operator.n - operator.num_unused <= settings.dense_limit
    return _Batch(found, dense_spectrum(operator).numpy() if small else None)


def _drawn(records: Sequence[DensityRecord], output: Path, options: dict[str, Any]) -> list[str]:
    from landscape.figures import density_figure, save_figure

    samples = [density_sample(one) for one in records]
    unaudited = not all(one.audited for one in records)
    try:
        drawn = density_figure(samples, epochs=options.get("epochs"), title=options.get("title"), unaudited=unaudited)
        save_figure(drawn, output)
    except ValueError as error:
        raise StoreError(f"{output}: {error}") from error
    wanted = options.get("epochs")
    told = [(record, one.density) for record, one in zip(records, samples) if wanted is None or record.epoch in wanted]
    lines = [line for record, density in told for line in _summary(record, density)]
    count = f"{len(told)} densit{'y' if len(told) == 1 else 'ies'}"
    return [*lines, f"{output}: {len({record.series for record, _ in told})} series, {count}."]


def _summary(record: DensityRecord, density: "SpectralDensity") -> list[str]:
    """The numbers of one checkpoint, estimates and certificates under their own names."""
    lines = [
        f"{record.series} epoch {record.epoch}: {record.n:,} eigenvalues, {record.num_batches_in_words()}, "
        f"{density.num_probes} probes, {record.num_matvecs} products"
    ]
    lines += [f"  estimated {name}: {estimate!r}" for name, estimate in density.probed.estimates().items()]
    proved = record.num_negative[record.num_negative >= 0]
    if proved.size:
        most, by_batch = ("", "") if proved.min() == proved.max() else (f" to {proved.max()}", ", by batch")
        lines.append(f"  certified: at least {proved.min()}{most} negative eigenvalues{by_batch}")
    return lines
