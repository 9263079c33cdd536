"""The folder <output>.parts: one small file per record while a run goes on, each whole or not there.

A file is two lines of JSON: a header with the SHA-256 digest of the second line, and the content. What does not
agree with its digest, its name, or the plan is never used; its measurement is made again.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscape.errors import StoreError
from landscape.files import read_regular, write_atomically
from landscape.store.hdf5 import CORRUPT, check_mapping
from landscape.store.module_record import ModuleRecord
from landscape.store.plan import SCHEMA_VERSION, Plan, check_schema_version
from landscape.store.record import Record

_SUFFIX = ".jsonl"
_MODULES = ".modules"
_PLAN = "plan.json"
_LOCK = "lock"
# A record of a thousand modules takes about 10 MB.
_LARGEST_PART = 2**28


@dataclass(frozen=True, kw_only=True)
class RejectedPart:
    """A file among the parts that is not used, and why."""

    path: Path
    reason: str


@dataclass(frozen=True, kw_only=True)
class Part:
    """A record as it lies on disk, with the protocol and the package versions that it was measured under."""

    record: Record | ModuleRecord
    protocol_sha256: str
    versions: Mapping[str, Any]


def parts_folder(output: Path) -> Path:
    return output.parent / f"{output.name}.parts"


def part_name(record: Record | ModuleRecord) -> str:
    modules = _MODULES if isinstance(record, ModuleRecord) else ""
    return f"{record.series}.{record.epoch}.{record.batch}{modules}{_SUFFIX}"


def write_part(folder: Path, part: Part) -> None:
    """Put a record on disk, whole or not at all.

    Raises:
        OSError: If the disk does not take it.
    """
    record = {key: _plain(value) for key, value in vars(part.record).items()}
    content = {"protocol_sha256": part.protocol_sha256, "versions": dict(part.versions), "record": record}
    kind = "modules" if isinstance(part.record, ModuleRecord) else "record"
    write_atomically(folder / part_name(part.record), _encode(kind, content))


def _plain(value: Any) -> Any:
    return value.tolist() if isinstance(value, np.ndarray) else dict(value) if isinstance(value, Mapping) else value


def write_plan(folder: Path, plan: Plan) -> None:
    write_atomically(folder / _PLAN, _encode("plan", asdict(plan)))


def read_plan(folder: Path) -> Plan | RejectedPart | None:
    """The plan of the run that writes here.

    Raises:
        StoreError: If it is of another version of the schema.
    """
    path = folder / _PLAN
    try:
        return Plan.from_json(_decode("plan", path))
    except FileNotFoundError:
        return None
    except CORRUPT as error:
        return RejectedPart(path=path, reason=_reason(error))


def read_parts(folder: Path) -> tuple[list[Part], list[RejectedPart]]:
    """Every readable record among the parts, in the order of their names, and what else is there.

    A part that disappears on the way has been merged: whoever reads the merged file afterwards finds it there.
    """
    parts, rejected = [], []
    try:
        paths = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return [], []
    except OSError as error:
        raise StoreError(f"{folder}: cannot be read ({error.strerror}); mend its permissions.") from error
    for path in paths:
        if path.name in (_PLAN, _LOCK) or _is_temporary(path):
            continue
        try:
            of_modules = path.name.endswith(_MODULES + _SUFFIX)
            content = _decode("modules" if of_modules else "record", path)
            record = ModuleRecord(**content["record"]) if of_modules else Record(**content["record"])
            if path.name != part_name(record):
                raise ValueError(f"it holds {record.key}, which its name does not say")
            versions = check_mapping(content["versions"], "versions")
            parts.append(Part(record=record, protocol_sha256=str(content["protocol_sha256"]), versions=dict(versions)))
        except FileNotFoundError:
            continue
        except (*CORRUPT, StoreError) as error:
            rejected.append(RejectedPart(path=path, reason=_reason(error)))
    return parts, rejected


def that_fit(
    parts: Iterable[Part],
    plan: Plan,
    folder: Path,
    established: Mapping[tuple[str, int], tuple[str, int]],
    established_modules: Mapping[str, tuple[str, ...]],
) -> tuple[list[Part], list[RejectedPart]]:
    """Split parts into those that were measured under this plan and the foreign ones.

    Args:
        established: The digest of the weights and the number of parameters of each (series, epoch) that is merged.
        established_modules: The modules of each series of which some are merged.
    """
    known, modules = dict(established), dict(established_modules)
    fitting, foreign = [], []
    for part in parts:
        record = part.record
        identity = (record.checkpoint_sha256, record.num_params)
        reason = None
        if part.protocol_sha256 != plan.protocol_sha256_of(record.series):
            reason = "it was measured under another protocol"
        elif not plan.holds(record.series, record.epoch) or record.batch >= plan.num_batches:
            reason = f"{record.key} is not planned"
        elif record.k != plan.k:
            reason = f"it holds {record.k} eigenvalues instead of {plan.k}"
        elif isinstance(record, ModuleRecord) and modules.setdefault(record.series, record.modules) != record.modules:
            reason = "its modules are not those of the rest of its series"
        elif known.setdefault((record.series, record.epoch), identity) != identity:
            reason = "it was measured on other weights than the rest of its checkpoint"
        if reason is None:
            fitting.append(part)
        else:
            foreign.append(RejectedPart(path=folder / part_name(record), reason=reason))
    return fitting, foreign


def remove_parts(folder: Path) -> None:
    """Remove what this module writes, whole or half, the plan last; files of others stay."""
    for path in sorted(folder.iterdir()):
        if (path.suffix == _SUFFIX or _is_temporary(path)) and not path.is_dir():
            path.unlink()
    (folder / _PLAN).unlink(missing_ok=True)


def has_parts(folder: Path) -> bool:
    return any(path.suffix == _SUFFIX for path in folder.iterdir())


def merged_temporary(folder: Path) -> Path:
    """Where the merged file grows: beside its parts, so that it is removed with them if it never becomes whole."""
    return folder / ".merged.h5.tmp"


def _is_temporary(path: Path) -> bool:
    return path.name.startswith(".") and path.name.endswith(".tmp")


def _encode(kind: str, content: Mapping[str, Any]) -> bytes:
    body = json.dumps(content).encode()
    header = {"landscape": kind, "schema_version": SCHEMA_VERSION, "sha256": hashlib.sha256(body).hexdigest()}
    return json.dumps(header).encode() + b"\n" + body + b"\n"


def _decode(kind: str, path: Path) -> Any:
    lines = read_regular(path, largest=_LARGEST_PART).split(b"\n")
    if len(lines) != 3 or lines[2]:
        raise ValueError("it is truncated, or no part")
    header = json.loads(lines[0])
    if header["landscape"] != kind:
        raise ValueError(f"it is not a {kind}")
    if header["sha256"] != hashlib.sha256(lines[1]).hexdigest():
        raise ValueError("it is damaged: its digest is wrong")
    content = check_mapping(json.loads(lines[1]), "its content")
    check_schema_version(path, header["schema_version"], written_by=content.get("landscape_version"))
    return content


def _reason(error: Exception) -> str:
    """Why a part cannot be read, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__} on reading: {' '.join(text.split())[:200]}"
