"""Pairs of JSON lines: a header with a SHA-256 digest, and the content.

The digest is that of the second line. A plan and a part are such a pair in a file of their own. A
log is a sequence of pairs.
"""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from landscape.store.contents import SCHEMA_VERSION, check_schema_version
from landscape.store.hdf5 import check_mapping
from landscape.store.module_record import ModuleRecord
from landscape.store.record import Record

# A record of a thousand modules takes about 10 MB.
LARGEST_RECORD = 2**28
LONGEST_HEADER = 2**10
# The beginning of every header of a record. No content begins like this, since its first key
# differs.
HEADER = re.compile(
    rb'\{"landscape": "(record|modules|predictions)", "schema_version": \d+, '
    rb'"sha256": "([0-9a-f]{64})"\}\n'
)
HEADER_START = re.compile(rb'\{"landscape": "(?:record|modules|predictions)", "schema_version": ')
_OPENING = b'{"landscape": "'


@dataclass(frozen=True, kw_only=True)
class Part:
    """A record on disk, with its protocol and package versions."""

    record: Record | ModuleRecord
    protocol_sha256: str
    versions: Mapping[str, Any]


def encode(kind: str, content: Mapping[str, Any]) -> bytes:
    """Encode a header and a content as two lines."""
    body = json.dumps(content).encode()
    header = {
        "landscape": kind,
        "schema_version": SCHEMA_VERSION,
        "sha256": hashlib.sha256(body).hexdigest(),
    }
    return json.dumps(header).encode() + b"\n" + body + b"\n"


def encode_part(part: Part) -> bytes:
    """Encode a record as two lines."""
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
    """Decode the lines that `encode` wrote.

    Args:
        path: Origin of the lines, for messages.
        kind: Kind that the lines must have; None for either kind of record.

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
    """Decode the lines that `encode_part` wrote; raises as `decode`."""
    kind, content = decode(data, path, kind=kind)
    values: Any = content["record"]
    record = ModuleRecord(**values) if kind == "modules" else Record(**values)
    versions = check_mapping(content["versions"], "versions")
    return Part(
        record=record, protocol_sha256=str(content["protocol_sha256"]), versions=dict(versions)
    )


def is_torn(header: bytes) -> bool:
    """Tell whether an incomplete line may be the start of a header.

    Such a header was still being written.
    """
    return header.startswith(_OPENING[: len(header)])


def reason_of(error: Exception) -> str:
    """Describe on one line why a part cannot be read."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return f"{type(error).__name__} on reading: {' '.join(text.split())[:200]}"
