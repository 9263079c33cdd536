"""An append-only log of records: one file per writer, one fsync per append.

Records are pairs of lines as in lines.py. A writer that dies leaves an incomplete end. Readers drop
it and nobody appends to it: the next writer begins a log of its own. The suffix is not that of
parts, which landscape 0.1 removes when it merges.
"""

import hashlib
import io
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from landscape.errors import StoreError
from landscape.files import open_regular, sync_folder
from landscape.store.lines import HEADER, HEADER_START, LARGEST_RECORD, LONGEST_HEADER, is_torn

_NAME = re.compile(r"records\.(\d+)\.log")
_BLOCK = 2**20


class Stretch(NamedTuple):
    """A range of bytes of a log: a whole record or damage.

    Args:
        content: Both lines, with a correct digest; None for damage.
        reason: Description of the damage; "" for a record.
    """

    offset: int
    length: int
    content: bytes | None
    reason: str = ""


class LogFile:
    """A log for reading.

    While it is open, it stays readable when a merge removes its name.
    """

    def __init__(self, path: Path, stream: io.BufferedReader) -> None:
        self.path = path
        self.stream = stream

    def read(self, offset: int, length: int) -> bytes:
        """Read bytes of the log; fewer if it became shorter.

        Raises:
            OSError: If the disk cannot read them.
        """
        if self.stream.closed:
            with open_regular(self.path) as stream:
                return os.pread(stream.fileno(), length, offset)
        return os.pread(self.stream.fileno(), length, offset)

    def close(self) -> None:
        self.stream.close()


def log_number(path: Path) -> int | None:
    """Return the number in a log's name; None for other files."""
    match = _NAME.fullmatch(path.name)
    return int(match[1]) if match else None


def scan(stream: BinaryIO) -> Iterator[Stretch]:
    """Yield every record and damaged range of a log, in order.

    An incomplete end is left out. After damage the scan continues at the next header, also within a
    line: a damaged line end loses a single record.
    """
    offset = 0
    while header := stream.readline(LONGEST_HEADER):
        match = HEADER.fullmatch(header)
        body = stream.readline(LARGEST_RECORD) if match else b""
        if (
            match
            and body.endswith(b"\n")
            and hashlib.sha256(body[:-1]).hexdigest().encode() == match[2]
        ):
            yield Stretch(offset, len(header) + len(body), header + body)
            offset += len(header) + len(body)
            continue
        if _is_torn(header, body, at_body=match is not None):
            return
        end = _next_header(stream, offset + 1)
        length = (os.fstat(stream.fileno()).st_size if end is None else end) - offset
        what = "the digest is wrong" if match else "no header of a record"
        yield Stretch(
            offset, length, None, f"{length} bytes from byte {offset} on are damaged: {what}"
        )
        if end is None:
            return
        offset = end
        stream.seek(offset)


def _is_torn(header: bytes, body: bytes, *, at_body: bool) -> bool:
    """Tell whether the log ends within an unfinished record."""
    if at_body:
        return not body.endswith(b"\n") and len(body) < LARGEST_RECORD
    return not header.endswith(b"\n") and len(header) < LONGEST_HEADER and is_torn(header)


def _next_header(stream: BinaryIO, start: int) -> int | None:
    """Find the next header; None if a record cannot reach it."""
    stream.seek(start)
    tail = b""
    for position in range(start, start + LARGEST_RECORD, _BLOCK):
        block = stream.read(_BLOCK)
        if not block:
            return None
        if match := HEADER_START.search(tail + block):
            return position - len(tail) + match.start()
        # A header may extend over two blocks.
        tail = (tail + block)[-LONGEST_HEADER:]
    return None


class LogWriter:
    """A writer that appends to its own log in a folder.

    The log is created with the first record. Only for the holder of the folder's lock.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._descriptor: int | None = None
        self._size = 0
        self._log: LogFile | None = None

    def append(self, content: bytes) -> tuple[LogFile, int]:
        """Write whole records; return the log and their offset.

        They are on the disk when this returns.

        Raises:
            OSError: If the disk does not take them. The log keeps its former content, and no part
                of the new records where the disk allows them to be removed.
            StoreError: If the log was removed.
        """
        log, descriptor = self._current()
        offset = self._size
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(descriptor, left) :]
            os.fsync(descriptor)
        except BaseException:
            self._take_back(descriptor)
            raise
        self._size += len(content)
        return log, offset

    def _current(self) -> tuple[LogFile, int]:
        if self._log is None or self._descriptor is None:
            self.close()
            path = self._folder / f"records.{_next_number(self._folder)}.log"
            flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
            self._descriptor, self._size = os.open(path, flags, 0o644), 0
            self._log = LogFile(path, open_regular(path))
            sync_folder(self._folder)
        elif os.fstat(self._descriptor).st_nlink == 0:
            raise StoreError(
                f"{self._log.path}: it was removed while records were written to it, so that they "
                "would be lost. Leave the folder of a running store alone, and run the same "
                "command again."
            )
        return self._log, self._descriptor

    def _take_back(self, descriptor: int) -> None:
        """Remove the remains of a failed append.

        If that fails too, the next append begins another log.
        """
        try:
            os.ftruncate(descriptor, self._size)
        except OSError:
            self._log = None

    def close(self) -> None:
        """Close the log for writing. May be called twice."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)


def _next_number(folder: Path) -> int:
    return (
        max(
            (number for path in folder.iterdir() if (number := log_number(path)) is not None),
            default=-1,
        )
        + 1
    )
