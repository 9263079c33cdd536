"""Stored densities.

Converts a `SpectralDensity` to a record and back, and makes records from the quadratures of a
store.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape import linalg
from landscape.compare.whole_spectrum import probed_spectrum
from landscape.errors import StoreError
from landscape.figures import DensitySample
from landscape.store import DensityRecord, SpectraTable, SpectrumStore, is_audited

if TYPE_CHECKING:
    from landscape.linalg import SpectralDensity

_ARRAYS = ("nodes", "weights", "operators", "remainders", "exact", "exact_residuals", "num_zeros")
_NUMBERS = ("n", "resolution", "rounding", "num_matvecs", "orthogonality_defect")


def density_record(density: "SpectralDensity", **facts: Any) -> DensityRecord:
    """Convert a density to a record.

    `facts` are the other fields of `DensityRecord`.
    """
    arrays = {name: getattr(density, name).numpy() for name in _ARRAYS}
    return DensityRecord(**arrays, **{name: getattr(density, name) for name in _NUMBERS}, **facts)


def spectral_density(record: DensityRecord) -> "SpectralDensity":
    """Convert a record to a `SpectralDensity`, which has the methods."""
    import torch

    facts: dict[str, Any] = {
        name: torch.from_numpy(np.asarray(getattr(record, name))) for name in _ARRAYS
    }
    facts |= {"checked": str(record.settings.get("operator", ""))}
    return linalg.SpectralDensity(**facts, **{name: getattr(record, name) for name in _NUMBERS})


def density_sample(record: DensityRecord) -> "DensitySample":
    """Convert a record to the sample that figures and pages take."""
    return DensitySample(
        series=record.series,
        label=record.label,
        epoch=record.epoch,
        density=spectral_density(record),
        dense=record.dense_eigenvalues if record.dense_eigenvalues.size else None,
    )


def stored_densities(path: Path, *, series: Sequence[str] | None = None) -> list[DensityRecord]:
    """Read the quadratures of a store's records as densities.

    Args:
        series: As in `SpectrumStore.open`.

    Raises:
        StoreError: If there are none, or no such series.
    """
    with SpectrumStore.open(path, series=series) as store:
        store.require_hessian("a density")
        dtype = store.plan.protocol["hessian"]["dtype"]
        tables = [
            store.records(name, epoch) for name in store.series() for epoch in store.epochs(name)
        ]
    if not tables:
        raise StoreError(
            f"{path}: it holds no eigenvalues yet, so there is nothing to draw. Run `landscape "
            "spectra` first."
        )
    return [record_of_table(table, path, dtype) for table in tables]


def record_of_table(table: SpectraTable, path: Path, dtype: str) -> DensityRecord:
    """Make a record of one operator per batch, with one probe each.

    Raises:
        StoreError: If a batch has no quadrature, or its quadrature does not know its own error.
    """
    place = f"{path}: {table.series} epoch {table.epoch}"
    _check_quadratures(table, place)
    try:
        probed = probed_spectrum(table, dtype)
    except ValueError as error:
        raise StoreError(
            f"{place}: {error} Raise max_matvecs or lower tol in the manifest, or give the "
            "manifest to `landscape density`."
        ) from error
    return DensityRecord(
        **{name: getattr(probed, name) for name in (*_ARRAYS, "n", "resolution", "rounding")},
        num_matvecs=int(table.num_matvecs.sum()),
        orthogonality_defect=float(np.max(table.orthogonality_defect)),
        dense_eigenvalues=np.zeros((0, 0)),
        series=table.series,
        label=table.label,
        model=table.model,
        epoch=table.epoch,
        checkpoint_sha256=table.checkpoint_sha256,
        settings={},
        audited=is_audited(table.extras),
        num_negative=table.num_negative,
    )


def _check_quadratures(table: SpectraTable, place: str) -> None:
    """Refuse a checkpoint of which a batch has no quadrature.

    Raises:
        StoreError: If so; says why.
    """
    missing = [
        int(batch) for batch, nodes in zip(table.batch, table.ritz_values) if np.isnan(nodes).all()
    ]
    if missing:
        recycled = "start" in table.settings
        why = (
            "a start from recycled eigenvectors is no random probe"
            if recycled
            else "power iteration leaves none"
        )
        raise StoreError(
            f"{place}: batch {missing[0]} has no quadrature, since {why}, so there is no density. "
            f"Measure {'without --recycle' if recycled else 'with the method lanczos'} into "
            "another file, or give the manifest to `landscape density`."
        )
