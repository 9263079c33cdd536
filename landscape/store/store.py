"""SpectrumStore: what has been measured so far."""

import os
import weakref
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py

from landscape.errors import StoreError
from landscape.manifest import Manifest
from landscape.manifest.document import nearest
from landscape.store import schema
from landscape.store.agreement import module_record_of_row, record_of_row
from landscape.store.index import Entry, Key, OnError, PartIndex
from landscape.store.module_record import ModuleRecord, ModuleTable
from landscape.store.module_shelf import ModuleShelf
from landscape.store.parts import RejectedPart, parts_folder, read_parts, read_plan, split_fitting
from landscape.store.plan import Plan, check_resumable
from landscape.store.record import COLUMNS, Record, SpectraTable, table_of
from landscape.store.table import joined, task_key
from landscape.store.xarray import to_dataset

if TYPE_CHECKING:
    from xarray import Dataset


class SpectrumStore:
    """A snapshot of an output: the merged file and the parts beside it, as they were when it was opened.

    Of the parts it keeps where each record lies; records are read when they are asked for. A run may go on writing
    meanwhile; open again to see more. Use it as a context manager, or close it.

    Attributes:
        path: The merged file, which is not there before the first merge.
        plan: What the output is going to hold.
        merged_plan: What the merged file was going to hold; None without one.
        rejected: Parts that are not used, each with the reason.
    """

    def __init__(
        self,
        path: Path,
        plan: Plan,
        *,
        merged_plan: Plan | None = None,
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
        self._shelf = ModuleShelf(path, file, of_modules)

    @property
    def identities(self) -> dict[Key, tuple[str, int]]:
        """Digest of the weights and number of parameters of each (series, epoch) that has a record, in planned order."""
        return self._ordered(self._index.identities | self._merged_identities)

    @property
    def module_identities(self) -> dict[Key, tuple[str, int]]:
        """The same of each (series, epoch) of which the spectra of modules are stored."""
        return self._ordered(self._shelf.identities)

    def _ordered(self, identities: dict[Key, tuple[str, int]]) -> dict[Key, tuple[str, int]]:
        planned = ((series.name, epoch) for series in self.plan.series for epoch in series.epochs)
        return {key: identities[key] for key in planned if key in identities}

    def _enter(self, entry: Entry) -> None:
        """Take in a record that the writer of this output has just stored."""
        (self._index if entry.origin.modules is None else self._shelf.index).add(entry)

    @classmethod
    def open(cls, path: str | Path, *, series: Sequence[str] | None = None) -> Self:
        """Open a finished or a growing output for reading.

        Args:
            series: Names of those to see, as if there were no other; default: all.

        Raises:
            StoreError: If nothing is there, it is no store, of another version of the schema, or damaged, or a series is not
                planned.
        """
        store = cls._read(Path(os.path.realpath(path)), fallback=None)
        if store is None:
            raise StoreError(f"{path}: there is no such store; `landscape spectra` writes one.")
        if series:
            store._keep(series)
        return store

    def _keep(self, series: Sequence[str]) -> None:
        """Forget all other series."""
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
    def _read(cls, path: Path, *, fallback: Plan | None) -> Self | None:
        """The snapshot; None if nothing is there. `fallback` is of a writer: the plan of parts whose own is lost."""
        folder = parts_folder(path)
        planned = read_plan(folder)
        # Parts first, then the file: a merge in between moves records from what was read to what is read next.
        entries, rejected = read_parts(folder)
        if isinstance(planned, RejectedPart):
            rejected, planned = [planned, *rejected], None
        file = schema.open_file(path, to_write=fallback is not None)
        try:
            merged_plan = None if file is None else schema.read_plan_of_file(file, path)
            if (
                planned is not None
                and merged_plan is not None
                and planned.protocol != merged_plan.protocol
            ):
                raise StoreError(
                    f"{folder}: its parts were not measured for {path}, which has other settings; move it away."
                )
            shelf = ModuleShelf(path, file)
            identities = shelf.identities | (
                {} if file is None else schema.stored_checkpoints(file, path)
            )
            plans = (plan for plan in (planned, merged_plan, fallback) if plan is not None)
            plan = next(
                (plan for plan in plans if all(plan.holds(*key) for key in identities)), None
            )
            if plan is None:
                if file is None and not entries and not rejected:
                    return None
                raise StoreError(
                    f"{path}: its plan is lost; run `landscape spectra` on its manifest again, which mends it."
                )
            modules = {
                name: names for name, _ in identities if (names := shelf.modules(name)) is not None
            }
            entries, foreign = split_fitting(entries, plan, identities, modules)
            return cls(
                path,
                plan,
                merged_plan=merged_plan,
                file=file,
                entries=entries,
                rejected=[*rejected, *foreign],
            )
        except BaseException:
            if file is not None:
                file.close()
            raise

    @classmethod
    def check(cls, path: str | Path, manifest: Manifest) -> frozenset[str]:
        """Check that a `SpectrumWriter` would go on with an output, and return the keys it would find stored.

        Writes nothing.

        Raises:
            StoreError: As `SpectrumWriter`.
        """
        path = checked_target(path)
        store = cls._read(path, fallback=Plan.of(manifest))
        if store is None:
            return frozenset()
        with store:
            check_resumable(path, store.plan, store.stored(), manifest)
            return store.completed_keys()

    def series(self) -> tuple[str, ...]:
        """Names of the series that have a record, in the order of the manifest."""
        return tuple(dict.fromkeys(name for name, _ in self.identities))

    def epochs(self, series: str) -> tuple[int, ...]:
        """Epochs of a series that have a record.

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
        """Everything that is stored of one checkpoint.

        Raises:
            StoreError: If nothing is, or the file is damaged.
        """
        if epoch not in self.epochs(series):
            found = ", ".join(map(str, self.epochs(series)))
            raise StoreError(
                f"{self.path}: series {series!r} has no epoch {epoch}; it has {found}."
            )
        table = self._table((series, epoch))
        assert table is not None, "a record that became unreadable is an error here"
        return table

    def _facts(self, series: str) -> dict[str, Any]:
        """What the plan says of the tables of a series."""
        planned = self.plan.named(series)
        assert planned is not None, "a plan holds what it was checked against"
        return {
            "model": planned.model,
            "label": planned.label,
            "num_planned": self.plan.num_batches,
        }

    def _table(self, key: Key, *, on_error: OnError = None) -> SpectraTable | None:
        """The spectra of one checkpoint; None if nothing is readable. `on_error` as in `PartIndex.read`."""
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
        return self._shelf.table(key, on_error=on_error, **self._facts(key[0]))

    def stored_record(self, series: str, epoch: int, batch: int) -> Record | None:
        """One record; None if it is not stored. Of the merged file, settings and extras are those of its checkpoint."""
        key = (series, epoch)
        if (record := self._index.record(key, batch)) is not None or (
            table := self._merged_table(key)
        ) is None:
            return record
        rows = table.batch.tolist()
        return record_of_row(table, rows.index(batch)) if batch in rows else None

    def stored_module_record(self, series: str, epoch: int, batch: int) -> ModuleRecord | None:
        """The same of the spectra of the modules of one batch."""
        key = (series, epoch)
        if (record := self._shelf.index.record(key, batch)) is not None:
            return record
        table = self._shelf.merged_table(key, **self._facts(series))
        rows = [] if table is None else table.batch.tolist()
        return (
            module_record_of_row(table, rows.index(batch))
            if table is not None and batch in rows
            else None
        )

    def to_xarray(self) -> "Dataset":
        """The spectra of whole models as one xarray.Dataset; docs/xarray.md lists its dimensions and variables.

        Spectra of modules are no part of it: see `modules`.

        Raises:
            MissingDependencyError: If xarray is not installed.
            StoreError: If nothing is stored yet, or the file is damaged.
        """
        tables = [self.records(*key) for key in self.identities]
        return to_dataset(tables, self.plan, path=self.path)

    def batches(self, series: str, epoch: int) -> dict[int, str]:
        """Digest of the pairs of each batch that is stored of one checkpoint; empty if none is."""
        return self._index.batches((series, epoch)) | self._merged.get((series, epoch), {})

    def modules(self, series: str, epoch: int) -> ModuleTable:
        """The spectra of all modules that are stored of one checkpoint, with `batch` and `modules` as coordinates.

        Raises:
            StoreError: If none is, or the file is damaged.
        """
        if (series, epoch) not in self.module_identities:
            stored = (
                ", ".join(f"{name} epoch {number}" for name, number in self.module_identities)
                or "none at all"
            )
            raise StoreError(
                f"{self.path}: it has no spectra of modules of {series} epoch {epoch}, but of {stored}. "
                "`landscape spectra --per-module` measures them."
            )
        table = self._module_table((series, epoch))
        assert table is not None, "a record that became unreadable is an error here"
        return table

    def module_names(self, series: str) -> tuple[str, ...] | None:
        """The modules of a series of which spectra are stored, in the order of the network; None if none is."""
        return self._shelf.modules(series)

    def module_batches(self, series: str, epoch: int) -> dict[int, str]:
        """Digest of the pairs of each batch of which the spectra of modules are stored."""
        return self._shelf.batches((series, epoch))

    def completed_modules(self) -> frozenset[str]:
        """Keys of all batches of which the spectra of modules are stored."""
        return frozenset(
            task_key(*key, batch)
            for key in self.module_identities
            for batch in self.module_batches(*key)
        )

    def stored(self) -> dict[tuple[str, int], str]:
        """Digest of the weights of each (series, epoch) of which anything is stored."""
        return {
            key: digest for key, (digest, _) in (self.module_identities | self.identities).items()
        }

    def completed_keys(self) -> frozenset[str]:
        """Keys of all records that are stored."""
        return frozenset(
            task_key(*key, batch) for key in self.identities for batch in self.batches(*key)
        )

    def close(self) -> None:
        self._close()
        self._index.close()
        self._shelf.index.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def checked_target(path: str | Path) -> Path:
    """Where the output really is, symbolic links followed.

    Raises:
        StoreError: If a file cannot be written there.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise StoreError(f"{path}: there is no folder {target.parent}; make it first.")
    if target.exists() and not target.is_file():
        raise StoreError(f"{path}: not a regular file; name a file such as spectra.h5.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise StoreError(
            f"{path}: the folder {target.parent} is not writable; name another output."
        )
    return target
