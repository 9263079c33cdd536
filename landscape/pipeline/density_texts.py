"""The numbers of densities as a table for a terminal, CSV, and JSON values."""

import csv
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from landscape.compare.result import plain
from landscape.report.facts import estimate_values
from landscape.store import DensityRecord
from landscape.terminal import TextTable

if TYPE_CHECKING:
    from landscape.linalg import Estimate, SpectralDensity

FORMATS = ("table", "csv", "json")
CSV_COLUMNS = (
    "series label model epoch num_params num_batches num_probes num_matvecs audited "
    "least_num_negative most_num_negative quantity value standard_error probe_error batch_error "
    "low high is_known"
).split()


@dataclass(frozen=True, eq=False)
class DensityRow:
    """The numbers of the density of a checkpoint."""

    record: DensityRecord
    density: "SpectralDensity"

    @property
    def estimates(self) -> "Mapping[str, Estimate]":
        return self.density.probed.estimates()

    @property
    def num_negative(self) -> tuple[int, int] | None:
        """Return certified lower bounds of the number of negative eigenvalues.

        They are the smallest and the largest over batches; None where there is none.
        """
        proved = self.record.num_negative[self.record.num_negative >= 0]
        return (int(proved.min()), int(proved.max())) if proved.size else None

    @property
    def headline(self) -> str:
        record = self.record
        return (
            f"{record.series} epoch {record.epoch}: {record.n:,} eigenvalues, "
            f"{record.num_batches_in_words()}, {self.density.num_probes} probes, "
            f"{record.num_matvecs} products"
        )

    def cells(self) -> tuple[str, ...]:
        proved = self.num_negative
        least = "" if proved is None else f"at least {proved[0]}"
        more = "" if proved is None or proved[0] == proved[1] else f" to {proved[1]}, by batch"
        return (
            self.record.series,
            str(self.record.epoch),
            *(str(estimate) for estimate in self.estimates.values()),
            least + more,
        )

    def facts(self) -> dict[str, Any]:
        """Return the facts that do not depend on the quantity."""
        record, proved = self.record, self.num_negative or (None, None)
        return {
            "series": record.series,
            "label": record.label,
            "model": record.model,
            "epoch": record.epoch,
            "num_params": record.n,
            "num_batches": len(record.num_zeros),
            "num_probes": self.density.num_probes,
            "num_matvecs": record.num_matvecs,
            "audited": record.audited,
            "least_num_negative": proved[0],
            "most_num_negative": proved[1],
        }


def table_text(rows: Sequence[DensityRow], *, width: int | None) -> str:
    """Format the estimates, a row per checkpoint, for a width in columns."""
    names = tuple(f"estimated {name}" for name in rows[0].estimates)
    return TextTable(
        title="Whole spectra: estimates ± one standard error, and what is certified",
        header=("series", "epoch", *names, "certified: negative eigenvalues"),
        rows=tuple(row.cells() for row in rows),
        num_names=2,
        num_left=1,
    ).text(width)


def csv_text(rows: Sequence[DensityRow]) -> str:
    """Format the estimates as CSV, a row per checkpoint and quantity.

    An unknown number is an empty cell.
    """
    stream = io.StringIO()
    writer = csv.DictWriter(stream, CSV_COLUMNS, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        for quantity, values in estimate_values(row.density.probed).items():
            cells = {**row.facts(), "quantity": quantity, **values}
            writer.writerow({name: plain(value) for name, value in cells.items()})
    return stream.getvalue()


def json_values(rows: Sequence[DensityRow]) -> list[dict[str, Any]]:
    """Return the estimates as JSON values, an object per checkpoint."""
    return [{**row.facts(), "estimates": estimate_values(row.density.probed)} for row in rows]
