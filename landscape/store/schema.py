"""HDF5 schema, version 1: the merged file.

specified_spectra.py lists every group, attribute and dataset; docs/store.md prints it.
"""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from landscape.errors import StoreError
from landscape.manifest import canonical_json
from landscape.store.contents import SCHEMA_VERSION, StoreContents, check_schema_version
from landscape.store.hdf5 import (
    corrupt_file_errors,
    groups_in,
    open_hdf5,
    read_array,
    read_texts,
    save_hdf5,
)
from landscape.store.module_record import ModuleTable
from landscape.store.module_tables import write_module_table
from landscape.store.record import COLUMNS, LATER, PER_VALUE, RITZ, SpectraTable, check_table
from landscape.store.table import batches_in, read_facts, unit_of, write_attributes
from landscape.store.vectors import StoredVectors


def write_file(
    path: Path,
    plan: StoreContents,
    tables: Iterable[SpectraTable],
    module_tables: Iterable[ModuleTable] = (),
    vectors: Iterable[StoredVectors] = (),
    *,
    num_bytes: int = 0,
    temporary: Path | None = None,
    check: Callable[[Path], None] | None = None,
) -> None:
    """Write a whole file, or leave the old one.

    The content is on the disk when this returns.

    Args:
        tables, module_tables, vectors: Iterated once, in this order, so that only one table is in
            memory at a time.
        num_bytes, temporary, check: As in `save_atomically`.

    Raises:
        OSError: If the disk does not take it.
    """

    def write(file: h5py.File, go_on: Callable[[], None]) -> None:
        file.attrs["schema_version"] = SCHEMA_VERSION
        file.attrs["landscape_version"] = plan.landscape_version
        file.attrs["manifest_sha256"] = plan.manifest_sha256
        file.attrs["protocol"] = canonical_json(plan.protocol)
        file.attrs["protocol_sha256"] = plan.protocol_sha256
        file.attrs["trained"] = canonical_json(
            {planned.name: planned.trained for planned in plan.series if planned.trained}
        )
        file.attrs["unit"] = unit_of(plan.protocol["hessian"])
        _write_plan(file.create_group("plan"), plan)
        spectra = file.create_group("spectra", track_order=True)
        for table in tables:
            go_on()
            series = spectra.get(table.series)
            if series is None:
                series = spectra.create_group(table.series, track_order=True)
            _write_table(series.create_group(str(table.epoch), track_order=True), table)
        for module_table in module_tables:
            go_on()
            write_module_table(file, module_table)
        for kept in vectors:
            go_on()
            kept.copy_to(file)

    save_hdf5(path, write, num_bytes=num_bytes, temporary=temporary, check=check)


def _write_plan(group: h5py.Group, plan: StoreContents) -> None:
    rows = [(planned, epoch) for planned in plan.series for epoch in planned.epochs]
    for name in ("series", "model", "label"):
        texts = [getattr(planned, "name" if name == "series" else name) for planned, _ in rows]
        group.create_dataset(name, data=texts, dtype=h5py.string_dtype())
    group.create_dataset("epoch", data=np.array([epoch for _, epoch in rows], dtype="<i8"))
    group.create_dataset("num_batches", data=np.full(len(rows), plan.num_batches, dtype="<i8"))


def _write_table(group: h5py.Group, table: SpectraTable) -> None:
    for name, dtype in COLUMNS.items():
        data = np.asarray(getattr(table, name), dtype=dtype)
        # A checksum, so that damage to the file is detected; it needs at least one element.
        group.create_dataset(name, data=data, fletcher32=data.size > 0)
    write_attributes(group, table, num_not_converged=table.num_not_converged)


# Kinds of other files of this program, and the commands that show them.
_OTHER_KINDS = {
    "predictions": "predictions, which `landscape table` and `landscape figure --kind ood` show",
    "loss surface": "a loss surface, which `landscape surface` draws",
}


def open_file(path: Path, *, to_write: bool = False) -> h5py.File | None:
    """Open a merged file for reading, if it exists.

    Args:
        to_write: Whether the caller is going to replace the file by another.

    Raises:
        StoreError: If it is no HDF5 file, no store, or of another version of the schema.
    """
    try:
        file = open_hdf5(path)
    except FileNotFoundError:
        return None
    except OSError as error:
        # The error of h5py for a file that is no HDF5 has no errno.
        if error.errno is not None:
            reason = (
                f"{path}: cannot be read ({error.strerror or error}); check its name and its "
                "permissions."
            )
            raise StoreError(reason) from error
        reason = "landscape would overwrite it. Name another output, or remove it."
        if not to_write:
            reason = (
                "so it is no store, or one that was cut short. Name a file that `landscape "
                "spectra` wrote."
            )
        raise StoreError(f"{path}: not an HDF5 file; {reason}") from error
    try:
        with corrupt_file_errors(path):
            version = file.attrs.get("schema_version")
            written_by = file.attrs.get("landscape_version")
            if version is None or written_by is None:
                raise StoreError(
                    f"{path}: an HDF5 file, but not a landscape store: it has no schema_version. "
                    "Name another one."
                )
            check_schema_version(path, version, written_by=written_by)
            if (kind := file.attrs.get("kind")) is not None:
                holds = _OTHER_KINDS.get(str(kind), "something else")
                raise StoreError(f"{path}: holds {holds}, and no spectra. Name another file.")
    except BaseException:
        file.close()
        raise
    return file


def read_plan_of_file(file: h5py.File, path: Path) -> StoreContents:
    """Read the plan of the run that merged the file.

    Raises:
        StoreError: If the file is damaged.
    """
    with corrupt_file_errors(path):
        group = file["plan"]
        columns = [read_texts(group, name) for name in ("series", "model", "label")]
        epochs = read_array(group, "epoch", dtype="<i8", shape=(len(columns[0]),))
        # Files written before this attribute was introduced lack it.
        trained = json.loads(file.attrs.get("trained", "{}"))
        series: dict[str, dict[str, Any]] = {}
        for name, model, label, epoch in zip(*columns, epochs, strict=True):
            series.setdefault(name, _planned(name, model, label, trained))["epochs"].append(epoch)
        return StoreContents.from_json(
            {
                "manifest_sha256": file.attrs["manifest_sha256"],
                "protocol": json.loads(file.attrs["protocol"]),
                "series": list(series.values()),
                "landscape_version": file.attrs["landscape_version"],
            }
        )


def _planned(name: str, model: str, label: str, trained: dict[str, Any]) -> dict[str, Any]:
    return {
        "name": name,
        "model": model,
        "label": label,
        "epochs": [],
        "trained": trained.get(name, {}),
    }


def stored_checkpoints(file: h5py.File, path: Path) -> dict[tuple[str, int], tuple[str, int]]:
    """Read the weights' digest and number of parameters of each checkpoint.

    Keys are (series, epoch), in the order of the file.

    Raises:
        StoreError: If the file is damaged.
    """
    with corrupt_file_errors(path):
        return {
            (series, int(epoch)): (
                str(table.attrs["checkpoint_sha256"]),
                int(table.attrs["num_params"]),
            )
            for series, epochs in groups_in(file["spectra"])
            for epoch, table in groups_in(epochs)
        }


def stored_batches(file: h5py.File, path: Path, series: str, epoch: int) -> dict[int, str]:
    """Read the digest of the pairs of each batch.

    Raises:
        StoreError: If the file is damaged.
    """
    with corrupt_file_errors(path):
        group = file[f"spectra/{series}/{epoch}"]
        return batches_in(group)


def _read_column(group: h5py.Group, name: str, shape: tuple[int, int]) -> np.ndarray:
    """Read a column of a table.

    In files older than the column, its values are unknown.
    """
    num_rows, k = shape
    if name in LATER and name not in group:
        return np.full(
            shape if name in PER_VALUE else shape[:1],
            -1 if COLUMNS[name] == "<i8" else np.nan,
            dtype=COLUMNS[name],
        )
    wide = name in ("eigenvalues", "residuals", "converged", *PER_VALUE)
    length = (num_rows, k) if wide else (num_rows, None) if name in RITZ else (num_rows,)
    return read_array(group, name, dtype=COLUMNS[name], shape=length)


def read_table(file: h5py.File, path: Path, series: str, epoch: int) -> SpectraTable:
    """Read the table of a checkpoint.

    Raises:
        StoreError: If the file is damaged, or holds a value that no measurement gives.
    """
    with corrupt_file_errors(path):
        group = file[f"spectra/{series}/{epoch}"]
        num_rows, k = group["eigenvalues"].shape
        columns: dict[str, Any] = {
            name: _read_column(group, name, (num_rows, k)) for name in COLUMNS
        }
        columns["batch_sha256"] = tuple(digest.decode() for digest in columns["batch_sha256"])
        facts = read_facts(group)
        facts |= {name: str(group.attrs[name]) for name in ("model", "label")} | {
            "num_planned": int(group.attrs["num_planned"])
        }
        table = SpectraTable(series=series, epoch=epoch, **facts, **columns)
        check_table(table)
        return table
