"""The place of an output on disk: whether it can be written, and errors of the disk."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from landscape.errors import StoreError


def checked_target(path: str | Path) -> Path:
    """Return the real path of the output, symbolic links followed.

    Raises:
        StoreError: If a file cannot be written there.
    """
    target = Path(os.path.realpath(path))
    if not target.parent.is_dir():
        raise StoreError(f"{path}: there is no folder {target.parent}; make it first.")
    if target.exists() and not target.is_file():
        raise StoreError(f"{path}: not a regular file; name a file such as spectra.h5.")
    if not os.access(target.parent, os.W_OK | os.X_OK):
        raise StoreError(
            f"{path}: the folder {target.parent} is not writable; name another output."
        )
    return target


@contextmanager
def disk_trouble_named(path: Path) -> Iterator[None]:
    """Convert an error of the disk to a one-line error.

    Raises:
        StoreError: In place of an OSError.
    """
    try:
        yield
    except OSError as error:
        raise StoreError(
            f"{path}: cannot be written ({error.strerror or error}). Everything stored before is "
            "safe: repair the disk, then run the same command again."
        ) from error
