"""SpectrumStore: what has been measured so far."""

import os
import weakref
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import h5py

from landscape.errors import StoreError
from landscape.manifest import Manifest
from landscape.manifest.document import nearest
from landscape.store import schema
from landscape.store.module_record import ModuleRecord, ModuleTable
from landscape.store.module_shelf import ModuleShelf
from landscape.store.parts import Part, RejectedPart, parts_folder, read_parts, read_plan, that_fit
from landscape.store.plan import Plan, check_resumable
from landscape.store.record import COLUMNS, Record, SpectraTable, table_of
from landscape.store.table import joined, task_key

if TYPE_CHECKING:
    from xarray import Dataset

    from landscape.store.writer import SpectrumWriter


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
        module_identities: The same of each (series, epoch) of which the spectra of modules are stored.
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
        self._parts: dict[tuple[str, int], list[tuple[Record, Mapping[str, Any]]]] = {}
        of_modules = []
        for part in parts:
            if isinstance(part.record, ModuleRecord):
                of_modules.append((part.record, part.versions))
                continue
            key = (part.record.series, part.record.epoch)
            self._parts.setdefault(key, []).append((part.record, part.versions))
            self.identities.setdefault(key, (part.record.checkpoint_sha256, part.record.num_params))
        self._shelf = ModuleShelf(path, file, of_modules)
        ordered = [(one.name, epoch) for one in plan.series for epoch in one.epochs]
        self.identities = {key: self.identities[key] for key in ordered if key in self.identities}
        shelved = self._shelf.identities
        self.module_identities = {key: shelved[key] for key in ordered if key in shelved}

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
        known = [one.name for one in self.plan.series]
        unknown = next((name for name in series if name not in known), None)
        if unknown is not None:
            self.close()
            raise StoreError(f"{self.path}: it has no series {unknown!r}; {nearest(unknown, known)}")
        self.plan = replace(self.plan, series=tuple(one for one in self.plan.series if one.name in series))
        self.identities = {key: found for key, found in self.identities.items() if key[0] in series}
        self.module_identities = {key: found for key, found in self.module_identities.items() if key[0] in series}

    @classmethod
    def _read(cls, path: Path, *, fallback: Plan | None) -> Self | None:
        """The snapshot; None if nothing is there. `fallback` is of a writer: the plan of parts whose own is lost."""
        folder = parts_folder(path)
        planned = read_plan(folder)
        # Parts first, then the file: a merge in between moves records from what was read to what is read next.
        parts, rejected = read_parts(folder)
        if isinstance(planned, RejectedPart):
            rejected, planned = [planned, *rejected], None
        file = schema.open_file(path, to_write=fallback is not None)
        try:
            merged_plan = None if file is None else schema.read_plan_of_file(file, path)
            if planned is not None and merged_plan is not None and planned.protocol != merged_plan.protocol:
                raise StoreError(f"{folder}: its parts were not measured for {path}, which has other settings; move it away.")
            shelf = ModuleShelf(path, file, ())
            identities = shelf.identities | ({} if file is None else schema.stored_checkpoints(file, path))
            plans = (plan for plan in (planned, merged_plan, fallback) if plan is not None)
            plan = next((plan for plan in plans if all(plan.holds(*key) for key in identities)), None)
            if plan is None:
                if file is None and not parts and not rejected:
                    return None
                raise StoreError(f"{path}: its plan is lost; run `landscape spectra` on its manifest again, which mends it.")
            modules = {name: names for name, _ in identities if (names := shelf.modules(name)) is not None}
            parts, foreign = that_fit(parts, plan, folder, identities, modules)
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
        path = checked_target(path)
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
        from landscape.store.writer import SpectrumWriter

        return SpectrumWriter(checked_target(path), manifest)

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
            tables.append(table_of(self._parts[key], **facts))
        return replace(tables[0] if len(tables) == 1 else joined(*tables, columns=COLUMNS), **facts)

    def to_xarray(self) -> "Dataset":
        """The spectra of whole models as one xarray.Dataset; docs/xarray.md lists its dimensions and variables.

        Spectra of modules are no part of it: see `modules`.

        Raises:
            MissingDependencyError: If xarray is not installed.
            StoreError: If nothing is stored yet, or the file is damaged.
        """
        from landscape.store.xarray import to_dataset

        return to_dataset(self)

    def batches(self, series: str, epoch: int) -> dict[int, str]:
        """Digest of the pairs of each batch that is stored of one checkpoint; empty if none is."""
        parts = self._parts.get((series, epoch), [])
        return {record.batch: record.batch_sha256 for record, _ in parts} | self._merged.get((series, epoch), {})

    def modules(self, series: str, epoch: int) -> ModuleTable:
        """The spectra of all modules that are stored of one checkpoint, with `batch` and `modules` as coordinates.

        Raises:
            StoreError: If none is, or the file is damaged.
        """
        planned = self.plan.named(series)
        if planned is None or (series, epoch) not in self.module_identities:
            found = ", ".join(f"{name} epoch {one}" for name, one in self.module_identities) or "none at all"
            raise StoreError(
                f"{self.path}: it has no spectra of modules of {series} epoch {epoch}, but of {found}. "
                "`landscape spectra --per-module` measures them."
            )
        facts: dict[str, Any] = {"model": planned.model, "label": planned.label, "num_planned": self.plan.num_batches}
        return self._shelf.table((series, epoch), **facts)

    def module_names(self, series: str) -> tuple[str, ...] | None:
        """The modules of a series of which spectra are stored, in the order of the network; None if none is."""
        return self._shelf.modules(series)

    def module_batches(self, series: str, epoch: int) -> dict[int, str]:
        """Digest of the pairs of each batch of which the spectra of modules are stored."""
        return self._shelf.batches((series, epoch))

    def completed_modules(self) -> frozenset[str]:
        """Keys of all batches of which the spectra of modules are stored."""
        return frozenset(task_key(*key, batch) for key in self.module_identities for batch in self.module_batches(*key))

    def stored(self) -> dict[tuple[str, int], str]:
        """Digest of the weights of each (series, epoch) of which anything is stored."""
        return {key: digest for key, (digest, _) in (self.module_identities | self.identities).items()}

    def completed_keys(self) -> frozenset[str]:
        """Keys of all records that are stored."""
        return frozenset(task_key(*key, batch) for key in self.identities for batch in self.batches(*key))

    def close(self) -> None:
        self._close()

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
        raise StoreError(f"{path}: the folder {target.parent} is not writable; name another output.")
    return target
