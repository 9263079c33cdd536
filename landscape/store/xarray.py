"""A store as an xarray.Dataset, for further analysis with other tools.

docs/xarray.md describes it to users.

Shapes: series, epoch, batch = all that any checkpoint has; eigenvalue = k; ritz = the longest
quadrature.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.errors import MissingDependencyError, StoreError
from landscape.manifest import canonical_json
from landscape.store.contents import StoreContents
from landscape.store.record import SpectraTable
from landscape.store.table import UNIT, unit_of

if TYPE_CHECKING:
    from xarray import Dataset

_TOP, _RITZ, _BATCH = ("batch", "eigenvalue"), ("batch", "ritz"), ("batch",)
_RELATIVE = "|Hv - lambda v| / |lambda|"
# Variables with a row per batch: further dimensions, unit, and meaning of each.
VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "eigenvalues": (_TOP, UNIT, "eigenvalues in the order of the solver"),
    "residuals": (_TOP, "1", f"relative residual {_RELATIVE} of each eigenvalue"),
    "converged": (
        _TOP,
        "1",
        "1 where the residual met the tolerance, 0 where not, NaN where nothing was measured",
    ),
    "smallest": (_TOP, UNIT, "smallest Ritz values, outermost first"),
    "smallest_residuals": (_TOP, "1", f"relative residual {_RELATIVE} of each"),
    "largest": (_TOP, UNIT, "largest Ritz values, outermost first"),
    "largest_residuals": (_TOP, "1", f"relative residual {_RELATIVE} of each"),
    "value_bounds": (
        _TOP,
        UNIT,
        "bound of |lambda - eigenvalue|, if what is unseen lies in the hull of the unwanted Ritz "
        "values with their residuals",
    ),
    "ritz_values": (_RITZ, UNIT, "nodes of the Krylov quadrature"),
    "ritz_weights": (_RITZ, "1", "weights of the Krylov quadrature, which sum to 1"),
    "num_matvecs": (_BATCH, "1", "Hessian-vector products spent"),
    "num_negative": (
        _BATCH,
        "1",
        "certified lower bound of the number of negative eigenvalues; NaN where there is none",
    ),
    "num_positive": (
        _BATCH,
        "1",
        "certified lower bound of the number of positive eigenvalues; NaN where there is none",
    ),
    "missed_distance": (
        _BATCH,
        "1",
        "a further eigenvalue missed with more than 1 % is this near to a value found, as a "
        "fraction; NaN without a look",
    ),
    "missed_probability": (
        _BATCH,
        "1",
        "largest probability that a further eigenvalue, more than 5 % from every value found, was "
        "missed; NaN without a look",
    ),
    "loss": (_BATCH, "nat", "loss of the batch"),
    "seconds": (_BATCH, "s", "CPU time"),
    "orthogonality_defect": (_BATCH, "1", "max |V^T V - I| of the Krylov basis"),
    "num_unused": (
        _BATCH,
        "1",
        "parameters that the batch cannot move: zeros of the spectrum; NaN where nobody counted",
    ),
    "parameter_norm": (_BATCH, "1", "Euclidean norm of the parameters that the Hessian is of"),
}


# Variables with one value per checkpoint: unit (empty for a text) and meaning of each.
CHECKPOINTS: dict[str, tuple[str, str]] = {
    "checkpoint_sha256": ("", "SHA-256 digest of the weights"),
    "num_params": ("1", "size of the Hessian"),
    "num_planned": ("1", "batches that the manifest asks for"),
    "settings": ("", "how the products were computed, as JSON"),
    "versions": ("", "of the libraries that measured, as JSON"),
    "extras": (
        "",
        "further facts as JSON; 'audit' is the verdict on the products, 'several' those of runs "
        "that differ",
    ),
}
# Coordinates: dimension, unit (empty for a text) and meaning of each.
COORDINATES: dict[str, tuple[str, str, str]] = {
    "series": ("series", "", "name of the series of checkpoints in the manifest"),
    "label": ("series", "", "what figures call the series"),
    "model": ("series", "", "model of the series"),
    "epoch": ("epoch", "1", "finished epochs of training; 0 is initialisation"),
    "batch": ("batch", "1", "index of the mini-batch in the protocol"),
    "eigenvalue": ("eigenvalue", "1", "rank of the eigenvalue, from 0"),
    "ritz": ("ritz", "1", "index of the node in its quadrature"),
}
_DIGESTS = "SHA-256 digest of the samples of the batch"


def to_dataset(tables: Sequence[SpectraTable], plan: StoreContents, *, path: Path) -> "Dataset":
    """Build the dataset of the spectra of whole models.

    Its dimensions are (series, epoch, batch, eigenvalue, ritz). What was not measured is NaN, so
    every number is a float64; texts are empty there. The dataset holds `VARIABLES`, `CHECKPOINTS`,
    `COORDINATES` and `batch_sha256`, and nothing else. Each has the attributes `long_name` and, for
    numbers, `units`. The dataset has the protocol (JSON), digests and the version of landscape as
    attributes. Spectra of modules are not part of it: see `SpectrumStore.modules`.

    Args:
        tables: One table per checkpoint, in the order of the plan.
        path: Path of the store, for messages.

    Raises:
        MissingDependencyError: If xarray is not installed.
        StoreError: If nothing is stored yet.
    """
    try:
        import xarray
    except ImportError as error:
        raise MissingDependencyError(
            "to_xarray needs xarray, which is not installed; install it with `pip install xarray`."
        ) from error
    if not tables:
        raise StoreError(f"{path}: it holds no eigenvalues yet. Run `landscape spectra` first.")
    coordinates = _coordinates(tables)
    sizes = {name: len(values) for name, values in coordinates.items()}
    own_unit = unit_of(tables[0].settings)
    variables = {
        name: (
            ("series", "epoch", *dims),
            _filled(name, dims, tables, coordinates, sizes),
            {"units": own_unit if unit == UNIT else unit, "long_name": meaning},
        )
        for name, (dims, unit, meaning) in VARIABLES.items()
    }
    texts = {
        "batch_sha256": _digests(tables, coordinates, sizes),
        **_of_checkpoints(tables, coordinates, sizes),
    }
    values = {**coordinates, **_of_series(tables)}
    described = {
        name: (dim, values[name], _attributes_of(unit, meaning))
        for name, (dim, unit, meaning) in COORDINATES.items()
    }
    return xarray.Dataset({**variables, **texts}, coords=described, attrs=_attributes(plan))


def _coordinates(tables: Sequence[SpectraTable]) -> dict[str, Any]:
    longest = max(table.ritz_values.shape[1] for table in tables)
    return {
        "series": list(dict.fromkeys(table.series for table in tables)),
        "epoch": sorted({table.epoch for table in tables}),
        "batch": sorted({int(batch) for table in tables for batch in table.batch}),
        "eigenvalue": np.arange(tables[0].eigenvalues.shape[1]),
        "ritz": np.arange(longest),
    }


def _filled(
    name: str,
    dims: tuple[str, ...],
    tables: Sequence[SpectraTable],
    coordinates: dict[str, Any],
    sizes: dict[str, int],
) -> np.ndarray:
    """Gather a column of all tables, NaN where missing."""
    whole = np.full([sizes[dim] for dim in ("series", "epoch", *dims)], np.nan)
    for table in tables:
        column = np.asarray(getattr(table, name), dtype=np.float64)
        if name.startswith("num_"):
            column = np.where(column < 0, np.nan, column)
        rows = np.searchsorted(coordinates["batch"], table.batch)
        place = whole[
            coordinates["series"].index(table.series), coordinates["epoch"].index(table.epoch)
        ]
        if column.ndim == 1:
            place[rows] = column
        else:
            place[rows, : column.shape[1]] = column
    return whole


def _digests(
    tables: Sequence[SpectraTable], coordinates: dict[str, Any], sizes: dict[str, int]
) -> tuple[Any, ...]:
    dims = ("series", "epoch", "batch")
    whole = np.full([sizes[dim] for dim in dims], "", dtype="<U64")
    for table in tables:
        rows = np.searchsorted(coordinates["batch"], table.batch)
        whole[
            coordinates["series"].index(table.series), coordinates["epoch"].index(table.epoch), rows
        ] = table.batch_sha256
    return dims, whole, _attributes_of("", _DIGESTS)


def _of_checkpoints(
    tables: Sequence[SpectraTable], coordinates: dict[str, Any], sizes: dict[str, int]
) -> dict[str, Any]:
    """Build the variables with one value per checkpoint."""
    dims = ("series", "epoch")
    variables = {}
    for name, (unit, meaning) in CHECKPOINTS.items():
        whole = np.full(
            [sizes[dim] for dim in dims],
            np.nan if unit else "",
            dtype=np.float64 if unit else object,
        )
        for table in tables:
            value = getattr(table, name)
            place = (
                coordinates["series"].index(table.series),
                coordinates["epoch"].index(table.epoch),
            )
            whole[place] = canonical_json(value) if isinstance(value, Mapping) else value
        variables[name] = (
            dims,
            whole if unit else whole.astype(str),
            _attributes_of(unit, meaning),
        )
    return variables


def _of_series(tables: Sequence[SpectraTable]) -> dict[str, Any]:
    """Build the coordinates along the series: labels and models."""
    of = {table.series: table for table in tables}
    return {name: [getattr(table, name) for table in of.values()] for name in ("label", "model")}


def _attributes_of(unit: str, meaning: str) -> dict[str, str]:
    return {"long_name": meaning, **({"units": unit} if unit else {})}


def _attributes(plan: StoreContents) -> dict[str, Any]:
    return {
        "protocol": canonical_json(plan.protocol),
        "protocol_sha256": plan.protocol_sha256,
        "manifest_sha256": plan.manifest_sha256,
        "landscape_version": plan.landscape_version,
    }
