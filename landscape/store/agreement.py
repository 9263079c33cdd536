"""Whether two measurements of one batch agree: bit by bit, or as far as their certificates reach."""

from dataclasses import fields
from typing import Any

import numpy as np

from landscape.store.module_record import MODULE_COLUMNS, MODULE_LATER, ModuleRecord, ModuleTable
from landscape.store.record import COLUMNS, LATER, RITZ, Record, SpectraTable

# How and where a record was computed, which differs between two runs that compute the same.
_CIRCUMSTANCES = ("seconds", "settings", "extras")


def differing_field(stored: Record | ModuleRecord, new: Record | ModuleRecord) -> str | None:
    """Name of the first field in which two records of one batch differ by a bit; None if there is none.

    Time, settings and extras do not count, nor does what the stored one has no value of, since its file is older.
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
    """Largest difference of two spectra, if both certificates together allow it.

    A residual |Hv - lambda v| bounds the distance of lambda from an eigenvalue of H, so two values of one eigenvalue
    differ by at most the sum of their residuals. Values are matched in order of size.

    Returns:
        The difference in nats per squared parameter; None if one is larger than its bound, or has no bound.

    Source: Parlett, The Symmetric Eigenvalue Problem (1998), section 4.5.
    """
    one, one_bound = _sorted_with_bounds(first)
    other, other_bound = _sorted_with_bounds(second)
    if one.shape != other.shape or not np.array_equal(np.isnan(one), np.isnan(other)):
        return None
    there = ~np.isnan(one)
    difference, bound = np.abs(one - other)[there], (one_bound + other_bound)[there]
    if not np.all((difference == 0) | (np.isfinite(bound) & (difference <= bound))):
        return None
    return float(difference.max(initial=0.0))


def _sorted_with_bounds(record: Record | ModuleRecord) -> tuple[np.ndarray, np.ndarray]:
    """Eigenvalues from the smallest on, NaN at the end, and the absolute residual of each."""
    values = record.values if isinstance(record, Record) else record.eigenvalues
    order = np.argsort(values, axis=-1)
    bounds = record.residuals * np.abs(values)
    return np.take_along_axis(values, order, axis=-1), np.take_along_axis(bounds, order, axis=-1)


def record_of_row(table: SpectraTable, row: int) -> Record:
    """A row of a table as the record that it was made of; settings and extras are those of the checkpoint."""
    values = {
        name: getattr(table, name)[row] for name in COLUMNS if name not in ("eigenvalues", *RITZ)
    }
    there = ~np.isnan(table.ritz_values[row])
    quadrature = {name: getattr(table, name)[row][there] for name in RITZ}
    return Record(values=table.eigenvalues[row], **quadrature, **values, **_facts(table))


def module_record_of_row(table: ModuleTable, row: int) -> ModuleRecord:
    """The same of a table of modules."""
    values = {name: getattr(table, name)[row] for name in MODULE_COLUMNS}
    return ModuleRecord(
        modules=table.modules, module_params=table.module_params, **values, **_facts(table)
    )


def _facts(table: SpectraTable | ModuleTable) -> dict[str, Any]:
    names = ("series", "epoch", "checkpoint_sha256", "num_params", "settings", "extras")
    return {name: getattr(table, name) for name in names}
