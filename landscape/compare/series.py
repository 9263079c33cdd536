"""Series of checkpoints out of one or several stores, and whether they may be compared at all."""

import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np

from landscape.compare.metrics import Measured, Metric
from landscape.compare.result import SeriesInfo
from landscape.compare.statistics import Sample
from landscape.errors import StoreError
from landscape.linalg import Estimate
from landscape.store import (
    SpectraTable,
    SpectrumStore,
    differing_setting,
    is_audited,
    models_as_trained,
)


@dataclass(frozen=True)
class Asked:
    """What is asked for; as of `compare_stores`."""

    metrics: tuple[Metric, ...]
    epochs: Sequence[int] | None
    paired: bool
    keep_unconverged: bool
    with_pairs: bool


@dataclass(frozen=True, eq=False)
class Series:
    """One series with everything that is stored of it, by epoch."""

    info: SeriesInfo
    tables: dict[int, SpectraTable]
    hessian: Mapping[str, Any]

    @cached_property
    def measured(self) -> dict[int, Measured]:
        """The tables with what the protocol says of them."""
        return {epoch: Measured(table, self.hessian) for epoch, table in self.tables.items()}

    def observed(self, epoch: int, metric: Metric, *, keep_unconverged: bool) -> "Observed | None":
        """A metric over the batches of an epoch; None where the epoch was not measured."""
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
        return Observed(
            table.batch, counts, loose, Sample(metric.location, numerator, denominator), estimate
        )

    def audited(self, epoch: int) -> bool:
        """Whether every record of an epoch was made by a product that passed an audit."""
        return is_audited(self.tables[epoch].extras)


@dataclass(frozen=True, eq=False)
class Observed:
    """A number per batch, the index of the batch, whether it counts, and whether it is made of what is not certified.

    Args:
        estimate: What some rows together say, for what quadratures estimate.
    """

    batch: np.ndarray
    counts: np.ndarray
    loose: np.ndarray
    sample: Sample
    estimate: Callable[[np.ndarray], Estimate] | None = None

    @property
    def counted_estimate(self) -> Estimate | None:
        """The estimate of all batches that count; None for what is none."""
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
    """Two observed samples made ready to be compared.

    Args:
        estimates: Of the two over these batches, for what quadratures estimate.
    """

    first: Sample
    second: Sample
    num_left_out: int
    num_uncertified: int
    estimates: tuple[Estimate, Estimate] | None = None

    @classmethod
    def of(cls, one: Observed, other: Observed, *, paired: bool) -> "Pairing":
        """Paired: row i of both is the same batch, one that counts in both. Unpaired: every batch that counts."""
        if not paired:
            rows, other_rows = np.flatnonzero(one.counts), np.flatnonzero(other.counts)
            loose = sum(int((which.loose & which.counts).sum()) for which in (one, other))
            num_left_out = one.num_left_out + other.num_left_out
        else:
            _, rows, other_rows = np.intersect1d(one.batch, other.batch, return_indices=True)
            both = one.counts[rows] & other.counts[other_rows]
            rows, other_rows, num_left_out = rows[both], other_rows[both], int((~both).sum())
            loose = int((one.loose[rows] | other.loose[other_rows]).sum())
        estimates = None
        if (
            one.estimate is not None
            and other.estimate is not None
            and min(len(rows), len(other_rows))
        ):
            estimates = one.estimate(rows), other.estimate(other_rows)
        return cls(
            one.sample.take(rows), other.sample.take(other_rows), num_left_out, loose, estimates
        )

    @property
    def num_batches(self) -> int:
        return min(self.first.size, self.second.size)

    @property
    def is_known(self) -> bool:
        """Whether there is anything to test: numbers, and no two brackets."""
        return self.estimates is None or all(one.is_known for one in self.estimates)


def read_series(
    paths: Sequence[Path], wanted: Sequence[str] | None = None
) -> tuple[list[Series], dict[str, dict[str, Any]]]:
    """Every series of every store, or those that are wanted, and the protocol that all share.

    Raises:
        ValueError: If there is no path.
        StoreError: If a store cannot be read, is empty or is named twice, or two were measured under different settings.
    """
    if not paths:
        raise ValueError("paths: there are none, so there is nothing to compare.")
    found: list[Series] = []
    protocols: list[tuple[Path, dict[str, dict[str, Any]]]] = []
    for path in map(Path, paths):
        if any(os.path.realpath(path) == os.path.realpath(other) for other, _ in protocols):
            raise StoreError(
                f"{path}: named twice, and a series does not differ from itself; name each store once."
            )
        with SpectrumStore.open(path, series=wanted) as store:
            if protocols:
                _check_protocols(*protocols[0], path, store.plan.protocol)
            protocols.append((path, store.plan.protocol))
            series = [_series(path, store, name) for name in store.series()]
        if not series:
            reason = "it holds no eigenvalues yet, so there is nothing to compare"
            raise StoreError(f"{path}: {reason}. Run `landscape spectra` first.")
        found += series
    return _with_unique_names(found), protocols[0][1]


def _series(path: Path, store: SpectrumStore, name: str) -> Series:
    tables = {epoch: store.records(name, epoch) for epoch in sorted(store.epochs(name))}
    table = next(iter(tables.values()))
    facts: dict[str, Any] = {
        "label": table.label,
        "model": table.model,
        "num_params": table.num_params,
    }
    return Series(
        SeriesInfo(name=name, store=str(path), epochs=tuple(tables), **facts),
        tables,
        store.plan.protocol["hessian"],
    )


def _check_protocols(
    one: Path, old: dict[str, dict[str, Any]], other: Path, new: dict[str, dict[str, Any]]
) -> None:
    found = differing_setting(old, new)
    if found is not None:
        section, key = found
        values = [protocol.get(section, {}).get(key) for protocol in (new, old)]
        raise StoreError(
            f"{other}: {section}.{key} is {values[0]!r}, but {values[1]!r} in {one}. Numbers measured under different settings "
            "are not comparable; measure both under the same ones."
        )


def _with_unique_names(found: list[Series]) -> list[Series]:
    """Put the file before names that two stores share: "a:vit", or the path where the files have one name too."""
    names = Counter(one.info.name for one in found)
    stems = Counter(
        {store: Path(store).stem for store in {one.info.store for one in found}}.values()
    )
    unique = []
    for one in found:
        info, file = one.info, Path(one.info.store)
        if names[info.name] > 1:
            prefix = file.stem if stems[file.stem] == 1 else info.store
            one = replace(one, info=replace(info, name=f"{prefix}:{info.name}"))
        unique.append(one)
    return unique


def check_same_loss(series: Sequence[Series]) -> None:
    """Refuse series that minimise different losses: their eigenvalues are those of different functions.

    Raises:
        StoreError: If so; says how to compare those of one loss.
    """
    losses: dict[str, list[str]] = {}
    for one in series:
        for table in one.tables.values():
            for used in models_as_trained(table.settings):
                if "loss" in used:
                    losses.setdefault(str(used["loss"][0]), []).append(one.info.name)
    if len(losses) > 1:
        parts = "; ".join(
            f"{loss} by {', '.join(dict.fromkeys(names))}" for loss, names in losses.items()
        )
        raise StoreError(
            f"{series[0].info.store}: the series minimise different losses ({parts}), so their eigenvalues are those of "
            "different functions and no difference means anything. Compare those of one loss, each named with --series."
        )


def check_same_batches(one: Series, other: Series, epochs: Sequence[int]) -> None:
    """Whether two series were measured on the same batches, at each of these epochs that both have.

    Batches that only one of them has yet are no hindrance, as long as there are others.

    Raises:
        StoreError: If not; says how to compare them nevertheless.
    """
    for epoch in (epoch for epoch in epochs if epoch in one.tables and epoch in other.tables):
        digests, others = (
            dict(zip(table.batch.tolist(), table.batch_sha256, strict=True))
            for table in (one.tables[epoch], other.tables[epoch])
        )
        common = sorted(set(digests) & set(others))
        differing = [batch for batch in common if digests[batch] != others[batch]]
        if differing or not common:
            what = (
                f"batch {differing[0]} holds other pairs (sha256 {digests[differing[0]][:12]} and {others[differing[0]][:12]})"
                if differing
                else "no batch was measured for both"
            )
            raise StoreError(
                f"{one.info.store}: series {one.info.name!r} and {other.info.name!r} ({other.info.store}) at epoch {epoch}: "
                f"{what}. Differences are taken batch by batch; compare them with --unpaired, or measure both on the same ones."
            )
