"""SpectrumStore: what has been measured so far, and the one writer that adds to it."""

import importlib.metadata
import os
import platform
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn, Self

import h5py

from landscape.errors import StoreError
from landscape.manifest import Manifest, sync_folder
from landscape.manifest.document import nearest
from landscape.store import schema
from landscape.store.lock import FolderLock
from landscape.store.parts import (
    Part,
    RejectedPart,
    has_parts,
    merged_temporary,
    parts_folder,
    read_parts,
    read_plan,
    remove_parts,
    that_fit,
    write_part,
    write_plan,
)
from landscape.store.plan import Plan, check_resumable
from landscape.store.record import Record, SpectraTable, joined, table_of, task_key
from landscape.version import VERSION


class SpectrumStore:
    """A snapshot of an output: the merged file and the parts beside it, as they were when it was opened.

    A run may go on writing meanwhile; open again to see more. Use it as a context manager, or close it.

    Attributes:
        path: The merged file, which is not there before the first merge.
        plan: What the output is going to hold.
        merged_plan: What the merged file was going to hold; None without one.
        rejected: Parts that are not used, each with the reason.
        identities: Digest of the weights and number of parameters of each (series, epoch) that has a record, in the
            order of the manifest.
    """

    def __init__(
        self,
        path: Path,
        plan: Plan,
        *,
        merged_plan: Plan | None,
        file: h5py.File | None,
        parts: list[Part],
        rejected: list[RejectedPart],
    ) -> None:
        self.path = path
        self.plan = plan
        self.merged_plan = merged_plan
        self.rejected = tuple(rejected)
        self._file = file
        self._close = weakref.finalize(self, file.close) if file is not None else lambda: None
        self.identities = {} if file is None else schema.stored_checkpoints(file, path)
        self._merged = {key: schema.stored_batches(file, path, *key) for key in self.identities} if file is not None else {}
        self._parts: dict[tuple[str, int], list[Part]] = {}
        for part in parts:
            key = (part.record.series, part.record.epoch)
            self._parts.setdefault(key, []).append(part)
            self.identities.setdefault(key, (part.record.checkpoint_sha256, part.record.num_params))
        ordered = [(one.name, epoch) for one in plan.series for epoch in one.epochs]
        self.identities = {key: self.identities[key] for key in ordered if key in self.identities}

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a finished or a growing output for reading.

        Raises:
            StoreError: If nothing is there, it is no store, of another version of the schema, or damaged.
        """
        store = cls._read(Path(path).resolve(), fallback=None)
        if store is None:
            raise StoreError(f"{path}: there is no such store; `landscape spectra` writes one.")
        return store

    @classmethod
    def _read(cls, path: Path, *, fallback: Plan | None) -> Self | None:
        """The snapshot; None if nothing is there. `fallback` is the plan of parts whose own is lost."""
        folder = parts_folder(path)
        planned = read_plan(folder)
        # Parts first, then the file: a merge in between moves records from what was read to what is read next.
        parts, rejected = read_parts(folder)
        if isinstance(planned, RejectedPart):
            rejected, planned = [planned, *rejected], None
        file = schema.open_file(path)
        try:
            merged_plan = None if file is None else schema.read_plan_of_file(file, path)
            if planned is not None and merged_plan is not None and planned.protocol != merged_plan.protocol:
                raise StoreError(f"{folder}: its parts were not measured for {path}, which has other settings; move it away.")
            identities = {} if file is None else schema.stored_checkpoints(file, path)
            plans = (plan for plan in (planned, merged_plan, fallback) if plan is not None)
            plan = next((plan for plan in plans if all(plan.holds(*key) for key in identities)), None)
            if plan is None:
                if file is None and not parts and not rejected:
                    return None
                raise StoreError(f"{path}: its plan is lost; run `landscape spectra` on its manifest again, which mends it.")
            parts, foreign = that_fit(parts, plan, folder, identities)
            return cls(path, plan, merged_plan=merged_plan, file=file, parts=parts, rejected=[*rejected, *foreign])
        except BaseException:
            if file is not None:
                file.close()
            raise

    @classmethod
    def check(cls, path: str | Path, manifest: Manifest) -> frozenset[str]:
        """Whether `prepare` would go through, and the keys it would find stored; writes nothing.

        Raises:
            StoreError: As `prepare`.
        """
        path = _checked_target(path)
        store = cls._read(path, fallback=Plan.of(manifest))
        if store is None:
            return frozenset()
        with store:
            check_resumable(path, store.plan, store.stored(), manifest)
            return store.completed_keys()

    @classmethod
    def prepare(cls, path: str | Path, manifest: Manifest) -> "SpectrumWriter":
        """Begin an output, or go on with one, as its only writer.

        Raises:
            StoreError: If the folder is not writable, another process writes, what is there is no store, of another
                version of the schema, or of another manifest. Nothing is written then.
        """
        return SpectrumWriter(_checked_target(path), manifest)

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
            raise StoreError(f"{self.path}: it has no series {series!r}; {nearest(series, self.series())}")
        return epochs

    def records(self, series: str, epoch: int) -> SpectraTable:
        """Everything that is stored of one checkpoint.

        Raises:
            StoreError: If nothing is, or the file is damaged.
        """
        if epoch not in self.epochs(series):
            found = ", ".join(map(str, self.epochs(series)))
            raise StoreError(f"{self.path}: series {series!r} has no epoch {epoch}; it has {found}.")
        key = (series, epoch)
        planned = self.plan.named(series)
        assert planned is not None, "a plan holds what it was checked against"
        facts: dict[str, Any] = {"model": planned.model, "label": planned.label, "num_planned": self.plan.num_batches}
        tables = []
        if key in self._merged:
            assert self._file is not None
            tables.append(schema.read_table(self._file, self.path, series, epoch))
        if key in self._parts:
            tables.append(table_of([(part.record, part.versions) for part in self._parts[key]], **facts))
        return replace(tables[0] if len(tables) == 1 else joined(*tables), **facts)

    def batches(self, series: str, epoch: int) -> dict[int, str]:
        """Digest of the pairs of each batch that is stored of one checkpoint; empty if none is."""
        parts = self._parts.get((series, epoch), [])
        return {part.record.batch: part.record.batch_sha256 for part in parts} | self._merged.get((series, epoch), {})

    def stored(self) -> dict[tuple[str, int], str]:
        """Digest of the weights of each (series, epoch) that has a record."""
        return {key: digest for key, (digest, _) in self.identities.items()}

    def completed_keys(self) -> frozenset[str]:
        """Keys of all records that are stored."""
        return frozenset(task_key(*key, batch) for key in self.identities for batch in self.batches(*key))

    def close(self) -> None:
        self._close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class SpectrumWriter:
    """The one writer of an output. Records go to parts; `merge` makes them one file.

    Use it as a context manager: leaving it gives the lock back, keeps every record, and removes the folder of parts if
    there is none. It may be killed at any moment: what `add` has returned from is stored. For one thread.
    """

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path = path
        self.plan = Plan.of(manifest)
        self.rejected: tuple[RejectedPart, ...] = ()
        self._folder = parts_folder(path)
        self._versions = package_versions()
        self._checkpoints: dict[tuple[str, int], tuple[str, int]] = {}
        self._digests: dict[tuple[str, int], str] = {}
        self._completed: set[str] = set()
        self._lock = FolderLock(self._folder, output=path)
        try:
            with _disk_trouble_named(path):
                self._begin(manifest)
        except BaseException:
            self._leave(remove_folder=self._lock.made_folder)
            raise

    def _begin(self, manifest: Manifest) -> None:
        store = SpectrumStore._read(self.path, fallback=self.plan)
        if store is not None:
            with store:
                check_resumable(self.path, store.plan, store.stored(), manifest)
                self.rejected = store.rejected
                self._completed |= store.completed_keys()
                self._checkpoints |= store.identities
                for name, epoch in store.identities:
                    self._digests |= {(name, batch): digest for batch, digest in store.batches(name, epoch).items()}
        write_plan(self._folder, self.plan)

    def completed_keys(self) -> frozenset[str]:
        """Keys of all records that are stored."""
        return frozenset(self._completed)

    def add(self, record: Record) -> None:
        """Store a record; it is safe on disk when this returns.

        Raises:
            ValueError: If the record is stored already, not planned, or of another k, or the writer is closed.
            StoreError: If its weights or its pairs are not those of the records beside it, or the disk is full.
        """
        self._check_open()
        if record.key in self._completed:
            raise ValueError(f"{record.key} is stored already.")
        if not self.plan.holds(record.series, record.epoch) or record.batch >= self.plan.num_batches:
            raise ValueError(f"{record.key} is not a measurement of this manifest.")
        if len(record.values) != self.plan.k:
            raise ValueError(f"{record.key} has {len(record.values)} eigenvalues, but the manifest asks for {self.plan.k}.")
        checkpoint, identity = (record.series, record.epoch), (record.checkpoint_sha256, record.num_params)
        known = self._checkpoints.get(checkpoint, identity)
        if known != identity:
            self._refuse(record, "its weights are not those of the records beside it", known[0], identity[0])
        batch = (record.series, record.batch)
        digest = self._digests.get(batch, record.batch_sha256)
        if digest != record.batch_sha256:
            self._refuse(record, "its pairs are not those of the same batch at other epochs", digest, record.batch_sha256)
        with _disk_trouble_named(self.path):
            part = Part(record=record, protocol_sha256=self.plan.protocol_sha256, versions=self._versions)
            write_part(self._folder, part)
        self._completed.add(record.key)
        self._checkpoints[checkpoint] = identity
        self._digests[batch] = digest

    def _refuse(self, record: Record, what: str, expected: str, found: str) -> NoReturn:
        raise StoreError(
            f"{self.path}: {record.key}: {what} (sha256 expected {expected}, got {found}). They changed since this output was "
            "begun; name another output with -o, or restore them."
        )

    def merge(self) -> None:
        """Make one file of everything stored, then remove the parts and give the lock back.

        The file appears by one rename: at every moment either it or the parts hold each record. Without any record
        there will be no file.

        Raises:
            ValueError: If the writer is closed.
            StoreError: If the disk does not take it, or a part became unreadable. The readable ones are kept.
        """
        self._check_open()
        found: frozenset[str] = frozenset()
        with _disk_trouble_named(self.path):
            store = SpectrumStore._read(self.path, fallback=self.plan)
            if store is not None:
                with store:
                    found = store.completed_keys()
                    if found and (has_parts(self._folder) or store.merged_plan != self.plan):
                        self._write_merged(store, found)
            self._leave(remove_folder=True)
        lost = sorted(self._completed - found)
        if lost:
            raise StoreError(
                f"{self.path}: {len(lost)} records became unreadable on disk ({', '.join(lost[:5])}); the others are merged. "
                "Run the same command again to measure them anew."
            )

    def _write_merged(self, store: SpectrumStore, expected: frozenset[str]) -> None:
        temporary = merged_temporary(self._folder)
        tables = (store.records(series, epoch) for series in store.series() for epoch in store.epochs(series))
        try:
            schema.write_file(temporary, self.plan, tables)
            _check_written(temporary, expected)
            os.replace(temporary, self.path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        sync_folder(self.path.parent)

    def _leave(self, *, remove_folder: bool) -> None:
        if not self._lock.held:
            return
        try:
            if remove_folder:
                remove_parts(self._folder)
        finally:
            self._lock.release(remove_folder=remove_folder)

    def close(self) -> None:
        """Give the lock back. Records stay where they are; a folder without any is removed. May be called twice."""
        self._leave(remove_folder=self._lock.held and not has_parts(self._folder))

    def _check_open(self) -> None:
        if not self._lock.held:
            raise ValueError(f"{self.path}: this writer is closed; prepare another one.")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _checked_target(path: str | Path) -> Path:
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
        raise StoreError(f"{path}: the folder {target.parent} is not writable; name another output.")
    return target


def _check_written(path: Path, expected: frozenset[str]) -> None:
    """Read a new file back, checksums included, before it takes the place of anything."""
    file = schema.open_file(path)
    assert file is not None
    with file:
        tables = [schema.read_table(file, path, *key) for key in schema.stored_checkpoints(file, path)]
    assert sorted(key for table in tables for key in table.keys) == sorted(expected), "a merge neither loses nor invents records"


def package_versions() -> dict[str, str]:
    """What a number may depend on, without importing any of it."""
    versions = {"landscape": VERSION, "python": platform.python_version()}
    for package in ("torch", "numpy", "open_clip_torch", "timm", "numba", "pyhessian", "h5py"):
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            pass
    return versions


@contextmanager
def _disk_trouble_named(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}). Everything stored before is safe: mend the disk, then run "
            "the same command again."
        ) from error
