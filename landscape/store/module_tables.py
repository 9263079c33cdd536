"""/modules/<series>/<epoch>/ of a store: the spectra of modules.

They lie beside the spectra of the whole models.

modules, module_params       coordinates: one per module, in the order of the network
datasets of `MODULE_COLUMNS` one row per batch, then per module; attributes as in
                             /spectra/<series>/<epoch>
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from landscape.store.hdf5 import corrupt_file_errors, groups_in, read_array, read_texts
from landscape.store.index import Key, OnError, PartIndex
from landscape.store.module_record import (
    MATRICES,
    MODULE_COLUMNS,
    MODULE_LATER,
    VECTORS,
    ModuleRecord,
    ModuleTable,
    check_module_table,
    module_table_of,
)
from landscape.store.table import batches_in, joined, read_facts, write_attributes

_GROUP = "modules"


class ModuleTables:
    """The spectra of modules in a snapshot of an output.

    They lie in the merged file, and in parts beside it.

    Args:
        file: The merged file, open; None without a file. Files older than spectra of modules have
            none.
        index: Index of the parts.

    Attributes:
        index: As given.

    Raises:
        StoreError: If the file is damaged.
    """

    def __init__(
        self, path: Path, file: h5py.File | None, index: PartIndex[ModuleRecord] | None = None
    ) -> None:
        self.index: PartIndex[ModuleRecord] = PartIndex() if index is None else index
        self._path = path
        self._groups: dict[Key, h5py.Group] = {}
        self._identities: dict[Key, tuple[str, int]] = {}
        with corrupt_file_errors(path):
            for series, epochs in (
                groups_in(file[_GROUP]) if file is not None and _GROUP in file else ()
            ):
                for epoch, group in groups_in(epochs):
                    self._groups[series, int(epoch)] = group
                    identity = (
                        str(group.attrs["checkpoint_sha256"]),
                        int(group.attrs["num_params"]),
                    )
                    self._identities[series, int(epoch)] = identity

    @property
    def identities(self) -> dict[Key, tuple[str, int]]:
        """Return weights' digest and number of parameters of each checkpoint.

        Keys are (series, epoch).
        """
        return self.index.identities | self._identities

    def batches(self, key: Key) -> dict[int, str]:
        """Return the digest of the pairs of each stored batch.

        Empty if the checkpoint has none.
        """
        batches = self.index.batches(key)
        if key in self._groups:
            with corrupt_file_errors(self._path):
                batches |= batches_in(self._groups[key])
        return batches

    def modules(self, series: str) -> tuple[str, ...] | None:
        """Return the modules of a series; None if none is stored.

        They are the same at all its epochs.
        """
        for key, group in self._groups.items():
            if key[0] == series:
                with corrupt_file_errors(self._path):
                    return _names(group)
        return next(
            (self.index.modules(key) for key in self.index.identities if key[0] == series), None
        )

    def merged_table(self, key: Key, **facts: Any) -> ModuleTable | None:
        """Read the merged table of a checkpoint, if any."""
        if key not in self._groups:
            return None
        with corrupt_file_errors(self._path):
            return _read(self._groups[key], key, facts)

    def table(self, key: Key, *, on_error: OnError = None, **facts: Any) -> ModuleTable | None:
        """Read all stored spectra of a checkpoint, if any.

        Args:
            on_error: As in `PartIndex.read`.
            facts: `model`, `label` and `num_planned`.
        """
        merged, records = self.merged_table(key, **facts), self.index.read(key, on_error=on_error)
        if not records:
            return merged
        table = module_table_of(records, **facts)
        return table if merged is None else joined(merged, table, columns=MODULE_COLUMNS)


def write_module_table(file: h5py.File, table: ModuleTable) -> None:
    """Write the table of a checkpoint into a file without it."""
    group = file.get(_GROUP) or file.create_group(_GROUP, track_order=True)
    series = group.get(table.series) or group.create_group(table.series, track_order=True)
    _write(series.create_group(str(table.epoch), track_order=True), table)


def _write(group: h5py.Group, table: ModuleTable) -> None:
    group.create_dataset("modules", data=list(table.modules), dtype=h5py.string_dtype())
    group.create_dataset(
        "module_params", data=np.asarray(table.module_params, dtype="<i8"), fletcher32=True
    )
    for name, dtype in MODULE_COLUMNS.items():
        # A checksum, so that damage to the file is detected.
        group.create_dataset(
            name, data=np.asarray(getattr(table, name), dtype=dtype), fletcher32=True
        )
    write_attributes(group, table, num_not_converged=table.num_not_converged)


def _names(group: h5py.Group) -> tuple[str, ...]:
    return tuple(read_texts(group, "modules"))


def _read(group: h5py.Group, key: Key, facts: Mapping[str, Any]) -> ModuleTable:
    """Read the table of a group of the merged file."""
    modules = _names(group)
    batch, _, k = group["eigenvalues"].shape
    shape = (batch, len(modules), k)
    columns: dict[str, Any] = {}
    for name, dtype in MODULE_COLUMNS.items():
        wanted = shape if name in MATRICES else shape[:2] if name in VECTORS else shape[:1]
        if name in MODULE_LATER and name not in group:
            columns[name] = np.full(wanted, np.nan)
            continue
        columns[name] = read_array(group, name, dtype=dtype, shape=wanted)
    columns["batch_sha256"] = tuple(digest.decode() for digest in columns["batch_sha256"])
    module_params = read_array(group, "module_params", dtype="<i8", shape=(len(modules),))
    table = ModuleTable(
        series=key[0],
        epoch=key[1],
        modules=modules,
        module_params=module_params,
        **read_facts(group),
        **facts,
        **columns,
    )
    check_module_table(table)
    return table
