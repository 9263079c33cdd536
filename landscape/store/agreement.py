"""Comparison of two measurements of a batch: exact, or within their certificates."""

from dataclasses import fields
from typing import Any

import numpy as np

from landscape.store.module_record import MODULE_COLUMNS, MODULE_LATER, ModuleRecord, ModuleTable
from landscape.store.record import COLUMNS, LATER, RITZ, Record, SpectraTable

# How and where a record was computed. These differ between two runs with the same results.
_CIRCUMSTANCES = ("seconds", "settings", "extras")


def differing_field(stored: Record | ModuleRecord, new: Record | ModuleRecord) -> str | None:
    """Return the first field in which two records differ.

    The records are of the same batch. None if they are equal bit by bit. Time, settings and extras
    do not count. Neither does a value that the stored record lacks because its file is older.
    """
    later = LATER if isinstance(stored, Record) else MODULE_LATER
    for field in fields(stored):
        if field.name in _CIRCUMSTANCES:
            continue
        first, second = getattr(stored, field.name), getattr(new, field.name)
        if field.name in later and _is_unknown(first):
            continue
        equal = (
            np.array_equal(first, second, equal_nan=True) if _is_numeric(first) else first == second
        )
        if not equal:
            return field.name
    return None


def _is_numeric(value: object) -> bool:
    return isinstance(value, (np.ndarray, float))


def _is_unknown(value: Any) -> bool:
    return bool(value == -1) if isinstance(value, int) else bool(np.isnan(value).all())


def difference_within(first: Record | ModuleRecord, second: Record | ModuleRecord) -> float | None:
    """Return the largest difference of two spectra within their certificates.

    A residual |Hv - lambda v| bounds the distance of lambda from an eigenvalue of H, so two values
    of one eigenvalue differ by at most the sum of their residuals. Values are matched in order of
    size.

    Returns:
        The difference in nats per squared parameter; None if a difference is larger than its bound,
        or has no bound.

    Source: Parlett, The Symmetric Eigenvalue Problem (1998), section 4.5.
    """
    first_values, first_bounds = _sorted_with_bounds(first)
    second_values, second_bounds = _sorted_with_bounds(second)
    if first_values.shape != second_values.shape or not np.array_equal(
        np.isnan(first_values), np.isnan(second_values)
    ):
        return None
    there = ~np.isnan(first_values)
    difference, bound = (
        np.abs(first_values - second_values)[there],
        (first_bounds + second_bounds)[there],
    )
    if not np.all((difference == 0) | (np.isfinite(bound) & (difference <= bound))):
        return None
    return float(difference.max(initial=0.0))


def _sorted_with_bounds(record: Record | ModuleRecord) -> tuple[np.ndarray, np.ndarray]:
    """Return ascending eigenvalues, NaN last, with their absolute residuals."""
    values = record.values if isinstance(record, Record) else record.eigenvalues
    order = np.argsort(values, axis=-1)
    # Stored residuals are relative to |lambda|; the bound needs the absolute ones.
    bounds = record.residuals * np.abs(values)
    return np.take_along_axis(values, order, axis=-1), np.take_along_axis(bounds, order, axis=-1)


def record_of_row(table: SpectraTable, row: int) -> Record:
    """Rebuild the record of a row of a table.

    Settings and extras are those of the checkpoint.
    """
    values = {
        name: getattr(table, name)[row] for name in COLUMNS if name not in ("eigenvalues", *RITZ)
    }
    there = ~np.isnan(table.ritz_values[row])
    quadrature = {name: getattr(table, name)[row][there] for name in RITZ}
    return Record(values=table.eigenvalues[row], **quadrature, **values, **_facts(table))


def module_record_of_row(table: ModuleTable, row: int) -> ModuleRecord:
    """Rebuild the record of a row of a table of modules."""
    values = {name: getattr(table, name)[row] for name in MODULE_COLUMNS}
    return ModuleRecord(
        modules=table.modules, module_params=table.module_params, **values, **_facts(table)
    )


def _facts(table: SpectraTable | ModuleTable) -> dict[str, Any]:
    names = ("series", "epoch", "checkpoint_sha256", "num_params", "settings", "extras")
    return {name: getattr(table, name) for name in names}
