"""Series of checkpoints from one or several stores.

Also checks whether they may be compared at all.
"""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from landscape.compare.metrics import CheckpointMetrics, Metric
from landscape.compare.result import SeriesInfo
from landscape.compare.statistics import Sample
from landscape.errors import StoreError
from landscape.linalg import Estimate
from landscape.manifest.samples import samples_of
from landscape.store import (
    SpectraTable,
    SpectrumStore,
    differing_setting,
    is_audited,
    models_as_trained,
)


@dataclass(frozen=True)
class Query:
    """Options of a comparison; see `compare_stores`."""

    metrics: tuple[Metric, ...]
    epochs: Sequence[int] | None
    paired: bool
    keep_unconverged: bool
    with_pairs: bool


@dataclass(frozen=True, eq=False)
class Series:
    """One series with everything that is stored about it, by epoch."""

    info: SeriesInfo
    tables: dict[int, SpectraTable]
    hessian: Mapping[str, Any]
    samples: str = "pairs"

    @cached_property
    def measured(self) -> dict[int, CheckpointMetrics]:
        """Join the tables with the settings of the protocol."""
        return {
            epoch: CheckpointMetrics(table, self.hessian) for epoch, table in self.tables.items()
        }

    def metric_values(
        self, epoch: int, metric: Metric, *, keep_unconverged: bool
    ) -> "MetricValues | None":
        """Compute a metric over the batches of an epoch.

        None where the epoch was not measured.
        """
        table = self.tables.get(epoch)
        if table is None:
            return None
        measured = self.measured[epoch]
        loose = ~measured.certified if metric.certified else np.zeros(table.num_records, dtype=bool)
        numerator, denominator = (
            np.asarray(column, dtype=np.float64) for column in metric.columns(measured)
        )
        counts = np.isfinite(numerator) & np.isfinite(denominator)
        if metric.certified:
            counts &= measured.finite if keep_unconverged else measured.certified
        estimate = None if metric.estimate is None else partial(measured.of_all, metric.estimate)
        return MetricValues(
            table.batch, counts, loose, Sample(metric.location, numerator, denominator), estimate
        )

    def audited(self, epoch: int) -> bool:
        """Tell whether the products behind all records of an epoch passed an audit."""
        return is_audited(self.tables[epoch].extras)


@dataclass(frozen=True, eq=False)
class MetricValues:
    """Values of a metric per batch.

    Args:
        batch: Index of each batch.
        counts: Whether the batch counts.
        loose: Whether its value is made of eigenvalues without a certificate.
        sample: The values.
        estimate: Function that estimates the metric from some rows together, for quadratures.
    """

    batch: np.ndarray
    counts: np.ndarray
    loose: np.ndarray
    sample: Sample
    estimate: Callable[[np.ndarray], Estimate] | None = None

    @property
    def counted_estimate(self) -> Estimate | None:
        """Estimate the metric over all batches that count.

        None for metrics that are not estimated.
        """
        return (
            None
            if self.estimate is None or not self.counts.any()
            else self.estimate(np.flatnonzero(self.counts))
        )

    @property
    def counted(self) -> Sample:
        return self.sample.take(np.flatnonzero(self.counts))

    @property
    def num_left_out(self) -> int:
        return int((~self.counts).sum())


@dataclass(frozen=True, eq=False)
class Pairing:
    """Two samples prepared for a comparison.

    Args:
        estimates: Estimates of the two over these batches, for quadratures.
    """

    first: Sample
    second: Sample
    num_left_out: int
    num_uncertified: int
    estimates: tuple[Estimate, Estimate] | None = None

    @classmethod
    def of(cls, first: MetricValues, second: MetricValues, *, paired: bool) -> "Pairing":
        """Select the batches of two samples that are compared.

        Paired: row i of both is the same batch, and it counts in both. Unpaired: every batch that
        counts.
        """
        if not paired:
            rows, other_rows = np.flatnonzero(first.counts), np.flatnonzero(second.counts)
            loose = sum(int((which.loose & which.counts).sum()) for which in (first, second))
            num_left_out = first.num_left_out + second.num_left_out
        else:
            _, rows, other_rows = np.intersect1d(first.batch, second.batch, return_indices=True)
            both = first.counts[rows] & second.counts[other_rows]
            rows, other_rows, num_left_out = rows[both], other_rows[both], int((~both).sum())
            loose = int((first.loose[rows] | second.loose[other_rows]).sum())
        estimates = None
        if (
            first.estimate is not None
            and second.estimate is not None
            and min(len(rows), len(other_rows))
        ):
            estimates = first.estimate(rows), second.estimate(other_rows)
        return cls(
            first.sample.take(rows), second.sample.take(other_rows), num_left_out, loose, estimates
        )

    @property
    def num_batches(self) -> int:
        return min(self.first.size, self.second.size)

    @property
    def is_known(self) -> bool:
        """Tell whether a test is possible, as both numbers are known."""
        return self.estimates is None or all(estimate.is_known for estimate in self.estimates)


def read_series(
    paths: Sequence[Path], wanted: Sequence[str] | None = None
) -> tuple[list[Series], dict[str, dict[str, Any]]]:
    """Read the series of every store, and the protocol that all share.

    Raises:
        ValueError: If there is no path.
        StoreError: If a store cannot be read, is empty or is named twice, or two were measured
            under different settings.
    """
    if not paths:
        raise ValueError("paths: there are none, so there is nothing to compare.")
    kept: list[Series] = []
    protocols: list[tuple[Path, dict[str, dict[str, Any]]]] = []
    for path in map(Path, paths):
        if any(os.path.realpath(path) == os.path.realpath(other) for other, _ in protocols):
            raise StoreError(
                f"{path}: named twice, and a series does not differ from itself; name each store "
                "once."
            )
        with SpectrumStore.open(path, series=wanted) as store:
            store.require_hessian("a comparison")
            if protocols:
                _check_protocols(*protocols[0], path, store.plan.protocol)
            protocols.append((path, store.plan.protocol))
            series = [_series(path, store, name) for name in store.series()]
        if not series:
            reason = "it holds no eigenvalues yet, so there is nothing to compare"
            raise StoreError(f"{path}: {reason}. Run `landscape spectra` first.")
        kept += series
    return _with_unique_names(kept), protocols[0][1]


def _series(path: Path, store: SpectrumStore, name: str) -> Series:
    tables = {epoch: store.records(name, epoch) for epoch in sorted(store.epochs(name))}
    table = next(iter(tables.values()))
    facts: dict[str, Any] = {
        "label": table.label,
        "model": table.model,
        "num_params": table.num_params,
    }
    info = SeriesInfo(name=name, store=str(path), epochs=tuple(tables), **facts)
    return Series(
        info, tables, store.plan.protocol["hessian"], samples_of(store.plan.protocol["data"])
    )


def _check_protocols(
    old_path: Path, old: dict[str, dict[str, Any]], new_path: Path, new: dict[str, dict[str, Any]]
) -> None:
    differing = differing_setting(old, new)
    if differing is not None:
        section, key = differing
        values = [protocol.get(section, {}).get(key) for protocol in (new, old)]
        raise StoreError(
            f"{new_path}: {section}.{key} is {values[0]!r}, but {values[1]!r} in {old_path}. "
            "Numbers measured under different settings are not comparable; measure both under the "
            "same ones."
        )


def _with_unique_names(kept: list[Series]) -> list[Series]:
    """Prefix names that two stores share with the file: "a:vit".

    The prefix is the whole path where the files also have the same name.
    """
    names = Counter(member.info.name for member in kept)
    stems = Counter(
        {store: Path(store).stem for store in {member.info.store for member in kept}}.values()
    )
    unique = []
    for member in kept:
        info, file = member.info, Path(member.info.store)
        if names[info.name] > 1:
            prefix = file.stem if stems[file.stem] == 1 else info.store
            member = replace(member, info=replace(info, name=f"{prefix}:{info.name}"))
        unique.append(member)
    return unique


def check_same_loss(series: Sequence[Series]) -> None:
    """Refuse series that minimise different losses.

    Their eigenvalues are those of different functions.

    Raises:
        StoreError: If so; says how to compare those of one loss.
    """
    losses: dict[str, list[str]] = {}
    for member in series:
        for table in member.tables.values():
            for used in models_as_trained(table.settings):
                if "loss" in used:
                    losses.setdefault(str(used["loss"][0]), []).append(member.info.name)
    if len(losses) > 1:
        parts = "; ".join(
            f"{loss} by {', '.join(dict.fromkeys(names))}" for loss, names in losses.items()
        )
        raise StoreError(
            f"{series[0].info.store}: the series minimise different losses ({parts}), so their "
            "eigenvalues are those of different functions and no difference means anything. "
            "Compare those of one loss, each named with --series."
        )


def check_same_batches(first: Series, second: Series, epochs: Sequence[int]) -> None:
    """Refuse two series that were not measured on the same batches.

    Checks each of these epochs that both have. Batches that only one of them has yet do not matter,
    as long as there are others.

    Raises:
        StoreError: If so; says how to compare them nevertheless.
    """
    for epoch in (epoch for epoch in epochs if epoch in first.tables and epoch in second.tables):
        digests, others = (
            dict(zip(table.batch.tolist(), table.batch_sha256, strict=True))
            for table in (first.tables[epoch], second.tables[epoch])
        )
        common = sorted(set(digests) & set(others))
        differing = [batch for batch in common if digests[batch] != others[batch]]
        if differing or not common:
            what = (
                f"batch {differing[0]} holds other {first.samples} "
                f"(sha256 {digests[differing[0]][:12]} and {others[differing[0]][:12]})"
                if differing
                else "no batch was measured for both"
            )
            raise StoreError(
                f"{first.info.store}: series {first.info.name!r} and {second.info.name!r} "
                f"({second.info.store}) at epoch {epoch}: {what}. Differences are taken batch by "
                "batch; compare them with --unpaired, or measure both on the same ones."
            )
