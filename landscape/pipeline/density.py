"""Densities of whole spectra: from the quadratures of a store, or measured with probes of their own, to a figure.

What is measured goes to an HDF5 file beside the figure, batch by batch, and is not measured again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from landscape.errors import LandscapeError, StoreError
from landscape.figures.density_records import density_sample, stored_densities
from landscape.figures.from_store import check_figure_name
from landscape.manifest import Manifest
from landscape.manifest.trained import LOCAL_DIR
from landscape.pipeline.density_measurement import (
    DensityMeasurement,
    DensitySettings,
    batches_of,
    joined_record,
    manifest_measurement,
    model_measurement,
)
from landscape.pipeline.runner import run_measurement
from landscape.store import DensityRecord, is_density_file, is_store, read_densities
from landscape.workers.crew import WorkerSettings

if TYPE_CHECKING:
    from landscape.linalg import SpectralDensity


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


def density_of(
    source: str, output: Path, settings: DensitySettings, **options: Any
) -> DensityReport:
    """Draw the densities of a source into `output`. A batch that cannot be measured costs itself alone.

    Args:
        source: A store (drawn as it is), a file of densities, a manifest, or the name of a model, which is given random weights
            and OpenMoji pictures. The last two are measured.
        options: epochs, series (of a store), title, device, unaudited, dry_run, workers; see `landscape density --help`.

    Returns:
        What was found; not `complete` where batches failed.

    Raises:
        LandscapeError: If the source or an option is wrong.
    """
    settings.products.check("lanczos", "double-backward")
    check_figure_name(output)
    path = Path(source)
    if is_store(path) and not is_density_file(path):
        return DensityReport(
            tuple(_drawn(stored_densities(path, series=options.get("series")), output, options))
        )
    if options.get("series"):
        raise LandscapeError(
            f"{source}: --series chooses among the series of a store, and this is none; leave it out."
        )
    how: dict[str, Any] = {
        "unaudited": bool(options.get("unaudited")),
        "device": options.get("device"),
    }
    target = output.with_suffix(".h5")
    if path.suffix.lower() in (".yaml", ".yml"):
        manifest = Manifest.load(path, checkpoints_exist=False)
        measurement = manifest_measurement(
            manifest, settings, target, epochs=options.get("epochs"), **how
        )
        return _measured(measurement, output, options)
    if is_density_file(path):
        return DensityReport(tuple(_drawn(read_densities(path), output, options)))
    names_architecture = source.startswith(LOCAL_DIR) or path.suffix.lower() == ".json"
    if (path.suffix or path.exists()) and not names_architecture:
        raise LandscapeError(
            f"{source}: not a store, a file of densities, a manifest or a model's name, so it has no density."
        )
    return _measured(model_measurement(source, settings, target, **how), output, options)


def _measured(
    measurement: DensityMeasurement, output: Path, options: dict[str, Any]
) -> DensityReport:
    """Measure what is missing, and draw all."""
    target, tasks = measurement.target, measurement.tasks
    failures: tuple[str, ...] = ()
    if options.get("dry_run"):
        left = measurement.left(measurement.file())
        lines = [f"to measure: {task.place}" for task in left]
        return DensityReport(
            (*lines, f"{target}: {len(tasks) - len(left)} of {len(tasks)} densities are measured.")
        )
    workers = options.get("workers") or WorkerSettings()
    if workers.is_elsewhere or measurement.left(measurement.file()):
        failures = run_measurement(measurement, workers=workers).failures
    file = measurement.file()
    # A record may be of more batches than this command asks for.
    requests = measurement.requests()
    records = [
        _first_batches(record, requests[key], measurement.settings)
        for key, record in file.known.items()
    ]
    if not (some := [record for record in records if record is not None]):
        return DensityReport(
            (f"{output}: nothing was measured, so there is nothing to draw.",), failures
        )
    return DensityReport(
        (*_drawn(some, output, options), f"{target}: the densities themselves."), failures
    )


def _first_batches(
    record: DensityRecord, facts: Mapping[str, Any], settings: DensitySettings
) -> DensityRecord | None:
    """The part of a record that is asked for; None where that is none of it."""
    num_batches = settings.num_batches
    if record.settings["num_batches"] <= num_batches:
        return record
    wanted = {index: batch for index, batch in batches_of(record).items() if index < num_batches}
    used = record.settings.get("as_trained", {})
    return (
        joined_record(facts, num_batches, wanted, audited=record.audited, used=used)
        if wanted
        else None
    )


def _drawn(records: Sequence[DensityRecord], output: Path, options: dict[str, Any]) -> list[str]:
    from landscape.figures import density_figure, save_figure

    samples = [density_sample(one) for one in records]
    unaudited = not all(one.audited for one in records)
    try:
        drawn = density_figure(
            samples, epochs=options.get("epochs"), title=options.get("title"), unaudited=unaudited
        )
        save_figure(drawn, output)
    except ValueError as error:
        raise StoreError(f"{output}: {error}") from error
    wanted = options.get("epochs")
    told = [
        (record, one.density)
        for record, one in zip(records, samples)
        if wanted is None or record.epoch in wanted
    ]
    lines = [line for record, density in told for line in _summary(record, density)]
    count = f"{len(told)} densit{'y' if len(told) == 1 else 'ies'}"
    return [*lines, f"{output}: {len({record.series for record, _ in told})} series, {count}."]


def _summary(record: DensityRecord, density: "SpectralDensity") -> list[str]:
    """The numbers of one checkpoint, estimates and certificates under their own names."""
    lines = [
        f"{record.series} epoch {record.epoch}: {record.n:,} eigenvalues, {record.num_batches_in_words()}, "
        f"{density.num_probes} probes, {record.num_matvecs} products"
    ]
    lines += [
        f"  estimated {name}: {estimate!r}" for name, estimate in density.probed.estimates().items()
    ]
    proved = record.num_negative[record.num_negative >= 0]
    if proved.size:
        most, by_batch = (
            ("", "") if proved.min() == proved.max() else (f" to {proved.max()}", ", by batch")
        )
        lines.append(f"  certified: at least {proved.min()}{most} negative eigenvalues{by_batch}")
    return lines
