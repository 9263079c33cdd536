"""The merged file of an output: written from all records, and read back before it counts."""

from collections.abc import Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from landscape.store import schema
from landscape.store.index import Entry
from landscape.store.kept_vectors import KeptVectors
from landscape.store.module_record import ModuleTable
from landscape.store.module_tables import ModuleTables
from landscape.store.parts import (
    merged_temporary,
    num_bytes,
    num_vector_bytes,
    parts_folder,
)
from landscape.store.record import SpectraTable
from landscape.store.store import SpectrumStore
from landscape.store.vectors import StoredVectors

# Numbers take about 20 bytes of JSON and 8 of HDF5. A checkpoint takes at least the second number
# of bytes.
_JSON_TO_HDF5 = 4
_MIN_CHECKPOINT = 2**13


def write_merged(store: SpectrumStore, folder: Path) -> list[str]:
    """Write all stored records into one file.

    Only one checkpoint is in memory at a time. The file is checked before it replaces the old one.

    Args:
        folder: Folder of the parts, where the file is written.

    Returns:
        Keys of records that became unreadable.

    Raises:
        OSError: If the disk does not take it.
    """
    lost: list[str] = []
    written: list[str] = []

    def note(entry: Entry) -> None:
        lost.append(entry.key if entry.origin.modules is None else f"modules of {entry.key}")

    def tables() -> Iterator[SpectraTable]:
        for key in store.identities:
            if (table := store._table(key, on_error=note)) is not None:
                written.extend(table.keys)
                yield table

    def module_tables() -> Iterator[ModuleTable]:
        for key in store.module_identities:
            if (table := store._module_table(key, on_error=note)) is not None:
                written.extend(f"modules of {name}" for name in table.keys)
                yield table

    def vectors() -> Iterator[StoredVectors]:
        note_vectors = partial(_note_vectors, lost)
        for kept in store.vectors.sources(frozenset(written), note_vectors):
            written.append(f"vectors of {kept.key}")
            yield kept

    old = store.path.stat().st_size if store.path.exists() else 0
    checkpoints = len(store.identities) + len(store.module_identities)
    size = (
        old + num_bytes(folder) // _JSON_TO_HDF5 + (0 if old else checkpoints * _MIN_CHECKPOINT)
    ) + num_vector_bytes(folder)

    def check(path: Path) -> None:
        if not written:
            raise _NothingWritten
        check_written(written, path)

    options: dict[str, Any] = {
        "num_bytes": size,
        "temporary": merged_temporary(folder),
        "check": check,
    }
    with suppress(_NothingWritten):
        schema.write_file(store.path, store.plan, tables(), module_tables(), vectors(), **options)
    return sorted(lost)


def _note_vectors(lost: list[str], key: str) -> None:
    lost.append(f"vectors of {key}")


class _NothingWritten(Exception):
    """The merged file would hold no record."""


def check_written(expected: Iterable[str], path: Path) -> None:
    """Read a new file back, checksums included, before it replaces another.

    One checkpoint is in memory at a time.

    Args:
        expected: Keys of its records, those of modules as "modules of KEY" and of vectors as
            "vectors of KEY"; read only when the file is complete.
    """
    keys: list[str] = []
    file = schema.open_file(path)
    assert file is not None
    with file:
        for key in schema.stored_checkpoints(file, path):
            keys += schema.read_table(file, path, *key).keys
        module_tables = ModuleTables(path, file)
        for key in module_tables.identities:
            table = module_tables.merged_table(key, model="", label="", num_planned=0)
            keys += [] if table is None else [f"modules of {name}" for name in table.keys]
        kept = KeptVectors(path, file, parts_folder(path))
        for vectors in kept.sources(kept.keys()):
            keys.append(f"vectors of {vectors.key}")
    assert sorted(keys) == sorted(expected), "a merge neither loses nor invents records"
