"""Contents of a page: the tables of a store, and their origin."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from landscape.compare import Comparison
from landscape.compare.sharpness_accuracy import SharpnessAccuracy
from landscape.figures import DensitySample, EigenvalueSample, ModuleSample
from landscape.figures.samples import disambiguate
from landscape.store import SpectraTable, StoreContents


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """Everything that a store holds, read once.

    Args:
        name: Name of the store's file, without its folder.
        plan: Planned contents of the store.
        tables: The measured checkpoints, by (series, epoch), in the order of the plan; at least
            one.
        audits: The distinct verdicts behind the records of each series.
        unaudited: Whether any record is of a product that did not pass an audit.
        changed: When the file was last written, in UTC. A page shows this date, never its own.
        sha256: Digest of the store's file; None while it grows.
        rejected: Parts that are not used, each with the reason.
        comparison: Comparison of the series, from the same records; without differences, or None,
            where they cannot be compared.
        why_no_comparison: A sentence that says why they cannot.
        modules: Sharpness of the blocks of each series, where it was measured.
        modules_note: Text that must be under their picture.
        densities: Densities of all eigenvalues, for the checkpoints whose quadratures give one.
        why_no_density: A sentence that says why a checkpoint has none.
        accuracy: Accuracy of the checkpoints beside their sharpness; None where no answers were
            named.
    """

    name: str
    plan: StoreContents
    tables: Mapping[tuple[str, int], SpectraTable]
    audits: Mapping[str, tuple[Mapping[str, Any], ...]]
    unaudited: bool
    changed: datetime
    sha256: str | None
    rejected: tuple[str, ...]
    comparison: Comparison | None
    why_no_comparison: str = ""
    modules: tuple[ModuleSample, ...] = ()
    modules_note: str = ""
    densities: tuple[DensitySample, ...] = ()
    why_no_density: str = ""
    accuracy: SharpnessAccuracy | None = None

    @property
    def series(self) -> tuple[str, ...]:
        """List the series that have a record."""
        return tuple(dict.fromkeys(name for name, _ in self.tables))

    @property
    def epochs(self) -> tuple[int, ...]:
        """List the epochs of which any series has a record, ascending."""
        return tuple(sorted({epoch for _, epoch in self.tables}))

    @property
    def labels(self) -> dict[str, str]:
        """Map series to their labels on the page.

        Equal labels get the name of the series, as in the figures.
        """
        return disambiguate({name: table.label for (name, _), table in self.tables.items()})

    @property
    def missing(self) -> dict[str, tuple[int, ...]]:
        """Map series to their planned epochs without a record.

        Only series with such epochs are included.
        """
        gaps = {
            planned.name: tuple(
                epoch for epoch in planned.epochs if (planned.name, epoch) not in self.tables
            )
            for planned in self.plan.series
        }
        return {name: epochs for name, epochs in gaps.items() if epochs}

    @property
    def num_records(self) -> int:
        return sum(table.num_records for table in self.tables.values())

    @property
    def num_planned(self) -> int:
        return self.plan.num_records

    @property
    def num_values(self) -> int:
        return sum(table.eigenvalues.size for table in self.tables.values())

    @property
    def num_converged(self) -> int:
        return self.num_values - sum(table.num_not_converged for table in self.tables.values())

    @property
    def worst_residual(self) -> float:
        """Return the largest relative residual of the converged values.

        NaN if none converged.
        """
        residuals = np.concatenate(
            [table.residuals[table.converged] for table in self.tables.values()]
        )
        return float(residuals.max()) if residuals.size else float("nan")

    def samples(self) -> list[EigenvalueSample]:
        """Return the top-k eigenvalues, as the figures take them."""
        return [
            EigenvalueSample(
                series=name,
                label=table.label,
                epoch=epoch,
                values=table.eigenvalues,
                converged=table.converged,
                planned=table.num_planned,
            )
            for (name, epoch), table in self.tables.items()
        ]
