"""The one writer of an output: parts as records come, then one file by one rename."""

import importlib.metadata
import platform
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import NoReturn, Self

from landscape.errors import StoreError
from landscape.manifest import Manifest
from landscape.store import schema
from landscape.store.lock import FolderLock
from landscape.store.module_record import ModuleRecord
from landscape.store.module_shelf import ModuleShelf
from landscape.store.parts import (
    Part,
    RejectedPart,
    has_parts,
    merged_temporary,
    parts_folder,
    remove_parts,
    write_part,
    write_plan,
)
from landscape.store.plan import Plan, check_resumable
from landscape.store.record import Record
from landscape.store.store import SpectrumStore
from landscape.version import VERSION


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
        self._completed_modules: set[str] = set()
        self._modules: dict[str, tuple[str, ...]] = {}
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
                self._completed_modules |= store.completed_modules()
                self._checkpoints |= store.module_identities | store.identities
                for name, epoch in self._checkpoints:
                    batches = store.module_batches(name, epoch) | store.batches(name, epoch)
                    self._digests |= {(name, batch): digest for batch, digest in batches.items()}
                    if (modules := store.module_names(name)) is not None:
                        self._modules[name] = modules
        write_plan(self._folder, self.plan)

    def completed_keys(self) -> frozenset[str]:
        """Keys of all records that are stored."""
        return frozenset(self._completed)

    def completed_modules(self) -> frozenset[str]:
        """Keys of all batches of which the spectra of modules are stored."""
        return frozenset(self._completed_modules)

    def add(self, record: Record) -> None:
        """Store a record; it is safe on disk when this returns.

        Raises:
            ValueError: If the record is stored already, not planned, or of another k, or the writer is closed.
            StoreError: If its weights or its pairs are not those of the records beside it, or the disk is full.
        """
        self._add(record, self._completed)

    def add_modules(self, record: ModuleRecord) -> None:
        """Store the spectra of the modules of one batch; they are safe on disk when this returns.

        Raises:
            ValueError: As `add`.
            StoreError: As `add`, and if its modules are not those of the rest of its series.
        """
        self._check_open()
        self.check_modules(record.series, record.modules)
        self._add(record, self._completed_modules)
        self._modules[record.series] = record.modules

    def check_modules(self, series: str, modules: tuple[str, ...]) -> None:
        """Refuse modules other than those that are stored of a series, which could not stand in one table.

        Raises:
            StoreError: If they differ.
        """
        known = self._modules.get(series, modules)
        if known != modules:
            other = next((one for one in (*modules, *known) if (one in known) != (one in modules)), "their order")
            raise StoreError(
                f"{self.path}: series {series!r} has the spectra of {len(known)} modules, and these are {len(modules)} others "
                f"({other}). Ask for the same modules, or name another output with -o."
            )

    def _add(self, record: Record | ModuleRecord, completed: set[str]) -> None:
        self._check_open()
        if record.key in completed:
            raise ValueError(f"{record.key} is stored already.")
        if not self.plan.holds(record.series, record.epoch) or record.batch >= self.plan.num_batches:
            raise ValueError(f"{record.key} is not a measurement of this manifest.")
        if record.k != self.plan.k:
            raise ValueError(f"{record.key} has {record.k} eigenvalues, but the manifest asks for {self.plan.k}.")
        checkpoint, identity = (record.series, record.epoch), (record.checkpoint_sha256, record.num_params)
        known = self._checkpoints.get(checkpoint, identity)
        if known != identity:
            self._refuse(record, "its weights are not those of the records beside it", known[0], identity[0])
        batch = (record.series, record.batch)
        digest = self._digests.get(batch, record.batch_sha256)
        if digest != record.batch_sha256:
            self._refuse(record, "its pairs are not those of the same batch at other epochs", digest, record.batch_sha256)
        with _disk_trouble_named(self.path):
            protocol_sha256 = self.plan.protocol_sha256_of(record.series)
            part = Part(record=record, protocol_sha256=protocol_sha256, versions=self._versions)
            write_part(self._folder, part)
        completed.add(record.key)
        self._checkpoints[checkpoint] = identity
        self._digests[batch] = digest

    def _refuse(self, record: Record | ModuleRecord, what: str, expected: str, found: str) -> NoReturn:
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
        found = found_modules = frozenset[str]()
        with _disk_trouble_named(self.path):
            store = SpectrumStore._read(self.path, fallback=self.plan)
            if store is not None:
                with store:
                    found, found_modules = store.completed_keys(), store.completed_modules()
                    if (found or found_modules) and (has_parts(self._folder) or store.merged_plan != self.plan):
                        self._write_merged(store, found, found_modules)
            self._leave(remove_folder=True)
        lost = sorted([*(self._completed - found), *(f"modules of {key}" for key in self._completed_modules - found_modules)])
        if lost:
            raise StoreError(
                f"{self.path}: {len(lost)} records became unreadable on disk ({', '.join(lost[:5])}); the others are merged. "
                "Run the same command again to measure them anew."
            )

    def _write_merged(self, store: SpectrumStore, expected: frozenset[str], expected_modules: frozenset[str]) -> None:
        tables = (store.records(*key) for key in store.identities)
        module_tables = (store.modules(*key) for key in store.module_identities)
        temporary, check = merged_temporary(self._folder), partial(_check_written, expected, expected_modules)
        schema.write_file(self.path, self.plan, tables, module_tables, temporary=temporary, check=check)

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


def _check_written(expected: frozenset[str], expected_modules: frozenset[str], path: Path) -> None:
    """Read a new file back, checksums included, before it takes the place of anything."""
    file = schema.open_file(path)
    assert file is not None
    with file:
        tables = [schema.read_table(file, path, *key) for key in schema.stored_checkpoints(file, path)]
        shelf = ModuleShelf(path, file, ())
        module_tables = [shelf.table(key, model="", label="", num_planned=0) for key in shelf.identities]
    for found, wanted in ((tables, expected), (module_tables, expected_modules)):
        assert sorted(key for table in found for key in table.keys) == sorted(wanted), "a merge neither loses nor invents records"


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
