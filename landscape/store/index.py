"""An index of the records that are not merged yet.

It holds where each record lies, in place of the records themselves.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, Generic, NamedTuple, Protocol, TypeVar, cast

from landscape.errors import StoreError
from landscape.store.hdf5 import CORRUPT
from landscape.store.lines import Part, decode_part, reason_of
from landscape.store.module_record import ModuleRecord
from landscape.store.record import Record
from landscape.store.table import task_key

Key = tuple[str, int]
_Record = TypeVar("_Record", Record, ModuleRecord)


class DamagedRecordError(StoreError):
    """A record has changed on disk since it was indexed."""


class Source(Protocol):
    """A log, or a part in memory, from which records are read."""

    path: Path

    def read(self, offset: int, length: int) -> bytes: ...

    def close(self) -> None: ...


class PartContent:
    """The lines of a part, in memory.

    A merge may remove the file while it is read.
    """

    def __init__(self, path: Path, content: bytes) -> None:
        self.path = path
        self._content = content

    def read(self, offset: int, length: int) -> bytes:
        return self._content[offset : offset + length]

    def close(self) -> None:
        """Do nothing: no file is open."""


class Origin(NamedTuple):
    """Facts that a record shares with others of its checkpoint.

    Args:
        modules: Names of the modules; None for the spectrum of the whole model.
    """

    protocol_sha256: str
    checkpoint_sha256: str
    num_params: int
    k: int
    modules: tuple[str, ...] | None


class Entry(NamedTuple):
    """The place of a record, and facts that are needed without reading it."""

    series: str
    epoch: int
    batch: int
    batch_sha256: str
    origin: Origin
    source: Source
    offset: int
    length: int

    @property
    def key(self) -> str:
        return task_key(self.series, self.epoch, self.batch)

    def read(self) -> Part:
        """Read the record again.

        Raises:
            DamagedRecordError: If it has changed since it was indexed.
            StoreError: If the disk cannot read it.
        """
        path = self.source.path
        try:
            content = self.source.read(self.offset, self.length)
        except OSError as error:
            raise StoreError(
                f"{path}: cannot be read ({error.strerror or error}); repair the disk."
            ) from error
        try:
            part = decode_part(content, path)
        except (*CORRUPT, StoreError) as error:
            raise DamagedRecordError(
                f"{path}: {self.key} became unreadable ({reason_of(error)})."
            ) from error
        if (part.record.key, part.record.batch_sha256) != (self.key, self.batch_sha256):
            raise DamagedRecordError(
                f"{path}: {self.key} became another record, {part.record.key}."
            )
        return part


class Entries:
    """A factory of entries that share memory.

    Equal texts and origins are stored once, however many records share them.
    """

    def __init__(self) -> None:
        self._pool: dict[Any, Any] = {}

    def _shared(self, value: Any) -> Any:
        return self._pool.setdefault(value, value)

    def of(self, part: Part, source: Source, offset: int, length: int) -> Entry:
        """Return the entry of a record at `offset` of a source."""
        record = part.record
        modules = record.modules if isinstance(record, ModuleRecord) else None
        origin = Origin(
            part.protocol_sha256, record.checkpoint_sha256, record.num_params, record.k, modules
        )
        return Entry(
            self._shared(record.series),
            record.epoch,
            record.batch,
            self._shared(record.batch_sha256),
            self._shared(origin),
            source,
            offset,
            length,
        )


# A function to call for a record that was damaged since it was indexed; None: raise the error.
OnError = Callable[[Entry], object] | None


class PartIndex(Generic[_Record]):
    """Index of the records of a kind among the parts of an output.

    It is sorted by checkpoint and batch.

    Attributes:
        identities: Digest of the weights and number of parameters of each (series, epoch).
    """

    def __init__(self, entries: Iterable[Entry] = ()) -> None:
        self.identities: dict[Key, tuple[str, int]] = {}
        self._entries: dict[Key, dict[int, Entry]] = {}
        for entry in entries:
            self.add(entry)

    def add(self, entry: Entry) -> None:
        """Add a record; the first of a batch stays."""
        key = (entry.series, entry.epoch)
        self.identities.setdefault(key, (entry.origin.checkpoint_sha256, entry.origin.num_params))
        self._entries.setdefault(key, {}).setdefault(entry.batch, entry)

    def __contains__(self, key: object) -> bool:
        return key in self._entries

    def close(self) -> None:
        """Close the files that hold the records."""
        for source in {
            entry.source for entries in self._entries.values() for entry in entries.values()
        }:
            source.close()

    def batches(self, key: Key) -> dict[int, str]:
        """Return the digest of the pairs of each batch.

        Empty if the checkpoint has no batch here.
        """
        return {batch: entry.batch_sha256 for batch, entry in self._entries.get(key, {}).items()}

    def modules(self, key: Key) -> tuple[str, ...] | None:
        """Return the module names of a checkpoint."""
        return next(iter(self._entries[key].values())).origin.modules

    def record(self, key: Key, batch: int) -> _Record | None:
        """Return a record; None if it is not here.

        Raises as `Entry.read`.
        """
        entry = self._entries.get(key, {}).get(batch)
        return None if entry is None else cast(_Record, entry.read().record)

    def read(
        self, key: Key, *, on_error: OnError = None
    ) -> list[tuple[_Record, Mapping[str, Any]]]:
        """Read the records of a checkpoint, each with its package versions.

        Args:
            on_error: Called for a record that was damaged since it was indexed; the record is then
                left out.

        Raises:
            StoreError: As `Entry.read`, without `on_error`.
        """
        records = []
        for entry in self._entries.get(key, {}).values():
            try:
                part = entry.read()
            except DamagedRecordError:
                if on_error is None:
                    raise
                on_error(entry)
                continue
            records.append((cast(_Record, part.record), part.versions))
        return records
