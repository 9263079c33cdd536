"""A store as one xarray.Dataset, so that users go on with tools of their own.

Shapes: series, epoch, batch = all that any checkpoint has; eigenvalue = k; ritz = the longest quadrature.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from landscape.errors import MissingDependencyError, StoreError
from landscape.manifest import canonical_json
from landscape.store.record import SpectraTable
from landscape.store.table import UNIT

if TYPE_CHECKING:
    from xarray import Dataset

    from landscape.store.store import SpectrumStore

_TOP, _RITZ, _BATCH = ("batch", "eigenvalue"), ("batch", "ritz"), ("batch",)
_RELATIVE = "|Hv - lambda v| / |lambda|"
# Of every variable with a row per batch: its further dimensions, its unit, and what it is.
VARIABLES: dict[str, tuple[tuple[str, ...], str, str]] = {
    "eigenvalues": (_TOP, UNIT, "eigenvalues in the order of the solver"),
    "residuals": (_TOP, "1", f"relative residual {_RELATIVE} of each eigenvalue"),
    "converged": (_TOP, "1", "1 where the residual met the tolerance, 0 where not, NaN where nothing was measured"),
    "smallest": (_TOP, UNIT, "smallest Ritz values, outermost first"),
    "smallest_residuals": (_TOP, "1", f"relative residual {_RELATIVE} of each"),
    "largest": (_TOP, UNIT, "largest Ritz values, outermost first"),
    "largest_residuals": (_TOP, "1", f"relative residual {_RELATIVE} of each"),
    "ritz_values": (_RITZ, UNIT, "nodes of the Krylov quadrature"),
    "ritz_weights": (_RITZ, "1", "weights of the Krylov quadrature, which sum to 1"),
    "num_matvecs": (_BATCH, "1", "Hessian-vector products spent"),
    "num_negative": (_BATCH, "1", "certified lower bound of the number of negative eigenvalues; NaN where there is none"),
    "num_positive": (_BATCH, "1", "certified lower bound of the number of positive eigenvalues; NaN where there is none"),
    "loss": (_BATCH, "nat", "loss of the batch"),
    "seconds": (_BATCH, "s", "CPU time"),
    "orthogonality_defect": (_BATCH, "1", "max |V^T V - I| of the Krylov basis"),
    "num_unused": (_BATCH, "1", "parameters that the batch cannot move: zeros of the spectrum; NaN where nobody counted"),
    "parameter_norm": (_BATCH, "1", "Euclidean norm of the parameters that the Hessian is of"),
}


def to_dataset(store: "SpectrumStore") -> "Dataset":
    """Everything that is stored, with the dimensions (series, epoch, batch, eigenvalue, ritz).

    What was not measured is NaN, so every number is a float64; digests are strings, empty where nothing was measured.
    Coordinates: the names of the series, their labels and models, epochs, indices of batches, ranks of eigenvalues. Every
    variable has the attributes `units` and `long_name`; the dataset has protocol, versions and digests as JSON or text.

    Raises:
        MissingDependencyError: If xarray is not installed.
        StoreError: If nothing is stored yet.
    """
    try:
        import xarray
    except ImportError as error:
        raise MissingDependencyError(
            "to_xarray needs xarray, which is not installed; install it with `pip install 'landscape[analysis]'`."
        ) from error
    tables = [store.records(name, epoch) for name in store.series() for epoch in store.epochs(name)]
    if not tables:
        raise StoreError(f"{store.path}: it holds no eigenvalues yet. Run `landscape spectra` first.")
    coordinates = _coordinates(tables)
    sizes = {name: len(values) for name, values in coordinates.items()}
    variables = {
        name: (("series", "epoch", *dims), _filled(name, dims, tables, coordinates, sizes), {"units": unit, "long_name": meaning})
        for name, (dims, unit, meaning) in VARIABLES.items()
    }
    texts = {"batch_sha256": _digests(tables, coordinates, sizes), **_of_checkpoints(tables, coordinates, sizes)}
    return xarray.Dataset({**variables, **texts}, coords={**coordinates, **_of_series(tables)}, attrs=_attributes(store))


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
    name: str, dims: tuple[str, ...], tables: Sequence[SpectraTable], coordinates: dict[str, Any], sizes: dict[str, int]
) -> np.ndarray:
    """A column of all tables in one array, NaN where a table has no such entry."""
    whole = np.full([sizes[dim] for dim in ("series", "epoch", *dims)], np.nan)
    for table in tables:
        column = np.asarray(getattr(table, name), dtype=np.float64)
        if name.startswith("num_"):
            column = np.where(column < 0, np.nan, column)
        rows = np.searchsorted(coordinates["batch"], table.batch)
        place = whole[coordinates["series"].index(table.series), coordinates["epoch"].index(table.epoch)]
        if column.ndim == 1:
            place[rows] = column
        else:
            place[rows, : column.shape[1]] = column
    return whole


def _digests(tables: Sequence[SpectraTable], coordinates: dict[str, Any], sizes: dict[str, int]) -> tuple[Any, ...]:
    dims = ("series", "epoch", "batch")
    whole = np.full([sizes[dim] for dim in dims], "", dtype="<U64")
    for table in tables:
        rows = np.searchsorted(coordinates["batch"], table.batch)
        whole[coordinates["series"].index(table.series), coordinates["epoch"].index(table.epoch), rows] = table.batch_sha256
    return dims, whole, {"long_name": "SHA-256 digest of the pairs of the batch"}


def _of_checkpoints(tables: Sequence[SpectraTable], coordinates: dict[str, Any], sizes: dict[str, int]) -> dict[str, Any]:
    """Facts with one value per checkpoint."""
    dims = ("series", "epoch")
    digests = np.full([sizes[dim] for dim in dims], "", dtype="<U64")
    params = np.full([sizes[dim] for dim in dims], np.nan)
    for table in tables:
        place = coordinates["series"].index(table.series), coordinates["epoch"].index(table.epoch)
        digests[place], params[place] = table.checkpoint_sha256, table.num_params
    return {
        "checkpoint_sha256": (dims, digests, {"long_name": "SHA-256 digest of the weights"}),
        "num_params": (dims, params, {"units": "1", "long_name": "size of the Hessian"}),
    }


def _of_series(tables: Sequence[SpectraTable]) -> dict[str, Any]:
    """Coordinates along the series: what figures call them, and their models."""
    of = {table.series: table for table in tables}
    return {name: ("series", [getattr(table, name) for table in of.values()]) for name in ("label", "model")}


def _attributes(store: "SpectrumStore") -> dict[str, Any]:
    return {
        "protocol": canonical_json(store.plan.protocol),
        "protocol_sha256": store.plan.protocol_sha256,
        "manifest_sha256": store.plan.manifest_sha256,
        "landscape_version": store.plan.landscape_version,
    }
