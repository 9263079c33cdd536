"""The folder <output>.parts: logs of records that are not merged yet.

    plan.json           what the output is going to hold
    records.<n>.log     the records of a writer, in the order of arrival
    <series>.<epoch>.<batch>.vectors    the kept eigenvectors of a batch
    lock, status.json   the present writer and its progress
    <series>.<epoch>.<batch>[.modules].jsonl    one record per file, as landscape 0.1 wrote them

A record that does not agree with its digest, its name, or the plan is never used; it is measured
again.
"""

import errno
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from landscape.errors import StoreError
from landscape.files import open_regular, read_regular, write_atomically
from landscape.store.agreement import differing_field
from landscape.store.contents import StoreContents
from landscape.store.hdf5 import CORRUPT
from landscape.store.index import Entries, Entry, Key, PartContent
from landscape.store.lines import LARGEST_RECORD, decode, decode_part, encode, reason_of
from landscape.store.log import LogFile, Stretch, log_number, scan
from landscape.store.module_record import ModuleRecord
from landscape.store.record import Record
from landscape.workers.run_status import STATUS_FILE

_SUFFIX = ".jsonl"
_MODULES = ".modules"
VECTORS_SUFFIX = ".vectors"
_PLAN = "plan.json"
_LOCK = "lock"
# Each killed writer leaves a log. A process can often open no more than 1024 files.
_MAX_OPEN = 200
# Errors of opening a file that is gone, a pipe, a folder or a circle of links.
_NO_FILE = (errno.ENOENT, errno.EINVAL, errno.EISDIR, errno.ELOOP)


@dataclass(frozen=True, kw_only=True)
class RejectedPart:
    """A record or file among the parts that is not used, and the reason."""

    path: Path
    reason: str


class UnreadableLogError(StoreError):
    """A log exists but cannot be read, without any sign of damage."""


def parts_folder(output: Path) -> Path:
    return output.parent / f"{output.name}.parts"


def part_name(record: Record | ModuleRecord) -> str:
    """Return the file name of a record with its own file."""
    modules = _MODULES if isinstance(record, ModuleRecord) else ""
    return f"{record.series}.{record.epoch}.{record.batch}{modules}{_SUFFIX}"


def write_plan(folder: Path, plan: StoreContents) -> None:
    write_atomically(folder / _PLAN, encode("plan", asdict(plan)))


def read_plan(folder: Path) -> StoreContents | RejectedPart | None:
    """Read the plan of the run that writes here.

    Raises:
        StoreError: If it is of another version of the schema.
    """
    path = folder / _PLAN
    try:
        _, content = decode(read_regular(path, largest=LARGEST_RECORD), path, kind="plan")
        return StoreContents.from_json(content)
    except FileNotFoundError:
        return None
    except CORRUPT as error:
        return RejectedPart(path=path, reason=reason_of(error))


def read_parts(folder: Path) -> tuple[list[Entry], list[RejectedPart]]:
    """Index every readable record among the parts; list what is rejected.

    Each record is checked once. Logs stay open, so that they can be read after a merge has removed
    them. A part that disappears meanwhile has been merged: a later read of the merged file contains
    it.

    Raises:
        StoreError: If the folder or a log cannot be read.
    """
    try:
        paths = sorted(folder.iterdir(), key=lambda path: (log_number(path) or 0, path.name))
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        raise StoreError(
            f"{folder}: cannot be read ({error.strerror}); correct its permissions."
        ) from error
    make = Entries()
    entries: list[Entry] = []
    rejected: list[RejectedPart] = []
    for number, path in enumerate(paths):
        if path.name in (_PLAN, _LOCK, STATUS_FILE) or _is_temporary(path) or _is_vectors(path):
            continue
        try:
            if log_number(path) is not None:
                _read_log(path, make, entries, rejected, stays_open=number < _MAX_OPEN)
            else:
                entries.append(_read_part(path, make))
        except FileNotFoundError:
            continue
        except UnreadableLogError:
            raise
        except (*CORRUPT, StoreError) as error:
            rejected.append(RejectedPart(path=path, reason=reason_of(error)))
    return entries, rejected


def _read_part(path: Path, make: Entries) -> Entry:
    content = read_regular(path, largest=LARGEST_RECORD)
    part = decode_part(
        content, path, kind="modules" if path.name.endswith(_MODULES + _SUFFIX) else "record"
    )
    if path.name != part_name(part.record):
        raise ValueError(f"it holds {part.record.key}, which its name does not say")
    return make.of(part, PartContent(path, content), 0, len(content))


def _read_log(
    path: Path,
    make: Entries,
    entries: list[Entry],
    rejected: list[RejectedPart],
    *,
    stays_open: bool,
) -> None:
    try:
        log = LogFile(path, open_regular(path))
    except OSError as error:
        if error.errno in _NO_FILE:
            raise
        raise unreadable(path, error) from error
    for stretch in _stretches(log):
        if stretch.content is None:
            rejected.append(RejectedPart(path=path, reason=stretch.reason))
            continue
        try:
            part = decode_part(stretch.content, path)
            entries.append(make.of(part, log, stretch.offset, stretch.length))
        except (*CORRUPT, StoreError) as error:
            rejected.append(
                RejectedPart(path=path, reason=f"at byte {stretch.offset}: {reason_of(error)}")
            )
    if not stays_open:
        log.close()


def _stretches(log: LogFile) -> Iterator[Stretch]:
    try:
        yield from scan(log.stream)
    except OSError as error:
        raise unreadable(log.path, error) from error


def unreadable(path: Path, error: OSError) -> UnreadableLogError:
    """Return the error for a log that cannot be read.

    To treat its records as lost would measure them again and remove them.
    """
    return UnreadableLogError(
        f"{path}: cannot be read ({error.strerror or error}); its records are needed: repair that "
        "first."
    )


def split_compatible(
    entries: Iterable[Entry],
    plan: StoreContents,
    established: Mapping[Key, tuple[str, int]],
    established_modules: Mapping[str, tuple[str, ...]],
) -> tuple[list[Entry], list[RejectedPart]]:
    """Split records into those measured under this plan and foreign ones.

    Args:
        established: The digest of the weights and the number of parameters of each merged (series,
            epoch).
        established_modules: The modules of each series with merged modules.
    """
    known, modules = dict(established), dict(established_modules)
    protocols = {series.name: plan.protocol_sha256_of(series.name) for series in plan.series}
    fitting: dict[tuple[str, bool], Entry] = {}
    foreign = []
    for entry in entries:
        reason = _misfit(entry, plan, protocols, known, modules)
        other = (
            fitting.setdefault((entry.key, entry.origin.modules is None), entry)
            if reason is None
            else entry
        )
        if (
            other is not entry
            and (field := differing_field(other.read().record, entry.read().record)) is not None
        ):
            reason = f"{entry.key} is stored with another {field} before it"
        if reason is not None:
            named = entry.key in reason or not isinstance(entry.source, LogFile)
            foreign.append(
                RejectedPart(
                    path=entry.source.path, reason=reason if named else f"{entry.key}: {reason}"
                )
            )
    return list(fitting.values()), foreign


def _misfit(
    entry: Entry,
    plan: StoreContents,
    protocols: Mapping[str, str],
    known: dict[Key, tuple[str, int]],
    modules: dict[str, tuple[str, ...]],
) -> str | None:
    """Explain why a record does not belong to a plan, if so."""
    origin = entry.origin
    identity = (origin.checkpoint_sha256, origin.num_params)
    if entry.series in protocols and origin.protocol_sha256 != protocols[entry.series]:
        return "it was measured under another protocol"
    if not plan.holds(entry.series, entry.epoch) or entry.batch >= plan.num_batches:
        return f"{entry.key} is not planned"
    if origin.k != plan.k:
        return f"it holds {origin.k} eigenvalues instead of {plan.k}"
    if (
        origin.modules is not None
        and modules.setdefault(entry.series, origin.modules) != origin.modules
    ):
        return "its modules are not those of the rest of its series"
    if known.setdefault((entry.series, entry.epoch), identity) != identity:
        return "it was measured on other weights than the rest of its checkpoint"
    return None


def remove_parts(folder: Path) -> None:
    """Remove what this module writes, complete or not; the plan last.

    Files of others stay.
    """
    for path in sorted(_listed(folder)):
        if (
            _holds_records(path)
            or _is_vectors(path)
            or path.name == STATUS_FILE
            or _is_temporary(path)
        ) and not path.is_dir():
            path.unlink()
    (folder / _PLAN).unlink(missing_ok=True)


def has_parts(folder: Path) -> bool:
    """Tell whether a folder holds records or vectors.

    An empty log does not count.
    """
    return any(
        _is_vectors(path)
        or (_holds_records(path) and (log_number(path) is None or path.stat().st_size))
        for path in _listed(folder)
    )


def _listed(folder: Path) -> list[Path]:
    """List the files in a folder, if it exists."""
    try:
        return list(folder.iterdir())
    except FileNotFoundError:
        return []


def is_begun(folder: Path) -> bool:
    """Tell whether a run has begun to write its parts."""
    return (folder / _PLAN).exists() or has_parts(folder)


def num_bytes(folder: Path) -> int:
    """Sum the bytes of all records in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if _holds_records(path))


def num_vector_bytes(folder: Path) -> int:
    """Sum the bytes of all vectors in a folder."""
    return sum(path.stat().st_size for path in folder.iterdir() if _is_vectors(path))


def merged_temporary(folder: Path) -> Path:
    """Return the path of the merged file while it is written.

    It lies among the parts, so that it is removed with them if it is never completed.
    """
    return folder / ".merged.h5.tmp"


def _holds_records(path: Path) -> bool:
    return path.suffix == _SUFFIX or log_number(path) is not None


def _is_vectors(path: Path) -> bool:
    return path.suffix == VECTORS_SUFFIX


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")
