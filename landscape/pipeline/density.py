"""Densities of whole spectra, as a figure.

They come from the quadratures of a store, or are measured with their own probes. Measurements go to
an HDF5 file beside the figure, batch by batch, and are not repeated.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from landscape.errors import LandscapeError, StoreError
from landscape.figures import density_figure, save_figure
from landscape.figures.density_panels import check_page
from landscape.figures.density_records import density_sample, stored_densities
from landscape.figures.from_store import check_figure_name
from landscape.json_text import json_text
from landscape.manifest import Manifest
from landscape.pipeline.density_measurement import (
    DensityMeasurement,
    DensitySettings,
    batches_of,
    joined_record,
    manifest_measurement,
    model_measurement,
)
from landscape.pipeline.density_texts import DensityRow, csv_text, json_values, table_text
from landscape.pipeline.remaining import refuse_preconditioned
from landscape.pipeline.runner import run_measurement
from landscape.pipeline.series import check_model_name
from landscape.store import DensityRecord, is_density_file, is_store, read_densities
from landscape.terminal import wrapped
from landscape.workers.crew import WorkerSettings


@dataclass(frozen=True)
class DensityReport:
    """Results and failures of a command.

    Attributes:
        lines: Lines about the files.
        failures: A line for each batch or checkpoint that failed; the next run tries it again.
        rows: The numbers of each checkpoint that is drawn.
    """

    lines: tuple[str, ...]
    failures: tuple[str, ...] = ()
    rows: tuple[DensityRow, ...] = ()

    @property
    def complete(self) -> bool:
        return not self.failures

    def messages(self) -> list[str]:
        """Return the failures, and the lines about the files."""
        return [*(f"failed: {failure}" for failure in self.failures), *self.lines]

    def numbers(self, kind: str, *, width: int | None = None) -> str:
        """Format the numbers as "table", "csv" or "json".

        Args:
            width: Columns of a table; 120 by default.
        """
        if kind == "csv":
            return csv_text(self.rows)
        if kind == "json":
            values = json_values(self.rows)
            return json_text({"kind": "density", "failures": self.failures, "checkpoints": values})
        headlines = [wrapped(row.headline, width) for row in self.rows]
        tables = [table_text(self.rows, width=width)] if self.rows else []
        return "".join(f"{line}\n" for line in (*headlines, *tables))

    def summary(self) -> str:
        """Format the whole report as text."""
        return self.numbers("table") + "\n".join(self.messages())


def density_of(
    source: str, output: Path, settings: DensitySettings, **options: Any
) -> DensityReport:
    """Draw the densities of a source into `output`.

    A batch that cannot be measured affects no other.

    Args:
        source: A store (drawn as it is), a file of densities, a manifest, or the name of a model,
            which gets random weights and OpenMoji pictures. The last two are measured.
        options: epochs, series (of a store), title, device, unaudited, dry_run, workers; see
            `landscape density --help`.

    Returns:
        The report; not `complete` where batches failed.

    Raises:
        LandscapeError: If the source or an option is wrong.
    """
    settings.products.check("lanczos", "double-backward")
    check_figure_name(output)
    path = Path(source)
    if is_store(path) and not is_density_file(path):
        return _drawn(stored_densities(path, series=options.get("series")), output, options)
    if options.get("series"):
        raise LandscapeError(
            f"{source}: --series chooses among the series of a store, and this is none; leave it "
            "out."
        )
    how: dict[str, Any] = {
        "unaudited": bool(options.get("unaudited")),
        "device": options.get("device"),
    }
    target = output.with_suffix(".h5")
    if path.suffix.lower() in (".yaml", ".yml"):
        manifest = Manifest.load(path, checkpoints_exist=False)
        refuse_preconditioned(manifest, "the density of a manifest")
        measurement = manifest_measurement(
            manifest, settings, target, epochs=options.get("epochs"), **how
        )
        return _measured(measurement, output, options)
    if is_density_file(path):
        return _drawn(read_densities(path), output, options)
    check_model_name(source, "a store, a file of densities, a manifest or the name of a model")
    return _measured(model_measurement(source, settings, target, **how), output, options)


def _measured(
    measurement: DensityMeasurement, output: Path, options: dict[str, Any]
) -> DensityReport:
    """Measure what is missing, and draw all."""
    target, tasks = measurement.target, measurement.tasks
    try:
        check_page(len({task.checkpoint.epoch for task in tasks}), options.get("page_options"))
    except ValueError as error:
        raise StoreError(f"{output}: {error}") from error
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
    # A record may hold more batches than this command requests.
    requests = measurement.requests()
    records = [
        _first_batches(record, requests[key], measurement.settings)
        for key, record in file.known.items()
    ]
    if not (some := [record for record in records if record is not None]):
        return DensityReport(
            (f"{output}: nothing was measured, so there is nothing to draw.",), failures
        )
    report = _drawn(some, output, options)
    stored = f"{target}: the densities themselves."
    return replace(report, lines=(*report.lines, stored), failures=failures)


def _first_batches(
    record: DensityRecord, facts: Mapping[str, Any], settings: DensitySettings
) -> DensityRecord | None:
    """Return the requested batches of a record, if any."""
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


def _drawn(
    records: Sequence[DensityRecord], output: Path, options: dict[str, Any]
) -> DensityReport:
    samples = [density_sample(record) for record in records]
    unaudited = not all(record.audited for record in records)
    try:
        drawn = density_figure(
            samples,
            epochs=options.get("epochs"),
            title=options.get("title"),
            unaudited=unaudited,
            page_options=options.get("page_options"),
        )
        save_figure(drawn, output)
    except ValueError as error:
        raise StoreError(f"{output}: {error}") from error
    wanted = options.get("epochs")
    rows = tuple(
        DensityRow(record, sample.density)
        for record, sample in zip(records, samples)
        if wanted is None or record.epoch in wanted
    )
    count = f"{len(rows)} densit{'y' if len(rows) == 1 else 'ies'}"
    line = f"{output}: {len({row.record.series for row in rows})} series, {count}."
    return DensityReport((line,), rows=rows)
