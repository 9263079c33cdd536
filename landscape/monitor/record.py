"""The record of a monitor: an append-only text file of JSON lines.

    {"landscape": "monitor", ...}      the first line: what is measured, and the versions
    {"step": 120, "loss": ..., ...}    a measurement; see `Measurement`
    {"resumed": 100}                   the training went on after step 100: earlier lines of later
                                       steps are superseded

Every line is written at once and is on the disk before the training goes on. A killed process may
leave a line without an end; the next writer removes it. Superseded lines stay in the file, and
readers leave them out.
"""

import errno
import fcntl
import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from landscape.errors import StoreError
from landscape.files import open_regular, sync_folder
from landscape.monitor.measurement import Measurement
from landscape.monitor.reading import SCHEMA_VERSION, Lines, read_lines
from landscape.version import VERSION

# What flock raises on a file system without locks.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
# Keys of the first line that are no settings.
_OF_THE_FORMAT = {"landscape", "schema_version", "landscape_version"}
_held: set[int] = set()


def _close_in_child() -> None:
    # Processes that load data are forked children. They would keep the lock after the training is
    # killed.
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_close_in_child)


class RecordWriter:
    """A writer that appends measurements to a record, new or existing.

    Args:
        settings: Facts on what is measured, as JSON values: a record holds measurements of one
            kind.
        start_step: Steps that the training had taken when it began here; None for a new training.

    Attributes:
        kept: Measurements of earlier parts of this training that are not superseded.

    Raises:
        StoreError: If another process writes the record, it is of something else or damaged,
            `start_step` is missing, or the file cannot be written.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any], *, start_step: int | None) -> None:
        self.path = path
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
            self._descriptor = os.open(path, flags, 0o644)
        except OSError as error:
            raise self._unwritable(error) from error
        _held.add(self._descriptor)
        try:
            self._lock()
            self.kept = self._continue(settings, start_step)
        except OSError as error:
            self.close()
            raise self._unwritable(error) from error
        except BaseException:
            self.close()
            raise

    def _lock(self) -> None:
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StoreError(
                f"{self.path}: another process writes this record, so two trainings would be "
                "mixed. Name another file."
            ) from None
        except OSError as error:
            # A file system without locks cannot prevent two writers of one record.
            if error.errno not in _NO_LOCKS:
                raise

    def _continue(
        self, settings: Mapping[str, Any], start_step: int | None
    ) -> tuple[Measurement, ...]:
        with open_regular(self.path) as stream:
            lines = read_lines(stream, self.path, may_be_empty=True)
        if lines.header is None:
            os.ftruncate(self._descriptor, 0)
            self._write(
                {
                    "landscape": "monitor",
                    "schema_version": SCHEMA_VERSION,
                    "landscape_version": VERSION,
                    **settings,
                }
            )
            sync_folder(self.path.parent)
            return ()
        self._check_same(lines, settings)
        if lines.length < os.fstat(self._descriptor).st_size:
            os.ftruncate(self._descriptor, lines.length)
        if start_step is None and lines.measurements:
            raise StoreError(
                f"{self.path}: holds measurements up to step {lines.measurements[-1].step}. Say "
                "after which step this training goes on, with start_step (0 supersedes all after "
                "the initialisation), or name another file."
            )
        self._write({"resumed": start_step or 0})
        return tuple(made for made in lines.measurements if made.step <= (start_step or 0))

    def _check_same(self, lines: Lines, settings: Mapping[str, Any]) -> None:
        assert lines.header is not None
        now = json.loads(json.dumps(dict(settings)))
        # A setting that is named only where it is used may be gone as well as new.
        for key in dict.fromkeys([*now, *(lines.header.keys() - _OF_THE_FORMAT)]):
            before, value = lines.header.get(key, False), now.get(key, False)
            if before != value:
                raise StoreError(
                    f"{self.path}: its {key} is {before!r}, now it is {value!r}, "
                    "and one record holds measurements of one kind. Name another file, or measure "
                    "as before."
                )

    def add(self, measurement: Measurement) -> None:
        """Append a measurement; it is on the disk when this returns.

        Raises:
            StoreError: If it cannot be written.
        """
        try:
            self._write(measurement.as_plain())
        except OSError as error:
            raise self._unwritable(error) from error

    def _write(self, line: Mapping[str, Any]) -> None:
        content = (json.dumps(line) + "\n").encode()
        size = os.fstat(self._descriptor).st_size
        try:
            left = memoryview(content)
            while left:
                left = left[os.write(self._descriptor, left) :]
            os.fsync(self._descriptor)
        except BaseException:
            with suppress(OSError):
                os.ftruncate(self._descriptor, size)
            raise

    def _unwritable(self, error: OSError) -> StoreError:
        return StoreError(
            f"{self.path}: cannot be written ({error.strerror or error}), so measurements would be "
            "lost. Name a file in a writable folder with room."
        )

    def close(self) -> None:
        """Close the file and release its lock. May be called twice."""
        if self._descriptor in _held:
            _held.discard(self._descriptor)
            os.close(self._descriptor)
