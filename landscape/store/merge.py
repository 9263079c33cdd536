"""Merge of several stores of a protocol into one.

The stores are shards of one manifest, each measured by its own process.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import StoreError
from landscape.manifest import canonical_json
from landscape.manifest.samples import samples_of
from landscape.store import schema
from landscape.store.agreement import (
    difference_within,
    differing_field,
    module_record_of_row,
    record_of_row,
)
from landscape.store.contents import PlannedSeries, StoreContents, differing_setting
from landscape.store.index import Key
from landscape.store.lock import FolderLock, lock_owner
from landscape.store.merged_file import check_written
from landscape.store.module_record import MODULE_COLUMNS, ModuleTable
from landscape.store.parts import (
    RejectedPart,
    is_begun,
    merged_temporary,
    parts_folder,
    remove_parts,
)
from landscape.store.place import checked_target, disk_trouble_named
from landscape.store.record import COLUMNS, SpectraTable
from landscape.store.store import SpectrumStore
from landscape.store.table import joined
from landscape.store.vectors import StoredVectors
from landscape.version import VERSION

_Table = SpectraTable | ModuleTable


@dataclass(frozen=True, kw_only=True)
class MergeReport:
    """Result of a merge: what was joined, and what several stores had.

    Args:
        sources: Every store, with the number of records taken from it; the output first if it
            existed.
        num_records, num_planned: Spectra of whole models in the output, and how many it is going to
            hold.
        num_module_records: Batches with the spectra of modules in the output.
        num_vector_records: Batches with kept eigenvectors in the output.
        num_equal: Records that another store had too, with equal values.
        num_close: Records that another store had with other values, within the certificates of
            both; the first is kept.
        largest_difference: The largest difference among these, in nats per squared parameter.
        rejected: Parts of the stores that are not used, each with the reason.
    """

    output: Path
    sources: tuple[tuple[Path, int], ...]
    num_records: int
    num_planned: int
    num_module_records: int
    num_vector_records: int
    num_equal: int
    num_close: int
    largest_difference: float
    rejected: tuple[RejectedPart, ...]

    def summary(self) -> str:
        """Return the text that `landscape merge` prints."""
        lines = [f"{path}: {number} records taken" for path, number in self.sources]
        if self.num_equal:
            lines.append(
                f"{self.num_equal} records were there twice with equal values; one of each is kept."
            )
        if self.num_close:
            lines.append(
                f"{self.num_close} records were there twice with values that differ by at most "
                f"{self.largest_difference:.2g}, within their residuals; the first of each is kept."
            )
        lines += [f"not used: {part.path}: {part.reason}" for part in self.rejected]
        modules = (
            f", and the spectra of modules of {self.num_module_records} batches"
            if self.num_module_records
            else ""
        )
        vectors = (
            f", and the eigenvectors of {self.num_vector_records} batches"
            if self.num_vector_records
            else ""
        )
        lines.append(
            f"{self.output}: {self.num_records} of {self.num_planned} planned records{modules}"
            f"{vectors}."
        )
        return "\n".join(lines)


@dataclass
class _Tally:
    """Running counts of a merge."""

    taken: list[int]
    written: list[str] = field(default_factory=list)
    num_equal: int = 0
    num_close: int = 0
    largest: float = 0.0


def merge_stores(paths: Sequence[str | Path], output: str | Path) -> MergeReport:
    """Merge the records of several stores into a single file.

    The file appears by one rename. The stores stay as they are. Only one checkpoint is in memory at
    a time.

    Args:
        paths: Finished stores, or growing ones that no run writes any more.
        output: A new file, or a store of the same protocol, whose records come first.

    Raises:
        StoreError: If settings, weights, pairs, models or modules differ; if two stores have a
            record with values that differ by more than their residuals allow; if a store is still
            written; or if the disk does not take the file.
    """
    target = checked_target(output)
    sources = [Path(os.path.realpath(path)) for path in paths]
    _check_paths(sources, target)
    lock = FolderLock(parts_folder(target), output=target)
    done = False
    try:
        with disk_trouble_named(target), ExitStack() as stack:
            sources = [target, *sources] if _is_begun(target) else sources
            stores = [stack.enter_context(SpectrumStore.open(path)) for path in sources]
            report = _merge(stores, target)
            remove_parts(parts_folder(target))
            done = True
    finally:
        lock.release(remove_folder=done or lock.made_folder)
    return report


def _check_paths(sources: Sequence[Path], target: Path) -> None:
    for number, path in enumerate(sources):
        if path == target:
            raise StoreError(
                f"{path}: it is the output too. Leave it out: what an output holds stays in it."
            )
        if path in sources[:number]:
            raise StoreError(f"{path}: it is named twice; name every store once.")
        if (owner := lock_owner(parts_folder(path))) is not None:
            raise StoreError(
                f"{path}: {owner} is writing it. Merge it when that run has ended, or stop it."
            )


def _is_begun(target: Path) -> bool:
    """Tell whether the output exists, and so must be a store."""
    return target.exists() or is_begun(parts_folder(target))


def _merge(stores: Sequence[SpectrumStore], target: Path) -> MergeReport:
    plan = _joined_plan(stores)
    _check_identities(stores)
    _check_pairs(stores)
    _check_modules(stores)
    if not any(store.stored() for store in stores):
        raise StoreError(
            f"{target}: none of the stores holds a record, so there is nothing to merge."
        )
    tally = _Tally(taken=[0] * len(stores))
    schema.write_file(
        target,
        plan,
        _tables(stores, plan, tally),
        _module_tables(stores, plan, tally),
        _vectors(stores, tally),
        num_bytes=sum(store.path.stat().st_size for store in stores if store.path.exists()) // 2,
        temporary=merged_temporary(parts_folder(target)),
        check=partial(check_written, tally.written),
    )
    num_modules, num_vectors = (
        sum(key.startswith(f"{what} of ") for key in tally.written)
        for what in ("modules", "vectors")
    )
    return MergeReport(
        output=target,
        sources=tuple((store.path, number) for store, number in zip(stores, tally.taken)),
        num_records=len(tally.written) - num_modules - num_vectors,
        num_planned=plan.num_records,
        num_module_records=num_modules,
        num_vector_records=num_vectors,
        num_equal=tally.num_equal,
        num_close=tally.num_close,
        largest_difference=tally.largest,
        rejected=tuple(part for store in stores for part in store.rejected),
    )


def _joined_plan(stores: Sequence[SpectrumStore]) -> StoreContents:
    """Join the plans of several stores.

    Series are in the order in which they are first planned, each with the epochs that any store
    plans, ascending.
    """
    first = stores[0]
    series: dict[str, PlannedSeries] = {}
    for store in stores:
        differing = differing_setting(first.plan.protocol, store.plan.protocol)
        if differing is not None:
            section, name = differing
            values = [other.plan.protocol.get(section, {}).get(name) for other in (first, store)]
            raise StoreError(
                f"{store.path}: {section}.{name} is {values[1]!r}, but {values[0]!r} in "
                f"{first.path}. Numbers measured under different settings are not comparable; "
                "merge stores of one manifest."
            )
        for planned in store.plan.series:
            known = series.setdefault(planned.name, planned)
            for name in ("model", "label", "trained"):
                old, new = getattr(known, name), getattr(planned, name)
                if canonical_json(old) != canonical_json(new):
                    raise StoreError(
                        f"{store.path}: {name} of series {planned.name!r} is {new!r}, but {old!r} "
                        "in the stores before it; merge stores of one manifest."
                    )
            epochs = tuple(sorted({*known.epochs, *planned.epochs}))
            series[planned.name] = replace(known, epochs=epochs)
    return replace(first.plan, series=tuple(series.values()), landscape_version=VERSION)


def _check_identities(stores: Sequence[SpectrumStore]) -> None:
    """Refuse stores that hold a checkpoint with different weights."""
    known: dict[Key, tuple[str, Path]] = {}
    for store in stores:
        for (name, epoch), digest in store.stored().items():
            other, path = known.setdefault((name, epoch), (digest, store.path))
            if other != digest:
                raise StoreError(
                    f"{store.path}: epoch {epoch} of series {name!r} was measured on weights with "
                    f"sha256 {digest}, but with {other} in {path}: these are two checkpoints. "
                    "Merge stores of one training run."
                )


def _check_pairs(stores: Sequence[SpectrumStore]) -> None:
    """Refuse stores with different pairs in a batch of a series."""
    known: dict[tuple[str, int], tuple[str, Path]] = {}
    for store in stores:
        for name, epoch in store.stored():
            batches = store.module_batches(name, epoch) | store.batches(name, epoch)
            for batch, digest in batches.items():
                other, path = known.setdefault((name, batch), (digest, store.path))
                if other != digest:
                    samples = samples_of(store.plan.protocol["data"])
                    raise StoreError(
                        f"{store.path}: batch {batch} of series {name!r} has {samples} with sha256 "
                        f"{digest} at epoch {epoch}, but {other} in {path}: the data changed in "
                        f"between. Merge stores that were measured on the same {samples}."
                    )


def _check_modules(stores: Sequence[SpectrumStore]) -> None:
    """Refuse stores with spectra of different modules of a series."""
    known: dict[str, tuple[tuple[str, ...], Path]] = {}
    for store in stores:
        for name in dict.fromkeys(name for name, _ in store.module_identities):
            modules = store.module_names(name) or ()
            other, path = known.setdefault(name, (modules, store.path))
            if other != modules:
                raise StoreError(
                    f"{store.path}: series {name!r} has the spectra of {len(modules)} modules, and "
                    f"of {len(other)} others in {path}; merge stores that were measured with the "
                    "same --modules."
                )


def _keys(plan: StoreContents) -> Iterator[Key]:
    return ((series.name, epoch) for series in plan.series for epoch in series.epochs)


def _facts(plan: StoreContents, series: str) -> dict[str, Any]:
    planned = plan.named(series)
    assert planned is not None
    return {"model": planned.model, "label": planned.label, "num_planned": plan.num_batches}


def _tables(
    stores: Sequence[SpectrumStore], plan: StoreContents, tally: _Tally
) -> Iterator[SpectraTable]:
    for key in _keys(plan):
        whole: SpectraTable | None = None
        for number, store in zip(count(), stores):
            if key not in store.identities:
                continue
            table = store.records(*key)
            fresh = _num_fresh(whole, table, store.path, tally)
            tally.taken[number] += fresh
            whole = table if whole is None else joined(whole, table, columns=COLUMNS)
        if whole is not None:
            tally.written.extend(whole.keys)
            yield replace(whole, **_facts(plan, key[0]))


def _module_tables(
    stores: Sequence[SpectrumStore], plan: StoreContents, tally: _Tally
) -> Iterator[ModuleTable]:
    for key in _keys(plan):
        whole: ModuleTable | None = None
        for store in stores:
            if key not in store.module_identities:
                continue
            table = store.modules(*key)
            _num_fresh(whole, table, store.path, tally)
            whole = table if whole is None else joined(whole, table, columns=MODULE_COLUMNS)
        if whole is not None:
            tally.written.extend(f"modules of {name}" for name in whole.keys)
            yield replace(whole, **_facts(plan, key[0]))


def _vectors(stores: Sequence[SpectrumStore], tally: _Tally) -> Iterator[StoredVectors]:
    """Yield the vectors of each batch, from the first store that has them."""
    taken: set[str] = set()
    for store in stores:
        for kept in store.vectors.sources(store.completed_keys() - taken):
            taken.add(kept.key)
            tally.written.append(f"vectors of {kept.key}")
            yield kept


def _num_fresh(whole: _Table | None, table: _Table, path: Path, tally: _Tally) -> int:
    """Compare common records; count those only in the second table."""
    if whole is None:
        return table.num_records
    both, rows, others = np.intersect1d(whole.batch, table.batch, return_indices=True)
    for row, other in zip(rows, others):
        _compare(whole, int(row), table, int(other), path, tally)
    return table.num_records - len(both)


def _compare(whole: _Table, row: int, table: _Table, other: int, path: Path, tally: _Tally) -> None:
    of_row: Any = module_record_of_row if isinstance(table, ModuleTable) else record_of_row
    first, second = of_row(whole, row), of_row(table, other)
    field = differing_field(first, second)
    if field is None:
        tally.num_equal += 1
        return
    difference = difference_within(first, second)
    if difference is None:
        what = "spectra of the modules" if isinstance(table, ModuleTable) else "spectrum"
        raise StoreError(
            f"{path}: the {what} of {second.key} differs in {field} from the one in a store before "
            "it, by more than the residuals of both allow: one of the two is wrong. Find out "
            "which, and leave that store out."
        )
    tally.num_close += 1
    tally.largest = max(tally.largest, difference)
