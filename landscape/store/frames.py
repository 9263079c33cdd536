"""What outputs hold as tidy tables of pandas.

Numbers are those of the file, bit for bit; a count that the file does not know (-1) is missing.
docs/export.md lists the columns of each table.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.store.densities import DensityRecord
from landscape.store.module_record import ModuleTable
from landscape.store.predictions import CheckpointPredictions, PictureSet, PredictionStore
from landscape.store.record import SpectraTable
from landscape.store.surfaces import StoredSurface, axes_of
from landscape.store.table import CheckpointTable, unit_of
from landscape.store.verdicts import is_audited

if TYPE_CHECKING:
    from pandas import DataFrame

# Columns with one number per eigenvalue, and the attribute that holds each.
_PER_VALUE = {
    "eigenvalue": "eigenvalues",
    "residual": "residuals",
    "converged": "converged",
    "value_bound": "value_bounds",
    "smallest": "smallest",
    "smallest_residual": "smallest_residuals",
    "largest": "largest",
    "largest_residual": "largest_residuals",
}
_CERTIFICATES = ("missed_distance", "missed_probability", "num_negative", "num_positive")
_OF_MODULES = (*_CERTIFICATES, "num_matvecs")
_OF_BATCHES = (*_OF_MODULES, "num_unused", "orthogonality_defect", "parameter_norm")
# Counts of which -1 stands for an unknown number.
_MAY_BE_UNKNOWN = ("num_negative", "num_positive", "num_unused")


def eigenvalue_frame(tables: Iterable[SpectraTable]) -> "DataFrame":
    """Build a table with a row per eigenvalue."""
    return _joined(_eigenvalues(table) for table in tables)


def _eigenvalues(table: SpectraTable) -> dict[str, Any]:
    num_batches, k = table.eigenvalues.shape
    columns = _facts(table, repeats=k)
    columns["rank"] = np.tile(np.arange(k), num_batches)
    columns |= {name: getattr(table, held).ravel() for name, held in _PER_VALUE.items()}
    return columns | {name: np.repeat(getattr(table, name), k) for name in _OF_BATCHES}


def batch_frame(tables: Iterable[SpectraTable]) -> "DataFrame":
    """Build a table with a row per batch and columns `eigenvalue_0` and so on."""
    return _joined(_batches(table) for table in tables)


def _batches(table: SpectraTable) -> dict[str, Any]:
    columns = _facts(table, repeats=1) | {name: getattr(table, name) for name in _OF_BATCHES}
    for name in ("eigenvalue", "residual", "converged", "value_bound"):
        whole = getattr(table, _PER_VALUE[name])
        columns |= {f"{name}_{index}": whole[:, index] for index in range(whole.shape[1])}
    return columns


def quadrature_frame(tables: Iterable[SpectraTable]) -> "DataFrame":
    """Build a table with a row per node of the Krylov quadrature of a batch."""
    return _joined(_quadratures(table) for table in tables)


def _quadratures(table: SpectraTable) -> dict[str, Any]:
    num_batches, m = table.ritz_values.shape
    kept = ~np.isnan(table.ritz_values.ravel())
    columns = {
        **_facts(table, repeats=m),
        "rank": np.tile(np.arange(m), num_batches),
        "ritz_value": table.ritz_values.ravel(),
        "ritz_weight": table.ritz_weights.ravel(),
    }
    return {name: np.asarray(column)[kept] for name, column in columns.items()}


def module_frame(tables: Iterable[ModuleTable]) -> "DataFrame":
    """Build a table with a row per eigenvalue of each module."""
    return _joined(_modules(table) for table in tables)


def _modules(table: ModuleTable) -> dict[str, Any]:
    num_batches, num_modules, k = table.eigenvalues.shape
    columns = _facts(table, repeats=num_modules * k)
    for name, values in (("module", table.modules), ("module_params", table.module_params)):
        columns[name] = np.tile(np.repeat(np.asarray(values, dtype=object), k), num_batches)
    columns["module_params"] = columns["module_params"].astype(np.int64)
    columns["rank"] = np.tile(np.arange(k), num_batches * num_modules)
    columns |= {name: getattr(table, held).ravel() for name, held in _PER_VALUE.items()}
    columns |= {name: np.repeat(getattr(table, name).ravel(), k) for name in _OF_MODULES}
    # A block smaller than k has fewer eigenvalues.
    kept = ~np.isnan(columns["eigenvalue"])
    return {name: np.asarray(column)[kept] for name, column in columns.items()}


def density_frame(records: Iterable[DensityRecord]) -> "DataFrame":
    """Build a table with a row per node of each probe of a density."""
    return _joined(_nodes(record) for record in records)


def _nodes(record: DensityRecord) -> dict[str, Any]:
    num_probes, m = record.nodes.shape
    batches = np.asarray(record.batches)[record.operators]
    columns = {
        "series": record.series,
        "label": record.label,
        "model": record.model,
        "epoch": record.epoch,
        "batch": np.repeat(batches, m),
        "probe": np.repeat(np.arange(num_probes), m),
        "rank": np.tile(np.arange(m), num_probes),
        "node": record.nodes.ravel(),
        "weight": record.weights.ravel(),
        "num_params": record.n,
        "audited": record.audited,
    }
    kept = ~np.isnan(record.nodes.ravel())
    return {
        name: column[kept] if isinstance(column, np.ndarray) else column
        for name, column in columns.items()
    }


def surface_frame(stored: StoredSurface) -> "DataFrame":
    """Build a table with a row per computed point of a loss surface."""
    import pandas as pd

    result = stored.result
    grids = np.meshgrid(*(axis.coordinates for axis in axes_of(result)), indexing="ij")
    columns = {f"coordinate_{index}": grid.ravel() for index, grid in enumerate(grids)}
    frame = pd.DataFrame({**columns, "loss": result.losses.ravel()})
    return frame[result.computed.ravel()].reset_index(drop=True)


def prediction_frame(
    store: PredictionStore, checkpoints: Iterable[CheckpointPredictions]
) -> "DataFrame":
    """Build a table with a row per answer of a checkpoint to a picture."""
    return _joined(
        _answers(checkpoint, store.sets[name], checkpoint.sets[name])
        for checkpoint in checkpoints
        for name in checkpoint.sets
    )


def _printable(name: str) -> str:
    r"""Write the bytes of a file name that are not UTF-8 as \\udcXX, as JSON has them."""
    return name.encode("utf-8", "backslashreplace").decode()


def _answers(
    checkpoint: CheckpointPredictions, pictures: PictureSet, made: Any
) -> Mapping[str, Any]:
    names = np.asarray([*pictures.class_names, ""], dtype=object)
    best = made.top[:, 0]
    columns: dict[str, Any] = {
        "picture": np.asarray([_printable(key) for key in pictures.keys], dtype=object),
        # The last name is empty: -1 stands for no answer.
        "class": names[pictures.labels],
        "answer": names[best],
        "score": made.scores[:, 0].astype(np.float64),
        "correct": best == pictures.labels,
        "error": [made.unread.get(index, "") for index in range(len(pictures))],
    }
    shared = {name: getattr(checkpoint, name) for name in ("series", "label", "model", "epoch")}
    shared |= {"dataset": pictures.dataset, "condition": pictures.condition}
    return shared | {name: np.asarray(column)[made.done] for name, column in columns.items()}


def _facts(table: CheckpointTable, *, repeats: int) -> dict[str, Any]:
    """Return the columns that all tables of spectra begin with."""
    rows = table.num_records * repeats
    shared = {name: getattr(table, name) for name in ("series", "label", "model", "epoch")}
    shared |= {
        "num_params": table.num_params,
        "audited": is_audited(table.extras),
        "unit": unit_of(table.settings),
        "checkpoint_sha256": table.checkpoint_sha256,
    }
    columns: dict[str, Any] = {
        name: np.full(rows, value, dtype=object if isinstance(value, str) else None)
        for name, value in shared.items()
    }
    per_batch: dict[str, Sequence[Any] | np.ndarray] = {
        "batch": table.batch,
        "batch_sha256": np.asarray(table.batch_sha256, dtype=object),
        "loss": table.loss,
        "seconds": table.seconds,
    }
    columns |= {name: np.repeat(values, repeats) for name, values in per_batch.items()}
    return {name: columns[name] for name in _ORDER}


_ORDER = (
    "series label model epoch batch loss num_params seconds audited unit checkpoint_sha256 "
    "batch_sha256"
).split()
# Columns that say how numbers were computed stand behind the numbers.
_LAST = ("num_params", "seconds", "audited", "unit", "checkpoint_sha256", "batch_sha256")


def _joined(parts: Iterable[Mapping[str, Any]]) -> "DataFrame":
    """Join the columns of several checkpoints into one table."""
    import pandas as pd

    frame = pd.concat([pd.DataFrame(part) for part in parts], ignore_index=True)
    for name in (name for name in _MAY_BE_UNKNOWN if name in frame):
        frame[name] = frame[name].astype("Int64").mask(frame[name] < 0)
    return frame[[*frame.columns.difference(_LAST, sort=False), *frame.columns.intersection(_LAST)]]
