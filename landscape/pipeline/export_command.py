"""`landscape export`: an output as one flat table, CSV or Parquet."""

import importlib.util
import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from landscape.errors import LandscapeError, MissingDependencyError, OptionError, StoreError
from landscape.files import write_atomically
from landscape.report.describe import kind_of
from landscape.store import SpectrumStore, frames, read_densities, read_surface
from landscape.store.predictions import read_predictions
from landscape.suggestions import nearest

if TYPE_CHECKING:
    from pandas import DataFrame

SUFFIXES = (".csv", ".parquet")
# The tables of each kind of file, the default first.
TABLES = {
    "store": ("eigenvalues", "batches", "quadratures", "modules"),
    "densities": ("quadratures",),
    "surface": ("points",),
    "predictions": ("answers",),
}

# What other files of this package are called; a file of unknown content counts as a checkpoint.
_OTHERS = {"monitor": "the record of a monitor", "manifest": "a manifest"}


def export(
    path: Path,
    output: Path,
    *,
    table: str | None = None,
    series: Sequence[str] = (),
    epochs: Sequence[int] | None = None,
) -> str:
    """Write a table of an output as CSV or Parquet, by the suffix.

    Args:
        table: One of `TABLES` of the kind of file; by default the first.
        series, epochs: Checkpoints of the table; by default all.

    Returns:
        A sentence that says what was written.

    Raises:
        LandscapeError: If the file has no such table or no such checkpoints, or the output cannot
            be written.
    """
    suffix = _checked_suffix(output)
    kind = kind_of(path)
    if kind not in TABLES:
        raise LandscapeError(
            f"{path}: is {_OTHERS.get(kind, 'none of them')}, and tables are made of a store, a "
            "file of densities, a loss surface or predictions. Name one of these."
        )
    table = table or TABLES[kind][0]
    if table not in TABLES[kind]:
        listed = ", ".join(TABLES[kind])
        raise OptionError(f"{path}: --table {table} is not of such a file; it has {listed}.")
    frame = _frame(path, kind, table, series, None if epochs is None else frozenset(epochs))
    if not len(frame):
        raise StoreError(
            f"{path}: has no {table} of these series and epochs, so the table would be empty."
        )
    _write(frame, output, suffix)
    return f"{output}: {len(frame):,} rows ({table}), {len(frame.columns)} columns."


def _checked_suffix(output: Path) -> str:
    suffix = output.suffix.lower()
    if suffix not in SUFFIXES:
        raise LandscapeError(
            f"{output}: a table is one of {', '.join(SUFFIXES)}; name such a file with -o."
        )
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise MissingDependencyError(
            f"{output}: Parquet needs pyarrow, which is not installed. Install it with `pip "
            "install pyarrow`, or name a .csv file."
        )
    return suffix


def _frame(
    path: Path, kind: str, table: str, series: Sequence[str], epochs: frozenset[int] | None
) -> "DataFrame":
    if kind == "surface":
        if series or epochs:
            raise OptionError(
                f"{path}: --series and --epochs choose checkpoints, and this is a surface of one; "
                "leave them out."
            )
        stored = read_surface(path)
        assert stored is not None, "the caller has seen the file"
        return frames.surface_frame(stored)
    if kind == "store":
        return _of_store(path, table, series, epochs)
    if kind == "densities":
        records = read_densities(path)
        keys = _chosen(path, [(record.series, record.epoch) for record in records], series, epochs)
        return frames.density_frame(
            record for record in records if (record.series, record.epoch) in keys
        )
    predictions = read_predictions(path)
    assert predictions is not None, "the caller has seen the file"
    keys = _chosen(path, list(predictions.checkpoints), series, epochs)
    return frames.prediction_frame(predictions, (predictions.checkpoints[key] for key in keys))


def _of_store(
    path: Path, table: str, series: Sequence[str], epochs: frozenset[int] | None
) -> "DataFrame":
    with SpectrumStore.open(path, series=series) as store:
        if table == "modules":
            keys = _chosen(path, list(store.module_identities), (), epochs)
            return frames.module_frame(store.modules(*key) for key in keys)
        build = {
            "eigenvalues": frames.eigenvalue_frame,
            "batches": frames.batch_frame,
            "quadratures": frames.quadrature_frame,
        }[table]
        keys = _chosen(path, list(store.identities), (), epochs)
        return build(store.records(*key) for key in keys)


def _chosen(
    path: Path,
    stored: Sequence[tuple[str, int]],
    series: Sequence[str],
    epochs: frozenset[int] | None,
) -> list[tuple[str, int]]:
    """Choose among the stored checkpoints, in their order.

    Raises:
        StoreError: If nothing is stored, or a series or an epoch is not.
    """
    if not stored:
        raise StoreError(f"{path}: holds nothing of this table yet, so there is nothing to write.")
    names = dict.fromkeys(name for name, _ in stored)
    for name in series:
        if name not in names:
            raise StoreError(f"{path}: it has no series {name!r}; {nearest(name, names)}")
    known = sorted({epoch for _, epoch in stored})
    for epoch in sorted(epochs or ()):
        if epoch not in known:
            raise StoreError(f"{path}: no series has an epoch {epoch}; stored are {known}.")
    return [
        key
        for key in stored
        if (not series or key[0] in series) and (epochs is None or key[1] in epochs)
    ]


def _write(frame: "DataFrame", output: Path, suffix: str) -> None:
    if suffix == ".csv":
        content = frame.to_csv(index=False, lineterminator="\n").encode()
    else:
        stream = io.BytesIO()
        frame.to_parquet(stream, engine="pyarrow", index=False)
        content = stream.getvalue()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(output, content)
    except OSError as error:
        raise StoreError(
            f"{output}: cannot be written ({error.strerror or error}), so there is no table; "
            "choose a folder that is writable."
        ) from error
