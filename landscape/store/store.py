"""SpectrumStore: a reader of what has been measured so far."""

import os
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py

from landscape.errors import StoreError
from landscape.manifest import Manifest
from landscape.store import schema
from landscape.store.agreement import module_record_of_row, record_of_row
from landscape.store.contents import StoreContents, check_resumable
from landscape.store.index import Entry, Key, OnError, PartIndex
from landscape.store.kept_vectors import KeptVectors
from landscape.store.module_record import ModuleRecord, ModuleTable
from landscape.store.module_tables import ModuleTables
from landscape.store.parts import (
    RejectedPart,
    parts_folder,
)
from landscape.store.place import checked_target
from landscape.store.record import COLUMNS, Record, SpectraTable, table_of
from landscape.store.snapshot import read_snapshot
from landscape.store.table import joined, task_key
from landscape.store.xarray import to_dataset
from landscape.suggestions import nearest

if TYPE_CHECKING:
    from xarray import Dataset


class SpectrumStore:
    """A snapshot of an output: the merged file and the parts beside it.

    Both are as they were when the store was opened. Of the parts it holds where each record lies;
    records are read on demand. A run may continue writing meanwhile; open again to see more. Use it
    as a context manager, or close it.

    Attributes:
        path: The merged file, which does not exist before the first merge.
        plan: The planned content of the output.
        merged_plan: The planned content of the merged file; None without a file.
        rejected: Parts that are not used, each with the reason.
        vectors: The kept eigenvectors.

    Examples:
        >>> import landscape
        >>> with landscape.SpectrumStore.open("spectra.h5") as store:
        ...     table = store.records("vit", 25)
        ...     print(store.series(), store.epochs("vit"), table.eigenvalues.shape)
        ('vit', 'vmamba', 'simba') (0, 5, 10, 15, 20, 25) (40, 5)
    """

    def __init__(
        self,
        path: Path,
        plan: StoreContents,
        *,
        merged_plan: StoreContents | None = None,
        file: h5py.File | None = None,
        entries: Iterable[Entry] = (),
        rejected: Iterable[RejectedPart] = (),
    ) -> None:
        entries = tuple(entries)
        self.path = path
        self.plan = plan
        self.merged_plan = merged_plan
        self.rejected = tuple(rejected)
        self._file = file
        self._close = weakref.finalize(self, file.close) if file is not None else lambda: None
        self._merged_identities = {} if file is None else schema.stored_checkpoints(file, path)
        self._merged = (
            {key: schema.stored_batches(file, path, *key) for key in self._merged_identities}
            if file
            else {}
        )
        self._index = PartIndex[Record](entry for entry in entries if entry.origin.modules is None)
        of_modules = PartIndex[ModuleRecord](
            entry for entry in entries if entry.origin.modules is not None
        )
        self._module_tables = ModuleTables(path, file, of_modules)
        self.vectors = KeptVectors(path, file, parts_folder(path))

    @property
    def identities(self) -> dict[Key, tuple[str, int]]:
        """Return weights' digest and number of parameters of each stored checkpoint.

        Keys are the (series, epoch) that have a record, in planned order.
        """
        return self._ordered(self._index.identities | self._merged_identities)

    @property
    def module_identities(self) -> dict[Key, tuple[str, int]]:
        """Return `identities` of checkpoints with stored spectra of modules."""
        return self._ordered(self._module_tables.identities)

    def _ordered(self, identities: dict[Key, tuple[str, int]]) -> dict[Key, tuple[str, int]]:
        planned = ((series.name, epoch) for series in self.plan.series for epoch in series.epochs)
        return {key: identities[key] for key in planned if key in identities}

    def _enter(self, entry: Entry) -> None:
        """Add a record that the writer has just stored."""
        (self._index if entry.origin.modules is None else self._module_tables.index).add(entry)

    @classmethod
    def open(cls, path: str | Path, *, series: Sequence[str] | None = None) -> Self:
        """Open a finished or growing output for reading.

        Args:
            series: Names of the series to read, as if there were no other; default: all.

        Raises:
            StoreError: If nothing is there, it is no store, of another version of the schema, or
                damaged, or a series is not planned.
        """
        store = cls._read(Path(os.path.realpath(path)), fallback=None)
        if store is None:
            raise StoreError(f"{path}: there is no such store; `landscape spectra` writes one.")
        if series:
            store._keep(series)
        return store

    @property
    def preconditioner(self) -> str:
        """What its eigenvalues are preconditioned by; "none" where they are those of the Hessian
        itself.
        """
        return str(self.plan.protocol["hessian"].get("preconditioner", "none"))

    def require_hessian(self, what: str) -> None:
        """Refuse a store of the preconditioned Hessian, for what would show its eigenvalues as
        those of the Hessian.

        Raises:
            StoreError: If it is one.
        """
        if self.preconditioner != "none":
            raise StoreError(
                f"{self.path}: holds eigenvalues of the Hessian preconditioned by "
                f"{self.preconditioner}, in other units than {what} would say. See them with "
                "`landscape info`, or in Python with SpectrumStore and to_xarray."
            )

    def _keep(self, series: Sequence[str]) -> None:
        """Drop all other series."""
        known = [planned.name for planned in self.plan.series]
        unknown = next((name for name in series if name not in known), None)
        if unknown is not None:
            self.close()
            raise StoreError(
                f"{self.path}: it has no series {unknown!r}; {nearest(unknown, known)}"
            )
        self.plan = replace(
            self.plan,
            series=tuple(planned for planned in self.plan.series if planned.name in series),
        )

    @classmethod
    def _read(cls, path: Path, *, fallback: StoreContents | None) -> Self | None:
        """Read the snapshot; None if nothing is there.

        `fallback` as in `read_snapshot`.
        """
        snapshot = read_snapshot(path, fallback=fallback)
        if snapshot is None:
            return None
        try:
            store = cls(
                path,
                snapshot.plan,
                merged_plan=snapshot.merged_plan,
                file=snapshot.file,
                entries=snapshot.entries,
                rejected=snapshot.rejected,
            )
            store._read_vectors()
            return store
        except BaseException:
            if snapshot.file is not None:
                snapshot.file.close()
            raise

    def _read_vectors(self) -> None:
        """Find the vectors among the parts that belong to the records."""
        records = {
            task_key(*key, batch): digest
            for key in self.identities
            for batch, digest in self.batches(*key).items()
        }
        self.vectors.read_parts(self.plan, self.module_identities | self.identities, records)
        self.rejected += tuple(self.vectors.rejected)

    @classmethod
    def check(
        cls, path: str | Path, manifest: Manifest, *, with_vectors: bool = False
    ) -> frozenset[str]:
        """Check that a `SpectrumWriter` would continue an output; return stored keys.

        Writes nothing.

        Args:
            with_vectors: Return only the keys of records with kept eigenvectors.

        Raises:
            StoreError: As `SpectrumWriter`.
        """
        path = checked_target(path)
        store = cls._read(path, fallback=StoreContents.of(manifest))
        if store is None:
            return frozenset()
        with store:
            check_resumable(path, store.plan, store.stored(), manifest)
            return store.completed_vectors() if with_vectors else store.completed_keys()

    def series(self) -> tuple[str, ...]:
        """Return the series with records, in manifest order."""
        return tuple(dict.fromkeys(name for name, _ in self.identities))

    def epochs(self, series: str) -> tuple[int, ...]:
        """Return the epochs of a series that have a record.

        Raises:
            StoreError: If the series has none.
        """
        epochs = tuple(epoch for name, epoch in self.identities if name == series)
        if not epochs:
            raise StoreError(
                f"{self.path}: it has no series {series!r}; {nearest(series, self.series())}"
            )
        return epochs

    def records(self, series: str, epoch: int) -> SpectraTable:
        """Read all stored spectra of a checkpoint.

        Raises:
            StoreError: If nothing is stored, or the file is damaged.
        """
        if epoch not in self.epochs(series):
            epochs = ", ".join(map(str, self.epochs(series)))
            raise StoreError(
                f"{self.path}: series {series!r} has no epoch {epoch}; it has {epochs}."
            )
        table = self._table((series, epoch))
        assert table is not None, "a record that became unreadable is an error here"
        return table

    def _facts(self, series: str) -> dict[str, Any]:
        """Return what the plan states about the tables of a series."""
        planned = self.plan.named(series)
        assert planned is not None, "a plan holds what it was checked against"
        return {
            "model": planned.model,
            "label": planned.label,
            "num_planned": self.plan.num_batches,
        }

    def _table(self, key: Key, *, on_error: OnError = None) -> SpectraTable | None:
        """Read the spectra of a checkpoint; None if nothing is readable.

        `on_error` as in `PartIndex.read`.
        """
        merged, facts = self._merged_table(key), self._facts(key[0])
        records = self._index.read(key, on_error=on_error)
        if not records:
            return merged
        table = table_of(records, **facts)
        return table if merged is None else replace(joined(merged, table, columns=COLUMNS), **facts)

    def _merged_table(self, key: Key) -> SpectraTable | None:
        if self._file is None or key not in self._merged:
            return None
        return replace(schema.read_table(self._file, self.path, *key), **self._facts(key[0]))

    def _module_table(self, key: Key, *, on_error: OnError = None) -> ModuleTable | None:
        return self._module_tables.table(key, on_error=on_error, **self._facts(key[0]))

    def stored_record(self, series: str, epoch: int, batch: int) -> Record | None:
        """Return a stored record; None if it is not stored.

        For a record of the merged file, settings and extras are those of its checkpoint.
        """
        key = (series, epoch)
        if (record := self._index.record(key, batch)) is not None or (
            table := self._merged_table(key)
        ) is None:
            return record
        rows = table.batch.tolist()
        return record_of_row(table, rows.index(batch)) if batch in rows else None

    def stored_module_record(self, series: str, epoch: int, batch: int) -> ModuleRecord | None:
        """Return the stored record of a batch's modules; None without one."""
        key = (series, epoch)
        if (record := self._module_tables.index.record(key, batch)) is not None:
            return record
        table = self._module_tables.merged_table(key, **self._facts(series))
        rows = [] if table is None else table.batch.tolist()
        return (
            module_record_of_row(table, rows.index(batch))
            if table is not None and batch in rows
            else None
        )

    def to_xarray(self) -> "Dataset":
        """Convert the spectra of whole models to an xarray.Dataset.

        docs/xarray.md lists its dimensions and variables. Spectra of modules are not part of it:
        see `modules`.

        Raises:
            MissingDependencyError: If xarray is not installed.
            StoreError: If nothing is stored yet, or the file is damaged.
        """
        tables = [self.records(*key) for key in self.identities]
        return to_dataset(tables, self.plan, path=self.path)

    def batches(self, series: str, epoch: int) -> dict[int, str]:
        """Return the digest of the pairs of each stored batch.

        Empty if the checkpoint has none.
        """
        return self._index.batches((series, epoch)) | self._merged.get((series, epoch), {})

    def modules(self, series: str, epoch: int) -> ModuleTable:
        """Read the stored spectra of all modules of a checkpoint.

        Coordinates are `batch` and `modules`.

        Raises:
            StoreError: If none is stored, or the file is damaged.
        """
        if (series, epoch) not in self.module_identities:
            stored = (
                ", ".join(f"{name} epoch {number}" for name, number in self.module_identities)
                or "none at all"
            )
            raise StoreError(
                f"{self.path}: it has no spectra of modules of {series} epoch {epoch}, but of "
                f"{stored}. `landscape spectra --per-module` measures them."
            )
        table = self._module_table((series, epoch))
        assert table is not None, "a record that became unreadable is an error here"
        return table

    def module_names(self, series: str) -> tuple[str, ...] | None:
        """Return the modules of a series with stored spectra.

        In the order of the network; None if none is stored.
        """
        return self._module_tables.modules(series)

    def module_batches(self, series: str, epoch: int) -> dict[int, str]:
        """Return the pairs' digest of batches with spectra of modules."""
        return self._module_tables.batches((series, epoch))

    def completed_modules(self) -> frozenset[str]:
        """Return the keys of batches with spectra of modules."""
        return frozenset(
            task_key(*key, batch)
            for key in self.module_identities
            for batch in self.module_batches(*key)
        )

    def stored(self) -> dict[tuple[str, int], str]:
        """Return the weights' digest of each checkpoint with anything stored.

        Keys are (series, epoch).
        """
        return {
            key: digest for key, (digest, _) in (self.module_identities | self.identities).items()
        }

    def completed_keys(self) -> frozenset[str]:
        """Return the keys of all stored records."""
        return frozenset(
            task_key(*key, batch) for key in self.identities for batch in self.batches(*key)
        )

    def completed_vectors(self) -> frozenset[str]:
        """Return the keys of records with kept eigenvectors."""
        return self.completed_keys() & self.vectors.keys()

    def close(self) -> None:
        self._close()
        self._index.close()
        self._module_tables.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
