"""Two lines of JSON: a header with the SHA-256 digest of the second line, and the content.

A plan and a part are one such pair in a file of their own; a log is many pairs one after the other.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscape.store.hdf5 import check_mapping
from landscape.store.module_record import ModuleRecord
from landscape.store.plan import SCHEMA_VERSION, check_schema_version
from landscape.store.record import Record

# A record of a thousand modules takes about 10 MB.
LARGEST_RECORD = 2**28
LONGEST_HEADER = 2**10
# What every header of a record begins with; no content does, since its first key is another.
HEADER = re.compile(
    rb'\{"landscape": "(record|modules|predictions)", "schema_version": \d+, "sha256": "([0-9a-f]{64})"\}\n'
)
HEADER_START = re.compile(rb'\{"landscape": "(?:record|modules|predictions)", "schema_version": ')
_OPENING = b'{"landscape": "'


@dataclass(frozen=True, kw_only=True)
class Part:
    """A record as it lies on disk, with the protocol and the package versions that it was measured under."""

    record: Record | ModuleRecord
    protocol_sha256: str
    versions: Mapping[str, Any]


def encode(kind: str, content: Mapping[str, Any]) -> bytes:
    """Write a header and a content as two lines."""
    body = json.dumps(content).encode()
    header = {
        "landscape": kind,
        "schema_version": SCHEMA_VERSION,
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    return json.dumps(header).encode() + b"\n" + body + b"\n"


def encode_part(part: Part) -> bytes:
    """Write a record as two lines."""
    record = {key: _plain(value) for key, value in vars(part.record).items()}
    content = {
        "protocol_sha256": part.protocol_sha256,
        "versions": dict(part.versions),
        "record": record,
    }
    return encode("modules" if isinstance(part.record, ModuleRecord) else "record", content)


def _plain(value: Any) -> Any:
    return (
        value.tolist()
        if isinstance(value, np.ndarray)
        else dict(value)
        if isinstance(value, Mapping)
        else value
    )


def decode(data: bytes, path: Path, *, kind: str | None = None) -> tuple[str, Mapping[str, Any]]:
    """Read what `encode` wrote.

    Args:
        path: Where the lines come from, for messages.
        kind: What they must be; None for either kind of record.

    Raises:
        ValueError, LookupError, TypeError: If they are anything else, or damaged.
        StoreError: If they are of another version of the schema.
    """
    lines = data.split(b"\n")
    if len(lines) != 3 or lines[2]:
        raise ValueError("it is truncated, or no part")
    header = json.loads(lines[0])
    if header["landscape"] != kind if kind else header["landscape"] not in ("record", "modules"):
        raise ValueError(f"it is not a {kind or 'record'}")
    if header["sha256"] != hashlib.sha256(lines[1]).hexdigest():
        raise ValueError("it is damaged: its digest is wrong")
    content = check_mapping(json.loads(lines[1]), "its content")
    check_schema_version(
        path, header["schema_version"], written_by=content.get("landscape_version")
    )
    return header["landscape"], content


def decode_part(data: bytes, path: Path, *, kind: str | None = None) -> Part:
    """Read what `encode_part` wrote; raises as `decode`."""
    kind, content = decode(data, path, kind=kind)
    values: Any = content["record"]
    record = ModuleRecord(**values) if kind == "modules" else Record(**values)
    versions = check_mapping(content["versions"], "versions")
    return Part(
        record=record, protocol_sha256=str(content["protocol_sha256"]), versions=dict(versions)
    )


def is_torn(header: bytes) -> bool:
    """Whether a line without an end may be the beginning of a header that was still being written."""
    return header.startswith(_OPENING[: len(header)])


def reason_of(error: Exception) -> str:
    """Why a part cannot be read, on one line."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__} on reading: {' '.join(text.split())[:200]}"
