"""What a page is made from: the tables of a store, and what is known about where they come from."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import numpy as np

from landscape.compare import Comparison
from landscape.compare.sharpness_accuracy import SharpnessAccuracy
from landscape.figures import DensitySample, EigenvalueSample, ModuleSample
from landscape.figures.samples import told_apart
from landscape.store import Plan, SpectraTable


@dataclass(frozen=True, kw_only=True, eq=False)
class Study:
    """Everything that a store holds, read once.

    Args:
        name: Of the store's file, without its folder.
        plan: What the store is going to hold.
        tables: The measured checkpoints, by (series, epoch), in the order of the plan; at least one.
        audits: The distinct verdicts behind the records of each series.
        unaudited: Whether any record is of a product that did not pass an audit.
        changed: When the file was written last, in UTC. A page tells this date, never its own.
        sha256: Digest of the store's file; None while it grows.
        rejected: Parts that are not used, each with the reason.
        comparison: Of the series, from the same records; without differences, or None, where they cannot be compared.
        why_no_comparison: A sentence then.
        modules: The sharpness of the blocks of each series, where it was measured.
        modules_note: What must stand under their picture.
        densities: Of all eigenvalues, of the checkpoints whose quadratures give one.
        why_no_density: A sentence where a checkpoint has none.
        accuracy: Of the checkpoints beside their sharpness; None where no answers were named.
    """

    name: str
    plan: Plan
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
        """Names of the series that have a record."""
        return tuple(dict.fromkeys(name for name, _ in self.tables))

    @property
    def epochs(self) -> tuple[int, ...]:
        """Epochs that any series has a record of, ascending."""
        return tuple(sorted({epoch for _, epoch in self.tables}))

    @property
    def labels(self) -> dict[str, str]:
        """Series -> what the page calls it; equal labels get the name of the series, as in the figures."""
        return told_apart({name: table.label for (name, _), table in self.tables.items()})

    @property
    def missing(self) -> dict[str, tuple[int, ...]]:
        """Series -> its planned epochs without a record; only the series that have such epochs."""
        gaps = {
            one.name: tuple(epoch for epoch in one.epochs if (one.name, epoch) not in self.tables)
            for one in self.plan.series
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
        """The largest relative residual of a value that counts as converged; NaN if none does."""
        residuals = np.concatenate(
            [table.residuals[table.converged] for table in self.tables.values()]
        )
        return float(residuals.max()) if residuals.size else float("nan")

    def samples(self) -> list[EigenvalueSample]:
        """The top-k eigenvalues, as the figures take them."""
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
