"""Densities as they are stored: from the numbers of a `SpectralDensity` and back, and from the quadratures of a store."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.errors import StoreError
from landscape.store import DensityRecord, SpectraTable, SpectrumStore, is_audited

if TYPE_CHECKING:
    from landscape.figures import DensitySample
    from landscape.linalg import Quadrature, SpectralDensity

_ARRAYS = ("nodes", "weights", "operators", "remainders", "exact", "exact_residuals", "num_zeros")
_NUMBERS = ("n", "resolution", "rounding", "num_matvecs", "orthogonality_defect")


def density_record(density: "SpectralDensity", **facts: Any) -> DensityRecord:
    """The record of a density; `facts` are the other fields of `DensityRecord`."""
    arrays = {name: getattr(density, name).numpy() for name in _ARRAYS}
    return DensityRecord(**arrays, **{name: getattr(density, name) for name in _NUMBERS}, **facts)


def spectral_density(record: DensityRecord) -> "SpectralDensity":
    """The record with its methods."""
    import torch

    from landscape.linalg import SpectralDensity

    facts: dict[str, Any] = {name: torch.from_numpy(np.asarray(getattr(record, name))) for name in _ARRAYS}
    return SpectralDensity(**facts, **{name: getattr(record, name) for name in _NUMBERS})


def density_sample(record: DensityRecord) -> "DensitySample":
    """The record as figures and pages take it."""
    from landscape.figures import DensitySample

    return DensitySample(
        series=record.series,
        label=record.label,
        epoch=record.epoch,
        density=spectral_density(record),
        dense=record.dense_eigenvalues if record.dense_eigenvalues.size else None,
    )


def stored_densities(path: Path, *, series: Sequence[str] | None = None) -> list[DensityRecord]:
    """The quadratures of a store's records as densities.

    Args:
        series: As of `SpectrumStore.open`.

    Raises:
        StoreError: If there are none, or no such series.
    """
    with SpectrumStore.open(path, series=series) as store:
        dtype = store.plan.protocol["hessian"]["dtype"]
        tables = [store.records(name, epoch) for name in store.series() for epoch in store.epochs(name)]
    if not tables:
        raise StoreError(f"{path}: it holds no eigenvalues yet, so there is nothing to draw. Run `landscape spectra` first.")
    return [record_of_table(table, path, dtype) for table in tables]


def record_of_table(table: SpectraTable, path: Path, dtype: str) -> DensityRecord:
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
    return density_record(
        replace(one, num_matvecs=int(table.num_matvecs.sum()), orthogonality_defect=float(np.max(table.orthogonality_defect))),
        series=table.series,
        label=table.label,
        model=table.model,
        epoch=table.epoch,
        checkpoint_sha256=table.checkpoint_sha256,
        settings={},
        audited=is_audited(table.extras),
        num_negative=table.num_negative,
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
