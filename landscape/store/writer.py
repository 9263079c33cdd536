"""The single writer of an output.

Records go to a log; a merge puts them into a file by one rename.
"""

from collections import ChainMap
from collections.abc import Container, Iterable, MutableMapping, Sequence
from pathlib import Path
from typing import NoReturn, Self

from landscape.errors import StoreError
from landscape.manifest import Manifest
from landscape.manifest.samples import samples_of
from landscape.signals import stopping_later
from landscape.store.agreement import difference_within, differing_field
from landscape.store.contents import StoreContents, check_resumable
from landscape.store.index import Entries, Entry, Key
from landscape.store.lines import Part, encode_part
from landscape.store.lock import FolderLock
from landscape.store.log import LogWriter
from landscape.store.merged_file import write_merged
from landscape.store.module_record import ModuleRecord
from landscape.store.parts import (
    RejectedPart,
    has_parts,
    parts_folder,
    remove_parts,
    write_plan,
)
from landscape.store.place import checked_target, disk_trouble_named
from landscape.store.record import Record
from landscape.store.store import SpectrumStore
from landscape.store.vectors import VectorRecord
from landscape.store.versions import package_versions

AnyRecord = Record | ModuleRecord


class SpectrumWriter:
    """The single writer of an output, which it begins or continues.

    Records go to a log; `merge` makes them a single file.

    Use it as a context manager: leaving it releases the lock, keeps every record, and removes the
    folder of parts if there is none. It may be killed at any moment: when `add` has returned, the
    record is stored. For a single thread.

    Attributes:
        rejected: Parts that are not used, each with the reason.
        num_duplicates: Records that `add_all` was given again, with equal values.

    Raises:
        StoreError: If the folder is not writable, another process writes, or the output is no
            store, of another version of the schema, or of another manifest. Nothing is written
            then.
    """

    def __init__(self, path: str | Path, manifest: Manifest) -> None:
        self.path = checked_target(path)
        self.plan = StoreContents.of(manifest)
        self.rejected: tuple[RejectedPart, ...] = ()
        self.num_duplicates = 0
        self._folder = parts_folder(self.path)
        self._versions = package_versions()
        self._store = SpectrumStore(self.path, self.plan)
        self._entries = Entries()
        self._log = LogWriter(self._folder)
        self._checkpoints: dict[Key, tuple[str, int]] = {}
        self._digests: dict[tuple[str, int], str] = {}
        self._completed: set[str] = set()
        self._completed_modules: set[str] = set()
        self._modules: dict[str, tuple[str, ...]] = {}
        self._lock = FolderLock(self._folder, output=self.path)
        try:
            with disk_trouble_named(self.path):
                self._begin(manifest)
        except BaseException:
            self._leave(remove_folder=self._lock.made_folder)
            raise

    def _begin(self, manifest: Manifest) -> None:
        store = SpectrumStore._read(self.path, fallback=self.plan)
        if store is not None:
            self._store = store
            check_resumable(self.path, store.plan, store.stored(), manifest)
            store.plan = self.plan
            self.rejected = store.rejected
            self._completed |= store.completed_keys()
            self._completed_modules |= store.completed_modules()
            self._checkpoints |= store.module_identities | store.identities
            for name, epoch in self._checkpoints:
                batches = store.module_batches(name, epoch) | store.batches(name, epoch)
                self._digests |= {(name, batch): digest for batch, digest in batches.items()}
                if (modules := store.module_names(name)) is not None:
                    self._modules[name] = modules
        write_plan(self._folder, self.plan)

    @property
    def folder(self) -> Path:
        """Return the folder of records that are not merged yet."""
        return self._folder

    def completed_keys(self) -> frozenset[str]:
        """Return the keys of all stored records."""
        return frozenset(self._completed)

    def completed_modules(self) -> frozenset[str]:
        """Return the keys of batches with spectra of modules."""
        return frozenset(self._completed_modules)

    def add(self, record: Record) -> None:
        """Store a record; it is safe on disk when this returns.

        Raises:
            ValueError: If the record is stored already, not planned, or of another k, or the writer
                is closed.
            StoreError: If its weights or its pairs differ from those of the records beside it, or
                the disk is full.
        """
        self._check_open()
        self._check_new(record)
        self.add_all([record])

    def add_modules(self, record: ModuleRecord) -> None:
        """Store the spectra of a batch's modules.

        They are safe on disk when this returns.

        Raises:
            ValueError: As `add`.
            StoreError: As `add`, and if its modules differ from those of the rest of its series.
        """
        self._check_open()
        self.check_modules(record.series, record.modules)
        self._check_new(record)
        self.add_all([record])

    def completed_vectors(self) -> frozenset[str]:
        """Return the keys of records with kept eigenvectors."""
        return self.completed_keys() & self._store.vectors.keys()

    def add_all(self, records: Iterable[AnyRecord], vectors: Iterable[VectorRecord] = ()) -> None:
        """Store many records at once, all or none.

        All are safe on disk when this returns; none is stored if it raises. A record that is stored
        already, with equal values, is dropped and counted: two workers may compute the same batch.

        Args:
            vectors: Eigenvectors of some of these records, of which each is stored before its
                record. A record measured again for its vectors may differ from the stored one
                within the residuals of both.

        Raises:
            ValueError: If a record is not planned, or of another k, or the writer is closed.
            StoreError: If a record is stored already with other values, its weights, pairs or
                modules differ from those of the records beside it, or the disk is full.
        """
        self._check_open()
        given, kept = list(records), list(vectors)
        new = self._checked(given, measured_again=frozenset(record.key for record in kept))
        self._check_vectors(kept)
        for record in kept:
            with stopping_later(), disk_trouble_named(self.path):
                self._store.vectors.add(record)
        if new:
            self._append(new)
        self.num_duplicates += len(given) - len(new)

    def check_modules(self, series: str, modules: tuple[str, ...]) -> None:
        """Refuse modules that differ from the stored ones of a series.

        They could not stand in the same table.

        Raises:
            StoreError: If they differ.
        """
        self._check_modules(series, modules, ChainMap({}, self._modules))

    def _check_modules(
        self, series: str, modules: tuple[str, ...], stored: MutableMapping[str, tuple[str, ...]]
    ) -> None:
        known = stored.setdefault(series, modules)
        if known != modules:
            other = next(
                (name for name in (*modules, *known) if (name in known) != (name in modules)),
                "their order",
            )
            raise StoreError(
                f"{self.path}: series {series!r} has the spectra of {len(known)} modules, and "
                f"these are {len(modules)} others ({other}). Ask for the same modules, or name "
                "another output with -o."
            )

    def _completed_of(self, record: AnyRecord) -> set[str]:
        return self._completed_modules if isinstance(record, ModuleRecord) else self._completed

    def _check_new(self, record: AnyRecord) -> None:
        if record.key in self._completed_of(record):
            raise ValueError(f"{record.key} is stored already.")

    def _check_vectors(self, vectors: Sequence[VectorRecord]) -> None:
        for record in vectors:
            expected = (self.plan.k, self.plan.protocol_sha256_of(record.series))
            if (record.k, record.protocol_sha256) != expected:
                raise ValueError(f"the vectors of {record.key} are not those of this manifest.")

    def _checked(
        self, records: Sequence[AnyRecord], *, measured_again: Container[str] = ()
    ) -> list[AnyRecord]:
        """Check records against stored and other ones; return new ones."""
        checkpoints, digests = ChainMap({}, self._checkpoints), ChainMap({}, self._digests)
        modules = ChainMap({}, self._modules)
        new: dict[tuple[str, bool], AnyRecord] = {}
        for record in records:
            self._check_planned(record)
            if isinstance(record, ModuleRecord):
                self._check_modules(record.series, record.modules, modules)
            identity = (record.checkpoint_sha256, record.num_params)
            known = checkpoints.setdefault((record.series, record.epoch), identity)
            if known != identity:
                self._refuse(
                    record,
                    "its weights are not those of the records beside it",
                    known[0],
                    identity[0],
                )
            digest = digests.setdefault((record.series, record.batch), record.batch_sha256)
            if digest != record.batch_sha256:
                what = (
                    f"its {samples_of(self.plan.protocol['data'])} are not those of the same batch "
                    "at other epochs"
                )
                self._refuse(record, what, digest, record.batch_sha256)
            slot = (record.key, isinstance(record, ModuleRecord))
            other = (
                self._stored(record) if record.key in self._completed_of(record) else new.get(slot)
            )
            if other is None:
                new[slot] = record
            else:
                self._check_equal(other, record, nearly=record.key in measured_again)
        return list(new.values())

    def _check_planned(self, record: AnyRecord) -> None:
        if (
            not self.plan.holds(record.series, record.epoch)
            or record.batch >= self.plan.num_batches
        ):
            raise ValueError(f"{record.key} is not a measurement of this manifest.")
        if record.k != self.plan.k:
            raise ValueError(
                f"{record.key} has {record.k} eigenvalues, but the manifest asks for {self.plan.k}."
            )

    def _stored(self, record: AnyRecord) -> AnyRecord | None:
        find = (
            self._store.stored_module_record
            if isinstance(record, ModuleRecord)
            else self._store.stored_record
        )
        return find(record.series, record.epoch, record.batch)

    def _check_equal(self, stored: AnyRecord, record: AnyRecord, *, nearly: bool) -> None:
        field = differing_field(stored, record)
        if field is not None and not (nearly and difference_within(stored, record) is not None):
            raise StoreError(
                f"{self.path}: {record.key} was computed twice, with different {field}, so one of "
                "the two is wrong or was computed in another way. Compute all batches with the "
                "same device, threads and packages, or name another output."
            )

    def _refuse(self, record: AnyRecord, what: str, expected: str, actual: str) -> NoReturn:
        raise StoreError(
            f"{self.path}: {record.key}: {what} (sha256 expected {expected}, got {actual}). They "
            "changed since this output was begun; name another output with -o, or restore them."
        )

    def _append(self, records: Sequence[AnyRecord]) -> None:
        """Append records to the log, and index where they lie."""
        parts = [
            Part(
                record=record,
                protocol_sha256=self.plan.protocol_sha256_of(record.series),
                versions=self._versions,
            )
            for record in records
        ]
        lines = [encode_part(part) for part in parts]
        # A record in the log that is not indexed would be removed by a merge.
        with stopping_later():
            with disk_trouble_named(self.path):
                log, offset = self._log.append(b"".join(lines))
            for part, line in zip(parts, lines):
                self._enter(part.record, self._entries.of(part, log, offset, len(line)))
                offset += len(line)

    def _enter(self, record: AnyRecord, entry: Entry) -> None:
        self._store._enter(entry)
        self._completed_of(record).add(record.key)
        self._checkpoints.setdefault(
            (record.series, record.epoch), (record.checkpoint_sha256, record.num_params)
        )
        self._digests.setdefault((record.series, record.batch), record.batch_sha256)
        if isinstance(record, ModuleRecord):
            self._modules.setdefault(record.series, record.modules)

    def merge(self) -> None:
        """Merge all stored records into a file and remove the parts.

        Then release the lock. The file appears by one rename: at every moment either it or the
        parts hold each record. Without any record there will be no file. Only one checkpoint is in
        memory at a time.

        Raises:
            ValueError: If the writer is closed.
            StoreError: If the disk does not take it, or a part became unreadable. The readable ones
                are stored.
        """
        self._check_open()
        lost: list[str] = []
        with disk_trouble_named(self.path):
            stored = bool(self._completed or self._completed_modules)
            if stored and (has_parts(self._folder) or self._store.merged_plan != self.plan):
                lost = write_merged(self._store, self._folder)
            self._leave(remove_folder=True)
        if lost:
            raise StoreError(
                f"{self.path}: {len(lost)} records became unreadable on disk "
                f"({', '.join(lost[:5])}); the others are merged. Run the same command again to "
                "measure them anew."
            )

    def _leave(self, *, remove_folder: bool) -> None:
        if not self._lock.held:
            return
        try:
            if remove_folder:
                remove_parts(self._folder)
        finally:
            self._log.close()
            self._lock.release(remove_folder=remove_folder)
        self._store.close()

    def close(self) -> None:
        """Release the lock. May be called twice.

        Records stay where they are; a folder without any is removed.
        """
        self._leave(remove_folder=self._lock.held and not has_parts(self._folder))

    def _check_open(self) -> None:
        if not self._lock.held:
            raise ValueError(f"{self.path}: this writer is closed; make another one.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
